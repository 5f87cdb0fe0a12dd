"""Options of encoders, checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from stmsi._data.checks import check_count, check_weight, suggest
from stmsi.model.net.encoders import ENCODERS


def check_encoder_options(encoder: str, given: Mapping[str, Any] | None) -> None:
    """Refuse options that an encoder does not take, and numbers out of range.

    What an option may be follows from its name and default: counts are integers, shares that are dropped lie between 0
    and 1, and weights and the like are finite and not negative.

    Raises
    ------
    ValueError
        An option that the encoder does not take (the message lists those that it does), or a number out of range.
    """
    if given is not None and not isinstance(given, Mapping):
        msg = f"encoder_kwargs is a mapping from the name of an option to its value, found {type(given).__name__}."
        raise ValueError(msg)
    taken = {
        name: p.default
        for name, p in signature(ENCODERS[encoder]).parameters.items()
        if p.default is not Parameter.empty and p.kind is not Parameter.VAR_KEYWORD
    }
    for name, value in (given or {}).items():
        if name not in taken:
            msg = f"encoder={encoder!r} does not take {name!r}; its encoder_kwargs: {', '.join(taken)}.{suggest(name, taken)}"
            raise ValueError(msg)
        _check(f"encoder_kwargs[{name!r}]", name, value, taken[name])


def _check(shown: str, name: str, value: Any, default: Any) -> None:
    if value is None and default is None:
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            msg = f"{shown} must be True or False, found {value!r}."
            raise ValueError(msg)
    elif name.startswith("n_") or isinstance(default, int):
        check_count(value, shown, 0 if default == 0 else 1)
    elif isinstance(default, float):
        check_weight(value, shown)
        if name.endswith("dropout") and value >= 1:
            msg = f"{shown} is the share that is dropped, at least 0 and below 1, found {value!r}."
            raise ValueError(msg)
        if name == "temperature" and value == 0:
            msg = f"{shown} must be a positive number, found {value!r}."
            raise ValueError(msg)

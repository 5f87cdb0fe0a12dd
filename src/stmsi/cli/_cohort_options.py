"""Options of the steps of a cohort: those of the commands, and what a whole cohort needs beside them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stmsi._cohort import Option
from stmsi.cli._align import align
from stmsi.cli._combine import combine
from stmsi.cli._map import map_
from stmsi.cli._predict import predict
from stmsi.cli._train import train

OF_SECTION = ("combine", "align")
"""Steps of which a section may have options of its own."""
_FROM_COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "combine": (combine, ("pixel_size", "um_per_unit", "spot_diameter", "table_key", "shapes_key", "mz")),
    "align": (
        align,
        ("landmarks", "via", "method", "model", "robust", "refine", "landmark_units", "seed"),
    ),
    "map": (map_, ("normalize", "target", "min_prevalence", "min_coverage", "replicates")),
    "train": (
        train,
        ("model", "layer", "input", "presence_key", "graph_key", "covariate_key", "feature_key", "prior_key", "obs"),
    ),
    "predict": (predict, ("layer", "input", "how", "coverage", "min_genes")),
}
_RARE_IS_ABSENT = {"min_prevalence": 0.0}
"""Default of a cohort: an ion that is rare in one section is absent there, and not unknown."""


def step_options() -> dict[str, dict[str, Option]]:
    """Options of each step with types, defaults and what they can be, as the command line has them."""
    from stmsi.model._families import FAMILIES

    found = {step: _of_command(command, names) for step, (command, names) in _FROM_COMMANDS.items()}
    found["train"]["join"] = _of_command(combine, ("join",))["join"]
    found["validate"] = {
        "models": Option(str, ["mean"], several=True, choices=tuple(FAMILIES)),
        "folds": Option(int, 10, least=2),
    }
    found["report"] = {"figures": Option(bool, True)}
    return found


def _of_command(command: Callable[..., None], names: tuple[str, ...]) -> dict[str, Option]:
    hints, parameters = get_type_hints(command, include_extras=True), signature(command).parameters
    return {name: _option(hints[name], _RARE_IS_ABSENT.get(name, parameters[name].default)) for name in names}


def _option(hint: Any, default: Any) -> Option:
    """An option from its annotation; what the shell completes is all that it can be."""
    kind, about = get_args(hint)
    if isinstance(kind, UnionType):  # or None
        kind = next(part for part in get_args(kind) if part is not type(None))
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
    complete = about.autocompletion
    return Option(kind, default, several, () if complete is None else tuple(complete("")))

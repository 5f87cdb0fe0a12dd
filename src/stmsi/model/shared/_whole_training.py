"""Training leaves a model whole or as it was before, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from stmsi._settings import logger


class Trainable(Protocol):
    """A model whose attributes say all that training leaves behind."""

    def _replaces(self, before: Mapping[str, Any]) -> bool: ...


Model = TypeVar("Model", bound=Trainable)
P = ParamSpec("P")


def whole_or_as_before(train: Callable[Concatenate[Model, P], None]) -> Callable[Concatenate[Model, P], None]:
    """Of a method that trains: when it fails or is interrupted, the model is what it was before.

    Attributes are put back by one assignment, which no interrupt can split. What was there before must therefore not be
    changed in place: training makes new estimators, modules and states. A model that training left whole in spite of the
    error is kept, where its ``_replaces`` says so.
    """

    @wraps(train)
    def guarded(self: Model, *args: P.args, **kwargs: P.kwargs) -> None:
        before = vars(self).copy()
        try:
            train(self, *args, **kwargs)
        except BaseException:
            if not self._replaces(before):
                self.__dict__ = before
                if before.get("state_") is not None:
                    logger.warning("Training did not end; the model is the one before it.")
            raise

    return guarded

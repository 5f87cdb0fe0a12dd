"""What models predict: both stages of some spots, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

How: TypeAlias = Literal["expected", "probability_weighted", "mask"]
"""Ways in which the two stages become one number; see :meth:`stmsi.model.HurdleLinear.predict`."""


@dataclass(frozen=True)
class Prediction:
    """Both stages and what follows from them, each a DataFrame spots x metabolites; `ood` one value a spot."""

    presence: pd.DataFrame
    intensity: pd.DataFrame
    expected: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    ood: NDArray[np.float64]
    missing_genes: float
    found: NDArray[np.int8] | None = None  # what `TrainingSpots.compare` says of each spot, where it was asked for

    @classmethod
    def gather(cls, parts: Iterable[tuple[NDArray[np.int64], Prediction]], names: pd.Index) -> Prediction:
        """Predictions of some spots each, given with their rows, as one of all; `names` are those of all spots."""
        values: dict[str, NDArray[np.float32]] = {}
        ood, found, n = np.empty(len(names)), np.empty(len(names), np.int8), len(names)
        for rows, part in parts:
            if len(rows) == n:
                return part
            for field in _FRAMES:
                frame = getattr(part, field)
                values.setdefault(field, np.empty((n, frame.shape[1]), np.float32))[rows] = frame.to_numpy()
            ood[rows] = part.ood
            if part.found is not None:
                found[rows] = part.found
        frames = {field: pd.DataFrame(value, index=names, columns=frame.columns) for field, value in values.items()}
        told = None if part.found is None else found
        return cls(**frames, ood=ood, missing_genes=part.missing_genes, found=told)

    def take(self, rows: NDArray[np.int64]) -> Prediction:
        """Some of the spots."""
        frames = {field: getattr(self, field).iloc[rows] for field in _FRAMES}
        found = None if self.found is None else self.found[rows]
        return replace(self, **frames, ood=self.ood[rows], found=found)

    def output(self, how: How) -> pd.DataFrame:
        """The two stages as one number; see :meth:`HurdleModel.predict`."""
        if how == "expected":
            return self.expected
        if how == "mask":
            return self.intensity.where(self.expected > 0, 0)
        return self.presence * self.intensity


_FRAMES = ("presence", "intensity", "expected", "lower", "upper")


def check_how(how: How | Sequence[How]) -> list[How]:
    """The outputs asked for, each once, in their order."""
    asked: list[How] = [how] if isinstance(how, str) else list(dict.fromkeys(how))
    if not asked:
        msg = f"how= names no output; choose among {listing(get_args(How))}."
        raise ValueError(msg)
    for one in asked:
        check_choice(one, get_args(How), "how")
    return asked

"""The folds inside the training data: by patient, by section, by block, or at random where nothing else is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.learning.folds import groups_where_measured, held_out_units, inner_groups, random_groups
from stmsi._core.metrics.columns import in_pieces
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._settings import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._training_data import TrainingData

_FEWEST = 3


@dataclass(frozen=True)
class InnerFolds:
    """Groups that are held out one after the other, and the units within which predictions are compared.

    Attributes
    ----------
    groups
        Number of each training spot's fold, from 0.
    units
        Number of its section, or of the part of its section in one fold.
    kind
        What is left out: ``"patients"``, ``"sections"``, ``"blocks"`` or ``"spots"``.
    apart
        Metabolites that were measured in one fold only, as positions, each with folds of its own (-1: not measured).
    """

    groups: NDArray[np.int64]
    units: NDArray[np.int64]
    kind: str
    apart: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def of(cls, data: TrainingData, *, n_folds: int, seed: int) -> InnerFolds:
        """Folds of whole patients where there are three or more, else of sections, blocks or, without positions, spots."""
        sample, xy = data.sample, data.train.xy
        patient = data.adata.obs.get(Key.obs.PATIENT)
        owner = None if patient is None else patient.astype(str).to_numpy().astype(str)[data.rows]
        if owner is not None and len(np.unique(owner)) >= _FEWEST and not patient.iloc[data.rows].isna().any():
            groups, kind = inner_groups(owner, None, n_groups=n_folds, seed=seed), "patients"
        elif len(np.unique(sample)) >= _FEWEST or xy is not None:
            groups = inner_groups(sample, xy, n_groups=n_folds, seed=seed)
            kind = "sections" if len(np.unique(sample)) >= _FEWEST else "blocks"
        else:
            groups, kind = random_groups(len(sample), n_groups=n_folds, seed=seed), "spots"
            logger.info(
                "Without positions and sections, inner folds are random: they tell of spots like those trained on."
            )
        intensity = data.targets.intensity
        apart: dict[bytes, tuple[list[int], NDArray[np.int64] | None]] = {}
        single = in_pieces(partial(_in_one_group, groups=groups), intensity)
        for m in np.flatnonzero(single):
            known = ~np.isnan(intensity[:, m])
            if known.tobytes() not in apart:
                own = groups_where_measured(sample, xy, groups, known, n_groups=n_folds, seed=seed)
                apart[known.tobytes()] = [], own
            apart[known.tobytes()][0].append(int(m))
        stuck = [m for of, own in apart.values() if own is None for m in of]
        if stuck:
            logger.warning(
                "Metabolites measured in one section only, whose spots cannot be split into blocks, have no held-out "
                "predictions: %s",
                listing(data.targets.metabolites[stuck]),
            )
        split = [(np.array(of), own) for of, own in apart.values() if own is not None]
        return cls(groups, held_out_units(sample, groups), kind, split)


def _in_one_group(intensity: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Metabolites that were measured in fewer than two groups, shape (metabolites,)."""
    known = ~np.isnan(intensity)
    return np.array([np.count_nonzero(np.bincount(groups[own])) < 2 for own in known.T], dtype=bool)

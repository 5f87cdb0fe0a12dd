"""What is learnt: measured intensities and presence, and the spots to learn them from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.arrays_on_disk import Derived, derived, row_pieces, some_of
from stmsi._core.metrics.columns import in_pieces
from stmsi._data.checks import listing
from stmsi._data.tables import require_frame
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from stmsi.model.shared._setup import Setup


@dataclass(frozen=True)
class Targets:
    """Measured intensities and presence of the spots, NaN where not covered; ids of their columns."""

    intensity: NDArray[np.float64]
    presence: NDArray[np.float64]
    metabolites: pd.Index

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Spots with any measured metabolite."""
        known = [~np.isnan(self.intensity[rows]).all(axis=1) for rows in row_pieces(*self.intensity.shape)]
        return np.concatenate([np.empty(0, bool), *known])

    def some(self, rows: NDArray[np.int64], metabolites: pd.Index) -> Targets:
        """Of some spots, the metabolites that are among those given."""
        kept = np.flatnonzero(self.metabolites.isin(metabolites))
        intensity, presence = (some_of(of, rows, kept) for of in (self.intensity, self.presence))
        return Targets(intensity, presence, self.metabolites[kept])

    def where_present(self) -> NDArray[np.float64]:
        """Intensity where present, NaN elsewhere."""
        return derived(lambda p, y: np.where(p > 0, y, np.nan), self.presence, self.intensity)


def read_targets(adata: AnnData, setup: Setup) -> Targets:
    """Measured intensities and presence of all metabolites and spots."""
    frame = require_frame(adata, setup.metabolite_key, "stmsi.pp.map_to_spots writes it.")
    Y = frame.to_numpy(dtype=np.float64)
    if setup.presence_key is None:
        P = np.where(np.isnan(Y), np.nan, Y > 0)
    else:
        P = require_frame(adata, setup.presence_key).to_numpy(dtype=np.float64)
        P = np.where(np.isnan(Y), np.nan, P)
    return Targets(Y, P, pd.Index(frame.columns.astype(str)))


def stored_targets(adata: AnnData, setup: Setup) -> Targets:
    """As :func:`read_targets`; numbers in double precision are made of those of the table when they are read."""
    frame = require_frame(adata, setup.metabolite_key, "stmsi.pp.map_to_spots writes it.")
    Y, P = frame.to_numpy(), None if setup.presence_key is None else require_frame(adata, setup.presence_key).to_numpy()

    def intensity(rows: Any, columns: Any) -> NDArray[np.float64]:
        return np.asarray(Y[rows, columns], dtype=np.float64)

    def presence(rows: Any, columns: Any) -> NDArray[np.float64]:
        own = Y[rows, columns]
        return np.where(np.isnan(own), np.nan, own > 0 if P is None else P[rows, columns]).astype(np.float64)

    made: list[Any] = [Derived(Y.shape, intensity), Derived(Y.shape, presence)]
    return Targets(made[0], made[1], pd.Index(frame.columns.astype(str)))


def drop_unmeasured(targets: Targets, rows: NDArray[np.int64]) -> Targets:
    """The targets of some spots, without metabolites that none of them has measured."""
    Y, P = (some_of(of, rows) for of in (targets.intensity, targets.presence))
    measured = in_pieces(lambda y, p: (~np.isnan(y) & ~np.isnan(p)).any(axis=0), Y, P)
    if not measured.any():
        msg = "No metabolite was measured in any training spot: all intensities are NaN. Check alignment and mapping."
        raise ValueError(msg)
    if measured.all():
        return Targets(Y, P, targets.metabolites)
    left_out = targets.metabolites[~measured]
    logger.warning("Metabolites never measured in the training spots are left out: %s", listing(left_out))
    kept = np.flatnonzero(measured)
    return Targets(some_of(Y, columns=kept), some_of(P, columns=kept), targets.metabolites[kept])


def resolve_rows(index: ArrayLike | None, n: int, name: str) -> NDArray[np.int64] | None:
    """Row numbers from positions or a boolean mask."""
    if index is None:
        return None
    rows = np.asarray(index)
    if rows.dtype == bool:
        if rows.shape != (n,):
            msg = f"{name} as a mask must have length {n}, found {rows.shape}."
            raise ValueError(msg)
        rows = np.flatnonzero(rows)
    elif not np.issubdtype(rows.dtype, np.integer) and rows.size:
        msg = f"{name} must be positions (integers) or a mask, found {rows.dtype}."
        raise ValueError(msg)
    rows = rows.astype(np.int64)
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows):
        msg = (
            f"{name} must be distinct positions from 0 to {n - 1} (or a mask), at least one. To let rare spots weigh more, "
            "train on what stmsi.experimental.oversample returns."
        )
        raise ValueError(msg)
    return rows


def training_rows(
    targets: Targets, train_idx: ArrayLike | None, validation_idx: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Rows to train and validate on; spots without MSI are left out."""
    n = len(targets.intensity)
    train, validation = resolve_rows(train_idx, n, "train_idx"), resolve_rows(validation_idx, n, "validation_idx")
    if train is None:
        train = np.setdiff1d(np.arange(n), [] if validation is None else validation)
    elif validation is not None and np.isin(validation, train).any():
        msg = f"{int(np.isin(validation, train).sum())} spots are in train_idx and in validation_idx; split them."
        raise ValueError(msg)
    covered = targets.covered
    if not covered[train].any():
        msg = (
            "None of the training spots has MSI (all intensities are NaN). Train on sections with MSI and pass the "
            "others to predict; check pp.alignment_report where MSI was expected."
        )
        raise ValueError(msg)
    train = train[covered[train]]
    if validation is not None:
        validation = validation[covered[validation]]
        if len(validation) == 0:
            msg = "None of the validation spots has MSI (all intensities are NaN)."
            raise ValueError(msg)
    return train, validation

"""Measured and predicted metabolites of the same spots, section by section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import check_nonnegative, listing
from stmsi._data.stale import warn_if_stale
from stmsi._data.tables import require_frame, shared_metabolites

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

PREDICT_WRITES = "stmsi.tl.predict_metabolites writes it."
MAP_WRITES = "stmsi.pp.map_to_spots writes it."


@dataclass(frozen=True)
class MeasuredAndPredicted:
    """Intensities of the metabolites in both layers, each (spots, metabolites); NaN: not measured."""

    ids: list[str]
    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]

    @classmethod
    def read(cls, st: AnnData, metabolite_key: str, pred_key: str) -> MeasuredAndPredicted:
        """From two layers of ``obsm``, in the order of the prediction."""
        if pred_key == metabolite_key:
            msg = f"pred_key and metabolite_key are both {pred_key!r}: a prediction cannot be scored against itself."
            raise ValueError(msg)
        warn_if_stale(st, metabolite_key)
        predicted = require_frame(st, pred_key, PREDICT_WRITES)
        measured = require_frame(st, metabolite_key, MAP_WRITES)
        for key, frame in ((metabolite_key, measured), (pred_key, predicted)):
            check_nonnegative(frame.to_numpy(), f"obsm[{key!r}]", allow_nan=True)
        ids = shared_metabolites(predicted, measured)
        return cls(ids, measured[ids].to_numpy(np.float64), predicted[ids].to_numpy(np.float64))


def values_of(frame: pd.DataFrame, ids: list[str], key: str | None) -> NDArray[np.float64]:
    """Values of some metabolites of the layer `key`, shape (spots, metabolites)."""
    missing = [m for m in ids if m not in frame.columns]
    if missing:
        msg = (
            f"obsm[{key!r}] lacks the metabolites {listing(missing)}; it holds {listing(frame.columns)}. Write it "
            "again from the same table."
        )
        raise ValueError(msg)
    return frame[ids].to_numpy(np.float64)


def measured_sections(sample: NDArray[Any], measured: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name and rows of each section with a measured value, in order of appearance; `measured`: (spots, metabolites)."""
    for name in dict.fromkeys(sample):
        rows = np.flatnonzero(sample == name)
        if not np.isnan(measured[rows]).all():
            yield str(name), rows

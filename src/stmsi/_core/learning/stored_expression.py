"""What stored expression is: raw counts, corrected counts, normalised counts or logarithms, told from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from stmsi._core.arrays import Floats, Ints

Kind: TypeAlias = Literal["empty", "counts", "corrected", "normalised", "log1p", "log"]
"""``"corrected"``: not whole, library sizes differ (SoupX, CellBender). ``"normalised"``: one library size, no logarithm.
``"log1p"``: natural logarithm of 1 + normalised counts, for certain. ``"log"``: some other logarithm or z-scores."""

LARGEST_LOG = 20.0
"""No logarithm of an expression is larger: 2 to this power is a million."""
_CONSTANT = 0.01
"""Library sizes that differ by less are one and the same."""
_MOST = 0.95
"""Share of the spots of which that must hold: a filter of genes after the normalisation may strike single spots."""
_FEW = 10
"""Groups of fewer spots are judged together: of a single spot, every library size is constant."""
_STEADY = 1.0
"""Standard deviation, over spots, of the log of what logarithms add up to when they are undone. Of logarithms it stays below
this even where genes were left out; of counts, which are no logarithms, it does not."""
_CHUNK = 4096


@dataclass(frozen=True)
class StoredKind:
    """What the numbers of a group of spots are.

    Attributes
    ----------
    kind
        See :data:`Kind`.
    total
        What the counts of a spot add up to, where that is one number: before the logarithm, for ``"log1p"``.
    """

    kind: Kind
    total: float | None = None

    @property
    def is_log(self) -> bool:
        """Whether these are logarithms of any kind."""
        return self.kind in ("log1p", "log")


def stored_kinds(values: sp.csr_matrix, group: Ints, n_groups: int) -> list[StoredKind]:
    """What the numbers of each group of spots are.

    Parameters
    ----------
    values
        Spots x genes, without NaN.
    group
        Number of the group of each spot, from 0.
    n_groups
        How many there are.
    """
    return kinds_of(row_statistics(values), group, n_groups)


def kinds_of(rows: Floats, group: Ints, n_groups: int) -> list[StoredKind]:
    """As :func:`stored_kinds`, from the :func:`row_statistics` of all spots, which may have been read some at a time."""
    own = [group == g for g in range(n_groups)]
    few = [bool(mask.sum() < _FEW) and _unclear(rows[mask]) for mask in own]
    together = np.array(few, dtype=bool)[group]
    return [_kind(rows[together if is_few else mask]) for mask, is_few in zip(own, few, strict=True)]


N_STATISTICS = 5
_LEAST, _LARGEST, _BROKEN, _TOTAL, _UNDONE = range(N_STATISTICS)


def row_statistics(values: sp.csr_matrix) -> Floats:
    """Least and largest number and zero, numbers that are not whole, sum, and sum of exp(x) - 1, of each spot; shape (spots, 5)."""
    out = np.zeros((values.shape[0], N_STATISTICS))
    for rows, data, of_rows in _pieces(values):
        out[rows, _LEAST] = np.minimum(of_rows(np.minimum, data), 0)
        out[rows, _LARGEST] = np.maximum(of_rows(np.maximum, data), 0)
        out[rows, _BROKEN] = of_rows(np.add, (data != np.rint(data)).astype(np.float32))
        out[rows, _TOTAL] = of_rows(np.add, data.astype(np.float64))
    if out[:, _BROKEN].any():  # whole numbers need no more
        for rows, data, of_rows in _pieces(values):
            out[rows, _UNDONE] = of_rows(np.add, np.expm1(np.minimum(data, LARGEST_LOG), dtype=np.float64))
    return out


def extremes_of(rows: Floats) -> tuple[float, float]:
    """Least and largest number of all spots, or 0, from their :func:`row_statistics`."""
    return float(rows[:, _LEAST].min(initial=0)), float(rows[:, _LARGEST].max(initial=0))


def _pieces(values: sp.csr_matrix) -> Iterator[tuple[slice, NDArray[Any], Callable[[np.ufunc, NDArray[Any]], Floats]]]:
    """Some spots at a time: their rows, their numbers, and a function that sums up something of each number by spot."""
    for start in range(0, values.shape[0], _CHUNK):
        pointer = values.indptr[start : start + _CHUNK + 1]
        filled = np.diff(pointer) > 0
        starts = (pointer[:-1] - pointer[0])[filled]

        def of_rows(
            ufunc: np.ufunc, data: NDArray[Any], filled: NDArray[np.bool_] = filled, starts: NDArray[Any] = starts
        ) -> Floats:
            out = np.zeros(len(filled))
            if len(starts):
                out[filled] = ufunc.reduceat(data, starts)
            return out

        yield slice(start, start + len(filled)), values.data[pointer[0] : pointer[-1]], of_rows


def _unclear(rows: Floats) -> bool:
    """Whether only the sums of spots tell what these are."""
    return bool(rows[:, _LEAST].min(initial=0) >= 0 and rows[:, _BROKEN].any())


def _kind(rows: Floats) -> StoredKind:
    filled = rows[(rows[:, _LARGEST] > 0) | (rows[:, _LEAST] < 0)]
    if len(filled) == 0:
        return StoredKind("empty")
    if not filled[:, _BROKEN].any():
        return StoredKind("counts")  # negative whole numbers are no logarithms either, and are refused as counts
    if filled[:, _LEAST].min() < 0:
        return StoredKind("log")
    if filled[:, _LARGEST].max() > LARGEST_LOG:
        total = _constant(filled[:, _TOTAL])
        return StoredKind("corrected") if total is None else StoredKind("normalised", total)
    undone = filled[:, _UNDONE]
    total = _constant(undone)
    if total is not None:
        return StoredKind("log1p", total)
    return StoredKind("log" if np.log(undone).std() <= _STEADY else "corrected")


def _constant(totals: Floats) -> float | None:
    """The one number that (nearly) all totals are, if they are."""
    middle = float(np.median(totals))
    same = np.abs(totals - middle) <= _CONSTANT * middle
    return middle if len(totals) > 1 and same.mean() >= _MOST else None

"""Means of rows by group, with gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from stmsi._core.arrays import Floats, Ints
from stmsi._core.metrics.columns import ratio


def membership(group: Ints, n_groups: int) -> sp.csr_matrix:
    """Groups x rows, 1 where a row belongs to a group; rows of group -1 belong to none."""
    rows = np.flatnonzero(group >= 0)
    return sp.csr_matrix((np.ones(len(rows)), (group[rows], rows)), shape=(n_groups, len(group)))


def group_means(values: sp.csr_matrix, group: Ints, n_groups: int) -> tuple[Floats, Floats]:
    """Mean of each column over the rows of each group, and the share of these rows above 0, shape (groups, columns) each.

    NaN in `values`, shape (rows, columns), counts in neither; where a group has nothing else, both are NaN.
    """
    member, missing = membership(group, n_groups), np.isnan(values.data)
    number = np.diff(member.indptr)[:, None].astype(np.float64)
    data = values.data
    if missing.any():
        number = number - _totals(member, values, missing.astype(np.float32))
        data = np.where(missing, 0, data)
    above = (data > 0).astype(np.float32)
    return ratio(_totals(member, values, data), number), ratio(_totals(member, values, above), number)


def _totals(member: sp.csr_matrix, pattern: sp.csr_matrix, data: NDArray[Any]) -> Floats:
    """Sums over groups, in double precision, of other values at the places of a sparse matrix."""
    return (member @ sp.csr_matrix((data, pattern.indices, pattern.indptr), pattern.shape)).toarray()

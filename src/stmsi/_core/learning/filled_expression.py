"""Log expression in which some genes have one value in all spots: sparse, with one row beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import Floats, Floats32


@dataclass(frozen=True)
class FilledExpression:
    """The matrix ``measured + where x row``, kept as its parts: the sum would hold no zeros in the columns of the row.

    It answers what readers of log expression ask of a sparse matrix: shape, rows, columns, products, dense arrays.

    Attributes
    ----------
    measured
        Shape (spots, genes), empty where `row` is not 0.
    row
        Value of each gene in the spots that are filled, shape (genes,).
    where
        1 for spots that are filled, 0 for others, shape (spots,).
    """

    measured: sp.csr_matrix
    row: Floats32
    where: Floats32

    @property
    def shape(self) -> tuple[int, int]:
        """Spots and genes."""
        return self.measured.shape

    def __getitem__(self, key: object) -> FilledExpression:
        """Some spots (``[rows]``) or some genes (``[:, columns]``)."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        return FilledExpression(self.measured[key], self.row[columns], self.where[rows])

    def __matmul__(self, right: Any) -> Floats | Floats32:
        """Product with a dense or sparse matrix, dense."""
        if sp.issparse(right):
            product, added = (self.measured @ right).toarray(), np.asarray(right.T @ self.row)
        else:
            product, added = np.asarray(self.measured @ right), self.row @ right
        product += np.multiply.outer(self.where, added).astype(product.dtype, copy=False)
        return product

    def toarray(self) -> Floats32:
        """The sum, shape (spots, genes)."""
        dense = self.measured.toarray()
        filled = np.flatnonzero(self.row)
        dense[:, filled] += np.multiply.outer(self.where, self.row[filled])
        return dense


LogExpression: TypeAlias = sp.csr_matrix | FilledExpression

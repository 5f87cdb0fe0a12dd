"""What stands in for genes that a query lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from stmsi._core.learning.expression_space import TARGET_SUM, log_normalize, pool_counts, pool_logs
from stmsi._core.learning.filled_expression import FilledExpression

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._stored_input import Input

_MOST = 0.99
"""Largest share of a library that missing genes are taken to make up."""


@dataclass(frozen=True)
class Imputation:
    """Missing genes have their mean log expression over the training spots, in every spot.

    With s the share of a library that the missing genes make up on average over the training spots, the library of a spot is
    its counted part divided by 1 - s. s is not what the mean logarithms add up to: the exponential of a mean logarithm is
    below the mean (Jensen's inequality), by half and more where counts are sparse. Spots without counts stay empty.

    Attributes
    ----------
    genes
        Missing genes, as positions in the panel.
    row
        Their log expression, 0 for all other genes of the panel, shape (panel genes,).
    input
        What the numbers of the spots are.
    mean_share
        Mean share of a library that the missing genes make up; `None` where it is not known: what `row` adds up to.
    """

    genes: NDArray[np.int64]
    row: NDArray[np.float32]
    input: Input
    mean_share: float | None = None

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each gene of the panel is there."""
        there = np.ones(len(self.row), dtype=bool)
        there[self.genes] = False
        return there

    @property
    def _relative(self) -> NDArray[np.float64]:
        """Of each missing gene, the share of a library that its mean logarithm stands for."""
        return np.expm1(self.row[self.genes].astype(np.float64)) / TARGET_SUM

    @property
    def _share(self) -> float:
        """Of all missing genes together."""
        least = float(self._relative.sum())
        return min(least if self.mean_share is None else max(least, self.mean_share), _MOST)

    def log_expression(self, counts: sp.csr_matrix) -> FilledExpression:
        """Log expression of spots, from counts or logarithms over the panel whose missing genes are empty."""
        return self._beside(counts, counts)

    def pooled(self, counts: sp.csr_matrix, graph: sp.csr_matrix) -> FilledExpression:
        """The same of each spot and its neighbours together; see :func:`~stmsi._core.learning.expression_space.pool_counts`."""
        together = pool_counts(counts, graph) if self.input == "counts" else pool_logs(counts, graph)
        return self._beside(together, counts)

    def _beside(self, values: sp.csr_matrix, counts: sp.csr_matrix) -> FilledExpression:
        if self.input == "log":
            return FilledExpression(values, self.row, np.ones(counts.shape[0], np.float32))
        counted = np.asarray(values.sum(axis=1)).ravel() > 0
        log = log_normalize(values, TARGET_SUM * (1 - self._share))
        return FilledExpression(log, self.row, counted.astype(np.float32))

    def fill(self, counts: sp.csr_matrix, needed: NDArray[np.int64] | None = None) -> sp.csr_matrix:
        """Counts or logarithms with an entry for each missing gene in each spot.

        Parameters
        ----------
        counts
            Over the panel, missing genes empty.
        needed
            Genes whose entries will be read; `None`: all. What the others add to the library, and what the mean logarithms
            leave out of it, is put into one gene: one that is not read, else the missing one with the most counts.
        """
        genes, n = self.genes, counts.shape[0]
        read = np.ones(len(genes), dtype=bool) if needed is None else np.isin(genes, needed)
        if self.input == "log":
            values = np.tile(self.row[genes[read]], (n, 1))
        else:
            relative = self._relative
            rest = max(self._share - float(relative[read].sum()), 0.0)
            unread = np.flatnonzero(~read)
            if len(unread):
                one = int(unread[0])
                relative[one], read[one] = rest, True
            elif len(relative):
                relative[int(np.argmax(relative))] += rest
            library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel() / (1 - self._share)
            values = np.outer(library, relative[read]).astype(np.float32)
        at = genes[read]
        if len(at) == 0:
            return counts
        own = np.flatnonzero(self.present)
        joined = sp.hstack([counts[:, own], sp.csr_matrix(values)], format="csr", dtype=np.float32)
        columns = np.concatenate([own, at])
        filled = sp.csr_matrix((joined.data, columns[joined.indices], joined.indptr), shape=counts.shape)
        filled.sort_indices()
        return filled

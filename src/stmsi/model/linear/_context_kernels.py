"""Kernels between spots that see their neighbourhood: of all genes (linear), and of components (Gaussian).

Both are expressed by features: similarities to landmark spots of the training data, turned so that their products are the
kernel. With no more spots than landmarks the kernel is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cholesky, solve_triangular

from stmsi._core.learning.expression_space import ExpressionSpace, GeneMoments, neighbour_mean
from stmsi.model.linear._similarity import unit_rows
from stmsi.model.shared._blocks import some_rows
from stmsi.model.shared._spot_features import root_mean_square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

LEAST_SEEN = 0.03
"""Share of the spots in which a gene must be seen."""
_RINGS = 2
_CHUNK = 4096
_COMPONENT_GENES = 5000
_BANDWIDTH = 2.0
"""Factor on the inverse median squared distance: a little narrower than the usual 1 was better on every stand-in."""
_JITTER = 1e-5


def genes_seen(moments: GeneMoments) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Genes seen in three of a hundred spots that vary, with the mean and standard deviation of their log expression."""
    seen, usable = moments.seen >= LEAST_SEEN, moments.variance > 1e-12
    # of a panel so sparse that no gene is seen as often, all
    kept = np.flatnonzero(seen & usable) if (seen & usable).any() else np.flatnonzero(usable)
    if len(kept) == 0:
        msg = "No gene varies over the training spots; is this the expression of more than one spot?"
        raise ValueError(msg)
    return kept, moments.mean[kept], np.sqrt(moments.variance[kept])


def log_of_genes_seen(spots: Spots) -> sp.csr_matrix:
    """Log expression of the genes that :func:`genes_seen` finds, shape (spots, genes). Made once; not to be changed."""
    return spots.once(
        "log of genes seen", lambda: spots.measured_log_expression()[:, genes_seen(spots.gene_moments())[0]]
    )


def rings(values: NDArray[np.float32], graph: sp.csr_matrix | None) -> list[NDArray[np.float32]]:
    """Values of a spot, their mean over its neighbours, and the mean of that; the first alone without a graph."""
    blocks = [values]
    if graph is not None:
        for _ in range(_RINGS):
            blocks.append(neighbour_mean(blocks[-1], graph))
    return blocks


def _whitening(kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    """Matrix that turns similarities to landmarks into features whose products are the kernel."""
    n = len(kernel)
    jitter = _JITTER * max(float(np.trace(kernel)) / n, 1e-12)
    lower = cholesky(kernel + jitter * np.eye(n), lower=True, check_finite=False)
    return np.asarray(solve_triangular(lower, np.eye(n), lower=True, check_finite=False).T, dtype=np.float32)


@dataclass
class GeneKernel:
    """Linear kernel of all genes of a spot and of its two rings, each block of the same total variance.

    Ridge regression on it has a weight for every gene and ring, and the landmarks are needed for training only.

    Parameters
    ----------
    unit_variance
        Whether genes are z-scored: every gene counts the same, instead of by its variance.
    n_landmarks
        Training spots at most whose span holds the weights.
    seed
        For the choice of landmarks.
    """

    unit_variance: bool = False
    n_landmarks: int = 1500
    seed: int = 0
    genes: NDArray[np.int64] = field(init=False)
    mean: NDArray[np.float32] = field(init=False)
    scale: NDArray[np.float32] = field(init=False)
    weights: NDArray[np.float32] = field(init=False)
    offset: NDArray[np.float32] = field(init=False)

    @property
    def used(self) -> NDArray[np.int64]:
        """Panel genes that predictions depend on."""
        return self.genes

    def fit_transform(self, spots: Spots) -> NDArray[np.float32]:
        """Features of the training spots, shape (spots, landmarks)."""
        own, graph = log_of_genes_seen(spots), spots.graph
        self.genes, mean, deviation = genes_seen(spots.gene_moments())
        self.mean = mean.astype(np.float32)
        self.scale = (deviation if self.unit_variance else np.ones(len(mean))).astype(np.float32)
        n = min(self.n_landmarks, len(spots))
        landmarks = np.sort(np.random.default_rng(self.seed).permutation(len(spots))[:n])
        # rings of the landmarks first: those of all spots would take as much memory as the genes again
        walk = sp.identity(len(spots), dtype=np.float32, format="csr")
        parts = []
        for _ in range(1 if graph is None else 1 + _RINGS):
            rows = walk[landmarks]
            parts.append((np.asarray((rows @ own).todense()) - np.asarray(rows.sum(axis=1)) * self.mean) / self.scale)
            walk = walk if graph is None else mean_over_neighbours(graph) @ walk
        size = [max(float((part.astype(np.float64) ** 2).sum(axis=1).mean()), 1e-12) for part in parts]
        self._landmarks = [(part / s).astype(np.float32) for part, s in zip(parts, size, strict=True)]
        kernel = _ringed(self._product(own, np.hstack([p.T for p in self._landmarks])), graph, len(parts))
        self._turn = _whitening(kernel[landmarks].astype(np.float64))
        return kernel @ self._turn

    def keep(self, weights: NDArray[np.float32], offset: NDArray[np.float32]) -> None:
        """Turn weights of the features into weights of genes, shape (blocks, genes, metabolites); forget the landmarks."""
        of_landmarks = self._turn @ weights
        self.weights = np.stack([(part.T @ of_landmarks) / self.scale[:, None] for part in self._landmarks])
        self.offset = offset
        del self._landmarks, self._turn

    def predict(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Weighted sums of the genes of spots and rings, shape (spots, metabolites); `at`: of some of the spots."""
        log = spots.log_expression()
        n_blocks, _, n_metabolites = self.weights.shape
        # one product with all genes takes less than to cut out those that count
        full = np.zeros((log.shape[1], n_blocks, n_metabolites), np.float32)
        full[self.genes] = self.weights.transpose(1, 0, 2)
        shifted = np.einsum("g,bgm->bm", self.mean, self.weights).astype(np.float32)
        parts = np.asarray(log @ full.reshape(len(full), -1), dtype=np.float32) - shifted.ravel()
        return some_rows(_ringed(parts, spots.graph, n_blocks), at) + self.offset

    def _product(self, log: sp.csr_matrix, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Centred and scaled expression times a matrix, in pieces."""
        out = np.empty((log.shape[0], right.shape[1]), np.float32)
        for start in range(0, log.shape[0], _CHUNK):
            part = log[start : start + _CHUNK].toarray()
            part -= self.mean
            part /= self.scale
            out[start : start + _CHUNK] = part @ right
        return out


def mean_over_neighbours(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Matrix that averages over the neighbours of each spot, shape (spots, spots)."""
    adjacency = sp.csr_matrix(graph != 0, dtype=np.float32)
    count = np.asarray(adjacency.sum(axis=1), dtype=np.float32).ravel()
    return sp.csr_matrix(sp.diags(1 / np.maximum(count, 1)) @ adjacency, dtype=np.float32)


def _ringed(values: NDArray[np.float32], graph: sp.csr_matrix | None, n_blocks: int) -> NDArray[np.float32]:
    """Sum of blocks of columns, of which the second is averaged over the neighbours and the third over theirs."""
    blocks = np.split(values, n_blocks, axis=1)
    total = blocks[-1]
    for block in blocks[-2::-1]:
        assert graph is not None
        total = block + neighbour_mean(total, graph)
    return np.asarray(total, dtype=np.float32)


@dataclass
class ComponentKernel:
    """Gaussian kernel of the principal components of a spot and of its two rings.

    Of counts, rows are brought to variance 1 within each block, so that a spot's depth does not set its distance to all
    others; of logarithms they are taken as they are.

    Parameters
    ----------
    n_components
        Components of the spot's own expression, on at most 5,000 genes of the largest variance.
    n_landmarks, seed
        As for :class:`GeneKernel`. The landmarks stay in the model.
    """

    n_components: int = 128
    n_landmarks: int = 1500
    seed: int = 0
    space: ExpressionSpace = field(init=False)
    by_row: bool = field(init=False)
    landmarks: NDArray[np.float32] = field(init=False)
    gamma: float = field(init=False)
    weights: NDArray[np.float32] = field(init=False)
    offset: NDArray[np.float32] = field(init=False)

    @property
    def used(self) -> NDArray[np.int64]:
        """Panel genes that predictions depend on."""
        return self.space.selected

    def fit_transform(self, spots: Spots) -> NDArray[np.float32]:
        """Features of the training spots, shape (spots, landmarks)."""
        genes, _, deviation = genes_seen(spots.gene_moments())
        top = np.sort(genes[np.argsort(-deviation, kind="stable")[:_COMPONENT_GENES]])
        log = spots.measured_log_expression()[:, top]
        space = ExpressionSpace.fit(log, n_top_genes=len(top), n_components=self.n_components, seed=self.seed)
        self.space = ExpressionSpace(top[space.selected], space.mean, space.scale, space.components, space.deviation)
        self.by_row = spots.input == "counts"
        Z = self._rows(spots)
        order = np.random.default_rng(self.seed).permutation(len(Z))
        self.landmarks = Z[np.sort(order[: self.n_landmarks])]
        some = Z[order[:500]]
        distance = _squared_distances(some, some)
        apart = distance[distance > 1e-9]
        self.gamma = _BANDWIDTH / float(np.median(apart)) if len(apart) else 1.0
        self._turn = _whitening(self._similarity(self.landmarks).astype(np.float64))
        return self._similarity(Z) @ self._turn

    def keep(self, weights: NDArray[np.float32], offset: NDArray[np.float32]) -> None:
        """Turn weights of the features into weights of landmarks."""
        self.weights, self.offset = self._turn @ weights, offset
        del self._turn

    def predict(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Weighted similarities to the landmarks, shape (spots, metabolites); `at`: of some of the spots."""
        Z = self._rows(spots, at)
        out = np.empty((len(Z), self.weights.shape[1]), np.float32)
        for start in range(0, len(Z), _CHUNK):  # of all spots they would fill the memory
            out[start : start + _CHUNK] = self._similarity(Z[start : start + _CHUNK]) @ self.weights
        return out + self.offset

    def _rows(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        own = self.space.transform(spots.log_expression()) / np.float32(root_mean_square(self.space))
        blocks = [some_rows(block, at) for block in rings(own, spots.graph)]
        if not self.by_row:
            return np.hstack(blocks)
        return unit_rows(np.hstack(blocks), [own.shape[1]] * len(blocks)) if own.shape[1] > 1 else np.hstack(blocks)

    def _similarity(self, Z: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty((len(Z), len(self.landmarks)), np.float32)
        for start in range(0, len(Z), _CHUNK):
            out[start : start + _CHUNK] = np.exp(
                -self.gamma * _squared_distances(Z[start : start + _CHUNK], self.landmarks)
            )
        return out


def _squared_distances(A: NDArray[np.float32], B: NDArray[np.float32]) -> NDArray[np.float32]:
    square = (A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1)[None]
    return np.maximum(square - 2 * A @ B.T, 0)

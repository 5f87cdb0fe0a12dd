"""Ridge regressions on a few genes of each metabolite: those that go with it, or those known to belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.spatial.sections import rows_of_each
from stmsi.model.linear._context_kernels import genes_seen, log_of_genes_seen, mean_over_neighbours
from stmsi.model.shared._blocks import some_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.learning.filled_expression import LogExpression
    from stmsi.model.shared._spot_input import Spots

SIZES = (10, 30, 100, 300)
"""Numbers of genes to choose from for each metabolite."""
_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""Times the number of spots: features have variance 1."""
_CHOOSING = 12
"""Metabolites on which the penalty of all is chosen."""
_TOGETHER = 128
"""Metabolites that are screened at a time."""


@dataclass
class GeneSetRidge:
    """Weights of each metabolite's genes, own expression and first ring.

    Attributes
    ----------
    genes
        Panel genes that any metabolite uses.
    gene, metabolite
        Positions of the weights: a metabolite uses few of the genes.
    weights
        Of own expression and of the first ring, shape (blocks, weights).
    offset
        Shape (metabolites,).
    size
        Number of genes of each metabolite.
    beside
        Weights of what the setup names beside genes, shape (columns, metabolites).
    """

    genes: NDArray[np.int64]
    gene: NDArray[np.int64]
    metabolite: NDArray[np.int64]
    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    size: NDArray[np.int64]
    beside: NDArray[np.float64]

    def predict(
        self,
        log: LogExpression,
        graph: sp.csr_matrix | None,
        further: NDArray[np.float32] | None = None,
        at: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Predictions from log expression and what stands beside it (spots, columns), shape (spots, metabolites); `at`: of some spots."""
        own, shape = log[:, self.genes], (len(self.genes), len(self.offset))
        products = [own @ sp.csc_matrix((w, (self.gene, self.metabolite)), shape=shape) for w in self.weights]
        parts = [p.toarray() if sp.issparse(p) else p for p in products]
        total = some_rows(parts[0], at)
        if len(parts) > 1:
            assert graph is not None
            total = total + some_rows(mean_over_neighbours(graph), at) @ parts[1]  # type: ignore[arg-type]
        if further is not None:
            total = total + some_rows(further, at) @ self.beside
        return np.asarray(total + self.offset, dtype=np.float32)

    def with_columns(self, columns: NDArray[np.int64], other: GeneSetRidge) -> GeneSetRidge:
        """The regression with some metabolites taken from another one, which has only them, in order."""
        kept = ~np.isin(self.metabolite, columns)
        used = np.concatenate([self.genes[self.gene[kept]], other.genes[other.gene]])
        genes, gene = np.unique(used, return_inverse=True)
        offset, size, beside = self.offset.copy(), self.size.copy(), self.beside.copy()
        offset[columns], size[columns], beside[:, columns] = other.offset, other.size, other.beside
        metabolite = np.concatenate([self.metabolite[kept], columns[other.metabolite]])
        weights = np.hstack([self.weights[:, kept], other.weights])
        return GeneSetRidge(genes, gene, metabolite, weights, offset, size, beside)


class GeneBlocks:
    """Columns of genes, own and of the first ring, as they are asked for: all at once would not fit into memory.

    `further` are columns that every regression has beside its genes, shape (spots, columns); `seen` what :func:`genes_seen` said of
    more spots than these.
    """

    def __init__(
        self,
        spots: Spots,
        further: NDArray[np.float32] | None = None,
        seen: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None = None,
    ) -> None:
        self.further = np.empty((len(spots), 0), np.float32) if further is None else further
        self.genes, self.mean, self.scale = genes_seen(spots.gene_moments()) if seen is None else seen
        self.rows = log_of_genes_seen(spots) if seen is None else spots.measured_log_expression()[:, self.genes]
        self.log = sp.csc_matrix(self.rows)
        self.ring = None if spots.graph is None else mean_over_neighbours(spots.graph)

    def features(self, genes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Z-scored columns of some of the genes (positions among those seen), own block before ring."""
        own = (self.log[:, genes].toarray() - self.mean[genes].astype(np.float32)) / self.scale[genes].astype(
            np.float32
        )
        return own if self.ring is None else np.hstack([own, self.ring @ own])

    def screen(
        self, Y: NDArray[np.float64], section: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """How strongly each gene goes with each metabolite inside the sections of each group.

        Correlations of own or ring expression times the root of the number of spots, summed over sections; shape
        (groups, blocks, genes, metabolites).
        """
        n_blocks = 1 if self.ring is None else 2
        out = np.zeros((int(groups.max()) + 1, n_blocks, len(self.genes), Y.shape[1]), np.float32)
        rows = self.rows
        for own in rows_of_each(section):
            known = ~np.isnan(Y[own])
            n = np.maximum(known.sum(axis=0), 1)
            y = np.where(known, Y[own] - np.where(known, Y[own], 0).sum(axis=0) / n, 0)
            norm = np.sqrt((y**2).sum(axis=0))
            y = np.where(norm > 0, y / np.where(norm > 0, norm, 1), 0)
            # in double precision: sums over many spots in single precision would reorder genes that are level
            blocks = [rows[own].astype(np.float64)]
            if self.ring is not None:
                blocks.append(sp.csr_matrix(self.ring[own] @ rows, dtype=np.float64))
            for b, block in enumerate(blocks):
                total = np.asarray(block.sum(axis=0)).ravel()
                square = np.asarray(block.multiply(block).sum(axis=0)).ravel()
                spread = np.sqrt(np.maximum(square - total**2 / len(own), 0))
                r = (block.T @ y) / np.where(spread > 1e-6, spread, np.inf)[:, None]
                out[groups[own[0]], b] += r * np.sqrt(n)
        return out


def fit_gene_sets(
    blocks: GeneBlocks,
    Y: NDArray[np.float64],
    sets: Sequence[list[list[NDArray[np.int64]]]],
    groups: NDArray[np.int64],
    truth: HeldOutTruth,
) -> tuple[GeneSetRidge, NDArray[np.float32]]:
    """Fit every metabolite on its sets of genes, with one penalty, and each with the set that held-out groups prefer.

    Parameters
    ----------
    blocks
        Genes of the training spots.
    Y
        Intensities, shape (spots, metabolites); NaN where not measured.
    sets
        For each metabolite, for each size, genes of each fold and at last of all spots.
    groups
        Inner folds.
    truth
        To judge by.

    Returns
    -------
    The regression, and held-out predictions (spots, metabolites).
    """
    n_sizes = len(sets[0])
    some = np.unique(np.linspace(0, Y.shape[1] - 1, min(_CHOOSING, Y.shape[1])).astype(np.int64))
    paths = {m: _paths(blocks, Y[:, m], sets[m], groups, _PENALTIES) for m in some}
    scores = np.zeros((len(_PENALTIES), n_sizes))
    for i in range(len(_PENALTIES)):
        for s in range(n_sizes):
            held_out = np.column_stack([paths[m][0][s, i] for m in some])
            scores[i, s] = truth.of_columns(some).score(held_out)
    penalty = int(scores.max(axis=1).argmax())
    held_out = np.full(Y.shape, np.nan, np.float32)
    chosen, weights = np.zeros(Y.shape[1], np.int64), []
    for m in range(Y.shape[1]):
        found = paths.pop(m, None)
        if found is None:
            path, solved = _paths(blocks, Y[:, m], sets[m], groups, _PENALTIES[penalty : penalty + 1])
            path, weighed = path[:, 0], [s[0] for s in solved]
        else:
            path, weighed = found[0][:, penalty], [s[penalty] for s in found[1]]
        own = truth.of_columns(np.array([m]))
        quality = [own.score(path[s][:, None]) for s in range(n_sizes)]
        chosen[m] = int(np.argmax(quality))
        held_out[:, m] = path[chosen[m]]
        weights.append((sets[m][chosen[m]][-1], *weighed[chosen[m]]))
    return _assemble(blocks, weights), held_out


def _paths(
    blocks: GeneBlocks,
    y: NDArray[np.float64],
    sets: list[list[NDArray[np.int64]]],
    groups: NDArray[np.int64],
    penalties: Sequence[float],
) -> tuple[NDArray[np.float32], list[list[tuple[NDArray[np.float64], float]]]]:
    """Held-out predictions (sizes, penalties, spots) of one metabolite, and weights with offset of each size and penalty."""
    known = ~np.isnan(y)
    union = np.unique(np.concatenate([genes for size in sets for genes in size])).astype(np.int64)
    n_groups, p = int(groups.max()) + 1, len(union)
    F = blocks.features(union)
    width = F.shape[1] // max(p, 1)
    F1 = np.hstack([F, blocks.further, np.ones((len(F), 1), np.float32)])
    filled = np.where(known, y, 0).astype(np.float32)
    gram = np.empty((n_groups, F1.shape[1], F1.shape[1]), np.float32)
    cross = np.empty((n_groups, F1.shape[1]))
    for g in range(n_groups):
        own = F1[(groups == g) & known]
        gram[g], cross[g] = own.T @ own, own.T @ filled[(groups == g) & known]
    total, total_cross = gram.sum(axis=0), cross.sum(axis=0)
    held_out = np.full((len(sets), len(penalties), len(y)), np.nan, np.float32)
    solved: list[list[tuple[NDArray[np.float64], float]]] = []
    for s, size in enumerate(sets):
        for g in range(n_groups + 1):
            at = np.searchsorted(union, size[min(g, len(size) - 1)])
            columns = np.concatenate([*(at + b * p for b in range(width)), np.arange(width * p, F1.shape[1])])
            last = g == n_groups
            own = total if last else total - gram[g]
            A = own[np.ix_(columns, columns)].astype(np.float64)
            b = total_cross[columns] - (0 if last else cross[g][columns])
            n = A[-1, -1]
            fits = []
            for penalty in penalties:
                shrunk = A.copy()
                shrunk[np.diag_indices_from(shrunk)] += np.append(np.full(len(columns) - 1, penalty * max(n, 1)), 1e-6)
                w = cho_solve(cho_factor(shrunk, overwrite_a=True, check_finite=False), b, check_finite=False)
                fits.append((w[:-1], float(w[-1])))
            if last:
                solved.append(fits)
            elif n >= 1:
                test = groups == g
                W = np.column_stack([np.append(w, o) for w, o in fits]).astype(np.float32)
                held_out[s][:, test] = (F1[np.ix_(test, columns)] @ W).T
    return held_out, solved


def _assemble(
    blocks: GeneBlocks, weights: Sequence[tuple[NDArray[np.int64], NDArray[np.float64], float]]
) -> GeneSetRidge:
    """Weights on z-scores as weights on log expression."""
    used = np.unique(np.concatenate([genes for genes, _, _ in weights])).astype(np.int64)
    n_blocks = 1 if blocks.ring is None else 2
    values, places = [], []
    offset, beside = np.empty(len(weights)), np.empty((blocks.further.shape[1], len(weights)))
    for m, (genes, w, constant) in enumerate(weights):
        places.append(np.searchsorted(used, genes))
        of_genes, beside[:, m] = np.split(w, [n_blocks * len(genes)])
        per_block = of_genes.reshape(n_blocks, len(genes)) / blocks.scale[genes]
        offset[m] = constant - (per_block * blocks.mean[genes]).sum()
        values.append(per_block)
    size = np.array([len(genes) for genes, _, _ in weights])
    metabolite = np.repeat(np.arange(len(weights)), size)
    return GeneSetRidge(blocks.genes[used], np.concatenate(places), metabolite, np.hstack(values), offset, size, beside)


def screened_sets(
    blocks: GeneBlocks, Y: NDArray[np.float64], section: NDArray[np.int64], groups: NDArray[np.int64]
) -> Iterator[list[list[NDArray[np.int64]]]]:
    """Of each metabolite, for each size, the genes that go with it most, found without each group and at last with all."""
    # more genes than spots cannot be told apart
    most = min(len(blocks.genes), len(Y))
    sizes = [s for s in SIZES if s <= most] or [min(SIZES[0], len(blocks.genes))]
    for start in range(0, Y.shape[1], _TOGETHER):
        found = blocks.screen(Y[:, start : start + _TOGETHER], section, groups)
        total = found.sum(axis=0)
        strength = np.stack([np.abs(total - own).max(axis=0) for own in found] + [np.abs(total).max(axis=0)])
        order = np.argsort(-strength, axis=1, kind="stable")[:, : sizes[-1]]
        for m in range(order.shape[2]):
            yield [[np.sort(of_fold[:size, m]) for of_fold in order] for size in sizes]

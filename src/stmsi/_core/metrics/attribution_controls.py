"""Numerics of attributions: blocks of genes, shuffles that respect sections and space, chance levels."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import gammaln

from stmsi._core.arrays import AnyFloats, Floats, Ints
from stmsi._core.metrics.columns import number, ratio, total
from stmsi._core.metrics.intensity import pearson
from stmsi._core.spatial.sections import rows_of_each

_REACH = 1.5  # distance, in spacings of the spots, within which a shifted spot counts as lying on tissue


def shuffle_within(section: Ints, rng: np.random.Generator) -> Ints:
    """Row numbers in random order, each row replaced by one of the same section."""
    order = np.arange(len(section))
    for own in rows_of_each(section):
        order[own] = rng.permutation(own)
    return order


def gene_blocks(X: AnyFloats, n_blocks: int | None) -> Ints:
    """Block 0, 1, ... of each gene of (spots, genes): genes that vary together (average linkage on correlation).

    `n_blocks` at most; `None`: each gene by itself.
    """
    n = X.shape[1]
    if n_blocks is None or n_blocks >= n:
        return np.arange(n)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    Z = np.asarray(X, np.float64) - X.mean(axis=0)
    Z /= np.maximum(np.sqrt((Z**2).sum(axis=0)), 1e-12)
    distance = 1 - np.clip(Z.T @ Z, -1, 1)
    np.fill_diagonal(distance, 0)
    label = fcluster(linkage(squareform(distance, checks=False), "average"), n_blocks, "maxclust")
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def torus_shift(xy: Floats, section: Ints, rng: np.random.Generator) -> Ints:
    """Row whose place each spot takes when every section is shifted on a torus: neighbours stay neighbours.

    A shift is at least a quarter of the section's extent along one axis. Row -1: the shifted spot is not on tissue.
    """
    source = np.full(len(xy), -1)
    for own in rows_of_each(section):
        if len(own) < 2:
            continue
        tree = cKDTree(xy[own])
        spacing = float(np.median(tree.query(xy[own], k=2)[0][:, 1]))
        low, extent = xy[own].min(axis=0), np.ptp(xy[own], axis=0) + spacing
        share = rng.uniform(-0.5, 0.5, 2)
        far = rng.integers(2)
        share[far] = np.copysign(rng.uniform(0.25, 0.5), share[far])
        distance, nearest = tree.query(low + (xy[own] - low + share * extent) % extent)
        source[own] = np.where(distance <= _REACH * spacing, own[nearest], -1)
    return source


def within_sections(truth: Floats, prediction: Floats, section: Ints) -> Floats:
    """Pearson correlation of each column within each section, averaged over the sections in which it exists."""
    scores = np.stack([pearson(truth[own], prediction[own]) for own in rows_of_each(section)])
    return ratio(total(scores), number(scores))


def chance_of_best_rank(rank: int, n_drivers: int, n_genes: int) -> float:
    """Chance that the best of `n_drivers` genes drawn at random from `n_genes` has this rank (1 is first) or better."""
    if rank > n_genes - n_drivers:
        return 1.0
    rest = n_genes - rank
    none_of_them = gammaln(rest + 1) - gammaln(rest - n_drivers + 1) - gammaln(n_genes + 1)
    return float(-np.expm1(none_of_them + gammaln(n_genes - n_drivers + 1)))

"""Covariances of many variables over distance, as a sum of spatial structures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree
from scipy.special import ndtr, ndtri
from scipy.stats import t

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.random_fields import matern32
from stmsi._core.spatial.sections import rows_of_each, spacing

LENGTHS = (1.5, 4.0, 10.0)  # lengths of the Matern structures, in units of the spots' spacing
_EDGES = (1.3, 1.9, 2.5, 3.5, 5.0, 7.5, 11.0, 16.0, 25.0, np.inf)
"""Borders of the classes of distance, in the same unit; the first class begins at 0."""
_N_NEAR = 36
_FAR_PAIRS = 100_000
_LEAST_PAIRS = 30
_MOST_PAIRS = 20_000
_SWEEPS = 16
_RIDGE = 0.05
_LEAST_VARIANCE = 0.05
_WIDE = (-1, -2)  # the section, and the structure of the largest length: a few of them fit into a section at most
_PULL = 4  # sections that the mean of all variables counts for
_MOST_WIDE = 1.0  # variance of a wide structure, of a total of 1
_LEAST_SHARED = 0.25  # share of the mean variance below which correlations are not relied on


def impute_censored(z: Floats, limit: Floats, means: sp.csr_matrix | None, rng: np.random.Generator) -> Floats:
    """Draw the censored scores (spots, variables), given neighbours and the other variables; 0 where not measured.

    `z` is NaN where not measured. `limit` holds the upper limit of the censored scores, NaN elsewhere. `means` is a
    matrix of :func:`stmsi._core.spatial.morans_i.neighbour_means`, if there are positions. Each sweep redraws half of the
    censored scores: a random start alone would dilute the correlation between variables and spots.
    """
    known = ~np.isnan(z)
    z = np.nan_to_num(z)
    row, column = np.nonzero(~np.isnan(limit) & known)
    below = limit[row, column]
    for _ in range(_SWEEPS if len(row) else 0):
        counts = np.maximum(known.T.astype(float) @ known, 1.0)
        covariance = z.T @ z / counts
        scale = np.sqrt(np.maximum(np.diag(covariance), 1e-9))
        precision = np.linalg.inv(covariance / np.outer(scale, scale) + _RIDGE * np.eye(len(scale)))
        others = (z - (z / scale) @ precision / np.diag(precision) * scale) if len(scale) > 1 else np.zeros_like(z)
        around = np.zeros_like(z) if means is None else means @ z
        expected, sd = _regress(z, others, around, known)
        half = rng.random(len(row)) < 0.5
        i, j = row[half], column[half]
        top = ndtr((below[half] - expected[i, j]) / sd[j])
        drawn = expected[i, j] + sd[j] * ndtri(np.clip(rng.random(len(i)) * top, 1e-12, 1 - 1e-12))
        z[i, j] = np.clip(np.minimum(drawn, below[half]), -6, 6)
    return z


def _regress(z: Floats, first: Floats, second: Floats, known: Bools) -> tuple[Floats, Floats]:
    """Prediction of each column from its two own predictors, and the standard deviation that is left."""
    n = np.maximum(known.sum(axis=0), 1)
    a, b, c = ((u * v * known).sum(axis=0) / n for u, v in ((first, first), (first, second), (second, second)))
    p, q = ((u * z * known).sum(axis=0) / n for u in (first, second))
    a, c = a + 1e-3, c + 1e-3
    det = a * c - b**2
    slope, other = (c * p - b * q) / det, (a * q - b * p) / det
    expected = slope * first + other * second
    rest = ((z - expected) ** 2 * known).sum(axis=0) / n
    return expected, np.sqrt(np.maximum(rest, _LEAST_VARIANCE))


@dataclass(frozen=True)
class Coregionalization:
    """Linear model of coregionalization of unit variables (Goulard & Voltz, Mathematical Geology 24 (1992) 269-286)."""

    lengths: Floats  # lengths of the Matern structures, shape (structures,)
    loadings: Floats  # of nugget, Matern structures and section, shape (2 + structures, variables, factors)
    specific: Floats  # variance that each variable has for itself in each of them, shape (2 + structures, variables)

    @classmethod
    def fit(
        cls, z: Floats, known: Bools, xy: Floats | None, section: Ints, rng: np.random.Generator, n_factors: int = 20
    ) -> Coregionalization:
        """Fit to scores of shape (spots, variables), by least squares on covariances in classes of distance."""
        scale = np.sqrt((z**2).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
        z = z / np.where(scale > 0, scale, 1)
        pitch = spacing(xy, section) if xy is not None else np.nan
        lengths = np.array(LENGTHS) * (pitch if np.isfinite(pitch) else 1.0)
        several = float(len(np.unique(section)) > 1)
        itself = np.arange(len(z))
        covariance, correlation = [_product(z, known, itself, itself)], [[*np.ones(len(lengths) + 1), several]]
        for i, j, distance in () if xy is None else distance_classes(xy, section, rng):
            chosen = rng.permutation(len(i))[:_MOST_PAIRS]
            product = _product(z, known, i[chosen], j[chosen])
            covariance.append((product + product.T) / 2)
            matern = (matern32(distance[chosen], length).mean() for length in lengths)
            correlation.append([0.0, *matern, several])
        found = _goulard_voltz(np.stack(covariance), np.array(correlation))
        return cls._reduce(lengths, found, n_factors).of_few_sections(len(np.unique(section)))

    @classmethod
    def _reduce(cls, lengths: Floats, B: Floats, n_factors: int) -> Coregionalization:
        """Few factors of each structure; what they leave is each variable's own."""
        k = min(n_factors, B.shape[1])
        values, vectors = np.linalg.eigh(B)
        loadings = vectors[..., -k:] * np.sqrt(np.maximum(values[..., -k:], 0))[:, None]
        specific = np.maximum(np.diagonal(B, axis1=1, axis2=2) - (loadings**2).sum(axis=-1), 0)
        total = (loadings**2).sum(axis=(0, 2)) + specific.sum(axis=0)
        # a variable without any structure is white
        specific[0] += np.where(total > 1e-9, 0, 1)
        total = np.where(total > 1e-9, total, 1)
        return cls(lengths, loadings / np.sqrt(total)[:, None], specific / total)

    def of_few_sections(self, n_sections: int) -> Coregionalization:
        """The widest structures, for sections that are none of those that they were learnt from.

        A handful of sections tells little of how levels and wide fields of one variable vary: by chance many seem not to. Their
        variances are pulled to the mean of all variables, the more the fewer sections there are, and raised, as a t-distribution is
        wider than a normal one. Each variable has a variance of 1 in all again.
        """
        if n_sections < 2:
            return self
        loadings, specific = self.loadings.copy(), self.specific.copy()
        pull = _PULL / (_PULL + n_sections)
        raised = (t.ppf(0.95, max(n_sections - 1, 3)) / ndtri(0.95)) ** 2
        for s in _WIDE:
            variance = (loadings[s] ** 2).sum(axis=1) + specific[s]
            goal = np.minimum(((1 - pull) * variance + pull * variance.mean()) * raised, _MOST_WIDE)
            # what is shared with other variables grows along; of a variable that hardly varies, little is known to be shared
            grown = goal / np.maximum(variance, max(_LEAST_SHARED * variance.mean(), 1e-12))
            loadings[s] *= np.sqrt(grown)[:, None]
            specific[s] = specific[s] * grown + np.maximum(goal - variance * grown, 0)
        total = (loadings**2).sum(axis=(0, 2)) + specific.sum(axis=0)
        return Coregionalization(self.lengths, loadings / np.sqrt(total)[:, None], specific / total)

    def covariance(self, structure: int) -> Floats:
        """Covariance between the variables of one structure: 0 the nugget, -1 the section."""
        return self.loadings[structure] @ self.loadings[structure].T + np.diag(self.specific[structure])

    def take(self, columns: Ints) -> Coregionalization:
        """Of some variables."""
        return Coregionalization(self.lengths, self.loadings[:, columns], self.specific[:, columns])


def _product(z: Floats, known: Bools, i: Ints, j: Ints) -> Floats:
    """Mean product at pairs of spots, shape (variables, variables); 0 where two are never measured together."""
    if known.all():
        return z[i].T @ z[j] / len(i)
    n = known[i].T.astype(float) @ known[j]
    return z[i].T @ z[j] / np.maximum(n, 1)


def distance_classes(xy: Floats, section: Ints, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs of spots of the same section and their distance, class by class of distance, if a class has enough pairs.

    All near pairs, and a random choice of all pairs. Nothing where no section has two positions.
    """
    pitch = spacing(xy, section)
    if np.isnan(pitch):
        return
    first, second = [], []
    for own in rows_of_each(section):
        n = len(own)
        if n < 2:
            continue
        k = min(_N_NEAR + 1, n)
        at = KDTree(xy[own]).query(xy[own], k=k)[1]
        m = int(np.ceil(_FAR_PAIRS * n / len(xy)))
        first += [np.repeat(own, k), own[rng.integers(n, size=m)]]
        second += [own[at.ravel()], own[rng.integers(n, size=m)]]
    i, j = np.concatenate(first), np.concatenate(second)
    i, j = i[i != j], j[i != j]
    distance = np.linalg.norm(xy[i] - xy[j], axis=1)
    classes = np.digitize(distance / pitch, _EDGES)
    for c in range(len(_EDGES)):
        own = np.flatnonzero(classes == c)
        if len(own) >= _LEAST_PAIRS:
            yield i[own], j[own], distance[own]


def _goulard_voltz(C: Floats, rho: Floats) -> Floats:
    """Covariance matrices B of the structures with sum_j rho[h, j] B_j close to C[h] and no negative eigenvalue."""
    weight = np.ones(len(rho))
    weight[0] = 2.0
    size = (weight[:, None] * rho**2).sum(axis=0)
    B = np.zeros((rho.shape[1], *C.shape[1:]))
    used = np.flatnonzero(size > 1e-9)
    B[used] = C[0] / len(used)
    rest = C - np.einsum("hj,jab->hab", rho, B)
    for _ in range(60 if C.shape[1] <= 300 else 15):
        for j in used:
            target = B[j] + np.einsum("h,hab->ab", weight * rho[:, j] / size[j], rest)
            values, vectors = np.linalg.eigh((target + target.T) / 2)
            new = (vectors * np.maximum(values, 0)) @ vectors.T
            rest -= rho[:, j, None, None] * (new - B[j])
            B[j] = new
    return B

"""Whether columns of numbers were made of the targets: arrays in, scores out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stmsi._core.arrays import Floats, Ints
from stmsi._core.metrics.columns import ranks
from stmsi._core.metrics.structure import correlations
from stmsi._core.spatial.sections import rows_of_each, spot_pitch

NEAR = 1.5  # neighbours are up to this many times the spots' distance away: 6 on a hexagon, 8 on a square
_MOST_ROWS = 3000  # a correlation of 0.35 is beyond doubt with far fewer
_LEAST_ROWS = 100
_LEAST_OF_SECTION = 20
_BINS = 20
_TOGETHER = 1.35  # times what one column may share: many columns know more of borders in the tissue
_PENALTY = 0.01  # of the ridge, relative to the number of spots
_COPY = 0.95
"""Correlation of ranks from which a column is a copy. Genes of simulated tissue reach 0.73, and 0.86 if smoothed."""
_SHARED = (0.35, 0.15)
_SHARED_BEYOND_GENES = (0.25, 0.1)
"""Correlation of what spots have beyond their neighbours, and beyond genes: the least that counts, and what 5 standard errors
are added to. Single genes of simulated tissue reach 0.24 in 443 spots; those of breast tumours, beside histology, 0.24 in 1,193."""


def neighbour_means(xy: Floats, section: Ints) -> sp.csr_matrix:
    """Weights that average the neighbours of each spot in its own section, (n, n); rows without neighbours are 0."""
    row, column = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for own in rows_of_each(section):
        own = own[np.isfinite(xy[own]).all(axis=1)]
        if len(own) < 2:
            continue
        pairs = KDTree(xy[own]).query_pairs(NEAR * spot_pitch(xy[own]), output_type="ndarray")
        row += [own[pairs[:, 0]], own[pairs[:, 1]]]
        column += [own[pairs[:, 1]], own[pairs[:, 0]]]
    i, j = np.concatenate(row), np.concatenate(column)
    count = np.bincount(i, minlength=len(xy))
    return sp.csr_matrix((1 / count[i], (i, j)), shape=(len(xy), len(xy)))


@dataclass
class SharedNoise:
    """Targets against which columns are held.

    Tissue makes genes, histology and metabolites alike over distances. What a spot has beyond its neighbours is mostly noise of
    its own measurement, and only a column that was made of the target shares it.

    Parameters
    ----------
    targets
        Intensities, (n, m), without NaN.
    section
        Number of each spot's section, (n,).
    means
        Weights of neighbours, those of :func:`neighbour_means`; `None` where there are no positions.
    known
        Components of the expression, (n, k). A column may share what they and their means over neighbours tell of a target.
    genes
        Whether the columns are genes themselves.
    """

    targets: Floats
    section: Ints
    means: sp.csr_matrix | None
    known: Floats | None = None
    genes: bool = True

    @cached_property
    def rows(self) -> Ints:
        """Spots that are looked at, rising."""
        large = np.flatnonzero(np.bincount(self.section)[self.section] >= _LEAST_OF_SECTION)
        if len(large) <= _MOST_ROWS:
            return large
        return np.sort(np.random.default_rng(0).choice(large, _MOST_ROWS, replace=False))

    @property
    def enough(self) -> bool:
        """Whether there are spots enough to judge: few averages of regions follow each other as copies do."""
        return len(self.rows) >= _LEAST_ROWS

    @cached_property
    def _means(self) -> sp.csr_matrix | None:
        return None if self.means is None else self.means[self.rows]

    def _forms(self, values: Floats) -> list[Floats]:
        """Ranks, and values up to 4 deviations from the mean, of each section, each (n, p) and centred."""
        rank, value = np.zeros(values.shape), np.zeros(values.shape)
        for own in rows_of_each(self.section):
            r = ranks(values[own])
            rank[own] = (r - r.mean(axis=0)) / len(own)
            centred = values[own] - values[own].mean(axis=0)
            value[own] = np.clip(centred / np.maximum(centred.std(axis=0), 1e-12), -4, 4)
        return [rank, value]

    @cached_property
    def _plain(self) -> Floats:
        """Ranks of the targets, and their distances from the middle one: a column may have turned either end up."""
        rank = self._forms(self.targets)[0]
        return np.hstack([rank, self._forms(np.abs(rank))[0]])[self.rows]

    @cached_property
    def _sharp(self) -> Floats:
        """What targets, their distances from the middle and their means over one and two rings have beyond the neighbours."""
        if self.means is None:
            return np.empty((0, 0))
        versions = [self.targets, np.abs(self._forms(self.targets)[0])]
        alone = np.diff(self.means.indptr) == 0
        smooth = self.targets
        for _ in range(2):
            smooth = (self.means @ smooth + smooth) / np.where(alone, 1, 2)[:, None]
            versions.append(smooth)
        versions.append(self.means @ self.targets)
        return np.hstack([self._beyond(form) for version in versions for form in self._forms(version)])

    def _sharpened(self, values: Floats) -> Floats:
        """What the spots looked at have beyond the mean of their neighbours; empty without positions."""
        if self._means is None:
            return np.empty((0, values.shape[1]))
        lonely = np.diff(self._means.indptr) == 0
        return np.where(lonely[:, None], 0.0, values[self.rows] - self._means @ values)

    @cached_property
    def _told(self) -> Floats:
        """Orthonormal columns of what genes, in the spot and around it, tell beyond the neighbours."""
        if self.known is None or self.means is None:
            return np.empty((len(self.rows), 0))
        rings = [self.known]
        for _ in range(2):
            rings.append(self.means @ rings[-1])
        return np.linalg.qr(self._sharpened(np.hstack(rings)))[0]

    def _beyond(self, values: Floats) -> Floats:
        """As :meth:`_sharpened`, without what genes tell."""
        sharp = self._sharpened(values)
        return sharp - self._told @ (self._told.T @ sharp) if len(sharp) else sharp

    @property
    def least(self) -> float:
        """Correlation that is shared noise: beyond chance, and beyond borders in the tissue."""
        least, beside = _SHARED if self.genes else _SHARED_BEYOND_GENES
        return float(max(least, beside + 5 / np.sqrt(len(self.rows))))

    def of_columns(self, columns: Floats) -> Floats:
        """Score of each column, (p,): 1 and more is a copy, or shares noise with a target."""
        forms = self._forms(columns)
        rank = forms[0][self.rows]
        copy = np.maximum(_largest(rank, self._plain), np.sqrt(self._explained(rank)))
        shared = [_largest(self._beyond(form), self._sharp) for form in forms]
        return self._score(copy, np.maximum(*shared))

    def of_all(self, columns: Floats) -> float:
        """Score of all columns together: how well they predict targets in spots that the fit did not see."""
        copy, shared = np.zeros(0), np.zeros(0)
        for form in self._forms(columns):
            copy = np.append(copy, _predicted(form[self.rows], self._plain))
            shared = np.append(shared, _predicted(self._beyond(form), self._sharp))
        return float(max(copy.max(initial=0) / _COPY, shared.max(initial=0) / (_TOGETHER * self.least)))

    def _score(self, copy: Floats, shared: Floats) -> Floats:
        """Both relative to where a leak begins, the larger."""
        return np.maximum(copy / _COPY, shared / self.least)

    def _explained(self, f: Floats) -> Floats:
        """Largest share of each column's variance, (p,), that bins of one target explain, whatever the curve, less chance."""
        n, best = len(f), np.zeros(f.shape[1])
        if n < 10 * _BINS:
            return best
        f = f - f.mean(axis=0)
        total = np.maximum((f**2).sum(axis=0), 1e-12)
        for y in self._plain.T[: self.targets.shape[1]]:
            level = np.unique(np.quantile(y, np.linspace(0, 1, _BINS + 1)[1:-1]))
            group = np.searchsorted(level, y)
            count = np.bincount(group)
            sums = sp.csr_matrix((np.ones(n), (group, np.arange(n)))) @ f
            between = (sums**2 / np.maximum(count, 1)[:, None]).sum(axis=0) / total
            best = np.maximum(best, between - (len(count) - 1) / n)
        return np.clip(best, 0, 1)


def _largest(a: Floats, b: Floats) -> Floats:
    """Largest absolute correlation of each column of `a` with one of `b`."""
    if len(a) < 3 or not a.shape[1] or not b.shape[1]:
        return np.zeros(a.shape[1])
    return np.abs(np.nan_to_num(correlations(a, b))).max(axis=1)


def _predicted(f: Floats, y: Floats) -> Floats:
    """Correlation of each target with what a ridge on the columns, fitted to the other half of the spots, predicts."""
    n, p = f.shape
    if not p or n < 4 * p or n < 20 or not y.shape[1]:
        return np.zeros(y.shape[1])
    f = f / np.maximum(f.std(axis=0), 1e-12)
    half = np.random.default_rng(0).permutation(n) < n // 2
    out = np.zeros_like(y)
    for side in (half, ~half):
        gram = f[side].T @ f[side]
        gram[np.diag_indices(p)] += _PENALTY * n
        out[~side] = f[~side] @ np.linalg.solve(gram, f[side].T @ y[side])
    a, b = out - out.mean(axis=0), y - y.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(size > 1e-12, (a * b).sum(axis=0) / np.maximum(size, 1e-12), 0.0)

"""Draws from the hurdle model with residuals that are correlated in space and between metabolites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from stmsi._core.arrays import AnyFloats, Floats, Floats32, Ints
from stmsi._core.spatial.coregionalization import Coregionalization, impute_censored
from stmsi._core.spatial.morans_i import neighbour_means
from stmsi._core.spatial.random_fields import FieldSampler
from stmsi._core.spatial.sections import rows_of_each

_KNOTS = 6  # predicted intensities at which the distribution of the measured ones is described
_LEVELS = 41
_PER_KNOT = 25
_MOST_SPOTS = 12_000


@dataclass(frozen=True)
class ResidualTable:
    """Distribution of the measured intensity where present, given its prediction."""

    knots: Floats  # predicted intensities, rising, shape (metabolites, knots)
    residual: Floats  # quantiles of measured minus predicted, shape (metabolites, knots, levels), levels evenly spaced
    floor: Floats  # smallest intensity measured where present, shape (metabolites,)

    @classmethod
    def fit(cls, present: Floats, predicted: Floats) -> ResidualTable:
        """From held-out spots: measured intensity (NaN where absent or not covered) and its prediction."""
        n = present.shape[1]
        knots, residual, floor = np.zeros((n, _KNOTS)), np.zeros((n, _KNOTS, _LEVELS)), np.zeros(n)
        grid = np.linspace(0, 1, _LEVELS)
        for m in range(n):
            used = ~np.isnan(present[:, m]) & ~np.isnan(predicted[:, m])
            y, mu = present[used, m], predicted[used, m]
            if len(y) == 0:
                continue
            floor[m] = y.min()
            order = np.argsort(mu, kind="stable")
            y, mu = y[order], mu[order]
            count = int(np.clip(len(y) // _PER_KNOT, 1, _KNOTS))
            # windows overlap, so that the distribution changes slowly
            half = 0.5 if count == 1 else 0.75 / count
            for b in range(_KNOTS):
                c = (min(b, count - 1) + 0.5) / count
                low, high = int(np.floor(max(c - half, 0) * len(y))), int(np.ceil(min(c + half, 1) * len(y)))
                window = slice(low, max(high, low + 1))
                knots[m, b] = mu[window].mean()
                residual[m, b] = np.quantile(y[window] - mu[window], grid)
        return cls(knots, residual, floor)

    def place(self, predicted: Floats) -> tuple[Ints, Floats32]:
        """Knot below each prediction, and how far it lies towards the next; shape (spots, metabolites)."""
        below = np.zeros(predicted.shape, np.int64)
        for b in range(1, _KNOTS - 1):
            below += predicted >= self.knots[:, b]
        column = np.arange(predicted.shape[1])
        left, right = self.knots[column, below], self.knots[column, below + 1]
        wide = right > left
        part = np.where(wide, (predicted - left) / np.where(wide, right - left, 1), 0)
        return below, np.clip(part, 0, 1).astype(np.float32)

    def quantile(self, level: AnyFloats, predicted: AnyFloats, column: Ints, below: Ints, part: AnyFloats) -> AnyFloats:
        """Intensity at a level between 0 and 1; all arguments of one shape."""
        flat = self.residual.astype(np.float32).reshape(-1)
        position = level * (_LEVELS - 1)
        at = np.minimum(position.astype(np.int64), _LEVELS - 2)
        within = (position - at).astype(np.float32)
        start = (column * _KNOTS + below) * _LEVELS + at
        low = flat[start] + within * (flat[start + 1] - flat[start])
        start = start + _LEVELS
        high = flat[start] + within * (flat[start + 1] - flat[start])
        return np.maximum(predicted + low + part * (high - low), self.floor.astype(np.float32)[column])

    def level(self, intensity: Floats, predicted: Floats, rng: np.random.Generator) -> Floats:
        """Level of a measured intensity, the inverse of :meth:`quantile`; NaN stays NaN."""
        below, part = self.place(predicted)
        out = np.full(intensity.shape, np.nan)
        for m in range(intensity.shape[1]):
            rows = np.flatnonzero(~np.isnan(intensity[:, m]) & ~np.isnan(predicted[:, m]))
            b, w = below[rows, m], part[rows, m][:, None]
            curve = (1 - w) * self.residual[m, b] + w * self.residual[m, b + 1]
            r = (intensity[rows, m] - predicted[rows, m])[:, None]
            # ties take a random level among theirs
            left, right = (curve < r).sum(axis=1), (curve <= r).sum(axis=1)
            index = np.clip(left, 1, _LEVELS - 1)
            row = np.arange(len(rows))
            start, end = curve[row, index - 1], curve[row, index]
            step = end > start
            inside = np.where(step, (r[:, 0] - start) / np.where(step, end - start, 1), 0.5)
            level = (index - 1 + np.clip(inside, 0, 1)) / (_LEVELS - 1)
            tied = right - left > 1
            spread = (left + rng.random(len(rows)) * np.maximum(right - left - 1, 0)) / (_LEVELS - 1)
            out[rows, m] = np.where(tied, spread, level)
        return out

    def take(self, columns: Ints) -> ResidualTable:
        """Of some metabolites."""
        return ResidualTable(self.knots[columns], self.residual[columns], self.floor[columns])


@dataclass(frozen=True)
class HurdleCopula:
    r"""Gaussian copula of the hurdle model.

    The distribution of a spot and metabolite is :math:`F(y) = 1 - p + p\,G(y)`, with the probability of presence :math:`p`
    and the distribution :math:`G` of the intensity where present. A unit Gaussian field :math:`z` decides both: absent where
    :math:`\Phi(z) < 1 - p`, else the quantile of :math:`G` at :math:`(\Phi(z) - 1 + p) / p`. So the margins are those of
    the model, whatever the correlation of :math:`z`.
    """

    names: NDArray[np.object_]  # ids of the metabolites
    table: ResidualTable  # the distribution G
    fields: Coregionalization  # covariance of z between metabolites and over distance

    @classmethod
    def fit(
        cls,
        names: NDArray[np.object_],
        intensity: Floats,
        presence: Floats,
        probability: Floats,
        predicted: Floats,
        section: Ints,
        xy: Floats | None,
        seed: int = 0,
    ) -> HurdleCopula:
        """Fit to measurements and held-out predictions (spots, metabolites) in numbered sections; NaN where there is none.

        Without positions there is no structure in space. The seed is that of the draws for absent metabolites.
        """
        rng = np.random.default_rng(seed)
        rows = _some_spots(section, xy, rng)
        intensity, presence, probability = intensity[rows], presence[rows], np.clip(probability[rows], 1e-4, 1 - 1e-4)
        predicted, section = np.maximum(predicted[rows], 0), section[rows]
        xy = None if xy is None else xy[rows]
        known = ~np.isnan(intensity) & ~np.isnan(presence) & ~np.isnan(probability) & ~np.isnan(predicted)
        where = np.where(known & (presence > 0), intensity, np.nan)
        table = ResidualTable.fit(where, predicted)
        u = 1 - probability + probability * table.level(where, predicted, rng)
        absent = known & (presence <= 0)
        u = np.where(absent, rng.random(u.shape) * (1 - probability), u)
        z = np.where(known, ndtri(np.clip(u, 1e-4, 1 - 1e-4)), np.nan)
        limit = np.where(absent, ndtri(1 - probability), np.nan)
        near = None if xy is None else neighbour_means(xy, section)
        z = impute_censored(z, limit, near, rng)
        return cls(names, table, Coregionalization.fit(z, known, xy, section, rng))

    def take(self, columns: Ints) -> HurdleCopula:
        """Of some metabolites."""
        return HurdleCopula(self.names[columns], self.table.take(columns), self.fields.take(columns))

    def draw(
        self,
        probability: AnyFloats,
        predicted: AnyFloats,
        xy: Floats | None,
        section: Ints,
        n_samples: int,
        rng: np.random.Generator,
        *,
        spatial: bool = True,
    ) -> Iterator[Floats32]:
        """Draws of intensities, shape (spots, metabolites), exactly 0 where absent.

        Without `spatial`, residuals are correlated between metabolites only, and positions are not needed.
        """
        predicted = np.maximum(np.asarray(predicted, dtype=np.float32), 0)
        absent = 1 - np.asarray(probability, dtype=np.float32)
        below, part = self.table.place(predicted.astype(np.float64))
        column = np.broadcast_to(np.arange(predicted.shape[1]), predicted.shape)
        samplers = None
        if spatial:
            assert xy is not None
            samplers = [FieldSampler.build(xy, section, float(length)) for length in self.fields.lengths]
        for own in rng.spawn(n_samples):
            u = ndtr(self._latent(len(predicted), section, samplers, own))
            there = u > absent
            gap = absent[there]
            level = np.clip((u[there] - gap) / np.maximum(1 - gap, 1e-9), 0, 1)
            out = np.zeros(predicted.shape, np.float32)
            out[there] = self.table.quantile(level, predicted[there], column[there], below[there], part[there])
            yield out

    def _latent(self, n: int, section: Ints, samplers: list[FieldSampler] | None, rng: np.random.Generator) -> Floats32:
        """The field z, shape (spots, metabolites); without samplers independent between spots."""
        loadings, specific = self.fields.loadings.astype(np.float32), np.sqrt(self.fields.specific).astype(np.float32)
        m, k = loadings.shape[1:]
        z = np.zeros((n, m), np.float32)
        last = len(loadings) - 1
        number = np.unique(section, return_inverse=True)[1]
        for s in range(len(loadings)):
            if not loadings[s].any() and not specific[s].any():
                continue
            if s == last and samplers is not None:
                noise = rng.standard_normal((int(number.max(initial=0)) + 1, k + m), dtype=np.float32)[number]
            else:
                noise = rng.standard_normal((n, k + m), dtype=np.float32)
                if samplers is not None and s > 0:
                    noise = samplers[s - 1](noise)
            z += noise[:, :k] @ loadings[s].T + noise[:, k:] * specific[s]
        return z


def _some_spots(section: Ints, xy: Floats | None, rng: np.random.Generator) -> Ints:
    """Spots to fit to: all of few, else an equal part of each section around one of its spots."""
    n = len(section)
    if n <= _MOST_SPOTS:
        return np.arange(n)
    kept = []
    for own in rows_of_each(section):
        size = max(1, int(_MOST_SPOTS * len(own) / n))
        if xy is None:
            kept.append(rng.choice(own, size, replace=False))
        else:
            middle = xy[own[rng.integers(len(own))]]
            kept.append(own[np.argsort(np.linalg.norm(xy[own] - middle, axis=1), kind="stable")[:size]])
    return np.sort(np.concatenate(kept))

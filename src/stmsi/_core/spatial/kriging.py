"""Kriging of many variables that were measured in some spots of a section.

Own code: one eigendecomposition for each length serves all variables, all shares of noise, the leave-one-out errors and the
likelihood. :class:`sklearn.gaussian_process.GaussianProcessRegressor` decomposes anew for each variable and each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.blocks import grid_blocks
from stmsi._core.spatial.random_fields import matern32
from stmsi._core.spatial.sections import rows_of_each, spot_pitch

LENGTHS = (1.5, 3.0, 6.0, 12.0, 24.0)
"""Lengths of the Matern correlation that are tried, in units of the pitch of the spots."""
NOISES = (0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96)
"""Shares of the variance that a spot does not have in common with its neighbours (the nugget); 1 is tried as well."""
LEAST_SPOTS = 5
"""Fewer measured spots tell no length: what they have in common is all that is kriged."""
_OFFSET = 1 / 3  # least variance of a section's offset, as a share of the variance inside: three spots tell half of it
_MOST_SPOTS = 1000  # larger sections are kriged block by block; the likelihood takes as many spots at random
_SUPPORT = 800  # measured spots that a block is kriged from
_OF_BLOCK = 250  # spots of a block
_LEAST_WEIGHT = 0.01  # settings with less of the weight are left out


class Kriged(NamedTuple):
    """What the measured spots say of each spot; where the spot itself was measured, what the others say."""

    value: Floats  # expected value, shape (spots, variables)
    variance: Floats  # of a measurement around it, as a share of that without any measured spot, likewise
    offset: Floats  # what the section has in common, shape (variables,)
    length: Floats  # mean length of the correlation in the unit of the positions; NaN where all is noise, likewise
    noise: Floats  # mean share of noise, likewise


class _Settings(NamedTuple):
    """Lengths (NaN: none) and shares of noise, each of shape (settings,); the last setting is noise alone."""

    length: Floats
    noise: Floats

    def of_length(self, length: float) -> Ints:
        """Numbers of the settings with this length; NaN: of noise alone."""
        return np.flatnonzero(np.isnan(self.length) if np.isnan(length) else self.length == length)

    @classmethod
    def of(cls, xy: Floats | None) -> _Settings:
        """All that are tried on these positions: noise alone where there are none, or all at one place."""
        pitch = 0.0 if xy is None else spot_pitch(xy)
        lengths = np.array(LENGTHS) * pitch if pitch > 0 else np.empty(0)
        grid = np.array([(length, noise) for length in lengths for noise in NOISES]).reshape(-1, 2)
        return cls(np.append(grid[:, 0], np.nan), np.append(grid[:, 1], 1.0))


def krige(values: Floats, xy: Floats | None) -> Kriged:
    r"""Expected value of each variable in each spot of one section, from the spots where it was measured.

    A value is an offset of the section, a Gaussian field with a Matern 3/2 correlation, and noise. Results are averages over a
    grid of lengths and shares of noise. The weights are the restricted likelihood times a prior that all variables share: the
    mean of their weights (empirical Bayes). The offset is shrunk to 0, the less the larger those of all variables are; far
    from all measured spots it is what is left.

    Parameters
    ----------
    values
        Shape (spots, variables), NaN where not measured, of mean 0 a priori.
    xy
        Positions, shape (spots, 2); `None`: the offset alone.
    """
    known = ~np.isnan(values)
    settings = _Settings.of(xy)
    if len(settings.noise) == 1:
        xy = None
    likelihood = np.full((len(settings.noise), values.shape[1]), -np.inf)
    likelihood[-1] = 0.0
    sill = np.ones_like(likelihood)
    groups = [(np.flatnonzero(mask), own) for mask, own in _alike(known) if mask.any()]
    for rows, own in groups:
        if xy is not None and len(rows) >= LEAST_SPOTS:
            likelihood[:, own], sill[:, own] = _restricted_likelihood(values[np.ix_(rows, own)], xy[rows], settings)
    weight, spread = shared_weights(likelihood), _offset_variance(values)
    value, variance, offset = np.zeros(values.shape), np.ones(values.shape), np.zeros(values.shape[1])
    for rows, own in groups:
        for targets, support in _blocks(xy, rows, len(values)):
            block = _Block.of(xy, targets, support, spread)
            some = block.krige(values[np.ix_(support, own)], settings, weight[:, own], sill[:, own])
            value[np.ix_(targets, own)], variance[np.ix_(targets, own)], common = some
            offset[own] += common * len(targets) / len(values)
    total = weight[:-1].sum(axis=0)
    mean_length = settings.length[:-1] @ weight[:-1] / np.where(total > 0, total, 1)
    return Kriged(value, variance, offset, np.where(total > 0.5, mean_length, np.nan), settings.noise @ weight)


def shared_weights(likelihood: Floats, n_steps: int = 10) -> Floats:
    """Weight of each setting for each variable from log likelihoods (settings, variables); columns sum to 1.

    The prior is the mean weight over the variables and over one more variable for which all settings weigh the same.
    """
    relative = np.exp(likelihood - likelihood.max(axis=0))
    prior = np.full(len(likelihood), 1 / len(likelihood))
    weight = relative
    for _ in range(n_steps):
        weight = prior[:, None] * relative
        weight = weight / weight.sum(axis=0)
        prior = (weight.sum(axis=1) + 1 / len(prior)) / (likelihood.shape[1] + 1)
    weight = np.where(weight < _LEAST_WEIGHT * weight.max(axis=0), 0.0, weight)
    return np.asarray(weight / weight.sum(axis=0))


def _restricted_likelihood(z: Floats, xy: Floats, settings: _Settings) -> tuple[Floats, Floats]:
    """Log of the restricted likelihood, and the variance, under each setting; each of shape (settings, variables).

    `z` (spots, variables) and `xy` (spots, 2) are of measured spots. Correlations are centred, which takes the mean out, so
    that one eigendecomposition for each length gives all shares of noise.
    """
    if len(z) > _MOST_SPOTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(z), _MOST_SPOTS, replace=False))
        z, xy = z[chosen], xy[chosen]
    n, level, distance = len(z), z.mean(axis=0), cdist(xy, xy)
    z = z - level
    likelihood, sill = (np.empty((len(settings.noise), z.shape[1])) for _ in range(2))
    for length in np.unique(settings.length):
        if np.isnan(length):  # no field at all
            eigenvalues, square = np.zeros(n), z**2
        else:
            K = matern32(distance, length)
            middle = K.mean(axis=0)
            eigenvalues, vectors = np.linalg.eigh(K - middle - middle[:, None] + K.mean())
            square = (vectors.T @ z) ** 2
        for j in settings.of_length(length):
            noise = settings.noise[j]
            d = (1 - noise) * np.maximum(eigenvalues, 0) + noise
            sill[j] = (square / d[:, None]).sum(axis=0) / (n - 1)
            # the mean, which is taken out, has the eigenvalue 0
            size = np.log(d).sum() - np.log(noise)
            likelihood[j] = -0.5 * ((n - 1) * np.log(np.maximum(sill[j], np.finfo(np.float64).tiny)) + size)
    # of a constant, all settings explain all; rounding leaves it about 1e-16 of its size
    constant = sill[-1] <= 1e-24 * level**2
    likelihood[:-1, constant], sill[:, constant] = -np.inf, 1.0
    return likelihood, sill


def _offset_variance(values: Floats) -> float:
    """Variance of the offsets as a share of the variance inside the section, as the variables (their median) show it."""
    n = (~np.isnan(values)).sum(axis=0)
    some = values[:, n >= LEAST_SPOTS]
    mean, variance = np.nanmean(some, axis=0), np.nanvar(some, axis=0)
    varies = variance > 1e-24 * mean**2
    return max(_OFFSET, float(np.median(mean[varies] ** 2 / variance[varies]))) if varies.any() else _OFFSET


def _alike(known: Bools) -> Iterator[tuple[Bools, Ints]]:
    """Masks of measured spots, and the variables that have each of them."""
    masks, of = np.unique(known, axis=1, return_inverse=True)
    of = np.ravel(of)
    for number, mask in enumerate(masks.T):
        yield mask, np.flatnonzero(of == number)


def _blocks(xy: Floats | None, measured: Ints, n: int) -> Iterator[tuple[Ints, Ints]]:
    """Spots that are kriged together, and the measured spots that they are kriged from."""
    if xy is None or len(measured) <= _MOST_SPOTS:
        yield np.arange(n), measured
        return
    block, _ = grid_blocks(xy, spot_pitch(xy) * np.sqrt(_OF_BLOCK))
    for targets in rows_of_each(block):
        distance, _ = KDTree(xy[targets]).query(xy[measured])
        size = min(max(_SUPPORT, int((distance == 0).sum())), len(measured))
        yield targets, np.sort(measured[np.argpartition(distance, size - 1)[:size]])


@dataclass(frozen=True)
class _Block:
    """Spots to krige (t) and the measured spots (s) that they are kriged from; `inside` and `at`: those that are both."""

    between: Floats | None  # distances of the measured spots, shape (s, s); None: no positions
    across: Floats | None  # distances to them, shape (t, s)
    inside: Ints
    at: Ints
    n_targets: int
    offset: float  # variance of the offsets, as a share of that inside the section

    @classmethod
    def of(cls, xy: Floats | None, targets: Ints, support: Ints, offset: float) -> _Block:
        """Both are row numbers of `xy`."""
        _, inside, at = np.intersect1d(targets, support, assume_unique=True, return_indices=True)
        if xy is None:
            return cls(None, None, inside, at, len(targets), offset)
        there = xy[support]
        return cls(cdist(there, there), cdist(xy[targets], there), inside, at, len(targets), offset)

    def krige(self, z: Floats, settings: _Settings, weight: Floats, sill: Floats) -> tuple[Floats, Floats, Floats]:
        """Value and relative variance of the spots, and the offset, averaged over the settings; `z` is (s, variables)."""
        shape = (self.n_targets, z.shape[1])
        mean, square, size, offset = np.zeros(shape), np.zeros(shape), np.zeros(shape[1]), np.zeros(shape[1])
        for length in np.unique(settings.length[weight.any(axis=1)]):
            solve = self._offset_alone if np.isnan(length) else self._decompose(z, length)
            for j in settings.of_length(length):
                own = np.flatnonzero(weight[j])
                if len(own) == 0:
                    continue
                value, variance, common = solve(z[:, own], settings.noise[j], own)
                w, scale = weight[j, own], weight[j, own] * sill[j, own]
                mean[:, own] += w * value
                square[:, own] += w * value**2 + scale * variance[:, None]
                size[own] += scale * (1 + _OFFSET)
                offset[own] += w * common
        return mean, np.maximum(square - mean**2, 0) / size, offset

    def _decompose(self, z: Floats, length: float) -> _Solver:
        """Solves for all shares of noise of one length."""
        assert self.between is not None
        assert self.across is not None
        eigenvalues, U = np.linalg.eigh(matern32(self.between, length))
        eigenvalues, rotated, ones = np.maximum(eigenvalues, 0), U.T @ z, U.sum(axis=0)
        cross, U = matern32(self.across, length) @ U, U[self.at]

        def solve(z: Floats, noise: float, own: Ints) -> tuple[Floats, Floats, Floats]:
            inverse = 1 / ((1 - noise) * eigenvalues + noise)
            # the offset adds a constant to all covariances (Sherman and Morrison)
            one = ones * inverse
            shrink = self.offset / (1 + self.offset * (ones @ one))
            solved = rotated[:, own] * inverse[:, None]
            solved -= np.outer(one, shrink * (ones @ solved))
            common = self.offset * (ones @ solved)
            value = (1 - noise) * (cross @ solved) + common
            covariance = (1 - noise) * cross + self.offset * ones
            variance = 1 + self.offset - covariance**2 @ inverse + shrink * (covariance @ one) ** 2
            precision = U**2 @ inverse - shrink * (U @ one) ** 2
            value[self.inside] = z[self.at] - U @ solved / precision[:, None]
            variance[self.inside] = 1 / precision
            return value, variance, common

        return solve

    def _offset_alone(self, z: Floats, noise: float, own: Ints) -> tuple[Floats, Floats, Floats]:  # noqa: ARG002
        """The same where all else is noise."""
        n = len(z)
        shrink = self.offset / (1 + self.offset * n)
        common = shrink * z.sum(axis=0)
        value = np.tile(common, (self.n_targets, 1))
        variance = np.full(self.n_targets, 1 + shrink)
        precision = 1 - shrink
        value[self.inside] = z[self.at] - (z[self.at] - common) / precision
        variance[self.inside] = 1 / precision
        return value, variance, common


_Solver = Callable[[Floats, float, Ints], tuple[Floats, Floats, Floats]]
"""Value and relative variance of the spots, and the offset, of some variables under one share of noise."""

"""Gaussian random fields at scattered positions, drawn one position given its nearest earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stmsi._core.arrays import AnyFloats, Floats, Floats32, Ints
from stmsi._core.spatial.sections import rows_of_each

N_NEIGHBOURS = 16  # earlier positions that each one is drawn from
_JITTER = 1e-6
_CHUNK = 4096


def matern32(distance: AnyFloats, length: float) -> Floats:
    r"""Matern correlation of smoothness 3/2, :math:`(1 + \sqrt3 h / \ell) \exp(-\sqrt3 h / \ell)`."""
    scaled = np.sqrt(3.0) * np.asarray(distance, dtype=np.float64) / length
    return (1 + scaled) * np.exp(-scaled)


@dataclass(frozen=True)
class FieldSampler:
    r"""Unit Gaussian fields with a Matern correlation, independent between sections.

    Positions are drawn in a random order; each value is normal around a weighted mean of the nearest earlier ones
    (Vecchia's approximation; Katzfuss & Guinness, Statistical Science 36 (2021) 124-141). Positions of one level depend
    on earlier levels only, so they are one sparse product for all fields.
    """

    levels: list[tuple[Ints, sp.csr_matrix]]  # positions, and weights of shape (positions of the level, all positions)
    scale: Floats32  # standard deviation of each position given the earlier ones

    @classmethod
    def build(cls, xy: Floats, section: Ints, length: float, n_neighbours: int = N_NEIGHBOURS) -> FieldSampler:
        """Weights for positions, shape (n, 2), of numbered sections; `length` in their unit."""
        n = len(xy)
        order = np.random.default_rng(0).permutation(n)
        neighbours = np.full((n, n_neighbours), -1, np.int64)
        for in_order in rows_of_each(section[order]):
            own = order[in_order]
            neighbours[own] = _earlier(xy[own], own, n_neighbours)
        weights, variance = np.empty(neighbours.shape), np.empty(n)
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            weights[part], variance[part] = _conditional(xy, xy[part], neighbours[part], length)
        level = _levels(order, neighbours)
        rows, slots = np.nonzero(neighbours >= 0)
        matrix = sp.csr_matrix(
            (weights[rows, slots].astype(np.float32), (rows, neighbours[rows, slots])), shape=(n, n), dtype=np.float32
        )
        members = np.split(np.argsort(level, kind="stable"), np.cumsum(np.bincount(level))[:-1])
        return cls([(rows, matrix[rows]) for rows in members], np.sqrt(variance).astype(np.float32))

    def __call__(self, noise: Floats32) -> Floats32:
        """Fields from white noise, shape (positions, fields); the noise is used up."""
        noise *= self.scale[:, None]
        for rows, weights in self.levels[1:]:
            noise[rows] += weights @ noise
        return noise


def _earlier(xy: Floats, rows: Ints, k: int) -> Ints:
    """The nearest earlier ones of each position of a section, given in the order of drawing; -1 where there is none."""
    n = len(xy)
    out = np.full((n, k), -1, np.int64)
    # blocks that double: a tree of all earlier blocks, and one of the block itself
    begin = 0
    while begin < n:
        end = min(n, max(2 * begin, 64))
        block = np.arange(begin, end)
        # of the block itself, the nearest few: those that come later are passed over
        inside = len(block) if begin == 0 else min(2 * k + 1, len(block))
        distance, candidates = KDTree(xy[block]).query(xy[block], k=np.arange(1, inside + 1))
        candidates = candidates + begin
        distance = np.where(candidates < block[:, None], distance, np.inf)
        if begin > 0:
            earlier, at = KDTree(xy[:begin]).query(xy[block], k=np.arange(1, min(k, begin) + 1))
            candidates, distance = np.hstack([at, candidates]), np.hstack([earlier, distance])
        best = np.argsort(distance, axis=1, kind="stable")[:, :k]
        chosen = np.take_along_axis(candidates, best, axis=1)
        there = np.isfinite(np.take_along_axis(distance, best, axis=1))
        out[block, : chosen.shape[1]] = np.where(there, rows[chosen], -1)
        begin = end
    return out


def _conditional(xy: Floats, at: Floats, neighbours: Ints, length: float) -> tuple[Floats, Floats]:
    """Weights of the neighbours of each position, and the variance that they leave."""
    there = neighbours >= 0
    near = xy[np.maximum(neighbours, 0)]
    between = np.linalg.norm(near[:, :, None] - near[:, None], axis=-1)
    both = there[:, :, None] & there[:, None]
    k = neighbours.shape[1]
    inner = np.where(both, matern32(between, length), 0) + np.eye(k) * np.where(there, _JITTER, 1.0)[:, None]
    cross = np.where(there, matern32(np.linalg.norm(near - at[:, None], axis=-1), length), 0)
    weights = np.asarray(np.linalg.solve(inner, cross[..., None])[..., 0], dtype=np.float64)
    left = 1 - (weights * cross).sum(axis=1)
    return weights, np.asarray(np.clip(left, _JITTER, 1), dtype=np.float64)


def _levels(order: Ints, neighbours: Ints) -> Ints:
    """Length of the longest chain of earlier positions that leads to each one."""
    n = len(order)
    rows, slots = np.nonzero(neighbours >= 0)
    graph = sp.csr_matrix((np.ones(len(rows)), (neighbours[rows, slots], rows)), shape=(n, n))
    waiting = (neighbours >= 0).sum(axis=1)
    level, front, number = np.zeros(n, np.int64), np.flatnonzero(waiting == 0), 0
    while len(front):
        level[front] = number
        done = np.bincount(graph[front].indices, minlength=n)
        waiting = waiting - done
        front, number = np.flatnonzero((waiting == 0) & (done > 0)), number + 1
    return level

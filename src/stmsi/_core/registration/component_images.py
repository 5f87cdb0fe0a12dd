"""What the intensities of both modalities say about a placement: they decide between near-ties, check and polish."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import MIRROR, Adjustment, Freedom, inverse, sample_images, turn
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster
from stmsi._core.registration.warps import Floats, homogeneous

_N_FOLDS = 6
_RIDGE = 3.0
_MIN_SPOTS = 20
_PRIOR = 0.02


@dataclass(frozen=True)
class CrossModal:
    """Components of both modalities, ready to be compared under any placement.

    The tissue spots, their centred components (n, p), the MSI components as images (q, rows, cols) that continue beyond
    the tissue, both masks, and the spatial block of each spot.
    """

    spots: Floats
    expression: Floats
    images: Floats
    moving: TissueRaster
    fixed: TissuePoints
    fold: NDArray[np.int64]

    @classmethod
    def build(
        cls, moving: TissueRaster, fixed: TissuePoints, msi: Floats, expression: Floats, rng: np.random.Generator
    ) -> CrossModal:
        """From components at the tissue pixels, shape (pixels, q), and at the tissue spots, shape (spots, p)."""
        from sklearn.cluster import KMeans

        spots = fixed.xy[fixed.tissue]
        images = component_images(moving, msi, 0.5 * fixed.pitch)
        blocks = KMeans(min(_N_FOLDS, len(spots)), n_init=1, random_state=int(rng.integers(2**31)))  # compact, alike
        return cls(spots, expression, images, moving, fixed, blocks.fit_predict(spots).astype(np.int64))

    def thinned(self, n: int) -> CrossModal:
        """The same with about `n` of the spots: enough to compare thousands of placements."""
        step = max(1, round(len(self.spots) / n))
        return replace(self, spots=self.spots[::step], expression=self.expression[::step], fold=self.fold[::step])

    def sampled(self, matrix: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """MSI components at the spots, shape (n, q), and which spots lie on MSI tissue."""
        at = self.moving.index(apply_affine(inverse(matrix), self.spots))
        stack = np.concatenate([self.images, self.moving.distance[None]])
        value = sample_images(stack, at)[0]
        return value[:-1].T, value[-1] > 0

    def explained(self, matrix: Floats) -> float:
        """Share of variance that MSI components and expression explain of each other at held-out spots.

        Ridge regression over spatial blocks that are left out in turn, so signs are free; the mean over components and
        directions, where a component that is explained worse than by its mean counts as 0.
        """
        value, covered = self.sampled(matrix)
        if covered.sum() < _MIN_SPOTS:
            return 0.0
        x, y, fold = self.expression[covered], value[covered], self.fold[covered]
        return 0.5 * (_held_out(x, y, fold) + _held_out(y, x, fold))

    def shared_information(self, matrix: Floats) -> float:
        """Information (nats a spot) that the components of both share as normal variables, less what chance makes.

        From the canonical correlations at the covered spots, with the factor and the degrees of freedom of Bartlett (J. R.
        Stat. Soc. 9, 176, 1947). More sensitive than :meth:`explained` in small sections. Uncovered spots count as 0.
        """
        value, covered = self.sampled(matrix)
        n, p, q = int(covered.sum()), self.expression.shape[1], value.shape[1]
        if n < max(_MIN_SPOTS, 2 * (p + q)):
            return 0.0
        basis = [np.linalg.qr(v - v.mean(axis=0))[0] for v in (self.expression[covered], value[covered])]
        correlation = np.minimum(np.linalg.svd(basis[0].T @ basis[1], compute_uv=False), 1 - 1e-6)
        information = -0.5 * np.log(1 - correlation**2).sum()
        return float(((n - 1 - (p + q + 1) / 2) * information - p * q / 2) / len(covered))

    def refine(self, matrix: Floats, freedom: Freedom, weight: Floats | None = None) -> Floats:
        """Placement near `matrix` (MSI -> ST) under which expression explains most; `weight` is that of each spot."""
        # spots well inside the MSI tissue, so that the set stays the same while the placement moves
        at = self.moving.index(apply_affine(inverse(matrix), self.spots))
        depth = sample_images(self.moving.distance[None], at)[0][0]
        inside = depth > 0.5 * self.fixed.pitch
        if inside.sum() < _MIN_SPOTS:
            return matrix
        spots = self.spots[inside]
        w = np.ones(len(spots)) if weight is None else weight[inside]
        w = np.sqrt(w / w.sum())
        x = np.column_stack([np.ones(len(spots)), self.expression[inside]]) * w[:, None]
        q, _ = np.linalg.qr(x)
        adjustment = Adjustment.about(inverse(matrix), spots)
        first = w / np.linalg.norm(w)

        def score(to_msi: Floats) -> tuple[float, Floats]:
            position = apply_affine(to_msi, spots)
            value, slope = sample_images(self.images, self.moving.index(position))
            slope = slope / self.moving.spacing
            y = value * w
            projected = y @ q
            against = y @ first
            explained = (projected**2).sum(axis=1) - against**2
            total = np.maximum((y**2).sum(axis=1) - against**2, 1e-12)
            share = explained / total
            by_y = 2 * (projected @ q.T - against[:, None] * first) / total[:, None]
            by_y -= 2 * (share / total)[:, None] * (y - against[:, None] * first)
            return float(share.mean()), ((by_y * w)[:, :, None] * slope).mean(axis=0)

        p = adjustment.best(score, spots, np.zeros(6), freedom, prior=_PRIOR, maxiter=80, ftol=1e-8)
        return inverse(adjustment.matrix(p))


def component_images(moving: TissueRaster, values: Floats, sigma: float) -> Floats:
    """Values of the tissue pixels, shape (pixels, q), as smoothed images that continue beyond the tissue."""
    shape = moving.distance.shape
    col, row = np.round(moving.index(moving.xy)).astype(int).T
    filled = np.zeros(shape, bool)
    filled[row, col] = True
    nearest = ndimage.distance_transform_edt(~filled, return_distances=False, return_indices=True)
    weight = ndimage.gaussian_filter(filled.astype(float), sigma / moving.spacing[::-1])
    out = np.empty((values.shape[1], *shape))
    for k in range(values.shape[1]):
        image = np.zeros(shape)
        image[row, col] = values[:, k]
        smooth = ndimage.gaussian_filter(image, sigma / moving.spacing[::-1]) / np.maximum(weight, 1e-12)
        out[k] = smooth[tuple(nearest)]
    return out


def _held_out(x: Floats, y: Floats, fold: NDArray[np.int64]) -> float:
    error, total = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    for k in np.unique(fold):
        test = fold == k
        if test.all():
            return 0.0
        mx, my = x[~test].mean(axis=0), y[~test].mean(axis=0)
        a, b = x[~test] - mx, y[~test] - my
        beta = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ b)
        # the level of a block is not what a pattern predicts best: deviations inside and between blocks both count
        error += ((y[test] - my - (x[test] - mx) @ beta) ** 2).sum(axis=0)
        total += ((y[test] - my) ** 2).sum(axis=0)
    return float(np.maximum(1 - error / np.maximum(total, 1e-12), 0).mean())


def reference_matrices(matrix: Floats, data: CrossModal, n: int, rng: np.random.Generator) -> list[Floats]:
    """Placements that are wrong but overlap: the section turned by at least 25 degrees, either side up, and shifted.

    Maps are smooth, so even a wrong placement explains something; how much, these tell.
    """
    middle = np.median(apply_affine(matrix, data.moving.xy), axis=0)
    radius = float(np.median(np.hypot(*(data.spots - data.spots.mean(axis=0)).T)))
    out = []
    for k in range(n):
        angle = rng.uniform(np.radians(25), 2 * np.pi - np.radians(25))
        linear = turn(angle) @ (MIRROR if k % 2 else np.eye(2))
        target = data.spots.mean(axis=0) + rng.normal(0, 0.2 * radius, 2)
        out.append(homogeneous(linear, target - linear @ middle) @ matrix)
    return out

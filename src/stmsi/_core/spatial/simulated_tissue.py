"""Random fields and counts from which paired sections are simulated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from stmsi._core.arrays import Bools, Floats, Floats32, Ints
from stmsi._core.registration.warps import ThinPlate

SPACING = 25.0  # spacing of the latent raster in micrometres
MARGIN = 200.0  # width of the latent raster beyond the capture area in micrometres


@dataclass(frozen=True)
class LatentRaster:
    """The raster of a section's hidden fields; `width` and `height` of the capture area in micrometres."""

    width: float
    height: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster."""
        return tuple(int(np.ceil((side + 2 * MARGIN) / SPACING)) + 1 for side in (self.height, self.width))  # type: ignore[return-value]

    def positions(self) -> Floats:
        """Raster points in micrometres, shape (points, 2)."""
        rows, cols = np.indices(self.shape)
        return np.asarray(np.column_stack([cols.ravel(), rows.ravel()]) * SPACING - MARGIN, dtype=np.float64)

    def smooth_field(self, length: float, rng: np.random.Generator, n: int = 1) -> Floats:
        """Gaussian random fields of unit variance with a correlation length in micrometres, shape (n, rows, cols)."""
        white = rng.standard_normal((n, *self.shape))
        field = gaussian_filter(white, sigma=(0, length / SPACING, length / SPACING), mode="wrap")
        return field / field.std(axis=(1, 2), keepdims=True)

    def diffuse(self, field: Floats, length: float, tissue: Bools) -> Floats:
        """Spread a field, shape (rows, cols), over its surroundings inside the tissue."""
        weight = gaussian_filter(tissue.astype(float), length / SPACING)
        spread = gaussian_filter(np.where(tissue, field, 0.0), length / SPACING)
        return np.where(weight > 1e-6, spread / np.maximum(weight, 1e-6), 0.0)

    def at(self, fields: Floats, xy: Floats) -> Floats:
        """Fields, shape (n, rows, cols), at positions in micrometres; shape (positions, n)."""
        where = ((xy + MARGIN) / SPACING).T[::-1]
        return np.column_stack([map_coordinates(f, where, order=1, mode="nearest") for f in fields])


@dataclass(frozen=True)
class Deformation:
    """A smooth deformation of the tissue: a thin-plate spline without its affine part (3, 2), scaled by a factor."""

    spline: ThinPlate
    affine: Floats
    factor: float

    def __call__(self, xy: Floats) -> Floats:
        """Move points."""
        return xy + self.factor * (self.spline(xy) - np.column_stack([xy, np.ones(len(xy))]) @ self.affine)

    @classmethod
    def draw(cls, raster: LatentRaster, tissue: Bools, largest: float, rng: np.random.Generator) -> Deformation:
        """A random deformation whose largest displacement on the tissue is `largest`."""
        x, y = np.meshgrid(np.linspace(0, raster.width, 3), np.linspace(0, raster.height, 3))
        spline = ThinPlate(np.column_stack([x.ravel(), y.ravel()]), rng.normal(size=(9, 2)))
        inside = raster.positions()[tissue.ravel()]
        moved = spline(inside)
        design = np.column_stack([inside, np.ones(len(inside))])
        affine = np.asarray(np.linalg.lstsq(design, moved, rcond=None)[0], dtype=np.float64)
        bent = moved - design @ affine
        return cls(spline, affine, largest / float(np.hypot(*bent.T).max()))


def tissue_mask(raster: LatentRaster, rng: np.random.Generator, share: float) -> Bools:
    """An irregular piece of tissue that fills about `share` of the capture area."""
    x, y = raster.positions().T
    angle = np.arctan2(y - raster.height / 2, x - raster.width / 2)
    distance = np.hypot((x - raster.width / 2) / raster.width, (y - raster.height / 2) / raster.height)
    order = np.arange(1, 6)
    amplitude, phase = rng.normal(0, 0.09, 5) / order**0.7, rng.uniform(0, 2 * np.pi, 5)
    outline = 1 + (amplitude[:, None] * np.cos(order[:, None] * angle + phase[:, None])).sum(axis=0)
    ratio = distance / np.maximum(outline, 0.2)
    inside_area = (x >= 0) & (x <= raster.width) & (y >= 0) & (y <= raster.height)
    limit = np.quantile(ratio[inside_area], share)
    return ((ratio <= limit) & inside_area).reshape(raster.shape)


def visium_positions(width: float, height: float, pitch: float) -> tuple[Floats, Ints]:
    """Centres of a Visium hexagon in micrometres, and their (array_row, array_col)."""
    n_rows = int(height / (pitch * np.sqrt(3) / 2)) + 1
    n_cols = int(width / (pitch / 2)) + 1
    row, col = np.indices((n_rows, n_cols))
    on = (row + col) % 2 == 0
    array = np.column_stack([row[on], col[on]])
    return np.column_stack([array[:, 1] * pitch / 2, array[:, 0] * pitch * np.sqrt(3) / 2]), array


def negative_binomial(log_rate: Floats, library: Floats, dispersion: float, rng: np.random.Generator) -> Floats32:
    """Over-dispersed counts: rows of softmax(log_rate) times the library size, variance mu + dispersion mu^2."""
    rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
    mean = rate / rate.sum(axis=1, keepdims=True) * library[:, None]
    return rng.poisson(rng.gamma(1 / dispersion, mean * dispersion)).astype(np.float32)

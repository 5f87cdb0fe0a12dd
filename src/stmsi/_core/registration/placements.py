"""Placements of one tissue on another, and small changes of them that a minimiser can follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stmsi._core.registration.landmarks import apply_affine

MIRROR = np.diag([-1.0, 1.0])


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a transformation, shape (3, 3)."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


@dataclass(frozen=True)
class Freedom:
    """How far a section may be stretched.

    Standard deviations of the prior on the logarithms of the size and of the stretch, and the sizes to start from.
    """

    scale: float = 0.03
    stretch: float = 0.03
    scales: tuple[float, ...] = (1.0,)


KNOWN = Freedom()
FREE = Freedom(0.5, 0.05, (0.7, 0.8, 0.9, 1.0, 1.12, 1.27))
SERIAL = Freedom(0.1, 0.1, (0.9, 1.0, 1.1))


@dataclass(frozen=True)
class Placement:
    """One way to lay the MSI tissue onto the spots: matrix MSI -> ST and soft IoU in the ST frame."""

    matrix: NDArray[np.float64]
    score: float

    @property
    def mirrored(self) -> bool:
        """Whether it turns the section over."""
        return bool(np.linalg.det(self.matrix[:2, :2]) < 0)

    @property
    def scale(self) -> float:
        """Square root of the change of area."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    @property
    def rotation(self) -> float:
        """Degrees, of the matrix after undoing the mirror in x."""
        u, _, vt = np.linalg.svd(self.matrix[:2, :2] @ (MIRROR if self.mirrored else np.eye(2)))
        turn = u @ vt
        return float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))


def sample_images(
    images: NDArray[np.float64], at: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bilinear values (n, m) of images (n, rows, cols) at places (col, row), and derivatives by them (n, m, 2).

    Places outside take the value of the nearest border and no derivative.
    """
    limit = np.array(images.shape[:0:-1]) - 1.001
    inside = np.clip(at, 0, limit)
    free = inside == at
    corner = inside.astype(np.int64)
    fx, fy = (inside - corner).T
    flat = images.reshape(len(images), -1)
    base = corner[:, 1] * images.shape[2] + corner[:, 0]
    a, b = flat[:, base], flat[:, base + 1]
    c, d = flat[:, base + images.shape[2]], flat[:, base + images.shape[2] + 1]
    value = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    slope = np.stack([(b - a) * (1 - fy) + (d - c) * fy, (c - a) * (1 - fx) + (d - b) * fx], axis=-1)
    return value, slope * free


@dataclass(frozen=True)
class Adjustment:
    """A small change of a start, as six numbers: turn, log scale, two of stretch, shift over the radius."""

    start: NDArray[np.float64]  # ST -> MSI
    centre: NDArray[np.float64]
    radius: float

    def matrix(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """ST -> MSI."""
        out = np.eye(3)
        out[:2, :2] = _linear(p)
        out[:2, 2] = self.centre - out[:2, :2] @ self.centre + p[4:] * self.radius
        return np.asarray(self.start @ out)

    def chain(self, p: NDArray[np.float64], xy: NDArray[np.float64], slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of derivatives by position in the MSI frame, shape (n, 2), turned into those by the six numbers."""
        g = slope @ self.start[:2, :2]
        u = xy - self.centre
        moment = g.T @ u  # sum of g_k u_l
        by = [float((moment * d).sum()) for d in _linear_derivatives(p)]
        return np.array([*by, *(g.sum(axis=0) * self.radius)])


def _linear(p: NDArray[np.float64]) -> NDArray[np.float64]:
    c, s = np.cos(p[0]), np.sin(p[0])
    return np.exp(p[1]) * np.array([[c, -s], [s, c]]) @ np.array([[1 + p[2], p[3]], [p[3], 1 - p[2]]])


def _linear_derivatives(p: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    c, s = np.cos(p[0]), np.sin(p[0])
    turn, by_turn = np.array([[c, -s], [s, c]]), np.array([[-s, -c], [c, -s]])
    stretch = np.array([[1 + p[2], p[3]], [p[3], 1 - p[2]]])
    size = np.exp(p[1])
    return [
        size * by_turn @ stretch,
        size * turn @ stretch,
        size * turn @ np.diag([1.0, -1.0]),
        size * turn @ np.array([[0.0, 1.0], [1.0, 0.0]]),
    ]


def same_place(a: Placement, b: Placement, xy: NDArray[np.float64], pitch: float) -> bool:
    """Whether two placements put the pixels at about the same places: the median differs by less than three pitches."""
    distance = np.hypot(*(apply_affine(a.matrix, xy) - apply_affine(b.matrix, xy)).T)
    return a.mirrored == b.mirrored and bool(np.median(distance) < 3 * pitch)

"""Placements of one tissue on another, and small changes of them that a minimiser can follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.warps import Floats, homogeneous

MIRROR = np.diag([-1.0, 1.0])


def inverse(matrix: Floats) -> Floats:
    """Of a transformation, shape (3, 3)."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def turn(angle: float) -> Floats:
    """Matrix of a rotation (radians), shape (2, 2)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


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

    matrix: Floats
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
        rotation = u @ vt
        return float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])))


def sample_images(images: Floats, at: Floats) -> tuple[Floats, Floats]:
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

    start: Floats  # ST -> MSI
    centre: Floats
    radius: float

    @classmethod
    def about(cls, start: Floats, xy: Floats) -> Adjustment:
        """Changes about the middle of points in the ST frame."""
        centre = xy.mean(axis=0)
        return cls(start, centre, float(np.hypot(*(xy - centre).T).mean()))

    def matrix(self, p: Floats) -> Floats:
        """ST -> MSI."""
        linear = np.exp(p[1]) * turn(p[0]) @ _stretch(p)
        return self.start @ homogeneous(linear, self.centre - linear @ self.centre + p[4:] * self.radius)

    def chain(self, p: Floats, xy: Floats, slope: Floats) -> Floats:
        """Sum of derivatives by position in the MSI frame, shape (n, 2), turned into those by the six numbers."""
        g = slope @ self.start[:2, :2]
        u = xy - self.centre
        moment = g.T @ u  # sum of g_k u_l
        c, s, size = np.cos(p[0]), np.sin(p[0]), np.exp(p[1])
        by_turn, turned = np.array([[-s, -c], [c, -s]]), size * turn(p[0])
        derivatives = (
            size * by_turn @ _stretch(p), turned @ _stretch(p),
            turned @ np.diag([1.0, -1.0]), turned @ np.array([[0.0, 1.0], [1.0, 0.0]]),
        )  # fmt: skip
        by = [float((moment * d).sum()) for d in derivatives]
        return np.array([*by, *(g.sum(axis=0) * self.radius)])

    def best(
        self,
        score: Callable[[Floats], tuple[float, Floats]],
        xy: Floats,
        start: Floats,
        freedom: Freedom,
        *,
        prior: float,
        affine: bool = True,
        **options: float,
    ) -> Floats:
        """Six numbers near `start` with the best score, less a prior; without `affine` the stretch stays.

        `score` takes a matrix ST -> MSI and returns its score and the derivatives by the MSI positions of the points `xy`.
        """
        free = np.array([True, True, affine, affine, True, True])
        spread = np.array([np.inf, freedom.scale, freedom.stretch, freedom.stretch, np.inf, np.inf])

        def cost(q: Floats) -> tuple[float, Floats]:
            p = start.copy()
            p[free] = q
            value, by_position = score(self.matrix(p))
            gradient = self.chain(p, xy, by_position)
            return 0.5 * prior * float(((p / spread) ** 2).sum()) - value, (prior * p / spread**2 - gradient)[free]

        result = start.copy()
        result[free] = minimize(cost, start[free], jac=True, method="L-BFGS-B", options=options).x
        return result


def _stretch(p: Floats) -> Floats:
    return np.array([[1 + p[2], p[3]], [p[3], 1 - p[2]]])


def same_place(a: Placement, b: Placement, xy: Floats, pitch: float) -> bool:
    """Whether two placements put the pixels at about the same places: the median differs by less than three pitches."""
    distance = np.hypot(*(apply_affine(a.matrix, xy) - apply_affine(b.matrix, xy)).T)
    return a.mirrored == b.mirrored and bool(np.median(distance) < 3 * pitch)


@dataclass(frozen=True)
class Reading:
    """Another way to read the positions of one side: as ``linear @ xy + shift``, with axes swapped or turned round."""

    side: Literal["MSI", "ST"]
    linear: Floats
    shift: Floats

    def applied(self, matrix: Floats) -> Floats:
        """The alignment MSI -> ST that follows where one was made from positions as they are."""
        own = homogeneous(self.linear, self.shift)
        return matrix @ inverse(own) if self.side == "MSI" else own @ matrix

    def __str__(self) -> str:
        """What x and y become, as text: ``(x, 2400 - y)``."""
        return f"({', '.join(_axis(row, shift) for row, shift in zip(self.linear, self.shift, strict=True))})"


def readings(side: Literal["MSI", "ST"], xy: Floats) -> list[Reading]:
    """The seven other ways to lay a picture on its own frame: mirrored, transposed, turned; about the box of points."""
    middle = (xy.min(axis=0) + xy.max(axis=0)) / 2
    out = []
    for swap in (np.eye(2), np.eye(2)[::-1]):
        for signs in ((1, -1), (-1, 1), (-1, -1), (1, 1)):
            linear = np.diag(signs) @ swap
            if not np.array_equal(linear, np.eye(2)):
                # a picture with swapped axes has its middle at the swapped place: positions are read back from there
                out.append(Reading(side, linear, middle - linear @ (swap @ middle)))
    return out


def _axis(row: Floats, shift: float) -> str:
    name, sign = "xy"[int(np.abs(row).argmax())], row.sum()
    if sign > 0:
        return name if abs(shift) < 1e-6 else f"{name} {'+' if shift > 0 else '-'} {abs(shift):.4g}"
    return f"{shift:.4g} - {name}"

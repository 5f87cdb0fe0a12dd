"""Maps between two frames that are more than affine, their inverse, and whether they fold the tissue.

scikit-image's thin-plate spline passes through every landmark; this one (SciPy's) can smooth, and can be written down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

Floats: TypeAlias = NDArray[np.float64]
PointMap: TypeAlias = Callable[[Floats], Floats]
_N_NEWTON = 20


class Step(ABC):
    """One part of a map of points, shape (n, 2): a dataclass that can be written down in plain arrays."""

    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, xy: Floats) -> Floats:
        """Map points."""

    def state(self) -> dict[str, Any]:
        """What :func:`read_steps` makes the step from."""
        return {"kind": self.kind} | {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Homography(Step):
    """An affine or projective map."""

    kind = "matrix"
    matrix: Floats

    def __call__(self, xy: Floats) -> Floats:
        """Map points."""
        out = xy @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        weight = xy @ self.matrix[2, :2] + self.matrix[2, 2]
        return out / weight[:, None]


@dataclass(frozen=True)
class ThinPlate(Step):
    r"""A thin-plate spline: an affine map and the least bending that brings sources near their targets.

    It minimises :math:`\sum_i |f(x_i) - y_i|^2 + \lambda J(f)` with the bending energy :math:`J` (Bookstein 1989,
    https://doi.org/10.1109/34.24792) in coordinates of unit spread; smoothing :math:`\lambda` 0 passes through every
    target.
    """

    kind = "thin_plate"
    source: Floats
    target: Floats
    smoothing: float = 0.0

    @cached_property
    def _spline(self) -> tuple[Floats, float, RBFInterpolator]:
        centre = self.source.mean(axis=0)
        spread = float(np.sqrt(((self.source - centre) ** 2).mean()))
        scaled = (self.source - centre) / spread
        return centre, spread, RBFInterpolator(scaled, self.target, smoothing=self.smoothing, degree=1)

    def __call__(self, xy: Floats) -> Floats:
        """Map points."""
        centre, spread, spline = self._spline
        return np.asarray(spline((xy - centre) / spread), dtype=np.float64)


@dataclass(frozen=True)
class Field(Step):
    """A displacement (rows, cols, 2) on a grid from `origin` (x, y), after an affine map; constant beyond its border."""

    kind = "field"
    matrix: Floats
    origin: Floats
    spacing: float
    displacement: Floats

    def __call__(self, xy: Floats) -> Floats:
        """Map points."""
        where = ((xy - self.origin) / self.spacing).T[::-1]
        moved = [map_coordinates(self.displacement[..., k], where, order=3, mode="nearest") for k in range(2)]
        return xy @ self.matrix[:2, :2].T + self.matrix[:2, 2] + np.column_stack(moved)


_KINDS: dict[str, Any] = {step.kind: step for step in (Homography, ThinPlate, Field)}


def apply_steps(steps: Sequence[Step], xy: Floats) -> Floats:
    """Map points through one step after another."""
    out = np.asarray(xy, dtype=np.float64)
    for step in steps:
        out = step(out)
    return out


def write_steps(steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Steps as plain arrays, numbers and text, which every store takes."""
    return {f"step_{i + 1}": step.state() for i, step in enumerate(steps)}


def read_steps(state: Mapping[str, Mapping[str, Any]]) -> tuple[Step, ...]:
    """Steps as :func:`write_steps` wrote them."""
    steps = []
    for i in range(len(state)):
        own = dict(state[f"step_{i + 1}"])
        kind = _KINDS[str(own.pop("kind"))]
        plain = {k: float(v) if np.ndim(v) == 0 else np.asarray(v, dtype=np.float64) for k, v in own.items()}
        steps.append(kind(**plain))
    return tuple(steps)


def nearest_affine(moved: Floats, xy: Floats) -> Floats:
    """Affine matrix, shape (3, 3), that maps points closest (least squares) to where they were moved."""
    # centred, so that far-off coordinates cost no precision
    centre = xy.mean(axis=0)
    design = np.column_stack([xy - centre, np.ones(len(xy))])
    solution = np.linalg.lstsq(design, moved, rcond=None)[0].T
    return homogeneous(solution[:, :2], solution[:, 2] - solution[:, :2] @ centre)


def homogeneous(linear: Floats, shift: Floats) -> Floats:
    """Affine matrix, shape (3, 3)."""
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, shift
    return out


def jacobian(f: PointMap, xy: Floats, step: float = 1.0) -> Floats:
    """Derivatives of a map at points by central differences, shape (n, 2, 2): ``[:, i, j]`` is d f_i / d x_j."""
    out = np.empty((len(xy), 2, 2))
    for j in range(2):
        shift = np.zeros(2)
        shift[j] = step
        out[:, :, j] = (f(xy + shift) - f(xy - shift)) / (2 * step)
    return out


def folded(f: PointMap, xy: Floats, matrix: Floats, step: float = 1.0) -> NDArray[np.bool_]:
    """At which points a map folds: it turns the tissue over where its affine part does not, or the reverse."""
    determinant = np.linalg.det(jacobian(f, xy, step)) / np.linalg.det(matrix[:2, :2])
    return ~(determinant > 0)


def inverse_field(f: PointMap, xy: Floats, matrix: Floats, spacing: float) -> Field:
    """The inverse of a map over the place that points are mapped to, on a grid, by Newton's method.

    `xy` covers the tissue; `matrix` is the affine part of the map, from which the search starts.
    """
    moved = f(xy)
    low, high = moved.min(axis=0) - 2 * spacing, moved.max(axis=0) + 2 * spacing
    cols, rows = np.ceil((high - low) / spacing).astype(int) + 1
    y, x = np.indices((rows, cols))
    target = np.column_stack([x.ravel(), y.ravel()]) * spacing + low
    back = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    start = target @ back[:2, :2].T + back[:2, 2]
    point = start.copy()
    size = spacing * np.sqrt(abs(np.linalg.det(back[:2, :2])))
    for _ in range(_N_NEWTON):
        error = f(point) - target
        if np.abs(error).max() < 1e-6 * spacing:
            break
        slope = jacobian(f, point, 1e-3 * size)
        # where the map folds there is no way back: the affine part is followed instead
        bad = ~(np.linalg.det(slope) / np.linalg.det(matrix[:2, :2]) > 0.05)
        slope[bad] = matrix[:2, :2]
        change = np.linalg.solve(slope, error[..., None])[..., 0]
        length = np.hypot(*change.T)[:, None]
        point -= change * np.minimum(1.0, 4 * size / np.maximum(length, 1e-300))
    return Field(back, low, float(spacing), (point - start).reshape(rows, cols, 2))

"""The alignment of one section, however it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.displacement import estimate_flow
from stmsi._core.registration.landmark_consensus import RobustMethod
from stmsi._core.registration.landmarks import Fit, TransformModel, apply_affine, fit_landmarks, perturbations
from stmsi._core.registration.warps import (
    Homography,
    Step,
    apply_steps,
    folded,
    inverse_field,
    nearest_affine,
    write_steps,
)
from stmsi._data.checks import listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.pp._alignment.landmark_input import Pair
    from stmsi.pp._alignment.section_geometry import Geometry

MAX_FOLDS = 0.01
"""Share of pixels that may fold; beyond, the alignment is refused."""
REFINE_PITCHES = 5.0
"""Spacing of the control points of a displacement, in spot pitches."""
_FAR = 1.0
"""Landmarks all lie elsewhere when none is within the section's box, widened by this share of its size on every side."""

Sampler = Callable[[int, np.random.Generator], "NDArray[np.float64]"]


@dataclass(frozen=True)
class SectionFit:
    """What a method of alignment returns for one section.

    Attributes
    ----------
    matrix
        From the MSI to the ST frame, shape (3, 3); of an alignment that is more than affine, its affine part.
    fields
        What else goes into the record of the section: plain values and arrays, under their keys.
    steps
        The whole map from the MSI to the ST frame, where it is more than `matrix`; else empty.
    sample
        Draws matrices by which the alignment may be off (n, generator); `None` where its error is not known.
    """

    matrix: NDArray[np.float64]
    fields: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    sample: Sampler | None = None

    def __call__(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the MSI frame in the ST frame."""
        return apply_steps(self.steps, xy) if self.steps else apply_affine(self.matrix, xy)

    @property
    def scale(self) -> float:
        """Of the affine part."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))


Method = Callable[[np.random.Generator], SectionFit]
"""Aligns one section; it holds the arrays that it needs, so that it can run in another process."""


@dataclass(frozen=True)
class LandmarkFit:
    """Fits landmarks, of one leg (MSI to ST) or two (MSI to its histology, its histology to ST)."""

    legs: tuple[Pair, ...]
    model: TransformModel
    robust: RobustMethod | None
    max_error: float
    smoothing: float | None

    def __call__(self, rng: np.random.Generator) -> SectionFit:
        """Fit."""
        fits: list[Fit] = []
        for number, (moving, fixed) in enumerate(self.legs):
            try:
                # the limit is in micrometres of the ST frame: of the first of two legs it is not known yet
                limit = self.max_error if number == len(self.legs) - 1 else self._limit(number)
                fits.append(
                    fit_landmarks(
                        moving, fixed, self.model,
                        robust=self.robust, max_error=limit, smoothing=self.smoothing, rng=rng,
                    )
                )  # fmt: skip
            except ValueError as error:
                if len(self.legs) == 1:
                    raise
                leg = ("MSI to its histology", "histology to ST")[number]
                msg = f"{leg}: {error}"
                raise ValueError(msg) from error
        matrix = np.eye(3)
        for fit in fits:
            matrix = fit.matrix @ matrix
        steps: tuple[Step, ...] = ()
        if any(fit.steps for fit in fits):
            steps = tuple(fit.map for fit in fits)
        moved, target = self._in_st_frame(fits)
        size = [float(np.sqrt(abs(np.linalg.det(self._rest(fits, i)[:2, :2])))) for i in range(len(fits))]
        count = np.cumsum([0, *(len(fit.residual) for fit in fits)])
        fields: dict[str, Any] = {
            "model": self.model,
            "n_landmarks": int(count[-1]),
            "residual_um": np.concatenate([fit.residual * s for fit, s in zip(fits, size, strict=True)]),
            "tre_um": np.concatenate([fit.tre * s for fit, s in zip(fits, size, strict=True)]),
            "outliers": np.concatenate([fit.outliers + n for fit, n in zip(fits, count[:-1], strict=True)]),
            "landmarks_moved": moved,
            "landmarks_st": target,
        }
        if len(fits) > 1:
            fields["leg"] = np.repeat(np.arange(1, len(fits) + 1), [len(fit.residual) for fit in fits])
        if self.model == "thin_plate":
            fields["smoothing"] = np.array([fit.smoothing for fit in fits])
        known = all(np.isfinite(fit.sigma) for fit in fits)
        sampler = _LandmarkSampler(tuple(fits), self.legs, self.model) if known else None
        return SectionFit(matrix, fields, steps, sampler)

    def _limit(self, number: int) -> float:
        """The limit of RANSAC in the unit that the first leg maps to, from the spreads of the second leg's landmarks."""
        moving, fixed = self.legs[number + 1]
        spread = [float(np.sqrt(np.var(np.asarray(p, dtype=float), axis=0).sum())) for p in (moving, fixed)]
        return self.max_error * spread[0] / spread[1] if spread[1] > 0 else self.max_error

    def _in_st_frame(self, fits: list[Fit]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the alignment puts the landmarks, and where they belong."""
        moved, target = [], []
        for i, (moving, fixed) in enumerate(self.legs):
            later = [fit.map for fit in fits[i + 1 :]]
            moved.append(apply_steps([fits[i].map, *later], moving))
            target.append(apply_steps(later, fixed))
        return np.vstack(moved), np.vstack(target)

    @staticmethod
    def _rest(fits: list[Fit], number: int) -> NDArray[np.float64]:
        out = np.eye(3)
        for fit in fits[number + 1 :]:
            out = fit.matrix @ out
        return out


@dataclass(frozen=True)
class _LandmarkSampler:
    """Parametric bootstrap of the landmarks of every leg, brought into the ST frame."""

    fits: tuple[Fit, ...]
    legs: tuple[Pair, ...]
    model: TransformModel

    def __call__(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        out = np.broadcast_to(np.eye(3), (n, 3, 3))
        for i, (fit, (moving, _)) in enumerate(zip(self.fits, self.legs, strict=True)):
            kept = np.setdiff1d(np.arange(len(moving)), fit.outliers)
            own = perturbations(fit.map(np.asarray(moving)[kept]), fit.sigma, n, rng, self.model)
            rest = LandmarkFit._rest(list(self.fits), i)
            out = (rest @ own @ np.linalg.inv(rest)) @ out
        return np.asarray(out)


@dataclass(frozen=True)
class GivenFit:
    """Takes a transformation that is known."""

    transformation: Any

    def __call__(self, rng: np.random.Generator) -> SectionFit:  # noqa: ARG002
        """Check it."""
        given = self.transformation
        if hasattr(given, "to_affine_matrix"):
            matrix = given.to_affine_matrix(("x", "y"), ("x", "y"))
        else:
            matrix = np.asarray(given, dtype=float)
            if matrix.shape == (2, 3):
                matrix = np.vstack([matrix, [0, 0, 1]])
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
            msg = f"A transformation is a finite affine matrix of shape (3, 3) or (2, 3), found shape {matrix.shape}."
            raise ValueError(msg)
        if abs(float(np.linalg.det(matrix[:2, :2]))) < 1e-12:
            msg = "The transformation is singular: it maps the section onto a line."
            raise ValueError(msg)
        none = np.empty(0)
        return SectionFit(matrix, {"model": "given", "n_landmarks": 0, "residual_um": none, "tre_um": none})


@dataclass(frozen=True)
class Task:
    """All that it takes to align one section."""

    name: str
    method: str
    fit: Method
    geometry: Geometry
    max_scale: float
    n_perturb: int
    perturb_sd: float | None
    components: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    """Of the spots and pixels, where a displacement is to be found from them."""
    refine_length: float | None


@dataclass(frozen=True)
class Result:
    """An alignment that passed all checks, and its record."""

    fit: SectionFit
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What the user should be warned of."""


def run(task: Task, rng: np.random.Generator) -> Result:
    """Align a section and check it.

    Raises
    ------
    ValueError
        With the section's name: whatever makes the alignment impossible or wrong.
    """
    try:
        fit = task.fit(rng)
        _check_scale(fit, task)
        _check_overlap(fit, task.geometry)
        if task.components is not None:
            fit = _refine(fit, task)
        return _record(fit, task, rng)
    except ValueError as error:
        msg = f"Section {task.name!r}: {error}"
        raise ValueError(msg) from error


def check_landmarks_place(pair: Pair, geometry: Geometry) -> None:
    """Raise where no landmark lies anywhere near its section."""
    sides = ((pair[0], geometry.pixels, "MSI"), (pair[1], np.vstack([geometry.spots, geometry.others]), "ST"))
    for xy, section, side in sides:
        xy = np.asarray(xy, dtype=float)
        if len(section) == 0 or xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all() or len(xy) == 0:
            continue
        low, high = section.min(axis=0), section.max(axis=0)
        size = (high - low).max()
        near = ((xy > low - _FAR * size) & (xy < high + _FAR * size)).all(axis=1)
        if not near.any():
            msg = (
                f"no {side} landmark lies near the section: they span {_box(xy)}, the section {_box(section)} (um). Are "
                "they in another frame or unit? Pairs are (in the MSI frame, in the ST frame); landmark_units= converts."
            )
            raise ValueError(msg)


def _box(xy: NDArray[np.float64]) -> str:
    (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
    return f"x {left:.4g} to {right:.4g}, y {top:.4g} to {bottom:.4g}"


def _check_scale(fit: SectionFit, task: Task) -> None:
    if not 1 / task.max_scale < fit.scale < task.max_scale:
        msg = (
            f"the transformation scales by {fit.scale:.4g}, but both frames are in micrometres. Are the landmarks (or the "
            "pixel size) in another unit, pixels for example? Convert them (landmark_units=), or raise max_scale."
        )
        raise ValueError(msg)


def _check_overlap(fit: SectionFit, geometry: Geometry) -> None:
    from scipy.spatial import cKDTree

    if len(geometry.spots) == 0:
        return
    moved = fit(geometry.pixels)
    reach = geometry.pixel_size * fit.scale / np.sqrt(2) + geometry.spot_radius
    if not (cKDTree(moved).query(geometry.spots)[0] <= reach).any():
        msg = (
            f"after the alignment no pixel lies on any spot: pixels span {_box(moved)}, spots {_box(geometry.spots)} (um). "
            "Check the frames of the landmarks or the direction of the transformation (MSI to ST)."
        )
        raise ValueError(msg)


def _refine(fit: SectionFit, task: Task) -> SectionFit:
    """Add a displacement from intensities, where one makes the agreement better."""
    assert task.components is not None  # the caller's condition
    st, msi = task.components
    g = task.geometry
    if len(g.spots) == 0:
        msg = 'refine="intensity" needs spots in the section; there are none.'
        raise ValueError(msg)
    moved = fit(g.pixels)
    known = np.isfinite(msi).all(axis=1)
    length = REFINE_PITCHES * g.pitch if task.refine_length is None else task.refine_length
    flow = estimate_flow(g.spots, st, moved[known], msi[known], pitch=g.pitch, length=length)
    fields = dict(fit.fields) | {"refine": "none", "refine_information": np.array([flow.before, flow.after])}
    if flow.field is None:
        return SectionFit(fit.matrix, fields, fit.steps, fit.sample)
    steps = (*(fit.steps or (Homography(fit.matrix),)), flow.field)
    whole = SectionFit(fit.matrix, fields, steps, fit.sample)
    if folded(whole, g.pixels, fit.matrix, 0.25 * g.pixel_size).any():
        # a displacement that folds is no tissue's: the start is better
        return SectionFit(fit.matrix, fields, fit.steps, fit.sample)
    return SectionFit(nearest_affine(whole(g.pixels), g.pixels), fields | {"refine": "intensity"}, steps, fit.sample)


def _record(fit: SectionFit, task: Task, rng: np.random.Generator) -> Result:
    g = task.geometry
    notes = []
    record: dict[str, Any] = {
        "matrix": fit.matrix,
        "method": task.method,
        "mirrored": bool(np.linalg.det(fit.matrix[:2, :2]) < 0),
        "scale": fit.scale,
        **fit.fields,
    }
    if fit.steps:
        folds = float(folded(fit, g.pixels, fit.matrix, 0.25 * g.pixel_size).mean())
        if folds > MAX_FOLDS:
            msg = (
                f"the alignment folds {folds:.1%} of the pixels over others. Check the landmarks (robust='lmeds' finds "
                "wrong ones), raise smoothing, or use a stiffer model ('affine')."
            )
            raise ValueError(msg)
        if folds > 0:
            notes.append(f"the alignment folds {folds:.2%} of the pixels over others; raise smoothing, or check there.")
        inverse = inverse_field(fit, g.pixels, fit.matrix, 2 * g.pixel_size * fit.scale)
        record |= {"folds": folds, "warp": write_steps(fit.steps), "inverse": inverse.state()}
    if task.n_perturb:
        record["perturbations"] = _perturbations(fit, task, rng)
    outliers = fit.fields.get("outliers", ())
    if len(outliers):
        rows = listing(int(i) for i in outliers)
        notes.append(f"landmarks {rows} (rows from 0) disagree with the others and are left out.")
    if fit.fields.get("ambiguous"):
        notes.append(f"the alignment is ambiguous. {fit.fields['message']}")
    return Result(fit, record, tuple(notes))


def _perturbations(fit: SectionFit, task: Task, rng: np.random.Generator) -> NDArray[np.float64]:
    if task.perturb_sd is not None:
        low, high = (f(fit(task.geometry.pixels), axis=0) for f in (np.min, np.max))
        corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
        # a similarity has four parameters, so that at four points its root mean square is that of the noise
        return perturbations(corners, task.perturb_sd, task.n_perturb, rng)
    if fit.sample is None:
        msg = (
            "n_perturb needs to know the error, and there are no landmarks to spare (or none) to estimate it from; "
            "pass perturb_sd= in micrometres."
        )
        raise ValueError(msg)
    return fit.sample(task.n_perturb, rng)

"""The alignment of one section, however it was found: fit, checks and record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
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
_BESIDE = 0.2
"""A landmark lies outside its section beyond the box, widened by this share of its size."""
WITHOUT_LANDMARKS = {"n_landmarks": 0, "residual_um": np.empty(0), "tre_um": np.empty(0)}


@dataclass(frozen=True)
class SectionFit:
    """What a method of alignment returns for one section."""

    matrix: NDArray[np.float64]  # from the MSI to the ST frame, (3, 3); the affine part where there are steps
    fields: Mapping[str, Any] = field(default_factory=dict)  # what else goes into the record of the section
    steps: tuple[Step, ...] = ()  # the whole map, where it is more than `matrix`
    sample: Callable[[int, np.random.Generator], NDArray[np.float64]] | None = None
    """Draws matrices by which the alignment may be off; `None` where its error is not known."""

    def __call__(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the MSI frame in the ST frame."""
        return apply_steps(self.steps, xy) if self.steps else apply_affine(self.matrix, xy)

    @property
    def scale(self) -> float:
        """Of the affine part."""
        return _scale(self.matrix)


Method = Callable[[np.random.Generator], SectionFit]
"""Aligns one section; it holds the arrays that it needs, so that it can run in another process."""


@dataclass(frozen=True)
class Opinion:
    """Why an alignment is doubtful (empty: nothing speaks against it), and whether genes and ions speak for it."""

    doubt: str
    supported: bool


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
    components: tuple[NDArray[np.float64], NDArray[np.float64]] | None  # of spots and pixels, for a displacement
    refine_length: float | None
    witness: Callable[[NDArray[np.float64], np.random.Generator], Opinion] | None = None
    """What the data say about a matrix MSI -> ST; `None` where they cannot tell."""


@dataclass(frozen=True)
class Result:
    """An alignment that passed all checks, its record, and what the user should be warned of."""

    fit: SectionFit
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


def run(task: Task, rng: np.random.Generator) -> Result:
    """Align a section and check it; errors name the section."""
    try:
        fit = task.fit(rng)
        _check_scale(fit, task)
        _check_overlap(fit, task.geometry)
        fit = _weighed(fit, task, rng)
        if task.components is not None:
            fit = _refine(fit, task, *task.components)
        return _record(fit, task, rng)
    except ValueError as error:
        msg = f"Section {task.name!r}: {error}"
        raise ValueError(msg) from error


def fit_given(transformation: Any, rng: np.random.Generator) -> SectionFit:  # noqa: ARG001
    """Take a transformation that is known."""
    if hasattr(transformation, "to_affine_matrix"):
        matrix = transformation.to_affine_matrix(("x", "y"), ("x", "y"))
    else:
        matrix = np.asarray(transformation, dtype=float)
        if matrix.shape == (2, 3):
            matrix = np.vstack([matrix, [0, 0, 1]])
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
        msg = f"A transformation is a finite affine matrix of shape (3, 3) or (2, 3), found shape {matrix.shape}."
        raise ValueError(msg)
    if abs(float(np.linalg.det(matrix[:2, :2]))) < 1e-12:
        msg = "The transformation is singular: it maps the section onto a line."
        raise ValueError(msg)
    return SectionFit(matrix, WITHOUT_LANDMARKS | {"model": "given"})


def fit_legs(
    legs: tuple[Pair, ...],
    model: TransformModel,
    robust: RobustMethod | None,
    max_error: float,
    smoothing: float | None,
    rng: np.random.Generator,
) -> SectionFit:
    """Fit landmarks of one leg (MSI to ST) or two (MSI to its histology, its histology to ST)."""
    fits: list[Fit] = []
    for number, (moving, fixed) in enumerate(legs):
        try:
            # the limit is in micrometres of the ST frame: of the first of two legs it is not known yet
            limit = max_error if number == len(legs) - 1 else _before(legs[number + 1], max_error)
            options: dict[str, Any] = {"robust": robust, "max_error": limit, "smoothing": smoothing, "rng": rng}
            fits.append(fit_landmarks(moving, fixed, model, **options))
        except ValueError as error:
            if len(legs) == 1:
                raise
            msg = f"{('MSI to its histology', 'histology to ST')[number]}: {error}"
            raise ValueError(msg) from error
    later = [[fit.map for fit in fits[i + 1 :]] for i in range(len(fits))]
    size = [_scale(_chained(fits[i + 1 :])) for i in range(len(fits))]
    count = np.cumsum([0, *(len(fit.residual) for fit in fits)])
    fields: dict[str, Any] = {
        "model": model,
        "n_landmarks": int(count[-1]),
        "residual_um": np.concatenate([fit.residual * s for fit, s in zip(fits, size, strict=True)]),
        "tre_um": np.concatenate([fit.tre * s for fit, s in zip(fits, size, strict=True)]),
        "outliers": np.concatenate([fit.outliers + n for fit, n in zip(fits, count[:-1], strict=True)]),
        # where the alignment puts the landmarks, and where they belong
        "landmarks_moved": np.vstack([apply_steps([fits[i].map, *later[i]], legs[i][0]) for i in range(len(fits))]),
        "landmarks_st": np.vstack([apply_steps(later[i], legs[i][1]) for i in range(len(fits))]),
    }
    if len(fits) > 1:
        fields["leg"] = np.repeat(np.arange(1, len(fits) + 1), np.diff(count))
    if model == "thin_plate":
        fields["smoothing"] = np.array([fit.smoothing for fit in fits])
    steps = tuple(fit.map for fit in fits) if any(fit.steps for fit in fits) else ()
    sample = partial(_bootstrap, fits, legs, model) if all(np.isfinite(fit.sigma) for fit in fits) else None
    return SectionFit(_chained(fits), fields, steps, sample)


def _before(leg: Pair, length: float) -> float:
    """A length after a leg in the unit before it, by the spreads of its landmarks."""
    before, after = map(spread, leg)
    return length * before / after if after > 0 else length


def spread(xy: NDArray[np.float64]) -> float:
    """Root mean square distance of points from their centre."""
    return float(np.sqrt(np.var(np.asarray(xy, dtype=float), axis=0).sum()))


def _chained(fits: list[Fit]) -> NDArray[np.float64]:
    """The affine parts of fits, one after the other."""
    out = np.eye(3)
    for fit in fits:
        out = fit.matrix @ out
    return out


def _bootstrap(
    fits: list[Fit], legs: tuple[Pair, ...], model: TransformModel, n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Parametric bootstrap of the landmarks of every leg, brought into the ST frame."""
    out = np.broadcast_to(np.eye(3), (n, 3, 3))
    for i, (fit, (moving, _)) in enumerate(zip(fits, legs, strict=True)):
        kept = np.setdiff1d(np.arange(len(moving)), fit.outliers)
        own = perturbations(fit.map(np.asarray(moving)[kept]), fit.sigma, n, rng, model)
        rest = _chained(fits[i + 1 :])
        out = (rest @ own @ np.linalg.inv(rest)) @ out
    return np.asarray(out)


def _scale(matrix: NDArray[np.float64]) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def check_landmarks_place(pair: Pair, geometry: Geometry) -> None:
    """Raise where no landmark lies anywhere near its section, or most lie outside it."""
    sides = ((pair[0], geometry.pixels, "MSI"), (pair[1], np.vstack([geometry.spots, geometry.others]), "ST"))
    for xy, section, side in sides:
        xy = np.asarray(xy, dtype=float)
        if len(section) == 0 or xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all() or len(xy) == 0:
            continue
        near, within = near_and_within(xy, section)
        if not near.any() or within.mean() < 0.5:
            found = (
                f"no {side} landmark lies"
                if not near.any()
                else f"{(~within).sum()} of {len(xy)} {side} landmarks do not lie"
            )
            msg = (
                f"{found} near the section: they span {_box(xy)}, the section {_box(section)} (um). Are "
                "they in another frame or unit? Pairs are (in the MSI frame, in the ST frame); landmark_units= converts."
            )
            raise ValueError(msg)


def near_and_within(
    xy: NDArray[np.float64], section: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of landmarks, which lie anywhere near the points of a section, and which in it."""
    low, high = section.min(axis=0), section.max(axis=0)
    size = (high - low).max()
    near, within = (((xy > low - m * size) & (xy < high + m * size)).all(axis=1) for m in (_FAR, _BESIDE))
    return near, within


def _box(xy: NDArray[np.float64]) -> str:
    (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
    return f"x {left:.4g} to {right:.4g}, y {top:.4g} to {bottom:.4g}"


def _check_scale(fit: SectionFit, task: Task) -> None:
    if not 1 / task.max_scale < fit.scale < task.max_scale:
        msg = (
            f"the transformation scales by {fit.scale:.4g}, but both frames are in micrometres. Are the landmarks (or the "
            "pixel size) in another unit, pixels for example? Convert them (landmark_units=), or raise max_scale. Pixels stated "
            f"as {task.geometry.pixel_size:.4g} um would be {task.geometry.pixel_size * fit.scale:.4g} um: if they are, read the "
            "MSI with that pixel size."
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


def _weighed(fit: SectionFit, task: Task, rng: np.random.Generator) -> SectionFit:
    """The alignment with what the data say about it; ambiguous where they speak against it."""
    if task.witness is None:
        return fit
    # a stream of its own, so that what is drawn later does not depend on the check
    opinion = task.witness(fit.matrix, rng.spawn(1)[0])
    fields = dict(fit.fields) | {"supported": opinion.supported}
    if opinion.doubt:
        before = [fit.fields["message"]] if fit.fields.get("ambiguous") else []
        fields |= {"ambiguous": True, "message": " ".join([*before, opinion.doubt])}
    return replace(fit, fields=fields)


def _refine(fit: SectionFit, task: Task, st: NDArray[np.float64], msi: NDArray[np.float64]) -> SectionFit:
    """Add a displacement from components of spots and pixels, where it makes them agree better and folds nothing."""
    g = task.geometry
    moved = fit(g.pixels)
    known = np.isfinite(msi).all(axis=1)
    length = REFINE_PITCHES * g.pitch if task.refine_length is None else task.refine_length
    flow = estimate_flow(g.spots, st, moved[known], msi[known], pitch=g.pitch, length=length)
    fields = dict(fit.fields) | {"refine": "none", "refine_information": np.array([flow.before, flow.after])}
    if flow.field is None:
        return replace(fit, fields=fields)
    whole = replace(fit, steps=(*(fit.steps or (Homography(fit.matrix),)), flow.field))
    if folded(whole, g.pixels, fit.matrix, 0.25 * g.pixel_size).any():
        return replace(fit, fields=fields)
    matrix = nearest_affine(whole(g.pixels), g.pixels)
    return replace(whole, matrix=matrix, fields=fields | {"refine": "intensity"})


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

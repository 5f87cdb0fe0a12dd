"""Registration of two tissue masks that nothing else connects: no landmarks, no intensities.

Image registration (scikit-image) would count what lies beyond the capture frame, where ST saw nothing, as mismatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2

from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import (
    KNOWN,
    MIRROR,
    Adjustment,
    Freedom,
    Placement,
    inverse,
    same_place,
    sample_images,
    turn,
)
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster
from stmsi._core.registration.warps import Floats, homogeneous

_UNMEASURED = 0.3
"""Cost of a tissue spot beyond a side where the MSI raster stopped within the tissue, as a share of the full cost."""
_N_ANGLES = 36
_COARSE_CELLS = 48
_PER_HANDEDNESS = 6
_JUDGED = 0.85
_N_JUDGED = 4
_JUDGED_OF_PIECE = 0.85
"""Shifts of a piece with this share of the best mask score of their turn are judged."""
_WIDTHS = (3.0, 1.5, 0.75)
"""Softness of the outline from the first to the last step, in spot pitches (or pixels, where those are larger)."""
_PRIOR = 0.01
_BLOCK = 6.0
"""Side of a block of the bootstrap, in spot pitches."""
_N_DRAWS = 500
_KEEP = 0.8
"""Placements with less than this share of the best score are dropped."""


class MaskOverlap:
    r"""Soft IoU of MSI tissue and spots, at the points of the ST frame only.

    With the membership :math:`m_i` of point :math:`i` in the MSI tissue and its label :math:`t_i` it is :math:`\sum_i
    t_i m_i / \sum_i (w_i t_i + (1 - t_i) m_i)`; :math:`w_i < 1` where the MSI raster stopped within the tissue.
    """

    def __init__(self, moving: TissueRaster, fixed: TissuePoints, width: float, distance: Floats | None = None):
        tissue = moving if distance is None else replace(moving, distance=distance)
        self.moving, self.fixed = moving, fixed
        self.bounded = bool((moving.measured < 1).any())
        images = [tissue.soft(width)] + ([moving.measured] if self.bounded else [])
        self.images = np.stack(images)
        self.label = fixed.tissue.astype(float)

    def at(self, to_msi: Floats) -> float:
        """Score of a matrix ST -> MSI."""
        return self._score(to_msi)[0]

    def terms(self, to_msi: Floats) -> Floats:
        """What each point adds to the intersection and to the union, shape (points, 2)."""
        value = sample_images(self.images, self.moving.index(apply_affine(to_msi, self.fixed.xy)))[0]
        t, m = self.label, value[0]
        price = _UNMEASURED + (1 - _UNMEASURED) * value[1] if self.bounded else np.ones(len(t))
        return np.column_stack([t * m, price * t + (1 - t) * m])

    def _score(self, to_msi: Floats) -> tuple[float, Floats]:
        position = apply_affine(to_msi, self.fixed.xy)
        value, slope = sample_images(self.images, self.moving.index(position))
        slope = slope / self.moving.spacing
        t, m = self.label, value[0]
        shared = t @ m
        price = _UNMEASURED + (1 - _UNMEASURED) * value[1] if self.bounded else np.ones(len(t))
        union = price @ t + (1 - t) @ m
        by_m = (t * union - shared * (1 - t)) / union**2
        gradient = by_m[:, None] * slope[0]
        if self.bounded:
            by_price = -shared * t / union**2 * (1 - _UNMEASURED)
            gradient += by_price[:, None] * slope[1]
        return float(shared / union), gradient

    def refine(self, adjustment: Adjustment, start: Floats, freedom: Freedom, *, affine: bool) -> Floats:
        """Best adjustment near `start`, six numbers."""
        return adjustment.best(
            self._score, self.fixed.xy, start, freedom, prior=_PRIOR, affine=affine, maxiter=60, ftol=1e-7
        )


def steps(moving: TissueRaster, fixed: TissuePoints) -> list[float]:
    """Softness of the outline at each step of a refinement, micrometres."""
    unit = max(fixed.pitch, moving.pixel)
    return [w * unit for w in _WIDTHS]


@dataclass(frozen=True)
class _Turn:
    """One turn of one side of the MSI tissue: its score at every shift (an image that continues at its borders)."""

    hand: float
    linear: Floats  # ST -> MSI
    score: Floats
    low: Floats  # of the image of the ST frame
    step: float
    reach: int  # the MSI tissue spans so many cells
    centre: Floats  # of the MSI tissue

    def matrix(self, at: tuple[int, ...]) -> Floats:
        """ST -> MSI, of a shift (row, col)."""
        # a shift beyond the middle is a negative one
        shift = [b - n if b >= n - self.reach else b for b, n in zip(at, self.score.shape, strict=True)]
        # where the centre of the MSI tissue comes to lie
        place = self.low + (np.array(shift[::-1]) + self.reach // 2 + 0.5) * self.step
        return homogeneous(self.linear, self.centre - self.linear @ place)


def _turns(moving: TissueRaster, fixed: TissuePoints, freedom: Freedom) -> Iterator[list[_Turn]]:
    """All turns of each side and size, scored at every shift by Fourier transforms."""
    low = fixed.xy.min(axis=0)
    # of the smaller of both: a coarse raster must still show the shape of the smaller one
    step = max(fixed.pitch, float(np.ptp(fixed.xy[fixed.tissue], axis=0).max()) / _COARSE_CELLS)
    cell = np.floor((fixed.xy - low) / step).astype(int)
    n_fixed = cell.max(axis=0) + 1
    centre = moving.xy.mean(axis=0)
    radius = float(np.hypot(*(moving.xy - centre).T).max())
    n_moving = int(np.ceil(2 * radius * max(freedom.scales) / step)) + 3
    shape = tuple(next_fast_len(int(n) + n_moving, real=True) for n in n_fixed[::-1])
    on, off = (np.zeros(shape) for _ in range(2))
    np.add.at(on, tuple(cell[fixed.tissue].T[::-1]), 1)
    np.add.at(off, tuple(cell[~fixed.tissue].T[::-1]), 1)
    f_on, f_off = rfft2(on), rfft2(off)
    n_on = fixed.tissue.sum()
    place = np.arange(n_moving) - n_moving // 2
    offset = np.stack(np.meshgrid(place, place), axis=-1).reshape(-1, 2) * step
    soft = moving.soft(1.5 * max(step, moving.pixel))
    bounded = bool((moving.measured < 1).any()) and not moving.piece
    images = np.stack([soft, 1 - moving.measured] if bounded else [soft])
    for scale in freedom.scales:
        for hand in (np.eye(2), MIRROR):
            found = []
            for angle in np.arange(_N_ANGLES) * 2 * np.pi / _N_ANGLES:
                linear = hand @ turn(angle) / scale
                value = sample_images(images, moving.index(offset @ linear.T + centre))[0]
                rotated = [rfft2(v.reshape(n_moving, n_moving), shape).conj() for v in value]
                shared = irfft2(f_on * rotated[0], shape)
                tissue = _UNMEASURED * n_on + (1 - _UNMEASURED) * shared if moving.piece else n_on
                union = tissue + irfft2(f_off * rotated[0], shape)
                if bounded:
                    union = union - (1 - _UNMEASURED) * irfft2(f_on * rotated[1], shape)
                score = shared / np.maximum(union, 1)
                found.append(_Turn(hand[0, 0], linear, score, low, step, n_moving, centre))
            yield found


def coarse_placements(
    moving: TissueRaster, fixed: TissuePoints, freedom: Freedom, judge: Callable[[Floats], float] | None = None
) -> list[Floats]:
    """Starts ST -> MSI: for both handednesses the best turns, each at its best shift.

    Every turn in steps of ten degrees is scored at every shift, so that neither round nor square nor cut tissue misleads
    the start. Round tissue has many good turns: `judge` (of a matrix MSI -> ST) may add some.
    """
    found, everything = [], []
    for turns in _turns(moving, fixed, freedom):
        best = [np.unravel_index(t.score.argmax(), t.score.shape) for t in turns]
        scores = np.array([t.score[at] for t, at in zip(turns, best, strict=True)])
        matrices = [t.matrix(tuple(map(int, at))) for t, at in zip(turns, best, strict=True)]
        everything += list(zip(scores, matrices, strict=True))
        peak = (scores >= np.roll(scores, 1)) & (scores >= np.roll(scores, -1))
        order = np.flatnonzero(peak)[np.argsort(-scores[peak], kind="stable")]
        found += [(scores[k], matrices[k], turns[k].hand) for k in order[:_PER_HANDEDNESS]]
    kept = []
    for handedness in (1.0, -1.0):
        own = sorted((f for f in found if f[2] == handedness), key=lambda f: -f[0])
        kept += [f[1] for f in own[: _PER_HANDEDNESS * min(2, len(freedom.scales))]]
    if judge is not None:
        good = [m for score, m in everything if score > _JUDGED * max(e[0] for e in everything)]
        value = np.array([judge(inverse(m)) for m in good])
        kept += [good[k] for k in np.argsort(-value, kind="stable")[:_N_JUDGED]]
    return kept


def judged_placements(
    moving: TissueRaster, fixed: TissuePoints, freedom: Freedom, judge: Callable[[Floats], float], n: int
) -> list[Floats]:
    """The `n` placements MSI -> ST that `judge` likes best among all turns and shifts with a fair mask score.

    A piece of a tissue fits in many places, and its right place need not be a peak of the mask score.
    """
    found = []
    for turns in _turns(moving, fixed, freedom):
        for t in turns:
            fair = np.zeros(t.score.shape, bool)
            fair[::2, ::2] = True  # smooth maps do not tell neighbouring shifts apart
            fair &= t.score > _JUDGED_OF_PIECE * t.score.max()
            own = [inverse(t.matrix((int(row), int(col)))) for row, col in np.argwhere(fair)]
            value = np.array([judge(m) for m in own])
            # not more than a few of one turn, so that all of them come from one basin
            found += [(value[k], own[k]) for k in np.argsort(-value, kind="stable")[:2]]
    found.sort(key=lambda f: -f[0])
    return [matrix for _, matrix in found[:n]]


def place_masks(
    moving: TissueRaster,
    fixed: TissuePoints,
    freedom: Freedom = KNOWN,
    *,
    affine: bool = True,
    judge: Callable[[Floats], float] | None = None,
) -> list[Placement]:
    """Ways to lay the MSI tissue onto the spots, best first; `judge` goes to :func:`coarse_placements`."""
    wide, middle, fine = (MaskOverlap(moving, fixed, w) for w in steps(moving, fixed))
    rough = []
    for start in coarse_placements(moving, fixed, freedom, judge):
        scale = np.sqrt(abs(np.linalg.det(start[:2, :2])))
        adjustment = Adjustment.about(homogeneous(start[:2, :2] / scale, np.zeros(2)), fixed.xy[fixed.tissue])
        # the shift with which the adjustment takes its centre to where the start takes it
        target = apply_affine(inverse(adjustment.start), apply_affine(start, adjustment.centre[None]))[0]
        p = np.array([0, np.log(scale), 0, 0, *((target - adjustment.centre) / adjustment.radius)])
        p = wide.refine(adjustment, p, freedom, affine=False)
        p = middle.refine(adjustment, p, freedom, affine=False)
        rough.append((middle.at(adjustment.matrix(p)), adjustment, p))
    rough.sort(key=lambda r: -r[0])
    rough = [r for r in rough if r[0] >= 0.9 * _KEEP * rough[0][0]]
    placements = []
    for k in _distinct([Placement(inverse(a.matrix(p)), score) for score, a, p in rough], moving, fixed):
        _, adjustment, p = rough[k]
        p = middle.refine(adjustment, p, freedom, affine=affine)
        p = fine.refine(adjustment, p, freedom, affine=affine)
        to_msi = adjustment.matrix(p)
        placements.append(Placement(inverse(to_msi), fine.at(to_msi)))
    return distinct_placements(placements, moving, fixed)


def distinct_placements(placements: list[Placement], moving: TissueRaster, fixed: TissuePoints) -> list[Placement]:
    """Placements with a score near the best, best first, without those that repeat a better one."""
    placements = sorted(placements, key=lambda c: -c.score)
    placements = [c for c in placements if c.score >= _KEEP * placements[0].score]
    return [placements[k] for k in _distinct(placements, moving, fixed)]


def _distinct(placements: list[Placement], moving: TissueRaster, fixed: TissuePoints) -> list[int]:
    """Which placements differ from all before them."""
    kept: list[int] = []
    for k, place in enumerate(placements):
        if not any(same_place(place, placements[other], moving.xy, fixed.pitch) for other in kept):
            kept.append(k)
    return kept


def best_shares(
    placements: list[Placement], moving: TissueRaster, fixed: TissuePoints, rng: np.random.Generator
) -> Floats:
    """How often each placement scores best, in a bootstrap of blocks of the ST frame; shares that add up to 1.

    Outlines differ along whole stretches, not from spot to spot, so that blocks are drawn (Künsch, Ann. Stat. 17, 1217,
    1989). A share near 1 says that no single stretch of the outline made this placement the best.
    """
    overlap = MaskOverlap(moving, fixed, steps(moving, fixed)[-1])
    cell = np.floor((fixed.xy - fixed.xy.min(axis=0)) / (_BLOCK * fixed.pitch)).astype(int)
    _, block = np.unique(cell, axis=0, return_inverse=True)
    n = int(block.max()) + 1
    parts = [overlap.terms(inverse(p.matrix)) for p in placements]
    sums = np.array([[np.bincount(block.ravel(), part[:, k], n) for k in range(2)] for part in parts])
    drawn = rng.multinomial(n, np.full(n, 1 / n), _N_DRAWS)
    shared, union = np.moveaxis(sums @ drawn.T, 1, 0)  # each (placements, draws)
    return np.bincount(np.argmax(shared / np.maximum(union, 1e-12), axis=0), minlength=len(placements)) / _N_DRAWS


def covered_share(matrix: Floats, moving: TissueRaster, fixed: TissuePoints) -> float:
    """Share of the ST tissue that MSI tissue covers."""
    at = moving.index(apply_affine(inverse(matrix), fixed.xy[fixed.tissue]))
    return float((sample_images(moving.distance[None], at)[0][0] > 0).mean())


def hard_iou(matrix: Floats, moving: TissueRaster, fixed: TissuePoints) -> float:
    """Intersection over union of both masks at the points of the ST frame; of a piece, its share that lies on tissue."""
    at = moving.index(apply_affine(inverse(matrix), fixed.xy))
    inside = sample_images(moving.distance[None], at)[0][0] > 0
    union = inside if moving.piece else inside | fixed.tissue
    return float((inside & fixed.tissue).sum() / max(1, union.sum()))

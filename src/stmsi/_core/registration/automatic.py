"""From two tissue masks and two sets of components to one placement, or to the verdict that there are several.

scikit-image registers images of one contrast and always answers; here the contrasts differ, and a tie must show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from stmsi._core.registration.component_images import CrossModal, reference_matrices
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.masks import (
    MaskOverlap,
    best_shares,
    covered_share,
    distinct_placements,
    hard_iou,
    judged_placements,
    place_masks,
    steps,
)
from stmsi._core.registration.placements import (
    KNOWN,
    Adjustment,
    Freedom,
    Placement,
    inverse,
    same_place,
    sample_images,
)
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster
from stmsi._core.registration.warps import Floats

NEAR = 0.10
"""Intensities choose among placements whose mask scores differ by less than this share."""
SURE = 0.95
"""Masks decide where the best placement stays the best in this share of the bootstrap of their outlines."""
_POSSIBLE = 0.02
"""A placement that is best in this share of the bootstrap is possible."""
_N_REFERENCE = 40
_SIGNAL = 4.0
"""A placement has signal where it explains more than wrong ones do by this many of their standard deviations."""
_LEAD = 3.0
"""The best placement decides when it leads every other one by as much."""
_SURE_LEAD = 5.0
"""The lead with which intensities overrule masks that are not near-ties."""
_PIECE = 0.9
"""MSI tissue of less than this share of the ST tissue is a piece of it, or so small as the prior on the size allows."""
_N_JUDGED, _JUDGING_SPOTS = 12, 250
"""Starts that intensities find for a piece, and spots by which they do."""
_POLISH = Freedom(0.03, 0.02)
_MAX_PIXELS = 2000


@dataclass(frozen=True)
class Candidate:
    """A placement and what speaks for it.

    What intensities explain there and its z-score among wrong placements (NaN without intensities); the share of a bootstrap
    of the outlines in which masks prefer it to all others.
    """

    placement: Placement
    explained: float = float("nan")
    z: float = float("nan")
    share: float = 0.0


@dataclass(frozen=True)
class Resolution:
    """How precise a placement is, from refits to perturbed data.

    Distance (um) by which pixels move, and the share that stays in its spot, within one ring of neighbours, within two.
    """

    median_um: float
    p90_um: float
    same_spot: float
    one_ring: float
    two_rings: float


@dataclass(frozen=True)
class Verdict:
    """The chosen placement and its rivals.

    matrix: MSI -> ST, polished by intensities where they carry signal. candidates: best mask score first; `chosen` and
    `rivals` (those that cannot be ruled out) index them. iou: of both masks in the ST frame. piece: the MSI shows a part of
    the ST tissue only. draws: refits to perturbed data, shape (n, 3, 3).
    """

    matrix: Floats
    candidates: list[Candidate]
    chosen: int
    decided_by: str
    rivals: list[int]
    polished: bool
    iou: float
    piece: bool
    draws: Floats
    resolution: Resolution


def register_sections(
    moving: TissueRaster,
    fixed: TissuePoints,
    data: CrossModal | None,
    rng: np.random.Generator,
    freedom: Freedom = KNOWN,
    *,
    affine: bool = True,
    polish: bool = True,
    n_perturb: int = 12,
) -> Verdict:
    """Lay the MSI tissue onto the spots; without `data` (components of both) by masks only.

    `affine` goes beyond a similarity, `polish` lets intensities refine the placement.
    """
    if moving.area < _PIECE * (1 - 2 * freedom.scale) * fixed.area:
        moving = moving.as_piece()
    placements = place_masks(moving, fixed, freedom, affine=affine, judge=data.explained if data else None)
    if moving.piece and data is not None:
        placements = _with_judged(data, moving, placements, freedom)
    shares = best_shares(placements, moving, fixed, rng.spawn(1)[0])
    candidates = [Candidate(p, share=float(s)) for p, s in zip(placements, shares, strict=True)]
    if data is not None:
        explained = np.array([data.explained(p.matrix) for p in placements])
        wrong = np.array([data.explained(m) for m in reference_matrices(placements[0].matrix, data, _N_REFERENCE, rng)])
        spread = max(float(wrong.std()), 1e-3)
        z = (explained - wrong.mean()) / spread
        candidates = [
            replace(c, explained=float(e), z=float(v)) for c, e, v in zip(candidates, explained, z, strict=True)
        ]
    chosen, rivals, decided_by = decide(candidates)
    covered = covered_share(placements[chosen].matrix, moving, fixed)
    piece = moving.piece or covered < _PIECE * (1 - 2 * freedom.scale)
    if piece and decided_by == "masks":
        # a piece fits in many places, and no share of the score tells which of them is right
        rivals = [k for k in range(len(candidates)) if k != chosen]
    matrix, polished = placements[chosen].matrix, False
    # polishing follows signal that is there; without, it would follow noise
    if data is not None and polish and candidates[chosen].z > _SIGNAL:
        matrix, polished = _polish(data, moving, placements[chosen], freedom)
    if polished and data is not None:
        draws = _widened(_half_samples(data, matrix, n_perturb, rng), matrix, data)
    else:
        draws = _perturbed_outlines(moving, fixed, matrix, freedom, n_perturb, rng, affine=affine)
    return Verdict(
        matrix, candidates, chosen, decided_by, rivals, polished,
        hard_iou(matrix, moving, fixed), piece, np.array(draws).reshape(-1, 3, 3), resolution(matrix, draws, moving, fixed),
    )  # fmt: skip


def _with_judged(
    data: CrossModal, moving: TissueRaster, placements: list[Placement], freedom: Freedom
) -> list[Placement]:
    """Placements of a piece, together with those that intensities find and refine by themselves."""
    overlap = MaskOverlap(moving, data.fixed, steps(moving, data.fixed)[-1])
    limits = _limits(freedom)
    found = []
    judge = data.thinned(_JUDGING_SPOTS).shared_information
    for start in judged_placements(moving, data.fixed, freedom, judge, _N_JUDGED):
        matrix = data.refine(data.refine(start, limits), limits)
        found.append(Placement(matrix, overlap.at(inverse(matrix))))
    # what intensities found first: of two that are about the same, they know the place better than a torn edge
    kept = distinct_placements(found, moving, data.fixed)
    others = [p for p in placements if not any(same_place(p, other, moving.xy, data.fixed.pitch) for other in kept)]
    return distinct_placements([*kept, *others], moving, data.fixed)


def decide(candidates: list[Candidate]) -> tuple[int, list[int], str]:
    """The chosen candidate, those that cannot be ruled out, and what decided.

    Among placements with similar mask scores intensities decide where the best one has signal and leads. Intensities that
    clearly prefer a placement which masks rank low make that the choice only with a larger lead, and otherwise make it a
    rival: contradiction is not certainty. Without signal masks decide where the best placement stays the best in nearly
    all of a bootstrap of the outlines; else all placements that win now and then remain.
    """
    score, share = (np.array(v) for v in zip(*((c.placement.score, c.share) for c in candidates), strict=True))
    z = np.array([c.z for c in candidates])
    near = score >= (1 - NEAR) * score[0]
    chosen, suspects = 0, np.zeros(len(candidates), bool)
    if np.isfinite(z).all():
        best = int(z.argmax())
        lead = z[best] - np.delete(z, best).max() if len(z) > 1 else np.inf
        if z[best] > _SIGNAL and lead > (_LEAD if near[best] else _SURE_LEAD):
            return best, [], "intensities"
        chosen = int(np.where(near, z, -np.inf).argmax()) if z[near].max() > _SIGNAL else 0
        suspects = z > max(_SIGNAL, z[chosen])
    if share[chosen] < SURE:
        second = np.where(np.arange(len(share)) == chosen, -1.0, share).argmax()
        suspects |= (share >= _POSSIBLE) | (np.arange(len(share)) == second)
    return chosen, [int(k) for k in np.flatnonzero(suspects) if k != chosen], "masks"


def _polish(data: CrossModal, moving: TissueRaster, placement: Placement, freedom: Freedom) -> tuple[Floats, bool]:
    """The placement refined by intensities where that is an improvement and stays with the masks."""
    limits = _limits(freedom)
    matrix = data.refine(data.refine(placement.matrix, limits), limits)
    score = MaskOverlap(moving, data.fixed, steps(moving, data.fixed)[-1]).at(inverse(matrix))
    better = data.explained(matrix) >= data.explained(placement.matrix)
    near = same_place(Placement(matrix, score), placement, moving.xy, data.fixed.pitch)
    if better and near and score > (1 - NEAR) * placement.score:
        return matrix, True
    return placement.matrix, False


def _limits(freedom: Freedom) -> Freedom:
    """How far intensities may stretch a section."""
    return Freedom(min(freedom.scale, _POLISH.scale), min(freedom.stretch, _POLISH.stretch))


def _half_samples(data: CrossModal, matrix: Floats, n: int, rng: np.random.Generator) -> list[Floats]:
    """Refits to random halves of many small blocks of spots; their spread is that of the estimate from all."""
    span = np.ptp(data.spots, axis=0).max() / 8
    _, block = np.unique(np.floor(data.spots / span).astype(int), axis=0, return_inverse=True)
    n_blocks, out = block.max() + 1, []
    for _ in range(n):
        kept = rng.permutation(n_blocks) < n_blocks / 2
        out.append(data.refine(matrix, _POLISH, np.where(kept[block.ravel()], 1.0, 1e-3)))
    return out


def _widened(draws: list[Floats], matrix: Floats, data: CrossModal) -> list[Floats]:
    """Refits spread further by what no affine map can follow: tissue that is deformed.

    Each part of the section is fitted by itself. Parts that move further than refits to as few spots would by chance are
    deformed against the others; half-samples of small blocks average that out.
    """
    if not draws:
        return draws
    at = apply_affine(inverse(matrix), data.spots)
    spread = np.mean([np.median(_moved(draw, matrix, at)) ** 2 for draw in draws])
    parts = np.unique(data.fold)
    local = []
    for k in parts:
        own = data.fold == k
        refit = data.refine(matrix, _POLISH, np.where(own, 1.0, 1e-3))
        local.append(np.median(_moved(refit, matrix, at[own])) ** 2)
    beyond = max(0.0, float(np.median(local) - len(parts) * spread))
    widen = np.sqrt(1 + beyond / max(float(spread), 1e-12))
    return [matrix + widen * (draw - matrix) for draw in draws]


def _moved(draw: Floats, matrix: Floats, xy: Floats) -> Floats:
    """Distance between where two placements put points."""
    return np.asarray(np.hypot(*(apply_affine(draw, xy) - apply_affine(matrix, xy)).T))


def _perturbed_outlines(
    moving: TissueRaster,
    fixed: TissuePoints,
    matrix: Floats,
    freedom: Freedom,
    n: int,
    rng: np.random.Generator,
    *,
    affine: bool,
) -> list[Floats]:
    """Refits to outlines displaced as much as the two outlines differ at the placement."""
    error = outline_error(moving, fixed, matrix)
    adjustment = Adjustment.about(inverse(matrix), fixed.xy[fixed.tissue])
    sigma = 5 * fixed.pitch / moving.spacing[::-1]
    out = []
    for _ in range(n):
        field = ndimage.gaussian_filter(rng.standard_normal(moving.distance.shape), sigma, mode="wrap")
        distance = moving.distance + error * field / field.std()
        # the start too: a refit that ends where it began would say nothing
        p = np.array([rng.normal(0, 0.02), 0, 0, 0, *rng.normal(0, 0.5 * fixed.pitch / adjustment.radius, 2)])
        for width in steps(moving, fixed)[1:]:
            p = MaskOverlap(moving, fixed, width, distance).refine(adjustment, p, freedom, affine=affine)
        out.append(inverse(adjustment.matrix(p)))
    return out


def outline_error(moving: TissueRaster, fixed: TissuePoints, matrix: Floats) -> float:
    """Typical distance between both outlines where they meet the ST frame, micrometres."""
    on, off = fixed.xy[fixed.tissue], fixed.xy[~fixed.tissue]
    if len(on) == 0 or len(off) == 0:
        return fixed.pitch
    to_off, nearest = cKDTree(off).query(on)
    edge = to_off < 1.5 * fixed.pitch
    middle = (on[edge] + off[nearest[edge]]) / 2  # the outline passes there
    if len(middle) < 5:
        return fixed.pitch
    at = moving.index(apply_affine(inverse(matrix), middle))
    distance = sample_images(moving.distance[None], at)[0][0]
    # 68 % of a normal distribution, so that a torn edge does not count for all
    return max(float(np.quantile(np.abs(distance), 0.68)), 0.25 * fixed.pitch)


def resolution(matrix: Floats, draws: list[Floats], moving: TissueRaster, fixed: TissuePoints) -> Resolution:
    """Spread of refits in micrometres and in spots."""
    if not draws:
        return Resolution(*[float("nan")] * 5)
    xy = moving.xy[:: max(1, len(moving.xy) // _MAX_PIXELS)]
    spots = cKDTree(fixed.xy)
    here = apply_affine(matrix, xy)
    to_spot, own = spots.query(here)
    moved, rings = [], []
    for draw in draws:
        there = apply_affine(draw, xy)
        moved.append(np.hypot(*(there - here).T))
        other = spots.query(there)[1]
        rings.append(np.hypot(*(fixed.xy[other] - fixed.xy[own]).T)[to_spot < fixed.pitch] / fixed.pitch)
    distance, ring = np.concatenate(moved), np.concatenate(rings)
    median, p90 = np.quantile(distance, [0.5, 0.9])
    shares = [float((ring < limit).mean()) if len(ring) else float("nan") for limit in (0.1, 1.2, 2.2)]
    return Resolution(float(median), float(p90), *shares)


def telling_landmark(
    verdict: Verdict, rival: int, moving: TissueRaster, fixed: TissuePoints
) -> tuple[Floats, Floats, Floats]:
    """Where a landmark would tell the choice from a rival: the MSI place at which both disagree most on ST tissue.

    Returns that place, and where it lies in the ST frame under the choice and under the rival.
    """
    other = verdict.candidates[rival].placement.matrix
    a, b = apply_affine(verdict.matrix, moving.xy), apply_affine(other, moving.xy)
    tree = cKDTree(fixed.xy[fixed.tissue])
    seen = (tree.query(a)[0] < fixed.pitch) & (tree.query(b)[0] < fixed.pitch)
    apart = np.hypot(*(a - b).T) * np.where(seen, 1.0, 0.0 if seen.any() else 1.0)
    k = int(apart.argmax())
    return moving.xy[k], a[k], b[k]

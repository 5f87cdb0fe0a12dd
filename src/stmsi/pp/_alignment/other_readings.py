"""Does an alignment that somebody gave agree with the data, or does another reading of it agree clearly better?

Landmarks that were clicked on a mirrored or transposed picture fit a similarity as well as right ones: their residuals
cannot tell. What genes and ions explain of each other can, and so can the outlines of the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.registration.automatic import LEAD, SIGNAL
from stmsi._core.registration.component_images import reference_matrices
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.masks import MaskOverlap, steps
from stmsi._core.registration.placements import (
    KNOWN,
    Adjustment,
    Placement,
    Reading,
    inverse,
    readings,
    same_place,
)
from stmsi._core.registration.tissue_masks import TissuePoints
from stmsi._core.registration.warps import homogeneous
from stmsi.pp._alignment.automatic import MIN_POINTS, AutomaticInput, automatic_input

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.registration.component_images import CrossModal
    from stmsi.pp._alignment.section_geometry import Geometry

_N_REFERENCE = 40
_LEAST_SPREAD = 0.005
_MASKS_LEAD = 0.8
"""Masks alone doubt an alignment that scores less than this share of another reading."""
_MAX_SPOTS = 4000
_UNTURNED = "as they lie, neither turned nor mirrored"
_SHIFTED = "shifted"


@dataclass(frozen=True)
class Witness:
    """What the data of a section say about an alignment of it; arrays only, so that another process can ask."""

    section: AutomaticInput
    spots: NDArray[np.float64]  # all of the capture frame, in the ST frame
    pixels: NDArray[np.float64]  # corners, in the MSI frame

    def doubts(self, matrix: NDArray[np.float64], rng: np.random.Generator) -> str:
        """Why a matrix MSI -> ST is doubtful and what would mend it; empty where nothing speaks against it."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return self._doubts(matrix, rng)

    def _doubts(self, matrix: NDArray[np.float64], rng: np.random.Generator) -> str:
        to_frame = inverse(self.section.resize)
        own = matrix @ to_frame
        # at one size, so that widths in spot pitches fit both
        size = Placement(own, 0.0).scale
        moving, fixed = self.section.moving.scaled(size), self.section.fixed
        to_frame = to_frame @ np.diag([1 / size, 1 / size, 1])
        section = replace(self.section, moving=moving)
        data = section.cross_modal(rng)
        judge = _Judge(section, data, matrix @ to_frame, rng)
        given = judge.given()
        others: list[tuple[Reading | str, _Score]] = []
        for reading in [*readings("MSI", self.pixels), *readings("ST", self.spots)]:
            others.append((reading, judge.best_near(reading.applied(matrix) @ to_frame)))
        middles = [p.mean(axis=0) for p in (moving.xy, fixed.xy[fixed.tissue])]
        unturned = homogeneous(np.eye(2), middles[1] - middles[0])
        linear = (matrix @ to_frame)[:2, :2]
        shifted = homogeneous(linear, middles[1] - linear @ middles[0])
        others += [(_UNTURNED, judge.best_near(unturned)), (_SHIFTED, judge.best_near(shifted))]
        others = [(name, score) for name, score in others if not judge.is_given(score.matrix)]
        return _message(given, others)


@dataclass(frozen=True)
class _Score:
    matrix: NDArray[np.float64]
    masks: float  # soft IoU
    explained: float = 0.0  # share of variance
    z: float = 0.0  # in standard deviations among wrong placements


class _Judge:
    """Scores placements of one section by masks and intensities."""

    def __init__(
        self, section: AutomaticInput, data: CrossModal | None, given: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        self.section, self.data, self.matrix = section, data, given
        self.masks = [MaskOverlap(section.moving, section.fixed, w) for w in steps(section.moving, section.fixed)]
        self.middle, self.spread = 0.0, 1.0
        if data is not None:
            wrong = [data.explained(m) for m in reference_matrices(given, data, _N_REFERENCE, rng)]
            # where the alignment is wrong, a few of these are right by chance: they must not count
            self.middle, high = np.quantile(wrong, [0.5, 0.84])
            self.spread = max(float(high - self.middle), _LEAST_SPREAD)

    def score(self, matrix: NDArray[np.float64]) -> _Score:
        masks = self.masks[-1].at(inverse(matrix))
        if self.data is None:
            return _Score(matrix, masks)
        explained = self.data.explained(matrix)
        return _Score(matrix, masks, explained, float((explained - self.middle) / self.spread))

    def refined(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """A placement moved to where the masks meet best."""
        adjustment = Adjustment.about(inverse(matrix), self.section.fixed.xy[self.section.fixed.tissue])
        p = np.zeros(6)
        for mask in self.masks[:2]:
            p = mask.refine(adjustment, p, KNOWN, affine=False)
        return inverse(adjustment.matrix(p))

    def best_near(self, matrix: NDArray[np.float64]) -> _Score:
        """The better of a placement and of what masks make of it: where a mirror axis lies is not known for sure."""
        scores = [self.score(m) for m in (matrix, self.refined(matrix))]
        return max(scores, key=lambda s: (s.z, s.masks))

    def given(self) -> _Score:
        """The alignment in question, which may be a little off as well."""
        near = self.best_near(self.matrix)
        return near if self.is_given(near.matrix) else self.score(self.matrix)

    def is_given(self, matrix: NDArray[np.float64]) -> bool:
        """Whether a placement is about that of the alignment in question."""
        pair = (Placement(m, 0.0) for m in (matrix, self.matrix))
        return same_place(*pair, self.section.moving.xy, self.section.fixed.pitch)


def witness(
    sdata: SpatialData, name: str, geometry: Geometry, *, table_key: str, msi_table_key: str, sample_key: str
) -> Witness | None:
    """What can be asked about an alignment of a section; `None` with too few spots or pixels to tell."""
    if min(len(geometry.spots), len(geometry.pixels)) < MIN_POINTS:
        return None
    keys = {"table_key": table_key, "msi_table_key": msi_table_key, "sample_key": sample_key}
    # the size is what the alignment says, not what the tissue areas say: "free" leaves both as they are
    section = automatic_input(sdata, name, scale="free", **keys)
    spots = np.vstack([geometry.spots, geometry.others])
    return Witness(_thinned(section), spots, geometry.corners.reshape(-1, 2))


def _thinned(section: AutomaticInput) -> AutomaticInput:
    """The section with some of its spots: enough to tell a wrong reading."""
    fixed = section.fixed
    step = int(np.ceil(fixed.tissue.sum() / _MAX_SPOTS))
    if step == 1:
        return section
    kept = np.arange(len(fixed.xy)) % step == 0
    fewer = TissuePoints(fixed.xy[kept], fixed.tissue[kept], fixed.pitch * float(np.sqrt(step)))
    return replace(section, fixed=fewer, counts=section.counts[kept[fixed.tissue]])


def _message(given: _Score, others: list[tuple[Reading | str, _Score]]) -> str:
    if not others:
        return ""
    # the first of those that are alike: readings of the MSI side come first
    best = max(others, key=lambda o: round(o[1].z, 1))
    masks = max(others, key=lambda o: round(o[1].masks, 2))
    if best[1].z > SIGNAL and best[1].z - given.z > LEAD:
        reading, evidence = (
            best[0],
            f"genes and ions explain {best[1].explained:.0%} of each other instead of {given.explained:.0%}",
        )
    elif max(best[1].z, given.z) <= SIGNAL and given.masks < _MASKS_LEAD * masks[1].masks:
        reading, evidence = masks[0], f"the tissue masks overlap by {masks[1].masks:.0%} instead of {given.masks:.0%}"
    else:
        return ""
    if isinstance(reading, Reading):
        return (
            f"Pixels probably lie in wrong places: with {reading} for (x, y) of the {reading.side} side {evidence}. Was that "
            f"picture shown mirrored, turned, with y up, or were positions given as (row, column)? Convert that side and "
            "align again."
        )
    if reading == _SHIFTED:
        return (
            f"Pixels probably lie in wrong places: moved as a whole, {evidence}. Are the positions of both sides micrometres "
            "of their frames, not image pixels? landmark_units= converts."
        )
    return (
        f"Pixels probably lie in wrong places: with both sections laid upon each other {reading}, {evidence}. Do both "
        "sides list the same points in the same order, in micrometres of their frames? Without landmarks, "
        "method='auto' looks for the placement."
    )

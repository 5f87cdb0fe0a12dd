"""Does an alignment that somebody gave agree with the data, or does another reading of it agree clearly better?

Landmarks that were clicked on a mirrored or transposed picture fit a similarity as well as right ones: their residuals
cannot tell. What genes and ions explain of each other can, and so can the outlines of the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.registration.component_images import reference_matrices
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
from stmsi.pp._alignment.section_fit import Opinion

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.registration.component_images import CrossModal
    from stmsi.pp._alignment.section_geometry import Geometry

_N_REFERENCE = 100
_SIGNAL = 3.0
"""Another reading has signal where it agrees more than wrong ones by this many of their standard deviations."""
_LEAD = 1.5
"""It agrees clearly better where it leads the given one by as much."""
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

    def __call__(self, matrix: NDArray[np.float64], rng: np.random.Generator) -> Opinion:
        """What speaks for and against a matrix MSI -> ST."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return self._weigh(matrix, rng)

    def _weigh(self, matrix: NDArray[np.float64], rng: np.random.Generator) -> Opinion:
        to_frame = inverse(self.section.resize)
        # at one size, so that widths in spot pitches fit both
        size = Placement(matrix @ to_frame, 0.0).scale
        to_frame = to_frame @ np.diag([1 / size, 1 / size, 1])
        section = replace(self.section, moving=self.section.moving.scaled(size))
        own = matrix @ to_frame
        judge = _Judge(section, section.cross_modal(rng), own, rng)
        others: list[tuple[Reading | str, NDArray[np.float64]]] = [
            (reading, reading.applied(matrix) @ to_frame)
            for reading in (*readings("MSI", self.pixels), *readings("ST", self.spots))
        ]
        on_msi, on_st = (p.mean(axis=0) for p in (section.moving.xy, section.fixed.xy[section.fixed.tissue]))
        for name, linear in ((_UNTURNED, np.eye(2)), (_SHIFTED, own[:2, :2])):
            others.append((name, homogeneous(linear, on_st - linear @ on_msi)))
        given = judge.score(own)
        # most are clear at once, and the masks need not be asked
        if given.z > _SIGNAL and given.z - max(judge.score(m).z for _, m in others if not judge.is_given(m)) > _LEAD:
            return Opinion("", supported=True)
        given = judge.given()
        scores = [(name, judge.best_near(m)) for name, m in others]
        scores = [(name, score) for name, score in scores if not judge.is_given(score.matrix)]
        message = _message(given, scores)
        best = max((score.z for _, score in scores), default=0.0)
        return Opinion(message, supported=not message and given.z > max(best, _SIGNAL))


@dataclass(frozen=True)
class _Score:
    matrix: NDArray[np.float64]
    masks: float  # soft IoU
    information: float = 0.0  # that both modalities share, nats a spot
    z: float = 0.0  # in standard deviations among wrong placements


class _Judge:
    """Scores placements of one section by masks and intensities, next to the alignment in question (`given`)."""

    def __init__(
        self, section: AutomaticInput, data: CrossModal | None, given: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        self.section, self.data, self.matrix = section, data, given
        self.masks = [MaskOverlap(section.moving, section.fixed, w) for w in steps(section.moving, section.fixed)]
        self.middle, self.spread = 0.0, 1.0
        if data is not None:
            wrong = [data.shared_information(m) for m in reference_matrices(given, data, _N_REFERENCE, rng)]
            # where the alignment is wrong, a few of these are right by chance: they must not count
            self.middle, high = np.quantile(wrong, [0.5, 0.84])
            self.spread = max(float(high - self.middle), _LEAST_SPREAD)

    def score(self, matrix: NDArray[np.float64]) -> _Score:
        masks = self.masks[-1].at(inverse(matrix))
        if self.data is None:
            return _Score(matrix, masks)
        information = self.data.shared_information(matrix)
        return _Score(matrix, masks, information, float((information - self.middle) / self.spread))

    def refined(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """A placement moved to where the masks meet best."""
        adjustment = Adjustment.about(inverse(matrix), self.section.fixed.xy[self.section.fixed.tissue])
        p = np.zeros(6)
        return inverse(adjustment.matrix(self.masks[1].refine(adjustment, p, KNOWN, affine=False)))

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
        here, there = Placement(matrix, 0.0), Placement(self.matrix, 0.0)
        return same_place(here, there, self.section.moving.xy, self.section.fixed.pitch)


def witness(
    sdata: SpatialData, name: str, geometry: Geometry, *, table_key: str, msi_table_key: str, sample_key: str
) -> Witness | None:
    """What can be asked about an alignment of a section; `None` with too few spots or pixels to tell."""
    if min(len(geometry.spots), len(geometry.pixels)) < MIN_POINTS:
        return None
    # the size is what the alignment says, not what the tissue areas say: "free" leaves both as they are
    section = automatic_input(
        sdata, name, scale="free", table_key=table_key, msi_table_key=msi_table_key, sample_key=sample_key
    )
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
    # of those that are alike, a reading before a shift that nobody meant, and the MSI side before the ST side
    best = max(others, key=lambda o: round(o[1].z - 0.5 * isinstance(o[0], str), 1))
    masks = max(others, key=lambda o: round(o[1].masks, 2))
    if best[1].z > _SIGNAL and best[1].z - given.z > _LEAD:
        reading, evidence = (
            best[0],
            f"genes and ions share {best[1].information:.2f} nats a spot instead of {given.information:.2f}",
        )
    elif max(best[1].z, given.z) <= _SIGNAL and given.masks < _MASKS_LEAD * masks[1].masks:
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

"""An alignment without landmarks: what it starts from, how it is found, and what it tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.registration.agreement import unbiased_information
from stmsi._core.registration.automatic import Verdict, register_sections, telling_landmark
from stmsi._core.registration.component_images import CrossModal
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import Freedom, Placement, inverse
from stmsi._core.registration.spatial_components import spatial_components
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster
from stmsi.pp._alignment.section_fit import SectionFit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_OVERLAP = 0.3
_POOR_OVERLAP = 0.7
_LOOSE = 3.0
_N_ION_COMPONENTS, _N_GENE_COMPONENTS = 8, 10


@dataclass(frozen=True)
class AutomaticFit:
    """An alignment that nobody clicked, and how far to trust it.

    Attributes
    ----------
    matrix
        MSI frame (um) -> ST frame (um), shape (3, 3).
    mirrored, rotation_deg, scale
        Of `matrix`; the rotation is the one left after undoing a mirror in x.
    score
        Soft IoU of the tissue masks at the spots of the capture frame, of the chosen candidate.
    iou
        IoU of the masks there.
    candidates
        One row for each placement that fits the masks nearly as well, best first: ``mirrored``, ``rotation_deg``,
        ``scale``, ``mask_score``, ``intensity_score`` (share of held-out variance that each modality explains of the
        other), ``intensity_z`` (the same in standard deviations above wrong placements), ``chosen``, ``possible``
        (cannot be ruled out).
    ambiguous
        Whether the data cannot tell; then `message` says why and what would help.
    message
        One or two sentences for the user.
    landmark
        Where a landmark would tell the choice from its best rival, `None` without a rival: ``msi`` (place in the MSI
        frame), ``st`` (where it lies in the ST frame if the choice is right), ``st_rival`` (if the rival is), each of
        shape (2,), um.
    decided_by
        ``"masks"`` or ``"intensities"``.
    refined
        Whether intensities refined the placement that masks gave.
    mutual_information
        Before and after, in nats: of a leading component of either modality, at the spots that pixels cover. NaN where
        fewer than 20 spots are covered.
    resolution
        Spread of refits to perturbed data: ``median_um``, ``p90_um``; and the share of pixels that stay in their spot
        (``same_spot``), within one ring of spots around it (``one_ring``) or two (``two_rings``).
    perturbed
        The matrices of those refits, shape (n, 3, 3).
    """

    matrix: NDArray[np.float64]
    mirrored: bool
    rotation_deg: float
    scale: float
    score: float
    iou: float
    candidates: pd.DataFrame
    ambiguous: bool
    message: str
    landmark: dict[str, NDArray[np.float64]] | None
    decided_by: str
    refined: bool
    mutual_information: tuple[float, float]
    resolution: dict[str, float]
    perturbed: NDArray[np.float64]


@dataclass(frozen=True)
class AutomaticInput:
    """What the alignment of a section without landmarks starts from; arrays only, so that another process can do it.

    Attributes
    ----------
    name
        The section.
    moving, fixed
        Tissue of MSI, brought to about the size of the ST tissue, and of ST.
    ions, counts
        Intensities of the pixels and counts of the spots on tissue; `None`: masks alone decide.
    resize
        From the MSI frame to the frame of `moving`, shape (3, 3).
    freedom
        How far size and shape may go.
    affine, serial
        See :func:`align_automatically`.
    """

    name: str
    moving: TissueRaster
    fixed: TissuePoints
    ions: Any
    counts: Any
    resize: NDArray[np.float64]
    freedom: Freedom
    affine: bool
    serial: bool

    def fit(self, rng: np.random.Generator, n_perturb: int) -> AutomaticFit:
        """Find the alignment."""
        from threadpoolctl import threadpool_limits

        data = None
        if self.ions is not None:
            data = _cross_modal(self.moving, self.fixed, self.ions, self.counts, rng)
        # thousands of products of a few numbers: threads of BLAS would only wait for one another
        with threadpool_limits(1, user_api="blas"):
            verdict = register_sections(
                self.moving, self.fixed, data, rng, self.freedom,
                affine=self.affine, polish=not self.serial, n_perturb=n_perturb,
            )  # fmt: skip
        if verdict.iou < _NO_OVERLAP:
            msg = (
                f"Section {self.name!r}: the tissue masks do not overlap in any position (IoU {verdict.iou:.2f}). Are both "
                "tables of the same section, and is the pixel size right? Look at stmsi.pl.spatial of both; auto={'scale': 'free'} "
                "also fits the size."
            )
            raise ValueError(msg)
        return _result(verdict, self.moving, self.fixed, data, self.resize)


@dataclass(frozen=True)
class AutomaticMethod:
    """Alignment without landmarks, as :func:`stmsi.pp.align` calls its methods."""

    section: AutomaticInput
    n_refits: int

    def __call__(self, rng: np.random.Generator) -> SectionFit:
        """Find the alignment."""
        fit = self.section.fit(rng, self.n_refits)
        none = np.empty(0)
        fields: dict[str, Any] = {
            "model": "affine" if self.section.affine else "similarity",
            "n_landmarks": 0,
            "residual_um": none,
            "tre_um": none,
            "ambiguous": fit.ambiguous,
            "message": fit.message,
            "candidates": fit.candidates.set_axis(fit.candidates.index.astype(str)),
            "decided_by": fit.decided_by,
            "mask_score": fit.score,
            "resolution": fit.resolution,
        }
        if fit.landmark is not None:
            fields["telling_landmark"] = fit.landmark
        return SectionFit(fit.matrix, fields, sample=_Refits(fit.perturbed @ np.linalg.inv(fit.matrix)))


@dataclass(frozen=True)
class _Refits:
    """Draws from the refits to perturbed data, as displacements within the ST frame."""

    drawn: NDArray[np.float64]

    def __call__(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        return self.drawn[rng.choice(len(self.drawn), n, replace=n > len(self.drawn))]


def _cross_modal(
    moving: TissueRaster, fixed: TissuePoints, ions: Any, counts: Any, rng: np.random.Generator
) -> CrossModal | None:
    a, _ = spatial_components(ions, moving.xy, _N_ION_COMPONENTS, rng)
    b, _ = spatial_components(counts, fixed.xy[fixed.tissue], _N_GENE_COMPONENTS, rng)
    if a.shape[1] == 0 or b.shape[1] == 0:
        return None
    return CrossModal.build(moving, fixed, a, b, rng)


def _result(
    verdict: Verdict, moving: TissueRaster, fixed: TissuePoints, data: CrossModal | None, resize: NDArray[np.float64]
) -> AutomaticFit:
    rows = []
    for k, c in enumerate(verdict.candidates):
        place = Placement(c.placement.matrix @ resize, c.placement.score)
        chosen = k == verdict.chosen
        rows.append(
            {
                "mirrored": place.mirrored, "rotation_deg": place.rotation, "scale": place.scale, "mask_score": place.score,
                "intensity_score": c.explained, "intensity_z": c.z, "chosen": chosen, "possible": chosen or k in verdict.rivals,
            }
        )  # fmt: skip
    final = Placement(verdict.matrix @ resize, verdict.candidates[verdict.chosen].placement.score)
    reasons, landmark = [], None
    if verdict.rivals:
        rival = _strongest(verdict)
        at, here, there = telling_landmark(verdict, rival, moving, fixed)
        in_frame = apply_affine(inverse(resize), at[None])[0]
        landmark = {"msi": in_frame, "st": here, "st_rival": there}
        sides = ["as measured" if not rows[k]["mirrored"] else "mirrored" for k in (verdict.chosen, rival)]
        reasons.append(
            f"{len(verdict.rivals) + 1} placements fit about equally well. One landmark would tell: what lies near "
            f"({in_frame[0]:.0f}, {in_frame[1]:.0f}) um in the MSI frame lies near ({here[0]:.0f}, {here[1]:.0f}) um of the "
            f"ST frame if the chosen one is right ({sides[0]}, turned by {rows[verdict.chosen]['rotation_deg']:.0f} degrees), and near "
            f"({there[0]:.0f}, {there[1]:.0f}) um if it is the next ({sides[1]}, {rows[rival]['rotation_deg']:.0f} degrees)."
        )
    if verdict.iou < _POOR_OVERLAP:
        reasons.append(
            f"The tissue masks overlap by {verdict.iou:.0%} only: they may not show the same piece of tissue. If the spots are "
            "a piece cut from it, pass auto={'frame': 'crop'}."
        )
    if verdict.resolution.p90_um > _LOOSE * fixed.pitch:
        reasons.append(
            f"The outlines hold the section loosely: refits move pixels by {verdict.resolution.p90_um:.0f} um (90th "
            "percentile). Landmarks would hold it."
        )
    message = " ".join(reasons) or (
        f"Placed by {verdict.decided_by}: IoU {verdict.iou:.2f}, pixels move by {verdict.resolution.median_um:.0f} um "
        "(median) between refits."
    )
    return AutomaticFit(
        final.matrix, final.mirrored, final.rotation, final.scale, final.score, verdict.iou, pd.DataFrame(rows),
        bool(reasons), message, landmark, verdict.decided_by, verdict.polished,
        _information(data, verdict.matrix, inverse(resize)), asdict(verdict.resolution), verdict.draws @ resize,
    )  # fmt: skip


def _strongest(verdict: Verdict) -> int:
    """The rival to tell apart first: by what intensities say where they say something, else by the masks."""
    z = [verdict.candidates[k].z for k in verdict.rivals]
    return verdict.rivals[int(np.argmax(z))] if np.isfinite(z).all() and max(z) > _LOOSE else verdict.rivals[0]


def _information(
    data: CrossModal | None, matrix: NDArray[np.float64], unaligned: NDArray[np.float64]
) -> tuple[float, float]:
    """Mutual information before and after of the pair of leading components that shares most after."""
    if data is None:
        return float("nan"), float("nan")

    def pair(m: NDArray[np.float64], k: int, j: int) -> float:
        value, covered = data.sampled(m)
        return unbiased_information(value[covered, k], data.expression[covered, j])

    leading = [(k, j) for k in range(min(3, len(data.images))) for j in range(min(3, data.expression.shape[1]))]
    after = [pair(matrix, k, j) for k, j in leading]
    if not np.isfinite(after).any():
        return float("nan"), float("nan")
    best = int(np.nanargmax(after))
    return pair(unaligned, *leading[best]), after[best]

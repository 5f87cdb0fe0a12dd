"""Alignment without landmarks: from the outlines of the tissue, and from what genes and ions say about it.

Masks: every turn, in steps of ten degrees, of either side of the section is tried at every shift. The best placements are
refined by a soft IoU, scored at the spots of the capture frame only: tissue outside it costs nothing. Intensities: under
each placement, spatial components of one modality (Switzer & Green 1984) predict those of the other by ridge regression
on held-out spatial blocks, as in canonical correlation analysis (Hotelling 1936). A placement wins where it stands four
standard deviations above wrong placements and leads every other by three; the same components then refine it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stmsi._core.registration.automatic import Verdict, register_sections, telling_landmark
from stmsi._core.registration.component_images import CrossModal
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.masks import covered_share
from stmsi._core.registration.placements import FREE, KNOWN, SERIAL, Freedom, Placement, inverse
from stmsi._core.registration.spatial_components import spatial_components
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster, array_turn, frame_points, pixel_raster
from stmsi._data.checks import check_choice
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, values_of
from stmsi.pp._alignment.section_fit import WITHOUT_LANDMARKS, SectionFit
from stmsi.pp._alignment.section_geometry import (
    pixel_centres,
    pixels_on_tissue,
    section_table,
    spot_centres,
    spots_on_tissue,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

MIN_POINTS = 20
_MAX_FACTOR = 5.0
_NO_OVERLAP, _POOR_OVERLAP = 0.3, 0.7
_POOR_FOR_MASKS = 0.8
"""Masks that overlap by less do not decide alone: what ST saw, or which pixels are tissue, may be another than assumed."""
_LOOSE = 3.0
_ALIKE = 1.15
"""Tissues whose widths differ by more than this factor let the stated pixel size be a suspect."""
_N_ION_COMPONENTS, _N_GENE_COMPONENTS = 8, 10


@dataclass(frozen=True)
class AutomaticFit:
    """An alignment that nobody clicked, and how far to trust it."""

    matrix: NDArray[np.float64]  # from the MSI to the ST frame, (3, 3)
    mirrored: bool
    rotation_deg: float  # left after undoing a mirror in x
    scale: float
    score: float  # soft IoU of the masks at the spots of the capture frame
    iou: float
    confidence: (
        float  # share of a bootstrap of the outlines in which masks choose the same; NaN where intensities decided
    )
    candidates: pd.DataFrame  # placements that fit the masks nearly as well, best first
    ambiguous: bool  # whether the data cannot tell; then `message` says why and what would help
    message: str
    landmark: dict[str, NDArray[np.float64]] | None  # where one would tell the best two apart: msi, st, st_rival; (2,)
    decided_by: str  # "masks" or "intensities"
    partial: bool  # whether the MSI shows a part of the ST tissue only
    refined: bool  # whether intensities refined the placement of the masks
    resolution: dict[str, float]  # spread of refits: median_um, p90_um; share same_spot, one_ring, two_rings
    perturbed: NDArray[np.float64]  # matrices of the refits, (n, 3, 3)


@dataclass(frozen=True)
class AutomaticInput:
    """What the alignment of a section without landmarks starts from; arrays only, so that another process can do it."""

    name: str
    moving: TissueRaster  # MSI, brought to about the size of the ST tissue
    fixed: TissuePoints
    ions: Any  # of the pixels on tissue; `None`: masks alone decide
    counts: Any  # of the spots on tissue
    resize: NDArray[np.float64]  # from the MSI frame to that of `moving`, (3, 3)
    freedom: Freedom
    affine: bool
    serial: bool

    def fit(self, rng: np.random.Generator, n_perturb: int) -> AutomaticFit:
        """Find the alignment, and refit `n_perturb` times to perturbed data."""
        from threadpoolctl import threadpool_limits

        data = self.cross_modal(rng)
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
        return judged(verdict, self.moving, self.fixed, self.resize)

    def cross_modal(self, rng: np.random.Generator) -> CrossModal | None:
        """Components of both modalities, ready to be compared; `None` where masks alone decide."""
        if self.ions is None:
            return None
        a, _ = spatial_components(self.ions, self.moving.xy, _N_ION_COMPONENTS, rng)
        b, _ = spatial_components(self.counts, self.fixed.xy[self.fixed.tissue], _N_GENE_COMPONENTS, rng)
        return CrossModal.build(self.moving, self.fixed, a, b, rng) if a.shape[1] and b.shape[1] else None


def automatic_input(
    sdata: SpatialData,
    name: str,
    *,
    scale: Literal["known", "free"] = "known",
    model: Literal["similarity", "affine"] = "affine",
    serial: bool = False,
    frame: ArrayLike | Literal["auto", "crop"] = "auto",
    intensities: bool = True,
    layer: str | None = None,
    msi_layer: str | None = None,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
    sample_key: str = Key.obs.SAMPLE,
) -> AutomaticInput:
    """Read a section and check it; the options are those of ``stmsi.pp.align(auto=)``."""
    check_choice(scale, ("known", "free"), "scale")
    check_choice(model, ("similarity", "affine"), "model")
    if isinstance(frame, str):
        check_choice(frame, ("auto", "crop"), "frame")
        if frame == "crop" and scale == "free":
            msg = "A crop of unknown extent does not tell the size of a pixel: pass the pixel size and scale='known'."
            raise ValueError(msg)
    msi, st = (section_table(sdata, key, name, sample_key) for key in (msi_table_key, table_key))
    pixels, size, to_msi = pixel_centres(sdata, name, msi)
    spots = spot_centres(sdata, name, st)
    ions, counts = as_csr(values_of(msi, msi_layer, "MSI")), as_csr(values_of(st, layer, "ST"))
    on_tissue, in_tissue = pixels_on_tissue(msi, ions), spots_on_tissue(st)
    for n, what, where in (
        (int(in_tissue.sum()), "spots on tissue", f"obs[{Key.obs.IN_TISSUE!r}]"),
        (int(on_tissue.sum()), "MSI pixels on tissue", "the pixels"),
    ):
        if n < MIN_POINTS:
            msg = (
                f"Section {name!r} has {n} {what}, and an alignment without landmarks needs at least {MIN_POINTS}. "
                f"Check {where}, or pass landmarks."
            )
            raise ValueError(msg)
    fixed = _fixed(spots, in_tissue, frame, _array_turn(spots, st))
    # the element may be in units of the raster: the MSI frame says what they are in micrometres
    unit = float(np.sqrt(abs(np.linalg.det(to_msi[:2, :2]))))
    moving = pixel_raster(pixels, size, on_tissue).scaled(unit)
    factor = _unit(moving, fixed, name, scale)
    freedom = FREE if scale == "free" else SERIAL if serial else KNOWN
    if serial and scale == "free":
        freedom = Freedom(FREE.scale, SERIAL.stretch, FREE.scales)
    seen: tuple[Any, Any] = (ions[on_tissue], counts[in_tissue]) if intensities else (None, None)
    resize = np.diag([factor * unit, factor * unit, 1.0]) @ inverse(to_msi)
    return AutomaticInput(
        name, moving.scaled(factor), fixed, seen[0], seen[1], resize, freedom, model == "affine", serial
    )


def fit_automatically(section: AutomaticInput, n_refits: int, rng: np.random.Generator) -> SectionFit:
    """Alignment without landmarks, as a method of :func:`stmsi.pp.align`."""
    fit = section.fit(rng, n_refits)
    fields: dict[str, Any] = WITHOUT_LANDMARKS | {
        "model": "affine" if section.affine else "similarity",
        "ambiguous": fit.ambiguous,
        "message": fit.message,
        "candidates": fit.candidates.set_axis(fit.candidates.index.astype(str)),
        "decided_by": fit.decided_by,
        "partial": fit.partial,
        "mask_score": fit.score,
        "confidence": fit.confidence,
        "resolution": fit.resolution,
    }
    if fit.landmark is not None:
        fields["telling_landmark"] = fit.landmark
    return SectionFit(fit.matrix, fields, sample=partial(_draw, fit.perturbed @ np.linalg.inv(fit.matrix)))


def _draw(refits: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Displacements within the ST frame by which refits to perturbed data differ."""
    return refits[rng.choice(len(refits), n, replace=n > len(refits))]


def _array_turn(spots: NDArray[np.float64], st: AnnData) -> float | None:
    """Turn of the capture frame (radians) by the array positions in ``obs``; `None` without them."""
    keys = [Key.obs.ARRAY_COL, Key.obs.ARRAY_ROW]
    if not set(keys) <= set(st.obs):
        return None
    column, row = (pd.to_numeric(st.obs[k], errors="coerce").to_numpy(float) for k in keys)
    known = np.isfinite(column) & np.isfinite(row)
    return array_turn(spots[known], column[known], row[known]) if known.sum() > 2 else None


def _fixed(
    spots: NDArray[np.float64], in_tissue: NDArray[np.bool_], frame: Any, axis: float | None = None
) -> TissuePoints:
    """Spots on tissue, and the places without tissue that ST has seen; `axis` is the turn of its frame."""
    on = spots[in_tissue]
    if isinstance(frame, str):
        off = spots[~in_tissue] if not in_tissue.all() and frame == "auto" else None
        return frame_points(on, off, crop=frame == "crop", axis=axis)
    from scipy.spatial import cKDTree

    places = np.asarray(frame, dtype=float)
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        msg = f"frame is 'auto', 'crop' or finite positions of shape (n, 2) in micrometres, found shape {places.shape}."
        raise ValueError(msg)
    pitch = frame_points(on, on[:0]).pitch
    return frame_points(on, places[cKDTree(on).query(places)[0] > 0.6 * pitch])


def _unit(moving: TissueRaster, fixed: TissuePoints, name: str, scale: str) -> float:
    """Factor that brings the MSI tissue to about the size of the ST tissue, 1 where the size is known."""
    ratio = float(np.sqrt(fixed.area / moving.area))
    if scale == "free":
        return ratio
    if not 1 / _MAX_FACTOR < ratio < _MAX_FACTOR:
        large, small = ("ST", "MSI") if ratio > 1 else ("MSI", "ST")
        msg = (
            f"Section {name!r}: the {large} tissue is {max(ratio, 1 / ratio):.3g} times as wide as the {small} tissue, but "
            "both should be in micrometres. Check the pixel size and the unit of the spots (pixels of the image?), or pass "
            "auto={'scale': 'free'}."
        )
        raise ValueError(msg)
    return 1.0


def judged(verdict: Verdict, moving: TissueRaster, fixed: TissuePoints, resize: NDArray[np.float64]) -> AutomaticFit:
    """The verdict in words, and in the MSI frame; `resize` leads from there to the frame of `moving`."""
    rows = []
    for k, c in enumerate(verdict.candidates):
        place = Placement(c.placement.matrix @ resize, c.placement.score)
        chosen = k == verdict.chosen
        rows.append(
            {
                "mirrored": place.mirrored, "rotation_deg": place.rotation, "scale": place.scale, "mask_score": place.score,
                "mask_share": c.share, "intensity_score": c.explained, "intensity_z": c.z, "chosen": chosen, "possible": chosen or k in verdict.rivals,
            }
        )  # fmt: skip
    final = Placement(verdict.matrix @ resize, verdict.candidates[verdict.chosen].placement.score)
    by_masks = verdict.decided_by == "masks"
    reasons, landmark = [], None
    if verdict.rivals:
        # to tell apart first: by what intensities say where they say something, else by the masks
        z = [verdict.candidates[k].z for k in verdict.rivals]
        rival = verdict.rivals[int(np.argmax(z)) if np.isfinite(z).all() and max(z) > _LOOSE else 0]
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
    if verdict.piece and by_masks:
        reasons.append(
            f"The MSI is partial: it covers {covered_share(verdict.matrix, moving, fixed):.0%} of the ST tissue, and a part fits "
            "in many places. If it is not meant to be a part, check the pixel size and which pixels count as tissue."
        )
    if verdict.iou < (_POOR_FOR_MASKS if by_masks else _POOR_OVERLAP):
        reasons.append(
            f"The tissue masks overlap by {verdict.iou:.0%} only: they may not show the same piece of tissue. If the spots are "
            "a piece cut from it, pass auto={'frame': 'crop'}; if the stated pixel size may be wrong, auto={'scale': 'free'}."
        )
    if verdict.resolution.p90_um > _LOOSE * fixed.pitch:
        reasons.append(
            f"The outlines hold the section loosely: refits move pixels by {verdict.resolution.p90_um:.0f} um (90th "
            "percentile). Landmarks would hold it."
        )
    wider = float(np.sqrt(fixed.area / moving.area))  # about 1 where the size was free
    if reasons and not 1 / _ALIKE < wider < _ALIKE:
        reasons.append(
            f"The ST tissue is {wider:.2f} times as wide as the MSI tissue. Is the MSI a part of it, or is the stated pixel size "
            f"({moving.pixel:.4g} um; {moving.pixel * wider:.4g} um would make them alike) wrong? auto={{'scale': 'free'}} fits the size."
        )
    confidence = verdict.candidates[verdict.chosen].share if by_masks else float("nan")
    message = " ".join(reasons) or (
        f"Placed by {verdict.decided_by}: IoU {verdict.iou:.2f}, pixels move by {verdict.resolution.median_um:.0f} um "
        "(median) between refits."
    )
    return AutomaticFit(
        final.matrix, final.mirrored, final.rotation, final.scale, final.score, verdict.iou, confidence,
        pd.DataFrame(rows),
        bool(reasons), message, landmark, verdict.decided_by, verdict.piece, verdict.polished,
        asdict(verdict.resolution), verdict.draws @ resize,
    )  # fmt: skip

"""What each pixel counts with in each spot, over all sections of the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stmsi._core.mapping.pixel_weights import dominant, effective_number
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._settings import logger
from stmsi.pp._mapping.outlines import SectionGeometry, section_geometry

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_ROUNDING = 1e-6


@dataclass
class Section:
    """Geometry of a section and its rows of the tables."""

    geometry: SectionGeometry
    spots: NDArray[np.int64]
    pixels: NDArray[np.int64]


@dataclass
class Weights:
    """Weights over the whole tables."""

    areas: sp.csr_matrix  # spots x pixels, in each section's own unit
    used: sp.csr_matrix  # what pixels count with
    spot_area: NDArray[np.float64]
    pixel_area: NDArray[np.float64]
    max_distance: dict[str, float]  # of each section, for the nearest spot

    def covered(self, min_coverage: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Covered share of each spot, and which spots count as covered."""
        share = np.asarray(self.areas.sum(axis=1)).ravel() / self.spot_area
        return share, (np.diff(self.used.indptr) > 0) & (share >= min_coverage - 1e-9)


def paired_sections(
    sdata: SpatialData, st: AnnData, msi: AnnData, st_sample: NDArray[Any], msi_sample: NDArray[Any]
) -> dict[str, Section]:
    """The sections that have both spots and pixels."""
    record = msi.uns.get(Key.uns.ALIGNMENT, {})
    sections = {}
    for name in dict.fromkeys(msi_sample):
        spots, pixels = np.flatnonzero(st_sample == name), np.flatnonzero(msi_sample == name)
        if len(spots) == 0:
            logger.warning("Section %r has MSI but no spots; it is left out.", name)
            continue
        # a non-rigid alignment has written the pixels anew
        element = str(record.get(name, {}).get("element", Key.pixels(name)))
        geometry = section_geometry(sdata, name, st[spots], msi[pixels], element)
        sections[name] = Section(geometry, spots, pixels)
    if not sections:
        msg = (
            f"No section has both spots and MSI: the ST table has {listing(dict.fromkeys(st_sample))}, the MSI table "
            f"{listing(dict.fromkeys(msi_sample))}. Give both the same section names."
        )
        raise ValueError(msg)
    return sections


def weigh(
    sections: dict[str, Section],
    n_spots: int,
    n_pixels: int,
    method: str,
    max_distance: float | dict[str, float] | None,
) -> Weights:
    """Overlaps and weights of all sections at once."""
    areas, used, distance = [], [], {}
    spot_area, pixel_area = np.ones(n_spots), np.ones(n_pixels)
    for name, section in sections.items():
        overlap, spot_area[section.spots], pixel_area[section.pixels] = section.geometry.overlap()
        areas.append((section, overlap))
        if method == "nearest":
            limit = max_distance[name] if isinstance(max_distance, dict) else max_distance
            paired, distance[name] = section.geometry.nearest(limit)
            used.append((section, paired))
    shape = (n_spots, n_pixels)
    whole = _placed(areas, shape)
    if method == "nearest":
        return Weights(whole, _placed(used, shape), spot_area, np.ones(n_pixels), distance)
    return Weights(whole, whole, spot_area, pixel_area, distance)


def _placed(parts: list[tuple[Section, sp.csr_matrix]], shape: tuple[int, int]) -> sp.csr_matrix:
    coo = [(section, part.tocoo()) for section, part in parts]
    row = np.concatenate([section.spots[part.row] for section, part in coo])
    col = np.concatenate([section.pixels[part.col] for section, part in coo])
    return sp.csr_matrix((np.concatenate([part.data for _, part in coo]), (row, col)), shape=shape)


def check_coverage(
    sections: dict[str, Section], weights: Weights, min_coverage: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Covered share of each spot, and which spots count as covered; refuses what cannot be right."""
    share, kept = weights.covered(min_coverage)
    for name, section in sections.items():
        largest = share[section.spots].max()
        if largest > 1 + _ROUNDING:
            msg = (
                f"Section {name!r}: pixels overlap each other (a spot is covered {largest:.3f} times). Pixels must tile "
                "the section; a non-rigid alignment that folds it makes them overlap (stmsi.pp.alignment_report)."
            )
            raise ValueError(msg)
        if not kept[section.spots].any():
            logger.warning(
                "Section %r has MSI, but no spot of it is covered (largest coverage %.3f, min_coverage=%g): check its "
                "alignment (stmsi.pp.alignment_report). It takes no part in training. %s.",
                name, largest, min_coverage, section.geometry.extent(),
            )  # fmt: skip
        elif np.median(effective_number(used := weights.used[section.spots[kept[section.spots]]])) < 1.5:
            logger.info(
                "Section %r: its spots are finer than its pixels; %d spots share %d measurements.",
                name, used.shape[0], len(np.unique(dominant(used)[0])),
            )  # fmt: skip
    if not kept.any():
        extents = "; ".join(f"{name!r}: {section.geometry.extent()}" for name, section in sections.items())
        msg = (
            "No spot is covered by any pixel. Check the alignment (stmsi.pp.alignment_report), the pixel size and "
            f"min_coverage={min_coverage}; the largest coverage is {share.max():.3f}. Where they lie: {extents}."
        )
        raise ValueError(msg)
    return np.clip(share, 0.0, 1.0), kept

"""How many micrometres a unit of the spots' positions is, as far as an AnnData tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, VISIUM_SPOT_DIAMETER
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

GIVEN, BY_ARRAY = "um_per_unit", "array_row and array_col"
"""What tells the unit: the user, or the places on a Visium array."""
_SPOT_OF_SCALE_FACTORS = 65.0
"""10x defines ``spot_diameter_fullres`` by a theoretical spot of 65 micrometres, not by the 55 of the printed one."""
_ENOUGH = 7
"""Spots from which the distance of neighbours is that of the array."""
TOLERATED = 0.2
"""Relative difference of two ways to the size of a pixel from which they contradict each other."""
_NEAR = 0.15
"""Relative difference of a pitch up to which it is that of a Visium array."""
_SAME = 0.02
"""Relative difference of a scale from 1 up to which positions are in micrometres already."""
_USUAL_RATIO = (1.0, 4.0)
"""Pitch over diameter of spots that are not Visium."""
_LEAST_RATIO = 0.8
_ROW, _COL = "array_row", "array_col"
_BIG, _SMALL = ("spot_diameter_fullres", "fiducial_diameter_fullres"), "microns_per_pixel"


@dataclass(frozen=True)
class SpotScale:
    """Micrometres per unit, diameter of a spot (um), and the library of ``uns["spatial"]`` that goes with the positions."""

    um_per_unit: float
    spot_diameter: float
    library: str | None = None
    factors: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # what told it

    def take_image(self, table: AnnData) -> tuple[NDArray[Any], float] | None:
        """The finest image of the library and the side of its pixels (um); it leaves ``uns``.

        Scale factors of ``uns["spatial"]`` become those of micrometres, so that they go with the positions. `table` is
        changed.
        """
        if self.library is None:
            return None
        spatial = table.uns[Key.obsm.SPATIAL]
        library = dict(spatial[self.library])
        images = dict(library.get("images", {}))
        found = None
        for kind in ("hires", "lowres"):
            factor = _number(self.factors, f"tissue_{kind}_scalef")
            if found is None and factor is not None and kind in images and np.ndim(images[kind]) == 3:
                found = np.asarray(images.pop(kind)), self.um_per_unit / factor
        factors = dict(self.factors)
        for key, value in self.factors.items():
            if key in _BIG:
                factors[key] = float(value) * self.um_per_unit
            elif key.endswith("_scalef") or key == _SMALL:
                factors[key] = float(value) / self.um_per_unit
        table.uns[Key.obsm.SPATIAL] = dict(spatial) | {
            self.library: library | {"scalefactors": factors, "images": images}
        }
        return found


def known_scale(adata: AnnData, sample: str, given: float | None, spot_diameter: float | None) -> SpotScale:
    """The scale of a section's positions: `given`, else what the array and the scale factors say, else 1."""
    xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
    library = _library(adata, sample)
    factors: Mapping[str, Any] = {} if library is None else adata.uns[Key.obsm.SPATIAL][library].get("scalefactors", {})
    bins = _number(factors, "bin_size_um")
    diameter = spot_diameter or bins or VISIUM_SPOT_DIAMETER
    by_array = None if bins else array_scale(adata, xy)
    by_factor = factor_scale(factors)
    if given is not None:
        return SpotScale(given, diameter, library, factors, GIVEN)
    if by_array is not None:
        if by_factor is not None and abs(by_factor / by_array - 1) > TOLERATED and abs(by_array - 1) > _SAME:
            logger.warning(
                "Section %r: array_row and array_col give %.4g um per unit of obsm['spatial'], spot_diameter_fullres %.4g; "
                "the array is used. Check that the scale factors belong to these positions, or pass um_per_unit=.",
                sample, by_array, by_factor,
            )  # fmt: skip
        scale, why = by_array, BY_ARRAY
    elif by_factor is not None and (bins or _is_visium(pitch_of(xy) * by_factor)):
        scale, why = by_factor, f"uns['spatial'][{library!r}]['scalefactors']"
    else:
        return SpotScale(1.0, diameter, None, factors)
    if abs(scale - 1) <= _SAME:
        own = library if by_factor is not None and abs(by_factor - 1) <= TOLERATED else None
        return SpotScale(1.0, diameter, own, factors)
    logger.warning(
        "Section %r: obsm['spatial'] is not in micrometres; one unit is %.4g um (from %s), and positions were converted. "
        "Landmarks in the old unit need landmark_units=(1, %.4g) or 'pixels' in stmsi.pp.align.", sample, scale, why, scale,
    )  # fmt: skip
    if by_factor is not None and abs(by_factor / scale - 1) > TOLERATED:
        library = None  # its images belong to other positions
    return SpotScale(scale, diameter, library, factors, why)


def told_scale(adata: AnnData, sample: str) -> float | None:
    """Micrometres per unit of a section's positions, for plots; `None` where it is not known.

    Parameters
    ----------
    adata
        Spots or pixels of one section, with their centres in ``obsm["spatial"]``.
    sample
        Name of the section.

    Returns
    -------
    1 where stmsi made the section (it has mapped metabolites, elements named after it, or a note in ``uns["st_units"]``) or where
    spots lie as far apart as on a Visium array; else what the places on the array or the scale factors of ``uns["spatial"]`` say.
    """
    attrs = adata.uns.get("spatialdata_attrs", {})
    regions = np.atleast_1d(np.asarray(attrs.get("region", []), dtype=object)).astype(str)
    own = {Key.spots(sample), Key.pixels(sample), Key.synthetic_pixels(sample)}
    if Key.obs.COVERAGE in adata.obs or own & set(regions) or sample in adata.uns.get(Key.uns.UNITS, {}):
        return 1.0
    xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
    library = _library(adata, sample, warn=False)  # plots have no um_per_unit= to pass
    factors: Mapping[str, Any] = {} if library is None else adata.uns[Key.obsm.SPATIAL][library].get("scalefactors", {})
    scale = None if _number(factors, "bin_size_um") else array_scale(adata, xy)
    if scale is None:
        stated, pitch = factor_scale(factors), pitch_of(xy)
        fits = stated is not None and bool(_number(factors, "bin_size_um") or _is_visium(pitch * stated))
        scale = stated if fits else 1.0 if _is_visium(pitch) else None
    return 1.0 if scale is not None and abs(scale - 1) <= _SAME else scale


def um_positions(adata: AnnData, sample: str, scale: SpotScale) -> NDArray[np.float64]:
    """Centres of the spots in micrometres, (spots, 2); refuses or doubts a pitch that does not go with the spots."""
    xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2] * scale.um_per_unit
    _check_pitch(sample, xy, scale)
    return xy


def array_scale(adata: AnnData, xy: NDArray[np.float64]) -> float | None:
    """Micrometres per unit from the places on a Visium array; `None` where there is no such array.

    Neighbours in a row of the hexagonal array are two columns apart. An affine fit also holds on turned and mirrored slides.
    """
    if _ROW not in adata.obs or _COL not in adata.obs or len(xy) < _ENOUGH or not np.isfinite(xy).all():
        return None
    try:
        row, col = (adata.obs[key].to_numpy(dtype=np.float64) for key in (_ROW, _COL))
    except (TypeError, ValueError):
        return None
    if not np.isfinite(row + col).all() or len(set(((row + col) % 2).tolist())) != 1:
        return None
    um = np.column_stack([col * (VISIUM_PITCH / 2), row * (VISIUM_PITCH * np.sqrt(3) / 2)])
    design = np.column_stack([um, np.ones(len(um))])
    fit, _, rank, _ = np.linalg.lstsq(design, xy, rcond=None)
    stretch = np.linalg.svd(fit[:2], compute_uv=False)
    if rank < 3 or not stretch[1] > 0 or stretch[0] / stretch[1] > 1 + _NEAR:
        return None
    units_per_um = float(np.sqrt(stretch.prod()))
    off = np.sqrt(((design @ fit - xy) ** 2).sum(axis=1).mean()) / units_per_um
    return None if off > _NEAR * VISIUM_PITCH else 1 / units_per_um


def pitch_of(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest neighbour; NaN where it is unknown."""
    if len(xy) < 2 or not np.isfinite(xy).all():
        return float("nan")
    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))


def _is_visium(pitch: float) -> bool:
    return abs(pitch / VISIUM_PITCH - 1) <= _NEAR


def _number(factors: Mapping[str, Any], key: str) -> float | None:
    try:
        value = float(factors[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def factor_scale(factors: Mapping[str, Any]) -> float | None:
    """Micrometres per pixel of the full-resolution image, from the scale factors of Space Ranger."""
    stated, spot = _number(factors, _SMALL), _number(factors, _BIG[0])
    if stated is not None:
        return stated
    return None if spot is None else (_number(factors, "bin_size_um") or _SPOT_OF_SCALE_FACTORS) / spot


def _library(adata: AnnData, sample: str, *, warn: bool = True) -> str | None:
    """The entry of ``uns["spatial"]`` that belongs to a section."""
    spatial = adata.uns.get(Key.obsm.SPATIAL)
    if not isinstance(spatial, Mapping):
        return None
    known = [str(k) for k, v in spatial.items() if isinstance(v, Mapping) and "scalefactors" in v]
    if len(known) <= 1:
        return known[0] if known else None
    named = adata.obs["library_id"].dropna().astype(str).unique() if "library_id" in adata.obs else []
    fits = [name for name in known if name == sample or (len(named) == 1 and name == named[0])]
    if len(fits) == 1:
        return fits[0]
    if warn:
        logger.warning(
            "Section %r: uns['spatial'] has several libraries (%s) and none is called like the section; their scale factors are "
            "not used. Name it in obs['library_id'], or pass um_per_unit=.", sample, listing(known),
        )  # fmt: skip
    return None


def _check_pitch(sample: str, xy: NDArray[np.float64], scale: SpotScale) -> None:
    """Spots that overlap, or that lie oddly far apart, give away coordinates in another unit than micrometres."""
    pitch, diameter = pitch_of(xy), scale.spot_diameter
    if not np.isfinite(pitch):  # refused where the section is made
        return
    found = f"neighbouring spots are {pitch:.4g} um apart but {diameter:g} um wide"
    if pitch < _LEAST_RATIO * diameter:
        msg = (
            f'Section {sample!r}: {found}. Is obsm["spatial"] in another unit? Pass um_per_unit= (or the right '
            "spot_diameter=)."
        )
        raise ValueError(msg)
    low, high = _USUAL_RATIO
    usual = f"spots of {diameter:g} um usually lie {low * diameter:.4g} to {high * diameter:.4g} um apart"
    if diameter == VISIUM_SPOT_DIAMETER:
        usual = f"on a Visium array they are {VISIUM_PITCH:g} um apart"
        low, high = (VISIUM_PITCH / diameter * f for f in (1 - _NEAR, 1 + _NEAR))
    if not low <= pitch / diameter <= high:
        stated = factor_scale(scale.factors)
        hint = "" if stated is None else f" (uns['spatial'] states {stated:.4g} um per pixel)"
        logger.warning(
            "Section %r: %s; %s. Are the positions in pixels of an image? If so, check um_per_unit%s; for other spots pass "
            "spot_diameter=.", sample, found, usual, hint,
        )  # fmt: skip

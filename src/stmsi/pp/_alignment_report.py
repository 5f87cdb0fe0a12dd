"""How well sections are aligned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.registration.agreement import mask_iou, points_beside
from stmsi._core.registration.displacement import agreement
from stmsi._data.checks import require_spatialdata
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, sample_names
from stmsi.pp._alignment.section_geometry import Geometry, aligned, msi_components, section_geometry, st_components

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

REACH = 0.75
"""Distance up to which a pixel tells about a spot, in pitches."""
DOUBTFUL = "doubtful: pixels may lie in wrong places, whatever the residuals of landmarks say; see message"
UNSUPPORTED = "not known: genes and ions do not say that landmarks are right; look at stmsi.pl.alignment"


def alignment_report(
    sdata: SpatialData,
    *,
    intensities: bool = True,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
) -> pd.DataFrame:
    """How well each section is aligned.

    Parameters
    ----------
    sdata
        After :func:`stmsi.pp.align`.
    intensities
        Whether to compare what was measured, which takes most of the time.
    sample_key
        Column of ``obs`` with the section name.
    table_key, msi_table_key
        The ST and the MSI table.

    Returns
    -------
    One row per section with MSI:

    - ``aligned``, ``method``, ``model``, ``mirrored``, ``rotation_deg``, ``scale``: what was done;
    - ``n_landmarks``, ``outliers`` (rows of the landmarks that were left out, as text), ``rmse_um`` (at the others),
      ``tre_um`` and ``tre_max_um`` (median and maximum of the leave-one-landmark-out target registration error; two
      stages are added in quadrature);
    - ``folds``: share of the pixels that a deformation folds;
    - ``spots_covered``: share of the spots on tissue whose centre a pixel covers (after
      :func:`stmsi.pp.map_to_spots`: of the spots that pixels cover at all);
    - ``mask_iou``: intersection over union of ST tissue and pixels, at the spots of the capture frame. Where only spots on
      tissue are known, their rectangle counts as the frame;
    - ``information_before``, ``information``: mutual information (nats) of genes and ions, in their first pair of
      canonical components, each spot judged by an analysis without its surroundings. Before: the sections laid upon each
      other by their middles, not turned; after: aligned;
    - ``ambiguous``, ``message``: whether the data leave another alignment open, where `align` could tell;
    - ``resolution``: what the error supports claims about; "doubtful" where another reading of the landmarks agrees better,
      "not known" where genes and ions support none.

    Raises
    ------
    KeyError
        The tables do not exist.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata, model="affine")
    >>> stmsi.pp.alignment_report(sdata)["n_landmarks"].tolist()
    [8, 8, 8]
    """
    require_spatialdata(sdata)
    record = get_table(sdata, msi_table_key).uns.get(Key.uns.ALIGNMENT, {})
    st = get_table(sdata, table_key)
    rows = {}
    for name in sample_names(sdata, msi_table_key, sample_key):
        row: dict[str, Any] = {"aligned": name in record}
        if name in record:
            own = record[name]
            geometry = section_geometry(sdata, name, table_key=table_key, sample_key=sample_key)
            row |= _landmarks(own) | _masks(own, geometry)
            if intensities and len(geometry.spots):
                components = st_components(sdata, name, table_key, sample_key)
                row |= _information(components, msi_components(sdata, name, msi_table_key, sample_key), own, geometry)
            row |= {k: plain(own[k]) for k, plain in (("ambiguous", bool), ("message", str)) if k in own}
            error = (row["tre_um"], row["tre_max_um"], geometry.pitch)
            row["resolution"] = _told(own) or resolution(*error)
        if Key.obs.COVERAGE in st.obs:
            here = (st.obs[sample_key].astype(str) == name).to_numpy()
            row["spots_covered"] = float((st.obs.loc[here, Key.obs.COVERAGE] > 0).mean())
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(Key.obs.SAMPLE)


def resolution(tre: float, tre_max: float, pitch: float) -> str:
    """What an alignment with a target registration error (median, maximum; um) supports claims about."""
    if not np.isfinite(tre):
        return "error not known (no landmark to leave out): neighbourhoods, not single spots"
    if not np.isfinite(pitch):
        return f"about {tre:.0f} um"
    if tre_max <= pitch / 2:
        return f"single spots (error at most {tre_max:.0f} um, half a pitch is {pitch / 2:.0f} um)"
    rings = max(1, int(np.ceil(tre / pitch)))
    return f"neighbourhoods of {rings} ring{'s' if rings > 1 else ''} of spots (error {tre:.0f} um), not single spots"


def _told(own: dict[str, Any]) -> str:
    """What the record says beside the errors of landmarks; empty where those are all."""
    if "resolution" in own:
        return _refit_resolution(own["resolution"])
    if own.get("ambiguous"):
        return DOUBTFUL
    return "" if own.get("supported", True) else UNSUPPORTED


def _refit_resolution(spread: dict[str, Any]) -> str:
    """The same for an alignment without landmarks, from the spread of its refits."""
    stay = {k: float(spread[k]) for k in ("same_spot", "one_ring", "two_rings")}
    return (
        f"neighbourhoods, not single spots: refits move pixels by {float(spread['median_um']):.0f} um (90 %: "
        f"{float(spread['p90_um']):.0f} um); {stay['same_spot']:.0%} stay in their spot, {stay['one_ring']:.0%} within one "
        f"ring, {stay['two_rings']:.0%} within two. The true error may be larger"
    )


def _landmarks(own: dict[str, Any]) -> dict[str, Any]:
    matrix = np.asarray(own["matrix"])
    residual, tre = (np.asarray(own.get(k, []), dtype=float) for k in ("residual_um", "tre_um"))
    outliers = np.asarray(own.get("outliers", []), dtype=int)
    leg = np.asarray(own.get("leg", np.ones(len(residual))))
    kept = np.isin(np.arange(len(residual)), outliers, invert=True)
    errors = []  # of each leg: root mean square, median and maximum
    for number in np.unique(leg):
        left_out = tre[(leg == number) & np.isfinite(tre)]
        ends = (np.median(left_out), left_out.max()) if len(left_out) else (np.nan, np.nan)
        errors.append((np.sqrt(np.mean(residual[kept & (leg == number)] ** 2)), *ends))
    together = np.sqrt(np.square(errors).sum(axis=0)) if errors else np.full(3, np.nan)
    return {
        "method": str(own.get("method", "landmarks")),
        "model": str(own["model"]),
        "n_landmarks": int(own.get("n_landmarks", 0)),
        "mirrored": bool(own["mirrored"]),
        # of the matrix after undoing the mirror in x
        "rotation_deg": float(np.degrees(np.arctan2(-matrix[0, 1], matrix[1, 1]))),
        "scale": float(own["scale"]),
        "outliers": ", ".join(map(str, outliers)),
        **dict(zip(("rmse_um", "tre_um", "tre_max_um"), map(float, together), strict=True)),
        "folds": float(own.get("folds", 0.0)),
    }


def _masks(own: dict[str, Any], g: Geometry) -> dict[str, float]:
    """Masks, compared at the spots of the capture frame."""
    if len(g.spots) == 0:
        return {"spots_covered": np.nan, "mask_iou": np.nan}
    corners = aligned(own, g.corners.reshape(-1, 2)).reshape(g.corners.shape)
    on_tissue, beside = (points_on(xy, corners) for xy in (g.spots, points_beside(g.spots, g.others, g.pitch)))
    return {"spots_covered": float(on_tissue.mean()), "mask_iou": mask_iou(on_tissue, beside)}


def points_on(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points lie on a pixel, of pixels with corners of shape (k, 4, 2)."""
    import shapely

    out = np.zeros(len(points), dtype=bool)
    tree = shapely.STRtree(shapely.polygons(corners))
    out[tree.query(shapely.points(points), predicate="intersects")[0]] = True
    return out


def _information(
    st: NDArray[np.float64], msi: NDArray[np.float64], own: dict[str, Any], g: Geometry
) -> dict[str, float]:
    known = np.isfinite(msi).all(axis=1)
    middle = g.pixels - g.pixels.mean(axis=0) + g.spots.mean(axis=0)
    places = {"information_before": middle, "information": aligned(own, g.pixels)}
    return {k: agreement(g.spots, st, at[known], msi[known], REACH * g.pitch) for k, at in places.items()}

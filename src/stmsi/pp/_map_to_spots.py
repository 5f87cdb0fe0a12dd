"""Metabolites per spot from the pixels that a spot covers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.overlap import circle_polygon_overlap, weighted_mean
from stmsi._core.registration import apply_affine
from stmsi._keys import Key
from stmsi._logging import logger
from stmsi._validate import (
    as_csr,
    check_key,
    check_nonnegative,
    get_table,
    instances,
    listing,
    refuse_view,
    require_rows,
    require_sample,
    require_spatialdata,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def map_to_spots(
    sdata: SpatialData,
    *,
    layer: str | None = None,
    min_coverage: float = 0.0,
    key_added: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
) -> None:
    r"""Map aligned MSI pixels to spots by the exact area that they share.

    The value of metabolite :math:`m` in spot :math:`i` is the area-weighted mean over the pixels :math:`p`

    .. math:: y_{im} = \sum_p A_{ip} x_{pm} / \sum_p A_{ip}

    with :math:`A_{ip}` the exact area that the spot's circle and the pixel's parallelogram (its square after
    alignment) share. It is one sparse matrix product per section.

    Parameters
    ----------
    sdata
        After :func:`stmsi.pp.align`. Sections without MSI may be among them.
    layer
        Layer of the MSI table to map; `None`: ``X``. Sparse or dense.
    min_coverage
        Share of a spot's area that pixels must cover; below it the spot counts as not covered.
    key_added
        Where in ``obsm`` to write.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.
    msi_table_key
        The MSI table.

    Returns
    -------
    `None`. Writes into the ST table:

    - ``obsm["msi"]``: DataFrame spots x metabolites, float32; **NaN where MSI did not cover the spot** (or the section
      did not measure the ion), 0 where it did and found nothing;
    - ``obs["msi_coverage"]``: covered share of the spot's area, 0 to 1;
    - ``uns["msi"]``: ``features`` (the metabolites: ``name``, ``mz``, ...), ``params`` and, after
      :func:`stmsi.pp.combine`, ``section_mz`` (metabolites x sections, NaN where a section did not measure the ion).

    What belongs to an earlier mapping is removed: presence (``obsm["msi_presence"]``), and the records of what was imputed
    or corrected.

    Raises
    ------
    ValueError
        A section is not aligned, no spot is covered, pixels overlap each other, or intensities are negative or NaN.
    KeyError
        Missing tables, elements or layers.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    >>> sdata.tables["st"].obsm["msi"].shape
    (344, 12)
    """
    require_spatialdata(sdata)
    check_key(key_added)
    if not 0 <= min_coverage <= 1:
        msg = f"min_coverage is a share between 0 and 1, found {min_coverage!r}."
        raise ValueError(msg)
    st, msi = get_table(sdata, table_key), get_table(sdata, msi_table_key)
    refuse_view(st)
    require_rows(st)
    require_rows(msi, "pixels")
    if layer is not None and layer not in msi.layers:
        msg = f"The MSI table has no layer {layer!r}; layers: {listing(msi.layers)}."
        raise KeyError(msg)
    values = as_csr(msi.X if layer is None else msi.layers[layer])
    check_nonnegative(values, "MSI intensities")
    st_sample, msi_sample = require_sample(st, sample_key), require_sample(msi, sample_key)
    measured = msi.varm.get(Key.varm.MEASURED)

    mapped = np.full((st.n_obs, msi.n_vars), np.nan, dtype=np.float32)
    coverage = np.zeros(st.n_obs)
    for name in dict.fromkeys(msi_sample):
        spots, pixels = np.flatnonzero(st_sample == name), np.flatnonzero(msi_sample == name)
        if len(spots) == 0:
            logger.warning("Section %r has MSI but no spots; it is left out.", name)
            continue
        overlap, area = _overlap(sdata, name, st[spots], msi[pixels])
        mean, covered = weighted_mean(overlap, values[pixels])
        share = covered / area
        if share.max(initial=0) > 1 + 1e-6:
            msg = f"Section {name!r}: pixels overlap each other (a spot is covered {share.max():.3f} times)."
            raise ValueError(msg)
        coverage[spots] = np.minimum(share, 1.0)
        if not (share >= max(min_coverage, 1e-9)).any():
            logger.warning(
                "Section %r has MSI, but no spot of it is covered (largest coverage %.3f, min_coverage=%g): check its "
                "alignment (stmsi.pp.alignment_report). It takes no part in training.",
                name, share.max(initial=0), min_coverage,
            )  # fmt: skip
        mean[share < min_coverage] = np.nan
        if measured is not None and name in measured:
            mean[:, ~measured[name].to_numpy(bool)] = np.nan
        mapped[spots] = mean
    if not np.isfinite(mapped).any():
        msg = (
            "No spot is covered by any pixel. Check the alignment (stmsi.pp.alignment_report), the pixel size and "
            f"min_coverage={min_coverage}; the largest coverage is {coverage.max():.3f}."
        )
        raise ValueError(msg)
    st.obsm[key_added] = pd.DataFrame(mapped, index=st.obs_names, columns=msi.var_names.astype(str))
    st.obs[Key.obs.COVERAGE] = coverage
    params: dict[str, Any] = {"method": "area", "min_coverage": min_coverage, "layer": layer or "X"}
    if Key.uns.NORMALIZE in msi.uns:
        params["normalize_msi"] = dict(msi.uns[Key.uns.NORMALIZE]["params"])
    st.uns[key_added] = {"features": msi.var.copy(), "params": params}
    if Key.varm.SECTION_MZ in msi.varm:
        st.uns[key_added][Key.varm.SECTION_MZ] = msi.varm[Key.varm.SECTION_MZ].copy()
    for stale in (Key.observed_of(key_added), Key.uncorrected_of(key_added)):
        st.obsm.pop(stale, None)  # of an earlier mapping
    if st.obsm.pop(Key.presence_of(key_added), None) is not None:
        logger.info(
            "obsm[%r] was called from the earlier mapping and is removed; call stmsi.pp.call_presence again.",
            Key.presence_of(key_added),
        )


def _overlap(sdata: SpatialData, name: str, st: AnnData, msi: AnnData) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Areas shared by the spots and pixels of a section, in table order, and the areas of the spots (um^2)."""
    import shapely
    from spatialdata import transform
    from spatialdata.transformations import get_transformation

    frame = Key.st_frame(name)
    for element in (Key.spots(name), Key.pixels(name)):
        if element not in sdata.shapes:
            msg = f"No shapes {element!r}; shapes elements: {listing(sdata.shapes)}."
            raise KeyError(msg)
    pixels = sdata.shapes[Key.pixels(name)]
    to_st = get_transformation(pixels, get_all=True).get(frame)
    if to_st is None:
        msg = f"Section {name!r} is not aligned: its pixels have no place in {frame!r}. Call stmsi.pp.align first."
        raise ValueError(msg)
    matrix = to_st.to_affine_matrix(("x", "y"), ("x", "y"))
    outline = pixels.geometry.to_numpy()[_rows(pixels.index, msi, name)]
    outline = shapely.transform(outline, lambda xy: apply_affine(matrix, xy))

    spots = transform(sdata.shapes[Key.spots(name)], to_coordinate_system=frame)
    if "radius" in spots:
        rows = _rows(spots.index, st, name)
        centres = shapely.get_coordinates(spots.geometry.to_numpy()[rows])
        radii = spots["radius"].to_numpy(dtype=float)[rows]
        # relative to the section, so that far-off coordinates cost no precision
        origin = centres.mean(axis=0)
        vertices, polygon = shapely.get_coordinates(outline, return_index=True)
        areas = circle_polygon_overlap(centres - origin, radii, vertices - origin, polygon, len(outline))
        return areas, np.pi * radii**2
    shapes = spots.geometry.to_numpy()[_rows(spots.index, st, name)]
    pixel, spot = shapely.STRtree(shapes).query(outline, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[spot], outline[pixel]))
    return sp.csr_matrix((shared, (spot, pixel)), shape=(len(shapes), len(outline))), shapely.area(shapes)


def _rows(index: pd.Index, table: AnnData, name: str) -> NDArray[np.int64]:
    """Rows of an element that a table's observations annotate."""
    rows = index.get_indexer(instances(table))
    if (rows < 0).any():
        msg = f"{int((rows < 0).sum())} observations of section {name!r} annotate nothing in its shapes element."
        raise ValueError(msg)
    return rows

"""What an alignment reads of one section: where its pixels and spots are, and which of them lie on tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.spatial_components import summary_channels
from stmsi._core.registration.tissue_masks import coherent_tissue
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, get_table, instances, require_sample
from stmsi.pp._alignment.section_geometry import frame_matrix, to_msi_frame

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def section_table(sdata: SpatialData, key: str, name: str, sample_key: str) -> AnnData:
    """The observations of one section, as a view."""
    table = get_table(sdata, key)
    sample = require_sample(table, sample_key)
    if not (sample == name).any():
        msg = f"Table {key!r} has no section {name!r}; its sections: {listing(dict.fromkeys(sample))}."
        raise KeyError(msg)
    return table[sample == name]


def _geometry(sdata: SpatialData, element: str, table: AnnData, name: str) -> Any:
    if element not in sdata.shapes:
        msg = f"No shapes {element!r}; shapes elements: {listing(sdata.shapes)}."
        raise KeyError(msg)
    shapes = sdata.shapes[element]
    rows = shapes.index.get_indexer(instances(table))
    if (rows < 0).any():
        msg = f"{int((rows < 0).sum())} observations of section {name!r} annotate nothing in shapes {element!r}."
        raise ValueError(msg)
    return shapes.geometry.to_numpy()[rows]


def pixel_centres(
    sdata: SpatialData, name: str, table: AnnData
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centres and size of the pixels along their raster, and the matrix from there to the MSI frame."""
    import shapely

    outline = _geometry(sdata, Key.pixels(name), table, name)
    bounds = shapely.bounds(outline)
    if not np.isfinite(bounds).all():
        msg = f"Section {name!r}: {int((~np.isfinite(bounds).all(axis=1)).sum())} pixels have NaN coordinates; remove them."
        raise ValueError(msg)
    xy = (bounds[:, :2] + bounds[:, 2:]) / 2
    return (
        xy,
        np.median(bounds[:, 2:] - bounds[:, :2], axis=0),
        to_msi_frame(sdata, name),
    )


def spot_centres(sdata: SpatialData, name: str, table: AnnData) -> NDArray[np.float64]:
    """Centres of the spots in the ST frame, in table order."""
    import shapely

    centre = shapely.get_coordinates(shapely.centroid(_geometry(sdata, Key.spots(name), table, name)))
    if len(centre) != table.n_obs or not np.isfinite(centre).all():
        lost = table.n_obs - int(np.isfinite(centre).all(axis=1).sum())
        msg = f"Section {name!r}: {lost} spots have NaN coordinates; remove them."
        raise ValueError(msg)
    return apply_affine(frame_matrix(sdata, Key.spots(name), Key.st_frame(name)), centre)


def table_values(table: AnnData, layer: str | None, what: str) -> Any:
    """Counts or intensities as CSR."""
    if layer is not None and layer not in table.layers:
        msg = f"The {what} table has no layer {layer!r}; layers: {listing(table.layers)}."
        raise KeyError(msg)
    return as_csr(table.X if layer is None else table.layers[layer])


def pixels_on_tissue(table: AnnData, ions: Any) -> NDArray[np.bool_]:
    """Pixels on tissue: as ``obs`` says, else as the data show; all of them where there is no background to be seen."""
    if Key.obs.TISSUE in table.obs:
        return table.obs[Key.obs.TISSUE].to_numpy().astype(bool)
    row, col = (table.obs[k].to_numpy().astype(np.int64) for k in (Key.obs.ROW, Key.obs.COL))
    found = np.asarray((ions > 0).sum(axis=1)).ravel().astype(float)
    on = coherent_tissue(found, row, col)
    if on.all():
        total = (
            table.obs[Key.obs.TIC].to_numpy(float)
            if Key.obs.TIC in table.obs
            else np.expm1(summary_channels(ions)[:, 1])
        )
        on = coherent_tissue(total, row, col)
    return on & (found > 0) if on.all() and (found > 0).mean() < 0.97 else on

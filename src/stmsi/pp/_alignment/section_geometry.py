"""What an alignment reads of one section: places of spots and pixels, tissue, and components of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import shapely

from stmsi._core.mapping.nearest_pixels import lattice_pitch
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.spatial_components import spatial_components, summary_channels
from stmsi._core.registration.tissue_masks import coherent_tissue
from stmsi._core.registration.warps import apply_steps, read_steps
from stmsi._data.checks import listing
from stmsi._data.elements import annotated_rows, matrix_to, shapes_of
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, get_table, require_sample

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_N_COMPONENTS = 8
_N_GENES = 1000
_RECTANGLE, _LEAST_PIXELS = 0.97, 400
"""A raster that fills this share of its bounding box may show a background that its outline does not."""
_AT_EDGE = 0.1
"""Tissue that single ions tell from a background makes up at most this share of the edge of such a raster."""


@dataclass(frozen=True)
class Geometry:
    """Spots (in the ST frame) and pixels (in the MSI frame) of a section, in micrometres."""

    spots: NDArray[np.float64]  # centres of those on tissue, (n, 2), in the order of the ST table
    others: NDArray[np.float64]  # centres of the other spots of the capture frame, (m, 2)
    spot_radius: float  # median (of bins: of the circle of the same area); NaN without spots
    pixels: NDArray[np.float64]  # centres, (k, 2), in the order of their element
    corners: NDArray[np.float64]  # (k, 4, 2)
    to_msi: NDArray[np.float64]  # from the pixel element to the MSI frame, (3, 3)

    @property
    def pitch(self) -> float:
        """Distance between neighbouring spots."""
        return lattice_pitch(np.vstack([self.spots, self.others]))

    @property
    def pixel_size(self) -> float:
        """Side of a pixel: the root of its median area."""
        x, y = self.corners[..., 0], self.corners[..., 1]
        area = 0.5 * np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1))
        return float(np.sqrt(np.median(area)))


def section_geometry(sdata: SpatialData, name: str, *, table_key: str = Key.table.ST, sample_key: str) -> Geometry:
    """Geometry of a section with pixels; spots may be missing."""
    to_msi = to_msi_frame(sdata, name)
    outlines = shapely.normalize(sdata.shapes[Key.pixels(name)].geometry.to_numpy())
    # as many corners for each: pixels are squares, unless somebody drew their own
    four = shapely.get_num_coordinates(outlines) == 5
    if not four.all():
        outlines = np.where(four, outlines, shapely.envelope(outlines))
    corners = shapely.get_coordinates(outlines).reshape(len(outlines), 5, 2)[:, :4]
    corners = apply_affine(to_msi, corners.reshape(-1, 2)).reshape(-1, 4, 2)
    spots, others, radius = _spots(sdata, name, table_key, sample_key)
    return Geometry(spots, others, radius, corners.mean(axis=1), corners, to_msi)


def to_msi_frame(sdata: SpatialData, name: str) -> NDArray[np.float64]:
    """Matrix from the pixel element to the MSI frame; the identity where the pixels do not know it."""
    matrix = matrix_to(shapes_of(sdata, Key.pixels(name)), Key.msi_frame(name))
    return np.eye(3) if matrix is None else matrix


def aligned(record: dict[str, Any], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of the MSI frame in the ST frame, as the record of an alignment says."""
    if "warp" in record:
        return apply_steps(read_steps(record["warp"]), xy)
    return apply_affine(np.asarray(record["matrix"]), xy)


def section_table(sdata: SpatialData, key: str, name: str, sample_key: str) -> AnnData:
    """The observations of one section, as a view."""
    table = get_table(sdata, key)
    sample = require_sample(table, sample_key)
    if not (sample == name).any():
        msg = f"Table {key!r} has no section {name!r}; its sections: {listing(dict.fromkeys(sample))}."
        raise KeyError(msg)
    return table[sample == name]


def _spots(
    sdata: SpatialData, name: str, table_key: str, sample_key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Centres of the spots on tissue and of the others, and the median radius."""
    from spatialdata import transform

    nothing = np.empty((0, 2)), np.empty((0, 2)), float("nan")
    frame = Key.st_frame(name)
    if table_key not in sdata.tables or Key.spots(name) not in sdata.shapes:
        return nothing
    table, element = sdata.tables[table_key], sdata.shapes[Key.spots(name)]
    rows = np.flatnonzero(require_sample(table, sample_key) == name)
    if len(rows) == 0 or matrix_to(element, frame) is None:
        return nothing
    at = annotated_rows(sdata, Key.spots(name), table[rows], name)
    element = transform(element, to_coordinate_system=frame)
    middle = element.geometry.centroid
    xy = np.column_stack([middle.x, middle.y])
    radius = element["radius"] if "radius" in element else np.sqrt(element.geometry.area / np.pi)
    tissue = at[spots_on_tissue(table)[rows]]
    return xy[tissue], xy[np.setdiff1d(np.arange(len(xy)), tissue)], float(np.median(radius))


def spot_centres(sdata: SpatialData, name: str, table: AnnData) -> NDArray[np.float64]:
    """Centres of the spots in the ST frame, in table order."""
    element = Key.spots(name)
    rows = annotated_rows(sdata, element, table, name)
    centre = shapely.get_coordinates(shapely.centroid(sdata.shapes[element].geometry.to_numpy()[rows]))
    if len(centre) != table.n_obs or not np.isfinite(centre).all():
        lost = table.n_obs - int(np.isfinite(centre).all(axis=1).sum())
        msg = f"Section {name!r}: {lost} spots have NaN coordinates; remove them."
        raise ValueError(msg)
    matrix = matrix_to(sdata.shapes[element], Key.st_frame(name))
    return apply_affine(np.eye(3) if matrix is None else matrix, centre)


def pixel_centres(
    sdata: SpatialData, name: str, table: AnnData
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centres and size of the pixels along their raster, and the matrix from there to the MSI frame."""
    rows = annotated_rows(sdata, Key.pixels(name), table, name)
    bounds = shapely.bounds(sdata.shapes[Key.pixels(name)].geometry.to_numpy()[rows])
    if not np.isfinite(bounds).all():
        lost = int((~np.isfinite(bounds).all(axis=1)).sum())
        msg = f"Section {name!r}: {lost} pixels have NaN coordinates; remove them."
        raise ValueError(msg)
    low, high = bounds[:, :2], bounds[:, 2:]
    return (low + high) / 2, np.median(high - low, axis=0), to_msi_frame(sdata, name)


def spots_on_tissue(table: AnnData) -> NDArray[np.bool_]:
    """Spots on tissue; those of which ``obs`` does not say count as tissue."""
    if Key.obs.IN_TISSUE not in table.obs:
        return np.ones(table.n_obs, bool)
    return ~(table.obs[Key.obs.IN_TISSUE].to_numpy(dtype=float, na_value=np.nan) <= 0)


def pixels_on_tissue(table: AnnData, ions: sp.csr_matrix) -> NDArray[np.bool_]:
    """Pixels on tissue: as ``obs`` says, else as the data show; all of them where no background can be seen."""
    if Key.obs.TISSUE in table.obs and table.obs[Key.obs.TISSUE].notna().all():
        return table.obs[Key.obs.TISSUE].to_numpy().astype(bool)
    row, col = (table.obs[k].to_numpy().astype(np.int64) for k in (Key.obs.ROW, Key.obs.COL))
    found = np.asarray((ions > 0).sum(axis=1)).ravel().astype(float)
    on = coherent_tissue(found, row, col)
    if on.all():
        known = Key.obs.TIC in table.obs
        total = table.obs[Key.obs.TIC].to_numpy(float) if known else np.expm1(summary_channels(ions)[:, 1])
        on = coherent_tissue(total, row, col)
    if on.all():
        on = _tissue_of_components(ions, row, col)
    return on & (found > 0) if on.all() and (found > 0).mean() < 0.97 else on


def _tissue_of_components(ions: sp.csr_matrix, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tissue in a rectangle of pixels that differs from what surrounds it by single ions, not by their number or sum.

    Regions of tissue differ in their ions, too. Only one that the whole edge of the rectangle lies outside of counts.
    """
    everything = np.ones(len(row), bool)
    inner = (row > row.min()) & (row < row.max()) & (col > col.min()) & (col < col.max())
    if len(row) < _RECTANGLE * (np.ptp(row) + 1) * (np.ptp(col) + 1) or len(row) < _LEAST_PIXELS:
        return everything
    components, _ = spatial_components(ions, np.column_stack([col, row]).astype(float), 2, np.random.default_rng(0))
    for level in components.T:
        for value in (level, -level):
            on = coherent_tissue(np.expm1(value - value.min()), row, col)
            if not on.all() and on[~inner].mean() < _AT_EDGE:
                return on
    return everything


def st_components(sdata: SpatialData, name: str, table_key: str, sample_key: str) -> NDArray[np.float64]:
    """Leading principal components of the expression of a section's spots on tissue, standardised."""
    table = sdata.tables[table_key]
    own = (require_sample(table, sample_key) == name) & spots_on_tissue(table)
    counts = as_csr(table[own].X, np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.diags_array(np.median(total) / np.maximum(total, 1.0)) @ counts
    return _components(scaled.log1p(), _N_GENES)


def msi_components(sdata: SpatialData, name: str, table_key: str, sample_key: str) -> NDArray[np.float64]:
    """Leading principal components of the ions of a section, standardised, in the order of the pixel element."""
    section = section_table(sdata, table_key, name, sample_key)
    values = as_csr(section.X, np.float64)
    if Key.uns.NORMALIZE not in section.uns:
        total = np.asarray(values.sum(axis=1)).ravel()
        values = sp.diags_array(np.median(total) / np.maximum(total, 1e-12)) @ values
    level = np.asarray(values.sum(axis=0)).ravel() / np.maximum(np.diff(values.tocsc().indptr), 1)
    values = (values @ sp.diags_array(1 / np.maximum(level, 1e-12))).log1p()
    rows = annotated_rows(sdata, Key.pixels(name), section, name)
    found = _components(values, values.shape[1])
    out = np.full((len(sdata.shapes[Key.pixels(name)]), found.shape[1]), np.nan)
    out[rows] = found
    return out


def _components(values: sp.csr_matrix, n_features: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    values = sp.csr_matrix(values)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    chosen = np.argsort(-variance)[:n_features]
    chosen = chosen[variance[chosen] > 0]
    n = min(_N_COMPONENTS, len(chosen) - 1, values.shape[0] - 1)
    if n < 1:
        return np.zeros((values.shape[0], 1))
    found = PCA(n, svd_solver="arpack", random_state=0).fit_transform(values[:, np.sort(chosen)])
    return found / np.maximum(found.std(axis=0), 1e-12)

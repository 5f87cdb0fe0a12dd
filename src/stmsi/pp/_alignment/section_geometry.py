"""Places of the spots and pixels of one section, and components of what was measured there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stmsi._core.mapping.nearest_pixels import lattice_pitch
from stmsi._core.registration.warps import apply_steps, read_steps
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, instances, require_sample

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_N_COMPONENTS = 8
_N_GENES = 1000


@dataclass(frozen=True)
class Geometry:
    """Spots and pixels of a section, in micrometres.

    Attributes
    ----------
    spots
        Centres of the spots on tissue, in the ST frame, shape (n, 2), in the order of the ST table.
    others
        Centres of the other spots of the capture frame, shape (m, 2).
    spot_radius
        Median radius (of bins: of the circle of the same area); NaN without spots.
    pixels
        Centres of the pixels in the MSI frame, shape (k, 2), in the order of their element.
    corners
        Corners of the pixels in the MSI frame, shape (k, c, 2).
    to_msi
        Matrix from the pixel element to the MSI frame, shape (3, 3).
    """

    spots: NDArray[np.float64]
    others: NDArray[np.float64]
    spot_radius: float
    pixels: NDArray[np.float64]
    corners: NDArray[np.float64]
    to_msi: NDArray[np.float64]

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


def section_geometry(sdata: SpatialData, name: str, *, sample_key: str, st_table_key: str = Key.table.ST) -> Geometry:
    """Read the geometry of a section.

    Parameters
    ----------
    sdata
        With the pixels ``<sample>_pixels``; spots may be missing.
    name
        The section.
    sample_key
        Column of ``obs`` with the section name.
    st_table_key
        The ST table.
    """
    import shapely

    from stmsi._core.registration.landmarks import apply_affine

    to_msi = to_msi_frame(sdata, name)
    outlines = shapely.normalize(sdata.shapes[Key.pixels(name)].geometry.to_numpy())
    # as many corners for each: pixels are squares, unless somebody drew their own
    four = shapely.get_num_coordinates(outlines) == 5
    if not four.all():
        outlines = np.where(four, outlines, shapely.envelope(outlines))
    corners = shapely.get_coordinates(outlines).reshape(len(outlines), 5, 2)[:, :4]
    corners = apply_affine(to_msi, corners.reshape(-1, 2)).reshape(-1, 4, 2)
    spots, others, radius = _spots(sdata, name, st_table_key, sample_key)
    return Geometry(spots, others, radius, corners.mean(axis=1), corners, to_msi)


def frame_matrix(sdata: SpatialData, element: str, frame: str) -> NDArray[np.float64]:
    """Matrix from shapes to a coordinate system, shape (3, 3); the identity where they do not know it."""
    from spatialdata.transformations import get_transformation

    known = get_transformation(sdata.shapes[element], get_all=True)
    if frame not in known:
        return np.eye(3)
    return np.asarray(known[frame].to_affine_matrix(("x", "y"), ("x", "y")))


def to_msi_frame(sdata: SpatialData, name: str) -> NDArray[np.float64]:
    """Matrix from the pixel element to the MSI frame."""
    if Key.pixels(name) not in sdata.shapes:
        msg = f"No shapes {Key.pixels(name)!r}; shapes elements: {listing(sdata.shapes)}."
        raise KeyError(msg)
    return frame_matrix(sdata, Key.pixels(name), Key.msi_frame(name))


def aligned(record: dict[str, Any], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of the MSI frame in the ST frame, as the record of an alignment says."""
    from stmsi._core.registration.landmarks import apply_affine

    if "warp" in record:
        return apply_steps(read_steps(record["warp"]), xy)
    return apply_affine(np.asarray(record["matrix"]), xy)


def _spots(
    sdata: SpatialData, name: str, table_key: str, sample_key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    from spatialdata import transform
    from spatialdata.transformations import get_transformation

    nothing = np.empty((0, 2)), np.empty((0, 2)), float("nan")
    frame = Key.st_frame(name)
    if table_key not in sdata.tables or Key.spots(name) not in sdata.shapes:
        return nothing
    table, element = sdata.tables[table_key], sdata.shapes[Key.spots(name)]
    rows = np.flatnonzero(require_sample(table, sample_key) == name)
    if len(rows) == 0 or frame not in get_transformation(element, get_all=True):
        return nothing
    element = transform(element, to_coordinate_system=frame)
    middle = element.geometry.centroid
    xy = np.column_stack([middle.x, middle.y])
    radius = element["radius"] if "radius" in element else np.sqrt(element.geometry.area / np.pi)
    at = element.index.get_indexer(instances(table)[rows])
    if (at < 0).any():
        msg = f"{int((at < 0).sum())} observations annotate nothing in {Key.spots(name)!r}."
        raise ValueError(msg)
    tissue = np.ones(len(rows), dtype=bool)
    if Key.obs.IN_TISSUE in table.obs:
        tissue = table.obs[Key.obs.IN_TISSUE].to_numpy()[rows].astype(float) > 0
    rest = np.setdiff1d(np.arange(len(xy)), at[tissue])
    return xy[at[tissue]], xy[rest], float(np.median(radius))


def st_components(sdata: SpatialData, name: str, table_key: str, sample_key: str) -> NDArray[np.float64]:
    """Leading principal components of the expression of a section's spots on tissue, standardised."""
    table = sdata.tables[table_key]
    own = require_sample(table, sample_key) == name
    if Key.obs.IN_TISSUE in table.obs:
        own &= table.obs[Key.obs.IN_TISSUE].to_numpy().astype(float) > 0
    counts = as_csr(table[own].X, np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.diags_array(np.median(total) / np.maximum(total, 1.0)) @ counts
    return _components(scaled.log1p(), _N_GENES)


def msi_components(sdata: SpatialData, name: str, table_key: str, sample_key: str) -> NDArray[np.float64]:
    """Leading principal components of the ions of a section, standardised, in the order of the pixel element."""
    table = sdata.tables[table_key]
    section = table[require_sample(table, sample_key) == name]
    values = as_csr(section.X, np.float64)
    if Key.uns.NORMALIZE not in table.uns:
        total = np.asarray(values.sum(axis=1)).ravel()
        values = sp.diags_array(np.median(total) / np.maximum(total, 1e-12)) @ values
    level = np.asarray(values.sum(axis=0)).ravel() / np.maximum(np.diff(values.tocsc().indptr), 1)
    values = (values @ sp.diags_array(1 / np.maximum(level, 1e-12))).log1p()
    rows = _element_rows(sdata, name, section)
    found = _components(values, values.shape[1])
    out = np.full((len(sdata.shapes[Key.pixels(name)]), found.shape[1]), np.nan)
    out[rows] = found
    return out


def _element_rows(sdata: SpatialData, name: str, table: AnnData) -> NDArray[np.int64]:
    rows = sdata.shapes[Key.pixels(name)].index.get_indexer(instances(table))
    if (rows < 0).any():
        msg = f"{int((rows < 0).sum())} observations of section {name!r} annotate nothing in {Key.pixels(name)!r}."
        raise ValueError(msg)
    return rows


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

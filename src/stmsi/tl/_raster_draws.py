"""Draws on a raster over the tissue instead of on the spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stmsi._core.spatial.coregionalization import spacing
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEAREST = 4
"""Spots from which the maps are interpolated to a pixel."""
_REACH = 0.6
"""A pixel belongs to the tissue if a spot is nearer than this, in units of the distance between spots: on a hexagon the
corners of a spot's cell lie at 0.58."""


@dataclass(frozen=True)
class Places:
    """Where to draw: names, positions, sections, and both stages there."""

    names: list[str]
    xy: NDArray[np.float64] | None
    sample: NDArray[Any]
    probability: NDArray[np.float32]
    intensity: NDArray[np.float32]
    row: NDArray[np.int64] | None = None
    col: NDArray[np.int64] | None = None


def on_raster(spots: Places, size: float) -> Places:
    """Pixels over the spots of each section, with both stages interpolated."""
    assert spots.xy is not None
    number = np.unique(spots.sample, return_inverse=True)[1]
    pitch = spacing(spots.xy, number)
    if not np.isfinite(pitch):
        msg = "No section has two spots at different positions, between which a raster could be laid."
        raise ValueError(msg)
    parts: list[tuple[Any, ...]] = []
    for s in np.unique(number):
        own = np.flatnonzero(number == s)
        low = spots.xy[own].min(axis=0) - _REACH * pitch
        n_col, n_row = np.ceil((spots.xy[own].max(axis=0) + _REACH * pitch - low) / size).astype(int)
        row, col = (v.ravel() for v in np.indices((n_row, n_col)))
        xy = low + (np.column_stack([col, row]) + 0.5) * size
        k = min(_NEAREST, len(own))
        distance, at = KDTree(spots.xy[own]).query(xy, k=np.arange(1, k + 1))
        keep = distance[:, 0] <= max(_REACH * pitch, size / 2)
        weight = 1 / np.maximum(distance[keep], 0.05 * pitch) ** 2
        weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
        at = own[at[keep]]
        stages = [sum(weight[:, [i]] * v[at[:, i]] for i in range(k)) for v in (spots.probability, spots.intensity)]
        name = spots.sample[own[0]]
        parts.append((xy[keep], np.full(int(keep.sum()), name), *stages, row[keep], col[keep]))
    xy, sample, probability, intensity, row, col = (np.concatenate(v) for v in zip(*parts, strict=True))
    names = [f"{s}_{r}_{c}" for s, r, c in zip(sample, row, col, strict=True)]
    return Places(names, xy, sample, probability, intensity, row, col)


def write_pixels(
    sdata: Any,
    drawn: Any,
    places: Places,
    features: pd.DataFrame,
    size: float,
    record: dict[str, Any],
    table_added: str,
) -> None:
    """The table of pixels and its squares."""
    import geopandas as gpd
    import scipy.sparse as sp
    import shapely
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    assert places.xy is not None
    first, *others = (sp.csr_matrix(values) for values in drawn)
    obs = pd.DataFrame(
        {Key.obs.SAMPLE: pd.Categorical(places.sample), Key.obs.ROW: places.row, Key.obs.COL: places.col}
    )
    layers = {f"draw_{i + 1}": draw for i, draw in enumerate(others)}
    table = AnnData(first, obs=obs.set_axis(places.names), var=features.copy(), layers=layers)
    table.obsm[Key.obsm.SPATIAL] = places.xy
    shapes, names = {}, list(dict.fromkeys(places.sample))
    instance = np.empty(len(obs), np.int64)
    for name in names:
        own = np.flatnonzero(places.sample == name)
        x, y = (places.xy[own] - size / 2).T
        squares = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + size, y + size))
        frame = {Key.st_frame(name): Identity()}
        shapes[Key.synthetic_pixels(name)] = ShapesModel.parse(squares, transformations=frame)
        instance[own] = np.arange(len(own))
    table.obs[Key.obs.REGION] = pd.Categorical([Key.synthetic_pixels(s) for s in places.sample])
    table.obs[Key.obs.INSTANCE] = instance
    attrs = {name: {"pixel_size": np.array([size, size]), "synthetic": True} for name in names}
    table.uns[Key.uns.MSI], table.uns[Key.obsm.SAMPLE] = {"attrs": attrs}, record
    table = TableModel.parse(table, region=list(shapes), region_key=Key.obs.REGION, instance_key=Key.obs.INSTANCE)
    if table_added in sdata.tables:
        del sdata.tables[table_added]
    for name, element in shapes.items():
        if name in sdata.shapes:
            del sdata.shapes[name]
        sdata.shapes[name] = element
    sdata.tables[table_added] = table

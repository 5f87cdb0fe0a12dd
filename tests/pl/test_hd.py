"""Many bins: drawn as an image where they lie on a lattice."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Affine

import stmsi
from stmsi.pl._sections import Lattice


def bins(n: int, gap: float = 0.0, angle: float = 0.3) -> tuple[SpatialData, np.ndarray]:
    """A disc of bins of 8 um, turned, and their values (the distance to a point)."""
    row, col = np.indices((n, n))
    xy = np.column_stack([col.ravel(), row.ravel()]) * (8.0 + gap)
    xy = xy[np.hypot(*(xy - xy.mean(axis=0)).T) < 0.55 * n * 8]
    turn = np.array([[np.cos(angle), -np.sin(angle), 40], [np.sin(angle), np.cos(angle), -9], [0, 0, 1.0]])
    names = [f"b{i}" for i in range(len(xy))]
    obs = {"sample": "s", "region": pd.Categorical(["s_spots"] * len(xy)), "instance_id": np.arange(len(xy))}
    table = ad.AnnData(sp.csr_matrix((len(xy), 2), dtype=np.float32), obs=pd.DataFrame(obs, index=names))
    values = np.hypot(*(xy - 100).T)
    table.obsm["spatial"] = (np.column_stack([xy, np.ones(len(xy))]) @ turn.T)[:, :2]
    table.obsm["msi"] = pd.DataFrame({"a": values.astype(np.float32)}, index=names)
    table.uns["msi"] = {"features": pd.DataFrame({"name": ["glucose"]}, index=["a"])}
    squares = gpd.GeoDataFrame(geometry=shapely.box(*(xy - 4).T, *(xy + 4).T))
    shapes = ShapesModel.parse(squares, transformations={"s": Affine(turn, ("x", "y"), ("x", "y"))})
    keys = {"region": "s_spots", "region_key": "region", "instance_key": "instance_id"}
    return SpatialData(shapes={"s_spots": shapes}, tables={"st": TableModel.parse(table, **keys)}), values


def test_each_bin_is_a_pixel_in_its_place() -> None:
    sdata, values = bins(90)
    table = sdata.tables["st"]
    table.obsm["msi"].iloc[:50] = np.nan
    assert table.n_obs > 5000
    ax = stmsi.pl.spatial(sdata, "glucose", vmin=0, vmax=float(values.max()))
    assert len(ax.collections) == 0
    (image,) = ax.images
    picture = image.get_array()
    assert (picture[..., 3] > 0).sum() == table.n_obs
    # the pixel under the centre of a bin bears its colour
    to_um = (image.get_transform() - ax.transData).get_matrix()
    centre = np.column_stack([table.obsm["spatial"], np.ones(table.n_obs)])
    col, row = np.floor((centre @ np.linalg.inv(to_um).T)[:, :2]).astype(int).T
    shown = picture[row, col]
    np.testing.assert_allclose(shown[50:, :3], _viridis(values / values.max())[50:], atol=1e-2)
    np.testing.assert_allclose(shown[:50, :3], 0xDC / 255, atol=1e-3)
    ax.figure.canvas.draw()


def _viridis(share: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](share)[:, :3]


@pytest.mark.parametrize("kind", ["gaps", "few"])
def test_polygons_where_there_is_no_lattice(kind: str) -> None:
    sdata, _ = bins(110, gap=2.0) if kind == "gaps" else bins(20)
    (spots,) = stmsi.pl.spatial(sdata, "glucose").collections
    assert len(spots.get_paths()) == sdata.tables["st"].n_obs
    assert bool(spots.get_rasterized()) == (kind == "gaps")


def test_no_lattice_of_uneven_bins() -> None:
    corner = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=float)
    whole = corner + np.array([[0, 0], [3, 1], [1, 2]])[:, None]
    found = Lattice.find(whole)
    assert found is not None
    assert found.shape == (3, 4)
    assert list(zip(found.row, found.col, strict=True)) == [(0, 0), (1, 3), (2, 1)]
    assert Lattice.find(whole * np.array([1, 1, 1.5])[:, None, None]) is None
    assert Lattice.find(whole + np.array([0, 0.3, 0])[:, None, None]) is None
    assert Lattice.find(whole[[0, 1, 1]]) is None
    assert Lattice.find(whole + np.array([0, 500, 0])[:, None, None]) is None

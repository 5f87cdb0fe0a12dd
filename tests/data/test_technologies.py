"""The lines of the page on technologies, on stores in the layouts of spatialdata-io 0.7."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

import stmsi

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "technologies.md"
N = 16
ROW, COL = (a.ravel() for a in np.indices((4, 4)))
CELLS = np.column_stack([COL, ROW]) * 30.0 + 40
"""Centres of cells and bins in micrometres, in the order of the tables."""


def _table(region, region_key, instance_key, instances, **fields):
    obs = pd.DataFrame({instance_key: instances, region_key: pd.Categorical([region] * N)})
    table = AnnData(
        np.random.default_rng(0).poisson(3, (N, 4)).astype(np.float32), obs=obs.set_axis(map(str, range(N)))
    )
    for name, value in fields.items():
        getattr(table, name).update(value)
    return TableModel.parse(table, region=region, region_key=region_key, instance_key=instance_key)


def _squares(centre, width, index, transformations):
    low, high = centre - width / 2, centre + width / 2
    frame = GeoDataFrame(geometry=shapely.box(*low.T, *high.T), index=pd.Index(index))
    return ShapesModel.parse(frame, transformations=transformations)


def visium():
    """Circles in pixels of 0.4 um; returns the places in micrometres."""
    col = 2 * COL + ROW % 2
    um = np.column_stack([50.0 * col, 50 * np.sqrt(3) * ROW]) + 100
    table = _table("brain", "region", "spot_id", np.arange(N))
    table.obs["in_tissue"], table.obs["array_row"], table.obs["array_col"] = 1, ROW, col
    frames = {"brain": Identity(), "brain_downscaled_hires": Scale([0.1, 0.1], axes=("x", "y"))}
    circles = ShapesModel.parse(um / 0.4, geometry=0, radius=65 / 0.8, transformations=frames)
    image = Image2DModel.parse(
        np.zeros((3, 9, 9), np.uint8), dims=("c", "y", "x"), transformations={"brain_downscaled_hires": Identity()}
    )
    content = SpatialData(images={"brain_hires_image": image}, shapes={"brain": circles}, tables={"table": table})
    content.attrs["spatialdata_io_reader"] = "visium"
    return content, um


def visium_hd():
    frames = {"hd": Identity(), "hd_downscaled_hires": Scale([0.1, 0.1], axes=("x", "y"))}
    bins = _squares((np.column_stack([COL, ROW]) * 8.0 + 4) / 0.25, 32.0, np.arange(N), frames)
    shapes, tables = {"hd_square_008um": bins}, {}
    tables["square_008um"] = _table("hd_square_008um", "region", "location_id", np.arange(N))
    tables["square_016um"] = _table("hd_square_016um", "region", "location_id", np.arange(N))
    shapes["hd_square_016um"] = _squares(np.column_stack([COL, ROW]) * 64.0, 64.0, np.arange(N), frames)
    content = SpatialData(shapes=shapes, tables=tables, attrs={"spatialdata_io_reader": "visium_hd"})
    return content, np.column_stack([COL, ROW]) * 8.0 + 4


def xenium():
    """The table annotates labels; outlines in micrometres go into pixels of the morphology image."""
    names = [f"aaaa{i:04d}-1" for i in range(N)]
    frames = {"global": Scale([1 / 0.2125] * 2, axes=("x", "y"))}
    table = _table("cell_labels", "region", "cell_id", names)
    labels = Labels2DModel.parse(np.zeros((9, 9), int), dims=("y", "x"), transformations={"global": Identity()})
    image = Image2DModel.parse(np.zeros((1, 9, 9), np.uint16), dims=("c", "y", "x"))
    shapes = {
        "cell_boundaries": _squares(CELLS, 10, names, frames),
        "nucleus_boundaries": _squares(CELLS, 5, names, frames),
    }
    content = SpatialData(
        images={"morphology_focus": image}, labels={"cell_labels": labels}, shapes=shapes, tables={"table": table}
    )
    content.attrs["spatialdata_io_reader"] = "xenium"
    return content, CELLS


def merscope():
    """The reader writes no name of its own; a column ``region`` that means something else."""
    names = [str(10**12 + i) for i in range(N)]
    frames = {"global": Affine([[9.2, 0, 50], [0, 9.2, 60], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))}
    table = _table("slide_region_0_polygons", "cells_region", "EntityID", names)
    table.obs["region"] = pd.Categorical(["region_0"] * N)
    table.obsm["blank"] = pd.DataFrame(np.zeros((N, 2)), index=table.obs_names, columns=["Blank-1", "Blank-2"])
    polygons = _squares(CELLS, 10, names, frames)
    return SpatialData(shapes={"slide_region_0_polygons": polygons}, tables={"table": table}), CELLS


def cosmx():
    """Two fields of view whose cells have positions of their own; the table annotates the labels of both."""
    fov = np.where(COL < 2, "1", "2")
    obs = pd.DataFrame(
        {"fov": pd.Categorical(fov), "cell_ID": np.arange(N)}, index=[f"{i}_{f}" for i, f in enumerate(fov)]
    )
    obs["fov_labels"] = pd.Categorical([f"{f}_labels" for f in fov])
    table = AnnData(np.ones((N, 4), np.float32), obs=obs)
    slide = CELLS / 0.12028
    table.obsm["global"], table.obsm["spatial"] = slide, slide - np.where(fov == "1", 0, 500)[:, None]
    table = TableModel.parse(table, region=["1_labels", "2_labels"], region_key="fov_labels", instance_key="cell_ID")
    labels = {f"{f}_labels": Labels2DModel.parse(np.zeros((9, 9), int), dims=("y", "x")) for f in "12"}
    return SpatialData(labels=labels, tables={"table": table}, attrs={"spatialdata_io_reader": "cosmx"}), CELLS


def stereoseq():
    """Units of the chip; cells as circles and polygons, bins as points. The reader writes no name of its own."""
    names = [str(i) for i in range(N)]
    table = _table("cells_circles", "region", "instance_id", names, uns={"cellBin_attrs": {"version": 2}})
    circles = ShapesModel.parse(CELLS / 0.5, geometry=0, radius=np.full(N, 10.0), index=pd.Index(names))
    bins = _table("bin50_genes", "region", "instance_id", np.arange(N))
    points = PointsModel.parse(pd.DataFrame(CELLS / 0.5, columns=["x", "y"]))
    content = SpatialData(
        shapes={"cells_circles": circles, "cells_polygons": _squares(CELLS / 0.5, 20, names, {"global": Identity()})},
        points={"bin50_genes": points}, tables={"cells_table": table, "bin50_table": bins},
    )  # fmt: skip
    return content, CELLS


LAYOUTS = {
    "visium": visium,
    "visium_hd": visium_hd,
    "xenium": xenium,
    "merscope": merscope,
    "cosmx": cosmx,
    "stereoseq": stereoseq,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The stores of all layouts, and a small imzML file."""
    folder = tmp_path_factory.mktemp("technologies")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr and anndata announce defaults of their next releases
        for name, make in LAYOUTS.items():
            make()[0].write(folder / f"{name}.zarr")
    row, col = (a.ravel() for a in np.indices((5, 5)))
    pixels = AnnData(
        np.ones((25, 2), np.float32), obs=pd.DataFrame({"row": row, "col": col}, index=map(str, range(25)))
    )
    pixels.var["mz"] = [104.107, 760.5851]
    spots = AnnData(np.ones((3, 2)), obsm={"spatial": np.array([[0.0, 0], [100, 0], [50, 87]])})
    stmsi.io.write_imzml(stmsi.pp.combine({"s1": spots}, {"s1": pixels}, pixel_size=50), folder / "section.imzML")
    return folder


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of the source distribution")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*autosharding")
def test_the_lines_of_the_page(folder, monkeypatch, caplog, name):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    own = [block for block in blocks if re.search(rf"\b{name}\b", block)]
    assert own
    space: dict = {}
    exec(blocks[0], space)
    um = LAYOUTS[name]()[1]
    for block in own:
        caplog.clear()
        exec(block, space)
        table = space["sdata"].tables["st"]
        np.testing.assert_allclose(table.obsm["spatial"], um, rtol=1e-5)
        assert "nothing tells the unit" not in caplog.text
        assert sorted(space["sdata"].shapes) == ["s1_pixels", "s1_spots"]
    assert ("counts from the corner of each of 2 fields of view" in caplog.text) == (name == "cosmx")
    stmsi.pp.align(space["sdata"], transformation=np.eye(3))
    stmsi.pp.map_to_spots(space["sdata"])
    assert table.obsm["msi"].notna().any(axis=None)


def test_positions_on_the_slide_stay_what_they_are(caplog):
    """Of one field, or converted by the user."""
    given = cosmx()[0].tables["table"]
    given.obsm["spatial"] = CELLS
    np.testing.assert_allclose(stmsi.pp.combine({"A": given}, spot_diameter=10).tables["st"].obsm["spatial"], CELLS)
    one = given[given.obs["fov"] == "1"].copy()
    one.obsm["spatial"] = one.obsm["global"] - 7.0
    out = stmsi.pp.combine({"A": one}, um_per_unit=0.12028, spot_diameter=10).tables["st"].obsm["spatial"]
    np.testing.assert_allclose(out, (one.obsm["global"] - 7) * 0.12028)
    assert "fields of view" not in caplog.text


def test_several_rasters_under_one_name_are_refused_with_the_way():
    obs = pd.DataFrame({"row": [0, 0, 0, 0], "col": [0, 1, 0, 1]}, index=list("abcd"))
    st = AnnData(np.ones((3, 2)), obsm={"spatial": np.array([[0.0, 0], [100, 0], [50, 87]])})
    with pytest.raises(
        ValueError, match=r"Several rasters \(regions, polarities\) .* need a name each in obs\['sample'\]"
    ):
        stmsi.pp.combine({"s1": st}, {"s1": AnnData(np.ones((4, 1)), obs=obs)}, pixel_size=50)

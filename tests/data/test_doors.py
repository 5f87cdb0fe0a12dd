"""What scanpy, squidpy and spatialdata-io make goes into :func:`stmsi.pp.combine`, in micrometres."""

import shutil

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import stmsi

UM_PER_PX = 0.4
ROWS, COLS = 5, 4


def _array(turn=0.0, mirror=1):
    """Rows and columns of a Visium array, and the places of its spots in micrometres on a turned or mirrored slide."""
    row, col = (a.ravel() for a in np.indices((ROWS, COLS)))
    col = 2 * col + row % 2
    um = np.column_stack([50.0 * col, 50 * np.sqrt(3) * row])
    c, s = np.cos(turn), np.sin(turn)
    return row, col, um @ np.array([[c, s], [-s, c]]) * [mirror, 1] + 700


def _visium(um_per_px=UM_PER_PX, *, array=True, factors=True, turn=0.0, mirror=1, image=False):
    """A section as scanpy and squidpy read it."""
    row, col, um = _array(turn, mirror)
    st = AnnData(np.ones((len(um), 3), np.float32), obs=pd.DataFrame(index=[f"bc{i}" for i in range(len(um))]))
    if array:
        st.obs["in_tissue"], st.obs["array_row"], st.obs["array_col"] = 1, row, col
    st.obsm["spatial"] = um / um_per_px
    if factors:
        scale = {"spot_diameter_fullres": 65 / um_per_px, "fiducial_diameter_fullres": 144.0 / um_per_px}
        scale |= {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.02}
        pictures = {"hires": np.zeros((40, 50, 3), np.uint8), "lowres": np.zeros((8, 10, 3), np.uint8)} if image else {}
        st.uns["spatial"] = {"lib": {"scalefactors": scale, "images": pictures, "metadata": {}}}
    return st, um


@pytest.mark.parametrize("um_per_px", [0.2, 0.5, 0.85, 2.5])
@pytest.mark.parametrize(("array", "factors"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("turn", "mirror"), [(0, 1), (0.3, -1)])
def test_pixels_become_micrometres(um_per_px, array, factors, turn, mirror, caplog):
    st, um = _visium(um_per_px, array=array, factors=factors, turn=turn, mirror=mirror)
    before = st.copy()
    sdata = stmsi.pp.combine({"A": st})
    table = sdata.tables["st"]
    np.testing.assert_allclose(table.obsm["spatial"], um, rtol=1e-6)
    assert (sdata.shapes["A_spots"]["radius"] == 27.5).all()
    assert f"one unit is {um_per_px:.4g} um" in caplog.text
    assert "landmark_units=(1, " in caplog.text
    unit = table.uns["st_units"]["A"]
    assert unit["um_per_unit"] == pytest.approx(um_per_px)
    assert unit["source"] == ("array_row and array_col" if array else "uns['spatial']['lib']['scalefactors']")
    np.testing.assert_array_equal(st.obsm["spatial"], before.obsm["spatial"])
    if factors:
        assert st.uns["spatial"]["lib"]["scalefactors"] == before.uns["spatial"]["lib"]["scalefactors"]
        now = table.uns["spatial"]["lib"]["scalefactors"]
        assert now["spot_diameter_fullres"] == pytest.approx(65)
        assert now["tissue_hires_scalef"] * 1000 == pytest.approx(0.1 / um_per_px * 1000)
    # what comes out goes in again, and stays where it is
    caplog.clear()
    again = stmsi.pp.combine({"A": table}).tables["st"]
    np.testing.assert_allclose(again.obsm["spatial"], um, rtol=1e-6)
    assert "um" not in caplog.text
    assert again.uns["st_units"]["A"] == unit
    assert set(stmsi.pp.combine({"B": table}).tables["st"].uns["st_units"]) == {"B"}


def test_the_unit_that_positions_had_is_kept(through_zarr):
    a, _ = _visium(0.25)
    sdata = through_zarr(stmsi.pp.combine({"A": a, "B": _visium(1.0)[0], "C": _read_as_visium()[0]}))
    units = sdata.tables["st"].uns["st_units"]
    assert {name: unit["um_per_unit"] for name, unit in units.items()} == {
        "A": pytest.approx(0.25),
        "C": pytest.approx(UM_PER_PX),
    }
    # both conversions of a section that is converted twice
    twice = stmsi.pp.combine({"A": stmsi.pp.combine({"A": a}).tables["st"]}, um_per_unit=2.0)
    assert twice.tables["st"].uns["st_units"]["A"] == {
        "um_per_unit": pytest.approx(0.5),
        "source": "array_row and array_col; um_per_unit",
    }


def test_micrometres_stay_what_they_are(caplog):
    """Scale factors of pixels beside positions that somebody has converted already."""
    for array in (True, False):
        st, um = _visium(1.0, array=array, factors=False)
        st.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 130.0}}}
        np.testing.assert_allclose(stmsi.pp.combine({"A": st}).tables["st"].obsm["spatial"], um)
        assert "converted" not in caplog.text


def test_what_is_said_counts_more(caplog):
    st, um = _visium()
    out = stmsi.pp.combine({"A": st, "B": st}, um_per_unit={"A": 1.0, "B": UM_PER_PX}).tables["st"]
    xy = out.obsm["spatial"]
    np.testing.assert_allclose(xy[: len(um)], um / UM_PER_PX)
    np.testing.assert_allclose(xy[len(um) :], um)
    assert "Section 'A': neighbouring spots are 250 um apart" in caplog.text
    with pytest.raises(KeyError, match=r"um_per_unit= has no section 'B'; it has 'A'"):
        stmsi.pp.combine({"A": st, "B": st}, um_per_unit={"A": 1.0})


def test_ways_that_contradict_each_other_are_told(caplog):
    st, um = _visium()
    st.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] *= 2
    np.testing.assert_allclose(stmsi.pp.combine({"A": st}).tables["st"].obsm["spatial"], um)
    assert "the array is used" in caplog.text


@pytest.mark.parametrize(
    ("factor", "um_per_unit", "options", "told"),
    [
        (2.0, None, {}, True),
        (0.6, None, {}, True),
        (1.05, None, {}, False),
        (1.0, None, {}, False),
        (20.0, None, {}, True),
        (2.0, 0.5, {}, False),
        (2.0, None, {"spot_diameter": 100}, False),
        (10.0, None, {"spot_diameter": 100}, True),
    ],
)
def test_a_doubtful_pitch_is_warned_of_both_ways(factor, um_per_unit, options, told, caplog):
    st, _ = _visium(1 / factor, array=False, factors=False)
    stmsi.pp.combine({"A": st}, um_per_unit=um_per_unit, **options)
    assert ("check um_per_unit" in caplog.text) == told


def test_scale_factors_that_cannot_be_right_are_not_used(caplog):
    """squidpy writes spot_diameter_fullres = 1 for CosMx."""
    st, um = _visium(0.5, array=False)
    st.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] = 1
    np.testing.assert_allclose(stmsi.pp.combine({"A": st}).tables["st"].obsm["spatial"], um / 0.5)
    assert "states 65 um per pixel" in caplog.text


def test_several_libraries(caplog):
    a, um = _visium(0.5, array=False)
    b, _ = _visium(0.25, array=False)
    a.obs["sample"], b.obs["sample"] = "A", "B"
    both = AnnData(
        np.ones((2 * len(um), 3)), obs=pd.concat([a.obs, b.obs]).set_axis([f"s{i}" for i in range(2 * len(um))])
    )
    both.obsm["spatial"] = np.vstack([a.obsm["spatial"], b.obsm["spatial"]])
    both.uns["spatial"] = {"x": a.uns["spatial"]["lib"], "B": b.uns["spatial"]["lib"]}
    both.obs["library_id"] = ["x"] * len(um) + ["y"] * len(um)
    xy = stmsi.pp.combine(both).tables["st"].obsm["spatial"]
    np.testing.assert_allclose(xy, np.vstack([um, um]))
    del both.obs["library_id"]
    caplog.clear()
    xy = stmsi.pp.combine(both).tables["st"].obsm["spatial"]
    np.testing.assert_allclose(xy[len(um) :], um)
    assert "Section 'A': uns['spatial'] has several libraries ('x', 'B')" in caplog.text


def test_histology_comes_along(through_zarr):
    st, _ = _visium(image=True)
    sdata = stmsi.pp.combine({"A": st})
    assert sdata.images["A_he"].shape == (3, 40, 50)
    scale = get_transformation(sdata.images["A_he"], to_coordinate_system="A").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(np.diag(scale), [UM_PER_PX / 0.1, UM_PER_PX / 0.1, 1])
    assert list(sdata.tables["st"].uns["spatial"]["lib"]["images"]) == ["lowres"]
    assert set(st.uns["spatial"]["lib"]["images"]) == {"hires", "lowres"}
    assert "A_he" in through_zarr(sdata).images


def test_bins_of_visium_hd(caplog):
    row, col = (a.ravel() for a in np.indices((4, 4)))
    st = AnnData(
        np.ones((16, 3)), obs=pd.DataFrame({"array_row": row, "array_col": col}, index=[f"b{i}" for i in range(16)])
    )
    st.obsm["spatial"] = np.column_stack([col, row]) * 8 / 0.25
    factors = {"spot_diameter_fullres": 32.0, "bin_size_um": 8.0, "microns_per_pixel": 0.25, "tissue_hires_scalef": 0.1}
    st.uns["spatial"] = {"hd": {"scalefactors": factors, "images": {}}}
    sdata = stmsi.pp.combine({"A": st})
    np.testing.assert_allclose(sdata.tables["st"].obsm["spatial"], np.column_stack([col, row]) * 8)
    assert (sdata.shapes["A_spots"]["radius"] == 4).all()


# ------------------------------------------------------------------------------------------------------ one, unnamed


def test_one_section_takes_the_name_of_its_msi():
    msi = AnnData(np.ones((4, 1)), obs=pd.DataFrame({"row": [0, 0, 1, 1], "col": [0, 1, 0, 1]}, index=list("abcd")))
    st, _ = _visium(1.0)
    assert sorted(stmsi.pp.combine(st).shapes) == ["section_spots"]
    named = stmsi.pp.combine({"x": st}, {"x": msi}, pixel_size=50)
    alone = SpatialData(shapes={"x_pixels": named.shapes["x_pixels"]}, tables={"msi": named.tables["msi"]})
    for given in ({"x": msi}, alone):
        assert sorted(stmsi.pp.combine(st, given, pixel_size=50).shapes) == ["x_pixels", "x_spots"]
    assert "pixel_size" in named.tables["msi"].uns["msi"]["attrs"]["x"]
    # the table alone states the size of its pixels
    again = stmsi.pp.combine({"x": st}, {"x": named.tables["msi"]})
    assert again.tables["msi"].uns["msi"]["attrs"]["x"]["pixel_size"].tolist() == [50, 50]
    with pytest.raises(ValueError, match="needs pixel_size"):
        stmsi.pp.combine({"x": st}, {"x": msi})


# ---------------------------------------------------------------------------------------------------- spatialdata-io


def _annotating(table, region, instance_key):
    table.obs["region"] = pd.Categorical([region] * table.n_obs)
    return TableModel.parse(table, region=region, region_key="region", instance_key=instance_key)


def _read_as_visium(dataset="brain"):
    """The layout of spatialdata_io.visium: pixels of the full-resolution image, circles of 65 um."""
    st, um = _visium(factors=False)
    st.obs["spot_id"] = np.arange(st.n_obs)
    table = _annotating(st, dataset, "spot_id")
    hires = Scale([0.1, 0.1], axes=("y", "x"))
    frames = {dataset: Identity(), f"{dataset}_downscaled_hires": hires}
    circles = ShapesModel.parse(
        np.vstack([um / UM_PER_PX, [[0, 0]]]), geometry=0, radius=65 / UM_PER_PX / 2, transformations=frames
    )
    image = Image2DModel.parse(
        np.zeros((3, 40, 50), np.uint8),
        dims=("c", "y", "x"),
        transformations={f"{dataset}_downscaled_hires": Identity(), dataset: hires.inverse()},
    )
    return SpatialData(images={f"{dataset}_hires_image": image}, shapes={dataset: circles}, tables={"table": table}), um


def test_visium_of_spatialdata_io(through_zarr):
    given, um = _read_as_visium()
    sdata = stmsi.pp.combine({"A": given})
    assert sorted(sdata.shapes) == ["A_spots"]
    np.testing.assert_allclose(sdata.tables["st"].obsm["spatial"], um)
    assert (sdata.shapes["A_spots"]["radius"] == 27.5).all()
    assert len(sdata.shapes["A_spots"]) == len(um) + 1, "spots that the table left out are places of the frame"
    scale = get_transformation(sdata.images["A_he"], to_coordinate_system="A").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(np.diag(scale), [UM_PER_PX / 0.1, UM_PER_PX / 0.1, 1])
    assert set(get_transformation(given.images["brain_hires_image"], get_all=True)) == {
        "brain",
        "brain_downscaled_hires",
    }
    assert "region_given" not in sdata.tables["st"].obs
    assert stmsi.pp.combine(given).tables["st"].obs["sample"].tolist() == ["brain"] * len(um)
    again = stmsi.pp.combine(through_zarr(sdata))
    np.testing.assert_allclose(again.tables["st"].obsm["spatial"], um)


@pytest.mark.filterwarnings("ignore")  # those of scanpy and spatialdata-io
def test_what_the_readers_return(space_ranger, tmp_path):
    """scanpy, squidpy and spatialdata-io on one folder: the same places as stmsi's own reader."""
    import scanpy as sc
    import spatialdata_io
    import squidpy as sq

    um = space_ranger(tmp_path / "outs")
    pictures = tmp_path / "outs" / "spatial"
    shutil.copy(pictures / "tissue_hires_image.png", pictures / "tissue_lowres_image.png")
    own = stmsi.io.read_visium(tmp_path / "outs", sample="A")
    for given in (
        sc.read_visium(tmp_path / "outs", library_id="lib"),
        sq.read.visium(tmp_path / "outs", library_id="lib"),
        spatialdata_io.visium(tmp_path / "outs", dataset_id="brain"),
    ):
        sdata = stmsi.pp.combine({"A": given})
        table = sdata.tables["st"][own.tables["st"].obs_names]
        np.testing.assert_allclose(table.obsm["spatial"], um, rtol=1e-6)
        np.testing.assert_array_equal(table.X.toarray(), own.tables["st"].X.toarray())
        assert (sdata.shapes["A_spots"]["radius"] == own.shapes["A_spots"]["radius"].iloc[0]).all()
        here, there = (
            get_transformation(s.images["A_he"], to_coordinate_system="A").to_affine_matrix(("x", "y"), ("x", "y"))
            for s in (sdata, own)
        )
        np.testing.assert_allclose(here, there, rtol=1e-6)


def _cells(scale=1.0, n=12, **attrs):
    """The layout of Xenium and its like: circles of the cells in the table, outlines beside them, ids as text."""
    rng = np.random.default_rng(0)
    xy, names = rng.uniform(0, 500, (n, 2)) / scale, [f"cell-{i}" for i in range(n)]
    frames = {"global": Scale([4.7, 4.7], axes=("x", "y"))}
    circles = ShapesModel.parse(
        xy, geometry=0, radius=np.full(n, 5 / scale), index=pd.Index(names), transformations=frames
    )
    squares = GeoDataFrame(geometry=shapely.box(*(xy - 4 / scale).T, *(xy + 4 / scale).T), index=pd.Index(names))
    order = rng.permutation(n)
    obs = pd.DataFrame({"cell_id": [names[i] for i in order]}, index=[f"c{i}" for i in order])
    counts = AnnData(rng.poisson(2, (n, 3)).astype(np.float32), obs=obs)
    table = _annotating(counts, "cell_circles", "cell_id")
    shapes = {"cell_circles": circles, "cell_boundaries": ShapesModel.parse(squares, transformations=frames)}
    labels = Labels2DModel.parse(np.zeros((9, 9), int), dims=("y", "x"))
    return SpatialData(shapes=shapes, labels={"cell_labels": labels}, tables={"table": table}, attrs=attrs), xy[
        order
    ] * scale


@pytest.mark.parametrize("shapes_key", [None, "cell_boundaries"])
def test_cells_with_outlines(shapes_key, through_zarr, caplog):
    given, xy = _cells(spatialdata_io_reader="xenium")
    sdata = stmsi.pp.combine({"A": given}, shapes_key=shapes_key)
    assert "nothing tells" not in caplog.text
    np.testing.assert_allclose(sdata.tables["st"].obsm["spatial"], xy)
    element = sdata.shapes["A_spots"]
    area = np.pi * 25 if shapes_key is None else 64
    size = np.pi * element["radius"] ** 2 if shapes_key is None else element.area
    np.testing.assert_allclose(size, area)
    centre = element.geometry.centroid.iloc[sdata.tables["st"].obs["instance_id"]]
    np.testing.assert_allclose(np.column_stack([centre.x, centre.y]), xy)
    assert sdata.tables["st"].obs["cell_id"].tolist() == given.tables["table"].obs["cell_id"].tolist()
    assert len(through_zarr(sdata).shapes["A_spots"]) == len(xy)


def test_cells_on_their_way_to_metabolites():
    given, _ = _cells()
    row, col = (a.ravel() for a in np.indices((10, 10)))
    msi = AnnData(np.ones((100, 1)), obs=pd.DataFrame({"row": row, "col": col}, index=[f"p{i}" for i in range(100)]))
    sdata = stmsi.pp.combine(
        {"A": given, "B": _visium(1.0)[0]}, {"A": msi}, shapes_key="cell_boundaries", pixel_size=50
    )
    stmsi.pp.align(sdata, transformation={"A": np.eye(3)})
    stmsi.pp.map_to_spots(sdata)
    rows = (sdata.tables["st"].obs["sample"] == "A").to_numpy()
    assert (sdata.tables["st"].obsm["msi"][rows].dropna() == 1).all(axis=None)
    assert sdata.tables["st"].obsm["msi"][rows].notna().any(axis=None)


def test_units_that_nothing_tells(caplog):
    given, xy = _cells(scale=0.12)
    with pytest.raises(ValueError, match=r"hardly be micrometres. Pass um_per_unit= \(CosMx: 0.12028"):
        stmsi.pp.combine({"A": _cells(scale=0.01)[0]})
    sdata = stmsi.pp.combine({"A": given}, um_per_unit=0.12)
    np.testing.assert_allclose(sdata.tables["st"].obsm["spatial"], xy)
    assert "nothing tells the unit" not in caplog.text
    stmsi.pp.combine({"A": given})
    assert "nothing tells the unit of 'cell_circles'; its outlines, 83.33 wide" in caplog.text


@pytest.mark.parametrize("key", ["square_008um", "cells"])
def test_visium_hd_of_spatialdata_io(key):
    """Bins are squares in pixels; their name tells their size, and so the unit of the cells beside them."""
    row, col = (a.ravel() for a in np.indices((4, 4)))
    xy = np.column_stack([col, row]) * 32.0
    frames = {"hd": Identity()}

    def table(name):
        obs = pd.DataFrame({"location_id": np.arange(16)}, index=[f"b{i}" for i in range(16)])
        return _annotating(AnnData(np.ones((16, 3)), obs=obs), name, "location_id")

    bins = GeoDataFrame(geometry=shapely.box(*(xy - 16).T, *(xy + 16).T))
    cells = GeoDataFrame(geometry=shapely.box(*(xy - 12).T, *(xy + 12).T))
    shapes = {"hd_square_008um": ShapesModel.parse(bins, transformations=frames)}
    shapes["hd_cells"] = ShapesModel.parse(cells, transformations=frames)
    given = SpatialData(shapes=shapes, tables={"square_008um": table("hd_square_008um"), "cells": table("hd_cells")})
    sdata = stmsi.pp.combine({"A": given}, table_key=key)
    np.testing.assert_allclose(sdata.tables["st"].obsm["spatial"], xy / 4)
    np.testing.assert_allclose(sdata.shapes["A_spots"].area, 64 if key == "square_008um" else 36)
    with pytest.raises(
        ValueError, match="has 2 tables; name that of the counts by table_key=; tables: 'square_008um', 'cells'"
    ):
        stmsi.pp.combine({"A": given})


def test_turned_outlines_and_images_stay_together():
    given, _ = _read_as_visium()
    c, s = np.cos(0.2), np.sin(0.2)
    turn = Affine([[c, -s, 5], [s, c, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for element in (given.shapes["brain"], given.images["brain_hires_image"]):
        from spatialdata.transformations import Sequence, set_transformation

        both = Sequence([get_transformation(element, to_coordinate_system="brain"), turn])
        set_transformation(element, {"slide": both}, set_all=True)
    sdata = stmsi.pp.combine({"A": given})
    place = get_transformation(sdata.images["A_he"], to_coordinate_system="A").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(place, np.diag([UM_PER_PX / 0.1, UM_PER_PX / 0.1, 1]), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"table_key": "tabel"}, KeyError, "has no table 'tabel'; tables: 'table'. Did you mean 'table'"),
        (
            {"shapes_key": "cell_boundary"},
            KeyError,
            "No shapes 'cell_boundary'; shapes: .*Did you mean 'cell_boundaries'",
        ),
    ],
)
def test_wrong_keys_are_named(options, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.combine({"A": _cells()[0]}, **options)


def test_tables_without_outlines_are_told_the_way():
    given, _ = _cells()
    table = given.tables["table"]
    table.obs["region"] = pd.Categorical(["cell_labels"] * table.n_obs)
    table.uns["spatialdata_attrs"]["region"] = "cell_labels"
    with pytest.raises(ValueError, match=r"it annotates 'cell_labels'.*shapes_key=.*spatialdata.to_polygons"):
        stmsi.pp.combine({"A": given})
    given, _ = _cells()
    given.shapes["cell_boundaries"] = given.shapes["cell_boundaries"].iloc[2:]
    with pytest.raises(
        ValueError, match="2 of 12 observations of table 'table' have no outline in shapes 'cell_boundaries'"
    ):
        stmsi.pp.combine({"A": given}, shapes_key="cell_boundaries")

"""``read_imzml(out=)``: the same as in memory, whole or not there."""

import copy
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import spatialdata
import zarr
from spatialdata.config import settings as spatialdata_settings
from spatialdata.transformations import get_transformation

from stmsi._data import sections
from stmsi._imzml import extract as _imzml_extract
from stmsi.io import _msi_store, _stored_pixels, read_imzml
from stmsi.pp import normalize_msi

RNG = np.random.default_rng(0)
AXIS = np.linspace(100, 900, 400)
SECTIONS = {
    "processed": {
        (x, y): (np.sort(RNG.uniform(100, 900, 40)), RNG.integers(1, 50, 40))
        for y in range(1, 13)
        for x in range(1, 18)
    },
    "continuous": {(x, y): (AXIS, RNG.poisson(0.5, 400)) for y in range(1, 9) for x in range(1, 8)},
}


@pytest.fixture(params=["processed", "continuous"])
def path(request, tmp_path, handmade):
    return handmade(tmp_path / "a.imzML", SECTIONS[request.param], mode="processed")


@pytest.fixture
def small(monkeypatch):
    """Chunks so small that there are many."""
    monkeypatch.setattr(_imzml_extract, "_CHUNK_ROWS", 16)
    monkeypatch.setattr(_msi_store, "_SMALLEST_CHUNK", 100)
    monkeypatch.setattr(_msi_store, "_LARGEST_CHUNK", 100)
    monkeypatch.setattr(_msi_store, "_LAZY_VALUES", 500)
    monkeypatch.setattr(_stored_pixels, "_BLOCK", 25)
    monkeypatch.setattr(_stored_pixels, "_OUTLINES", 15)


@pytest.mark.usefixtures("small", "engine")
@pytest.mark.parametrize("mz", [None, RNG.permutation(np.linspace(110, 890, 60))])
def test_store_equals_memory(path, tmp_path, mz):
    options = {"mz": mz, "tolerance": 2000, "min_frequency": 0.0}
    here = read_imzml(path, **options)
    lazy = read_imzml(path, **options, out=tmp_path / "a.zarr")
    again = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert str(lazy.path) == str(tmp_path / "a.zarr")
    table = lazy.tables["msi"]
    assert hasattr(table.X, "compute")
    assert len(table.X.chunks[0]) > 1
    for found in (table.X.compute(), again.tables["msi"].X):
        assert found.has_sorted_indices
        np.testing.assert_array_equal(found.toarray(), here.tables["msi"].X.toarray())
    for other in (table, again.tables["msi"]):
        pd.testing.assert_frame_equal(other.obs, here.tables["msi"].obs)
        np.testing.assert_array_equal(other.obsm["spatial"], here.tables["msi"].obsm["spatial"])
        np.testing.assert_array_equal(other.var["mz"], here.tables["msi"].var["mz"])
    for sdata in (lazy, again):
        assert set(sdata.images) == {"a_tic"}
        np.testing.assert_array_equal(sdata.images["a_tic"], here.images["a_tic"])
        found, expected = sdata.shapes["a_pixels"], here.shapes["a_pixels"]
        pd.testing.assert_index_equal(found.index, expected.index, exact=True)
        assert found.geometry.geom_equals_exact(expected.geometry, 0).all()
        assert get_transformation(found, get_all=True) == get_transformation(expected, get_all=True)
        matched = spatialdata.match_table_to_element(sdata, "a_pixels", table_name="msi")
        assert list(matched.obs_names) == list(here.tables["msi"].obs_names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML", "a.zarr"]
    normalize_msi(lazy, tic_key="tic")
    normalize_msi(here, tic_key="tic")
    np.testing.assert_allclose(lazy.tables["msi"].X.toarray(), here.tables["msi"].X.toarray())


def test_store_has_few_files_and_large_chunks(path, tmp_path):
    read_imzml(path, mz=AXIS[::4], tolerance=500, out=tmp_path / "a.zarr")
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "a.zarr")) < 120
    group = zarr.open_group(tmp_path / "a.zarr" / "tables" / "msi" / "X", mode="r")
    for name in ("data", "indices"):
        assert np.prod(group[name].chunks) * group[name].dtype.itemsize >= 1_000_000


def test_a_store_that_exists_is_kept(path, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match=r"a.zarr exists; remove it or name another store"):
        read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "mine").read_text() == "x"
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_imzml(path, mz=[500.0], out=tmp_path / "none" / "a.zarr")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("of", "where"),
    [
        (_msi_store.StoredRows, "append"), (_stored_pixels, "_as_table"), (_stored_pixels, "_arrays_of"),
        (_msi_store.StoredRows, "finish"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("small")
def test_a_failure_leaves_nothing(path, tmp_path, monkeypatch, error, of, where):
    def fails(*_):
        raise error

    monkeypatch.setattr(of, where, fails)
    with pytest.raises(error):
        read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML"]


def test_a_bad_spectrum_leaves_nothing(tmp_path, handmade):
    spectra = {**SECTIONS["processed"], (40, 40): ([100.0], [-3.0])}
    path = handmade(tmp_path / "a.imzML", spectra)
    with pytest.raises(ValueError, match=r"x=40, y=40 has 1 intensities that are negative"):
        read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML"]


@pytest.mark.parametrize("encoding", ["WKB", "geoarrow"])
@pytest.mark.usefixtures("small")
def test_outlines_are_the_file_that_geopandas_writes(path, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(spatialdata_settings, "shapes_geometry_encoding", encoding)
    read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    read_imzml(path, mz=[500.0]).write(tmp_path / "b.zarr")
    ours, theirs = (
        pq.ParquetFile(tmp_path / store / "shapes/a_pixels/shapes.parquet") for store in ("a.zarr", "b.zarr")
    )
    assert ours.num_row_groups > 1
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)
    assert ours.read().equals(theirs.read())


@pytest.mark.usefixtures("small")
def test_arrays_are_those_that_anndata_writes(path, tmp_path):
    read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    read_imzml(path, mz=[500.0]).write(tmp_path / "b.zarr")
    ours, theirs = (
        dict(zarr.open_group(tmp_path / store / "tables/msi", mode="r").members(None)) for store in ("a.zarr", "b.zarr")
    )
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert dict(ours[name].attrs) == dict(expected.attrs), name
        if isinstance(expected, zarr.Array):
            assert ours[name].dtype == expected.dtype, name
            np.testing.assert_array_equal(ours[name][...], expected[...], err_msg=name)


def test_outlines_are_read_when_asked_for(path, tmp_path, monkeypatch):
    read = []
    original = spatialdata.SpatialData.read
    monkeypatch.setattr(
        spatialdata.SpatialData, "read", lambda *a, **k: read.append(k["selection"]) or original(*a, **k)
    )
    monkeypatch.chdir(tmp_path)
    sdata = read_imzml(path, mz=[500.0], out="a.zarr")
    monkeypatch.chdir(tmp_path.parent)
    assert list(sdata.shapes) == ["a_pixels"]
    assert "a_pixels" in sdata.shapes
    assert read == [("images",)]
    outlines = sdata["a_pixels"]
    assert read == [("images",), ("shapes",)]
    assert outlines is sdata.shapes["a_pixels"]
    assert len(outlines) == sdata.tables["msi"].n_obs
    assert len(read) == 2
    with pytest.raises(KeyError):
        sdata.shapes["b_pixels"]
    with pytest.raises(KeyError, match="A_pixels"):
        sdata.images["A_pixels"] = sdata.images["a_tic"]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (repr, "GeoDataFrame shape: ({}, 1)"),
        (lambda sdata: repr(sdata.shapes), "POLYGON"),
        (lambda sdata: str([len(outlines) for outlines in sdata.shapes.values()]), "[{}]"),
        (lambda sdata: str({name: len(outlines) for name, outlines in sdata.shapes.items()}), "{{'a_pixels': {}}}"),
    ],
)
def test_outlines_come_by_every_way(path, tmp_path, use, said):
    sdata = read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert said.format(sdata.tables["msi"].n_obs) in use(sdata)
    copy.deepcopy(sdata).write(tmp_path / "b.zarr")
    assert len(spatialdata.read_zarr(tmp_path / "b.zarr").shapes["a_pixels"]) == sdata.tables["msi"].n_obs
    sdata.shapes["more"] = sdata.shapes["a_pixels"].copy()
    del sdata.shapes["a_pixels"]
    assert list(sdata.shapes) == ["more"]


def test_a_single_pixel(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", {(3, 5): ([500.0], [2.0])})
    sdata = read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert sdata.shapes["a_pixels"].geometry.equals(read_imzml(path, mz=[500.0]).shapes["a_pixels"].geometry)


@pytest.mark.usefixtures("small")
def test_pixels_are_never_all_in_memory(path, tmp_path, monkeypatch):
    """The outlines and the names that exist at once are those of one block, and together they are those of all pixels."""
    made = {"pixel_squares": [], "pixel_columns": []}
    for module in (_stored_pixels, sections):
        for name, sizes in made.items():

            def counted(row, *args, _original=getattr(sections, name), _sizes=sizes, **options):
                _sizes.append(len(row))
                return _original(row, *args, **options)

            monkeypatch.setattr(module, name, counted)
    n = read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr").tables["msi"].n_obs
    assert max(made["pixel_squares"]) <= 15 < n
    assert max(made["pixel_columns"]) <= 25 < n
    assert sum(made["pixel_columns"]) == n
    assert sum(made["pixel_squares"]) - n in (2, 4)  # the corners, once for the store and once for the result

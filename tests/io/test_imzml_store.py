"""``read_imzml(out=)``: the same as in memory, whole or not there."""

import os

import numpy as np
import pytest
import spatialdata

from stmsi._imzml import extract as _imzml_extract
from stmsi.io import _msi_store, read_imzml
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
        assert other.obs.equals(here.tables["msi"].obs)
        np.testing.assert_array_equal(other.var["mz"], here.tables["msi"].var["mz"])
    for sdata in (lazy, again):
        assert set(sdata.images) == {"a_tic"}
        assert sdata.shapes["a_pixels"].geometry.equals(here.shapes["a_pixels"].geometry)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML", "a.zarr"]
    normalize_msi(lazy, tic_key="tic")
    normalize_msi(here, tic_key="tic")
    np.testing.assert_allclose(lazy.tables["msi"].X.toarray(), here.tables["msi"].X.toarray())


def test_store_has_few_files_and_large_chunks(path, tmp_path):
    read_imzml(path, mz=AXIS[::4], tolerance=500, out=tmp_path / "a.zarr")
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "a.zarr")) < 120
    import zarr

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
@pytest.mark.parametrize("where", ["append", "finish"])
def test_a_failure_leaves_nothing(path, tmp_path, monkeypatch, error, where):
    def fails(*_):
        raise error

    monkeypatch.setattr(_msi_store.StoredRows, where, fails)
    with pytest.raises(error):
        read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML"]


def test_a_bad_spectrum_leaves_nothing(tmp_path, handmade):
    spectra = {**SECTIONS["processed"], (40, 40): ([100.0], [-3.0])}
    path = handmade(tmp_path / "a.imzML", spectra)
    with pytest.raises(ValueError, match=r"x=40, y=40 has 1 intensities that are negative"):
        read_imzml(path, mz=[500.0], out=tmp_path / "a.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ibd", "a.imzML"]

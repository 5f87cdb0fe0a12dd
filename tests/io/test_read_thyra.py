import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from stmsi.io import read_imzml, read_thyra

WIDTH, HEIGHT, MZ = 4, 3, [100.1, 200.2, 300.3, 400.4]


def _slice(name, z=None, seed=0, regions=False, size=50.0):
    """A table and its pixels as thyra 1.27 writes them: the raster in obs, CSC, squares centred on the raster."""
    y, x = (a.ravel() for a in np.indices((HEIGHT, WIDTH)))
    keep = ~((x == 1) & (y == 1))  # thyra leaves positions without a spectrum out
    if z is not None:
        x, y, keep = (np.tile(a, z) for a in (x, y, keep))
    obs = pd.DataFrame({"y": y, "x": x, "region": f"{name}_pixels"}, index=np.arange(len(x)).astype(str))
    if z is not None:
        obs["z"] = np.repeat(np.arange(z), len(x) // z)
        obs["spatial_z"] = obs["z"] * size
    obs["spatial_x"], obs["spatial_y"] = obs["x"] * size, obs["y"] * size
    obs["region_number"] = np.where(obs["x"] < 2, 1, 2).astype(np.int32) if regions else np.int32(1)
    obs["instance_key"] = obs.index
    obs = obs[keep].rename_axis("instance_id")
    obs["region"] = obs["region"].astype("category")
    X = np.random.default_rng(seed).poisson(2, (len(obs), len(MZ))).astype(float)
    X[0], X[1] = 0, 1
    var = pd.DataFrame({"mz": MZ}, index=[f"mz_{i}" for i in range(len(MZ))])
    adata = AnnData(sp.csc_matrix(X), obs=obs, var=var)
    adata.uns["average_spectrum"] = X.mean(axis=0)
    if z is None:
        adata.uns["essential_metadata"] = {"spectrum_type": "centroid spectrum", "thyra_version": "1.27.3"}
    table = TableModel.parse(adata, region=f"{name}_pixels", region_key="region", instance_key="instance_key")
    half = size / 2
    boxes = shapely.box(*(obs[f"spatial_{axis}"] + side for side in (-half, half) for axis in "xy"))
    return table, ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes, index=obs.index))


def _store(path, slices, **attrs):
    sdata = SpatialData(
        tables={name: table for name, (table, _) in slices.items()},
        shapes={f"{name}_pixels": shapes for name, (_, shapes) in slices.items()},
    )
    sdata.attrs.update(attrs or {"pixel_size_x_um": 50.0, "pixel_size_y_um": 50.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(path)
    return path


def _values(table, sample):
    own = table[(table.obs["sample"] == sample).to_numpy()]
    return dict(zip(zip(own.obs["row"], own.obs["col"], strict=True), own.X.toarray().tolist(), strict=True))


def _expected(source):
    rows = source.X.toarray().astype(np.float32)
    places = zip(source.obs["y"], source.obs["x"], strict=True)
    return {place: row.tolist() for place, row in zip(places, rows, strict=True) if row.any()}


def test_one_slice(tmp_path, through_zarr):
    source = _slice("run_z0")
    sdata = read_thyra(_store(tmp_path / "run.zarr", {"run_z0": source}))
    table = sdata.tables["msi"]
    assert set(sdata.shapes) == {"run_pixels"}
    assert sp.issparse(table.X)
    assert table.X.dtype == np.float32
    assert _values(table, "run") == _expected(source[0])
    np.testing.assert_allclose(table.var["mz"], MZ)
    assert table.var_names[0] == "mz_100.1000"
    attrs = table.uns["msi"]["attrs"]["run"]
    assert (attrs["table"], attrs["spectrum_type"], attrs["pixel_size"].tolist()) == (
        "run_z0",
        "centroid spectrum",
        [50, 50],
    )
    # squares as large as thyra's, half a pixel further on
    own = sdata.shapes["run_pixels"].geometry.iloc[0].bounds
    theirs = source[1].geometry.iloc[1].bounds
    assert np.subtract(own, theirs).tolist() == [25, 25, 25, 25]
    again = through_zarr(sdata)
    np.testing.assert_array_equal(again.tables["msi"].X.toarray(), table.X.toarray())
    assert read_thyra(tmp_path / "run.zarr", keep_empty=True).tables["msi"].n_obs == table.n_obs + 1


@pytest.mark.parametrize("volume", [False, True])
def test_slices_become_sections(tmp_path, volume):
    slices = {"run": _slice("run", z=2)} if volume else {f"run_z{z}": _slice(f"run_z{z}", seed=z) for z in (0, 1)}
    path = _store(tmp_path / "run.zarr", slices)
    sdata = read_thyra(path)
    assert set(sdata.shapes) == {"run_z0_pixels", "run_z1_pixels"}
    for z in (0, 1):
        source = slices["run"][0] if volume else slices[f"run_z{z}"][0]
        source = source[(source.obs["z"] == z).to_numpy()] if volume else source
        assert _values(sdata.tables["msi"], f"run_z{z}") == _expected(source)
    assert sdata.tables["msi"].varm["measured"].all(axis=None)
    one = read_thyra(path, sample="liver", slices="liver_z1")
    assert set(one.shapes) == {"liver_z1_pixels"}
    with pytest.raises(KeyError, match=r"No section 'run_z2' in run.zarr; found 'run_z0', 'run_z1'.*Did you mean"):
        read_thyra(path, slices="run_z2")


def test_a_store_that_thyra_itself_has_written(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thyra = pytest.importorskip("thyra.convert", reason="thyra is not installed")
    from pyimzml.ImzMLWriter import ImzMLWriter

    rng = np.random.default_rng(0)
    with ImzMLWriter(str(tmp_path / "run.imzML"), mode="continuous") as writer:
        for z, y, x in np.ndindex(2, HEIGHT, WIDTH):
            if (x, y) != (1, 1):
                writer.addSpectrum(np.array(MZ), rng.poisson(2, len(MZ)) + 1.0, (x + 1, y + 1, z + 1))
    for volume in (False, True):
        store = tmp_path / f"{volume}.zarr"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"dataset_id": "run", "pixel_size_um": 50.0, "handle_3d": volume}
            assert thyra.convert_msi(tmp_path / "run.imzML", store, **options)
        table = read_thyra(store).tables["msi"]
        for z in (0, 1):
            direct = read_imzml(tmp_path / "run.imzML", z=z + 1, pixel_size=50).tables["msi"]
            assert _values(table, f"run_z{z}") == _values(direct, "run")
            np.testing.assert_allclose(table.var["mz"], direct.var["mz"])


def test_regions_can_become_sections(tmp_path):
    path = _store(tmp_path / "run.zarr", {"run_z0": _slice("run_z0", regions=True)})
    together, apart = read_thyra(path), read_thyra(path, split_regions=True)
    assert set(together.tables["msi"].obs["region_number"]) == {1, 2}
    assert set(apart.shapes) == {"run_r1_pixels", "run_r2_pixels"}
    assert apart.tables["msi"].n_obs == together.tables["msi"].n_obs
    assert _values(apart.tables["msi"], "run_r2").items() <= _values(together.tables["msi"], "run").items()


def test_size_of_pixels(tmp_path):
    slices = {"run_z0": _slice("run_z0", size=30.0)}
    path = _store(tmp_path / "a.zarr", slices, other="no size")
    assert read_thyra(path).tables["msi"].uns["msi"]["attrs"]["run"]["pixel_size"].tolist() == [30, 30]
    assert read_thyra(path, pixel_size=(5, 6)).tables["msi"].uns["msi"]["attrs"]["run"]["pixel_size"].tolist() == [5, 6]
    path = _store(tmp_path / "b.zarr", slices, pixel_size_x_um=1.0, pixel_size_y_um=1.0)
    with pytest.warns(UserWarning, match="pixels of 1 um, which thyra writes when it knows no size"):
        read_thyra(path)
    table, shapes = slices["run_z0"]
    table.obs = table.obs.drop(columns=["spatial_x", "spatial_y"])
    path = _store(tmp_path / "c.zarr", {"run_z0": (table, shapes)}, other="no size")
    with pytest.raises(ValueError, match="does not tell the size of its pixels; pass pixel_size="):
        read_thyra(path)


def test_tables_of_mobility_are_left_out(tmp_path):
    slices = {"run_z0": _slice("run_z0"), "run_z0_mobility": _slice("run_z0_mobility")}
    assert set(read_thyra(_store(tmp_path / "run.zarr", slices)).shapes) == {"run_pixels"}


def test_other_stores_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no store"):
        read_thyra(tmp_path / "none.zarr")
    (tmp_path / "file.zarr").write_text("no store")
    with pytest.raises(ValueError, match="is a file; expected a SpatialData store"):
        read_thyra(tmp_path / "file.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match=r"is not a zarr store: it has no zarr\.json"):
        read_thyra(tmp_path / "empty.zarr")
    table, shapes = _slice("run_z0")
    table.var = table.var.rename(columns={"mz": "mass"})
    with pytest.raises(ValueError, match=r"is no store of thyra: no table has var\['mz'\].*var 'mass'"):
        read_thyra(_store(tmp_path / "a.zarr", {"run_z0": (table, shapes)}))
    table, shapes = _slice("run_z0")
    table.X.data[0] = -1
    with pytest.raises(ValueError, match="1 negative values"):
        read_thyra(_store(tmp_path / "b.zarr", {"run_z0": (table, shapes)}))

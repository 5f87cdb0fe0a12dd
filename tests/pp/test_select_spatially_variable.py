import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

import stmsi
from stmsi._core.spatial.morans_i import morans_i, raster_graph

CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dask": lambda x: da.from_array(x, chunks=(50, -1)),
}
ROW, COL = (np.tile(v.ravel(), 2) for v in np.mgrid[:12, :10])
SAMPLE = np.repeat(["s0", "s1"], 120)
_rng = np.random.default_rng(0)
# a gradient, noise, a gradient in one section only, silent, constant
VALUES = np.column_stack(
    [
        ROW + 1.0,
        _rng.random(240),
        np.where(SAMPLE == "s0", COL + 1.0, _rng.random(240)),
        np.zeros(240),
        np.full(240, 3.0),
    ]
).astype(np.float32)


def _table(values=VALUES, rows=slice(None)):
    obs = pd.DataFrame({"sample": SAMPLE, "row": ROW, "col": COL}, index=np.arange(240).astype(str))
    return AnnData(values[rows].copy(), obs=obs.iloc[rows].copy())


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("n_neighs", [4, 8])
def test_the_mean_over_sections(container, n_neighs):
    table = _table()
    table.X = container(VALUES)
    assert stmsi.pp.select_spatially_variable(table, n_top=2, n_neighs=n_neighs) is None
    scores = [
        morans_i(raster_graph(ROW[s == SAMPLE], COL[s == SAMPLE], n_neighs), VALUES[s == SAMPLE]) for s in ("s0", "s1")
    ]
    np.testing.assert_allclose(table.var["moran_i"], np.mean(scores, axis=0), rtol=1e-9)
    assert table.var["spatially_variable"].tolist() == [True, False, True, False, False]
    found = table.uns["select_spatially_variable"]
    np.testing.assert_allclose(found["moran_i"][["s0", "s1"]], np.transpose(scores), rtol=1e-9)
    assert found["params"] == {"n_top": 2, "fdr": 0.05, "n_neighs": n_neighs}


def test_pixels_off_the_tissue_are_left_out():
    table = _table()
    table.obs["on_tissue"] = COL < 5
    stmsi.pp.select_spatially_variable(table, tissue_key="on_tissue")
    inside = _table(rows=np.flatnonzero(COL < 5))
    stmsi.pp.select_spatially_variable(inside)
    np.testing.assert_array_equal(table.var["moran_i"], inside.var["moran_i"])


def test_sections_that_did_not_measure_an_ion_do_not_count():
    table = _table()
    measured = np.ones((5, 2), bool)
    measured[2] = [True, False]
    table.varm["measured"] = pd.DataFrame(measured, index=table.var_names, columns=["s0", "s1"])
    stmsi.pp.select_spatially_variable(table, n_top=1)
    assert table.var["moran_i"].iloc[2] > 0.8


def test_subset_copy_and_layer():
    table = _table()
    table.layers["x"] = table.X[:, [1, 0, 2, 3, 4]]
    out = stmsi.pp.select_spatially_variable(table, n_top=1, layer="x", subset=True, copy=True)
    assert out.var_names.tolist() == ["1"]
    assert table.shape == (240, 5)
    assert "moran_i" not in table.var


def test_fewer_ions_than_asked_for(caplog):
    table = _table()
    stmsi.pp.select_spatially_variable(table, n_top=5)
    assert "Only 3 ions have a Moran's I" in caplog.text
    assert table.var["spatially_variable"].sum() == 3


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.97])
def test_noise_is_not_marked_and_patterns_are(sparsity, caplog):
    rng = np.random.default_rng(1)
    noise = rng.lognormal(0, 1.5, (240, 300)) * (rng.random((240, 300)) >= sparsity)
    patterns = np.exp(0.4 * ROW[:, None] + rng.normal(0, 0.5, (240, 20)))
    table = _table(np.hstack([noise, patterns]).astype(np.float32))
    stmsi.pp.select_spatially_variable(table)
    marked = table.var["spatially_variable"].to_numpy()
    assert marked[:300].mean() <= 0.05
    assert marked[300:].all()
    assert (table.var["moran_i"].iloc[:300] > 0).mean() > 0.1  # what was marked without a null
    stmsi.pp.select_spatially_variable(table, n_top=200)
    assert "have no more pattern than chance gives" in caplog.text


def test_it_survives_a_file(tmp_path):
    table = _table()
    stmsi.pp.select_spatially_variable(table)
    table.write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_series_equal(back.var["moran_i"], table.var["moran_i"])
    pd.testing.assert_frame_equal(
        back.uns["select_spatially_variable"]["moran_i"], table.uns["select_spatially_variable"]["moran_i"]
    )


def _bad(value):
    values = VALUES.copy()
    values[3, 1] = value
    return values


BAD = {
    "one pixel": (VALUES, slice(0, 1), {}, ValueError, "Moran's I exists for no ion"),
    "constant": (VALUES * [0, 0, 0, 0, 1], slice(None), {}, ValueError, "all are constant"),
    "negative": (_bad(-1), slice(None), {}, ValueError, "1 negative values"),
    "nan": (_bad(np.nan), slice(None), {}, ValueError, "1 NaN"),
    "n_top": (VALUES, slice(None), {"n_top": 0}, ValueError, "n_top must be at least 1"),
    "too many": (VALUES, slice(None), {"n_top": 6}, ValueError, "n_top=6 ions were asked for, but the table has 5"),
    "neighbours": (VALUES, slice(None), {"n_neighs": 6}, ValueError, "n_neighs=6 is not known; choose one of '4', '8'"),
    "layer": (VALUES, slice(None), {"layer": "x"}, KeyError, "has no layer 'x'"),
    "tissue": (VALUES, slice(None), {"tissue_key": "x"}, KeyError, "no column 'x'"),
    "no pixels": (VALUES, slice(0, 0), {}, ValueError, "table is empty"),
}


@pytest.mark.parametrize(("values", "rows", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(values, rows, kwargs, error, message):
    table = _table(np.asarray(values, np.float32), rows)
    with pytest.raises(error, match=message):
        stmsi.pp.select_spatially_variable(table, **kwargs)
    assert table.var.columns.empty
    assert not table.uns


def test_pixels_need_a_place_of_their_own():
    table = _table()
    table.obs["row"] = 0
    with pytest.raises(ValueError, match="Several pixels of section 's0' share a position"):
        stmsi.pp.select_spatially_variable(table)
    del table.obs["row"]
    with pytest.raises(KeyError, match=r"no column 'row'.*needs the raster position"):
        stmsi.pp.select_spatially_variable(table)


@pytest.mark.realdata
def test_bladder(data_dir):
    table = read_h5ad(data_dir / "msi_bladder" / "bladder_msi.h5ad")
    table.obs["sample"], table.obs["row"], table.obs["col"] = "bladder", table.obs["y_coord"], table.obs["x_coord"]
    stmsi.pp.select_spatially_variable(table, n_top=20)
    assert table.var["moran_i"].between(-0.1, 1).all()
    # the sphingomyelin of the muscle layer
    muscle = (table.var["raw_mz"].astype(float) - 741.5306).abs() < 0.002
    assert table.var.loc[muscle, "spatially_variable"].all()

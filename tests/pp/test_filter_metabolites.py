import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi

CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dask": lambda x: da.from_array(x, chunks=(3, -1)),
    "dask of csr": lambda x: da.from_array(x, chunks=(3, -1)).map_blocks(sp.csr_matrix),
}
# two sections of four pixels
VALUES = np.array(
    [
        # everywhere, nowhere, half of s0, one pixel of s1, weak everywhere, s1 only
        [10, 0, 8, 0, 0.1, 0],
        [11, 0, 8, 0, 0.1, 0],
        [12, 0, 0, 0, 0.1, 0],
        [13, 0, 0, 0, 0.1, 0],
        [14, 0, 0, 9, 0.1, 5],
        [15, 0, 0, 0, 0.1, 5],
        [16, 0, 0, 0, 0.1, 5],
        [17, 0, 0, 0, 0.1, 5],
    ],
    dtype=np.float32,
)
IONS = ["all", "none", "half", "one", "weak", "second"]


def _table(values=VALUES, n_sections=2):
    n = len(values)
    obs = pd.DataFrame({"sample": [f"s{i * n_sections // n}" for i in range(n)]}, index=[str(i) for i in range(n)])
    var = pd.DataFrame({"mz": [100.0, 200, 300, 400, 500, np.nan][: values.shape[1]]}, index=IONS[: values.shape[1]])
    return AnnData(values.copy(), obs=obs, var=var)


@pytest.mark.parametrize(
    ("kwargs", "kept"),
    [
        ({}, ["all", "half", "one", "weak", "second"]),
        ({"min_prevalence": 0}, ["all", "half", "one", "weak", "second"]),
        ({"min_prevalence": 0.25}, ["all", "half", "one", "weak", "second"]),
        ({"min_prevalence": 0.26}, ["all", "half", "weak", "second"]),
        ({"min_prevalence": 0.51}, ["all", "weak", "second"]),
        ({"min_intensity": 1}, ["all", "half", "one", "second"]),
        ({"min_intensity": 8.5}, ["all", "one"]),
        ({"min_samples": 2}, ["all", "weak"]),
        ({"min_samples": 2, "min_intensity": 1}, ["all"]),
        ({"exclude_mz": [300.001]}, ["all", "one", "weak", "second"]),
        ({"exclude_mz": [300.01]}, ["all", "half", "one", "weak", "second"]),
        ({"exclude_mz": [300.01, 100.0], "ppm": 50}, ["one", "weak", "second"]),
        ({"exclude_mz": []}, ["all", "half", "one", "weak", "second"]),
    ],
)
def test_which_ions_stay(kwargs, kept):
    table = _table()
    assert stmsi.pp.filter_metabolites(table, **kwargs) is None
    assert table.var_names.tolist() == kept
    np.testing.assert_array_equal(np.asarray(table.X), VALUES[:, [IONS.index(k) for k in kept]])
    share = dict(zip(IONS, (VALUES > 0).mean(axis=0), strict=True))
    assert table.var["prevalence"].tolist() == [share[k] for k in kept]


def test_ions_of_the_matrix_go():
    table = _table()
    # CHCA: [M+H]+, [2M+H]+, [M+K]+; the rest are not its ions
    table.var["mz"] = [190.0499, 250.0, 379.0925, 228.0058, 300.0, np.nan]
    stmsi.pp.filter_metabolites(table, matrix="chca", polarity="positive", exclude_mz=[300.0])
    assert table.var_names.tolist() == ["second"]
    other = _table()
    other.var["mz"] = [190.0499, 250.0, 379.0925, 228.0058, 300.0, np.nan]
    other.uns["msi"] = {"attrs": {"s0": {"polarity": "negative"}}}
    stmsi.pp.filter_metabolites(other, matrix="CHCA")
    assert "all" in other.var_names


def test_pixels_off_the_tissue_do_not_count():
    table = _table()
    table.obs["on_tissue"] = np.arange(8) % 4 < 2
    stmsi.pp.filter_metabolites(table, min_prevalence=0.9, tissue_key="on_tissue")
    assert table.var_names.tolist() == ["all", "half", "weak", "second"]
    assert table.var["prevalence"].tolist() == [1, 0.5, 1, 0.5]


def test_ions_without_spatial_structure_go():
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.mgrid[:10, :10])
    values = np.column_stack([row + 1, rng.random(100) + 1, np.full(100, 2)]).astype(np.float32)
    table = _table(values, n_sections=1)
    table.obs["row"], table.obs["col"] = row, col
    other = table.copy()
    stmsi.pp.filter_metabolites(table, min_moran=0.5)
    assert table.var_names.tolist() == ["all"]
    # what was written before is read
    other.var["moran_i"] = [0.1, 0.6, np.nan]
    stmsi.pp.filter_metabolites(other, min_moran=0.5)
    assert other.var_names.tolist() == ["none"]


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_containers(container):
    table = _table()
    table.X = container(VALUES)
    stmsi.pp.filter_metabolites(table, min_prevalence=0.3, min_intensity=1)
    assert table.var_names.tolist() == ["all", "half", "second"]


def test_one_section():
    table = _table(n_sections=1)
    stmsi.pp.filter_metabolites(table, min_prevalence=0.5)
    assert table.var_names.tolist() == ["all", "weak", "second"]


def test_stored_zeros_are_not_detected():
    X = sp.csr_matrix(VALUES)
    X.data[X.data == 9] = 0
    table = _table()
    table.X = X
    stmsi.pp.filter_metabolites(table, min_prevalence=0)
    assert "one" not in table.var_names


def test_layers_and_sections_follow(toy):
    stmsi.pp.normalize_msi(toy)
    stmsi.pp.filter_metabolites(toy, min_prevalence=0.3)
    msi = toy.tables["msi"]
    assert 1 < msi.n_vars < 12
    assert msi.layers["raw"].shape == msi.shape
    assert msi.varm["measured"].index.equals(msi.var_names)
    stmsi.pp.align(toy)
    stmsi.pp.map_to_spots(toy)
    assert toy.tables["st"].obsm["msi"].columns.equals(msi.var_names)


def test_copy(toy):
    out = stmsi.pp.filter_metabolites(toy, min_prevalence=0.3, copy=True)
    assert out.tables["msi"].n_vars < toy.tables["msi"].n_vars == 12
    assert "prevalence" not in toy.tables["msi"].var


def _bad(value):
    values = VALUES.copy()
    values[1, 1] = value
    return values


BAD = {
    "negative": (_bad(-1), {}, ValueError, "MSI intensities contain 1 negative values"),
    "infinite": (_bad(np.inf), {}, ValueError, "1 infinite values; remove or cap"),
    "an ion of nan": (np.where(np.arange(6) == 1, np.nan, VALUES), {}, ValueError, "8 NaN; fill or drop"),
    "nothing left": (
        VALUES,
        {"min_intensity": 99},
        ValueError,
        r"No ion passes \(largest prevalence 1\); lower min_prevalence",
    ),
    "silent": (VALUES * 0, {"min_prevalence": 0}, ValueError, "No ion passes"),
    "no ions": (VALUES[:, :0], {}, ValueError, "table is empty"),
    "min_prevalence": (VALUES, {"min_prevalence": 5}, ValueError, "min_prevalence is a share between 0 and 1, found 5"),
    "too many sections": (
        VALUES,
        {"min_samples": 3},
        ValueError,
        r"between 1 and the number of sections \(2\), found 3",
    ),
    "no sections": (VALUES, {"min_samples": 0}, ValueError, "min_samples must lie between 1"),
    "matrix": (VALUES, {"matrix": "sugar"}, ValueError, "matrix='sugar' is not known; choose one of 'DHB'"),
    "polarity": (VALUES, {"matrix": "DHB"}, ValueError, "Pass polarity='positive' or 'negative'"),
    "no raster": (VALUES, {"min_moran": 0.1}, KeyError, "no column 'row'"),
    "tissue_key": (VALUES, {"tissue_key": "sample"}, ValueError, "must be boolean"),
    "sample_key": (VALUES, {"sample_key": "x"}, KeyError, "no column 'x'; found 'sample'"),
}


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize(("values", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(values, kwargs, error, message, container):
    table = _table(values)
    table.X = container(values)
    with pytest.raises(error, match=message):
        stmsi.pp.filter_metabolites(table, **kwargs)
    assert table.shape == values.shape
    assert table.var.columns.tolist() == ["mz"]


def test_m_over_z_is_needed_to_exclude_by_it():
    table = _table()
    table.var = table.var.rename(columns={"mz": "mass"})
    with pytest.raises(KeyError, match=r"exclude_mz needs var\['mz'\].*found 'mass'"):
        stmsi.pp.filter_metabolites(table, exclude_mz=[100.0])


def test_missing_tables_are_refused(toy):
    with pytest.raises(KeyError, match="no table 'x'"):
        stmsi.pp.filter_metabolites(toy, table_key="x")

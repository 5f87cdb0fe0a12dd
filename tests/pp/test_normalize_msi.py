import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

import stmsi

CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dask": lambda x: da.from_array(x, chunks=(10, -1)),
    "dask of csr": lambda x: da.from_array(x, chunks=(10, -1)).map_blocks(sp.csr_matrix),
}
VALUES = np.random.default_rng(0).lognormal(2, 1, (30, 6)) * (np.random.default_rng(1).random((30, 6)) < 0.7)
VALUES[4] = 0
VALUES = VALUES.astype(np.float32)


def _table(values=VALUES, n_sections=2):
    names = np.array([f"s{i}" for i in range(n_sections)])
    obs = pd.DataFrame({"sample": names[np.arange(len(values)) * n_sections // max(len(values), 1)]})
    return AnnData(values.copy(), obs=obs.set_index(obs.index.astype(str)))


def _by_hand(values, sample, method, target):
    values = values.astype(np.float64)
    reduce = {
        "tic": np.sum,
        "rms": lambda v: np.sqrt((v**2).mean()),
        "median": np.median,
    }[method]
    factor = np.array([reduce(row[row > 0]) if (row > 0).any() else np.nan for row in values])
    if target is None:
        target = np.mean([np.nanmedian(factor[sample == s]) for s in dict.fromkeys(sample)])
    return np.nan_to_num(values / factor[:, None] * target)


@pytest.mark.parametrize("target", [None, 100.0])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("method", ["tic", "rms", "median"])
def test_agrees_with_numpy(method, log1p, target):
    table = _table()
    stmsi.pp.normalize_msi(table, method=method, log1p=log1p, target=target)
    expected = _by_hand(VALUES, table.obs["sample"].to_numpy(), method, target)
    np.testing.assert_allclose(table.X.toarray(), np.log1p(expected) if log1p else expected, rtol=1e-5)
    assert table.X[4].nnz == 0, "a pixel without signal stays 0"


def test_without_division():
    table = _table()
    stmsi.pp.normalize_msi(table, method="none")
    np.testing.assert_allclose(table.X.toarray(), np.log1p(VALUES), rtol=1e-6)
    silent = _table(VALUES * 0)
    stmsi.pp.normalize_msi(silent, method="none")
    assert silent.X.nnz == 0


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_containers(container):
    table = _table()
    stmsi.pp.normalize_msi(table, winsorize=0.9)
    other = _table()
    other.X = container(VALUES)
    stmsi.pp.normalize_msi(other, winsorize=0.9)
    assert sp.isspmatrix_csr(other.X)
    assert other.X.dtype == np.float32
    np.testing.assert_array_equal(other.X.toarray(), table.X.toarray())
    np.testing.assert_array_equal(other.layers["raw"].toarray(), VALUES)


def test_sections_come_to_one_scale_and_keep_their_order_of_magnitude():
    values = VALUES.copy()
    values[15:] *= 50
    table = _table(values)
    stmsi.pp.normalize_msi(table, log1p=False)
    total = np.asarray(table.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(total[np.arange(30) != 4], total[0], rtol=1e-5)
    medians = [np.median(values[:15].sum(1)[np.arange(15) != 4]), np.median(values[15:].sum(1))]
    assert total[0] == pytest.approx(np.mean(medians), rel=1e-5)


def test_hot_spots_are_capped_per_ion_and_section():
    values = VALUES.copy()
    values[2, 1], values[20, 1] = 1e5, 1e6
    table = _table(values)
    stmsi.pp.normalize_msi(table, method="none", log1p=False, winsorize=0.9)
    expected = values.copy()
    for rows in (slice(0, 15), slice(15, 30)):
        for j in range(6):
            column = values[rows, j]
            expected[rows, j] = np.minimum(column, np.quantile(column[column > 0], 0.9))
    np.testing.assert_allclose(table.X.toarray(), expected, rtol=1e-6)
    np.testing.assert_array_equal(table.layers["raw"].toarray(), values)


def test_winsorizing_at_the_maximum_changes_nothing():
    table = _table()
    stmsi.pp.normalize_msi(table, method="none", log1p=False, winsorize=1)
    np.testing.assert_array_equal(table.X.toarray(), VALUES)


def test_called_again_it_starts_from_the_measured_values():
    once, twice = _table(), _table()
    stmsi.pp.normalize_msi(twice, method="median", winsorize=0.5)
    for table in (once, twice):
        stmsi.pp.normalize_msi(table, method="rms")
    np.testing.assert_array_equal(once.X.toarray(), twice.X.toarray())
    assert twice.uns["normalize_msi"]["params"] == once.uns["normalize_msi"]["params"]


def test_parameters_are_recorded():
    table = _table()
    stmsi.pp.normalize_msi(table, winsorize=0.99)
    params = table.uns["normalize_msi"]["params"]
    assert params["method"] == "tic"
    assert params["log1p"] is True
    assert params["winsorize"] == 0.99
    assert params["target"] > 0


@pytest.mark.parametrize("container", ["spatialdata", "table"])
def test_copy(toy, container):
    data = toy if container == "spatialdata" else toy.tables["msi"]
    before = toy.tables["msi"].X.copy()
    out = stmsi.pp.normalize_msi(data, copy=True)
    table = out.tables["msi"] if container == "spatialdata" else out
    assert "raw" in table.layers
    assert "raw" not in toy.tables["msi"].layers
    assert "normalize_msi" not in toy.tables["msi"].uns
    assert (before != toy.tables["msi"].X).nnz == 0
    assert stmsi.pp.normalize_msi(data) is None
    assert (toy.tables["msi"].X != table.X).nnz == 0


def test_one_section_and_ions_that_are_constant_or_silent():
    values = VALUES.copy()
    values[:, 0], values[:, 1] = 3.0, 0.0
    table = _table(values, n_sections=1)
    stmsi.pp.normalize_msi(table, winsorize=0.99)
    assert np.isfinite(table.X.toarray()).all()
    assert table.X[:, 1].nnz == 0


def test_a_reference_ion():
    table = _table()
    table.var["name"] = [f"ion {j}" for j in range(6)]
    stmsi.pp.normalize_msi(table, method="reference", reference="ion 3", log1p=False, target=10.0)
    there = VALUES[:, 3] > 0
    expected = np.where(there[:, None], VALUES / np.where(there, VALUES[:, 3], 1)[:, None] * 10, 0)
    np.testing.assert_allclose(table.X.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(table.X.toarray()[there, 3], 10, rtol=1e-5)
    assert table.uns["normalize_msi"]["params"]["reference"] == "ion 3"


def test_the_scale_of_each_pixel_is_kept():
    table = _table()
    stmsi.pp.normalize_msi(table, log1p=False)
    np.testing.assert_allclose(table.X.toarray(), VALUES * table.obs["msi_scale"].to_numpy()[:, None], rtol=1e-5)
    assert table.obs["msi_scale"].iloc[4] == 0
    stmsi.pp.normalize_msi(table, method="none")
    assert (table.obs["msi_scale"] == 1).all()


def _with_background():
    rng = np.random.default_rng(3)
    values = rng.lognormal(4, 0.3, (400, 5))
    values[:150] /= 50
    table = _table(values.astype(np.float32))
    table.obs["sample"] = np.where(np.arange(400) % 2, "s0", "s1")
    return table


def test_off_tissue_pixels_are_masked(caplog):
    table, bare = _with_background(), _with_background()[150:].copy()
    raw = np.asarray(table.X).copy()
    for t in (table, bare):
        stmsi.pp.normalize_msi(t, tissue="otsu" if t is table else None, winsorize=0.9)
    assert table.obs["on_tissue"].tolist() == [False] * 150 + [True] * 250
    assert table.X[:150].nnz == 0
    np.testing.assert_allclose(table.X[150:].toarray(), bare.X.toarray(), rtol=1e-5)
    np.testing.assert_array_equal(table.layers["raw"].toarray(), raw)
    assert "62 % of the pixels are tissue" in caplog.text
    again = _with_background()
    again.obs["mine"] = table.obs["on_tissue"].to_numpy()
    stmsi.pp.normalize_msi(again, tissue="mine", winsorize=0.9)
    assert (again.X != table.X).nnz == 0
    assert again.uns["normalize_msi"]["params"]["tissue"] == "mine"


def test_a_section_without_background_is_all_tissue(caplog):
    table = _with_background()[150:].copy()
    stmsi.pp.normalize_msi(table, tissue="otsu")
    assert table.obs["on_tissue"].all()
    assert "has no background that is clearly darker" in caplog.text


def test_tissue_is_seen_in_the_whole_spectrum_where_it_is_known():
    table = _with_background()
    table.obs["tic"] = np.where(np.arange(400) < 300, 1000.0, 10.0) + np.arange(400) / 1000
    stmsi.pp.normalize_msi(table, tissue="otsu")
    assert table.obs["on_tissue"].tolist() == [True] * 300 + [False] * 100


def test_an_ion_that_is_only_off_the_tissue_is_masked():
    table = _with_background()
    X = np.asarray(table.X).copy()
    X[150:, 2] = 0
    table.X = X
    stmsi.pp.normalize_msi(table, tissue="otsu", winsorize=0.99)
    assert table.X[:, 2].nnz == 0


def _bad(value):
    values = VALUES.copy()
    values[3, 2] = value
    return values


BAD = {
    "negative": (_bad(-1), {}, ValueError, "MSI intensities contain 1 negative values"),
    "infinite": (_bad(np.inf), {}, ValueError, "1 infinite values; remove or cap"),
    "nan": (_bad(np.nan), {}, ValueError, "1 NaN; fill or drop"),
    "an ion of nan": (np.where(np.arange(6) == 2, np.nan, VALUES), {}, ValueError, "30 NaN"),
    "silent": (VALUES * 0, {}, ValueError, "No pixel has any signal"),
    "no pixels": (VALUES[:0], {}, ValueError, r"table is empty \(0 pixels x 6 variables\)"),
    "no ions": (VALUES[:, :0], {}, ValueError, r"table is empty \(30 pixels x 0 variables\)"),
    "method": (
        VALUES,
        {"method": "tik"},
        ValueError,
        "method='tik' is not known; choose one of 'tic'.*Did you mean 'tic'",
    ),
    "winsorize": (VALUES, {"winsorize": 99}, ValueError, r"winsorize is a quantile in \(0, 1\], found 99"),
    "target": (VALUES, {"target": 0}, ValueError, "target must be a positive number, found 0"),
    "target nan": (VALUES, {"target": np.nan}, ValueError, "target must be a positive number"),
    "no reference": (VALUES, {"method": "reference"}, ValueError, "reference= names the ion for method='reference'"),
    "reference and tic": (VALUES, {"reference": "0"}, ValueError, "reference= names the ion for method='reference'"),
    "reference": (VALUES, {"method": "reference", "reference": "x"}, KeyError, "No metabolite 'x'; available: '0'"),
    "silent reference": (
        VALUES * (np.arange(6) != 2),
        {"method": "reference", "reference": "2"},
        ValueError,
        "No pixel has any signal of '2'",
    ),
    "tissue": (VALUES, {"tissue": "otsuu"}, KeyError, "no column 'otsuu'; found 'sample'.*tissue='otsu'"),
    "tissue of text": (VALUES, {"tissue": "sample"}, ValueError, r"obs\['sample'\] must be boolean"),
    "silent tissue": (VALUES * 0, {"tissue": "otsu"}, ValueError, "Section 's0' has no pixel with any signal"),
    "sample_key": (VALUES, {"sample_key": "smaple"}, KeyError, "no column 'smaple'.*Did you mean 'sample'"),
}


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize(("values", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(values, kwargs, error, message, container):
    table = _table(values)
    table.X = container(values)
    with pytest.raises(error, match=message):
        stmsi.pp.normalize_msi(table, **kwargs)
    X = table.X.toarray() if sp.issparse(table.X) else table.X
    np.testing.assert_array_equal(X, values)
    assert "raw" not in table.layers
    assert not table.uns


def test_other_things_are_refused(toy):
    with pytest.raises(KeyError, match="no table 'x'"):
        stmsi.pp.normalize_msi(toy, table_key="x")
    with pytest.raises(TypeError, match="Expected an AnnData or a SpatialData, found ndarray"):
        stmsi.pp.normalize_msi(VALUES)


@pytest.mark.realdata
def test_bladder_has_no_dark_background(data_dir, caplog):
    # the matrix around the tissue is as bright as the tissue
    table = read_h5ad(data_dir / "msi_bladder" / "bladder_msi.h5ad")
    table.obs["sample"] = "bladder"
    stmsi.pp.normalize_msi(table, tissue="otsu", tic_key="nCount_Spatial", winsorize=0.99)
    assert "has no background that is clearly darker" in caplog.text
    assert table.obs["on_tissue"].mean() > 0.99

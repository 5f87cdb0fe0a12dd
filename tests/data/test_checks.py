import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data import checks, tables


@pytest.fixture
def adata():
    obs = pd.DataFrame({"sample": pd.Categorical(["b", "a", "b"]), "number": [1, 2, 1]}, index=list("xyz"))
    return AnnData(np.ones((3, 2), np.float32), obs=obs, var=pd.DataFrame(index=["g1", "g2"]))


def test_listing():
    assert checks.listing([]) == "none"
    assert checks.listing([None, "a", 1]) == "'a', '1'"
    assert checks.listing(range(12)).endswith("'9', ... (12 in all)")


def test_suggest():
    assert checks.suggest("sampel", ["sample", "patient"]) == " Did you mean 'sample'?"
    assert checks.suggest("zzz", ["sample"]) == ""


def test_check_choice():
    checks.check_choice("tic", ["tic", "rms"], "method")
    with pytest.raises(ValueError, match=r"method='tik' is not known; choose one of 'tic', 'rms'. Did you mean 'tic'"):
        checks.check_choice("tik", ["tic", "rms"], "method")


def test_get_table(toy, adata):
    assert tables.get_table(adata, "whatever") is adata
    assert tables.get_table(toy, "st") is toy.tables["st"]
    with pytest.raises(KeyError, match=r"no table 'mzi'; its tables: .*stmsi.pp.combine.*Did you mean 'msi'"):
        tables.get_table(toy, "mzi")
    with pytest.raises(TypeError, match="Expected an AnnData or a SpatialData, found DataFrame"):
        tables.get_table(adata.obs, "st")


def test_require_spatialdata(toy, adata):
    checks.require_spatialdata(toy)
    with pytest.raises(TypeError, match=r"found AnnData. stmsi.pp.combine makes one"):
        checks.require_spatialdata(adata)


def test_own_view(adata, caplog):
    before = adata.copy()
    checks.own_view(adata)
    assert not caplog.records
    view = adata[:2]
    checks.own_view(view)
    assert not view.is_view
    assert "results are written into it" in caplog.text
    view.X[:] = 7
    np.testing.assert_array_equal(adata.X, before.X)


@pytest.mark.parametrize("index", [(slice(0), slice(None)), (slice(None), slice(0))], ids=["spots", "variables"])
def test_require_rows(adata, index):
    checks.require_rows(adata)
    with pytest.raises(ValueError, match=r"table is empty \(\d pixels x \d variables\)"):
        checks.require_rows(adata[index].copy(), "pixels")


def test_require_obs(adata):
    assert tables.require_obs(adata, "number").tolist() == [1, 2, 1]
    with pytest.raises(KeyError, match=r"no column 'smaple'; found 'sample', 'number'. Do this. Did you mean 'sample'"):
        tables.require_obs(adata, "smaple", "Do this.")


@pytest.mark.parametrize(("key", "labels"), [("sample", ["b", "a", "b"]), ("number", ["1", "2", "1"])])
def test_sections_are_plain_strings(adata, key, labels):
    found = tables.require_sample(adata, key)
    assert found.tolist() == labels
    assert {type(s) for s in found} == {str}, "numpy's strings show up in messages and coordinate systems"
    assert tables.sample_names(adata, sample_key=key) == list(dict.fromkeys(labels))


def test_every_spot_needs_a_section(adata):
    adata.obs["sample"] = ["a", None, np.nan]
    with pytest.raises(ValueError, match=r"obs\['sample'\] has 2 missing values; every spot needs a section"):
        tables.require_sample(adata, "sample")


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix, None])
def test_require_frame(adata, container):
    values = np.array([[1.0, 2], [3, 4], [5, 6]])
    frame = pd.DataFrame(values, index=adata.obs_names, columns=["0", "1"])
    adata.obsm["msi"] = frame if container is None else container(values)
    pd.testing.assert_frame_equal(tables.require_frame(adata, "msi"), frame)
    with pytest.raises(KeyError, match=r"obsm has no 'msj'; found 'msi'. Map first. Did you mean 'msi'"):
        tables.require_frame(adata, "msj", "Map first.")


def test_require_unique():
    checks.require_unique(["a", "b"], "Names")
    with pytest.raises(ValueError, match=r"Names must be unique; repeated: 'a'\. Call \.var_names_make_unique"):
        checks.require_unique(["a", "b", "a", "a"], "Names")
    with pytest.raises(ValueError, match=r"repeated: 'a'\. Rename the columns\.$"):
        checks.require_unique(["a", "a"], "Names", "Rename the columns.")


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "1 negative values; .* at least 0"),
        (np.inf, "1 infinite values; remove or cap"),
        (np.nan, "1 NaN; fill or drop"),
    ],
)
def test_check_nonnegative(container, bad, message):
    values = np.array([[0.0, 2.0], [3.0, 0.0]])
    checks.check_nonnegative(container(values), "Counts")
    values[0, 1] = bad
    with pytest.raises(ValueError, match=f"Counts contain {message}"):
        checks.check_nonnegative(container(values), "Counts")


def test_check_nonnegative_may_allow_nan_but_still_sees_the_rest():
    checks.check_nonnegative([np.nan, 1.0], "Counts", allow_nan=True)
    checks.check_nonnegative([np.nan, np.nan], "Counts", allow_nan=True)
    checks.check_nonnegative([], "Counts")
    checks.check_nonnegative([True, False], "Counts")
    with pytest.raises(ValueError, match="negative"):
        checks.check_nonnegative([np.nan, -1.0], "Counts", allow_nan=True)
    with pytest.raises(ValueError, match="must be numbers, found dtype"):
        checks.check_nonnegative(["a"], "Counts")


DENSE = np.array([[0.0, 2.0, 0.0], [3.0, 0.0, 4.5]], dtype=np.float32)
CONTAINERS = {
    "dense": lambda: DENSE.copy(),
    "csr": lambda: sp.csr_matrix(DENSE),
    "csc": lambda: sp.csc_matrix(DENSE),
    "csr_array": lambda: sp.csr_array(DENSE),
    "dask": lambda: da.from_array(DENSE, chunks=(1, 3)),
    "dask of csr": lambda: da.from_array(DENSE, chunks=(1, 3)).map_blocks(sp.csr_matrix),
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_as_csr(make):
    found = tables.as_csr(make(), np.float64)
    assert isinstance(found, sp.csr_matrix)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.toarray(), DENSE)
    assert tables.as_csr(make()).dtype == np.float32


def test_as_csr_reads_a_backed_table(tmp_path):
    from anndata import read_h5ad

    AnnData(sp.csr_matrix(DENSE), obs=pd.DataFrame(index=list("ab"))).write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(tables.as_csr(backed.X).toarray(), DENSE)
    backed.file.close()


def test_require_metabolites():
    available = pd.Index(["PC_34_1", "glc"])
    names = pd.Series(["PC(34:1)", "glucose"], index=available)
    assert tables.require_metabolites(["PC(34:1)", "glc"], available, names) == ["PC_34_1", "glc"]
    with pytest.raises(KeyError, match=r"No metabolite 'PC34:1'; available: 'PC_34_1', 'glc'. Did you mean"):
        tables.require_metabolites(["PC34:1"], available, names)


def test_a_name_that_several_metabolites_share():
    names = pd.Series({"m1": "PC(34:1)", "m2": "PC(34:1)", "m3": "other"})
    with pytest.raises(
        ValueError, match=r"Several metabolites are called 'PC\(34:1\)': 'm1', 'm2'. Name one by its id"
    ):
        tables.require_metabolites(["PC(34:1)"], names.index, names)
    assert tables.require_metabolites(["m2", "other"], names.index, names) == ["m2", "m3"]


@pytest.mark.parametrize("value", [0, 2.5, float("nan"), "3", True, None])
def test_check_count(value):
    checks.check_count(np.int64(1), "n")
    checks.check_count(0, "n", 0)
    with pytest.raises(ValueError, match=rf"n must be (an integer of )?at least 1, found {value!r}"):
        checks.check_count(value, "n")


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "3", None, True])
def test_check_weight_and_positive(value):
    checks.check_weight(0, "w")
    checks.check_positive(None, "w")
    checks.check_positive(np.float32(0.5), "w")
    with pytest.raises(ValueError, match=rf"w must be a finite number of at least 0, found {value!r}"):
        checks.check_weight(value, "w")
    with pytest.raises(ValueError, match=rf"w must be a positive number of um, found {value!r}"):
        checks.check_positive(value, "w", "um", optional=False)


def test_check_seed_and_jobs():
    checks.check_seed(2**32 - 1)
    checks.check_jobs(None)
    checks.check_jobs(-1)
    for value in (-1, 2**32, 1.0, None):
        with pytest.raises(ValueError, match=rf"rng is a seed, an integer from 0 to 4294967295, found {value!r}"):
            checks.check_seed(value)
    for value in (0, 1.5, "2"):
        with pytest.raises(ValueError, match=rf"n_jobs must be a non-zero integer .*found {value!r}"):
            checks.check_jobs(value)


@pytest.mark.parametrize("value", [float("nan"), "half", None, -0.1, 1.1])
def test_check_share_and_coverage(value):
    checks.check_share(0, "s")
    checks.check_coverage(0.5)
    with pytest.raises(ValueError, match=rf"s is a share between 0 and 1, found {value!r}"):
        checks.check_share(value, "s")
    for bad in (value, 0, 1):
        with pytest.raises(ValueError, match=rf"coverage is a share between 0 and 1, found {bad!r}"):
            checks.check_coverage(bad)

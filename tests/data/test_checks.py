import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from stmsi import _validate as v


@pytest.fixture
def adata():
    obs = pd.DataFrame({"sample": pd.Categorical(["b", "a", "b"]), "number": [1, 2, 1]}, index=list("xyz"))
    return AnnData(np.ones((3, 2), np.float32), obs=obs, var=pd.DataFrame(index=["g1", "g2"]))


def test_listing():
    assert v.listing([]) == "none"
    assert v.listing([None, "a", 1]) == "'a', '1'"
    assert v.listing(range(12)).endswith("'9', ... (12 in all)")


def test_suggest():
    assert v.suggest("sampel", ["sample", "patient"]) == " Did you mean 'sample'?"
    assert v.suggest("zzz", ["sample"]) == ""


def test_check_choice():
    v.check_choice("tic", ["tic", "rms"], "method")
    with pytest.raises(ValueError, match=r"method='tik' is not known; choose one of 'tic', 'rms'. Did you mean 'tic'"):
        v.check_choice("tik", ["tic", "rms"], "method")


def test_get_table(toy, adata):
    assert v.get_table(adata, "whatever") is adata
    assert v.get_table(toy, "st") is toy.tables["st"]
    with pytest.raises(KeyError, match=r"no table 'mzi'; its tables: .*stmsi.pp.combine.*Did you mean 'msi'"):
        v.get_table(toy, "mzi")
    with pytest.raises(TypeError, match="Expected an AnnData or a SpatialData, found DataFrame"):
        v.get_table(adata.obs, "st")


def test_require_spatialdata(toy, adata):
    v.require_spatialdata(toy)
    with pytest.raises(TypeError, match=r"found AnnData. stmsi.pp.combine makes one"):
        v.require_spatialdata(adata)


def test_refuse_view(adata):
    v.refuse_view(adata)
    with pytest.raises(ValueError, match=r"call \.copy\(\) on it first"):
        v.refuse_view(adata[:2])


@pytest.mark.parametrize("index", [(slice(0), slice(None)), (slice(None), slice(0))], ids=["spots", "variables"])
def test_require_rows(adata, index):
    v.require_rows(adata)
    with pytest.raises(ValueError, match=r"table is empty \(\d pixels x \d variables\)"):
        v.require_rows(adata[index].copy(), "pixels")


def test_require_obs(adata):
    assert v.require_obs(adata, "number").tolist() == [1, 2, 1]
    with pytest.raises(KeyError, match=r"no column 'smaple'; found 'sample', 'number'. Do this. Did you mean 'sample'"):
        v.require_obs(adata, "smaple", "Do this.")


@pytest.mark.parametrize(("key", "labels"), [("sample", ["b", "a", "b"]), ("number", ["1", "2", "1"])])
def test_sections_are_plain_strings(adata, key, labels):
    found = v.require_sample(adata, key)
    assert found.tolist() == labels
    assert {type(s) for s in found} == {str}, "numpy's strings show up in messages and coordinate systems"
    assert v.sample_names(adata, sample_key=key) == list(dict.fromkeys(labels))


def test_every_spot_needs_a_section(adata):
    adata.obs["sample"] = ["a", None, np.nan]
    with pytest.raises(ValueError, match=r"obs\['sample'\] has 2 missing values; every spot needs a section"):
        v.require_sample(adata, "sample")


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix, None])
def test_require_frame(adata, container):
    values = np.array([[1.0, 2], [3, 4], [5, 6]])
    frame = pd.DataFrame(values, index=adata.obs_names, columns=["0", "1"])
    adata.obsm["msi"] = frame if container is None else container(values)
    pd.testing.assert_frame_equal(v.require_frame(adata, "msi"), frame)
    with pytest.raises(KeyError, match=r"obsm has no 'msj'; found 'msi'. Map first. Did you mean 'msi'"):
        v.require_frame(adata, "msj", "Map first.")


def test_require_unique():
    v.require_unique(["a", "b"], "Names")
    with pytest.raises(ValueError, match=r"Names must be unique; repeated: 'a'\. Call \.var_names_make_unique"):
        v.require_unique(["a", "b", "a", "a"], "Names")
    with pytest.raises(ValueError, match=r"repeated: 'a'\. Rename the columns\.$"):
        v.require_unique(["a", "a"], "Names", "Rename the columns.")


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
    v.check_nonnegative(container(values), "Counts")
    values[0, 1] = bad
    with pytest.raises(ValueError, match=f"Counts contain {message}"):
        v.check_nonnegative(container(values), "Counts")


def test_check_nonnegative_may_allow_nan_but_still_sees_the_rest():
    v.check_nonnegative([np.nan, 1.0], "Counts", allow_nan=True)
    v.check_nonnegative([np.nan, np.nan], "Counts", allow_nan=True)
    v.check_nonnegative([], "Counts")
    v.check_nonnegative([True, False], "Counts")
    with pytest.raises(ValueError, match="negative"):
        v.check_nonnegative([np.nan, -1.0], "Counts", allow_nan=True)
    with pytest.raises(ValueError, match="must be numbers, found dtype"):
        v.check_nonnegative(["a"], "Counts")


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
    found = v.as_csr(make(), np.float64)
    assert isinstance(found, sp.csr_matrix)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.toarray(), DENSE)
    assert v.as_csr(make()).dtype == np.float32


def test_as_csr_reads_a_backed_table(tmp_path):
    from anndata import read_h5ad

    AnnData(sp.csr_matrix(DENSE), obs=pd.DataFrame(index=list("ab"))).write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(v.as_csr(backed.X).toarray(), DENSE)
    backed.file.close()


def test_require_metabolites():
    available = pd.Index(["PC_34_1", "glc"])
    names = pd.Series(["PC(34:1)", "glucose"], index=available)
    assert v.require_metabolites(["PC(34:1)", "glc"], available, names) == ["PC_34_1", "glc"]
    with pytest.raises(KeyError, match=r"No metabolite 'PC34:1'; available: 'PC_34_1', 'glc'. Did you mean"):
        v.require_metabolites(["PC34:1"], available, names)


def test_a_name_that_several_metabolites_share():
    names = pd.Series({"m1": "PC(34:1)", "m2": "PC(34:1)", "m3": "other"})
    with pytest.raises(
        ValueError, match=r"Several metabolites are called 'PC\(34:1\)': 'm1', 'm2'. Name one by its id"
    ):
        v.require_metabolites(["PC(34:1)"], names.index, names)
    assert v.require_metabolites(["m2", "other"], names.index, names) == ["m2", "m3"]

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import stmsi

CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dask": lambda x: da.from_array(x, chunks=(20, -1)),
    "dask of csr": lambda x: da.from_array(x, chunks=(20, -1)).map_blocks(sp.csr_matrix),
}
GENES = [f"g{i}" for i in range(12)]


@pytest.fixture
def st():
    """Three clusters of twenty spots; genes 0 to 3, 4 to 7 and 8 to 11 mark them."""
    rng = np.random.default_rng(0)
    rate = np.full((60, 12), 5.0)
    for k in range(3):
        rate[20 * k : 20 * (k + 1), 4 * k : 4 * (k + 1)] = 40.0
    obs = pd.DataFrame({"cluster": pd.Categorical(np.repeat(["b", "a", "c/1"], 20))}, index=[str(i) for i in range(60)])
    return AnnData(sp.csr_matrix(rng.poisson(rate), dtype=np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.mark.parametrize("method", ["t-test", "t-test_overestim_var", "wilcoxon"])
def test_marker_genes_are_found(st, method):
    assert stmsi.pp.gene_signatures(st, n_genes=4, method=method) is None
    signature = st.varm["signature"]
    assert signature.columns.tolist() == ["a", "b", "c_1"]
    assert set(map(str, signature.dtypes)) == {"bool"}
    assert signature.index.equals(st.var_names)
    found = {c: signature.index[signature[c]].tolist() for c in signature}
    assert found == {"b": GENES[:4], "a": GENES[4:8], "c_1": GENES[8:]}
    assert st.uns["signature"]["clusters"].tolist() == ["a", "b", "c/1"]
    assert st.uns["signature"]["params"] == {"cluster_key": "cluster", "n_genes": 4, "method": method}


def test_agrees_with_scanpy(toy):
    st = toy.tables["st"]
    stmsi.pp.gene_signatures(toy, cluster_key="domain", n_genes=15)
    work = st.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.tl.rank_genes_groups(work, "domain", method="wilcoxon", n_genes=15)
    for cluster in st.obs["domain"].cat.categories:
        ranked = work.uns["rank_genes_groups"]["names"][cluster]
        assert set(st.var_names[st.varm["signature"][cluster]]) == set(ranked)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_containers_and_layers(st, container, layer):
    counts = container(st.X.toarray())
    if layer:
        st.layers[layer] = counts
        st.X = st.X * 0
    else:
        st.X = counts
    stmsi.pp.gene_signatures(st, n_genes=4, layer=layer)
    assert st.varm["signature"]["b"].to_numpy().nonzero()[0].tolist() == [0, 1, 2, 3]
    assert st.uns["signature"]["params"].get("layer") == layer


def test_counts_stay_counts(st):
    before = st.X.copy()
    stmsi.pp.gene_signatures(st, n_genes=3)
    assert (before != st.X).nnz == 0
    assert list(st.uns) == ["signature"]
    assert list(st.obs) == ["cluster"]


def test_numbered_clusters_are_sorted_as_numbers(st):
    st.obs["leiden"] = pd.Categorical(np.repeat(["10", "2", "1"], 20))
    stmsi.pp.gene_signatures(st, cluster_key="leiden", n_genes=4, key_added="leiden_signature")
    assert st.varm["leiden_signature"].columns.tolist() == ["1", "2", "10"]
    assert st.uns["leiden_signature"]["clusters"].tolist() == ["1", "2", "10"]
    assert "signature" not in st.varm
    st.obs["number"] = np.repeat([10, 2, 1], 20)
    stmsi.pp.gene_signatures(st, cluster_key="number", n_genes=4)
    assert st.varm["signature"].columns.tolist() == ["1", "2", "10"]


def test_spots_without_a_cluster_are_left_out(st):
    st.obs["cluster"] = st.obs["cluster"].astype(object)
    st.obs.iloc[:5, 0] = np.nan
    st.obs["cluster"] = st.obs["cluster"].astype("category")
    stmsi.pp.gene_signatures(st, n_genes=4)
    assert st.varm["signature"]["b"].to_numpy().nonzero()[0].tolist() == [0, 1, 2, 3]
    assert st.varm["signature"].shape == (12, 3)


SETS = {"a": ["g1", "g2", "unknown"], "b": ["g3"], "c/1": ["g1"], "spare": ["g9"]}


@pytest.mark.parametrize("kind", ["mapping", "gmt", "gmt as text"])
def test_given_gene_sets(st, kind, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("\n".join("\t".join([name, "from somewhere", *genes]) for name, genes in SETS.items()) + "\n\n")
    stmsi.pp.gene_signatures(st, gene_sets={"mapping": SETS, "gmt": path, "gmt as text": str(path)}[kind])
    signature = st.varm["signature"]
    assert {c: signature.index[signature[c]].tolist() for c in signature} == {
        "a": ["g1", "g2"],
        "b": ["g3"],
        "c_1": ["g1"],
    }
    assert st.uns["signature"]["params"]["method"] == "gene_sets"


def test_a_single_cluster_may_have_a_given_set(st):
    st.obs["cluster"] = "a"
    stmsi.pp.gene_signatures(st, gene_sets=SETS)
    assert st.varm["signature"].columns.tolist() == ["a"]


def test_constant_genes_do_no_harm(st):
    X = st.X.toarray()
    X[:, 11] = 0
    st.X = sp.csr_matrix(X)
    stmsi.pp.gene_signatures(st, n_genes=3)
    assert st.varm["signature"].sum().tolist() == [3, 3, 3]
    assert not st.varm["signature"].loc["g11", "b"]


def _labels(values):
    def change(st):
        st.obs["cluster"] = values

    return change


def _count(value):
    def change(st):
        X = st.X.toarray()
        X[2, 3] = value
        st.X = X

    return change


def _same_names(st):
    st.var_names = ["g0", "g0", *GENES[2:]]


BAD = {
    "key": (
        None,
        {"cluster_key": "clusters"},
        KeyError,
        "no column 'clusters'.*scanpy.tl.leiden. Did you mean 'cluster'",
    ),
    "one cluster": (_labels("a"), {}, ValueError, "at least two clusters, found 'a'"),
    "no cluster": (_labels(np.nan), {}, ValueError, r"obs\['cluster'\] holds no cluster: every label is missing"),
    "no cluster, sets": (_labels(np.nan), {"gene_sets": SETS}, ValueError, "holds no cluster"),
    "lonely spot": (
        _labels(["x"] + ["a"] * 30 + ["b"] * 29),
        {},
        ValueError,
        "fewer than two spots have no signature: 'x'. Merge or drop",
    ),
    "n_genes": (None, {"n_genes": 13}, ValueError, r"between 1 and the number of genes \(12\), found 13"),
    "no n_genes": (None, {"n_genes": 0}, ValueError, "n_genes must lie between 1"),
    "layer": (None, {"layer": "counts"}, KeyError, "The ST table has no layer 'counts'; layers: none"),
    "negative": (_count(-1), {}, ValueError, "Gene counts contain 1 negative values"),
    "infinite": (_count(np.inf), {}, ValueError, "Gene counts contain 1 infinite values"),
    "nan": (_count(np.nan), {}, ValueError, "Gene counts contain 1 NaN"),
    "method": (None, {"method": "deseq"}, ValueError, "Method must be one of"),
    "missing set": (
        None,
        {"gene_sets": {"a": ["g1"]}},
        KeyError,
        "No gene set for the clusters 'b', 'c/1'; sets: 'a'. Name the sets",
    ),
    "other ids": (
        None,
        {"gene_sets": {name: ["ENSG1"] for name in SETS}},
        ValueError,
        "'a', 'b', 'c/1' share no gene.*look like 'g0'.*same kind of id",
    ),
    "no file": (None, {"gene_sets": "nowhere.gmt"}, FileNotFoundError, "There is no file nowhere.gmt"),
    "duplicate genes": (_same_names, {}, ValueError, "Gene names must be unique; repeated: 'g0'"),
}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(("change", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(st, change, kwargs, error, message):
    if change is not None:
        change(st)
    with pytest.raises(error, match=message):
        stmsi.pp.gene_signatures(st, **{"n_genes": 4, **kwargs})
    assert not st.varm
    assert not st.uns


@pytest.mark.parametrize("text", ["\n", "a\tno genes\n", "a,b,c\n"])
def test_a_file_that_is_no_gmt(st, tmp_path, text):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a GMT file: expected name, description and genes separated by tabs"):
        stmsi.pp.gene_signatures(st, gene_sets=path)


def test_empty_tables_are_refused(st):
    with pytest.raises(ValueError, match="table is empty"):
        stmsi.pp.gene_signatures(st[:, :0].copy())


def test_a_binary_file_is_no_gmt(st, tmp_path):
    (tmp_path / "x.gmt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"x\.gmt cannot be read as a GMT file"):
        stmsi.pp.gene_signatures(st, cluster_key=str(st.obs.columns[0]), gene_sets=tmp_path / "x.gmt")

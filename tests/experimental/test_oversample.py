import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stmsi
from stmsi._core.learning.expression_space import pool_counts
from stmsi._core.learning.folds import inner_groups
from stmsi.model.net.encoders import ENCODERS


def test_clusters_become_equal(st):
    before = st.copy()
    out = stmsi.experimental.oversample(st, cluster_key="domain")
    covered = st[st.obsm["msi"].notna().any(axis=1).to_numpy()]
    size = out.obs["domain"].value_counts()
    assert size.nunique() == 1
    assert size.iloc[0] == covered.obs["domain"].value_counts().max()
    # every training spot is there, in order, and only then repeats
    assert out.obs_names[: covered.n_obs].tolist() == covered.obs_names.tolist()
    assert out.obs["oversampled_from"].iloc[: covered.n_obs].tolist() == covered.obs_names.tolist()
    assert out.obs_names.is_unique
    assert out.obs_names[covered.n_obs :].str.contains("-repeat").all()
    assert st.shape == before.shape
    assert "oversampled_from" not in st.obs


def test_repeats_are_their_spots(st):
    out = stmsi.experimental.oversample(st, cluster_key="domain")
    source = st.obs_names.get_indexer(out.obs["oversampled_from"])
    assert (st.X[source] != out.X).nnz == 0
    assert out.obsm["msi"].index.tolist() == out.obs_names.tolist()
    np.testing.assert_array_equal(out.obsm["msi"], st.obsm["msi"].iloc[source])
    np.testing.assert_array_equal(out.obsm["spatial"], st.obsm["spatial"][source])
    assert out.obs["sample"].tolist() == st.obs["sample"].iloc[source].tolist()
    np.testing.assert_array_equal(out.varm["signature"], st.varm["signature"])
    assert "spatialdata_attrs" not in out.uns
    assert "spatialdata_attrs" in st.uns


def test_each_section_gives_its_share():
    n = 100
    adata = ad.AnnData(np.ones((n, 2), np.float32))
    adata.obs_names = [f"s{i}" for i in range(n)]
    adata.obs["sample"] = ["a"] * 66 + ["b"] * 34
    adata.obs["cluster"] = ["big"] * 60 + ["rare"] * 6 + ["big"] * 10 + ["rare"] * 24
    out = stmsi.experimental.oversample(adata, cluster_key="cluster")
    rare = out.obs[out.obs["cluster"] == "rare"]
    assert len(rare) == 70
    assert rare["sample"].value_counts().to_dict() == {"b": 24 + 32, "a": 6 + 8}  # 40 repeats as 24 to 6
    assert len(out) == 140


def test_the_same_seed_draws_the_same(st):
    first, second, other = (stmsi.experimental.oversample(st, cluster_key="domain", rng=r).obs_names for r in (1, 1, 2))
    assert first.equals(second)
    assert not first.equals(other)


@pytest.mark.parametrize("mask", [False, True])
def test_training_spots_only(st, mask):
    train = np.flatnonzero((st.obs["sample"] != "P2S1").to_numpy())
    given = np.isin(np.arange(st.n_obs), train) if mask else train
    out = stmsi.experimental.oversample(st, cluster_key="domain", train_idx=given)
    assert set(out.obs["oversampled_from"]) == set(st.obs_names[train])
    assert set(out.obs["sample"]) == {"P1S1", "P3S1"}
    assert out.obs["domain"].value_counts().loc[lambda n: n > 0].nunique() == 1


def test_neighbours_of_a_repeat_are_those_of_its_spot(st):
    out = stmsi.experimental.oversample(st, cluster_key="domain", train_idx=np.arange(st.n_obs))
    source = st.obs_names.get_indexer(out.obs["oversampled_from"])
    graph, wide = st.obsp["spatial_connectivities"], out.obsp["spatial_connectivities"]
    assert wide.shape == (out.n_obs, out.n_obs)
    assert wide[:, st.n_obs :].nnz == 0  # no edge leads to a repeat
    np.testing.assert_array_equal(wide[:, : st.n_obs].toarray(), graph[source].toarray())
    expected = pool_counts(sp.csr_matrix(st.X), graph)[source]
    assert abs(pool_counts(sp.csr_matrix(out.X), wide) - expected).max() == 0
    # a plain selection of rows would count the neighbours as often as they were drawn
    naive = graph[source][:, source]
    assert abs(pool_counts(sp.csr_matrix(out.X), naive) - expected).max() > 0


def test_edges_to_other_spots_are_cut(st):
    train = np.flatnonzero((st.obs["sample"] == "P1S1").to_numpy())[::2]
    st.obsp["dense"] = st.obsp["spatial_distances"].toarray()
    out = stmsi.experimental.oversample(st, cluster_key="domain", train_idx=train)
    expected = st.obsp["spatial_distances"][train][:, train].toarray()
    for key in ("dense", "spatial_distances"):
        kept = out.obsp[key][: len(train), : len(train)]
        np.testing.assert_array_equal(kept.toarray() if sp.issparse(kept) else kept, expected)


NET = {"model": "HurdleNet", "train": {"max_epochs": 1}}


@pytest.mark.parametrize(
    ("family", "graph"),
    [
        ({"model": "ridge"}, True),
        ({"model": "ridge", "context": "diffused"}, True),
        (NET, False),
        *[({**NET, "encoder": name}, True) for name, kind in ENCODERS.items() if kind.uses_graph],
    ],
)
def test_models_train_on_it(st, family, graph):
    from stmsi.tl._models import train_model

    st.obsm["msi"] = st.obsm["msi"].iloc[:, :3]
    st.uns["_scvi_uuid"] = "of a model that was trained on the spots"
    train = np.flatnonzero((st.obs["sample"] != "P3S1").to_numpy())
    out = stmsi.experimental.oversample(st, cluster_key="domain", train_idx=train)
    assert not [k for k in out.uns if k.startswith("_scvi")]
    fields = {"graph_key": "spatial_connectivities"} if graph else {}
    model = train_model(out, family, fields, show_progress_bar=False)
    covered = out.obsm["msi"].notna().any(axis=1)
    assert model.state.training["n_spots"] == covered.sum() > len(train) - 20
    predicted = model.predict(st)
    assert predicted.shape == (st.n_obs, 3)
    assert np.isfinite(predicted.to_numpy()).all()


def test_repeats_and_their_spot_are_held_out_together(st):
    out = stmsi.experimental.oversample(st[st.obs["sample"] == "P1S1"].copy(), cluster_key="domain")
    groups = inner_groups(out.obs["sample"].to_numpy(str), out.obsm["spatial"])
    per_spot = pd.Series(groups).groupby(out.obs["oversampled_from"].to_numpy()).nunique()
    assert (out.obs["oversampled_from"].value_counts() > 1).any()
    assert (per_spot == 1).all()


def test_it_survives_writing(st, tmp_path):
    out = stmsi.experimental.oversample(st, cluster_key="domain")
    out.write_h5ad(tmp_path / "out.h5ad")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs["oversampled_from"].tolist() == out.obs["oversampled_from"].tolist()


def test_spatialdata_and_names_that_are_taken(mapped):
    st = mapped.tables["st"]
    first = stmsi.experimental.oversample(mapped, cluster_key="domain")
    again = stmsi.experimental.oversample(first, cluster_key="domain")
    assert again.n_obs == first.n_obs  # balanced already
    unbalanced = stmsi.experimental.oversample(first, cluster_key="sample")
    assert unbalanced.obs_names.is_unique
    assert st.obs_names.is_unique


def test_bad_arguments(st):
    with pytest.raises(KeyError, match="Did you mean 'domain'"):
        stmsi.experimental.oversample(st, cluster_key="domains")
    with pytest.raises(KeyError, match="pass sample_key="):
        stmsi.experimental.oversample(st, cluster_key="domain", sample_key="section")
    with pytest.raises(ValueError, match="train_idx must be distinct positions"):
        stmsi.experimental.oversample(st, cluster_key="domain", train_idx=[0, 0])
    st.obs["gap"] = st.obs["domain"].astype(object).where(np.arange(st.n_obs) > 3, None)
    with pytest.raises(ValueError, match="every training spot needs a cluster"):
        stmsi.experimental.oversample(st, cluster_key="gap", train_idx=np.arange(10))
    st.obsm["msi"] = st.obsm["msi"] * np.nan
    with pytest.raises(ValueError, match="No spot has MSI"):
        stmsi.experimental.oversample(st, cluster_key="domain")
    names = st.obs_names.to_numpy().copy()
    names[1] = names[0]
    st.obs_names = pd.Index(names)
    with pytest.raises(ValueError, match="Spot names must be unique"):
        stmsi.experimental.oversample(st, cluster_key="domain")

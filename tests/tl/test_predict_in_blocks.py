"""Predictions some spots at a time: the same numbers, whatever the block, and a store on disk."""

import threading
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.experimental import read_lazy
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model.net._prediction import NetPrediction
from stmsi.model.net._surroundings import threads
from stmsi.model.shared._blocks import blocks_of
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.tl._models import train_model

LINEAR = {
    "mean": "mean",
    "pooled": {"model": "ridge", "n_components": 8, "n_folds": 2},
    "diffused": {"model": "ridge", "context": "diffused", "n_components": 8, "n_folds": 2},
    "gene_ridge": "gene_ridge",
    "kernel_ridge": "kernel_ridge",
    "screened_ridge": "screened_ridge",
    "knn": "knn",
    "coordinates": "coordinates",
    "ensemble": {"model": "ensemble", "members": ["kernel_ridge", {"model": "ridge", "n_folds": 2}], "n_folds": 2},
}
NETS = {
    name: {"model": name, "n_nets": 1, "train": {"max_epochs": 1}}
    for name in ("mlp", "transformer", "graph", "deepset", "niche", "section", "crossmodal")
}

WITHOUT_GRAPH = ("coordinates", "mlp", "section", "crossmodal")


@pytest.fixture(scope="module")
def with_graph(_mapped):
    st = _mapped.tables["st"].copy()
    stmsi.pp.spatial_graph(st)
    return st


@pytest.fixture(scope="module")
def trained(with_graph):
    """A model by name; each is trained once."""
    made = {}

    def of(name):
        if name not in made:
            spec = (LINEAR | NETS)[name]
            fields = {} if name in WITHOUT_GRAPH else {"graph_key": "spatial_connectivities"}
            made[name] = train_model(with_graph.copy(), spec, fields, show_progress_bar=False)
        return made[name]

    return of


def predicted(adata, model, **kwargs):
    out = stmsi.tl.predict_metabolites(adata, model, copy=True, show_progress_bar=False, **kwargs)
    keys = ("msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper")
    return pd.concat([*(out.obsm[key].add_prefix(f"{key} ") for key in keys), out.obs["msi_pred_ood"]], axis=1)


@pytest.mark.parametrize("name", [*LINEAR, *NETS])
def test_numbers_do_not_depend_on_the_block(with_graph, trained, name):
    model = trained(name)
    order = np.arange(with_graph.n_obs)
    order[:200] = np.random.default_rng(0).permutation(200)  # sections and neighbours lie apart
    mixed = with_graph[order].copy()
    assert_frame_equal(predicted(mixed, model, block_size=60), predicted(mixed, model), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", [*LINEAR, *NETS])
def test_spots_around_those_that_are_wanted_are_read_and_not_predicted(with_graph, trained, name, monkeypatch):
    model, at = trained(name), np.flatnonzero(np.random.default_rng(0).random(with_graph.n_obs) < 0.3)
    spots = model._query_spots(with_graph, 0)
    whole = model._stages(spots)
    embedded, read_out = [], NetPrediction._read_out

    def counted(module, tensors, log, queries):
        embedded.append(len(log))
        return read_out(module, tensors, log, queries)

    monkeypatch.setattr(NetPrediction, "_read_out", staticmethod(counted))
    for some, every in zip(model._stages(spots, at), whole, strict=True):
        np.testing.assert_allclose(some, every[at], rtol=2e-4, atol=2e-4)
    assert sum(embedded) == (len(at) if name in NETS else 0)


def test_batches_go_to_threads_and_numbers_do_not_depend_on_them(with_graph, trained, monkeypatch):
    members = {"model": "ensemble", "members": ["transformer", "gene_ridge"], "n_folds": 2}
    members["members"][0] = {"model": "transformer", "n_nets": 2, "train": {"max_epochs": 1}}
    model = train_model(with_graph.copy(), members, {"graph_key": "spatial_connectivities"}, show_progress_bar=False)
    spots, seen, read_out = model._query_spots(with_graph, 0), {}, NetPrediction._read_out
    for stage in model.stack_.values():
        stage[:] = 0.5  # both have a say

    def watched(module, *args):
        seen.setdefault(torch.get_num_threads(), set()).add(threading.current_thread().name)
        return read_out(module, *args)

    monkeypatch.setattr(NetPrediction, "_read_out", staticmethod(watched))
    made = {}
    for n in (1, 2):
        seen.clear()
        with threads(n), model._in_batches(40):
            made[n] = model._stages(spots)
            assert torch.get_num_threads() == n
        assert set(seen) == {1}, "no thread waits for others inside a product"
        assert (threading.current_thread().name in seen[1]) == (n == 1)
    for one, two in zip(made[1], made[2], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("size", [1, 50, 200])
def test_blocks_hold_every_spot_once_and_whole_sections_where_they_are_not_divided(with_graph, size):
    model = train_model(with_graph.copy(), "mean", {"graph_key": "spatial_connectivities"}, show_progress_bar=False)
    reader = SpotReader.open(with_graph, model.state.setup)
    sample = with_graph.obs["sample"].to_numpy()
    for reach in (0, 1, 2, None):
        blocks = list(blocks_of(reader, reach, size))
        np.testing.assert_array_equal(np.sort(np.concatenate([b.rows for b in blocks])), np.arange(len(reader)))
        for block in blocks:
            np.testing.assert_array_equal(block.read[block.at], block.rows)
            if reach is None:
                assert not set(sample[block.rows]) & set(np.delete(sample, block.rows))
            elif reach:
                around = reader.spots.graph[block.rows].indices
                assert np.isin(around, block.read).all()


def same_store(path, adata, key="msi_pred"):
    """The store holds what a prediction in memory has written."""
    table = ad.read_zarr(path)
    layers = {"presence": f"{key}_presence", "lower": f"{key}_lower", "upper": f"{key}_upper"}
    assert_frame_equal(table.to_df(), adata.obsm[key], rtol=2e-4, atol=2e-4, check_names=False)
    for layer, frame in layers.items():
        assert_frame_equal(table.to_df(layer), adata.obsm[frame], rtol=2e-4, atol=2e-4, check_names=False)
    assert table.obs[f"{key}_trained_on"].tolist() == adata.obs[f"{key}_trained_on"].tolist()
    assert_frame_equal(table.uns[key]["training_spots"], adata.uns[key]["training_spots"])
    np.testing.assert_allclose(table.obs[f"{key}_ood"], adata.obs[f"{key}_ood"], rtol=2e-4, atol=2e-4)
    return table


@pytest.mark.parametrize("stored", ["memory", "backed", "lazy zarr", "lazy h5ad", "dask"])
def test_a_store_is_written_from_data_anywhere(with_graph, trained, tmp_path, stored, monkeypatch):
    monkeypatch.setattr("stmsi.model.shared._stored_input._AT_ONCE", 64)
    model = trained("diffused")
    adata = with_graph.copy()
    adata.uns.clear()
    if stored in ("backed", "lazy h5ad"):
        adata.write_h5ad(tmp_path / "st.h5ad")
        adata = (
            ad.read_h5ad(tmp_path / "st.h5ad", backed="r") if stored == "backed" else read_lazy(tmp_path / "st.h5ad")
        )
    elif stored == "lazy zarr":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Writing zarr v2|Consolidated metadata")
            adata.write_zarr(tmp_path / "st.zarr")
        adata = read_lazy(tmp_path / "st.zarr")
    elif stored == "dask":
        from dask import array

        adata.X = array.from_array(adata.X.toarray(), chunks=(50, -1))
    path = tmp_path / "predicted.zarr"
    assert stmsi.tl.predict_metabolites(adata, model, out=path, block_size=50, show_progress_bar=False) is None
    assert not [key for key in adata.obsm if key.startswith("msi_pred")], "the data are not changed"
    whole = stmsi.tl.predict_metabolites(with_graph, model, copy=True, show_progress_bar=False)
    table = same_store(path, whole)
    assert list(table.var_names) == model.metabolites
    assert {"name", "threshold", "held_out_pearson"} <= set(table.var)
    assert table.obs["sample"].tolist() == with_graph.obs["sample"].tolist()
    np.testing.assert_allclose(table.obsm["spatial"], with_graph.obsm["spatial"][:, :2])
    assert table.uns["msi_pred"]["params"]["how"] == ["expected"]
    lazy = read_lazy(path)
    np.testing.assert_allclose(lazy.X[:5].compute(), table.X[:5])
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_further_outputs_and_a_model_by_name(with_graph, tmp_path):
    how = ("probability_weighted", "expected")
    path = tmp_path / "by_name.zarr"
    stmsi.tl.predict_metabolites(with_graph, "mean", how=how, out=path, key_added="mine", show_progress_bar=False)
    whole = stmsi.tl.predict_metabolites(
        with_graph, "mean", how=how, key_added="mine", copy=True, show_progress_bar=False
    )
    table = same_store(path, whole, "mine")
    assert_frame_equal(table.to_df("expected"), whole.obsm["mine_expected"], check_names=False)


def test_a_log_normalised_section_is_told_once(with_graph, trained, tmp_path, caplog):
    mixed = with_graph.copy()
    own = np.flatnonzero(mixed.obs["sample"] == "P3S1")
    values = mixed.X.toarray()
    values[own] = np.log1p(values[own] / values[own].sum(axis=1, keepdims=True) * 1e4)
    mixed.X = values
    stmsi.tl.predict_metabolites(mixed, trained("pooled"), out=tmp_path / "p", block_size=40, show_progress_bar=False)
    assert caplog.text.count("is log-normalised in section 'P3S1'") == 1
    whole = stmsi.tl.predict_metabolites(mixed, trained("pooled"), copy=True, show_progress_bar=False)
    same_store(tmp_path / "p", whole)


def test_what_cannot_be_written_is_refused_before_anything_is_done(with_graph, trained, tmp_path):
    model = trained("mean")
    for wrong in ({"copy": True}, {"use_measured": True}):
        with pytest.raises(ValueError, match="does not go with"):
            stmsi.tl.predict_metabolites(with_graph, model, out=tmp_path / "x", **wrong)
    with pytest.raises(FileNotFoundError, match="no folder"):
        stmsi.tl.predict_metabolites(with_graph, "mean", out=tmp_path / "no" / "x")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        stmsi.tl.predict_metabolites(with_graph, "mean", out=tmp_path / "there")
    with pytest.raises(ValueError, match="block_size"):
        stmsi.tl.predict_metabolites(with_graph, model, block_size=0)


def test_an_error_leaves_no_store(with_graph, trained, tmp_path, monkeypatch):
    model = trained("mean")
    seen = []

    def fails(spots, at):
        seen.append(len(spots))
        if len(seen) > 2:
            raise OSError("disk full")
        return np.zeros((2, len(spots if at is None else at), len(model.metabolites)))

    monkeypatch.setattr(model, "_stages", fails)
    with pytest.raises(OSError, match="disk full"):
        stmsi.tl.predict_metabolites(with_graph, model, out=tmp_path / "x", block_size=50, show_progress_bar=False)
    assert len(seen) == 3
    assert not list(tmp_path.iterdir())

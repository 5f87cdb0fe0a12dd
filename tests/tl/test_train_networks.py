"""Networks trained on stores see every spot, in windows of shuffled blocks, and score as those trained in memory."""

import gc
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import stmsi
from stmsi._core import arrays_on_disk
from stmsi._core.metrics import columns
from stmsi._data import stores as _stores
from stmsi.model.net import _context_genes, _prediction, _stored_batches, _training
from stmsi.model.net._stored_batches import Windows
from stmsi.model.shared import _blocks
from stmsi.model.shared._streamed_parts import StreamedParts
from stmsi.model.shared._targets import read_targets
from stmsi.tl import _stored_section, _stored_sections
from stmsi.tl._stored_sections import StoredSections

GRAPH = {"presence_key": "msi_presence", "graph_key": "spatial_connectivities"}
KEPT = ["simPC_28_0", "simPC_31_3", "simPC_36_0"]


@pytest.fixture(scope="module")
def table(_mapped):
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][KEPT]
    return st


@pytest.fixture(scope="module")
def stores(table, tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("stores"), []
    for name in table.obs["sample"].unique():
        paths.append(folder / f"{name}.h5ad")
        table[table.obs["sample"] == name].copy().write_h5ad(paths[-1])
    return paths


@pytest.fixture
def small(monkeypatch):
    """Windows, blocks and pieces of a few spots, so that all edges are met, and nothing may be read as a whole."""
    monkeypatch.setattr(_stored_batches, "WINDOW", 96)
    monkeypatch.setattr(_stored_batches, "BLOCK", 16)
    monkeypatch.setattr(_context_genes, "_AT_ONCE", 50)
    monkeypatch.setattr("stmsi.model.net._prediction.PREDICT_BATCH", 50)
    read = StreamedParts.some_values

    def some(self, rows):
        assert len(rows) < 150, "at most a section, or a block with the spots around it"
        return read(self, rows)

    monkeypatch.setattr(StreamedParts, "some_values", some)


def train(data, encoder, epochs, fields, n_nets=3, **options):
    spec = {"model": encoder, "n_nets": n_nets, "train": {"max_epochs": epochs, **options}}
    return stmsi.tl.train(data, spec, setup=fields, show_progress_bar=False)


@pytest.mark.parametrize("encoder", ["transformer", "graph"])
def test_with_one_batch_an_epoch_the_network_is_that_of_memory(table, stores, small, encoder):
    """Genes, screens, rings, calibration: all but the order of a batch, on which only rounding depends."""
    options = {"batch_size": 1000} | ({} if encoder == "transformer" else {"lr": 1e-4})
    model, alone = train(stores, encoder, 2, GRAPH, **options), train(table, encoder, 2, GRAPH, **options)
    assert model.adata is None
    own = {net.module.gene_index.numpy().tobytes() for net in model._nets}
    assert own == {net.module.gene_index.numpy().tobytes() for net in alone._nets}
    assert not any(len(net.module.ring_genes) for net in model._nets), "the mapped file is let go"
    query = table.copy()
    tolerance = 1e-4 if encoder == "transformer" else 5e-3  # dropout is drawn in another order
    for a, b in zip(
        model._stages(model._query_spots(query, 0)), alone._stages(alone._query_spots(query, 0)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_batches_give_scores_as_in_memory_and_the_same_for_the_same_seed(table, stores, small):
    model, alone = (
        train(data, "mlp", 6, GRAPH | {"graph_key": None}, batch_size=32, n_nets=1) for data in (stores, table)
    )
    for score in ("mean_pearson", "mean_auroc"):
        assert abs(model.card["held_out"][score] - alone.card["held_out"][score]) < 0.04
    again = train(stores, "mlp", 6, GRAPH | {"graph_key": None}, batch_size=32, n_nets=1)
    query = table.copy()
    np.testing.assert_array_equal(again.predict(query), model.predict(query))


def test_rings_need_the_spots_around_a_block(table, stores, small, monkeypatch):
    """The halo is no decoration: without it, rings of spots at the border of a block are others."""
    found = {}

    def keep(module, spots, graph, real=_context_genes.gene_rings):
        out = real(module, spots, graph)
        if spots.is_streamed and not found:
            read = spots.in_memory()
            found["whole"] = real(module, read, graph)
            found["blocks"] = np.array(out)
            with monkeypatch.context() as patch:
                patch.setattr(_blocks, "_with_rings", lambda rows, *_: rows)
                found["cut"] = np.array(real(module, spots, graph))
        return out

    monkeypatch.setattr("stmsi.model.net._neighbour_context.gene_rings", keep)
    monkeypatch.setattr(StreamedParts, "some_values", StreamedParts.some_values.__closure__[0].cell_contents)
    train(stores, "transformer", 1, GRAPH)
    np.testing.assert_allclose(found["blocks"], found["whole"], atol=2e-3)
    assert np.abs(found["cut"].astype(float) - found["whole"]).max() > 0.1


class Places:
    """Stands for a data set: what it was told to hold."""

    def __init__(self, store):
        self.store, self.held = store, []
        self._stored = type("", (), {"expression": self})()

    def blocks(self, rows):
        return np.split(rows, np.flatnonzero(np.diff(self.store[rows])) + 1)

    def hold(self, rows):
        self.held += [] if rows is None else [np.asarray(rows)]


def test_windows_hold_every_spot_once_and_mix_the_stores(monkeypatch):
    monkeypatch.setattr(_stored_batches, "WINDOW", 640)
    monkeypatch.setattr(_stored_batches, "BLOCK", 32)
    rows = np.setdiff1d(np.arange(4000), np.arange(0, 4000, 7))
    store = np.repeat(np.arange(8), 500)
    data = Places(store)
    torch.manual_seed(0)
    windows = Windows(data, rows, 64, shuffle=True)
    first, second = list(windows), list(windows)
    assert len(first) == len(windows)
    assert {len(b) for b in first[:-1]} == {64}
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), rows)
    assert first != second
    torch.manual_seed(0)
    assert list(Windows(data, rows, 64, shuffle=True)) == first
    assert max(map(len, data.held)) <= 640
    # the blocks of a window lie anywhere, and a batch has some of most of them
    assert np.mean([len(np.unique(store[b])) for b in first]) > 6
    runs = [np.sum(np.diff(np.sort(h)) > 2) + 1 for h in data.held]
    assert max(runs) < 60, "the disk is read in runs"
    whole = list(Windows(data, rows, 64, shuffle=False))
    np.testing.assert_array_equal(np.concatenate(whole), rows)
    assert len(list(Windows(data, rows, 64, shuffle=True, drop_last=True))) == len(rows) // 64


def test_without_blocks_from_everywhere_a_batch_is_of_one_store(monkeypatch):
    """The ablation: blocks as large as stores, and a window no larger, do not mix."""
    monkeypatch.setattr(_stored_batches, "WINDOW", 512)
    monkeypatch.setattr(_stored_batches, "BLOCK", 512)
    store = np.repeat(np.arange(8), 512)
    batches = list(Windows(Places(store), np.arange(len(store)), 64, shuffle=True))
    assert {len(np.unique(store[b])) for b in batches} == {1}


def test_what_cannot_be_done_with_stores_is_told(stores):
    with pytest.raises(ValueError, match=r"datasplitter_kwargs names num_workers.*leave it out"):
        train(stores, "mlp", 1, None, datasplitter_kwargs={"num_workers": 2})


def test_folds_of_networks_are_read_from_the_stores(table, stores, small):
    spec = {"mlp": {"model": "mlp", "n_nets": 1, "train": {"max_epochs": 4, "batch_size": 1000}}}
    options = {"setup": {"presence_key": "msi_presence"}, "on_leakage": "ignore", "show_progress_bar": False}
    found, alone = (stmsi.tl.cross_validate(data, spec, **options) for data in (stores, table))
    assert list(found["sample"]) == list(alone["sample"])
    a, b = (t.groupby("stage", observed=True)[["pearson", "auroc"]].mean() for t in (found, alone))
    np.testing.assert_allclose(a, b, atol=0.03)


def written(folder, n_spots, n_metabolites=100, n_sections=3):
    """Sections on disk whose genes and metabolites share programmes."""
    shared, paths = np.random.default_rng(0), []
    genes, metabolites = shared.gamma(0.5, size=(4, 30)), shared.gamma(0.5, size=(4, n_metabolites))
    for k in range(n_sections):
        rng, names = np.random.default_rng(k + 1), [f"spot{i}" for i in range(n_spots)]
        activity = rng.gamma(1, size=(n_spots, 4))
        level = np.maximum(activity @ metabolites - rng.gamma(4, 0.2, (n_spots, n_metabolites)), 0)
        counts = sp.csr_matrix(rng.poisson(activity @ genes).astype(np.float32))
        adata = ad.AnnData(counts, obs=pd.DataFrame({"sample": f"S{k}"}, names))
        adata.obsm["msi"] = pd.DataFrame(level.astype(np.float32), names, [f"m{m}" for m in range(n_metabolites)])
        paths.append(folder / f"S{k}_{n_spots}.h5ad")
        adata.write_h5ad(paths[-1])
    return paths


@pytest.mark.parametrize("kept", ["on disk", "targets in memory"])
def test_memory_hardly_grows_with_the_spots(tmp_path, monkeypatch, kept):
    """The ablation: what spots and metabolites take where targets, and all that is made of them, are in memory."""
    if kept == "targets in memory":
        monkeypatch.setattr(_training, "stored_targets", read_targets)
    for module in (arrays_on_disk, columns):
        monkeypatch.setattr(module, "_AT_ONCE", 2**14)
    monkeypatch.setattr(_stored_batches, "WINDOW", 256)
    monkeypatch.setattr(_stored_sections, "_AT_ONCE", 256)
    monkeypatch.setattr(_prediction, "PREDICT_BATCH", 128)

    def peak(n_spots):
        paths = written(tmp_path, n_spots)
        gc.collect()
        tracemalloc.start()
        try:
            train(paths, "mlp", 1, None, n_nets=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    train(written(tmp_path, 100), "mlp", 1, None, n_nets=1)  # what is imported once
    few, many = peak(300), peak(800)
    # the measured intensities are 400 bytes; names, places and hashes are a few hundred, and some garbage is collected late
    assert ((many - few) / 1500 < 2500) == (kept == "on disk")


def test_stores_stay_open_between_windows_and_are_closed_after(table, stores, small, monkeypatch):
    def opened():
        paths = []
        with monkeypatch.context() as patch:
            for module in (_stores, _stored_section, _stored_sections):
                real = module.opened_table
                patch.setattr(
                    module, "opened_table", lambda path, key, real=real: paths.append(path) or real(path, key)
                )
            model = train(stores, "mlp", 2, None, n_nets=1)
        return len(paths), model.predict(table.copy())

    n, predicted = opened()
    monkeypatch.setattr(StoredSections, "kept_open", lambda self: self)
    n_without, same = opened()
    np.testing.assert_array_equal(predicted, same)
    assert n == 2 * len(stores), "to look at them, and to train"
    assert n_without > 5 * n

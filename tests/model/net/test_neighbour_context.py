"""What encoders are told of the neighbourhood of a spot."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from stmsi._core.spatial.neighbourhoods import neighbour_rings
from stmsi.model import HurdleNet
from stmsi.model.net import _neighbour_context
from stmsi.model.net._context_genes import set_gene_rings
from stmsi.model.net.encoders import ENCODERS, Context, MLPEncoder
from stmsi.model.net.modules import HurdleModule
from stmsi.model.net.modules._spot_rows import CLIP


class GenesAround(MLPEncoder):
    """A neighbour encoder on genes, as short as one can be."""

    uses_graph = needs_graph = sees_genes = uses_edges = True
    residual = None
    seen: "list[tuple[torch.Tensor, Context]]" = []  # noqa: RUF012

    def forward(self, x, covariates, context=None):
        self.seen.append((x.detach().clone(), context))
        return super().forward(x + context.ring_mean(context.values, 1), covariates)


@pytest.fixture
def hexagons(monkeypatch):
    """A module over a hexagonal patch of 19 spots and one alone, which sees genes; its genes and its graph."""
    monkeypatch.setitem(ENCODERS, "genes", GenesAround)
    q, r = np.meshgrid(np.arange(-2, 3), np.arange(-2, 3))
    there = np.abs(q + r) <= 2
    xy = np.column_stack([q[there] + r[there] / 2, r[there] * 3**0.5 / 2])
    near = np.abs(np.linalg.norm(xy[:, None] - xy[None], axis=2) - 1) < 0.1
    graph = np.zeros((20, 20))
    graph[:19, :19] = near
    module = HurdleModule(n_selected=3, n_metabolites=2, encoder="genes", has_graph=True)
    return module, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float16), graph


def test_a_spot_knows_the_genes_of_its_rings(hexagons):
    module, genes, graph = hexagons
    index, ring = neighbour_rings(sp.csr_matrix(graph))
    module.set_context(genes, index, ring, np.zeros((*index.shape, 2), np.float32))
    rows = np.array([9, 0, 19])  # the middle, a corner, the one alone
    context = module._context(torch.tensor(rows)[:, None])
    np.testing.assert_array_equal(context.own, genes[rows].astype(np.float32))
    steps = np.where(graph, 1, np.where(graph @ graph, 2, 0)) * (1 - np.eye(20))
    for i, row in enumerate(rows):
        for number in (1, 2):
            rows_of_ring = np.flatnonzero(steps[row] == number)
            inside = context.ring[i] == number
            found = context.neighbours[i][inside].numpy()
            np.testing.assert_array_equal(found, genes[rows_of_ring].astype(np.float32))
            expected = genes[rows_of_ring].astype(np.float32).mean(axis=0) if len(rows_of_ring) else np.zeros(3)
            np.testing.assert_allclose(context.ring_mean(context.values, number)[i], expected, atol=1e-6)
    assert (context.ring > 0).sum(dim=1).tolist() == [18, 8, 0]
    assert (context.neighbours[context.ring == 0] == 0).all()
    assert len(context.values) == len(np.unique([*np.flatnonzero(steps[9]), *np.flatnonzero(steps[0]), *rows]))
    # edges of the graph between all that are there, in both directions
    for i, row in enumerate(rows):
        there = np.concatenate([[True], context.ring[i] > 0])
        nodes = np.concatenate([[row], index[row]])[there]
        np.testing.assert_array_equal(context.edges[i][there][:, there], graph[np.ix_(nodes, nodes)] > 0)
        assert not context.edges[i][~there].any()
        assert not context.edges[i][:, ~there].any()


def test_an_encoder_on_genes_is_one_file(st, monkeypatch):
    """Its own genes are those of the batch, and those of the neighbours are standardised alike."""
    monkeypatch.setitem(ENCODERS, "genes", GenesAround)
    monkeypatch.setattr(GenesAround, "seen", [])
    HurdleNet.setup_anndata(st, presence_key="msi_presence", graph_key="spatial_connectivities")
    model = HurdleNet(st, encoder="genes", encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=1, refit=False)
    assert model.predict().shape == (st.n_obs, st.obsm["msi"].shape[1])
    for x, context in GenesAround.seen:
        torch.testing.assert_close(context.own, x, rtol=2e-3, atol=2e-3)  # kept in half precision
    assert not {"spot_genes", "neighbours"} & set(model.module.state_dict())


@pytest.mark.once
def test_networks_share_the_neighbourhoods_of_spots_to_predict(st, monkeypatch):
    found = []

    def counted(*args):
        found.append(neighbour_rings(*args))
        return found[-1]

    HurdleNet.setup_anndata(st, presence_key="msi_presence", graph_key="spatial_connectivities")
    model = HurdleNet(st, encoder="deepset", encoder_kwargs={"n_hidden": 8}, n_nets=2)
    model.train(max_epochs=1)
    assert len(model._nets) == 2
    monkeypatch.setattr(_neighbour_context, "neighbour_rings", counted)
    model.predict()
    assert len(found) == 1
    for net in model._nets:
        np.testing.assert_array_equal(net.module.ring, found[0][1])


def test_networks_share_the_means_of_rings(st):
    """Each is told what it would have made itself, also of genes with a spot beyond the limit of standardised expression."""
    HurdleNet.setup_anndata(st, presence_key="msi_presence", graph_key="spatial_connectivities")
    model = HurdleNet(st, encoder="transformer", encoder_kwargs={"n_hidden": 8, "genes_per_metabolite": 2}, n_nets=2)
    model.train(max_epochs=1)
    for net in model._nets:  # so that spots lie beyond
        net.module.gene_scale[:3] /= 20
    spots = model._query_spots(st, 0.5)
    set_gene_rings([net.module for net in model._nets], spots, spots.graph)
    first, second = (net.module for net in model._nets)
    assert first.ring_means.data_ptr() == second.ring_means.data_ptr()
    assert not np.array_equal(first.gene_index, second.gene_index)
    edges = (spots.graph != 0).toarray() + np.eye(len(spots))
    average = edges / edges.sum(axis=1, keepdims=True)
    for module in (first, second):
        index, mean, scale = (getattr(module, name).numpy() for name in ("gene_index", "gene_mean", "gene_scale"))
        value = np.clip((spots.log_expression()[:, index].toarray() - mean) / scale.astype(float), -CLIP, CLIP)
        beyond = module.ring_beyond.numpy()
        assert (np.abs(value).max(axis=0) == CLIP)[beyond].all()
        assert 0 < len(beyond) < len(index)
        rest = np.setdiff1d(np.arange(len(index)), beyond)
        found = module.gene_context(torch.arange(len(spots))).rings.numpy()
        for number, of_ring in enumerate(module.ring_scale.numpy()):
            value = average @ value
            expected = np.clip(value / of_ring, -CLIP, CLIP)
            np.testing.assert_allclose(found[:, number, rest], expected[:, rest], atol=1e-5)
            np.testing.assert_allclose(found[:, number, beyond], expected[:, beyond], atol=5e-3)  # half precision

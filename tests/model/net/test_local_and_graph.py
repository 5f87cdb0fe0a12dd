"""The graph encoder: a local stage that is fixed, and a graph that corrects its prediction."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.net._training import NetTraining
from stmsi.model.net.encoders import Context, GraphEncoder, Sizes
from stmsi.model.net.encoders._graph import _GCN, _SAGE, _GraphAttention

SIZES = Sizes(n_genes=3, n_covariates=2, n_metabolites=2)
SMALL = {"n_hidden": 16, "n_graph": 16}
SIDE = 8


def around(n=4, k=5, width=4, seed=0):
    """Spots with neighbours of random values on random edges; the last spot is alone, the others lack their last neighbour."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.ones(n, k, dtype=torch.long)
    ring[:, 3:] = 2
    ring[:, -1] = ring[-1] = 0
    there = torch.cat([torch.ones(n, 1, dtype=torch.bool), ring > 0], dim=1)
    edges = torch.rand(n, 1 + k, 1 + k, generator=generator) < 0.5
    edges = (edges | edges.transpose(1, 2)) & there.unsqueeze(1) & there.unsqueeze(2)
    values = torch.randn(n * (1 + k), width, generator=generator)
    place = torch.arange(n * k).reshape(n, k) + n
    offset = torch.randn(n, k, 2, generator=generator) * (ring > 0).unsqueeze(-1)
    return Context(values, torch.arange(n), place, ring, offset, edges & ~torch.eye(1 + k, dtype=torch.bool))


def spots_of(seen, side=SIDE, n_sections=5, seed=0):
    """Square sections of five genes; the metabolites are what `seen` makes of gene 0, shape (sections, side, side), and twice that."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0, 3, size=(n_sections, side, side, 5))
    counts = np.concatenate([rng.poisson(20 * 2**rate), np.full((n_sections, side, side, 1), 2000)], axis=-1)
    n = side * side
    st = ad.AnnData(
        sp.csr_matrix(counts.reshape(-1, 6).astype(np.float32)),
        obs=pd.DataFrame(
            {"sample": np.repeat([f"S{i}" for i in range(n_sections)], n)},
            index=[f"spot {i}" for i in range(n_sections * n)],
        ),
    )
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    st.obsm["spatial"] = np.tile(xy * 100, (n_sections, 1))
    near = np.abs(xy[:, None] - xy[None]).sum(axis=2) == 1
    st.obsp["spatial_connectivities"] = sp.block_diag([sp.csr_matrix(near, dtype=float)] * n_sections, format="csr")
    value = seen(rate[..., 0]).ravel() + 5 + rng.normal(0, 0.1, st.n_obs)
    st.obsm["msi"] = pd.DataFrame(np.column_stack([value, 2 * value]), st.obs_names, ["a", "b"]).astype(np.float32)
    return st


def ring_mean(rate):
    """Mean over the four neighbours, without the spot itself."""
    total, count = np.zeros_like(rate), np.zeros_like(rate)
    for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
        inside = [slice(None)] * 3
        inside[axis] = slice(1, None) if step == 1 else slice(None, -1)
        moved = np.roll(rate, step, axis)
        total[tuple(inside)] += moved[tuple(inside)]
        count[tuple(inside)] += 1
    return total / count


def fit(st, encoder="graph", options=None, **train):
    HurdleNet.setup_anndata(st, graph_key="spatial_connectivities")
    model = HurdleNet(st, encoder=encoder, residual=None, encoder_kwargs=options or {})
    model.train(**{"refit": False, "lr": 1e-2, "max_epochs": 25, "patience": 10} | train)
    return model


def without_edges(st):
    alone = st.copy()
    alone.obsp["spatial_connectivities"] = sp.csr_matrix((st.n_obs, st.n_obs))
    return alone


def follows(predicted, st):
    """Correlation with what was measured."""
    return float(np.corrcoef(predicted["a"], st.obsm["msi"]["a"])[0, 1])


# ----------------------------------------------------------------------------------------------------- what it learns


@pytest.fixture(scope="module")
def neighbours_matter():
    """Sections whose metabolites are those of the neighbours, the last of them held out."""
    st = spots_of(ring_mean)
    last = (st.obs["sample"] == "S4").to_numpy()
    return st[~last].copy(), st[last].copy()


@pytest.mark.once
@pytest.mark.parametrize(
    ("encoder", "options", "least"),
    [
        ("graph", SMALL | {"n_hops": 1, "n_layers": 1, "conv": "sage", "dropout": 0.0}, 0.35),
        (
            "deepset",
            {"n_hidden": 16, "n_phi": 3, "n_rho": 3, "dropout": 0.0},
            0.3,
        ),  # which has their maximum, not their mean
    ],
)
def test_an_empty_graph_loses_where_neighbours_carry_the_signal(neighbours_matter, encoder, options, least):
    train, test = neighbours_matter
    model = fit(train.copy(), encoder, options, batch_size=64)
    assert follows(model.predict_intensity(test), test) > least
    assert follows(model.predict_intensity(without_edges(test)), test) < 0.15


@pytest.mark.once
def test_where_a_neighbour_lies_is_learned():
    """The metabolite is that of the neighbour to the right; without positions all four are the same, and at best half is told."""
    st = spots_of(lambda rate: np.roll(rate, -1, axis=2))
    inside = st.obsm["spatial"][:, 0] < 100 * (SIDE - 1)  # the last column has none
    st.obsm["msi"].loc[~inside] = np.nan
    last = (st.obs["sample"] == "S4").to_numpy()
    options = {"n_hidden": 16, "n_graph": 32, "n_hops": 1, "n_layers": 1, "conv": "attention", "dropout": 0.0}
    model = fit(st[~last].copy(), options=options, batch_size=64, max_epochs=40, patience=20)
    found, test = model.predict_intensity(st[last].copy()), st[last & inside]
    assert follows(found.loc[test.obs_names], test) > 0.6


def test_the_local_stage_is_fixed_before_the_graph(neighbours_matter, monkeypatch):
    """The correction moves nothing that the spot by itself is predicted from, and drops nothing there."""
    passes, whole = {}, NetTraining._fit

    def watched(self, stage, rows, validation, best, **options):
        before = {k: v.clone() for k, v in self.module.state_dict().items()}
        whole(self, stage, rows, validation, best, **options)
        passes[stage] = {k for k, v in self.module.state_dict().items() if not torch.equal(v, before[k])}

    monkeypatch.setattr(NetTraining, "_fit", watched)
    train, _ = neighbours_matter
    model = fit(train.copy(), options=SMALL, max_epochs=2)
    assert list(passes) == ["local", "correction"]
    local = {k for k in passes["local"] if k.startswith("encoder.local.") or ".local." in k}
    assert passes["local"] == local, "the graph waits"
    assert not any(".local." in k for k in passes["correction"]), "the spot by itself is fixed"
    assert any(k.startswith("encoder.layers.") for k in passes["correction"])
    assert any(k.startswith("intensity_head.correction") for k in passes["correction"])
    assert len(model.module.embedded) == 0
    assert not any("embedded" in k for k in model.module.state_dict())


def test_nodes_are_the_same_when_they_are_kept(neighbours_matter):
    module = fit(neighbours_matter[0].copy(), options=SMALL, max_epochs=1).module
    row = torch.arange(10)
    module.eval()
    fresh = module._context(row)
    module.begin("correction")
    module.train()
    assert not module.encoder.local.training
    assert module.encoder.dropout.training
    assert len(module.embedded) == len(module.spot_genes)
    torch.testing.assert_close(module._context(row).values, fresh.values)
    own = module.encoder.embed_locally(module.spot_genes[:10].float())
    torch.testing.assert_close(own, fresh.own[:, : own.shape[1]])
    module.begin("joint")
    assert module.train().encoder.local.training
    assert len(module.embedded) == 0


def test_the_correction_is_one_of_the_prediction(neighbours_matter):
    """What the neighbourhood adds is the same, whatever the spot itself is predicted to be."""
    model = fit(neighbours_matter[0].copy(), options=SMALL, max_epochs=2)
    head = model.module.intensity_head
    n_local, n_correction, n_rings, _ = head.widths
    with torch.no_grad():
        head.pull.normal_()
    torch.manual_seed(0)
    a = torch.randn(5, n_local + n_correction + n_rings)
    other = torch.cat([torch.randn(5, n_local), a[:, n_local:]], dim=1)
    moved = a.clone()
    moved[:, n_local:] += 1
    expected = head.correction.weight.sum(dim=1) + 10 * head.pull.sum(dim=0)
    torch.testing.assert_close(head(moved) - head(a), expected.expand(5, -1), rtol=1e-4, atol=1e-4)
    moved = torch.cat([other[:, :n_local], moved[:, n_local:]], dim=1)
    torch.testing.assert_close(head(moved) - head(other), expected.expand(5, -1), rtol=1e-4, atol=1e-4)


def test_each_ring_pulls_the_prediction_of_its_own_stage():
    encoder = GraphEncoder(SIZES, n_hidden=4, n_graph=8).eval()
    context = around(width=4 + 2 * 2)
    stages = encoder.of_stages(encoder(torch.randn(4, 3), torch.randn(4, 2), context))
    for i in range(4):
        for ring in (1, 2):
            inside = context.ring[i] == ring
            mean = context.neighbours[i][inside][:, 4:].mean(dim=0) - context.own[i, 4:]
            expected = mean if inside.any() else torch.zeros(4)
            for stage, columns in zip(stages, (slice(0, 2), slice(2, 4)), strict=True):
                found = stage[i, -4:].reshape(2, 2)[ring - 1]
                torch.testing.assert_close(found, expected[columns])


# ---------------------------------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("kind", [_GCN, _SAGE, _GraphAttention])
def test_convolutions_against_loops(kind):
    torch.manual_seed(0)
    context, layer = around(), kind(3, 2)
    h = torch.randn(4, 6, 3)
    found = layer(h, context.edges).detach()
    for b in range(4):
        near = [[j for j in range(6) if context.edges[b, i, j]] for i in range(6)]
        for i in range(6):
            own = sorted({i, *near[i]})
            if kind is _GCN:
                degree = [len({k, *near[k]}) for k in range(6)]
                expected = layer.weight(sum(h[b, j] / (degree[i] * degree[j]) ** 0.5 for j in own))
            elif kind is _SAGE:
                mean = sum((h[b, j] for j in near[i]), torch.zeros(3)) / max(len(near[i]), 1)
                expected = layer.own(h[b, i]) + layer.around(mean)
            else:
                made = layer.weight(h[b])
                score = torch.stack([layer.asks(made[i]) + layer.answers(made[j]) for j in own]).squeeze(1)
                weight = torch.nn.functional.leaky_relu(score, 0.2).softmax(dim=0)
                expected = weight @ made[own]
            torch.testing.assert_close(found[b, i], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", ["gcn", "sage", "attention"])
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_edges_positions_and_nodes_count(conv, combine):
    torch.manual_seed(0)
    encoder = GraphEncoder(SIZES, n_hidden=4, n_graph=8, conv=conv, combine=combine).eval()
    context = around(width=4 + 2 * 2)
    base = encoder.embed_around(context)
    few = context.edges.clone()
    few[:3, 0, 1] = ~few[:3, 0, 1]
    few[:3, 1, 0] = few[:3, 0, 1]
    for changed in (
        replace(context, edges=few),
        replace(context, offset=context.offset * 1.5),
        replace(context, values=context.values + torch.randn_like(context.values) * (context.ring.sum() > 0)),
    ):
        moved = (encoder.embed_around(changed) - base).abs().amax(dim=1)
        assert (moved[:3] > 1e-5).all()
    # neighbours that are not there: whatever stands in their place
    filled = context.values.clone()
    filled[context.neighbour[context.ring == 0]] = 9.0
    torch.testing.assert_close(encoder.embed_around(replace(context, values=filled)), base)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_graph": 6}, "n_graph=6 must be a multiple of 4"),
        ({"n_hops": 4}, "n_hops=4 must be 1 to 3"),
        ({"conv": "gat"}, "conv='gat' is not known"),
        ({"combine": "mean"}, "combine='mean' is not known"),
    ],
)
def test_options_that_do_not_fit(options, match):
    with pytest.raises(ValueError, match=match):
        GraphEncoder(SIZES, **options)


def test_three_hops_reach_so_far(neighbours_matter):
    model = fit(neighbours_matter[0].copy(), options=SMALL | {"n_hops": 3}, max_epochs=1)
    assert model.module.neighbours.shape[1] == 4 + 8 + 12
    assert model.module.intensity_head.pull.shape == (3, 2)


@pytest.mark.parametrize("encoder", ["graph", "deepset"])
def test_isolated_spots_one_spot_and_one_gene(encoder, tmp_path):
    st = spots_of(ring_mean, side=5)
    graph = st.obsp["spatial_connectivities"].tolil()
    graph[:3], graph[:, :3] = 0, 0
    st.obsp["spatial_connectivities"] = graph.tocsr()
    options = {"n_hidden": 8} | ({"n_graph": 8} if encoder == "graph" else {"n_phi": 2, "n_rho": 2})
    model = fit(st, encoder, options, max_epochs=2)
    found = model.predict_intensity()
    assert np.isfinite(found.to_numpy()).all()
    one = model.predict_intensity(st[:1].copy())  # it is alone in both
    np.testing.assert_allclose(one, found.iloc[:1], rtol=1e-3, atol=1e-3)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(load_model(tmp_path / "model").predict_intensity(st), found)
    gene = st[:, :1].copy()
    with pytest.raises(ValueError, match="No gene varies"):  # of one gene, the share of all counts is 1
        fit(gene, encoder, options)
    gene.X = np.log1p(gene.X.toarray())
    HurdleNet.setup_anndata(gene, graph_key="spatial_connectivities", input="log")
    model = HurdleNet(gene, encoder=encoder, encoder_kwargs=options)
    model.train(max_epochs=1, refit=False)
    assert np.isfinite(model.predict().to_numpy()).all()

"""Encoders by themselves, and the neighbourhoods that the net hands them."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.encoders import ENCODERS, Context, Encoder, MLPEncoder, Sizes

SIZES = Sizes(n_genes=7, n_covariates=2, n_components=5)
N, K = 6, 4
WITH_GRAPH = [name for name, kind in ENCODERS.items() if kind.uses_graph]
SMALL = {
    "graph": {"n_hidden": 16, "n_graph": 8},
    "deepset": {"n_hidden": 16},
    "niche": {"n_hidden": 16, "n_heads": 2},
}
FIELDS = {"presence_key": "msi_presence", "graph_key": "spatial_connectivities"}


@pytest.fixture
def batch():
    """Genes, covariates and a context in which the last spot is alone and the others lack their last neighbour."""
    torch.manual_seed(0)
    ring = torch.tensor([[1, 1, 2, 0]] * (N - 1) + [[0, 0, 0, 0]])
    there = (ring > 0).unsqueeze(-1)
    context = Context(
        torch.randn(N, 5), torch.randn(N, K, 5) * there, ring, torch.randint(-1, 2, (N, K, 2)) * 1.0 * there
    )
    return torch.randn(N, 7), torch.randn(N, 2), context


def make(name, **options):
    torch.manual_seed(1)
    encoder = ENCODERS[name](SIZES, **options).eval()
    if name == "graph":  # its correction starts at 0
        torch.nn.init.normal_(encoder.correction.weight)
    return encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_all_share_one_interface(name, batch):
    encoder = make(name)
    assert isinstance(encoder, Encoder)
    out = encoder(*batch)
    assert out.shape == (N, encoder.n_output)
    assert torch.isfinite(out).all()
    out.sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    with pytest.raises(TypeError, match=r"unexpected keyword|does not take"):
        ENCODERS[name](SIZES, no_such_option=3)


def test_the_mlp_needs_no_context(batch):
    encoder = MLPEncoder(Sizes(7, 2), n_hidden=5, n_layers=3)
    assert encoder(*batch[:2]).shape == (N, encoder.n_output) == (N, 5)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_no_spot_has_a_neighbour(name, batch):
    x, covariates, context = batch
    none = Context(context.own, context.neighbours[:, :0], context.ring[:, :0], context.offset[:, :0])
    alone = replace(context, ring=torch.zeros_like(context.ring), neighbours=torch.zeros_like(context.neighbours))
    encoder = make(name)
    torch.testing.assert_close(encoder(x, covariates, none), encoder(x, covariates, alone))


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_neighbours_count_and_absent_ones_do_not(name, batch):
    x, covariates, context = batch
    encoder = make(name)
    base = encoder(x, covariates, context)
    other = context.neighbours.clone()
    other[:, 0] += torch.randn(5)
    moved = encoder(x, covariates, replace(context, neighbours=other))
    assert ((moved - base).abs().amax(dim=1)[:-1] > 1e-6).all()
    filled = context.neighbours.clone()
    filled[context.ring == 0] = 9.0
    torch.testing.assert_close(encoder(x, covariates, replace(context, neighbours=filled)), base)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_the_order_of_the_neighbours_does_not_count(name, batch):
    x, covariates, context = batch
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Context(context.own, context.neighbours[:, order], context.ring[:, order], context.offset[:, order])
    encoder = make(name)
    torch.testing.assert_close(encoder(x, covariates, shuffled), encoder(x, covariates, context))


@pytest.mark.parametrize("name", ["graph", "niche"])
def test_the_ring_or_the_position_counts(name, batch):
    x, covariates, context = batch
    encoder = make(name)
    if name == "graph":
        other = replace(context, offset=context.offset * 3)
    else:
        other = replace(context, ring=torch.where(context.ring == 1, 2, context.ring))
    assert not torch.allclose(encoder(x, covariates, other), encoder(x, covariates, context))


def test_the_graph_begins_as_the_spot_alone(batch):
    encoder = ENCODERS["graph"](SIZES).eval()
    torch.testing.assert_close(encoder(*batch), encoder.local(*batch[:2]))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("graph", {"n_graph": 6}, "n_graph=6 must be a multiple of 4"),
        ("niche", {"n_hidden": 10}, "multiple of n_heads=4"),
    ],
)
def test_widths_that_do_not_fit(name, options, match):
    with pytest.raises(ValueError, match=match):
        ENCODERS[name](SIZES, **options)


# ---------------------------------------------------------------------------------------------------- inside the net


def fit(adata, name, **train):
    HurdleNet.setup_anndata(adata, **FIELDS)
    model = HurdleNet(adata, encoder=name, encoder_kwargs=SMALL[name])
    model.train(**{"max_epochs": 2, "lr": 0.01, **train})
    return model


@pytest.fixture
def data(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :4]
    return st


@pytest.fixture
def query(data):
    query = data[data.obs["sample"] == "P3S1"].copy()
    del query.obsm["msi"], query.obsm["msi_presence"], query.uns
    return query


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_a_net_with_neighbours(name, data, query, tmp_path):
    model = fit(data, name)
    found = model.predict(query)
    assert np.isfinite(found.to_numpy()).all()
    np.testing.assert_allclose(found, model.predict().loc[query.obs_names], rtol=1e-4, atol=1e-5)
    # the order of the spots has no say, the graph has
    order = np.random.default_rng(0).permutation(query.n_obs)
    np.testing.assert_allclose(model.predict(query[order].copy()).loc[query.obs_names], found, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(query), found)
    empty = query.copy()
    empty.obsp["spatial_connectivities"] = sp.csr_matrix((query.n_obs, query.n_obs))
    alone = model.predict_intensity(empty)
    assert np.isfinite(alone.to_numpy()).all()
    if name != "graph":  # whose correction has hardly left 0 after two epochs
        assert (alone != model.predict_intensity(query)).to_numpy().mean() > 0.5
    del query.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match=r"uses the graph obsp\['spatial_connectivities'\].*pp\.spatial_graph"):
        model.predict(query)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_the_saved_weights_hold_no_spot(name, data):
    model = fit(data, name, max_epochs=1)
    assert len(model.module.components) == data.n_obs
    assert not {"components", "neighbours", "ring", "offset"} & set(model.module.state_dict())


def test_spots_across_the_border_have_no_say(data, query):
    """Edges from training spots to others are cut: what stands there does not change the model."""
    data.obsp["spatial_connectivities"] = sp.csr_matrix(np.ones((data.n_obs, data.n_obs)) - np.eye(data.n_obs))
    train = np.flatnonzero(data.obs["sample"] != "P3S1")
    other = data.copy()
    rows = np.flatnonzero(other.obs["sample"] == "P3S1")
    X = other.X.toarray()
    X[rows] = X[rows][:, ::-1] + 3
    other.X = sp.csr_matrix(X)
    a, b = (fit(d, "deepset", train_idx=train).predict(query) for d in (data, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_a_graph_must_be_named(name, data):
    HurdleNet.setup_anndata(data, presence_key="msi_presence")
    with pytest.raises(ValueError, match=rf"encoder='{name}' reads the neighbourhood: call stmsi.pp.spatial_graph"):
        HurdleNet(data, encoder=name)


def test_positions_are_needed_where_they_are_read(data):
    del data.obsm["spatial"]
    with pytest.raises(KeyError, match=r"encoder=.*graph.* needs the positions of the spots in obsm"):
        fit(data, "graph", train_idx=np.arange(200), validation_idx=np.arange(200, data.n_obs))
    fit(data, "niche", max_epochs=1, train_idx=np.arange(200), validation_idx=np.arange(200, data.n_obs))


def test_the_same_seed_gives_the_same_bits(data):
    a, b = (fit(data.copy(), "niche") for _ in range(2))
    np.testing.assert_array_equal(a.predict(), b.predict())

"""Encoders by themselves, and the neighbourhoods that the net hands them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.encoders import (
    ENCODERS,
    Context,
    Encoder,
    MetaboliteEncoder,
    MLPEncoder,
    Sizes,
    TransformerEncoder,
)
from stmsi.model.encoders._transformer import encode_mz, gene_groups
from stmsi.model.modules._hurdle import SharedHead

SIZES = Sizes(n_genes=7, n_covariates=2, n_components=5, n_metabolites=3)
N, K, M = 6, 4, 3
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
    assert out.shape == ((N, M, encoder.n_output) if isinstance(encoder, MetaboliteEncoder) else (N, encoder.n_output))
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
        ("transformer", {"n_hidden": 12}, "multiple of 2 n_heads=8"),
        ("transformer", {"tokens": "words"}, "tokens must be one of .* found 'words'"),
        ("transformer", {"attention": "soft"}, "attention must be one of .* found 'soft'"),
        ("transformer", {"tokens": "genes", "n_tokens": 5}, "choose them with n_top_genes"),
    ],
)
def test_widths_that_do_not_fit(name, options, match):
    with pytest.raises(ValueError, match=match):
        ENCODERS[name](SIZES, **options)


# -------------------------------------------------------------------------------------------- one embedding per metabolite

VARIANTS = [
    {"attention": "softmax"},
    {"attention": "linear"},
    {"attention": "softmax", "tokens": "genes"},
    {"attention": "linear", "tokens": "genes"},
]
MZ = torch.tensor([500.0, 600.25, torch.nan], dtype=torch.float64)


def transformer(*, prior=None, **options):
    torch.manual_seed(1)
    encoder = TransformerEncoder(replace(SIZES, has_prior=prior is not None), n_hidden=16, n_heads=2, **options).eval()
    n_descriptors = len(options.get("descriptors", ()))
    encoder.describe(MZ, torch.arange(3.0)[:, None].expand(3, n_descriptors), prior)
    return encoder


@pytest.mark.parametrize("options", VARIANTS)
def test_metabolites_do_not_see_one_another(batch, options):
    encoder = transformer(**options)
    x, covariates, _ = batch
    full = encoder(x, covariates)
    some = encoder(x, covariates, queries=encoder.ask(torch.tensor([2, 0])))
    torch.testing.assert_close(some, full[:, [2, 0]])
    assert (full.std(dim=0) > 0).any(dim=1).all(), "spots differ"
    assert (full.std(dim=1) > 0).any(), "metabolites differ"


@pytest.mark.parametrize("options", VARIANTS)
def test_the_signature_of_the_spot_counts(batch, options):
    encoder = transformer(**options)
    torch.nn.init.normal_(encoder.in_signature)
    x, covariates, _ = batch
    mask = torch.zeros(N, 7)
    base = encoder(x, covariates, mask=mask)
    torch.testing.assert_close(encoder(x, covariates), base)
    mask[1, :3] = 1
    changed = (encoder(x, covariates, mask=mask) - base).abs().amax(dim=(1, 2)) > 1e-6
    assert changed.tolist() == [False, True] + [False] * (N - 2)


def test_metabolites_are_asked_for_by_mass_and_descriptors(batch):
    encoder = transformer(descriptors=("logp",))
    x, covariates, _ = batch
    with torch.no_grad():
        encoder.learned.weight.zero_()
    known = encoder(x, covariates)
    asked = encoder.ask_unseen(MZ, torch.arange(3.0)[:, None])
    torch.testing.assert_close(encoder(x, covariates, queries=asked), known)
    other = encoder.ask_unseen(MZ + 1, torch.arange(3.0)[:, None])
    moved = (other.embedding - asked.embedding).abs().amax(dim=1) > 1e-3
    assert moved.tolist() == [True, True, False], "without m/z there is nothing to move"
    unknown = encoder.ask_unseen(torch.tensor([torch.nan]), torch.tensor([[torch.nan]]))
    torch.testing.assert_close(unknown.embedding, torch.zeros(1, 16))


def test_learned_embeddings_are_left_out_in_training_only():
    encoder = transformer(query_dropout=1.0)
    known = encoder.ask_unseen(MZ, torch.zeros(3, 0)).embedding
    assert not torch.allclose(encoder.ask().embedding, known)
    torch.testing.assert_close(encoder.train().ask().embedding, known)


def test_the_encoding_of_mz():
    code = encode_mz(torch.tensor([500.0, 500.001, 700.0, torch.nan]), 64)
    assert code.shape == (4, 64)
    assert code.abs().max() <= 1
    assert (code[3] == 0).all()
    assert 0 < (code[0] - code[1]).norm() < (code[0] - code[2]).norm()


@pytest.mark.parametrize("options", VARIANTS)
def test_a_prior_draws_attention(batch, options):
    prior = torch.zeros(3, 7)
    prior[0, 4] = 1
    encoder = transformer(prior=prior, **options)
    x, covariates, _ = batch
    with torch.no_grad():
        encoder.prior_strength.fill_(3)
        strong = encoder.attention(x) @ encoder.shares()
        encoder.prior_strength.fill_(0)
        none = encoder.attention(x) @ encoder.shares()
    assert (strong[:, 0, 4] > none[:, 0, 4] * 1.05).all()
    torch.testing.assert_close(strong[:, 1:], none[:, 1:])
    encoder.prior_strength.data.fill_(1)
    encoder(x, covariates).square().sum().backward()
    assert encoder.prior_strength.grad != 0, "its strength is learned"


def test_programmes_begin_as_groups_of_genes():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 2))
    X = np.hstack([np.repeat(hidden, 4, axis=1) + 0.3 * rng.normal(size=(400, 8)), rng.normal(size=(400, 2))])
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    _, s, vt = np.linalg.svd(X, full_matrices=False)
    loadings = (s[:2, None] / 20 * vt[:2]).astype(np.float32)
    weight = gene_groups(loadings, 2, seed=0)
    assert weight.shape == (2, 10)
    groups = {frozenset(np.flatnonzero(w > 0.1)) for w in weight}
    assert groups == {frozenset(range(4)), frozenset(range(4, 8))}
    np.testing.assert_allclose((X @ weight.T).std(axis=0), 1, atol=0.05)
    # more groups than directions: the others stay empty
    assert (gene_groups(np.ones((1, 5), np.float32), 3, seed=0) != 0).any(axis=1).sum() == 1


def test_one_head_for_all_metabolites():
    head = SharedHead(4, 3)
    torch.nn.init.normal_(head.scale)
    torch.nn.init.normal_(head.bias)
    h = torch.randn(5, 3, 4)
    full = head(h)
    torch.testing.assert_close(head(h[:, [2, 0]], torch.tensor([2, 0])), full[:, [2, 0]])
    torch.testing.assert_close(head(h, torch.tensor([-1, -1, -1])), head.shared(h).squeeze(-1))


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


# ------------------------------------------------------------------------------------- the transformer inside the net

TINY = {"n_hidden": 16, "n_heads": 2, "n_tokens": 8}


def fit_transformer(adata, options=None, fields=None, params=None, **train):
    HurdleNet.setup_anndata(adata, presence_key="msi_presence", **(fields or {}))
    model = HurdleNet(adata, encoder="transformer", encoder_kwargs=TINY | (options or {}), **(params or {}))
    model.train(**{"max_epochs": 2, "lr": 0.01, "refit": False, **train})
    return model


@pytest.fixture
def alone(query):
    query = query.copy()
    del query.obsp
    return query


@pytest.mark.parametrize("options", [{}, {"attention": "softmax"}, {"tokens": "genes", "n_tokens": None}])
def test_the_transformer_answers_and_comes_back(data, alone, tmp_path, options):
    data.obs["batch"] = pd.Categorical(np.arange(data.n_obs) % 2)
    alone.obs["batch"] = pd.Categorical(np.arange(alone.n_obs) % 2)
    fields = {"signature_key": "signature", "cluster_key": "domain", "covariate_keys": ["batch"]}
    options = options | {"query_dropout": 0.2}
    model = fit_transformer(data, options, fields)
    found = model.predict(alone)
    assert np.isfinite(found.to_numpy()).all()
    assert found.to_numpy().std() > 0
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(alone), found)
    unseen = pd.DataFrame({"mz": [555.5]}, index=["new"])
    np.testing.assert_array_equal(again.predict_unseen(unseen, alone), model.predict_unseen(unseen, alone))
    other = fit_transformer(data.copy(), options, fields)
    np.testing.assert_array_equal(other.predict(alone), found)


def test_batches_do_not_change_the_prediction(data, monkeypatch):
    model = fit_transformer(data)
    expected = model.predict_intensity()
    monkeypatch.setattr(model.module.encoder, "largest_batch", 50)
    np.testing.assert_allclose(model.predict_intensity(), expected, rtol=1e-4, atol=1e-5)


def test_mass_comes_from_the_feature_table(data):
    mz = data.uns["msi"]["features"]["mz"].reindex(data.obsm["msi"].columns).to_numpy()
    encoder = fit_transformer(data, max_epochs=1).module.encoder
    torch.testing.assert_close(encoder.mass, encode_mz(torch.as_tensor(mz), 16))
    del data.uns["msi"]
    assert (fit_transformer(data, max_epochs=1).module.encoder.mass == 0).all()


def test_a_metabolite_that_training_did_not_have(data):
    features = data.uns["msi"]["features"]
    features["mass_defect"] = features["mz"] % 1
    model = fit_transformer(data, {"descriptors": ["mass_defect"], "query_dropout": 0.2})
    new = pd.DataFrame({"mz": [500.0, 700.0], "mass_defect": [0.1, np.nan]}, index=["a", "b"])
    found = model.predict_unseen(new)
    assert found.shape == (data.n_obs, 2)
    assert list(found) == ["a", "b"]
    assert (found.dtypes == np.float32).all()
    assert np.isfinite(found.to_numpy()).all()
    assert (found.std() > 0).all()
    # a metabolite does not depend on which others are asked for
    np.testing.assert_allclose(model.predict_unseen(new.iloc[1:])["b"], found["b"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Nothing is known of 'c'"):
        model.predict_unseen(pd.DataFrame({"mz": [np.nan], "mass_defect": [np.nan]}, index=["c"]))
    with pytest.raises(KeyError, match=r"features has no column 'mass_defect' \(descriptors=\); found 'mz'"):
        model.predict_unseen(new[["mz"]])


def test_descriptors_must_be_numbers_that_are_there(data):
    HurdleNet.setup_anndata(data)
    with pytest.raises(KeyError, match=r"uns\['msi'\]\['features'\] has no column 'logp'"):
        HurdleNet(data, encoder="transformer", encoder_kwargs={"descriptors": ["logp"]})
    with pytest.raises(ValueError, match=r"'name'.* is not numeric"):
        HurdleNet(data, encoder="transformer", encoder_kwargs={"descriptors": ["name"]})


def test_only_the_transformer_can_be_asked(data):
    HurdleNet.setup_anndata(data)
    model = HurdleNet(data, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=1, refit=False)
    with pytest.raises(ValueError, match="encoder='mlp' knows metabolites by their place in the output only"):
        model.predict_unseen(pd.DataFrame({"mz": [500.0]}))
    with pytest.raises(ValueError, match="trained without query_dropout"):
        fit_transformer(data, max_epochs=1).predict_unseen(pd.DataFrame({"mz": [500.0]}))


def test_prior_genes_reach_the_attention(data, tmp_path):
    genes = pd.DataFrame(False, data.var_names, ["simPC_29_1", "not_measured"])
    genes.iloc[5, 0] = True
    data.varm["msi_prior"] = genes
    model = fit_transformer(data, params={"prior_key": "msi_prior"})
    prior = model.module.encoder.prior
    at = list(data.obsm["msi"].columns).index("simPC_29_1")
    gene = int(np.flatnonzero(model.state.features.own.selected == 5)[0])
    assert prior.nonzero().tolist() == [[at, gene]]
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    torch.testing.assert_close(again.module.encoder.prior, prior)
    np.testing.assert_array_equal(again.predict(data.copy()), model.predict(data.copy()))


def test_bad_priors(data):
    HurdleNet.setup_anndata(data)
    with pytest.raises(ValueError, match="encoder='mlp' has no attention that a prior could guide"):
        HurdleNet(data, prior_key="msi_prior")
    with pytest.raises(KeyError, match=r"varm has no 'msi_prior' \(prior_key=\); found 'signature'"):
        HurdleNet(data, encoder="transformer", prior_key="msi_prior")
    data.varm["msi_prior"] = np.zeros((data.n_vars, 4))
    with pytest.raises(TypeError, match="must be a DataFrame genes x metabolites"):
        HurdleNet(data, encoder="transformer", prior_key="msi_prior")
    data.varm["msi_prior"] = pd.DataFrame(1.0, data.var_names, ["other"])
    with pytest.raises(ValueError, match="names no metabolite of obsm"):
        HurdleNet(data, encoder="transformer", prior_key="msi_prior")
    data.varm["msi_prior"] = pd.DataFrame(-1.0, data.var_names, ["simPC_28_0"])
    with pytest.raises(ValueError, match="weights of at least 0"):
        HurdleNet(data, encoder="transformer", prior_key="msi_prior")

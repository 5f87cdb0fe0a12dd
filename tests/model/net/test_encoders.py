"""Encoders by themselves, and the neighbourhoods that the net hands them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.explain._attribution import stack
from stmsi.model.net.encoders import (
    ENCODERS,
    Context,
    Encoder,
    LocalFirstEncoder,
    MetaboliteEncoder,
    MLPEncoder,
    SectionContext,
    SectionKeys,
    Sizes,
)
from stmsi.model.net.encoders._crossmodal import soft_clip_loss
from stmsi.model.net.encoders._section import section_keys
from stmsi.model.net.encoders._training_profiles import ProfileBank
from stmsi.model.shared._spot_reader import SpotReader

SIZES = Sizes(n_genes=7, n_covariates=2, n_components=7, n_metabolites=3)  # of components as many as genes
N, K, M = 6, 4, 3
WITH_GRAPH = [name for name, kind in ENCODERS.items() if kind.needs_graph]
SMALL = {
    "graph": {"n_hidden": 16, "n_graph": 8},
    "deepset": {"n_hidden": 16, "n_phi": 3, "n_rho": 3},
    "niche": {"n_hidden": 16, "n_heads": 2},
    "section": {"n_hidden": 16, "n_context": 8, "n_heads": 2},
    "crossmodal": {"n_hidden": 16},
}
FIELDS = {"presence_key": "msi_presence", "graph_key": "spatial_connectivities"}


@pytest.fixture
def batch():
    return batch_of(SIZES.n_components)


def batch_of(width):
    """Genes, covariates and a context in which the last spot is alone and the others lack their last neighbour."""
    torch.manual_seed(0)
    ring = torch.tensor([[1, 1, 2, 0]] * (N - 1) + [[0, 0, 0, 0]])
    there = (ring > 0).unsqueeze(-1)
    own, neighbours = torch.randn(N, width), torch.randn(N, K, width)
    context = around(own, neighbours, ring, torch.randint(-1, 2, (N, K, 2)) * 1.0 * there)
    return torch.randn(N, 7), torch.randn(N, 2), context


def around(own, neighbours, ring, offset):
    """A context in which every neighbour is a spot of its own; no two neighbours share an edge."""
    n, k = ring.shape
    place = torch.arange(n * k).reshape(n, k) + n
    there = ring > 0
    edges = torch.zeros(n, 1 + k, 1 + k, dtype=torch.bool)
    edges[:, 0, 1:] = edges[:, 1:, 0] = ring == 1
    edges |= torch.diag_embed(torch.cat([there.new_ones(n, 1), there], dim=1))
    return Context(torch.cat([own, neighbours.flatten(0, 1)]), torch.arange(n), place, ring, offset, edges)


def batch_for(encoder):
    """The same with nodes as this encoder reads them."""
    if isinstance(encoder, LocalFirstEncoder):
        return batch_of(encoder.n_local + 2 * M)
    return batch_of(SIZES.n_genes if encoder.sees_genes else SIZES.n_components)


def with_neighbours(context, neighbours):
    return replace(context, values=torch.cat([context.own, neighbours.flatten(0, 1)]))


def make(name, **options):
    torch.manual_seed(1)
    encoder = ENCODERS[name](SIZES, **options).eval()
    if name == "section":  # whose correction starts at 0
        torch.nn.init.normal_(encoder.correction.weight)
    return encoder


def in_sections(encoder, context, section=(0, 0, 0, 0, 1, 1)):
    """The spots of a context as two sections, all of which are attended to."""
    code = torch.tensor(section)
    position = torch.arange(2.0 * N).reshape(N, 2) ** 1.5
    count = code.bincount()
    keys = section_keys(
        context.own, position, code.argsort(stable=True), count.cumsum(0) - count, count, encoder.n_keys, draw=False
    )
    return SectionContext(context.own, position, code, encoder.summarise(keys))


@pytest.mark.parametrize("name", ENCODERS)
def test_all_share_one_interface(name):
    encoder = make(name)
    assert isinstance(encoder, Encoder)
    x, covariates, context = batch_for(encoder)
    given = in_sections(encoder, context) if encoder.uses_section else None if encoder.n_rings else context
    out = encoder(x, covariates, given)
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
def test_no_spot_has_a_neighbour(name):
    encoder = make(name)
    x, covariates, context = batch_for(encoder)
    none = around(context.own, context.neighbours[:, :0], context.ring[:, :0], context.offset[:, :0])
    alone = around(context.own, context.neighbours, torch.zeros_like(context.ring), context.offset)
    torch.testing.assert_close(encoder(x, covariates, none), encoder(x, covariates, alone))


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_neighbours_count_and_absent_ones_do_not(name):
    encoder = make(name)
    x, covariates, context = batch_for(encoder)
    base = encoder(x, covariates, context)
    other = context.neighbours.clone()
    other[:, 0] += torch.randn(other.shape[2])
    moved = encoder(x, covariates, with_neighbours(context, other))
    assert ((moved - base).abs().amax(dim=1)[:-1] > 1e-6).all()
    filled = context.neighbours.clone()
    filled[context.ring == 0] = 9.0
    torch.testing.assert_close(encoder(x, covariates, with_neighbours(context, filled)), base)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_the_order_of_the_neighbours_does_not_count(name):
    encoder = make(name)
    x, covariates, context = batch_for(encoder)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = around(context.own, context.neighbours[:, order], context.ring[:, order], context.offset[:, order])
    torch.testing.assert_close(encoder(x, covariates, shuffled), encoder(x, covariates, context))


def test_the_ring_counts():
    encoder = make("niche")
    x, covariates, context = batch_for(encoder)
    other = replace(context, ring=torch.where(context.ring == 1, 2, context.ring))
    assert not torch.allclose(encoder(x, covariates, other), encoder(x, covariates, context))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("niche", {"n_hidden": 10}, "multiple of n_heads=4"),
        ("section", {"n_context": 20}, "n_context=20 must be a multiple of 2 x n_heads=8"),
        ("crossmodal", {"n_hidden": 18}, "n_hidden=18 must be a multiple of 4"),
        ("crossmodal", {"output": "both"}, "output='both' is not known"),
        ("crossmodal", {"weighting": "linear"}, "weighting='linear' is not known"),
        ("transformer", {"n_heads": 3}, "n_heads=3 must be an even number"),
    ],
)
def test_widths_that_do_not_fit(name, options, match):
    with pytest.raises(ValueError, match=match):
        ENCODERS[name](SIZES, **options)


# --------------------------------------------------------------------------------------------------- whole sections


def one_section(n=20, **options):
    """A section of n spots, and an encoder."""
    encoder = make("section", **{"n_context": 8, "n_heads": 2, **options})
    return encoder, torch.randn(n, 7), torch.rand(n, 2) * 30


def attend(encoder, components, position, keys=None):
    """Embeddings without what the spot brings itself; `keys` as (components, position), else the same spots."""
    c, p = (components, position) if keys is None else keys
    all_keys = SectionKeys(
        c.unsqueeze(0), p.unsqueeze(0), torch.ones(1, len(c), dtype=torch.bool), torch.zeros(1, dtype=torch.long), 1
    )
    zero = torch.zeros(len(components), dtype=torch.long)
    context = SectionContext(components, position, zero, encoder.summarise(all_keys))
    with torch.no_grad():
        return encoder(torch.zeros(len(components), 7), torch.zeros(len(components), 2), context)


def test_linear_attention_is_what_the_full_matrix_gives():
    encoder, components, position = one_section()
    block = encoder.blocks[0]
    h = encoder.token(components)
    query, key, value = (
        f(block.before(h)).unflatten(1, (2, 4)).detach().double() for f in (block.query, block.key, block.value)
    )
    query, key = (torch.nn.functional.elu(v) + 1 for v in (query, key))
    delta = position.unsqueeze(1) - position.unsqueeze(0)
    angle = torch.einsum("ijc,hfc->ijhf", delta, encoder.frequency).double()
    (a, b), (c, d) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
    even = torch.einsum("ihf,jhf->ijhf", a, c) + torch.einsum("ihf,jhf->ijhf", b, d)
    odd = torch.einsum("ihf,jhf->ijhf", b, c) - torch.einsum("ihf,jhf->ijhf", a, d)
    score = (even * angle.cos() - odd * angle.sin()).sum(dim=-1)
    weight = score / torch.einsum("ihd,jhd->ijh", query, key).sum(dim=1, keepdim=True)
    seen = torch.einsum("ijh,jhd->ihd", weight, value).flatten(1).float()
    h = h + block.back(seen)
    expected = encoder.local(torch.zeros(20, 7), torch.zeros(20, 2)) + encoder.correction(
        encoder.after(h + block.feed(h))
    )
    torch.testing.assert_close(attend(encoder, components, position), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_shift_of_the_section_and_the_order_of_its_spots_do_not_count(n_layers):
    encoder, components, position = one_section(n_layers=n_layers)
    base = attend(encoder, components, position)
    torch.testing.assert_close(attend(encoder, components, position + 7.5), base, rtol=1e-3, atol=1e-4)
    order = torch.randperm(20)
    shuffled = attend(encoder, components, position, (components[order], position[order]))
    torch.testing.assert_close(shuffled, base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend(encoder, components[order], position[order]), base[order], rtol=1e-4, atol=1e-5)
    assert (attend(encoder, components, position * 2) - base).abs().amax(dim=1).min() > 1e-4, "positions count"
    others = components.clone()
    others[-1] += torch.randn(7)
    assert (attend(encoder, components, position, (others, position)) - base).abs().amax(dim=1).min() > 1e-5


def test_a_spot_sees_its_own_section_only(batch):
    x, covariates, context = batch
    encoder = make("section")
    base = encoder(x, covariates, in_sections(encoder, context))
    own = context.own.clone()
    own[4] += torch.randn(7)
    other = encoder(x, covariates, in_sections(encoder, around(own, context.neighbours, context.ring, context.offset)))
    torch.testing.assert_close(other[:4], base[:4], rtol=0, atol=0)
    assert (other[4:] != base[4:]).any(dim=1).all()


def test_sections_in_pieces_are_the_same_sections(batch):
    x, covariates, context = batch
    whole, pieces = (make("section", n_layers=2, n_keys=k) for k in (512, 3))
    pieces.load_state_dict(whole.state_dict())
    torch.testing.assert_close(
        *(e(x, covariates, in_sections(e, context)) for e in (whole, pieces)), rtol=1e-4, atol=1e-5
    )


def test_spots_are_drawn_from_their_section():
    code = torch.tensor([1, 0, 0, 1, 0, 0, 0, 2])
    count = code.bincount()
    components = torch.arange(8.0).unsqueeze(1)
    torch.manual_seed(0)
    seen = [set() for _ in count]
    for _ in range(30):
        keys = section_keys(
            components, torch.zeros(8, 2), code.argsort(stable=True), count.cumsum(0) - count, count, 3, draw=True
        )
        assert keys.there.sum(dim=1).tolist() == [3, 2, 1]
        for section, rows, there in zip(keys.section.tolist(), keys.components[..., 0], keys.there, strict=True):
            seen[section] |= set(rows[there].long().tolist())
    assert seen == [{1, 2, 4, 5, 6}, {0, 3}, {7}]


def test_the_section_begins_as_the_spot_alone(batch):
    x, covariates, context = batch
    encoder = ENCODERS["section"](SIZES).eval()
    torch.testing.assert_close(encoder(x, covariates, in_sections(encoder, context)), encoder.local(x, covariates))


# ------------------------------------------------------------------------------------------- genes and metabolites


@pytest.fixture
def measured():
    """Standardised intensity and presence of N spots, of which the last has no MSI."""
    generator = torch.Generator().manual_seed(0)
    present = torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, float("nan")], [0, 1, 1], [float("nan")] * 3])
    return torch.randn(N, 3, generator=generator) + 0 * present, present


def test_the_contrastive_loss_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 16))
    logits = a @ b.T / (4 * 0.5)
    within = (a @ a.T + b @ b.T) / 8 * 0.5
    soft = np.exp(within) / np.exp(within).sum(axis=1, keepdims=True)
    for hard, target in ((False, soft), (True, np.eye(5))):
        expected = -np.mean(
            [
                (target * (m - np.log(np.exp(m).sum(axis=1, keepdims=True)))).sum(axis=1).mean()
                for m in (logits, logits.T)
            ]
        )
        assert float(soft_clip_loss(torch.tensor(a), torch.tensor(b), 0.5, hard_labels=hard)) == pytest.approx(expected)


def test_what_was_not_measured_has_no_say_in_the_loss(batch, measured):
    encoder = make("crossmodal", n_hidden=16)
    embedding = encoder(*batch[:2])
    target, present = measured

    def loss(target, present):
        torch.manual_seed(0)  # of what is hidden
        return float(encoder.auxiliary_loss(embedding, target, present).detach())

    base = loss(target, present)
    assert base > 0
    filled = torch.where(torch.isnan(present), 5.0, target)
    assert loss(filled, present) == base
    assert loss(torch.where(present == 0, 5.0, target), present) == base, "the intensity of what is absent"
    assert loss(target, torch.where(torch.isnan(present), 0.0, present)) != base, "absent is not unknown"
    assert loss(torch.where(present > 0, target + 1, target), present) != base


def test_the_parts_of_the_loss_can_be_left_out(batch, measured):
    embedding = torch.randn(N, 16)
    losses = {}
    for c, r in ((1, 1), (1, 0), (0, 1), (0, 0)):
        encoder = make("crossmodal", n_hidden=16, contrastive_weight=c, reconstruction_weight=r)
        torch.manual_seed(0)
        losses[c, r] = float(encoder.auxiliary_loss(embedding, *measured).detach())
    assert losses[0, 0] == 0
    assert losses[1, 1] == pytest.approx(losses[1, 0] + losses[0, 1])
    assert min(losses[1, 0], losses[0, 1]) > 0


@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
def test_retrieval_against_numpy(weighting, measured):
    target, present = (v.double() for v in measured)
    rng = np.random.default_rng(0)
    kept, asked = torch.tensor(rng.normal(size=(N, 4))), torch.tensor(rng.normal(size=(3, 4)))
    bank = ProfileBank(4, weighting, 0.3)
    bank.fill(kept, target, present)
    logit, mean = (v.numpy() for v in bank.look_up(asked))
    y, p = target.numpy(), present.numpy()
    cosine = (asked @ kept.T / asked.norm(dim=1, keepdim=True) / kept.norm(dim=1)).numpy()
    for i, row in enumerate(cosine):
        nearest = np.argsort(-row)[:4]
        w = np.ones(4) if weighting == "uniform" else np.exp(row[nearest] / 0.3) / np.exp(row[nearest] / 0.3).sum() * 4
        for m in range(3):
            covered, there = ~np.isnan(p[nearest, m]), p[nearest, m] == 1
            prior = ((p[:, m] == 1).sum() + 0.5) / ((~np.isnan(p[:, m])).sum() + 1)
            share = (w[there].sum() + prior) / (w[covered].sum() + 1)
            assert logit[i, m] == pytest.approx(np.log(share / (1 - share)))
            assert mean[i, m] == pytest.approx((w[there] * y[nearest, m][there]).sum() / (w[there].sum() + 1))


# ---------------------------------------------------------------------------------------------------- inside the net


def fit(adata, name, options=None, **train):
    fields = FIELDS if name in WITH_GRAPH else {"presence_key": "msi_presence"}
    HurdleNet.setup_anndata(adata, **fields)
    # the encoder alone: beside ridge, one or two epochs may change nothing
    model = HurdleNet(adata, encoder=name, residual=None, n_nets=1, encoder_kwargs=SMALL[name] | (options or {}))
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


@pytest.mark.once
@pytest.mark.parametrize("name", WITH_GRAPH)
def test_the_saved_weights_hold_no_spot(name, data):
    model = fit(data, name, max_epochs=1)
    seen = "spot_genes" if model.module.encoder.sees_genes else "components"
    assert len(getattr(model.module, seen)) == data.n_obs
    assert not {"components", "spot_genes", "neighbours", "ring", "offset"} & set(model.module.state_dict())


@pytest.mark.once
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


@pytest.mark.once
def test_the_same_seed_gives_the_same_bits(data):
    a, b = (fit(data.copy(), "niche") for _ in range(2))
    np.testing.assert_array_equal(a.predict(), b.predict())


# --------------------------------------------------------------------------------------- inside the net: sections


@pytest.fixture(scope="module")
def of_sections(_mapped):
    """A model whose correction has left 0; not to be trained again."""
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :4]
    return fit(st, "section", {"n_keys": 50}, max_epochs=4)


def test_a_net_of_sections(of_sections, query, tmp_path, caplog):
    del query.obsp
    found = of_sections.predict(query)
    own = of_sections.predict()
    np.testing.assert_allclose(found, own.loc[query.obs_names], rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(query.n_obs)
    shuffled = of_sections.predict(query[order].copy()).loc[query.obs_names]
    np.testing.assert_allclose(shuffled, found, rtol=1e-4, atol=1e-5)
    of_sections.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(query), found)
    with_data = load_model(tmp_path / "model", of_sections.adata.copy())
    np.testing.assert_array_equal(with_data.predict(), own)
    assert not {"components", "position", "in_section"} & set(of_sections.module.state_dict())
    del query.obs["sample"]
    with caplog.at_level("WARNING", logger="stmsi"):
        np.testing.assert_array_equal(again.predict(query), found)
    assert f"obs has no column 'sample': all {query.n_obs} spots are taken to be of one section" in caplog.text


def test_sections_are_told_apart_by_their_label(of_sections):
    own = of_sections.predict_intensity()
    merged = of_sections.adata.copy()
    merged.obs["sample"] = "all"
    assert (of_sections.predict_intensity(merged) != own).to_numpy().mean() > 0.5
    renamed = of_sections.adata.copy()
    renamed.obs["sample"] = "x" + renamed.obs["sample"].astype(str)
    np.testing.assert_array_equal(of_sections.predict_intensity(renamed), own)
    renamed.obs["sample"] = renamed.obs["sample"].where(np.arange(renamed.n_obs) > 0)
    with pytest.raises(ValueError, match=r"obs\['sample'\] has 1 missing values"):
        of_sections.predict(renamed)


def test_a_section_of_one_spot(of_sections, query):
    one = of_sections.predict(query[:1].copy())
    assert one.shape == (1, 4)
    assert np.isfinite(one.to_numpy()).all()
    # the units and the origin of the positions do not count
    moved = query.copy()
    moved.obsm["spatial"] = moved.obsm["spatial"] * 0.25 + 1000
    np.testing.assert_allclose(of_sections.predict(moved), of_sections.predict(query), rtol=1e-3, atol=1e-4)


def test_batches_do_not_count_for_sections(of_sections, monkeypatch):
    own = of_sections.predict()
    monkeypatch.setattr("stmsi.model.net._prediction.PREDICT_BATCH", 50)
    np.testing.assert_allclose(of_sections.predict(), own, rtol=1e-4, atol=1e-5)


@pytest.mark.once
def test_validation_spots_have_no_say_in_a_section(data):
    """Training spots see those of their own section that are trained on, as edges to others are cut elsewhere."""
    rows = np.flatnonzero(data.obsm["msi"].notna().any(axis=1))
    held_out, train = rows[::3], np.setdiff1d(rows, rows[::3])

    def weights(changed):
        other = data.copy()
        X = other.X.toarray()
        X[changed] = X[changed][:, ::-1] + 3
        other.X = sp.csr_matrix(X)
        model = fit(other, "section", train_idx=train, validation_idx=held_out, max_epochs=1)
        return {k: v.numpy() for k, v in model.module.state_dict().items()}

    base, same, other = weights(held_out[:0]), weights(held_out), weights(train[:1])
    for name, value in base.items():
        np.testing.assert_array_equal(same[name], value, err_msg=name)
    assert (other["encoder.token.1.weight"] != base["encoder.token.1.weight"]).any()


def test_sections_need_positions_and_no_graph(data):
    HurdleNet.setup_anndata(data, **FIELDS)
    with pytest.raises(ValueError, match=r"encoder='section' reads no neighbourhood; set up without graph_key"):
        HurdleNet(data, encoder="section")
    placed = data.obsm["spatial"].astype(float)
    data.obsm["spatial"] = np.where(np.arange(data.n_obs)[:, None] < 2, np.nan, placed)
    with pytest.raises(ValueError, match=r'obsm\["spatial"\] is NaN or infinite in 2 spots'):
        fit(data, "section", max_epochs=1)
    del data.obsm["spatial"]
    with pytest.raises(KeyError, match=r"encoder=.*section.* needs the positions of the spots in obsm"):
        fit(data, "section", train_idx=np.arange(200), validation_idx=np.arange(200, data.n_obs))


@pytest.mark.once
def test_copies_of_spots_are_sections_of_their_own(of_sections, query):
    copies = [SpotReader.open(query, of_sections.state.setup, of_sections.state.panel).read()] * 2
    both = of_sections._stages(stack(copies))[1]
    one = of_sections._stages(copies[0])[1]
    np.testing.assert_allclose(both, np.vstack([one, one]), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- inside the net: genes and metabolites


@pytest.mark.once
@pytest.mark.parametrize("options", [{}, {"reconstruction_weight": 0, "hard_labels": True}])
def test_a_net_that_decodes(options, data, query):
    model = fit(data, "crossmodal", options)
    assert np.isfinite(np.asarray(model.history["auxiliary_loss_validation"], float)).all()
    np.testing.assert_allclose(model.predict(query), model.predict().loc[query.obs_names], rtol=1e-4, atol=1e-5)
    assert not model._contains_training_profiles()


@pytest.mark.once
@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
def test_a_net_that_retrieves(weighting, data, query, tmp_path):
    model = fit(data, "crossmodal", {"output": "retrieval", "n_neighbours": 7, "weighting": weighting})
    covered = data.obsm["msi"].notna().any(axis=1).to_numpy()
    assert len(model.module.encoder.bank) == covered.sum(), "of all training spots after the refit"
    found = model.predict_intensity(query)
    measured = data.obsm["msi"]
    assert (found <= measured.max() + 1e-4).all().all(), "means of measured values"
    assert (found >= measured[measured > 0].min() - 1e-4).all().all()
    assert found.to_numpy().std(axis=0).min() > 0
    model.save(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "stmsi.json").read_text())
    assert card["contains_training_profiles"] is True
    again = load_model(tmp_path / "model")
    for call in ("predict", "predict_presence", "predict_intensity"):
        np.testing.assert_array_equal(getattr(again, call)(query), getattr(model, call)(query))


def test_retrieval_is_what_is_calibrated(data, query):
    """Heads that are spoilt change nothing: calibration and prediction use the retrieved values."""
    model = fit(data, "crossmodal", {"output": "retrieval"}, refit=False)
    base = model.predict(query)
    assert np.isfinite(model.state.feature_table["held_out_auroc"].astype(float)).any()
    with torch.no_grad():
        model.module.presence_head.weight.add_(5)
        model.module.intensity_head.bias.add_(5)
    np.testing.assert_array_equal(model.predict(query), base)


@pytest.mark.once
def test_genes_of_context_and_retrieval_are_attributed_by_permutation(of_sections, data):
    from stmsi.tl._attribute import choose_method

    retrieval = fit(data, "crossmodal", {"output": "retrieval"}, max_epochs=1)
    for model, what in ((of_sections, "sections"), (retrieval, "retrieval")):
        assert choose_method(model, "auto", "intensity") == "permutation"
        with pytest.raises(ValueError, match=f"for a HurdleNet with {what} use method='auto'"):
            choose_method(model, "integrated_gradients", "intensity")
    assert choose_method(fit(data, "crossmodal", max_epochs=1), "auto", "intensity") == "integrated_gradients"


@pytest.mark.parametrize("name", ["transformer", "crossmodal"])
def test_stages_that_can_only_be_learned_at_once(data, name):
    HurdleNet.setup_anndata(data)
    with pytest.raises(ValueError, match=f"encoder='{name}' learns both stages at once"):
        HurdleNet(data, encoder=name, training="two_stage")


def test_a_prior_needs_attention(data):
    data.varm["msi_prior"] = pd.DataFrame(True, data.var_names, ["simPC_28_0"])
    HurdleNet.setup_anndata(data, prior_key="msi_prior")
    with pytest.raises(ValueError, match="encoder='mlp' has no attention that a prior could guide"):
        HurdleNet(data)

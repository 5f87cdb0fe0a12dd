"""Gene attention carries the prediction: its mechanism, its control, and the network around it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from stmsi._core.metrics.intensity import pearson
from stmsi.experimental import predict_unseen
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet
from stmsi.model import load as load_model
from stmsi.model.net._gene_screen import screened_genes
from stmsi.model.net.encoders import Evidence, GeneContext, Sizes, TransformerEncoder
from stmsi.model.net.encoders._sparse_softmax import entmax15
from stmsi.model.net.encoders._transformer import WAVELENGTHS, encode_mz
from stmsi.model.net.modules import _heads
from stmsi.model.net.modules._expression import SharedExpression
from stmsi.model.net.modules._heads import AttentionReadOut
from stmsi.model.shared._setup import Setup
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.tl import predict_metabolites

SIZES = Sizes(n_genes=7, n_covariates=2, n_metabolites=3, has_graph=True, has_signature=True)
MZ = torch.tensor([500.0, 600.25, torch.nan], dtype=torch.float64)
N = 5
GRAPH = {"graph_key": "spatial_connectivities"}


def make(*, prior=None, sizes=SIZES, **options):
    """An encoder of three metabolites and seven genes, with other numbers than those that it begins with."""
    torch.manual_seed(1)
    encoder = TransformerEncoder(replace(sizes, has_prior=prior is not None), n_hidden=4, **options).eval()
    n_descriptors = len(options.get("descriptors", ()))
    descriptors = torch.arange(3.0)[:, None].expand(3, n_descriptors)
    encoder.describe(Evidence(MZ, descriptors, torch.randn(3, 7), torch.randn(4, 7), prior), seed=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(N, 7), torch.randn(N, 2), GeneContext(torch.randn(N, 2, 7))


# --------------------------------------------------------------------------------------------------------- the encoder


OPTIONS = [{}, {"n_layers": 1}, {"temperature": 0.5, "n_layers": 2}, {"attention": "entmax"}]


@pytest.mark.once
@pytest.mark.parametrize("options", OPTIONS)
def test_the_matrix_products_are_the_softmax(options, batch):
    """Every logit written out, one spot, metabolite and head at a time."""
    prior = (torch.rand(3, 7) > 0.5).float()
    encoder = make(prior=prior, **options)
    divisor, is_sparse = encoder.temperature, encoder.attention == "entmax"
    x, covariates, context = batch
    mask = (torch.rand(N, 7) > 0.5).float()
    out = encoder(x, covariates, context, mask=mask)
    embedding = encoder.learned + encoder.from_mass(encoder.mass).unflatten(1, (2, -1))
    for m, h, sign in ((0, 0, 1.0), (2, 1, -1.0), (1, 1, -1.0)):
        fixed = (
            encoder.sharpness[m, h] * sign * encoder.screened[m]
            + encoder.prior_strength * prior[m]
            + encoder.key @ embedding[m, h]
        )
        mix = encoder.mix[h] + encoder.mix_of[m, h]
        before = entmax15(fixed / divisor) if is_sparse else (fixed / divisor).softmax(0)
        norm = 0.5 / before.square().sum().sqrt()
        for i in range(N):
            logit = encoder.lift[h] * x[i].clamp(-3, 3) + encoder.signature_strength[h] * mask[i]
            if encoder.programmes is not None:
                logit = logit + encoder.key @ encoder.programmes(x[i : i + 1].clamp(-3, 3))[0, h]
            weight = before * (logit / divisor).exp()
            weight = weight / weight.sum()
            if not is_sparse:
                torch.testing.assert_close(weight, ((fixed + logit) / divisor).softmax(0))
            value = sum(w * v for w, v in zip(mix, (x[i], *context.rings[i]), strict=True))
            torch.testing.assert_close(out[i, m, h], norm * (weight * value).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_contributions_add_up(options, batch):
    encoder = make(**options)
    x, covariates, context = batch
    slope = torch.randn(3, 2)
    queries = encoder.ask()
    attention, made = encoder.contributions(x, slope, context, queries=queries)
    out = (encoder(x, covariates, context, queries=queries) * slope).sum(dim=-1)
    torch.testing.assert_close(made.sum(dim=-1), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(N, 3))
    assert (attention >= 0).all()


@pytest.mark.once
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_metabolites_and_spots_do_not_see_one_another(options, batch):
    encoder = make(**options)
    x, covariates, context = batch
    full = encoder(x, covariates, context)
    some = encoder(x, covariates, context, queries=encoder.ask(torch.tensor([2, 0])))
    torch.testing.assert_close(some, full[:, [2, 0]])
    torch.testing.assert_close(encoder(x[:2], covariates[:2], GeneContext(context.rings[:2])), full[:2])
    assert not torch.equal(encoder(x, covariates, GeneContext(context.rings + 1)), full), "the rings count"


@pytest.mark.once
@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_but_attended_genes_reaches_the_output(options, batch):
    encoder = make(**options)
    x, covariates, context = batch
    nothing = encoder(torch.zeros_like(x), covariates, GeneContext(torch.zeros_like(context.rings)))
    assert (nothing == 0).all()


@pytest.mark.once
def test_programmes_direct_the_attention_of_spots(batch):
    """Training begins as without them; afterwards they, and their attention to each other, change what a spot attends to."""
    x = batch[0]
    fresh = TransformerEncoder(SIZES, n_hidden=4, n_layers=1).eval()
    assert (fresh.programmes(x) == 0).all()
    encoder = make(n_layers=1)
    programmes = encoder.programmes
    assert (programmes.loadings[4:] == 0).all(), "components that there are not"
    loadings = torch.randn(20, 7)
    encoder.programmes.describe(loadings)
    torch.testing.assert_close((programmes.loadings * loadings[:16]).sum(dim=1), torch.ones(16))
    base = programmes(x)
    block = programmes.blocks[0]
    for part in (block.self_attn.out_proj, block.linear2):
        kept = part.weight.clone()
        with torch.no_grad():
            part.weight.zero_()
            assert not torch.allclose(programmes(x), base, atol=1e-4)
            part.weight.copy_(kept)
    torch.testing.assert_close(programmes(x), base)


def test_entmax_is_exact_and_leaves_genes_out():
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 40, dtype=torch.float64)
    found = entmax15(logits)
    low, high = logits.amax(dim=1) / 2 - 1, logits.amax(dim=1) / 2
    for _ in range(60):  # the threshold by bisection
        middle = (low + high) / 2
        over = (logits / 2 - middle.unsqueeze(1)).clamp(min=0).square().sum(dim=1) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(found, (logits / 2 - low.unsqueeze(1)).clamp(min=0).square(), atol=1e-9, rtol=0)
    assert ((found == 0).sum(dim=1) > 20).all()
    torch.testing.assert_close(entmax15(torch.zeros(1, 5)), torch.full((1, 5), 0.2))
    assert torch.autograd.gradcheck(entmax15, (logits[:2, :8].clone().requires_grad_(True),))


def test_made_uniform_every_gene_counts_alike(batch):
    encoder = make(sizes=replace(SIZES, has_graph=False))
    x, covariates, _ = batch
    with encoder.made_uniform():
        flat = encoder(x, covariates)
    norm = 0.5 / 7**-0.5
    expected = norm * x.mean(dim=1)[:, None, None] * (encoder.mix + encoder.mix_of)[..., 0]
    torch.testing.assert_close(flat, expected)
    assert not torch.allclose(encoder(x, covariates), flat)


def test_the_signature_of_the_spot_counts(batch):
    encoder = make()
    x, covariates, context = batch
    mask = torch.zeros(N, 7)
    base = encoder(x, covariates, context)
    torch.testing.assert_close(encoder(x, covariates, context, mask=mask), base)
    mask[1, :3] = 1
    changed = (encoder(x, covariates, context, mask=mask) - base).abs().amax(dim=(1, 2)) > 1e-6
    assert changed.tolist() == [False, True] + [False] * (N - 2)


def test_a_prior_draws_attention(batch):
    prior = torch.zeros(3, 7)
    prior[0, 4] = 1
    encoder = make(prior=prior)
    x, covariates, context = batch
    with torch.no_grad():
        encoder.prior_strength.fill_(3)
        strong = encoder.weights(encoder.ask())
        encoder.prior_strength.fill_(0)
        none = encoder.weights(encoder.ask())
    assert (strong[0, :, 4] > none[0, :, 4] * 1.05).all()
    torch.testing.assert_close(strong[1:], none[1:])
    encoder(x, covariates, context).square().sum().backward()
    assert encoder.prior_strength.grad != 0, "its strength is learned"


def test_metabolites_are_asked_for_by_mass_and_descriptors():
    encoder = make(descriptors=("logp",))
    with torch.no_grad():
        encoder.learned.zero_()
    asked = encoder.ask_unseen(MZ, torch.arange(3.0)[:, None])
    torch.testing.assert_close(asked.embedding, encoder.ask().embedding)
    other = encoder.ask_unseen(MZ + 1, torch.arange(3.0)[:, None])
    moved = (other.embedding - asked.embedding).abs().amax(dim=(1, 2)) > 1e-4
    assert moved.tolist() == [True, True, False], "without m/z there is nothing to move"
    unknown = encoder.ask_unseen(torch.tensor([torch.nan]), torch.tensor([[torch.nan]]))
    assert (unknown.embedding == 0).all()
    assert (unknown.bias == 0).all()


def test_what_metabolites_have_of_their_own_is_left_out_in_training_only():
    encoder = make(query_dropout=1.0)
    known = encoder.ask_unseen(MZ, torch.zeros(3, 0))
    assert not torch.allclose(encoder.ask().embedding, known.embedding)
    dropped = encoder.train().ask()
    for name in ("embedding", "bias", "mix", "known"):
        torch.testing.assert_close(getattr(dropped, name), getattr(known, name))


def test_the_wavelengths_of_mz():
    """Sines, then cosines, of wavelengths from 0.001 to 10,000 Da in even ratios (Casanovo)."""
    assert WAVELENGTHS == (1e-3, 1e4)
    mz = torch.tensor([500.0, 500.00025, 700.0, torch.nan], dtype=torch.float64)
    code = encode_mz(mz, 8)
    wavelength = 10.0 ** np.array([-3, -3 + 7 / 3, -3 + 14 / 3, 4])
    angle = 2 * np.pi * mz[:3].numpy()[:, None] / wavelength
    np.testing.assert_allclose(code[:3], np.hstack([np.sin(angle), np.cos(angle)]), atol=1e-5)
    assert (code[3] == 0).all()
    assert abs(code[1, 0] - 1) < 1e-3, "a quarter of the shortest wavelength further"
    assert code[0, 0].abs() < 1e-3


def test_the_read_out():
    torch.manual_seed(0)
    head = AttentionReadOut(torch.tensor([1.0, -1.0]), 3, 2)
    activity, known, covariates = torch.randn(4, 3, 2), torch.ones(3), torch.randn(4, 2)
    begin = head(activity, known, covariates)
    torch.testing.assert_close(begin, 0.3 * (activity[..., 0] - activity[..., 1])), "linear, where training begins"
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    full = head(activity, known, covariates)
    at = torch.tensor([2, 0])
    torch.testing.assert_close(head(activity[:, at], known[at], covariates, at), full[:, at])
    # a metabolite that training did not have has nothing of its own
    alike = head(activity[:, :1].expand(4, 3, 2), torch.zeros(3), covariates)
    torch.testing.assert_close(alike[:, 0], alike[:, 2])


# ------------------------------------------------------------------------------------------------- screening of genes


def test_the_screen_finds_drivers_within_sections(make_sections):
    data = make_sections((60, 60), genes=40)
    HurdleNet.setup_anndata(data, **GRAPH)
    spots = SpotReader.open(data, Setup.read(data, "HurdleNet")).read()
    Y = data.obsm["msi"].to_numpy(dtype=float)
    sample = data.obs["sample"].to_numpy()
    genes, screened = screened_genes(spots, Y, sample, n_each=2, most=40)
    assert set(genes) >= {0, 1, 2, 3, 4, 5, 6}
    assert screened.shape == (4, len(genes))
    # the level of a section is no evidence
    shifted, _ = screened_genes(spots, Y + 100.0 * (sample == "s0")[:, None], sample, n_each=2, most=40)
    assert shifted.tolist() == genes.tolist()
    few, _ = screened_genes(spots, Y, sample, n_each=2, most=3)
    assert len(few) == 3
    assert set(few) <= set(genes)
    always = np.zeros(40, bool)
    always[39] = True
    assert 39 in screened_genes(spots, Y, sample, n_each=1, most=5, always=always)[0]


def test_scores_of_noise_stay_small(make_sections):
    data = make_sections((60, 60), genes=40)
    HurdleNet.setup_anndata(data)
    spots = SpotReader.open(data, Setup.read(data, "HurdleNet")).read()
    noise = np.random.default_rng(0).normal(size=(120, 3))
    _, screened = screened_genes(spots, noise, data.obs["sample"].to_numpy(), n_each=40, most=40)
    assert screened.std() < 1.2
    assert np.abs(screened).max() < 5


# ---------------------------------------------------------------------------------------------------- inside the net


def fit(adata, options=None, fields=None, params=None, **train):
    HurdleNet.setup_anndata(adata, **(fields or {}))
    model = HurdleNet(adata, encoder="transformer", encoder_kwargs={"n_hidden": 8} | (options or {}), **(params or {}))
    model.train(**{"show_progress_bar": False, **train})
    return model


def within(adata, predicted):
    """Mean correlation inside sections, of each metabolite."""
    y, sample = adata.obsm["msi"].to_numpy(float), adata.obs["sample"].to_numpy()
    return np.mean([pearson(y[sample == s], np.asarray(predicted)[sample == s]) for s in np.unique(sample)], axis=0)


@pytest.fixture(scope="module")
def sections(make_sections):
    """Three sections to train on and one to test, with 60 genes of which seven matter."""
    data = make_sections((120, 120, 120, 120), genes=60)
    return data[data.obs["sample"] != "s3"].copy(), data[data.obs["sample"] == "s3"].copy()


@pytest.fixture(scope="module")
def trained(sections):
    return fit(sections[0].copy(), fields=GRAPH, max_epochs=25)


def test_it_predicts_and_uniform_attention_does_not(sections, trained):
    _, test = sections
    real = within(test, trained.predict(test))
    assert real.mean() > 0.6
    spots = trained._query_spots(test, 0.5)
    flat = within(test, trained._uniform_map(spots))
    assert flat.mean() < real.mean() - 0.3
    table = trained.state.feature_table
    assert (table["held_out_attention"] - table["held_out_uniform"]).mean() > 0.3


def test_training_moves_the_attention(sections):
    """With the epsilon of scvi-tools, steps of weights whose gradients are small all but vanish, and the screen stays as it is."""

    def moved(**train):
        model = fit(sections[0].copy(), fields=GRAPH, params={"n_nets": 2}, max_epochs=6, **train)
        of_nets = [net.module.encoder.sharpness.detach().std() for net in model._nets]
        return float(torch.stack(of_nets).mean())

    assert moved() > 1.5 * moved(plan_kwargs={"eps": 0.01})


def test_networks_share_log_expression(sections, trained):
    data = trained._query_spots(sections[1], 0.5)
    (tensors,) = trained._batches(data, len(data))
    modules = [net.module for net in trained._nets]
    shared = SharedExpression([module.gene_index for module in modules], logged=False)
    for module, log in zip(modules, shared.of(tensors), strict=True):
        torch.testing.assert_close(module.standardise(log), module.expression(tensors["X"]))


def test_the_genes_of_another_metabolite_predict_it_worse(sections, trained):
    _, test = sections
    real = within(test, trained.predict(test)).mean()
    order = torch.tensor([1, 2, 3, 0])
    kept = [net.module.encoder for net in trained._nets]
    before = [{k: v.clone() for k, v in encoder.state_dict().items()} for encoder in kept]
    with torch.no_grad():
        for encoder in kept:
            for name in ("screened", "sharpness", "learned"):
                value = getattr(encoder, name)
                value.copy_(value[order])
    try:
        swapped = within(test, trained.predict(test)).mean()
    finally:
        for encoder, state in zip(kept, before, strict=True):
            encoder.load_state_dict(state)
    assert swapped < real - 0.3


def test_maps_of_metabolites_differ_and_find_the_drivers(trained):
    importance = np.zeros((4, 60))
    for net in trained._nets:
        encoder, head = net.module.encoder, net.module.intensity_head
        weight = encoder.weights(encoder.ask()) * head.slopes(torch.ones(4)).abs()[..., None]
        importance[:, net.module.gene_index] += weight.sum(dim=1).detach().numpy()
    maps = np.corrcoef(importance)
    assert maps[np.triu_indices(4, 1)].mean() < 0.2
    top = [set(np.argsort(-row)[:4]) for row in importance]
    drivers = [{0, 1}, {2, 3}, {4, 5}, {6}]
    assert all(d <= t for d, t in zip(drivers, top, strict=True))


@pytest.mark.once
def test_labels_permuted_inside_sections_give_no_score(sections):
    train, test = (part.copy() for part in sections)
    rng = np.random.default_rng(0)
    for part in ("s0", "s1", "s2"):
        rows = np.flatnonzero(train.obs["sample"] == part)
        train.obsm["msi"].iloc[rows] = train.obsm["msi"].iloc[rng.permutation(rows)].to_numpy()
    model = fit(train, max_epochs=6)
    assert abs(np.nanmean(within(test, model.predict(test)))) < 0.25
    table = model.state.feature_table
    assert (table["held_out_attention"] - table["held_out_uniform"]).abs().mean() < 0.3


def test_one_network_for_each_section(sections, trained, tmp_path):
    train, test = sections
    assert len(trained._nets) == 3
    assert trained.state.training["n_nets"] == 3
    assert len(trained.state.training["epochs"]) == 3
    assert len(trained.history["validation_loss"]) > 1
    assert trained._held_out_stages().shape == (2, train.n_obs, 4)
    # the prediction is their mean
    spots = trained._query_spots(test, 0.5)
    _, mean = trained._forward(spots)
    each, nets = [], trained._several
    try:
        for net in nets:
            trained._several = [net]
            each.append(trained._forward(spots)[1])
    finally:
        trained._several = nets
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-5)
    trained.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(test), trained.predict(test))
    assert len(again._nets) == 3
    low, high = trained.predict_interval(test)
    inside = (test.obsm["msi"] >= low) & (test.obsm["msi"] <= high)
    assert 0.8 < inside.mean(axis=None) <= 1


@pytest.mark.once
def test_several_networks_of_another_encoder(sections):
    train, test = sections
    HurdleNet.setup_anndata(train)
    model = HurdleNet(train, encoder="mlp", n_nets=3, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=2, show_progress_bar=False)
    assert len(model._nets) == 3
    assert np.isfinite(model.predict(test)).all(axis=None)
    net = HurdleNet(train, encoder="mlp")
    assert (net._n_nets(), net._n_nets(refit=False)) == (3, 1)
    assert HurdleNet(train, encoder="mlp", n_nets=2)._n_nets(refit=False) == 2
    with pytest.raises(ValueError, match="n_nets must be 'auto' or a whole number of at least 1, found 0"):
        HurdleNet(train, n_nets=0)


def test_networks_that_see_components_keep_their_own(sections, tmp_path):
    train, test = sections
    HurdleNet.setup_anndata(train, **GRAPH)
    model = HurdleNet(train, encoder="deepset", n_nets=2, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=2, show_progress_bar=False)
    found = model.predict(test)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(load_model(tmp_path / "model").predict(test), found)


@pytest.mark.once
def test_the_same_seed_gives_the_same_bits_and_batches_do_not_count(sections, trained, monkeypatch):
    train, test = sections
    one, two = (fit(train.copy(), max_epochs=2).predict(test) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    expected = trained.predict_intensity(test)
    monkeypatch.setattr(trained.module.encoder, "largest_batch", 17)
    np.testing.assert_allclose(trained.predict_intensity(test), expected, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(test.n_obs)
    np.testing.assert_allclose(
        trained.predict_intensity(test[order].copy()).loc[test.obs_names], expected, rtol=1e-4, atol=1e-5
    )


def test_rings_and_isolated_spots(sections, trained):
    _, test = sections
    empty = test.copy()
    empty.obsp["spatial_connectivities"] = sp.csr_matrix((test.n_obs, test.n_obs))
    alone = trained.predict_intensity(empty)
    assert np.isfinite(alone).all(axis=None)
    assert (alone != trained.predict_intensity(test)).to_numpy().mean() > 0.5
    del empty.obsp
    with pytest.raises(KeyError, match=r"uses the graph obsp\['spatial_connectivities'\]"):
        trained.predict(empty)


def test_one_section_no_graph_and_missing_values(make_sections):
    data = make_sections((90,), genes=30)
    data.obsm["msi"].iloc[:10, 0] = np.nan
    data.obsm["msi"].iloc[10:14] = np.nan
    data.obsm["msi"]["never"] = np.where(np.isnan(data.obsm["msi"]["always"]), np.nan, 0).astype(np.float32)
    model = fit(data, max_epochs=3)
    assert len(model._nets) > 1, "spatial blocks are held out"
    assert np.isfinite(model.predict()).all(axis=None)


def test_missing_genes_and_other_order(sections, trained):
    _, test = sections
    expected = trained.predict(test)
    np.testing.assert_allclose(trained.predict(test[:, ::-1].copy()), expected, rtol=1e-4, atol=1e-4)
    part = test[:, np.arange(60) % 3 != 2].copy()
    assert np.isfinite(trained.predict(part)).all(axis=None)


@pytest.mark.once
def test_covariates_add_a_linear_term(sections):
    train = sections[0].copy()
    train.obs["batch"] = pd.Categorical(np.arange(train.n_obs) % 2)
    model = fit(train, fields={"covariate_keys": ["batch"]}, max_epochs=2)
    assert model.module.intensity_head.covariates.weight.abs().max() > 0
    assert np.isfinite(model.predict()).all(axis=None)


@pytest.mark.once
def test_as_a_correction_it_begins_as_ridge(sections):
    train, test = sections
    assert HurdleNet(fit(train.copy(), max_epochs=1).adata, encoder="transformer")._params()["residual"] is None
    model = fit(train.copy(), params={"residual": "ridge"}, max_epochs=1, lr=1e-9)
    assert (model.module.intensity_head.slopes(torch.ones(4)).abs() < 1e-6).all()
    HurdleLinear.setup_anndata(train)
    ridge = HurdleLinear(train, presence="logistic", intensity="ridge")
    ridge.train()
    base = within(test, ridge.predict(test)).mean()
    corrected = fit(train.copy(), params={"residual": "ridge"}, max_epochs=15)
    assert within(test, corrected.predict(test)).mean() > base - 0.01


def test_a_metabolite_that_training_did_not_have(sections):
    train = sections[0].copy()
    features = pd.DataFrame({"mz": [500.0, 600.0, 700.0, 800.0], "defect": [0.1, 0.2, 0.3, 0.4]})
    train.uns["msi"] = {"features": features.set_index(train.obsm["msi"].columns)}
    model = fit(train, {"descriptors": ["defect"], "query_dropout": 0.2}, max_epochs=2)
    new = pd.DataFrame({"mz": [500.0, 700.0], "defect": [0.1, np.nan]}, index=["a", "b"])
    found = predict_unseen(model, new)
    assert found.shape == (train.n_obs, 2)
    assert np.isfinite(found.to_numpy()).all()
    assert (found.std() > 0).all()
    # a metabolite does not depend on which others are asked for
    np.testing.assert_allclose(predict_unseen(model, new.iloc[1:])["b"], found["b"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Nothing is known of 'c'"):
        predict_unseen(model, pd.DataFrame({"mz": [np.nan], "defect": [np.nan]}, index=["c"]))
    with pytest.raises(KeyError, match=r"features has no column 'defect' \(descriptors=\); found 'mz'"):
        predict_unseen(model, new[["mz"]])
    with pytest.raises(ValueError, match="trained without query_dropout"):
        predict_unseen(fit(train, max_epochs=1), new)
    encoder = model.module.encoder
    torch.testing.assert_close(encoder.mass, encode_mz(torch.tensor([500.0, 600.0, 700.0, 800.0]), 32))
    with pytest.raises(KeyError, match=r"uns\['msi'\]\['features'\] has no column 'logp'"):
        HurdleNet(train, encoder="transformer", encoder_kwargs={"descriptors": ["logp"]})


@pytest.mark.once
def test_prior_genes_reach_the_attention(sections, tmp_path):
    train = sections[0].copy()
    genes = pd.DataFrame(False, train.var_names, ["second", "not_measured"])
    genes.iloc[[2, 50], 0] = True
    train.varm["msi_prior"] = genes
    model = fit(train, fields={"prior_key": "msi_prior"}, max_epochs=2)
    for net in model._nets:
        index = net.module.gene_index.tolist()
        assert {(m, index[g]) for m, g in net.module.encoder.prior.nonzero().tolist()} == {(1, 2), (1, 50)}
    assert model.module.encoder.prior_strength != 1
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(sections[1]), model.predict(sections[1]))
    tuned = again.fine_tune(sections[0][sections[0].obs["sample"] == "s1"].copy(), max_epochs=1)
    torch.testing.assert_close(tuned.module.encoder.prior, model.module.encoder.prior)
    assert len(tuned._nets) == len(model._nets)


def test_warm_starts_of_several_networks_are_refused(sections):
    model = fit(sections[0].copy(), max_epochs=1)
    with pytest.raises(ValueError, match="mean of several networks"):
        model.train(warm_start=True)


@pytest.mark.once
def test_an_interrupt_leaves_the_networks_that_were_done(sections):
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        starts = 0

        def on_train_start(self, trainer, pl_module):
            Interrupt.starts += 1
            if Interrupt.starts == 3:
                raise KeyboardInterrupt

    HurdleNet.setup_anndata(sections[0])
    model = HurdleNet(sections[0], encoder="transformer", encoder_kwargs={"n_hidden": 8})
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=1, show_progress_bar=False, callbacks=Interrupt())
    assert len(model._nets) == 2
    assert np.isfinite(model.predict(sections[1])).all(axis=None)


def rewired(*, rewire: bool, seed: int = 0):
    """Two clusters in which each of four metabolites follows another gene, or the same; signatures of those genes and of others."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(["s0", "s1", "s2"], 120)
    X = rng.normal(size=(360, 24)).astype(np.float32)
    cluster = rng.choice(["a", "b"], 360)
    other = X[:, 4:8] if rewire else X[:, :4]
    y = 4 + np.where(cluster[:, None] == "a", X[:, :4], other) + 0.3 * rng.normal(size=(360, 4))
    obs = pd.DataFrame({"sample": sample, "cluster": pd.Categorical(cluster)}, index=[f"spot{i}" for i in range(360)])
    data = AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(24)]))
    data.obsm["msi"] = pd.DataFrame(np.maximum(y, 0).astype(np.float32), obs.index, [f"m{i}" for i in range(4)])
    mask = np.zeros((24, 2), bool)
    mask[:4, 0] = mask[4:8, 1] = mask[16:20, 0] = mask[20:24, 1] = True
    return data, mask


def with_mask(data, mask):
    """Held-out correlation of a transformer that sees this mask, and what it has learned of it."""
    data = data.copy()
    data.varm["signature"] = pd.DataFrame(mask, data.var_names, ["a", "b"])
    fields = {"input": "log", "signature_key": "signature", "cluster_key": "cluster"}
    model = fit(data, fields=fields, params={"n_nets": 2}, max_epochs=40, batch_size=64, lr=0.02)
    strength = model.module.encoder.signature_strength.abs().max().item()
    return model.state.feature_table["held_out_attention"].mean(), strength


@pytest.mark.once
def test_the_signature_mask_pays_where_clusters_rewire_genes():
    data, mask = rewired(rewire=True)
    rng = np.random.default_rng(1)
    scattered = np.column_stack([rng.permutation(column) for column in mask.T])
    own, strength = with_mask(data, mask)
    random, _ = with_mask(data, scattered)
    assert own > random + 0.1
    assert strength > 0.3


@pytest.mark.once
def test_a_right_prior_helps_where_spots_are_few(make_sections):
    """Nine drivers among 150 genes, of which sixty noisy spots tell little."""
    data = make_sections((30, 30, 30), genes=150, noise=2.0)
    scores = []
    for named in (False, True):
        part = data.copy()
        fields = {}
        if named:
            prior = pd.DataFrame(False, part.var_names, part.obsm["msi"].columns)
            for m, genes in enumerate(([0, 1], [2, 3], [4, 5], [6])):
                prior.iloc[genes, m] = True
            part.varm["msi_prior"], fields = prior, {"prior_key": "msi_prior"}
        model = fit(part, fields=fields, max_epochs=12, batch_size=32)
        scores.append(model.state.feature_table["held_out_attention"].mean())
    strength = [net.module.encoder.prior_strength.item() for net in model._nets]
    assert np.abs(np.array(strength) - 1).max() > 0.01, "it began at 1"
    assert scores[1] > scores[0]


def test_the_family_by_name_and_as_a_member(make_sections):
    """It is trained with the graph that the data have, and its held-out predictions stack."""
    data = make_sections((30, 30, 30))
    train = {"max_epochs": 2}
    out = predict_metabolites(data, {"model": "transformer", "train": train}, copy=True)
    assert np.isfinite(out.obsm["msi_pred"]).all(axis=None)
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    members = {"mean": "mean", "attention": {"model": "transformer", "train": train}}
    model = HurdleEnsemble(data, members=members, n_folds=3)
    model.train(show_progress_bar=False)
    assert np.isfinite(model.predict()).all(axis=None)
    assert len(model.models_[1]._nets) == 3
    assert len(model.models_[1].module.ring_scale) == 2


def test_spots_are_read_out_a_few_at_a_time(monkeypatch):
    head = AttentionReadOut(torch.tensor([1.0, -1.0]), 5, 2)
    torch.nn.init.normal_(head.bend[2].weight)
    inputs = torch.randn(30, 5, 2), torch.ones(5), torch.randn(30, 2)
    whole, calls = head(*inputs), []  # as in training
    monkeypatch.setattr(_heads, "_IN_CACHE", 20)
    head.bend[1].register_forward_hook(lambda module, given, out: calls.append(len(out)))
    with torch.no_grad():
        torch.testing.assert_close(head(*inputs), whole)
    assert calls == [4] * 7 + [2]

"""Priors and signature masks as inputs of models."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import stmsi
from stmsi import metrics
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet, load
from stmsi.model.linear._gene_prior import GenePrior, fit_classifier_with, fit_regression_with
from stmsi.model.linear._intensity import _ridge_weights, fit_regression
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_reader import SpotReader

METABOLITES = ["simPC_28_0", "simPC_31_3", "simPC_34_2"]
SETUP = {"presence_key": "msi_presence", "prior_key": "msi_prior"}
SMALL = {"n_components": 5, "n_folds": 3}


@pytest.fixture
def data(st):
    """Three metabolites with the genes that drive them as prior; the last has none."""
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][METABOLITES]
    drivers = st.uns["truth"]["drivers"]
    stmsi.pp.knowledge_prior(st, drivers[drivers["metabolite"].isin(METABOLITES[:2])])
    return st


def fit(adata, setup=SETUP, **params):
    adata = adata.copy()
    HurdleLinear.setup_anndata(adata, **setup)
    model = HurdleLinear(adata, **SMALL | params)
    model.train()
    return model


@pytest.fixture(scope="module")
def toy_problem():
    """Sixty genes, of which two drive a metabolite; components of the others as features."""
    rng = np.random.default_rng(0)
    n = 240
    counts = rng.poisson(20, (n, 60)).astype(np.float32)
    z = ((counts - counts.mean(axis=0)) / counts.std(axis=0)).astype(np.float64)
    y = z[:, 3] + z[:, 11] + 0.3 * rng.normal(size=n) + 10
    return counts, z[:, 20:], y, np.repeat(np.arange(4), n // 4)


def spots_of(counts, graph=None):
    import scipy.sparse as sp

    return Spots(pd.RangeIndex(len(counts)).astype(str), sp.csr_matrix(counts), graph)


def mask_of(genes, n=60):
    mask = np.zeros((n, 1), bool)
    mask[genes] = True
    return mask


# ---------------------------------------------------------------------------------------------------------- estimators


@pytest.mark.once
@pytest.mark.parametrize("use", ["penalty", "features"])
@pytest.mark.parametrize("family", ["ridge", "lasso"])
def test_true_genes_are_used_and_help(toy_problem, use, family):
    counts, F, y, groups = toy_problem
    prior = GenePrior.fit(spots_of(counts), mask_of([3, 11]), use)
    columns = prior.columns(prior.values(spots_of(counts)), 0)
    fitted, strength = fit_regression_with(F, columns, y, groups, family, 0, groups)
    without = fit_regression(F, y, groups, family, 0, groups)
    assert strength > 0
    gain = [np.corrcoef(f.held_out, y)[0, 1] for f in (fitted, without)]
    assert gain[0] > gain[1] + 0.5


@pytest.mark.parametrize("use", ["penalty", "features"])
def test_random_genes_are_mostly_left_out_and_do_no_harm(toy_problem, use):
    counts, F, y, groups = toy_problem
    rng = np.random.default_rng(1)
    F = np.hstack([F, y[:, None] + rng.normal(size=(len(y), 1))])  # something that the features do tell
    spots, used = spots_of(counts), 0
    for _ in range(10):
        prior = GenePrior.fit(spots, mask_of(rng.choice(np.arange(12, 60), 3, replace=False)), use)
        columns = prior.columns(prior.values(spots), 0)
        used += fit_regression_with(F, columns, y, groups, "ridge", 0, groups)[1] > 0
    assert used <= 2


def test_presence_takes_the_prior_too(toy_problem):
    counts, F, y, groups = toy_problem
    present = (y > np.median(y)).astype(float)
    present[:10] = np.nan
    prior = GenePrior.fit(spots_of(counts), mask_of([3, 11]), "penalty")
    columns = prior.columns(prior.values(spots_of(counts)), 0)
    fitted, strength = fit_classifier_with(F, columns, present, groups, "logistic", 0)
    assert strength > 0
    assert metrics.auroc(present[:, None], fitted.held_out[:, None])[0] > 0.9
    assert fit_classifier_with(F, columns, present, groups, "prior", 0)[1] == 0


def test_off_is_what_it_is_without_a_prior(toy_problem):
    _, F, y, groups = toy_problem
    fitted, strength = fit_regression_with(F, np.empty((len(y), 0)), y, groups, "ridge", 0, groups)
    without = fit_regression(F, y, groups, "ridge", 0, groups)
    assert strength == 0
    np.testing.assert_array_equal(fitted.held_out, without.held_out)


def test_a_stronger_prior_is_a_smaller_penalty(toy_problem):
    """Ridge on columns times w is ridge whose penalty on them is divided by w squared."""
    counts, F, y, _ = toy_problem
    w, alpha = 3.0, 50.0
    prior = GenePrior.fit(spots_of(counts), mask_of([3, 11]), "penalty")
    prior.strength["intensity"] = np.array([w])
    values = prior.values(spots_of(counts))
    weights = _ridge_weights(prior.extend(F, values, "intensity", 0), y, np.array([alpha]))[0][0]
    Z = np.hstack([F, prior.columns(values, 0)]).astype(np.float64)
    Z = Z - Z.mean(axis=0)
    penalty = np.diag([alpha] * F.shape[1] + [alpha / w**2] * 2)
    general = np.linalg.solve(Z.T @ Z + penalty, Z.T @ (y - y.mean()))
    np.testing.assert_allclose(prior.gene_effects(weights[-2:], "intensity", 0)[0], general[-2:], rtol=1e-4)


def test_columns(toy_problem):
    import scipy.sparse as sp

    counts = toy_problem[0]
    counts = counts.copy()
    counts[:, 5] = 0
    ring = sp.csr_matrix(np.roll(np.eye(len(counts)), 1, axis=1))
    own = GenePrior.fit(spots_of(counts), mask_of([3, 5, 11]), "penalty")
    values = own.values(spots_of(counts))
    assert own.genes.tolist() == [3, 11], "a gene that does not vary says nothing"
    columns = own.columns(values, 0)
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(columns.std(axis=0), 1, rtol=1e-5)
    around = GenePrior.fit(spots_of(counts, ring), mask_of([3, 5, 11]), "penalty")
    both = around.columns(around.values(spots_of(counts, ring)), 0)
    np.testing.assert_allclose(both[:, :2], columns, rtol=1e-5)
    np.testing.assert_allclose(both[:, 2:], np.roll(columns, -1, axis=0), rtol=1e-4, atol=1e-5)
    pooled = GenePrior.fit(spots_of(counts, ring), mask_of([3, 5, 11]), "features")
    mean = pooled.columns(pooled.values(spots_of(counts, ring)), 0)
    assert mean.shape == (len(counts), 2)
    assert np.corrcoef(mean[:, 0], columns.mean(axis=1))[0, 1] == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("use", ["penalty", "features"])
def test_a_model_with_a_prior(data, use, tmp_path):
    model = fit(data, prior=use)
    plain = fit(data, setup={"presence_key": "msi_presence"})
    strength = model.prior_.strength
    assert strength["intensity"].shape == (3,)
    assert (strength["intensity"][:2] > 0).any(), "five components do not hold what the drivers tell"
    assert strength["intensity"][2] == strength["presence"][2] == 0
    with_prior, without = model.predict_intensity(), plain.predict_intensity()
    # without a prior, all metabolites share one penalty; a metabolite without prior genes has one of its own beside others
    assert np.corrcoef(with_prior[METABOLITES[2]], without[METABOLITES[2]])[0, 1] > 0.7
    assert not np.allclose(with_prior[METABOLITES[:2]], without[METABOLITES[:2]])
    model.save(tmp_path / "model")
    query = AnnData(data.X[:60], obs=data.obs.iloc[:60][[]], var=data.var)[:, ::-1].copy()
    pd.testing.assert_frame_equal(load(tmp_path / "model").predict(query), model.predict(query))
    assert f"prior={use!r}" in repr(model)


@pytest.mark.once
def test_nothing_but_training_spots_is_looked_at(data):
    """Spots that are held out may hold anything: the fit is the same."""
    train = np.flatnonzero((data.obs["sample"] != "P3S1").to_numpy())
    other = data.copy()
    held = np.setdiff1d(np.arange(data.n_obs), train)
    X = other.X.tolil()
    X[held] = 7
    other.X = X.tocsr()
    found = []
    for adata in (data, other):
        HurdleLinear.setup_anndata(adata, **SETUP)
        model = HurdleLinear(adata, **SMALL)
        model.train(train_idx=train)
        found.append(model)
    np.testing.assert_array_equal(found[0].prior_.mean, found[1].prior_.mean)
    for stage in ("presence", "intensity"):
        np.testing.assert_array_equal(found[0].prior_.strength[stage], found[1].prior_.strength[stage])


def test_missing_genes_of_the_prior_are_imputed(data):
    model = fit(data)
    needed = model.state.panel.names["var_names"][model.prior_.genes]
    query = data[:, ~data.var_names.isin(needed)].copy()
    prediction = model.predict_intensity(query)
    assert np.isfinite(prediction.to_numpy()).all()
    filled = model.prior_.values(SpotReader.open(query, model.state.setup, model.state.panel).read())[0]
    # imputed at the mean of the training spots, up to what the library size of a spot does to it
    assert (
        np.abs(filled).mean()
        < 0.5 * np.abs(model.prior_.values(SpotReader.open(data, model.state.setup).read())[0]).mean()
    )


def test_with_a_graph_neighbours_count(data):
    model = fit(data, setup=SETUP | {"graph_key": "spatial_connectivities"}, prior="features")
    assert [len(s) for s in model.prior_.spread] == [2, 2, 0]
    assert np.isfinite(model.predict().to_numpy()).all()


@pytest.mark.parametrize("use", ["penalty", "features"])
def test_coefficients_hold_what_the_prior_does(data, use):
    """Coefficients times z-scores follow the prediction, which they do not without the part of the prior."""
    model = fit(data, prior=use)
    stmsi.tl.attribute(data, model, method="coefficients", stage="intensity")
    spots = SpotReader.open(data, model.state.setup).read()
    space = model.state.features.own
    z = space.centred(spots.log_expression()) / space.scale
    predicted = model._stages(spots)[1]
    used = np.flatnonzero(model.prior_.strength["intensity"] > 0)
    assert len(used)
    for m in used:
        effect = data.varm["attribution"][METABOLITES[m]].to_numpy()
        own = effect[space.selected] @ z.T
        assert np.corrcoef(own, predicted[:, m])[0, 1] > 0.999
        weights = model.regressions_[m].estimator.weights[: model.state.features.widths[0]]
        without = model.state.features.components(spots) @ weights
        assert np.corrcoef(without, predicted[:, m])[0, 1] < 0.99
        drivers = data.varm["msi_prior"][METABOLITES[m]].to_numpy()
        assert np.abs(effect[drivers]).mean() > 2 * np.abs(effect[~drivers]).mean()


@pytest.mark.once
def test_an_ensemble_passes_the_prior_to_those_that_read_it(data):
    data = data.copy()
    HurdleEnsemble.setup_anndata(data, **SETUP)
    members = {
        "ridge": {"model": "ridge", "presence": "prior", **SMALL, "n_folds": 2},
        "mlp": {"model": "mlp", "train": {"max_epochs": 1}},
    }
    model = HurdleEnsemble(data, members=members, n_folds=2)
    model.train(show_progress_bar=False)
    assert model.models_[0].prior_ is not None
    assert model.models_[1].state.setup.prior_key is None


@pytest.mark.parametrize(
    ("setup", "error", "message"),
    [
        ({"prior_key": "elsewhere"}, KeyError, "stmsi.pp.knowledge_prior writes it"),
        ({"prior_key": "msi_priors"}, KeyError, "Did you mean 'msi_prior'"),
        ({"prior_key": "array"}, ValueError, "must be a DataFrame"),
        ({"prior_key": "other"}, ValueError, "names no gene for any of the metabolites"),
    ],
)
def test_wrong_priors(data, setup, error, message):
    data.varm["array"] = np.ones((data.n_vars, 2))
    data.varm["other"] = pd.DataFrame({"x": np.ones(data.n_vars, bool)}, index=data.var_names)
    with pytest.raises(error, match=message):
        HurdleLinear.setup_anndata(data, **setup)


def test_wrong_options(data):
    HurdleLinear.setup_anndata(data, **SETUP)
    with pytest.raises(ValueError, match="prior='strong' is not known"):
        HurdleLinear(data, prior="strong")
    with pytest.raises(ValueError, match="reads no prior"):
        HurdleLinear(data, intensity="knn")


# ---------------------------------------------------------------------------------------------------- signature stages

SIGNATURE = {"presence_key": "msi_presence", "signature_key": "signature", "cluster_key": "domain"}


def test_stages_of_the_linear_model_that_see_the_mask(data):
    widths = {}
    for stages in ((), ("presence",), ("intensity",), ("presence", "intensity")):
        model = fit(data, setup=SIGNATURE, signature_stages=stages)
        spots = SpotReader.open(data, model.state.setup).read()
        widths[stages] = tuple(F.shape[1] for F in model.state.features.transform(spots))
    k = data.varm["signature"].shape[1]
    assert widths[()] == (5, 5)
    assert widths[("presence",)] == (5, 5 + k)
    assert widths[("intensity",)] == (5 + k, 5)
    assert widths[("presence", "intensity")] == (5 + k, 5 + k)


def test_the_mask_reaches_families_on_similarities(data):
    one = fit(data, setup=SIGNATURE, intensity="knn")
    both = fit(data, setup=SIGNATURE, intensity="knn", signature_stages=("presence", "intensity"))
    assert not np.allclose(one.predict_intensity(), both.predict_intensity())


@pytest.mark.once
def test_heads_of_the_network_that_see_the_mask(data, tmp_path):
    HurdleNet.setup_anndata(data, **SIGNATURE)
    for stages in ((), ("presence",), ("intensity",), ("presence", "intensity")):
        model = HurdleNet(data, signature_stages=stages, residual=None)
        module = model.module.eval()
        n = module.signature.shape[1]
        embedding = torch.zeros(2, module.encoder.n_output)
        mask = torch.stack([torch.zeros(n), torch.ones(n)])
        heads = module.generative(embedding=embedding, mask=mask)
        for stage, head in (("presence", "logit"), ("intensity", "mean")):
            differs = not torch.equal(heads[head][0], heads[head][1])
            assert differs == (stage in stages), f"{head} with signature_stages={stages}"
    model.train(max_epochs=1, show_progress_bar=False)
    model.save(tmp_path / "net")
    query = data.copy()
    pd.testing.assert_frame_equal(load(tmp_path / "net").predict(query), model.predict(query))


def test_unknown_stages(data):
    HurdleLinear.setup_anndata(data, **SIGNATURE)
    with pytest.raises(ValueError, match="signature_stages='both' is not known"):
        HurdleLinear(data, signature_stages="both")
    assert HurdleLinear(data, signature_stages=["intensity", "presence"]).signature_stages == ("presence", "intensity")

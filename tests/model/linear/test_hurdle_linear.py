"""The families of HurdleLinear: each learns what genes tell, and none more."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import expit
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge

from stmsi import metrics
from stmsi.model import HurdleLinear
from stmsi.model.linear._count_regression import CountRegression
from stmsi.model.linear._intensity import _RIDGE, IntensityFamily, _best, _ridge_weights, fit_regression
from stmsi.model.linear._presence import fit_classifier, platt
from stmsi.model.linear._similarity import NeighbourMap, unit_rows
from stmsi.model.shared._spot_features import SpotFeatures
from stmsi.model.shared._spot_input import Spots

HELD_OUT = "P3S1"


@pytest.fixture(scope="module")
def split(_mapped):
    """Three metabolites that follow genes: training sections and a held-out one."""
    sdata = _mapped
    predictable = sdata.tables["msi"].var["predictable"]
    prevalence = sdata.tables["st"].obsm["msi_presence"].mean()
    chosen = prevalence[predictable.to_numpy(bool) & prevalence.between(0.3, 0.85).to_numpy()].index[:3].tolist()
    assert len(chosen) == 3
    st = sdata.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][chosen]
    held = (st.obs["sample"] == HELD_OUT).to_numpy()
    covered = st.obsm["msi"].notna().all(axis=1).to_numpy()
    return st[~held].copy(), st[held & covered].copy()


def fit(adata, **params):
    adata = adata.copy()
    HurdleLinear.setup_anndata(adata, presence_key="msi_presence")
    model = HurdleLinear(adata, **{"n_components": 15, "n_folds": 3, **params})
    model.train()
    return model


def scores(model, held):
    y, present = (held.obsm[k].to_numpy(float) for k in ("msi", "msi_presence"))
    return {
        "auroc": metrics.auroc(present, model.predict_presence(held).to_numpy()),
        "pearson": metrics.pearson(y, model.predict(held).to_numpy()),
        "present": metrics.pearson(np.where(present > 0, y, np.nan), model.predict_intensity(held).to_numpy()),
        "brier": np.nanmean((present - model.predict_presence(held).to_numpy()) ** 2, axis=0),
        "mse": np.nanmean((y - model.predict(held).to_numpy()) ** 2, axis=0),
    }


@pytest.fixture(scope="module")
def baseline(split):
    """Prior and mean: what no gene is needed for."""
    return scores(fit(split[0], presence="prior", intensity="mean"), split[1])


@pytest.mark.once
@pytest.mark.parametrize("presence", ["logistic", "svm", "mlp"])
def test_presence_families_rank_and_calibrate_on_a_held_out_section(split, baseline, presence):
    got = scores(fit(split[0], presence=presence, intensity="mean"), split[1])
    assert got["auroc"].mean() > 0.7
    assert got["auroc"].min() > 0.6
    assert got["brier"].mean() < 0.97 * baseline["brier"].mean(), "better than the prevalence: ranked and calibrated"


@pytest.mark.once
@pytest.mark.parametrize("intensity", [f for f in get_args(IntensityFamily) if f != "mean"])
def test_intensity_families_beat_the_mean_on_a_held_out_section(split, baseline, intensity):
    got = scores(fit(split[0], presence="logistic", intensity=intensity), split[1])
    assert got["pearson"].mean() > 0.4
    assert got["mse"].mean() < 0.95 * baseline["mse"].mean()


def test_the_prior_is_the_training_prevalence(split):
    model = fit(split[0], presence="prior", intensity="mean")
    presence = model.predict_presence(split[1])
    np.testing.assert_allclose(presence.iloc[0], split[0].obsm["msi_presence"].mean(), rtol=1e-5)
    assert (presence.nunique() == 1).all()


def test_the_mean_is_that_of_the_present(split):
    model = fit(split[0], presence="prior", intensity="mean")
    there = split[0].obsm["msi"].where(split[0].obsm["msi_presence"] > 0)
    np.testing.assert_allclose(model.predict_intensity(split[1]).iloc[0], there.mean(), rtol=1e-5)


def test_no_family_finds_what_is_not_there(mapped):
    """Metabolites that no gene knows of are not predicted in a held-out section."""
    st, features = mapped.tables["st"], mapped.tables["msi"].var
    hidden = features.index[~features["predictable"].to_numpy(bool)].tolist()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][hidden]
    held = (st.obs["sample"] == HELD_OUT).to_numpy()
    got = scores(fit(st[~held]), st[held].copy())
    assert abs(np.nanmean(got["pearson"])) < 0.3


@pytest.mark.once
def test_labels_without_meaning_are_not_learnt(split):
    """Shuffled inside the training sections, the held-out one is predicted no better than by chance."""
    train, held = split
    auroc, pearson = [], []
    for seed in range(6):
        shuffled = train.copy()
        order = np.random.default_rng(seed).permutation(train.n_obs)
        for key in ("msi", "msi_presence"):
            shuffled.obsm[key] = pd.DataFrame(
                train.obsm[key].to_numpy()[order], index=train.obs_names, columns=train.obsm[key].columns
            )
        got = scores(fit(shuffled), held)
        auroc.append(np.nan_to_num(got["auroc"], nan=0.5).mean())
        pearson.append(np.nan_to_num(got["pearson"]).mean())
    assert np.mean(auroc) == pytest.approx(0.5, abs=0.12)
    assert np.mean(pearson) == pytest.approx(0, abs=0.2)


# ------------------------------------------------------------------------------------------------------- regressions


@pytest.fixture(params=[(80, 10), (20, 40)], ids=["tall", "wide"])
def regression(request):
    n, p = request.param
    rng = np.random.default_rng(0)
    F = rng.normal(size=(n, p)) * np.linspace(0.2, 2, p) + 3
    return F, F @ rng.normal(size=p) + rng.normal(size=n) + 5


def test_all_ridge_solutions_against_scikit_learn(regression):
    F, y = regression
    weights, offset = _ridge_weights(F, y, _RIDGE)
    for w, b, alpha in zip(weights, offset, _RIDGE, strict=True):
        oracle = Ridge(alpha=alpha, solver="svd").fit(F, y)
        np.testing.assert_allclose(w, oracle.coef_, rtol=1e-6, atol=1e-9)
        assert b == pytest.approx(oracle.intercept_, rel=1e-6)


def test_least_squares_against_scikit_learn(regression):
    F, y = regression
    fitted = fit_regression(F, y, np.arange(len(y)) % 3, "linear", 0)
    np.testing.assert_allclose(fitted.predict(F), LinearRegression().fit(F, y).predict(F), atol=1e-5)


def test_constant_features_do_no_harm():
    rng = np.random.default_rng(0)
    F = np.hstack([rng.normal(size=(50, 4)), np.ones((50, 2))])
    y = F[:, 0] * 2 + 1
    weights, offset = _ridge_weights(F, y, np.array([0.0]))
    np.testing.assert_allclose(F @ weights[0] + offset[0], y, atol=1e-6)
    assert (weights[0][4:] == 0).all()


def test_the_penalty_follows_the_pattern_inside_groups_and_the_fit_is_that_of_scikit_learn(regression):
    F, y = regression
    groups = np.arange(len(y)) % 4
    fitted = fit_regression(F, y, groups, "ridge", 0)
    r = [
        np.mean(
            [
                np.corrcoef(Ridge(alpha=a, solver="svd").fit(F[groups != g], y[groups != g]).predict(F[groups == g]), y[groups == g])[0, 1]
                for g in range(4)
            ]
        )
        for a in _RIDGE
    ]  # fmt: skip
    best = _RIDGE[int(np.argmax(r))]
    assert fitted.strength == best

    def drawn_in(predicted):
        return y.mean() + fitted.slope * (predicted - y.mean())

    whole = Ridge(alpha=best, solver="svd").fit(F, y).predict(F)
    np.testing.assert_allclose(fitted.predict(F), drawn_in(whole), rtol=1e-6)
    own = groups == 2
    oracle = Ridge(alpha=best, solver="svd").fit(F[~own], y[~own])
    np.testing.assert_allclose(fitted.held_out[own], drawn_in(oracle.predict(F[own])), rtol=1e-6)


def test_predictions_spread_as_far_as_held_out_spots_bear_out():
    rng = np.random.default_rng(1)
    groups = np.arange(300) % 3
    F = rng.normal(size=(300, 60))
    y = F[:, 0] + 3 * rng.normal(size=300)
    fitted = fit_regression(F, y, groups, "pls", 0)
    assert fitted.slope < 0.8, "nothing to draw in: the test shows little"
    inside = [v - np.array([v[groups == g].mean() for g in range(3)])[groups] for v in (fitted.held_out, y)]
    assert inside[0] @ inside[1] == pytest.approx(inside[0] @ inside[0]), (
        "held-out predictions are on the truth's scale"
    )
    nothing = fit_regression(rng.normal(size=(300, 60)), rng.normal(size=300), groups, "pls", 0)
    assert 0 < nothing.slope < 0.3, "noise is drawn in to the mean, and still orders the spots"


def test_levels_of_sections_do_not_choose_the_penalty():
    """Sections whose level genes do not tell: squared error would shrink the pattern inside them away."""
    rng = np.random.default_rng(0)
    section = np.repeat(np.arange(4), 60)
    F = rng.normal(size=(240, 5))
    pattern = F[:, 0]
    y = pattern + np.array([0.0, 8, 16, 24])[section]
    F[:, 1] += np.array([0.0, 4, -4, 1])[section]  # batch effect that pretends to tell the level
    fitted = fit_regression(F, y, section, "ridge", 0)
    by_error = _RIDGE[
        np.argmin(
            sum(
                (
                    (
                        np.stack([Ridge(a).fit(F[section != s], y[section != s]).predict(F[section == s]) for a in _RIDGE])
                        - y[section == s]
                    )
                    ** 2
                ).sum(axis=1)
                for s in range(4)
            )
        )
    ]  # fmt: skip
    assert fitted.strength < by_error / 10


def test_what_follows_nothing_is_chosen_by_squared_error():
    rng = np.random.default_rng(0)
    y, units = rng.normal(size=60), np.arange(60) % 2
    paths = np.column_stack([-y, -0.1 * y, np.zeros(60)])
    assert _best(y, paths, units) == 2
    assert _best(y, np.column_stack([paths, 0.01 * y]), units) == 3, "a right order wins at any scale"


def test_units_too_small_for_a_correlation_do_not_choose():
    y = np.r_[np.arange(10.0), 0, 1]
    good, bad = y.copy(), -y
    good[10:], bad[10:] = [1, 0], [0, 1]
    assert _best(y, np.column_stack([bad, good]), np.r_[np.zeros(10), 1, 1].astype(int)) == 1


def test_absent_spots_do_not_count_but_are_predicted(regression):
    F, y = regression
    groups = np.arange(len(y)) % 3
    some = y.copy()
    some[::4] = np.nan
    fitted = fit_regression(F, some, groups, "ridge", 0)
    known = ~np.isnan(some)
    oracle = fit_regression(F[known], y[known], groups[known], "ridge", 0)
    np.testing.assert_allclose(fitted.predict(F), oracle.predict(F), rtol=1e-8)
    assert np.isfinite(fitted.held_out).all()


@pytest.mark.parametrize("family", ["mean", "ridge", "pls", "boosting", "poisson", "negative_binomial"])
@pytest.mark.parametrize("n_known", [0, 1, 4])
def test_few_values_fall_back_to_their_mean(family, n_known):
    y = np.full(30, np.nan)
    y[:n_known] = np.arange(n_known) + 2.0
    fitted = fit_regression(np.random.default_rng(0).normal(size=(30, 3)), y, np.arange(30) % 3, family, 0)
    expected = np.nanmean(y) if n_known else 0.0
    np.testing.assert_allclose(fitted.predict(np.zeros((2, 3))), expected)
    assert np.isfinite(fitted.held_out).all()


def test_a_group_without_values_is_predicted_from_the_others():
    rng = np.random.default_rng(0)
    F, groups = rng.normal(size=(60, 3)), np.arange(60) % 3
    y = np.where(groups == 0, np.nan, F[:, 0])
    fitted = fit_regression(F, y, groups, "ridge", 0)
    assert np.corrcoef(fitted.held_out[groups == 0], F[groups == 0, 0])[0, 1] > 0.9


# ------------------------------------------------------------------------------------------------------------- counts


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    F = rng.normal(size=(400, 3))
    mean = np.exp(F @ [0.5, -0.3, 0.0] + 2)
    return F, mean, rng


def test_poisson_against_scikit_learn(counts):
    F, mean, rng = counts
    y = rng.poisson(mean).astype(float)
    fitted = CountRegression("poisson", 0.1).fit(F, y)
    oracle = PoissonRegressor(alpha=0.1 * y.mean(), tol=1e-8).fit(F, y)  # the penalty is per unit of mean intensity
    np.testing.assert_allclose(fitted.weights, oracle.coef_, atol=1e-3)
    assert np.log(fitted.predict(np.zeros((1, 3)))[0]) == pytest.approx(oracle.intercept_, abs=1e-3)


def test_the_unit_of_intensity_does_not_change_a_poisson_regression(counts):
    F, mean, rng = counts
    y = rng.poisson(mean).astype(float)
    a, b = (CountRegression("poisson", 0.1).fit(F, unit * y).predict(F) / unit for unit in (1, 1e4))
    np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_count_regressions_find_what_made_the_counts(counts, family):
    F, mean, _ = counts
    y = np.random.default_rng(1).negative_binomial(2, 2 / (2 + mean)).astype(float)
    fitted = CountRegression(family, 1e-4).fit(F, y)
    np.testing.assert_allclose(fitted.weights, [0.5, -0.3, 0.0], atol=0.15)
    assert CountRegression(family, 100.0).fit(F, y).predict(F).std() < 0.1 * y.mean()


def test_a_log_link_does_not_explode(counts):
    F, mean, rng = counts
    y = rng.poisson(mean).astype(float)
    for family in ("poisson", "negative_binomial"):
        assert CountRegression(family, 1e-3).fit(F, y).predict(1e3 * F).max() <= y.max() * (1 + 1e-9)


# --------------------------------------------------------------------------------------------------------- similarity


def test_unit_rows_work_block_by_block():
    F = np.random.default_rng(0).normal(size=(6, 9))
    got = unit_rows(F, [4, 3])
    for block in (np.s_[:, :4], np.s_[:, 4:7]):
        np.testing.assert_allclose(got[block].mean(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose(got[block].std(axis=1), 1)
    np.testing.assert_array_equal(got[:, 7:], F[:, 7:])
    assert np.isfinite(unit_rows(np.zeros((2, 3)), [3])).all()


def test_neighbours_against_brute_force():
    rng = np.random.default_rng(0)
    F, query = rng.normal(size=(30, 6)), rng.normal(size=(5, 6))
    got = NeighbourMap.fit(F, [6]).transform(query)
    r = np.corrcoef(query, F)[:5, 5:]
    np.testing.assert_array_equal(got[:, :30], np.argsort(-r, axis=1))
    np.testing.assert_allclose(got[:, 30:], np.maximum(-np.sort(-r, axis=1), 0), atol=1e-5)


def test_held_out_neighbours_are_of_other_groups():
    F, groups = np.random.default_rng(0).normal(size=(30, 6)), np.arange(30) % 3
    got = NeighbourMap.fit(F, [6]).held_out(F, groups)
    assert got.shape == (30, 40)
    assert (groups[got[:, :20].astype(int)] != groups[:, None]).all()


def test_retrieval_is_the_weighted_mean_of_the_nearest():
    rng = np.random.default_rng(0)
    F, groups = rng.normal(size=(40, 6)), np.arange(40) % 4
    y = np.where(np.arange(40) % 5 == 0, np.nan, F[:, 0] + 5)
    neighbours = NeighbourMap.fit(F, [6])
    fitted = fit_regression(neighbours.held_out(F, groups), y, groups, "knn", 0)
    query = rng.normal(size=(3, 6))
    r = np.corrcoef(query, F)[:3, 3:]
    for i in range(3):
        near = np.argsort(-r[i])[: int(fitted.strength)]
        near = near[~np.isnan(y[near])]
        weight = np.maximum(r[i, near], 0)
        expected = (weight * y[near]).sum() / weight.sum()
        assert fitted.predict(neighbours.transform(query))[i] == pytest.approx(expected, abs=1e-4)


def test_retrieval_holds_out_whole_groups():
    """Twins in the same group must not vouch for each other."""
    rng = np.random.default_rng(0)
    F = np.repeat(rng.normal(size=(60, 6)), 2, axis=0)
    y, groups = np.repeat(rng.normal(size=60), 2), np.repeat(np.arange(60) % 3, 2)
    fitted = fit_regression(NeighbourMap.fit(F, [6]).held_out(F, groups), y, groups, "knn", 0)
    assert abs(np.corrcoef(fitted.held_out, y)[0, 1]) < 0.4


# ------------------------------------------------------------------------------------------------------- neighbourhood


def _spots(n=50, graph=None, features=None):
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2, (n, 20)).astype(np.float32))
    return Spots(pd.RangeIndex(n).astype(str), counts, graph, features=features)


def test_diffused_components_are_means_over_the_neighbours():
    dense = np.triu(np.random.default_rng(0).random((50, 50)) < 0.1, 1) * 7.0
    dense[0] = 0  # a spot without neighbours
    dense[:, 0] = 0
    spots = _spots(graph=sp.csr_matrix(dense + dense.T))
    features = SpotFeatures(20, 4, context="diffused").fit(spots)
    F, _ = features.transform(spots)
    A = (dense + dense.T > 0).astype(float)
    A /= np.maximum(A.sum(axis=1, keepdims=True), 1)
    P = F[:, :4]
    np.testing.assert_allclose(F, np.hstack([P, A @ P, A @ A @ P]), atol=1e-5)
    assert features.widths == [4, 4, 4]
    assert (F[0, 4:] == 0).all()


@pytest.mark.parametrize("context", ["pooled", "diffused"])
def test_without_a_graph_there_is_no_context(context):
    features = SpotFeatures(20, 4, context=context).fit(_spots())
    assert features.transform(_spots())[0].shape == (50, 4)
    assert features.widths == [4]


def test_the_context_is_an_input_of_the_model(st):
    HurdleLinear.setup_anndata(st, graph_key="spatial_connectivities")
    predictions = []
    for context in ("pooled", "diffused"):
        model = HurdleLinear(st, presence="prior", n_components=10, context=context)
        model.train()
        predictions.append(model.predict_intensity().to_numpy())
    assert np.abs(predictions[0] - predictions[1]).max() > 0.01


# ------------------------------------------------------------------------------------------------------- classifiers


@pytest.fixture
def classes():
    rng = np.random.default_rng(1)
    F = rng.normal(size=(400, 4))
    p = expit(1.5 * F[:, 0] - 1.5)
    return F, (rng.random(400) < p).astype(float), p


@pytest.mark.parametrize("family", ["logistic", "svm", "mlp"])
def test_probabilities_are_calibrated(classes, family):
    F, y, p = classes
    fitted = fit_classifier(F, y, np.arange(400) % 4, family, 0)
    got = fitted.predict(F)
    assert got.mean() == pytest.approx(p.mean(), abs=0.05), "class weights must not shift the level"
    assert abs(got - p).mean() < 0.1
    assert np.corrcoef(fitted.held_out, p)[0, 1] > 0.8


def test_the_logistic_score_is_that_of_scikit_learn(classes):
    F, y, _ = classes
    fitted = fit_classifier(F, y, np.arange(400) % 4, "logistic", 0)
    oracle = LogisticRegression(C=fitted.strength, class_weight="balanced").fit(F, y > 0)
    expected = expit(fitted.slope * oracle.decision_function(F) + fitted.offset)
    np.testing.assert_allclose(fitted.predict(F), expected, atol=1e-3)


def test_spots_without_msi_do_not_count_for_presence(classes):
    F, y, _ = classes
    groups = np.arange(400) % 4
    some = np.where(np.arange(400) < 100, np.nan, y)
    fitted = fit_classifier(F, some, groups, "logistic", 0)
    oracle = fit_classifier(F[100:], y[100:], groups[100:], "logistic", 0)
    np.testing.assert_allclose(fitted.predict(F), oracle.predict(F), rtol=1e-8)
    assert np.isnan(fitted.held_out[:100]).all()


@pytest.mark.parametrize(("value", "p"), [(0.0, 0.0), (1.0, 1.0)])
def test_one_class_gives_its_constant(classes, value, p):
    fitted = fit_classifier(classes[0], np.full(400, value), np.arange(400) % 4, "logistic", 0)
    np.testing.assert_array_equal(fitted.predict(classes[0]), p)
    np.testing.assert_array_equal(fitted.held_out, p)


def test_noise_gives_the_prevalence(classes):
    y = (np.random.default_rng(2).random(400) < 0.3).astype(float)
    got = fit_classifier(classes[0], y, np.arange(400) % 4, "logistic", 0).predict(classes[0])
    assert got.mean() == pytest.approx(y.mean(), abs=0.03)
    assert got.std() < 0.1


def test_platt_finds_the_sigmoid_that_made_the_labels():
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000) * 3
    y = (rng.random(20_000) < expit(0.7 * score - 1)).astype(float)
    assert platt(score, y) == pytest.approx((0.7, -1), abs=0.05)


def test_platt_against_scikit_learn():
    from sklearn.calibration import _sigmoid_calibration

    rng = np.random.default_rng(0)
    score = rng.normal(size=300) * 2
    y = (rng.random(300) < expit(score)).astype(float)
    a, b = _sigmoid_calibration(score, y)
    assert platt(score, y) == pytest.approx((-a, -b), abs=1e-3)


def test_platt_of_scores_that_rank_the_wrong_way_is_the_base_rate():
    score = np.linspace(-2, 2, 101)
    slope, offset = platt(score, (score < 0).astype(float))
    assert expit(slope * score + offset) == pytest.approx(51 / 103, abs=1e-3)


def test_platt_leaves_out_what_is_not_known():
    rng = np.random.default_rng(0)
    score = rng.normal(size=200)
    y = (rng.random(200) < expit(score)).astype(float)
    longer = np.append(score, [5.0, np.nan]), np.append(y, [np.nan, 1.0])
    assert platt(*longer) == pytest.approx(platt(score, y))


def test_platt_of_perfectly_separated_scores_stays_finite():
    score = np.r_[np.full(50, -1e3), np.full(50, 1e3)]
    slope, offset = platt(score, (score > 0).astype(float))
    p = expit(slope * score + offset)
    assert np.isfinite([slope, offset]).all()
    assert p[0] < 0.1
    assert p[-1] > 0.9

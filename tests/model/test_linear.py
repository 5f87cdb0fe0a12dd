"""The families of HurdleLinear: each learns what genes tell, and none more."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

from stmsi._core import metrics
from stmsi.model import HurdleLinear
from stmsi.model._intensity import _RIDGE, _ridge_weights, fit_regression
from stmsi.model._presence import fit_classifier, platt

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


@pytest.mark.parametrize("presence", ["logistic", "svm", "mlp"])
def test_presence_families_rank_and_calibrate_on_a_held_out_section(split, baseline, presence):
    got = scores(fit(split[0], presence=presence, intensity="mean"), split[1])
    assert got["auroc"].mean() > 0.7
    assert got["auroc"].min() > 0.6
    assert got["brier"].mean() < 0.97 * baseline["brier"].mean(), "better than the prevalence: ranked and calibrated"


@pytest.mark.parametrize("intensity", ["linear", "ridge", "lasso", "pls", "kernel_ridge", "boosting", "mlp"])
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


def test_the_penalty_is_the_best_over_groups_and_the_fit_is_that_of_scikit_learn(regression):
    F, y = regression
    groups = np.arange(len(y)) % 4
    fitted = fit_regression(F, y, groups, "ridge", 0)
    error = [
        sum(
            ((Ridge(alpha=a, solver="svd").fit(F[groups != g], y[groups != g]).predict(F[groups == g]) - y[groups == g]) ** 2).sum()
            for g in range(4)
        )
        for a in _RIDGE
    ]  # fmt: skip
    best = _RIDGE[int(np.argmin(error))]
    assert fitted.strength == best
    np.testing.assert_allclose(fitted.predict(F), Ridge(alpha=best, solver="svd").fit(F, y).predict(F), rtol=1e-6)
    own = groups == 2
    oracle = Ridge(alpha=best, solver="svd").fit(F[~own], y[~own])
    np.testing.assert_allclose(fitted.held_out[own], oracle.predict(F[own]), rtol=1e-6)


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


@pytest.mark.parametrize("family", ["mean", "ridge", "pls", "boosting"])
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

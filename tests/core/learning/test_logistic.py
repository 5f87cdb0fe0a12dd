import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stmsi._core.learning import logistic as _logistic
from stmsi._core.learning.logistic import balanced_logistic
from stmsi.model.linear._presence import fit_classifiers


def labels(X, rng, shares=(0.5, 0.2, 0.02)):
    score = X[:, :3] / X[:, :3].std(axis=0) + rng.normal(size=(len(X), 3))
    return np.column_stack([s > np.quantile(s, 1 - q) for s, q in zip(score.T, shares, strict=True)]).astype(float)


@pytest.mark.parametrize("n", [600, 25], ids=["many spots", "fewer spots than features"])
def test_each_is_that_of_scikit_learn(n):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(n, 30)) * np.logspace(1, -2, 30) @ np.linalg.qr(rng.normal(size=(30, 30)))[0] + 5
    Y = labels(mixed, rng, shares=(0.5, 0.2, 0.1))
    Y[: n // 5, 1] = np.nan
    for C in (1e-3, 0.1):
        for y, fitted in zip(Y.T, balanced_logistic(mixed, Y, np.full(3, C)), strict=True):
            known = ~np.isnan(y)
            oracle = LogisticRegression(C=C, class_weight="balanced", solver="newton-cholesky", tol=1e-10)
            expected = oracle.fit(mixed[known], y[known] > 0).decision_function(mixed)
            np.testing.assert_allclose(fitted.decision_function(mixed), expected, atol=5e-3)


def test_every_target_has_its_own_penalty_and_a_weak_one_on_separable_classes_ends():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 5))
    y = (X[:, 0] > 0.5).astype(float)
    strong, weak = balanced_logistic(X, np.column_stack([y, y]), np.array([1e-4, 1e3]))
    assert np.abs(strong.weights).max() < 0.05
    assert ((weak.decision_function(X) > 0) == (y > 0)).all()
    assert np.isfinite(weak.weights).all()


def test_features_that_do_not_vary_have_no_weight():
    rng = np.random.default_rng(2)
    X = np.column_stack([rng.normal(size=100), np.full(100, 3.0)])
    fitted = balanced_logistic(X, (X[:, :1] > 0).astype(float), np.ones(1))[0]
    assert abs(fitted.weights[1]) < 1e-12
    assert fitted.weights[0] > 1


@pytest.mark.parametrize("family", ["logistic", "svm"])
def test_classifiers_of_several_metabolites_are_those_of_each(family):
    rng = np.random.default_rng(3)
    X, groups = rng.normal(size=(400, 8)), np.arange(400) % 4
    some = labels(X, rng)
    some[groups < 2, 1] = np.nan
    only = np.where(groups == 0, some[:, 0], np.nan)
    present = np.column_stack([np.ones(400), some, only, np.full(400, np.nan), np.where(groups == 1, some[:, 0], 0)])
    together = fit_classifiers(X, present, groups, family, 0)
    alone = [fit_classifiers(X, y[:, None], groups, family, 0)[0] for y in present.T]
    assert [c.estimator is None for c in together] == [True, False, False, False, True, True, False]
    for a, b in zip(together, alone, strict=True):
        assert a.prior == b.prior
        np.testing.assert_equal(a.strength, b.strength)
        np.testing.assert_allclose(a.predict(X), b.predict(X), atol=1e-3)
        np.testing.assert_allclose(a.held_out, b.held_out, atol=1e-3)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="positive and negative spots of every target"):
        balanced_logistic(np.eye(4), np.array([[1, 1], [0, 1], [1, np.nan], [0, 1]]), np.ones(2))


def test_where_the_other_groups_have_one_class_their_share_is_predicted():
    X, groups = np.random.default_rng(4).normal(size=(90, 3)), np.repeat(np.arange(3), 30)
    present = np.where(groups == 0, X[:, 0] > 0, 0).astype(float)
    fitted = fit_classifiers(X, present[:, None], groups, "logistic", 0)[0]
    assert fitted.estimator is not None
    np.testing.assert_array_equal(fitted.held_out[groups == 0], 0.0)
    assert (fitted.held_out[groups > 0] > 0).all()


def test_the_start_changes_the_way_and_not_the_end():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(400, 12)) * np.linspace(0.2, 3, 12)
    Y, C = labels(X, rng, shares=(0.5, 0.2, 0.1)), np.full(3, 0.1)
    cold = balanced_logistic(X, Y, C)
    near = np.stack([line.weights for line in cold], axis=1)
    for start in (near, np.zeros((12, 3)), 5 * rng.normal(size=(12, 3))):
        for a, b in zip(cold, balanced_logistic(X, Y, C, start), strict=True):
            np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-2)


def test_a_good_start_needs_fewer_steps(monkeypatch):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(300, 10))
    Y, C = labels(X, rng, shares=(0.5, 0.3, 0.2)), np.full(3, 0.1)
    steps, descend = [], _logistic._descend

    def count(slopes, *args):
        steps.append(0)

        def counted(v, of):
            steps[-1] += 1
            return slopes(v, of)

        return descend(counted, *args)

    monkeypatch.setattr(_logistic, "_descend", count)
    cold = balanced_logistic(X, Y, C)
    balanced_logistic(X, Y, C, np.stack([line.weights for line in cold], axis=1))
    rough = balanced_logistic(X, Y, C, gradient=_logistic.ROUGH)
    assert steps[1] < steps[0]
    assert steps[2] < steps[0]
    for a, b in zip(cold, rough, strict=True):
        assert np.corrcoef(a.decision_function(X), b.decision_function(X))[0, 1] > 0.999


def test_single_precision_gives_the_same():
    rng = np.random.default_rng(7)
    X = (rng.normal(size=(400, 20)) * np.logspace(1, -1, 20) + 3).astype(np.float32)
    Y, C = labels(X, rng, shares=(0.5, 0.2, 0.1)), np.full(3, 0.01)
    before = X.copy()
    for a, b in zip(balanced_logistic(X, Y, C), balanced_logistic(X.astype(np.float64), Y, C), strict=True):
        assert np.isfinite(a.weights).all()
        np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-2)
    np.testing.assert_array_equal(X, before)


def test_targets_end_where_each_would_alone():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(300, 10))
    Y, C = labels(X, rng, shares=(0.5, 0.3, 0.02)), np.array([1e-3, 0.1, 10])
    Y[:40, 1] = np.nan
    together = balanced_logistic(X, Y, C, gradient=_logistic.ROUGH)
    for m, fitted in enumerate(together):
        alone = balanced_logistic(X, Y[:, [m]], C[[m]], gradient=_logistic.ROUGH)[0]
        np.testing.assert_allclose(fitted.decision_function(X), alone.decision_function(X), atol=1e-9)


def test_no_convergence_is_told(monkeypatch, caplog):
    rng = np.random.default_rng(9)
    X = rng.normal(size=(100, 5))
    monkeypatch.setattr(_logistic, "_MAX_ITERATIONS", 1)
    fitted = balanced_logistic(X, labels(X, rng)[:, :1], np.ones(1), gradient=1e-9)
    assert np.isfinite(fitted[0].weights).all()
    assert "1 of 1 logistic regressions of presence have not converged" in caplog.text

"""Logistic regressions of all metabolites with one penalty."""

import numpy as np
import pytest
from scipy.special import expit

from stmsi import metrics
from stmsi._core.metrics import columns
from stmsi.model.linear import _presence
from stmsi.model.linear._presence import fit_shared_classifiers
from stmsi.model.shared._inner_folds import InnerFolds

N = 400


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    F = rng.normal(size=(N, 6))
    p = expit(np.column_stack([2 * F[:, 0], F[:, 1] - 1.5, 3 * F[:, 2] + 1]))
    return F, (rng.random((N, 3)) < p).astype(float), p


def folds_of(groups, apart=()):
    return InnerFolds(groups, groups, "sections", list(apart))


def test_they_rank_and_are_calibrated(problem):
    F, present, p = problem
    fitted = fit_shared_classifiers(F, present, folds_of(np.arange(N) % 4))
    got = np.column_stack([c.predict(F) for c in fitted])
    assert np.abs(got - p).mean() < 0.08
    np.testing.assert_allclose(got.mean(axis=0), p.mean(axis=0), atol=0.05)
    held_out = np.column_stack([c.held_out for c in fitted])
    assert metrics.auroc(present, held_out).min() > 0.7
    assert len({c.strength for c in fitted}) == 1, "one penalty for all"


@pytest.mark.parametrize("n", [N, 120], ids=["many spots", "few spots"])
def test_labels_of_a_group_have_no_say_in_the_order_of_its_held_out_spots(problem, n):
    F, present, _ = (a[:n] for a in problem)
    groups = np.arange(n) % 4
    other = present.copy()
    other[groups == 1] = 1 - other[groups == 1]
    a, b = (fit_shared_classifiers(F, y, folds_of(groups)) for y in (present, other))
    if a[0].strength == b[0].strength:
        for x, y in zip(a, b, strict=True):
            order = np.argsort(x.held_out[groups == 1])
            assert (np.diff(y.held_out[groups == 1][order]) >= -0.02).all()


def test_always_never_and_unknown_are_constants(problem):
    F, present, _ = problem
    present = np.column_stack([present, np.ones(N), np.zeros(N), np.full(N, np.nan)])
    fitted = fit_shared_classifiers(F, present, folds_of(np.arange(N) % 4))
    assert [c.estimator is None for c in fitted] == [False, False, False, True, True, True]
    assert (fitted[3].predict(F) == 1).all()
    assert (fitted[4].predict(F) == 0).all()
    assert np.isfinite(fitted[5].predict(F)).all()
    alone = fit_shared_classifiers(F, present[:, :3], folds_of(np.arange(N) % 4))
    for a, b in zip(alone, fitted[:3], strict=True):
        np.testing.assert_array_equal(a.held_out, b.held_out)


def test_metabolites_may_be_fitted_one_at_a_time(problem, monkeypatch):
    F, present, _ = problem
    whole = fit_shared_classifiers(F, present, folds_of(np.arange(N) % 4))
    monkeypatch.setattr(_presence, "_ENTRIES", N)
    monkeypatch.setattr(columns, "_AT_ONCE", N)
    for a, b in zip(whole, fit_shared_classifiers(F, present, folds_of(np.arange(N) % 4)), strict=True):
        assert a.strength == pytest.approx(b.strength)
        np.testing.assert_allclose(a.held_out, b.held_out, atol=1e-5)
        np.testing.assert_allclose(a.predict(F), b.predict(F), atol=1e-5)


def test_without_features_all_have_their_share(problem):
    _, present, _ = problem
    fitted = fit_shared_classifiers(np.empty((N, 0)), present, folds_of(np.arange(N) % 4))
    for c, y in zip(fitted, present.T, strict=True):
        np.testing.assert_allclose(c.predict(np.empty((5, 0))), y.mean())
        # what a fold does not know of the share is not in its predictions
        np.testing.assert_allclose(c.held_out[0], y[np.arange(N) % 4 != 0].mean())


def test_spots_that_were_not_measured_do_not_count(problem):
    F, present, _ = problem
    some = present.copy()
    some[:100, 0] = np.nan
    fitted = fit_shared_classifiers(F, some, folds_of(np.arange(N) % 4))[0]
    assert np.isnan(fitted.held_out[:100]).all()
    assert np.isfinite(fitted.held_out[100:]).all()
    assert metrics.auroc(present[:, :1], fitted.predict(F)[:, None])[0] > 0.8


@pytest.mark.parametrize("n", [N, 120], ids=["many spots", "few spots"])
def test_a_metabolite_of_one_group_is_judged_by_folds_inside_it(problem, n):
    F, present, _ = (a[:n] for a in problem)
    groups = np.repeat([0, 1, 1, 2], n // 4)
    present[groups != 1, 2] = np.nan
    own = np.where(groups == 1, np.arange(n) % 3, -1)
    fitted = fit_shared_classifiers(F, present, folds_of(groups, [(np.array([2]), own)]))[2]
    inside = groups == 1
    assert np.isnan(fitted.held_out[~inside]).all()
    assert metrics.auroc(present[inside, 2:], fitted.held_out[inside, None])[0] > 0.75
    assert fitted.held_out[inside].mean() == pytest.approx(present[inside, 2].mean(), abs=0.1)
    assert fitted.held_out[inside].std() > 0.1, "a sigmoid that no other spot judges says nothing"


@pytest.mark.parametrize("n", [12, 30])
def test_few_spots_with_classes_that_lack_in_a_fold(problem, n):
    F, present, _ = (a[:n] for a in problem)
    present[:, 1] = 0
    present[0, 1] = 1
    fitted = fit_shared_classifiers(F, present, folds_of(np.arange(n) % 3))
    for c in fitted:
        assert np.isfinite(c.held_out).all()
        assert ((c.held_out >= 0) & (c.held_out <= 1)).all()
        assert np.isfinite(c.predict(F)).all()

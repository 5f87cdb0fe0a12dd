import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stmsi._core.learning import shared_ridge as _shared_ridge
from stmsi._core.learning.shared_ridge import (
    LEAST_SLOPE,
    MOST_SLOPE,
    PENALTIES,
    GroupMoments,
    HeldOutTruth,
    choose_penalty,
    fit_shared_ridge,
)

N, P = 180, 12


@pytest.fixture
def problem():
    """Spots of three groups; targets of which one is complete, one lacks spots at random, and one lacks a group."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), N // 3)
    F = (rng.normal(size=(N, P)) * np.linspace(0.5, 2, P) + 1).astype(np.float32)
    Y = F @ rng.normal(size=(P, 3)) + rng.normal(size=(N, 3)) + 5
    Y[rng.random(N) < 0.3, 1] = np.nan
    Y[groups == 1, 2] = np.nan
    return F, Y, groups


def direct(F, y, penalty, rows, where):
    """Predictions of one target by scikit-learn, trained on some rows."""
    used = rows & ~np.isnan(y)
    alpha = penalty * (F.astype(float) ** 2).sum(axis=1).mean()
    return Ridge(alpha=alpha, solver="svd").fit(F[used].astype(float), y[used]).predict(F[where])


# ----------------------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_every_target_is_ridge_on_the_spots_that_have_it(problem, penalty):
    F, Y, groups = problem
    weights = GroupMoments.of(F, Y, groups).fit(penalty)
    got = F @ weights[:-1] + weights[-1]
    everywhere = np.ones(N, bool)
    for m in range(3):
        expected = direct(F, Y[:, m], penalty, everywhere, everywhere)
        # targets that lack spots are solved by iteration
        np.testing.assert_allclose(got[:, m], expected, atol=(0.001 if m == 0 else 0.03) * np.nanstd(Y[:, m]))


@pytest.mark.parametrize("penalty", [1e-2, 1.0])
def test_held_out_predictions_are_those_of_fits_without_the_group(problem, penalty):
    F, Y, groups = problem
    got = GroupMoments.of(F, Y, groups).held_out(penalty)
    for g in range(3):
        own = groups == g
        for m in range(3):
            expected = direct(F, Y[:, m], penalty, ~own, own)
            np.testing.assert_allclose(got[own, m], expected, atol=(0.001 if m == 0 else 0.03) * np.nanstd(Y[:, m]))


def test_the_iteration_ends_at_the_solution(problem, monkeypatch):
    F, Y, groups = problem
    monkeypatch.setattr(_shared_ridge, "_TOLERANCE", 1e-6)
    held_out = GroupMoments.of(F, Y, groups).held_out(0.1)
    for g in range(3):
        own = groups == g
        for m in range(3):
            np.testing.assert_allclose(held_out[own, m], direct(F, Y[:, m], 0.1, ~own, own), atol=0.002)


def test_labels_of_a_group_have_no_say_in_its_held_out_predictions(problem):
    F, Y, groups = problem
    other = Y.copy()
    other[groups == 0] = other[groups == 0][::-1] + 100
    a, b = (GroupMoments.of(F, y, groups).held_out(0.1) for y in (Y, other))
    np.testing.assert_array_equal(a[groups == 0], b[groups == 0])
    assert not np.array_equal(a[groups > 0], b[groups > 0])


def test_the_constant_is_not_shrunk(problem):
    F, Y, groups = problem
    weights = GroupMoments.of(F, Y + 1000, groups).fit(1e3)
    predicted = F @ weights[:-1] + weights[-1]
    np.testing.assert_allclose(predicted.mean(axis=0), np.nanmean(Y, axis=0) + 1000, atol=1)


def test_a_target_of_one_group_has_no_held_out_prediction_there(problem):
    F, Y, groups = problem
    Y[groups != 0, 1] = np.nan
    held_out = GroupMoments.of(F, Y, groups).held_out(0.1)
    assert np.isnan(held_out[groups == 0, 1]).all()
    assert np.isfinite(held_out[groups != 0, 1]).all()
    assert np.isfinite(held_out[:, [0, 2]]).all()


def test_a_target_of_one_group_can_have_folds_of_its_own(problem):
    F, Y, groups = problem
    Y[groups != 0, 1] = np.nan
    own = np.where(groups == 0, np.arange(N) % 4, -1)
    fitted = fit_shared_ridge(F, Y, groups, groups, [(np.array([1]), own)])
    for g in range(4):
        expected = direct(F, Y[:, 1], fitted.penalty, (own >= 0) & (own != g), own == g)
        np.testing.assert_allclose(fitted.held_out[own == g, 1], expected, atol=0.03 * np.nanstd(Y[:, 1]))


def test_other_targets_on_the_same_features(problem):
    F, Y, groups = problem
    again = GroupMoments.of(F, np.zeros((N, 1)), groups).with_targets(Y)
    np.testing.assert_allclose(again.fit(0.1), GroupMoments.of(F, Y, groups).fit(0.1), rtol=1e-5)


def test_inputs_are_not_changed(problem):
    F, Y, groups = problem
    before = [a.copy() for a in (F, Y, groups)]
    fit_shared_ridge(F, Y, groups, groups)
    for a, b in zip((F, Y, groups), before, strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------------- penalty


@pytest.mark.parametrize(("noise", "n_targets"), [(0.0, 1), (3.0, 3), (30.0, 8)])
def test_the_climb_ends_where_trying_all_penalties_ends(noise, n_targets):
    rng = np.random.default_rng(1)
    groups, units = np.arange(N) % 4, np.arange(N) % 4
    F = rng.normal(size=(N, 40)).astype(np.float32)
    Y = F[:, :5] @ rng.normal(size=(5, n_targets)) + noise * rng.normal(size=(N, n_targets))
    moments, truth = GroupMoments.of(F, Y, groups), HeldOutTruth.of(Y, groups, units)
    penalty, held_out = choose_penalty(moments, truth)
    scores = [truth.score(moments.held_out(float(p))) for p in PENALTIES]
    assert truth.score(held_out) == pytest.approx(max(scores), abs=1e-3)
    np.testing.assert_allclose(held_out, moments.held_out(penalty), rtol=1e-5, atol=1e-5)


def test_more_noise_takes_a_stronger_penalty():
    rng = np.random.default_rng(2)
    groups = np.arange(N) % 4
    F = rng.normal(size=(N, 60)).astype(np.float32)
    signal, noise = F[:, :3].sum(axis=1, keepdims=True), rng.normal(size=(N, 5))
    chosen = [fit_shared_ridge(F, signal + s * noise, groups, groups).penalty for s in (0.01, 1.0, 3.0)]
    assert chosen[0] < chosen[1] <= chosen[2]


def test_nothing_to_choose_by_gives_finite_predictions():
    F, groups = np.ones((20, 2), np.float32), np.arange(20) % 2
    fitted = fit_shared_ridge(F, np.zeros((20, 3)), groups, groups)
    np.testing.assert_allclose(fitted.predict(F), 0, atol=1e-5)
    np.testing.assert_allclose(fitted.held_out, 0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- truth


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


@pytest.fixture
def judged(problem):
    _, Y, groups = problem
    rng = np.random.default_rng(3)
    units = np.arange(N) // 30  # two sections in each group
    held_out = np.nan_to_num(Y, nan=5) + rng.normal(size=Y.shape) + np.array([0.0, 4, -4])[groups][:, None]
    held_out[rng.random(Y.shape) < 0.1] = np.nan
    return HeldOutTruth.of(Y, groups, units), Y, groups, units, held_out


def test_scores_against_numpy(judged):
    truth, Y, groups, units, held_out = judged
    inside, pooled = truth.scores(held_out)
    for m in range(3):
        known = ~np.isnan(Y[:, m]) & ~np.isnan(held_out[:, m])
        each = [correlation(Y[own, m], held_out[own, m]) for u in range(6) if (own := known & (units == u)).sum() >= 5]
        assert inside[m] == pytest.approx(np.mean(each), abs=1e-4)
        # the level is relative to what the fold of a spot knows of it
        base = np.array([np.nanmean(Y[groups != g, m]) for g in range(3)])[groups]
        assert pooled[m] == pytest.approx(
            correlation((Y[:, m] - base)[known], (held_out[:, m] - base)[known]), abs=1e-4
        )
    assert truth.score(held_out) == pytest.approx((inside.mean() + pooled.mean()) / 2)


def test_the_level_of_a_section_counts_between_and_not_inside(judged):
    truth, Y, _, units, _ = judged
    inside, pooled = truth.scores(np.nan_to_num(Y) + 100.0 * (units % 2)[:, None])
    np.testing.assert_allclose(inside, 1, atol=1e-3)
    assert (pooled < 0.5).all()


def test_what_does_not_vary_has_no_score_and_says_nothing():
    rng = np.random.default_rng(0)
    groups = np.arange(133) % 5
    constant = np.tile(rng.random(20) * 1e3, (133, 1))
    noise = constant + rng.normal(size=constant.shape)
    truth = HeldOutTruth.of(constant, groups, groups)
    for scores in truth.scores(noise):
        assert np.isnan(scores).all(), "a constant truth is constant, whatever its mean is rounded to"
    assert truth.score(noise) == 0
    varies = HeldOutTruth.of(np.arange(133.0)[:, None], groups, groups)
    inside, pooled = varies.scores(varies.base[groups])
    assert inside[0] == pooled[0] == 0, "a constant prediction has no skill"
    assert HeldOutTruth.of(np.full((133, 2), np.nan), groups, groups).score(noise[:, :2]) == 0


def test_units_with_fewer_than_five_spots_do_not_count():
    Y = np.r_[np.arange(10.0), 0, 1, 2][:, None]
    units = np.r_[np.zeros(10, int), 1, 1, 1]
    held_out = np.r_[np.arange(10.0), 2, 1, 0][:, None]
    truth = HeldOutTruth.of(Y, np.arange(13) % 2, units)
    assert truth.scores(held_out)[0][0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("unit", [1e-20, 1e-6, 1e6, 1e30])
def test_intensities_of_any_scale(judged, unit):
    truth, Y, groups, units, held_out = judged
    scaled = HeldOutTruth.of(unit * Y, groups, units)
    for a, b in zip(scaled.scores(unit * held_out), truth.scores(held_out), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(scaled.slopes(unit * held_out), truth.slopes(held_out), rtol=1e-4)
    slope = np.array([0.5, 1.0, 0.1])
    np.testing.assert_allclose(scaled.scaled(unit * held_out, slope) / unit, truth.scaled(held_out, slope), rtol=1e-4)
    constant = np.full((N, 1), 2 * unit)
    rounded = (constant * (1 + 1e-7 * np.arange(N)[:, None])).astype(np.float32)
    assert np.isnan(HeldOutTruth.of(constant, groups, units).scores(rounded)[1]).all()


def test_some_columns(judged):
    truth, *_, held_out = judged
    some = truth.of_columns(np.array([2, 0]))
    for a, b in zip(some.scores(held_out[:, [2, 0]]), truth.scores(held_out), strict=True):
        np.testing.assert_array_equal(a, b[[2, 0]])


def test_products_give_the_scores_of_every_weighted_mean(judged):
    truth, _, groups, _, held_out = judged
    rng = np.random.default_rng(4)
    maps = np.stack([held_out, held_out + rng.normal(size=held_out.shape), rng.normal(size=held_out.shape) + 5])
    n, variance, along, between = truth.products(maps)
    assert n.shape == variance.shape == (7, 3)
    assert along.shape == (3, 7, 3)
    assert between.shape == (3, 3, 7, 3)
    for w in ([1, 0, 0], [0.2, 0.5, 0.3], [0, 0, 1]):
        w = np.array(w, float)
        mean = np.where(np.isnan(maps).any(axis=0), np.nan, np.einsum("k,ksm->sm", w, np.nan_to_num(maps)))
        with np.errstate(invalid="ignore"):
            r = np.einsum("k,kum->um", w, along) / np.sqrt(np.einsum("k,l,klum->um", w, w, between) * variance)
        inside, pooled = truth.scores(mean)
        np.testing.assert_allclose(np.nanmean(np.where(n[:-1] >= 5, r[:-1], np.nan), axis=0), inside, atol=1e-4)
        np.testing.assert_allclose(r[-1], pooled, atol=1e-4)
    np.testing.assert_array_equal(n[-1], n[:-1].sum(axis=0))
    assert n[-1, 2] == ((groups != 1) & ~np.isnan(maps[0, :, 2])).sum()


# --------------------------------------------------------------------------------------------------------------- slope


@pytest.fixture
def many():
    rng = np.random.default_rng(5)
    groups = np.arange(6000) % 3
    return rng.normal(size=(6000, 4)) + 3, groups, HeldOutTruth.of


def test_slopes_are_what_held_out_spots_bear_out(many):
    h, groups, of = many
    noise = np.random.default_rng(6).normal(size=h.shape)
    Y = 3 + np.array([0.3, 0.6, 1.0, 1.2]) * (h - 3) + 0.2 * noise
    np.testing.assert_allclose(of(Y, groups, groups).slopes(h), [0.3, 0.6, 1.0, 1.2], atol=0.05)


def test_slopes_have_bounds(many):
    h, groups, of = many
    Y = 3 + np.array([-1.0, 0.0, 10.0, 1.0]) * (h - 3)
    Y[:, 1] = np.random.default_rng(7).normal(size=len(h))
    slopes = of(Y, groups, groups).slopes(h)
    assert slopes[0] == LEAST_SLOPE
    assert slopes[1] < 2 * LEAST_SLOPE
    assert slopes[2] == MOST_SLOPE


def test_a_target_with_few_spots_leans_on_the_slope_of_all(many):
    h, groups, of = many
    Y = 3 + 0.8 * (h - 3) + 0.1 * np.random.default_rng(8).normal(size=h.shape)
    Y[:, 3] = 3 - 2 * (h[:, 3] - 3)
    alone = of(Y, groups, groups).slopes(h)[3]
    Y[12:, 3] = np.nan
    few = of(Y, groups, groups).slopes(h)[3]
    assert alone == LEAST_SLOPE
    assert few > 0.3


def test_a_constant_target_does_not_draw_the_others_in():
    """Its predictions are off by rounding only, which must not count as a slope of 0."""
    rng = np.random.default_rng(9)
    groups = np.arange(120) % 3
    h = rng.normal(size=(120, 2)) + 3
    Y = h + 0.1 * rng.normal(size=h.shape)
    alone = HeldOutTruth.of(Y, groups, groups).slopes(h)
    constant = np.full((120, 1), 1234.567)
    rounded = constant + 1e-3 * rng.normal(size=constant.shape)
    both = HeldOutTruth.of(np.hstack([Y, constant]), groups, groups).slopes(np.hstack([h, rounded]))
    np.testing.assert_allclose(both[:2], alone, atol=1e-6)
    assert np.isfinite(both).all()


def test_a_target_without_any_spot_has_the_slope_of_all(many):
    h, groups, of = many
    Y = 3 + 0.8 * (h - 3)
    Y[:, 0] = np.nan
    slopes = of(Y, groups, groups).slopes(h)
    np.testing.assert_allclose(slopes, 0.8, atol=0.02)


def test_what_is_drawn_in_moves_to_the_mean_that_its_fold_knows(judged):
    truth, Y, groups, _, held_out = judged
    base = np.stack([np.nanmean(Y[groups != g], axis=0) for g in range(3)])[groups]
    np.testing.assert_allclose(
        truth.scaled(held_out, np.zeros(3)), np.where(np.isnan(held_out), np.nan, base), rtol=1e-5
    )
    np.testing.assert_allclose(truth.scaled(held_out, np.ones(3)), held_out, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_a_mean_has_no_skill(level):
    """The mean of all spots tells of the spots that were held out; drawn in, it must not look like a prediction."""
    rng = np.random.default_rng(10)
    groups = np.repeat(np.arange(4), 30)
    Y = rng.normal(size=(120, 50)) + level * rng.normal(size=(4, 50))[groups]
    truth = HeldOutTruth.of(Y, groups, groups)
    of_fold = truth.base[groups]
    of_all = np.broadcast_to(Y.mean(axis=0), Y.shape)
    for held_out in (of_fold, of_all):
        drawn_in = truth.scaled(held_out, np.full(50, LEAST_SLOPE))
        r = [correlation(Y[:, m], drawn_in[:, m]) for m in range(50)]
        assert max(r) <= 1e-6
    # what a mean of all would have shown instead
    leaking = of_all + LEAST_SLOPE * (of_fold - of_all)
    assert truth.score(of_fold) == 0
    assert truth.score(leaking) > 0.02

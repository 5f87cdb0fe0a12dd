import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.metrics import columns
from stmsi._core.uncertainty.conformal import ABSENT, LOWER, UPPER, GroupConformal, doubt_of
from stmsi._core.uncertainty.hurdle_spread import hurdle_spread, spread_coefficients
from stmsi._core.uncertainty.left_out_groups import left_out_levels, raised_levels
from stmsi._core.uncertainty.weighted_quantiles import upper_quantiles, widening


def draw(rng, n_groups=8, n=200, m=6, between=0.0):
    """Hurdle data whose held-out predictions are right but for a shift of each group; groups one after the other."""
    group = np.repeat(np.arange(n_groups), n)
    probability, intensity = rng.beta(0.6, 0.6, (len(group), m)), rng.gamma(4, 1.0, (len(group), m))
    presence = (rng.random(probability.shape) < probability).astype(float)
    error = rng.normal(size=probability.shape) * np.sqrt(0.1 + 0.05 * intensity**2)
    shift = between * rng.normal(size=(n_groups, m))[group]
    truth = np.where(presence > 0, np.maximum(intensity + shift + error, 0.01), 0)
    prediction = np.where(probability >= 0.4, probability * intensity, 0)
    return truth, presence, probability, intensity, prediction, group


def coverage_of(model, data, coverage):
    truth, _, probability, intensity, prediction, _ = data
    lower, upper = model.interval(prediction.astype(np.float32), probability, intensity, coverage)
    inside = (truth >= lower - 1e-6) & (truth <= upper + 1e-6)
    return inside, lower, upper


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0, 1), st.booleans())
def test_quantiles_are_the_smallest_scores_that_hold_the_weight(seed, n, level, ties):
    rng = np.random.default_rng(seed)
    score, weight = rng.normal(size=n), rng.choice([1.0, 0.25, 3.0], n)
    if ties:
        score = np.round(score)
    got = upper_quantiles(np.append(score, np.nan), np.append(weight, 9.0), np.array([level]))[0]
    share = min(level * (1 + (weight**2).sum() / weight.sum() ** 2), 1)
    enough = [s for s in np.sort(score) if weight[score <= s].sum() >= share * weight.sum() * (1 - 1e-9)]
    assert got == enough[0]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.booleans())
def test_levels_needed_by_left_out_groups_are_those_found_by_trying(seed, two_sided):
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 3, 120))
    score, weight = np.round(rng.normal(size=120), 1), np.array([1.0, 0.5, 2.0])[group]
    needed = left_out_levels(score[:, None], weight[:, None], group, two_sided=two_sided)[:, 0]
    levels = np.linspace(0, 1, 401)
    for g in range(3):
        own, rest = group == g, group != g
        at = (1 + levels) / 2 if two_sided else levels
        high = upper_quantiles(score[rest], weight[rest], at)
        low = -upper_quantiles(-score[rest], weight[rest], at) if two_sided else np.full(401, -np.inf)
        if two_sided:  # the interval holds the prediction
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        for s, least in zip(score[own], needed[own], strict=True):
            covered = (low <= s) & (s <= high)
            sure = np.abs(levels - least) > 1e-9
            np.testing.assert_array_equal(covered[sure], (levels > least)[sure])


def test_levels_are_raised_where_groups_differ_and_only_there():
    coverages, group = np.linspace(0, 1, 401), np.repeat(np.arange(4), 200)
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(800, 10))
    shifted = alike + 1.5 * rng.normal(size=(4, 10))[group]
    weight = np.ones_like(alike)
    at = 360  # 90 %
    level, same = (
        raised_levels(left_out_levels(s, weight, group, two_sided=True), weight, group, coverages)
        for s in (shifted, alike)
    )
    assert level[at] > 0.93
    assert same[at] == pytest.approx(0.9, abs=0.01)
    for values in (level, same):
        assert (values >= coverages).all()
        assert (np.diff(values) >= 0).all()
        assert values[-1] == 1
    single = np.zeros(800, int)
    one = raised_levels(left_out_levels(shifted, weight, single, two_sided=True), weight, single, coverages)
    np.testing.assert_array_equal(one, coverages)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_intervals_cover_what_they_say_in_new_groups(coverage):
    rng = np.random.default_rng(0)
    model = GroupConformal.fit(*draw(rng, between=0.5))
    new = draw(rng, n_groups=60, between=0.5)
    inside, lower, _ = coverage_of(model, new, coverage)
    called = new[4] > 0
    assert inside[called].mean() == pytest.approx(coverage, abs=0.025)
    # nothing lies below 0: all that is missed of spots called absent lies above. Those that are absent are always covered
    absent = (new[0][~called] == 0).mean()
    assert inside[~called].mean() == pytest.approx(max(coverage, absent), abs=0.02)
    np.testing.assert_array_equal(lower[~called], 0)


def test_sure_spots_have_narrow_intervals_and_doubtful_ones_are_covered_as_often():
    rng = np.random.default_rng(1)
    model = GroupConformal.fit(*draw(rng, n=500))
    new = draw(rng, n=2000)
    inside, lower, upper = coverage_of(model, new, 0.9)
    probability = new[2]
    sure, doubtful = probability > 0.98, (probability > 0.5) & (probability < 0.8)
    assert inside[sure].mean() == pytest.approx(0.9, abs=0.05)
    assert inside[doubtful].mean() == pytest.approx(0.9, abs=0.08)
    assert (upper - lower)[sure].mean() < 0.75 * (upper - lower)[doubtful].mean()
    assert (lower[doubtful] == 0).mean() > 0.5  # they may well be absent


def test_every_group_weighs_the_same():
    rng = np.random.default_rng(2)
    ones, mu = np.ones((2200, 1)), np.full((2200, 1), 50.0)
    group = np.repeat([0, 1], [2000, 200])
    truth = mu + np.where(group[:, None] == 1, 3.0, 1.0) * rng.normal(size=mu.shape)

    def width(rows, groups):
        part = [v[rows] for v in (truth, ones, ones, mu, mu)]
        lower, upper = GroupConformal.fit(*part, groups).interval(mu[:1].astype(np.float32), ones[:1], mu[:1], 0.8)
        return (upper - lower).item()

    one_group = np.zeros(2200, int)
    repeated = np.concatenate([np.arange(2000), np.tile(np.arange(2000, 2200), 10)])
    balanced = width(repeated, np.zeros(4000, int))
    # left-out groups are not covered as asked by the other one, so that the level is raised on top of the balance
    assert width(np.arange(2200), group) > balanced > 1.3 * width(np.arange(2200), one_group)
    assert width(repeated, (repeated >= 2000).astype(int)) == pytest.approx(width(np.arange(2200), group), rel=0.02)


def test_few_residuals_give_wider_not_narrower_intervals():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(400):
        mu, ones = np.full((25, 1), 50.0), np.ones((25, 1))
        model = GroupConformal.fit(mu + rng.normal(size=(25, 1)), ones, ones, mu, mu, np.zeros(25, int))
        lower, upper = model.interval(mu[:1].astype(np.float32), ones[:1], mu[:1], 0.8)
        new = 50 + rng.normal(size=50)
        covered.append(((new >= lower[0]) & (new <= upper[0])).mean())
    assert np.mean(covered) > 0.79


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.01, 0.99))
def test_intervals_hold_their_prediction_and_are_nested(seed, coverage):
    rng = np.random.default_rng(seed)
    truth, presence, probability, intensity, prediction, group = draw(rng, n_groups=3, n=25, m=3)
    prediction = np.where(rng.random(prediction.shape) < 0.1, np.nan, prediction).astype(np.float32)
    truth = np.where(rng.random(truth.shape) < 0.1, np.nan, truth)
    model = GroupConformal.fit(truth, presence, probability, intensity, prediction, group)
    prediction = np.nan_to_num(prediction)
    lower, upper = model.interval(prediction, probability, intensity, coverage)
    wide_lower, wide_upper = model.interval(prediction, probability, intensity, min(0.999, coverage + 0.2))
    assert lower.min() >= 0
    assert (lower <= prediction).all()
    assert (prediction <= upper).all()
    assert (wide_lower <= lower).all()
    assert (wide_upper >= upper).all()
    assert np.isfinite(upper).all()


def test_metabolites_may_be_calibrated_some_at_a_time(monkeypatch):
    truth, presence, probability, intensity, prediction, group = draw(np.random.default_rng(3), n_groups=3, n=40, m=7)
    truth[:, 3], truth[5:, 4] = np.nan, np.nan
    data = truth, presence, probability, intensity, prediction, group, np.full(120, 0.1)
    whole = GroupConformal.fit(*data)
    monkeypatch.setattr(columns, "_AT_ONCE", 300)
    parts = GroupConformal.fit(*data)
    for name in ("values", "count", "spread", "signal", "held_out"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)


def test_a_thin_stratum_borrows_from_other_metabolites_and_an_unmeasured_one_has_no_width():
    rng = np.random.default_rng(4)
    truth, presence, probability, intensity, prediction, group = draw(rng, n_groups=3, n=100, m=4)
    prediction[5:, 0] = 0.5 + probability[5:, 0] * intensity[5:, 0]
    prediction[:5, 0] = 0
    truth[:, 3] = np.nan
    model = GroupConformal.fit(truth, presence, probability, intensity, prediction, group)
    assert model.count[:, 0].tolist() == [5, 295]
    assert model.count[:, 3].tolist() == [0, 0]
    np.testing.assert_allclose(model.values[ABSENT, :, 0], model.values[ABSENT][:, 1:3].mean(axis=1))
    assert not np.allclose(model.values[UPPER, :, 0], model.values[UPPER][:, 1:3].mean(axis=1))
    lower, upper = model.interval(np.ones((1, 4), np.float32), np.full((1, 4), 0.9), np.ones((1, 4)), 0.9)
    assert lower[0, 3] == upper[0, 3] == 1
    assert lower[0, 0] < 1 < upper[0, 0]


def test_a_thin_stratum_of_a_single_metabolite_takes_both_of_its_own():
    rng = np.random.default_rng(5)
    mu, ones = rng.uniform(1, 2, (60, 1)), np.ones((60, 1))
    prediction = np.where(np.arange(60)[:, None] < 5, 0, mu)
    truth = mu + rng.normal(0, 0.1, (60, 1))
    model = GroupConformal.fit(truth, ones, ones, mu, prediction, np.zeros(60, int))
    score = (truth - prediction) / hurdle_spread(ones, mu, model.spread)
    assert model.values[ABSENT, -1, 0] == score.max()
    assert model.values[UPPER, -1, 0] == score[5:].max()
    assert model.values[LOWER, -1, 0] == -score[5:].min()


def test_the_spread_is_that_of_the_hurdle_model():
    rng = np.random.default_rng(6)
    n = 200_000
    mu = np.concatenate([np.full(n, 2.0), np.full(n, 6.0)])[:, None]
    p = np.repeat([0.3, 0.8], n)[:, None]
    there = rng.random(p.shape) < p
    truth = np.where(there, mu + rng.normal(size=p.shape) * np.sqrt(0.5 + 0.04 * mu**2), 0)
    coefficients = spread_coefficients(truth, there.astype(float), mu, p * mu)
    np.testing.assert_allclose(coefficients[:2, 0], [0.5, 0.04], rtol=0.05)
    error = (truth - p * mu)[:, 0]
    got = hurdle_spread(p, mu, coefficients)[:, 0]
    for part in (slice(None, n), slice(n, None)):
        assert got[part].mean() == pytest.approx(error[part].std(), rel=0.01)


def test_data_without_error_or_without_measurements_give_finite_intervals():
    zeros, ones = np.zeros((30, 2)), np.ones((30, 2))
    truth = np.column_stack([np.zeros(30), np.full(30, np.nan)])
    model = GroupConformal.fit(truth, zeros, 0 * ones, ones, zeros, np.repeat([0, 1, 2], 10))
    lower, upper = model.interval(zeros.astype(np.float32), 0 * ones, ones, 0.9)
    np.testing.assert_array_equal(lower, 0)
    np.testing.assert_array_equal(upper, 0)


def test_a_metabolite_that_is_predicted_as_0_has_an_interval_of_what_was_measured():
    rng = np.random.default_rng(8)
    truth, zeros, ones = rng.uniform(1, 2, (100, 1)), np.zeros((100, 1)), np.ones((100, 1))
    for probability in (ones, zeros):
        model = GroupConformal.fit(truth, ones, probability, zeros, zeros, np.repeat([0, 1], 50))
        lower, upper = model.interval(zeros.astype(np.float32), probability, zeros, 0.9)
        np.testing.assert_array_equal(lower, 0)
        assert 1.85 < upper.max() < 2.01


def test_columns_are_taken_and_replaced():
    rng = np.random.default_rng(7)
    data = draw(rng, m=3)
    model, other = GroupConformal.fit(*data), GroupConformal.fit(*draw(rng, m=2))
    taken = model.take(np.array([2, 0]))
    joined = model.with_columns(np.array([1]), other.take(np.array([0])))
    prediction, probability, intensity = (data[k][:50] for k in (4, 2, 3))
    whole = model.interval(prediction.astype(np.float32), probability, intensity, 0.9)
    part = taken.interval(prediction[:, [2, 0]].astype(np.float32), probability[:, [2, 0]], intensity[:, [2, 0]], 0.9)
    mixed = joined.interval(prediction.astype(np.float32), probability, intensity, 0.9)
    own = other.interval(
        np.repeat(prediction[:, 1:2], 2, 1).astype(np.float32), probability[:, [1, 1]], intensity[:, [1, 1]], 0.9
    )
    for w, p, x, o in zip(whole, part, mixed, own, strict=True):
        np.testing.assert_array_equal(p, w[:, [2, 0]])
        np.testing.assert_array_equal(x[:, [0, 2]], w[:, [0, 2]])
        np.testing.assert_array_equal(x[:, 1], o[:, 0])


def test_widening_makes_intervals_cover():
    rng = np.random.default_rng(0)
    y = np.abs(rng.normal(10, 3, (500, 3)))
    predicted, half = np.full(y.shape, 10.0), np.ones(y.shape)
    everywhere = np.ones(y.shape, bool)
    factor = widening(y, predicted, half, half, 0.9, everywhere)
    np.testing.assert_allclose(((np.abs(y - 10) <= factor).mean(axis=0)), 0.902, atol=0.003)
    # too few spots of one metabolite: those of all
    some = y.copy()
    some[10:, 0] = np.nan
    assert 3 < widening(some, predicted, half, half, 0.9, everywhere)[0] < 7
    few = np.where(np.arange(500)[:, None] < 10, y, np.nan)
    np.testing.assert_array_equal(widening(few, predicted, half, half, 0.9, everywhere), 1)


def test_widening_skips_what_has_no_width():
    y = np.array([[3.0]] * 30)
    zero = np.zeros(y.shape)
    np.testing.assert_array_equal(widening(y, zero, zero, zero, 0.9, np.ones(y.shape, bool)), 1)


def test_a_metabolite_that_is_rarely_there_is_not_covered_too_often():
    """Zeros lie in every interval that begins at 0: what cannot be missed below is missed above."""
    rng = np.random.default_rng(4)
    n, m, probability = 4000, 6, 0.2
    there = rng.random((n, m)) < probability
    truth = np.where(there, 10 + rng.normal(size=(n, m)), 0.0)
    p, mu, group = np.full((n, m), probability), np.full((n, m), 10.0), np.repeat(np.arange(4), n // 4)
    model = GroupConformal.fit(truth, there.astype(float), p, mu, p * mu, group)
    for coverage in (0.85, 0.9, 0.95):
        lower, upper = model.interval((p * mu).astype(np.float32), p, mu, coverage)
        assert ((lower <= truth) & (truth <= upper)).mean() == pytest.approx(coverage, abs=0.01)


def test_distance_and_imputed_genes_widen_what_depends_on_them():
    np.testing.assert_allclose(doubt_of(np.array([0.5, 1.0, 2.0])), [0, 0, 3])
    np.testing.assert_allclose(doubt_of(np.array([0.5]), 0.5), 0.25)
    rng = np.random.default_rng(5)
    mu = np.column_stack([10 + 3 * rng.normal(size=600), np.full(600, 10.0)])
    ones, group = np.ones_like(mu), np.repeat(np.arange(3), 200)
    model = GroupConformal.fit(mu + rng.normal(size=mu.shape), ones, ones, mu, mu, group)
    np.testing.assert_allclose(model.signal, [mu[:, 0].var(), 0], atol=1e-12)
    usual, far = (model.interval(mu.astype(np.float32), ones, mu, 0.9, np.full(600, d)) for d in (0.0, 1.0))
    wide = [(high - low).mean(axis=0) for low, high in (usual, far)]
    assert wide[1][0] == pytest.approx(wide[0][0] * np.sqrt(1 + 9), rel=0.1)
    assert wide[1][1] == pytest.approx(wide[0][1])


def test_coverage_of_left_out_groups_is_told():
    rng = np.random.default_rng(6)
    model = GroupConformal.fit(*draw(rng, between=0.5))
    mean, lowest = model.held_out
    assert mean.mean() == pytest.approx(0.9, abs=0.05)
    assert (lowest <= mean).all()
    assert (lowest < mean - 0.01).any()

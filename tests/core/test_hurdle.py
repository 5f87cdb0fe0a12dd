import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.hurdle import ALWAYS, NEVER, ResidualQuantiles, best_f1_threshold, hurdle_mean


def _f1(present, probability, threshold):
    known = ~np.isnan(present) & ~np.isnan(probability)
    truth, called = present[known] > 0, probability[known] >= threshold
    return 2 * (truth & called).sum() / max(1, truth.sum() + called.sum())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2]), st.booleans())
def test_the_threshold_has_the_best_f1(seed, digits, nan):
    rng = np.random.default_rng(seed)
    present = (rng.random((25, 4)) < [0.1, 0.4, 0.7, 0.9]).astype(float)
    present[:2] = [[0.0], [1.0]]
    probability = np.round(1 / (1 + np.exp(-(present - 0.5 + rng.normal(0, 1, present.shape)))), digits or 8)
    if nan:
        present[2:][rng.random((23, 4)) < 0.2] = np.nan
        probability[2:][rng.random((23, 4)) < 0.1] = np.nan
    threshold = best_f1_threshold(present, probability)
    for j in range(4):
        candidates = np.concatenate([np.unique(probability[~np.isnan(probability[:, j]), j]), [0.0]])
        best = max(_f1(present[:, j], probability[:, j], t) for t in candidates)
        assert _f1(present[:, j], probability[:, j], threshold[j]) == pytest.approx(best, abs=1e-12)
        assert 0 <= threshold[j] <= 1


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_the_lowest_threshold_within_tolerance(tolerance):
    rng = np.random.default_rng(0)
    present = (rng.random((60, 3)) < [0.2, 0.5, 0.8]).astype(float)
    probability = 1 / (1 + np.exp(-(2 * present - 1 + rng.normal(0, 1, present.shape))))
    threshold = best_f1_threshold(present, probability, tolerance)
    for j in range(3):
        candidates = np.unique(probability[:, j])
        f1 = np.array([_f1(present[:, j], probability[:, j], t) for t in candidates])
        lowest = candidates[f1 >= (1 - tolerance) * f1.max()][0]
        np.testing.assert_array_equal(probability[:, j] >= threshold[j], probability[:, j] >= lowest)
    assert (threshold <= best_f1_threshold(present, probability)).all()


def test_the_threshold_lies_halfway():
    present = np.array([[0.0], [0], [1], [1]])
    probability = np.array([[0.1], [0.2], [0.6], [0.9]])
    assert best_f1_threshold(present, probability)[0] == pytest.approx(0.4)


def test_never_and_always():
    present = np.array([[0.0, 1, np.nan, 0], [0, 1, np.nan, np.nan], [0, np.nan, np.nan, 1]])
    probability = np.full((3, 4), 0.5)
    threshold = best_f1_threshold(present, probability)
    assert threshold[:3].tolist() == [NEVER, ALWAYS, NEVER]
    called = hurdle_mean(np.ones((3, 4)), np.ones((3, 4)), threshold) > 0
    assert called.all(axis=0).tolist() == [False, True, False, True]
    assert best_f1_threshold(present[:, :2], probability[:, :2]).tolist() == [NEVER, ALWAYS]


def test_absent_is_exactly_zero_and_nothing_is_negative():
    rng = np.random.default_rng(0)
    intensity = rng.normal(0.2, 1, (50, 6)).astype(np.float32)
    probability = rng.random((50, 6)).astype(np.float32)
    threshold = np.array([ALWAYS, NEVER, 0.5, 0.9, 0.1, 0.3])
    masked = hurdle_mean(intensity, probability, threshold)
    assert masked.dtype == np.float32
    called = probability >= threshold
    np.testing.assert_array_equal(masked[~called], 0)
    expected = probability * np.maximum(intensity, 0)
    np.testing.assert_allclose(masked[called], expected[called], rtol=1e-6)
    assert masked.min() == 0


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_cover_what_they_say_on_new_spots(coverage):
    rng = np.random.default_rng(0)

    def draw(n):
        prediction = np.where(rng.random((n, 5)) < 0.4, 0.0, rng.uniform(5, 9, (n, 5))).astype(np.float32)
        # skewed, and wider where present; absent spots hide a little that is above zero
        error = np.where(prediction > 0, rng.gamma(2, 0.5, (n, 5)) - 1, rng.gamma(2, 0.1, (n, 5)))
        return prediction + error, prediction

    quantiles = ResidualQuantiles.fit(*draw(4000))
    truth, prediction = draw(20_000)
    lower, upper = quantiles.interval(prediction, coverage)
    inside = (truth >= lower) & (truth <= upper)
    present = prediction > 0
    assert inside[present].mean() == pytest.approx(coverage, abs=0.015)
    # the lower bound of absent spots is their prediction, 0: only the upper tail can be missed
    assert inside[~present].mean() == pytest.approx(1 - (1 - coverage) / 2, abs=0.015)
    np.testing.assert_array_equal(lower[~present], 0)


def test_few_residuals_give_wider_not_narrower_intervals():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        prediction = np.full((25, 1), 50.0, np.float32)
        quantiles = ResidualQuantiles.fit(prediction + rng.normal(size=(25, 1)), prediction)
        lower, upper = quantiles.interval(prediction[:1], 0.8)
        new = 50 + rng.normal(size=50)
        covered.append(((new >= lower[0]) & (new <= upper[0])).mean())
    assert np.mean(covered) > 0.79


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.05, 0.99))
def test_intervals_hold_their_prediction_and_are_nested(seed, coverage):
    rng = np.random.default_rng(seed)
    prediction = (rng.lognormal(0, 1, (40, 3)) * (rng.random((40, 3)) < 0.6)).astype(np.float32)
    truth = np.where(rng.random((40, 3)) < 0.1, np.nan, prediction + rng.normal(0.5, 1, (40, 3)))
    quantiles = ResidualQuantiles.fit(truth, prediction)
    lower, upper = quantiles.interval(prediction, coverage)
    wide_lower, wide_upper = quantiles.interval(prediction, min(1.0, coverage + 0.2))
    assert lower.min() >= 0
    assert (lower <= prediction).all()
    assert (prediction <= upper).all()
    assert (wide_lower <= lower).all()
    assert (wide_upper >= upper).all()


def test_a_thin_stratum_borrows_from_both_and_an_unmeasured_metabolite_has_no_width():
    rng = np.random.default_rng(2)
    prediction = np.ones((100, 2))
    prediction[:5] = 0
    truth = prediction + rng.normal(size=(100, 2))
    truth[:, 1] = np.nan
    quantiles = ResidualQuantiles.fit(truth, prediction, min_count=20)
    np.testing.assert_allclose(quantiles.values[0, :, 0], np.quantile(truth[:, 0] - prediction[:, 0], quantiles.levels))
    np.testing.assert_allclose(quantiles.values[1, :, 0], np.quantile(truth[5:, 0] - 1, quantiles.levels))
    assert quantiles.count.tolist() == [[5, 0], [95, 0]]
    lower, upper = quantiles.interval(np.ones((1, 2), np.float32), 0.9)
    assert lower[0, 1] == upper[0, 1] == 1
    assert lower[0, 0] < 1 < upper[0, 0]

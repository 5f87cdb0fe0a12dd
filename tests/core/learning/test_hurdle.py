import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.learning.hurdle import ALWAYS, NEVER, affordable_threshold, best_f1_threshold, hurdle_mean


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


# ---------------------------------------------------------------------------------------------- what exact zeros cost


@pytest.fixture
def map_with_zeros():
    """Two hundred spots; the expected map follows the truth also below the threshold for the first metabolite only."""
    rng = np.random.default_rng(0)
    truth = np.maximum(rng.normal(1, 1, (200, 2)), 0)
    expected = truth + 0.1 * rng.normal(size=truth.shape)
    probability = 1 / (1 + np.exp(-3 * (expected - 1)))
    # of the second, what lies below the threshold is noise around 0 and costs nothing
    low = probability[:, 1] < 0.5
    truth[low, 1] = 0
    expected[low, 1] = 0.01 * rng.random(low.sum())
    return truth, expected, probability


def _left(truth, expected, probability, threshold):
    """Correlation of each metabolite's map with zeros, less that of the map without."""
    zeros = np.where(probability >= threshold, expected, 0)
    both = [[np.corrcoef(t, v)[0, 1] for t, v in zip(truth.T, values.T, strict=True)] for values in (zeros, expected)]
    return np.subtract(*both)


def test_zeros_that_cost_the_map_are_fewer(map_with_zeros):
    truth, expected, probability = map_with_zeros
    threshold = np.array([0.5, 0.5])
    before = _left(truth, expected, probability, threshold)
    assert before[0] < -0.002 <= before[1]
    lower = affordable_threshold(truth, expected, probability, threshold)
    assert 0 < lower[0] < 0.5
    assert lower[1] == 0.5
    assert (_left(truth, expected, probability, lower) >= -0.002).all()
    assert affordable_threshold(truth, expected, probability, threshold, cost=1.0).tolist() == [0.5, 0.5]
    np.testing.assert_array_equal(threshold, 0.5)


def test_zeros_that_always_cost_too_much_are_none():
    truth = np.arange(1.0, 101)[:, None]
    probability = np.linspace(0.001, 0.9, 100)[:, None]
    assert affordable_threshold(truth, truth, probability, np.array([0.9]), cost=0.0)[0] == ALWAYS


def test_always_and_never_stay(map_with_zeros):
    threshold = np.array([ALWAYS, NEVER])
    np.testing.assert_array_equal(affordable_threshold(*map_with_zeros, threshold), threshold)


@pytest.mark.parametrize("value", [0.0, 2.0, np.nan])
def test_a_truth_that_does_not_vary_lowers_nothing(map_with_zeros, value):
    truth, expected, probability = map_with_zeros
    truth[:, 0] = value
    lower = affordable_threshold(truth, expected, probability, np.array([0.5, 0.5]))
    np.testing.assert_array_equal(lower, 0.5)


def test_spots_without_a_prediction_or_a_measurement_do_not_count(map_with_zeros):
    truth, expected, probability = map_with_zeros
    threshold = np.array([0.5, 0.5])
    oracle = affordable_threshold(truth[50:], expected[50:], probability[50:], threshold)
    truth[:25], expected[25:50], probability[25:50] = np.nan, np.nan, np.nan
    np.testing.assert_array_equal(affordable_threshold(truth, expected, probability, threshold), oracle)

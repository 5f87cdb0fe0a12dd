"""Scores inside held-out sections, with their lower bounds."""

import numpy as np
import pytest

from stmsi._core.metrics.intensity import pearson
from stmsi._core.metrics.presence import auroc
from stmsi._core.metrics.reliability import auroc_inside, mean_and_error, pearson_inside

UNITS = np.repeat([3, 7, 9], 60)


def _noise_with_levels(n=40, seed=0):
    """Noise inside sections, whose levels differ in truth and prediction alike."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 3, (3, n))[np.unique(UNITS, return_inverse=True)[1]]
    return level + rng.normal(size=(180, n)), level + rng.normal(size=(180, n))


def test_levels_between_sections_are_no_skill():
    truth, prediction = _noise_with_levels()
    assert pearson(truth, prediction).mean() > 0.7
    mean, lower, k = pearson_inside(truth, prediction, UNITS)
    assert abs(mean.mean()) < 0.05
    assert (lower > 0.1).mean() <= 0.05
    assert (k == 3).all()
    area, least = auroc_inside((truth > 0).astype(float), prediction, UNITS)
    assert abs(np.nanmean(area) - 0.5) < 0.05
    assert (least > 0.6).mean() <= 0.05


def test_they_are_means_over_sections():
    truth, prediction = _noise_with_levels(3)
    prediction += truth
    by_hand = np.stack([pearson(truth[u == UNITS], prediction[u == UNITS]) for u in (3, 7, 9)])
    expected = mean_and_error(by_hand)
    for found, wanted in zip(
        pearson_inside(truth, prediction, UNITS), (expected[0], expected[3], expected[2]), strict=True
    ):
        np.testing.assert_allclose(found, wanted)
    present = (truth > truth.mean(axis=0)).astype(float)
    by_hand = np.stack([auroc(present[u == UNITS], prediction[u == UNITS]) for u in (3, 7, 9)])
    np.testing.assert_allclose(auroc_inside(present, prediction, UNITS)[0], mean_and_error(by_hand)[0])


def test_a_constant_prediction_counts_as_no_skill_and_a_constant_truth_not_at_all():
    truth, prediction = _noise_with_levels(3)
    prediction += truth
    prediction[UNITS == 7, 0] = 1.0
    truth[:, 1] = 2.0
    prediction[:, 2] = 1.0
    mean, _, k = pearson_inside(truth, prediction, UNITS)
    others = [pearson(truth[u == UNITS], prediction[u == UNITS])[0] for u in (3, 9)]
    assert mean[0] == pytest.approx(sum(others) / 3)
    assert np.isnan(mean[1:]).all()
    assert k.tolist() == [3, 0, 0]


def test_single_samples_are_scored_together():
    """Bulk data: every line is a section of its own."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 2))
    prediction = truth * [1, 0] + rng.normal(size=(20, 2)) * 0.5
    mean, lower, k = pearson_inside(truth, prediction, np.arange(20))
    np.testing.assert_allclose(mean, pearson(truth, prediction))
    assert (lower < mean).all()
    assert lower[0] > 0.5 > lower[1]
    assert (k == 0).all()
    area, least = auroc_inside((truth > 0).astype(float), prediction, np.arange(20))
    assert area[0] > 0.8
    assert area[0] - least[0] == pytest.approx(
        1.2816 * np.sqrt(21 / (12 * (truth[:, 0] > 0).sum() * (truth[:, 0] <= 0).sum())), rel=1e-3
    )

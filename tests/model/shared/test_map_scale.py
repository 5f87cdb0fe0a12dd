"""From a map, zeros included, to the intensity given presence."""

import numpy as np
import pytest

from stmsi._core.learning.shared_ridge import LEAST_SLOPE, HeldOutTruth
from stmsi.model.shared._map_scale import LEAST_PROBABILITY, MapScale


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 400)
    Y = np.maximum(rng.normal(2, 1, (1200, 3)), 0)
    Y[:50, 1] = np.nan
    return Y, groups, HeldOutTruth.of(Y, groups, groups)


def test_probability_times_intensity_is_the_map(measured):
    Y, _, _ = measured
    scale = MapScale(np.nanmean(Y, axis=0), np.nanmax(Y, axis=0), np.ones(3))
    rng = np.random.default_rng(1)
    values, p = rng.uniform(0.1, 4, (30, 3)), rng.uniform(LEAST_PROBABILITY, 1, (30, 3))
    np.testing.assert_allclose(p * scale.given_presence(values, p), values)


def test_the_map_deviates_from_the_mean_as_far_as_held_out_spots_bear_out(measured):
    Y, _, truth = measured
    held_out = 3 * (Y - np.nanmean(Y, axis=0)) + np.nanmean(Y, axis=0)
    scale = MapScale.fit(Y, held_out, truth)
    np.testing.assert_allclose(scale.slope, 1 / 3, rtol=0.01)
    np.testing.assert_allclose(scale.mean, np.nanmean(Y, axis=0))
    np.testing.assert_allclose(scale.largest, np.nanmax(Y, axis=0))
    known = ~np.isnan(Y)
    np.testing.assert_allclose(scale.given_presence(held_out, np.ones(Y.shape))[known], Y[known], atol=0.05)


def test_noise_is_drawn_in_to_the_mean(measured):
    Y, _, truth = measured
    scale = MapScale.fit(Y, np.random.default_rng(2).normal(2, 1, Y.shape), truth)
    assert (scale.slope < LEAST_SLOPE + 0.05).all()


def test_maps_have_bounds(measured):
    Y, _, _ = measured
    scale = MapScale(np.nanmean(Y, axis=0), np.nanmax(Y, axis=0), np.ones(3))
    far = np.array([[-1e6] * 3, [1e6] * 3])
    got = scale.given_presence(far, np.ones((2, 3)))
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1], 1.5 * np.nanmax(Y, axis=0))


def test_a_small_probability_does_not_blow_the_intensity_up(measured):
    scale = MapScale(np.ones(3), np.full(3, 5.0), np.ones(3))
    values = np.full((2, 3), 2.0)
    got = scale.given_presence(values, np.array([[0.0] * 3, [1e-9] * 3]))
    np.testing.assert_allclose(got, 2.0 / LEAST_PROBABILITY)


def test_held_out_predictions_are_drawn_in_to_what_their_fold_knows(measured):
    Y, groups, truth = measured
    scale = MapScale(np.nanmean(Y, axis=0), np.nanmax(Y, axis=0), np.zeros(3))
    got = scale.given_presence(np.full(Y.shape, 9.0), np.ones(Y.shape), truth)
    for g in range(3):
        np.testing.assert_allclose(got[groups == g], np.tile(np.nanmean(Y[groups != g], axis=0), (400, 1)), rtol=1e-5)


def test_a_metabolite_that_is_never_present_stays_0():
    Y, groups = np.zeros((60, 2)), np.arange(60) % 3
    Y[:, 1] = np.random.default_rng(0).random(60)
    truth = HeldOutTruth.of(Y, groups, groups)
    scale = MapScale.fit(Y, Y + 0.01, truth)
    assert np.isfinite(scale.slope).all()
    np.testing.assert_array_equal(scale.given_presence(Y + 0.5, np.full(Y.shape, 0.5))[:, 0], 0)

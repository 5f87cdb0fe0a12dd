import numpy as np
import pytest

from stmsi._core.chemistry.mass_annotation import false_discovery_rate, match_masses, nearest_error


def test_all_pairs_within_the_window_are_found():
    rng = np.random.default_rng(0)
    mz, ions = rng.uniform(100, 101, 60), rng.uniform(100, 101, 400)
    mz[7] = np.nan
    measured, ion, error = match_masses(mz, ions, 100)
    found = set(zip(measured.tolist(), ion.tolist(), strict=True))
    expected = {(i, j) for i in range(60) for j in range(400) if abs(mz[i] - ions[j]) <= 100e-6 * ions[j]}
    assert found == expected
    assert len(found) == len(measured) > 300
    np.testing.assert_allclose(error, (mz[measured] / ions[ion] - 1) * 1e6, rtol=1e-6)
    nearest = nearest_error(mz, ions, 100)
    for j in range(400):
        own = [abs(mz[i] / ions[j] - 1) * 1e6 for i, k in expected if k == j]
        assert nearest[j] == pytest.approx(min(own), rel=1e-6) if own else np.isinf(nearest[j])


def test_nothing_to_find():
    for mz, ions in (([], [100.0]), ([100.0], []), ([np.nan], [100.0])):
        measured, ion, _ = match_masses(np.array(mz), np.array(ions), 5)
        assert len(measured) == len(ion) == 0


def test_the_rate_is_that_of_the_formula():
    target, decoy = np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.5, 1.5, 2.0, 9.0])
    rate = false_discovery_rate(target, decoy, 10, 100)
    # a tenth of the decoys that are at most as bad, and one, over the targets that are at most as bad
    by_hand = []
    for e in target:
        later = [t for t in target if t >= e]
        by_hand.append(min(((decoy <= t).sum() / 10 + 1) / (target <= t).sum() for t in later))
    assert rate == pytest.approx(by_hand)
    assert rate[0] == pytest.approx(1.3 / 4)


def test_rates_grow_with_the_error_and_stay_shares():
    rng = np.random.default_rng(1)
    target, decoy = rng.exponential(1, 50), rng.uniform(0, 5, 5000)
    rate = false_discovery_rate(target, decoy, 60, 6000)
    assert (np.diff(rate[np.argsort(target)]) >= 0).all()
    assert rate.min() > 0
    assert rate.max() <= 1
    assert np.isnan(false_discovery_rate(target, decoy[:0], 60, 0)).all()


def test_random_masses_are_called_false():
    rng = np.random.default_rng(2)
    target, decoy = rng.uniform(0, 5, 200), rng.uniform(0, 5, 200 * 80)
    assert np.median(false_discovery_rate(target, decoy, 1000, 80_000)) > 0.7

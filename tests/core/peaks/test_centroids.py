import numpy as np
import pytest

from stmsi._core.peaks.centroids import gaussian_centres


def _bins(step, phase, n=31):
    """Offsets of bins from a summit, and the heights of Gaussians (full width 1) with the centre `phase` beside it."""
    offset = (np.arange(n) - n // 2) * step
    return np.tile(offset, (len(phase), 1)), np.exp(-0.5 * ((offset - phase[:, None]) * 2.3548) ** 2)


@pytest.mark.parametrize("step", [0.05, 0.2, 0.4])
def test_a_gaussian_has_its_centre_wherever_its_bins_lie(step):
    phase = np.linspace(-0.5, 0.5, 11) * step
    np.testing.assert_allclose(gaussian_centres(*_bins(step, phase), np.ones(11)), phase, atol=1e-6)


def test_fit_ends_before_a_neighbour():
    offset, height = _bins(0.2, np.array([0.03]))
    beside = np.exp(-0.5 * ((offset - 1.2) * 2.3548) ** 2)
    far = gaussian_centres(offset, height + 5 * beside, np.ones(1), (np.array([np.inf]), np.array([0.45])))
    assert abs(far[0] - 0.03) < 0.02


def test_few_bins_have_their_centre_of_mass():
    nan = np.nan
    offset = np.array([[nan, 0.0, nan], [nan, 0.0, 0.5], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    height = np.array([[1.0, 4.0, 1.0], [0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(gaussian_centres(offset, height, np.ones(4)), [0, 0.125, 0, 0], atol=1e-12)

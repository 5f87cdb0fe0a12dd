import numpy as np
import pytest

from stmsi._core.peaks.profile_axis import (
    bin_spacing,
    common_profile,
    fill_gaps,
    fine_tolerance,
    looks_like_profile,
    windows_of_bins,
)
from stmsi._core.spectra.common_ions import cells_between

AXIS = np.exp(np.arange(np.log(200), np.log(400), 20e-6))
PEAKS = np.array([210.05, 250.123, 333.3333, 390.9])


def _intensity(axis):
    return sum(100 * np.exp(-0.5 * ((axis - m) / (m / 10_000 / 2.355)) ** 2) for m in PEAKS)


def _cells(spectra):
    mz = np.concatenate([m for m, _ in spectra])
    row = np.repeat(np.arange(len(spectra)), [len(m) for m, _ in spectra])
    spacing = bin_spacing(mz, row)
    cells = cells_between(mz.min(), mz.max(), fine_tolerance(spacing, mz.min(), mz.max()), "ppm")
    for m, y in spectra:
        seen = y > 0
        at = np.floor(np.log(m[seen]) / cells.width).astype(int) - cells.first
        np.add.at(cells.number, at, 1)
        np.add.at(cells.total, at, y[seen])
        for own, join, new in ((cells.low, np.minimum, m), (cells.high, np.maximum, m), (cells.top, np.maximum, y)):
            join.at(own, at, new[seen])
    return cells, spacing


@pytest.mark.parametrize("axis", [AXIS, np.linspace(200, 400, 20_000), np.linspace(200**0.5, 400**0.5, 20_000) ** 2])
def test_spacing_of_bins(axis):
    spacing = bin_spacing(axis)
    np.testing.assert_allclose(spacing.at(axis[100:-100]), np.gradient(axis)[100:-100], rtol=0.03)
    np.testing.assert_allclose(np.diff(spacing.position(axis)), 1, rtol=0.05)
    assert looks_like_profile(axis)
    stored = axis[_intensity(axis) > 1e-9]  # only around the peaks
    assert looks_like_profile(stored)
    filled, place = fill_gaps(stored, bin_spacing(stored))
    np.testing.assert_array_equal(filled[place], stored)
    assert len(filled) > 2 * len(stored)


def test_lists_of_centroids_are_no_profiles():
    rng = np.random.default_rng(0)
    mz = np.sort(rng.uniform(100, 110, 500))
    assert not looks_like_profile(mz)
    assert not looks_like_profile(np.tile(mz[:20], 20), np.repeat(np.arange(20), 20))
    assert not looks_like_profile(np.arange(100.0, 1000.0))
    assert bin_spacing(np.array([100.0])) is None


def test_windows_hold_a_bin_and_do_not_meet():
    mz = np.array([210.05, 250.123, 250.14, 390.9])
    low, high = mz * (1 - 1e-6), mz * (1 + 1e-6)
    low, high = windows_of_bins(mz, low, high, bin_spacing(AXIS))
    assert (np.searchsorted(AXIS, high, "right") > np.searchsorted(AXIS, low)).all()
    assert (low[1:] > high[:-1]).all()
    wide, _ = windows_of_bins(mz, low, high, bin_spacing(AXIS), np.full(4, 1.0))
    np.testing.assert_allclose((mz - wide)[[0, 1, 3]], 0.5)


def test_same_bins_stay_the_axis_though_zeros_are_not_stored():
    kept = _intensity(AXIS) > 1
    cells, spacing = _cells([(AXIS[kept], _intensity(AXIS)[kept])] * 3)
    axis, total = common_profile(cells, spacing, mean=True)
    np.testing.assert_allclose(axis, AXIS[kept], rtol=1e-9)
    np.testing.assert_allclose(total, 3 * _intensity(AXIS)[kept])
    _, top = common_profile(cells, spacing, mean=False)
    np.testing.assert_allclose(top, _intensity(AXIS)[kept])


@pytest.mark.parametrize("shifts", [np.linspace(-10, 10, 15), [0.0, 10.0]], ids=["jitter", "two axes"])
def test_shifted_bins_make_no_pattern(shifts):
    axes = [AXIS * (1 + shift * 1e-6) for shift in shifts]
    axis, total = common_profile(*_cells([(a, 50 + _intensity(a)) for a in axes]), mean=True)
    inside = slice(5, -5)
    expected = len(axes) * (50 + _intensity(axis))
    assert np.abs(total - expected)[inside].max() < 0.15 * len(axes) * 100
    flat = _intensity(axis)[inside] < 1e-6
    np.testing.assert_allclose(total[inside][flat], 50 * len(axes), rtol=0.06)

import zlib

import numpy as np
import pytest

from stmsi._core.spectra.spectrum_arrays import (
    decode,
    mz_from_names,
    mz_labels,
    reference_mz,
    sorted_spectrum,
    stack_rows,
    sum_windows,
    windows,
)

REDUCERS = {"sum": np.sum, "max": np.max, "mean": np.mean}


def _slow_windows(mz, intensity, low, high, reduce):
    intensity = intensity.astype(np.float64)
    out = []
    for lo, hi in zip(low, high, strict=True):
        inside = intensity[(mz >= lo) & (mz <= hi)]
        out.append(REDUCERS[reduce](inside) if inside.size else 0.0)
    return np.array(out)


@pytest.mark.parametrize("reduce", ["sum", "max", "mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_sum_windows_equals_the_slow_sum_for_overlapping_windows(reduce, dtype, order):
    rng = np.random.default_rng(0)
    mz = np.sort(rng.uniform(100, 110, 200))
    intensity = rng.integers(0, 1000, 200).astype(dtype)
    low = rng.uniform(98, 111, 80)
    low = np.sort(low) if order == "ascending" else low
    high = low + rng.uniform(0, 4, 80)
    result = sum_windows(mz, intensity, low, high, reduce)
    np.testing.assert_allclose(result, _slow_windows(mz, intensity, low, high, reduce), rtol=1e-12)


def test_both_ends_belong_to_a_window():
    assert sum_windows([1.0, 2.0, 3.0], [1.0, 10.0, 100.0], [1.0, 2.0], [2.0, 3.0]).tolist() == [11.0, 110.0]


def test_a_window_without_intensity_is_exactly_zero_beside_a_huge_peak():
    mz, intensity = [100.0, 101.0, 102.0], [1e16, 0.0, 3.0]
    assert sum_windows(mz, intensity, [100.5, 101.5], [101.5, 102.5]).tolist() == [0.0, 3.0]


def test_sum_windows_of_an_empty_spectrum_and_of_no_windows():
    assert sum_windows([], [], [1.0, 2.0], [2.0, 3.0]).tolist() == [0.0, 0.0]
    assert sum_windows([1.0], [1.0], [], []).shape == (0,)


def test_windows_in_ppm_and_da():
    low, high = windows([500.0], 10, "ppm")
    assert (low[0], high[0]) == pytest.approx((499.995, 500.005), abs=1e-9)
    low, high = windows([500.0], 0.25, "Da")
    assert (low[0], high[0]) == (499.75, 500.25)


def test_sorted_spectrum_sorts_both_and_leaves_sorted_ones_alone():
    mz, intensity = sorted_spectrum(np.array([3.0, 1.0, 2.0], np.float32), np.array([30, 10, 20]))
    assert mz.dtype == np.float64
    assert mz.tolist() == [1.0, 2.0, 3.0]
    assert intensity.tolist() == [10, 20, 30]
    already = np.array([1.0, 2.0])
    assert sorted_spectrum(already, already)[0] is already


def test_reference_mz_joins_close_peaks_and_filters_rare_ones():
    mz = np.array([200.0, 300.0, 200.0006, 300.0003, 450.0, 200.0002])
    ions = reference_mz(mz, [0, 0, 1, 1, 1, 2], 5.0, min_frequency=0.5)
    np.testing.assert_allclose(ions.mz, [np.mean([200.0, 200.0006, 200.0002]), 300.00015], rtol=1e-12)
    np.testing.assert_allclose(ions.frequency, [1.0, 2 / 3])
    assert ions.low.tolist() == [200.0, 300.0]
    assert ions.high.tolist() == [200.0006, 300.0003]


def test_reference_mz_counts_a_spectrum_once_and_empty_spectra_too():
    ions = reference_mz([100.0, 100.0001, 100.0002], [0, 0, 0], 5.0, n_spectra=4)
    assert ions.frequency.tolist() == [0.25]
    assert reference_mz([100.0], [0], 5.0, min_frequency=0.25, n_spectra=4).mz.size == 1
    assert reference_mz([100.0], [0], 5.0, min_frequency=0.26, n_spectra=4).mz.size == 0
    assert reference_mz([], [], 5.0).mz.size == 0


@pytest.mark.parametrize(("unit", "tolerance"), [("ppm", 5.0), ("Da", 0.001)])
def test_reference_mz_does_not_chain_and_keeps_every_peak_in_one_ion(unit, tolerance):
    mz = np.arange(200.0, 200.05, 0.0003)  # gaps of 1.5 ppm: one endless run
    ions = reference_mz(mz, np.arange(mz.size), tolerance, unit)
    width = ions.high - ions.low if unit == "Da" else (ions.high / ions.low - 1) * 1e6
    assert ions.mz.size > 1
    assert width.max() <= 2 * tolerance * (1 + 1e-6)
    assert (ions.low[1:] > ions.high[:-1]).all()
    members = sum_windows(mz, np.ones(mz.size), ions.low, ions.high)
    assert members.sum() == mz.size


def test_decode_plain_and_compressed_with_bytes_behind():
    values = np.array([1.5, 2.5, 4.0], dtype="<f8")
    plain, packed = values.tobytes() + b"rest", zlib.compress(values.tobytes()) + b"rest"
    assert decode(plain, np.dtype("<f8"), 3).tolist() == [1.5, 2.5, 4.0]
    assert decode(packed, np.dtype("<f8"), 3, compressed=True).tolist() == [1.5, 2.5, 4.0]
    assert decode(b"", np.dtype("<f8"), 0, compressed=True).size == 0


def test_decode_refuses_short_and_damaged_bytes():
    packed = zlib.compress(np.arange(100.0).tobytes())
    with pytest.raises(ValueError, match="100 values of 8 bytes expected"):
        decode(packed[: len(packed) // 2], np.dtype("<f8"), 100, compressed=True)
    with pytest.raises(ValueError, match="zlib stream is damaged"):
        decode(b"no zlib at all", np.dtype("<f8"), 1, compressed=True)
    with pytest.raises(ValueError, match="2 values of 4 bytes expected, 7 bytes found"):
        decode(b"1234567", np.dtype("<f4"), 2)


def test_mz_labels_take_as_many_decimals_as_needed():
    assert mz_labels([100.0, 200.5]) == ["mz_100.0000", "mz_200.5000"]
    assert mz_labels([100.000001, 100.000002]) == ["mz_100.000001", "mz_100.000002"]
    assert mz_labels([100.0, 100.0]) == ["mz_100.0000", "mz_100.0000"]


def test_mz_from_names():
    names = [
        "104.107",
        "mz-426.928863525391",
        "mz_426.92",
        "m/z 426.93",
        "X88.5",
        "104",
        "PC(34:1)",
        "lactate",
        "18:1/16:0",
    ]
    found = mz_from_names(names)
    assert found[:6].tolist() == [104.107, 426.928863525391, 426.92, 426.93, 88.5, 104.0]
    assert np.isnan(found[6:]).all()


def test_stack_rows_drops_zeros_and_keeps_empty_rows():
    rows = np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0]])
    X = stack_rows(iter(rows), 3)
    assert X.dtype == np.float32
    assert X.nnz == 3
    assert X.toarray().tolist() == rows.tolist()

import zlib

import numpy as np
import pytest

from stmsi._core.spectra.spectrum_arrays import (
    decode,
    mz_from_names,
    mz_labels,
    sorted_spectrum,
    windows,
)


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

import numpy as np
import pytest

from stmsi._core.parallel import ordered_map
from stmsi._core.spectra.common_ions import IonCounts, cells_between, find_runs, mz_range, reference_ions
from stmsi._core.spectra.extraction import (
    BAD_INTENSITY,
    BAD_MZ,
    Chunk,
    FaultError,
    Windows,
    Workspace,
    disjoint_layers,
    sum_bins_of,
    sum_windows_of,
)

REDUCERS = {"sum": np.sum, "max": np.max, "mean": np.mean}


@pytest.fixture(autouse=True, params=["compiled", pytest.param("numpy", marks=pytest.mark.once)])
def engine(request, monkeypatch):
    monkeypatch.setenv("STMSI_COMPILED", "1" if request.param == "compiled" else "0")
    return request.param


def _chunk(spectra, mz_type="<f8", intensity_type="<f4"):
    """Spectra one after the other in one buffer, m/z first, at odd places."""
    buffer, at = bytearray(b"\0\0\0"), ([], [])
    for arrays in spectra:
        for places, values, kind in zip(at, arrays, (mz_type, intensity_type), strict=True):
            places.append(len(buffer))
            buffer += np.asarray(values, kind).tobytes() + b"\0"
    raw = np.frombuffer(bytes(buffer), np.uint8)
    length = np.array([len(mz) for mz, _ in spectra])
    return Chunk(raw, np.array(at[0]), raw, np.array(at[1]), length, np.dtype(mz_type), np.dtype(intensity_type))


def _spectra(rng, n, peaks):
    return [(np.sort(rng.uniform(100, 200, k)), rng.integers(0, 9, k)) for k in rng.integers(0, peaks, n)]


def _dense(rows, n):
    out = np.zeros((len(rows.counts), n))
    out[np.repeat(np.arange(len(rows.counts)), rows.counts), rows.indices] = rows.data
    return out


def _slow_windows(mz, intensity, low, high, reduce):
    inside = [intensity[(mz >= lo) & (mz <= hi)] for lo, hi in zip(low, high, strict=True)]
    return np.array([REDUCERS[reduce](values) if values.size else 0.0 for values in inside])


def _sum_windows(spectrum, low, high):
    """Sums in windows of one spectrum."""
    column = np.arange(len(low), dtype=np.int32)
    windows = Windows(np.array(low, float), np.array(high, float), column)
    return _dense(sum_windows_of(_chunk([spectrum], "<f8", "<f8"), windows, "sum", Workspace(9, 9)), len(low))[
        0
    ].tolist()


@pytest.mark.once
@pytest.mark.parametrize("peaks", [5, 60, 3000])
@pytest.mark.parametrize("width", [1e-6, 0.05, 0.6, 20.0])
@pytest.mark.parametrize("reduce", ["sum", "max", "mean"])
def test_windows_equal_those_of_one_spectrum(peaks, width, reduce):
    rng = np.random.default_rng(peaks)
    spectra = _spectra(rng, 12, peaks)
    for n in (1, 40, 200):
        centre = np.sort(rng.uniform(90, 210, n))
        centre[: n // 2] = np.sort(rng.choice(np.concatenate([mz for mz, _ in spectra] + [[150.0]]), n // 2))
        centre.sort()
        low, high = centre - width, centre + width
        column = rng.permutation(n).astype(np.int32)
        rows = sum_windows_of(_chunk(spectra), Windows(low, high, column), reduce, Workspace(peaks, 12 * n))
        expected = np.zeros((12, n))
        expected[:, column] = [_slow_windows(mz, i, low, high, reduce) for mz, i in spectra]
        np.testing.assert_allclose(_dense(rows, n), expected, rtol=1e-6)
        assert (rows.data != 0).all()
        np.testing.assert_allclose(rows.tic, [i.sum() for _, i in spectra])


def test_both_ends_belong_to_a_window():
    assert _sum_windows(([1.0, 2.0, 3.0], [1.0, 10.0, 100.0]), [1.0, 2.0], [2.0, 3.0]) == [11.0, 110.0]


def test_a_window_without_intensity_is_exactly_zero_beside_a_huge_peak():
    assert _sum_windows(([100.0, 101.0, 102.0], [1e16, 0.0, 3.0]), [100.5, 101.5], [101.5, 102.5]) == [0.0, 3.0]


def test_windows_of_an_empty_spectrum_and_no_windows():
    assert _sum_windows(([], []), [1.0, 2.0], [2.0, 3.0]) == [0.0, 0.0]
    assert _sum_windows(([1.0], [1.0]), [], []) == []


@pytest.mark.parametrize("mz_type", ["<f4", "<f8"])
@pytest.mark.parametrize("intensity_type", ["<f4", "<f8", "<i4", "<i8"])
def test_number_types_and_bins(mz_type, intensity_type):
    rng = np.random.default_rng(0)
    axis = np.linspace(100, 200, 50)
    spectra = [(axis, rng.integers(0, 4, 50)) for _ in range(5)]
    chunk, work = _chunk(spectra, mz_type, intensity_type), Workspace(50, 250)
    start, stop = np.array([0, 3, 10, 7]), np.array([1, 3, 50, 9])
    column = np.arange(4, dtype=np.int32)
    for order in (np.empty(0, np.intp), rng.permutation(50)):
        rows = sum_bins_of(chunk, order, start, stop, column, "sum", work)
        values = np.array([i for _, i in spectra])
        values = values[:, order] if order.size else values
        expected = [[v[a:b].sum() for a, b in zip(start, stop, strict=True)] for v in values]
        np.testing.assert_array_equal(_dense(rows, 4), expected)


@pytest.mark.parametrize("reduce", ["sum", "max", "mean"])
def test_bins_equal_those_of_one_spectrum(reduce):
    rng = np.random.default_rng(1)
    start = np.sort(rng.integers(0, 300, 70))
    stop = start + rng.integers(0, 9, 70)  # overlapping ones, and some without a bin
    column, spectra = rng.permutation(70).astype(np.int32), rng.integers(0, 5, (20, 310))
    chunk, work = _chunk([(np.arange(1.0, 311), values) for values in spectra]), Workspace(310, 20 * 70)
    rows = sum_bins_of(chunk, np.empty(0, np.intp), start, stop, column, reduce, work)
    expected = np.zeros((20, 70))
    for c, a, b in zip(column, start, stop, strict=True):
        expected[:, c] = REDUCERS[reduce](spectra[:, a:b], axis=1) if b > a else 0.0
    np.testing.assert_allclose(_dense(rows, 70), expected, rtol=1e-6)
    np.testing.assert_array_equal(rows.tic, spectra.sum(axis=1))


@pytest.mark.parametrize(
    ("mz", "intensity", "fault"),
    [([0.0, 5.0], [1, 1], BAD_MZ), ([np.nan, 5.0], [1, 1], BAD_MZ), ([np.inf, 5.0], [1, 1], BAD_MZ)]
    + [([1.0, 5.0], [1, v], BAD_INTENSITY) for v in (-1, np.nan, np.inf)],
)
def test_faults_name_the_row(mz, intensity, fault):
    chunk = _chunk([([], []), ([1.0], [1.0]), (mz, intensity), ([1.0], [-1.0])])
    windows = Windows(np.array([1.0]), np.array([2.0]), np.zeros(1, np.int32))
    with pytest.raises(FaultError) as error:
        sum_windows_of(chunk, windows, "sum", Workspace(2, 4))
    assert (error.value.row, error.value.fault) == (2, fault)


def test_layers_do_not_overlap():
    rng = np.random.default_rng(0)
    low = np.sort(rng.uniform(0, 10, 50))
    high = low + 0.7
    layers = disjoint_layers(low, high)
    assert sorted(np.concatenate(layers).tolist()) == list(range(50))
    for layer in layers:
        assert (low[layer][1:] > high[layer][:-1]).all()


def _common(halves, tolerance, unit, n_spectra, min_frequency=0.0):
    """Ions of spectra that are counted in several chunks, the counts of all, and which were kept."""
    work, limits = Workspace(300, 1), np.array([np.inf, -np.inf])
    for half in halves:
        mz_range(_chunk(half), work, limits)
    parts = [cells_between(*limits, tolerance, unit) for _ in halves]
    for cells, half in zip(parts, halves, strict=True):
        cells.fill(_chunk(half), work)
    for other in parts[1:]:
        parts[0].add(other)
    runs = find_runs(parts[0], tolerance, unit)
    counts = IonCounts.empty(runs.n_ions)
    counts.fill(_chunk([spectrum for half in halves for spectrum in half]), work, runs)
    ions, kept = reference_ions(counts, n_spectra, min_frequency)
    return ions, counts, kept


@pytest.mark.parametrize(("tolerance", "unit"), [(5.0, "ppm"), (300.0, "ppm"), (5000.0, "ppm"), (0.3, "Da")])
def test_ions_equal_those_of_the_sorted_peaks(tolerance, unit, reference_mz):
    spectra = _spectra(np.random.default_rng(1), 30, 80)
    found, counts, kept = _common([spectra[:11], spectra[11:]], tolerance, unit, 30, 0.1)
    mz = np.concatenate([m[i > 0] for m, i in spectra])
    owner = np.concatenate([np.full((i > 0).sum(), n) for n, (_, i) in enumerate(spectra)])
    expected = reference_mz(mz, owner, tolerance, unit, min_frequency=0.1, n_spectra=30)
    for own, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-12)
    assert counts.intensity.sum() == sum(i.sum() for _, i in spectra)
    assert (counts.top[kept] <= counts.intensity[kept]).all()


def test_ions_join_close_peaks_and_rare_ones_are_left_out():
    spectra = [([200.0, 300.0], [1, 1]), ([200.0006, 300.0003, 450.0], [1, 1, 1]), ([200.0002], [1])]
    ions, _, _ = _common([spectra], 5.0, "ppm", 3, 0.5)
    np.testing.assert_allclose(ions.mz, [np.mean([200.0, 200.0006, 200.0002]), 300.00015], rtol=1e-12)
    np.testing.assert_allclose(ions.frequency, [1.0, 2 / 3])
    assert ions.low.tolist() == [200.0, 300.0]
    assert ions.high.tolist() == [200.0006, 300.0003]


def test_ions_count_a_spectrum_once_and_empty_spectra_too():
    ions, _, _ = _common([[([100.0, 100.0001, 100.0002], [1, 1, 1])]], 5.0, "ppm", 4)
    assert ions.frequency.tolist() == [0.25]
    assert _common([[([100.0], [1])]], 5.0, "ppm", 4, 0.25)[0].mz.size == 1
    assert _common([[([100.0], [1])]], 5.0, "ppm", 4, 0.26)[0].mz.size == 0
    assert reference_ions(IonCounts.empty(0), 3, 0.0)[0].mz.size == 0


@pytest.mark.parametrize(("unit", "tolerance"), [("ppm", 5.0), ("Da", 0.001)])
def test_ions_do_not_chain_and_every_peak_is_in_one(unit, tolerance):
    mz = np.arange(200.0, 200.05, 0.0003)  # gaps of 1.5 ppm: one endless run
    ions, counts, _ = _common([[([value], [1]) for value in mz]], tolerance, unit, mz.size)
    width = ions.high - ions.low if unit == "Da" else (ions.high / ions.low - 1) * 1e6
    assert ions.mz.size > 1
    assert width.max() <= 2 * tolerance * (1 + 1e-6)
    assert (ions.low[1:] > ions.high[:-1]).all()
    assert counts.peaks.sum() == mz.size


def test_a_grid_too_fine_is_refused():
    with pytest.raises(ValueError, match="make it larger or pass mz="):
        cells_between(100.0, 2000.0, 1e-4, "ppm")


def test_results_come_in_order_and_errors_end_it():
    assert list(ordered_map(lambda v: v * 2, range(50), 4)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda v: 1 // v, [2, 1, 0, 1], 2))

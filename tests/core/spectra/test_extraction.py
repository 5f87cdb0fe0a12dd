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
from stmsi._core.spectra.spectrum_arrays import reference_mz, sum_windows


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def engine(request, monkeypatch):
    monkeypatch.setenv("STMSI_COMPILED", "1" if request.param == "compiled" else "0")


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
        expected[:, column] = [sum_windows(mz, i, low, high, reduce) for mz, i in spectra]
        np.testing.assert_allclose(_dense(rows, n), expected, rtol=1e-6)
        assert (rows.data != 0).all()
        np.testing.assert_allclose(rows.tic, [i.sum() for _, i in spectra])


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


@pytest.mark.parametrize(("tolerance", "unit"), [(5.0, "ppm"), (300.0, "ppm"), (5000.0, "ppm"), (0.3, "Da")])
def test_ions_equal_those_of_the_sorted_peaks(tolerance, unit):
    spectra = _spectra(np.random.default_rng(1), 30, 80)
    work, limits = Workspace(80, 1), np.array([np.inf, -np.inf])
    mz_range(_chunk(spectra), work, limits)
    parts = [cells_between(*limits, tolerance, unit) for _ in range(2)]
    for cells, half in zip(parts, (spectra[:11], spectra[11:]), strict=True):
        cells.fill(_chunk(half), work)
    parts[0].add(parts[1])
    runs = find_runs(parts[0], tolerance, unit)
    counts = IonCounts.empty(runs.n_ions)
    counts.fill(_chunk(spectra), work, runs)
    found, kept = reference_ions(counts, 30, 0.1)
    mz = np.concatenate([m[i > 0] for m, i in spectra])
    owner = np.concatenate([np.full((i > 0).sum(), n) for n, (_, i) in enumerate(spectra)])
    expected = reference_mz(mz, owner, tolerance, unit, min_frequency=0.1, n_spectra=30)
    for own, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-12)
    assert counts.intensity.sum() == sum(i.sum() for _, i in spectra)
    assert (counts.top[kept] <= counts.intensity[kept]).all()


def test_a_grid_too_fine_is_refused():
    with pytest.raises(ValueError, match="make it larger or pass mz="):
        cells_between(100.0, 2000.0, 1e-4, "ppm")


def test_results_come_in_order_and_errors_end_it():
    assert list(ordered_map(lambda v: v * 2, range(50), 4)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda v: 1 // v, [2, 1, 0, 1], 2))

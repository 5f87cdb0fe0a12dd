import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyimzml.ImzMLWriter import ImzMLWriter

from stmsi._data.sections import msi_section
from stmsi.io import read_imzml
from stmsi.pp import pick_peaks

IONS = np.array([104.107, 300.2, 426.9288, 760.5851])
AXIS = np.linspace(100, 110, 2001)
SUMMITS = np.array([101.003, 104.107, 104.157, 108.5])


@pytest.fixture(autouse=True, params=["compiled", pytest.param("numpy", marks=pytest.mark.once)])
def engine(request, monkeypatch):
    monkeypatch.setenv("STMSI_COMPILED", "1" if request.param == "compiled" else "0")


def _centroids(path, *, shift=lambda t: 0.0, n=60, **options):
    """Four ions in most spectra, among 20 peaks of noise in each; `shift` is the mass error in ppm over time, 0 to 1."""
    rng = np.random.default_rng(0)
    with ImzMLWriter(str(path), mode="processed", **options) as writer:
        for x in range(n):
            ions = IONS[rng.random(4) < 0.9] * (1 + (shift(x / (n - 1)) + rng.uniform(-1, 1)) * 1e-6)
            mz = np.concatenate([ions, rng.uniform(100, 900, 20)])
            order = np.argsort(mz)
            writer.addSpectrum(
                mz[order], np.append(np.full(len(ions), 50.0), rng.exponential(5, 20))[order], (x + 1, 1)
            )
    return path


def _profile(rng, heights):
    peaks = heights[:, None] * np.exp(-(((AXIS - SUMMITS[:, None]) / 0.01) ** 2))
    return np.abs(peaks.sum(axis=0) + rng.normal(0, 1, AXIS.size))


def _continuous(path, n=40, rare=None):
    rng = np.random.default_rng(1)
    with ImzMLWriter(str(path), mode="continuous", spec_type="profile") as writer:
        for x in range(n):
            heights = np.array([40.0, 30.0, 20.0, 25.0])
            heights[3] = heights[3] if rare is None or x == rare else 0
            writer.addSpectrum(AXIS, _profile(rng, heights), (x + 1, 1))
    return path


def test_centroids_become_recurring_ions(tmp_path):
    path = _centroids(tmp_path / "a.imzML")
    ions = pick_peaks(path, min_frequency=0.5)
    np.testing.assert_allclose(ions["mz"], IONS, rtol=1e-6)
    assert ions["frequency"].between(0.7, 1).all()
    assert (ions["snr"] > 10).all()
    assert ions.index.tolist()[0] == "mz_104.1070"
    table = read_imzml(path, mz=ions, pixel_size=10).tables["msi"]
    np.testing.assert_allclose(np.asarray((table.X > 0).mean(axis=0)).ravel(), ions["frequency"])
    np.testing.assert_allclose(np.asarray(table.X.mean(axis=0)).ravel(), ions["intensity"], rtol=1e-5)
    assert "frequency" in table.var
    with pytest.raises(ValueError, match=r"no ion has a signal-to-noise ratio of 3 and occurs in 100.00%"):
        pick_peaks(path, min_frequency=1.0)


@pytest.mark.parametrize("spectrum", ["mean", "skyline"])
def test_noise_beside_an_ion_does_not_make_two_of_it(tmp_path, spectrum):
    # four peaks of noise make a run of 15 ppm, which is cut in the middle of the ion
    beside = {0: -7.0, 1: -5.0, 2: 5.0, 3: 8.0}
    spread = np.linspace(-1.5, 1.5, 40)[np.random.default_rng(0).permutation(40)]
    with ImzMLWriter(str(tmp_path / "a.imzML"), mode="processed") as writer:
        for x, ppm in enumerate(spread):
            peaks = {500 * (1 + ppm * 1e-6): 50.0} | ({500 * (1 + beside[x] * 1e-6): 1.0} if x in beside else {})
            mz, intensity = zip(*sorted(peaks.items()), strict=True)
            writer.addSpectrum(mz, intensity, (x + 1, 1))
    ions = pick_peaks(tmp_path / "a.imzML", spectrum=spectrum, min_frequency=0.05)
    assert ions["frequency"].tolist() == [1.0]
    np.testing.assert_allclose(ions["mz"], 500, rtol=5e-7)
    np.testing.assert_allclose(ions["intensity"], 50, rtol=0.01)


def test_list_does_not_depend_on_threads(tmp_path, monkeypatch):
    path = _centroids(tmp_path / "a.imzML")
    first = pick_peaks(path)
    for threads in (1, 4):
        monkeypatch.setattr("stmsi._imzml.extract.n_threads", lambda n=threads: n)
        pd.testing.assert_frame_equal(pick_peaks(path), first, check_exact=True)


def test_summits_of_a_shared_axis(tmp_path):
    ions = pick_peaks(_continuous(tmp_path / "a.imzML"), snr=10, tolerance=0.01, unit="Da")
    np.testing.assert_allclose(ions["mz"], SUMMITS, atol=0.004)
    assert (ions["frequency"] > 0.9).all()
    np.testing.assert_allclose(ions["intensity"], [40, 30, 20, 25], rtol=0.1)


def test_skyline_shows_what_the_mean_hides(tmp_path):
    path = _continuous(tmp_path / "a.imzML", rare=7)
    options = {"snr": 10, "tolerance": 0.01, "unit": "Da", "min_frequency": 0.0}
    assert len(pick_peaks(path, **options)) == 3
    np.testing.assert_allclose(pick_peaks(path, **options, spectrum="skyline")["mz"], SUMMITS, atol=0.006)


def test_profiles_that_differ_in_mz(tmp_path):
    rng = np.random.default_rng(1)
    with ImzMLWriter(str(tmp_path / "a.imzML"), mode="processed", spec_type="profile") as writer:
        for x in range(40):
            intensity = _profile(rng, np.array([40.0, 30.0, 20.0, 25.0]))
            shown = intensity > 2.5
            writer.addSpectrum(AXIS[shown] * (1 + rng.uniform(-1, 1) * 1e-7), intensity[shown], (x + 1, 1))
    ions = pick_peaks(tmp_path / "a.imzML", snr=30, tolerance=10)
    np.testing.assert_allclose(ions["mz"], SUMMITS, atol=0.004)
    assert (ions["frequency"] > 0.9).all()
    assert len(pick_peaks(tmp_path / "a.imzML", snr=30, tolerance=10, profile=False)) > 20


COARSE = np.exp(np.arange(np.log(500), np.log(560), 20e-6))
LIPIDS = np.array([507.2717, 524.3711, 541.05, 553.3])


def _coarse(path, *, mode="continuous", jitter=0.0, threshold=0.0, shift=lambda t: 0.0, axis=COARSE, n=16):
    """Profiles of resolving power 10,000, their bins moved by `jitter` ppm and their ions by `shift`; low bins not stored."""
    rng = np.random.default_rng(2)
    with ImzMLWriter(str(path), mode=mode, spec_type="profile") as writer:
        for x in range(n):
            mz = axis * (1 + rng.uniform(-1, 1) * jitter * 1e-6)
            ions = LIPIDS[:, None] * (1 + shift(x / (n - 1)) * 1e-6)
            intensity = (200 * np.exp(-0.5 * ((mz - ions) / (ions / 10_000 / 2.355)) ** 2)).sum(axis=0)
            intensity += np.abs(rng.normal(0, 1, mz.size))
            kept = intensity > threshold
            writer.addSpectrum(mz[kept], intensity[kept].astype(np.float32), (x + 1, 1))
    return path


@pytest.mark.parametrize(
    "stored",
    [{}, {"mode": "processed"}, {"mode": "processed", "threshold": 1.0}, {"mode": "processed", "jitter": 10.0}],
    ids=["continuous", "processed", "no low bins", "shifted bins"],
)
def test_ions_do_not_depend_on_how_profiles_are_stored(tmp_path, stored):
    path = _coarse(tmp_path / "a.imzML", **stored)
    ions = pick_peaks(path)
    nearest = np.abs(ions["mz"].to_numpy()[:, None] / LIPIDS - 1).argmin(axis=0)
    np.testing.assert_allclose(ions["mz"].iloc[nearest], LIPIDS, rtol=0.3e-6)
    assert len(ions) <= 8
    np.testing.assert_allclose(ions["peak_width"].iloc[nearest] / LIPIDS, 1e-4, rtol=0.15)
    for mz in (ions, ions["mz"], list(LIPIDS)):  # whatever the reader is given, it finds what was picked
        table = read_imzml(path, mz=mz, pixel_size=10).tables["msi"]
        found = np.asarray((table.X > 0).mean(axis=0)).ravel()
        assert (found[nearest] if len(found) == len(ions) else found).min() == 1
    if stored:
        expected = pick_peaks(_coarse(tmp_path / "b.imzML"))
        at = np.abs(expected["mz"].to_numpy()[:, None] - LIPIDS).argmin(axis=0)
        np.testing.assert_allclose(ions["intensity"].iloc[nearest], expected["intensity"].iloc[at], rtol=0.1)


@pytest.mark.parametrize("step", [3, 20])
def test_calibrants_and_ions_are_measured_alike(tmp_path, step):
    axis = np.exp(np.arange(np.log(500), np.log(560), step * 1e-6))
    path = _coarse(tmp_path / "a.imzML", axis=axis, shift=lambda t: 10.0)
    ions = pick_peaks(path, calibrants=LIPIDS[[0, 1, 3]], recalibrate=True, search=40)
    np.testing.assert_allclose(ions.attrs["calibration"]["error_ppm"], 10, atol=0.3)
    nearest = np.abs(ions["mz"].to_numpy()[:, None] / LIPIDS - 1).argmin(axis=0)
    np.testing.assert_allclose(ions["mz"].iloc[nearest], LIPIDS, rtol=0.3e-6)
    drifting = _coarse(tmp_path / "b.imzML", axis=axis, shift=lambda t: 8 * t)
    with pytest.warns(UserWarning, match=r"drifts by [789]\.\d ppm"):
        found = pick_peaks(drifting, calibrants=LIPIDS)
    np.testing.assert_allclose(found.attrs["calibration"]["drift_ppm"], 8, atol=1)


def test_ions_beyond_the_calibrants_are_told(tmp_path):
    path = _centroids(tmp_path / "a.imzML")
    with pytest.warns(
        UserWarning, match=r"1 of 4 ions lie outside of the calibrants that were found \(m/z 104.1070 to 426.9288"
    ):
        pick_peaks(path, min_frequency=0.5, calibrants=IONS[:3], recalibrate=True)


def test_calibrants_measure_and_mend_the_error(tmp_path):
    path = _centroids(tmp_path / "a.imzML", shift=lambda t: 8.0)
    ions = pick_peaks(path, min_frequency=0.5, tolerance=10, calibrants=IONS[[3, 0]])
    errors = ions.attrs["calibration"]
    assert errors["mz"] == [104.107, 760.5851]
    np.testing.assert_allclose(errors["error_ppm"], 8, atol=0.6)
    np.testing.assert_allclose(errors["drift_ppm"], 0, atol=1.5)
    np.testing.assert_allclose(ions["mz"] / IONS, 1 + 8e-6, atol=0.6e-6)
    mended = pick_peaks(path, min_frequency=0.5, tolerance=10, calibrants=IONS[[0, 3]], recalibrate=True)
    np.testing.assert_allclose(mended["mz"], IONS, rtol=0.6e-6)
    np.testing.assert_allclose(mended["mz_measured"], ions["mz"])
    table = read_imzml(path, mz=mended, tolerance=3, pixel_size=10).tables["msi"]  # looks where the ions were measured
    np.testing.assert_allclose(np.asarray((table.X > 0).mean(axis=0)).ravel(), ions["frequency"])
    np.testing.assert_allclose(table.var["mz"], IONS, rtol=0.6e-6)


def test_drift_and_missing_calibrants_warn(tmp_path):
    path = _centroids(tmp_path / "a.imzML", shift=lambda t: 12 * t)
    with pytest.warns(UserWarning, match=r"The mass of m/z .* drifts by 1[1-3]\.\d ppm over the acquisition"):
        ions = pick_peaks(path, min_frequency=0.2, calibrants=IONS)
    np.testing.assert_allclose(ions.attrs["calibration"]["drift_ppm"], 12, atol=1.5)
    with pytest.warns(UserWarning, match="No calibrant was found"):
        pick_peaks(path, min_frequency=0.2, calibrants=[999.0])


@pytest.fixture
def bins():
    rng = np.random.default_rng(3)
    X = np.stack([_profile(rng, np.array([40.0, 30.0, 20.0, 25.0])) for _ in range(20)])
    order = rng.permutation(AXIS.size)
    var = pd.DataFrame({"mz": AXIS[order]}, index=[f"b{i}" for i in range(AXIS.size)])
    sdata = msi_section(
        X[:, order],
        var,
        np.zeros(20, int),
        np.arange(20),
        sample="s",
        pixel_size=10,
        attrs={"spectrum_type": "profile"},
    )
    sdata.tables["msi"].layers["double"] = sp.csr_matrix(2 * sdata.tables["msi"].X)
    return sdata, X


@pytest.mark.parametrize("whole", [True, False])
def test_table_of_bins_is_reduced(bins, whole):
    sdata, X = bins
    data = sdata if whole else sdata.tables["msi"]
    options = {"snr": 10, "tolerance": 0.02, "unit": "Da", "calibrants": [104.107]}
    copy = pick_peaks(data, **options, copy=True)
    assert sdata.tables["msi"].n_vars == AXIS.size
    assert pick_peaks(data, **options) is None
    table = sdata.tables["msi"]
    np.testing.assert_array_equal((copy.tables["msi"] if whole else copy).X.toarray(), table.X.toarray())
    np.testing.assert_allclose(table.var["mz"], SUMMITS, atol=0.004)
    inside = np.abs(AXIS[:, None] - table.var["mz"].to_numpy()) <= 0.02
    np.testing.assert_allclose(table.X.toarray(), X @ inside, rtol=1e-5)
    np.testing.assert_allclose(table.layers["double"].toarray(), 2 * X @ inside, rtol=1e-5)
    assert table.var_names.tolist() == table.var["name"].tolist()
    assert table.uns["pick_peaks"]["params"]["snr"] == 10
    assert abs(table.uns["pick_peaks"]["calibration"]["error_ppm"].iloc[0]) < 20


def test_reduced_table_survives_a_store(bins, tmp_path):
    import spatialdata

    sdata, _ = bins
    pick_peaks(sdata, snr=10, tolerance=0.02, unit="Da", calibrants=[104.107], recalibrate=True)
    sdata.write(tmp_path / "a.zarr")
    again = spatialdata.read_zarr(tmp_path / "a.zarr").tables["msi"]
    np.testing.assert_array_equal(again.X.toarray(), sdata.tables["msi"].X.toarray())
    assert again.var["mz_measured"].equals(sdata.tables["msi"].var["mz_measured"])


def test_options_are_checked(bins, tmp_path):
    sdata, _ = bins
    for options, message in (
        ({"spectrum": "median"}, "spectrum='median' is not known"),
        ({"unit": "mDa"}, "unit='mDa' is not known"),
        ({"snr": 0}, "snr must be a positive number"),
        ({"tolerance": -1}, "tolerance must be a positive number"),
        ({"min_frequency": 2}, "min_frequency is a share"),
        ({"search": 0}, "search must be a positive number"),
        ({"calibrants": [-1.0]}, "calibrants must be positive m/z"),
        ({"recalibrate": True}, "recalibrate=True needs calibrants="),
        ({"snr": 1e9}, "The table: no ion has a signal-to-noise ratio"),
    ):
        with pytest.raises(ValueError, match=message):
            pick_peaks(sdata, **options)
    assert sdata.tables["msi"].n_vars == AXIS.size
    bare = sdata.tables["msi"].copy()
    del bare.var["mz"]
    with pytest.raises(KeyError, match="var has no column 'mz'"):
        pick_peaks(bare)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        pick_peaks(tmp_path / "none.imzML")


@pytest.mark.realdata
def test_real_profile(data_dir):
    ions = pick_peaks(data_dir / "imzml" / "pyimzml_examples" / "Example_Continuous.imzML", tolerance=0.2, unit="Da")
    assert 20 < len(ions) < 2000
    assert ions["mz"].is_monotonic_increasing

import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from pyimzml.compression import NoCompression, ZlibCompression
from pyimzml.ImzMLParser import ImzMLParser
from pyimzml.ImzMLWriter import ImzMLWriter

from stmsi.io import read_imzml
from stmsi.pp import normalize_msi

AXIS = np.array([100.0, 150.25, 200.5, 300.75])


def _edit(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert re.search(old, text), old
        text = re.sub(old, new, text)
    path.write_text(text)


def _write(path, spectra, *, pixel_size="50", unit=' unitAccession="UO:0000017"', **options):
    """An imzML of `spectra`, (x, y[, z]) -> (mz, intensity); pyimzML's writer knows no pixel size, so it is put in."""
    with ImzMLWriter(str(path), **options) as writer:
        for place, (mz, intensity) in spectra.items():
            if len(mz):
                writer.addSpectrum(mz, intensity, place)
            else:
                writer.addSpectrum([1.0], [0.0], place)  # the writer cannot take an empty one
    for place in [p for p, (mz, _) in spectra.items() if len(mz) == 0]:
        index = list(spectra).index(place) + 1
        _edit(path, (rf'(?s)(index="{index}">.*?array length" value=)"1"(.*?array length" value=)"1"', r'\1"0"\2"0"'))
    if pixel_size is not None:
        size = f'<cvParam cvRef="IMS" accession="IMS:100004\\1" name="pixel size" value="{pixel_size}"{unit}/>'
        both = size.replace("\\1", "6") + size.replace("\\1", "7")
        _edit(path, ("</scanSettings>", both + "</scanSettings>"))
    return path


def _continuous(seed=0, n_x=3, n_y=2):
    rng = np.random.default_rng(seed)
    return {(x + 4, y + 7): (AXIS, rng.poisson(2, 4).astype(float)) for y in range(n_y) for x in range(n_x)}


def _processed(seed=0, n_x=4, n_y=3):
    """Three common ions measured a few ppm off, and a peak of its own in each spectrum."""
    rng = np.random.default_rng(seed)
    spectra = {}
    for y in range(n_y):
        for x in range(n_x):
            ions = np.array([104.107, 426.9288, 760.5851]) * (1 + rng.uniform(-1, 1, 3) * 1e-6)
            mz = np.append(ions, rng.uniform(500, 700))
            order = np.argsort(mz)
            spectra[x + 1, y + 1] = (mz[order], rng.uniform(1, 10, 4)[order])
    return spectra


def _oracle(path, low, high, reduce=np.sum):
    """Ion by ion and spectrum by spectrum, with pyimzML's own reading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ImzMLParser(str(path)) as parser:
            out = np.zeros((len(parser.coordinates), len(low)))
            for i in range(len(parser.coordinates)):
                mz, intensity = (a.astype(np.float64) for a in parser.getspectrum(i))
                for j in range(len(low)):
                    inside = intensity[(mz >= low[j]) & (mz <= high[j])]
                    out[i, j] = reduce(inside) if inside.size else 0
            return out, np.array(parser.coordinates)


def _msi(path, **options):
    return read_imzml(path, show_progress_bar=False, **options).tables["msi"]


@pytest.mark.parametrize("mz_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intensity_dtype", [np.float32, np.float64, np.int32, np.int64])
def test_continuous_gives_every_bin_at_its_place(tmp_path, mz_dtype, intensity_dtype):
    spectra = _continuous()
    path = _write(tmp_path / "a.imzML", spectra, mode="continuous", mz_dtype=mz_dtype, intensity_dtype=intensity_dtype)
    table = _msi(path)
    np.testing.assert_array_equal(table.X.toarray(), np.array([i for _, i in spectra.values()], np.float32))
    np.testing.assert_array_equal(table.var["mz"], AXIS)
    assert table.obs["col"].tolist() == [0, 1, 2, 0, 1, 2]
    assert table.obs["row"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table.X.dtype == np.float32
    attrs = table.uns["msi"]["attrs"]["a"]
    assert attrs["pixel_size"].tolist() == [50, 50]
    assert attrs["origin"].tolist() == [4, 7]
    assert (attrs["mode"], attrs["ions"]) == ("continuous", "axis")


@pytest.mark.parametrize("unit", ["ppm", "Da"])
@pytest.mark.parametrize("reduce", ["sum", "max", "mean"])
@pytest.mark.parametrize("write", [_continuous, _processed])
def test_targets_equal_the_slow_extraction(tmp_path, write, unit, reduce):
    path = _write(tmp_path / "a.imzML", write(), mode="continuous" if write is _continuous else "processed")
    mz = np.array([760.5851, 104.107, 150.25, 426.9288, 426.9290, 999.0])  # not sorted, two overlap, one is not there
    tolerance = 3.0 if unit == "ppm" else 60.0
    half = mz * tolerance * 1e-6 if unit == "ppm" else tolerance
    expected, _ = _oracle(path, mz - half, mz + half, getattr(np, reduce))
    table = _msi(path, mz=mz, tolerance=tolerance, unit=unit, reduce=reduce)
    assert expected.sum() > 0
    np.testing.assert_allclose(table.X.toarray(), expected, rtol=1e-6)
    np.testing.assert_array_equal(table.var["mz"], mz)


@pytest.mark.parametrize("intensity_dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("mode", ["continuous", "processed"])
def test_tic_is_the_sum_of_the_whole_spectrum(tmp_path, mode, intensity_dtype):
    spectra = _continuous() if mode == "continuous" else _processed()
    path = _write(tmp_path / "a.imzML", spectra, mode=mode, intensity_dtype=intensity_dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ImzMLParser(str(path)) as parser:
            sums = [parser.getspectrum(i)[1].sum(dtype=np.float64) for i in range(len(spectra))]
    assert min(sums) > 0
    everything = _msi(path, min_frequency=0.0)
    assert everything.obs["tic"].dtype == np.float64
    np.testing.assert_allclose(everything.obs["tic"], sums, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(everything.X.sum(axis=1)).ravel(), sums, rtol=1e-6)
    for reduce in ("sum", "max", "mean"):  # neither which ions are asked for nor their windows matter
        few = _msi(path, mz=[104.107, 150.25, 999.0], tolerance=30, unit="Da", reduce=reduce)
        np.testing.assert_allclose(few.obs["tic"], sums, rtol=1e-12)
    none = _msi(path, mz=[999.0])
    assert none.X.nnz == 0
    np.testing.assert_allclose(none.obs["tic"], sums, rtol=1e-12)


def test_tic_is_that_of_the_slice(tmp_path):
    spectra = {(x, 1, z): (AXIS, np.full(4, 10.0 * z + x)) for z in (1, 2) for x in (1, 2, 3)}
    table = _msi(_write(tmp_path / "a.imzML", spectra, mode="continuous"), z=2)
    assert table.obs["tic"].tolist() == [84, 88, 92]


def test_tic_normalizes(tmp_path):
    spectra = _processed()
    table = _msi(_write(tmp_path / "a.imzML", spectra, mode="processed"), mz=[426.9288])
    ion, whole = table.X.toarray().ravel(), np.array([i.sum() for _, i in spectra.values()])
    normalize_msi(table, tic_key="tic", log1p=False, target=1.0)
    np.testing.assert_allclose(table.X.toarray().ravel(), ion / whole, rtol=1e-6)


def test_processed_finds_the_common_ions_and_sums_their_own_peaks(tmp_path):
    spectra = _processed()
    table = _msi(_write(tmp_path / "a.imzML", spectra, mode="processed"), min_frequency=0.5)
    np.testing.assert_allclose(table.var["mz"], [104.107, 426.9288, 760.5851], rtol=1e-6)
    assert table.var["frequency"].tolist() == [1, 1, 1]
    common = [[i for m, i in zip(*s, strict=True) if not 500 < m < 700] for s in spectra.values()]
    np.testing.assert_allclose(table.X.toarray(), common, rtol=1e-6)
    everything = _msi(tmp_path / "a.imzML", min_frequency=0.0)
    assert everything.X.sum() == pytest.approx(sum(i.sum() for _, i in spectra.values()), rel=1e-6)
    with pytest.raises(ValueError, match=r"no ion occurs in 100.00% of the 13 spectra; lower min_frequency"):
        _msi(_write(tmp_path / "b.imzML", {**spectra, (9, 9): ([50.0], [1.0])}, mode="processed"), min_frequency=1.0)


def test_unsorted_and_empty_spectra(tmp_path):
    spectra = {
        (1, 1): (np.array([300.0, 100.0, 200.0]), np.array([3.0, 1.0, 2.0])),
        (2, 1): (np.array([]), np.array([])),
        (4, 1): (np.array([200.0]), np.array([5.0])),
    }
    path = _write(tmp_path / "a.imzML", spectra, mode="processed")
    for options in ({"mz": [100, 200, 300]}, {}):
        table = _msi(path, **options)
        assert table.X.toarray().tolist() == [[1, 2, 3], [0, 0, 0], [0, 5, 0]]
        assert table.obs["tic"].tolist() == [6, 0, 5]
        assert table.obs["col"].tolist() == [0, 1, 3]


@pytest.mark.parametrize("mode", ["continuous", "processed"])
@pytest.mark.parametrize(("mz_zip", "intensity_zip"), [(True, True), (True, False), (False, True)])
def test_zlib_arrays_are_decoded(tmp_path, mode, mz_zip, intensity_zip):
    kinds = {True: ZlibCompression(), False: NoCompression()}
    spectra = _continuous() if mode == "continuous" else _processed()
    path = _write(
        tmp_path / "a.imzML",
        spectra,
        mode=mode,
        mz_compression=kinds[mz_zip],
        intensity_compression=kinds[intensity_zip],
    )
    plain = _msi(_write(tmp_path / "b.imzML", spectra, mode=mode))
    table = _msi(path)
    assert plain.X.sum() > 0
    np.testing.assert_array_equal(table.X.toarray(), plain.X.toarray())
    np.testing.assert_array_equal(table.var["mz"], plain.var["mz"])
    np.testing.assert_array_equal(table.obs["tic"], plain.obs["tic"])


def test_damaged_zlib_names_the_pixel(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous", intensity_compression=ZlibCompression())
    ibd = path.with_suffix(".ibd")
    ibd.write_bytes(ibd.read_bytes()[:-6])
    with pytest.raises(ValueError, match=r"the spectrum at x=6, y=8 cannot be read"):
        _msi(path)


def test_names_and_columns_of_the_ions(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    ions = pd.DataFrame({"mz": [200.5, 100.0], "formula": ["C5H9", None]}, index=["PC(34:1)", "lactate"])
    var = _msi(path, mz=ions).var
    assert var["name"].tolist() == ["PC(34:1)", "lactate"]
    assert var.index.tolist() == ["PC_34_1", "lactate"]
    assert var["formula"].tolist() == ["C5H9", ""]
    assert _msi(path, mz=pd.Series([100.0], index=["a"])).var_names.tolist() == ["a"]
    assert _msi(path, mz=pd.Series([100.0])).var_names.tolist() == ["mz_100.0000"]
    for wrong, message in (
        ([], "at least one m/z"),
        ([100.0, -1.0], "wrong: '-1.0'"),
        (["many"], "wrong: 'many'"),
        ([100.0, 100.0], "repeats '100.0'"),
        (pd.DataFrame({"mass": [1.0]}), "needs a column 'mz'; found 'mass'"),
    ):
        with pytest.raises(ValueError, match=message):
            _msi(path, mz=wrong)


def test_options_are_checked(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    for options, message in (
        ({"unit": "dalton"}, "unit='dalton' is not known"),
        ({"reduce": "median"}, "reduce='median' is not known"),
        ({"tolerance": 0}, "tolerance must be a positive number"),
        ({"min_frequency": 5}, "min_frequency is a share"),
        ({"sample": "a/b"}, "has characters that SpatialData refuses"),
        ({"pixel_size": -1}, "pixel_size must be a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            _msi(path, **options)


def test_slices(tmp_path):
    flat = _continuous()
    spectra = {(x, y, z): (mz, i * z) for z in (1, 2) for (x, y), (mz, i) in flat.items()}
    path = _write(tmp_path / "a.imzML", spectra, mode="continuous")
    with pytest.raises(ValueError, match=r"holds 2 slices; pass z=, one of '1', '2'"):
        _msi(path)
    with pytest.raises(ValueError, match="no slice z=3"):
        _msi(path, z=3)
    np.testing.assert_array_equal(_msi(path, z=2).X.toarray(), 2 * np.array([i for _, i in flat.values()]))


def test_pixel_size(tmp_path):
    spectra = _continuous()
    missing = _write(tmp_path / "missing.imzML", spectra, pixel_size=None)
    with pytest.raises(ValueError, match="how large a pixel is; pass pixel_size="):
        _msi(missing)
    sdata = read_imzml(missing, pixel_size=(20, 10), show_progress_bar=False)
    assert sdata.shapes["missing_pixels"].total_bounds.tolist() == [0, 0, 60, 20]
    with pytest.warns(UserWarning, match=r"pixel size of 1 x 1 um.*Pass pixel_size="):
        _msi(_write(tmp_path / "one.imzML", spectra, pixel_size="1", unit=""))
    millimetre = _msi(_write(tmp_path / "mm.imzML", spectra, pixel_size="0.05", unit=' unitAccession="UO:0000016"'))
    assert millimetre.uns["msi"]["attrs"]["mm"]["pixel_size"].tolist() == [50, 50]
    oblong = _write(tmp_path / "oblong.imzML", spectra)
    _edit(oblong, (r'(IMS:1000047" name="pixel size" value=)"50"', r'\1"25"'))
    assert _msi(oblong).uns["msi"]["attrs"]["oblong"]["pixel_size"].tolist() == [50, 25]


@pytest.mark.parametrize(
    ("unit", "micrometres"),
    [
        ('unitAccession="UO:0000017" unitName="micrometer"', 50), ('unitName="micrometer"', 50), ('unitName="Micrometres"', 50),
        ('unitName="um"', 50), ('unitName="\u00b5m"', 50), ('unitName="\u03bcm"', 50), ('unitName="micron"', 50), ("", 50),
        ('unitAccession="UO:0000018"', 0.05), ('unitName="nanometer"', 0.05), ('unitName="nm"', 0.05),
        ('unitAccession="UO:0000016" unitName="millimeter"', 5e4), ('unitName="mm"', 5e4), ('unitAccession="UO:0000015"', 5e5),
        ('unitAccession="UO:0000008"', 5e7), ('unitName="meter"', 5e7), ('unitName="m"', 5e7), ('unitName="cm"', 5e5),
        ('unitAccession="UO:0000019"', 0.005), ('unitAccession=" UO:0000017 "', 50),
    ],
)  # fmt: skip
def test_units_of_pixel_size(tmp_path, unit, micrometres):
    path = _write(tmp_path / "a.imzML", _continuous(), unit=f" {unit}")
    np.testing.assert_allclose(_msi(path).uns["msi"]["attrs"]["a"]["pixel_size"], [micrometres] * 2)


@pytest.mark.parametrize(
    "unit",
    [
        'unitName="square micrometer"', 'unitAccession="UO:0010001" unitName="square micrometer"', 'unitName="um2"',
        'unitName="\u00b5m^2"', 'unitName="um\u00b2"', 'unitAccession="UO:0000082"', 'unitName="pixel"',
        'unitAccession="UO:0000017" unitName="millimeter"', 'unitAccession="UO:0000017" unitName="square micrometer"',
    ],
)  # fmt: skip
def test_units_that_are_no_length_are_refused(tmp_path, unit):
    path = _write(tmp_path / "a.imzML", _continuous(), unit=f" {unit}")
    with pytest.raises(ValueError, match=r"gives its pixel size as 50 in .*no single unit of length; pass pixel_size="):
        _msi(path)
    assert _msi(path, pixel_size=7).uns["msi"]["attrs"]["a"]["pixel_size"].tolist() == [7, 7]


def test_pixel_size_in_a_group(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), pixel_size=None)
    size = '<cvParam accession="IMS:1000046" value="30"/><cvParam accession="IMS:1000047" value="20"/>'
    _edit(
        path,
        (
            "(<referenceableParamGroupList[^>]*>)",
            rf'\1<referenceableParamGroup id="size">{size}</referenceableParamGroup>',
        ),
    )
    _edit(path, ("</scanSettings>", '<referenceableParamGroupRef ref="size"/></scanSettings>'))
    assert _msi(path).uns["msi"]["attrs"]["a"]["pixel_size"].tolist() == [30, 20]


def test_metadata(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), polarity="negative", spec_type="profile", mode="continuous")
    attrs = _msi(path, sample="s1").uns["msi"]["attrs"]["s1"]
    assert (attrs["polarity"], attrs["spectrum_type"], attrs["file"]) == ("negative", "profile", "a.imzML")
    assert attrs["uuid"].replace("-", "") == path.with_suffix(".ibd").read_bytes()[:16].hex()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_intensities_name_the_pixel(tmp_path, value):
    spectra = _continuous()
    spectra[5, 8][1][2] = value
    path = _write(tmp_path / "a.imzML", spectra, mode="continuous")
    with pytest.raises(ValueError, match=r"x=5, y=8 has 1 intensities that are negative, NaN or infinite"):
        _msi(path)


def test_headers_that_lie(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    _edit(path, (r'(max count of pixels x" value=)"\d+"', r'\1"99"'), ("1000030", "1000031"))
    table = _msi(path)
    assert table.uns["msi"]["attrs"]["a"]["ions"] == "axis"
    assert table.obs["col"].max() == 2
    path = _write(tmp_path / "b.imzML", _processed(), mode="processed")
    _edit(path, ("1000031", "1000030"))
    with pytest.warns(UserWarning, match="calls itself continuous, but its spectra differ"):
        assert _msi(path, min_frequency=0.5).n_vars == 3


def test_positions_that_repeat(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    _edit(path, ('position x" value="5"', 'position x" value="4"'))
    with pytest.raises(ValueError, match=r"share a position \(x, y\): '\(4, 7\)', '\(4, 8\)'"):
        _msi(path)


def test_files_that_do_not_belong_together(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    other = _write(tmp_path / "b.imzML", _continuous(), mode="continuous")
    shutil.copy(other.with_suffix(".ibd"), path.with_suffix(".ibd"))
    with pytest.raises(ValueError, match=r"does not belong to the imzML beside it.*check_uuid=False"):
        _msi(path)
    assert _msi(path, check_uuid=False).n_obs == 6


def test_lengths_that_differ(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    _edit(path, (r'(?s)(index="2">.*?array length" value="4".*?array length" value=)"4"', r'\1"3"'))
    with pytest.raises(ValueError, match=r"x=5, y=7 has 4 m/z but 3 intensities"):
        _msi(path)


def test_broken_files_raise(tmp_path):
    path = _write(tmp_path / "a.imzML", _continuous(), mode="continuous")
    ibd, text, data = path.with_suffix(".ibd"), path.read_text(), path.with_suffix(".ibd").read_bytes()

    def fails(message, error=ValueError, target=path):
        with pytest.raises(error, match=message):
            _msi(target)

    fails("There is no file", FileNotFoundError, tmp_path / "none.imzML")
    fails(r"is a directory; pass one imzML file. In it: 'a.imzML'", target=tmp_path)
    fails("pass the .imzML file beside it", target=ibd)
    ibd.write_bytes(data[:-4])
    fails(f"is truncated: {len(data) - 4} bytes, at least {len(data)} expected")
    ibd.write_bytes(b"")
    fails(r"a.ibd is empty \(0 bytes\)")
    ibd.unlink()
    fails("put a.ibd beside it", FileNotFoundError)
    ibd.with_suffix(".IBD").write_bytes(data)
    assert _msi(path).n_obs == 6
    path.write_text(text[: len(text) // 2])
    fails("broken or truncated XML")
    path.write_text("x,y,100.5\n")
    fails("not an imzML file: it is not XML")
    path.write_text("<html></html>")
    fails("outermost element is <html>, expected <mzML>")
    path.write_text(text.replace("IMS:1000102", "IMS:9999999"))
    fails("not a complete imzML file")
    path.write_text(text.replace("MS:1000521", "MS:9999999"))
    fails("does not name a supported number type of the intensity arrays")
    path.write_text(text.replace('"MS:1000576" name="no compression"', '"MS:1002312" name="numpress"'))
    fails("MS-Numpress")
    path.write_bytes(b"")
    fails(r"a.imzML is empty \(0 bytes\)")


REAL = [
    "galaxy_cardinal/112_auto_combined",
    "galaxy_cardinal/12_combined",
    "galaxy_cardinal/2123_auto_combined",
    "galaxy_cardinal/Combat_40pixel",
    "galaxy_cardinal/out8",
    "galaxy_cardinal/picked",
    "galaxy_cardinal/spatial_DGMM_input",
    "pyimzml_examples/Example_Continuous",
    "pyimzml_examples/Example_Processed",
]


@pytest.mark.realdata
def test_every_real_pair_is_tested(data_dir):
    assert sorted(str(p.relative_to(data_dir / "imzml"))[:-6] for p in (data_dir / "imzml").glob("**/*.imzML")) == REAL


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_files_equal_pyimzml(data_dir, name):
    path = data_dir / "imzml" / f"{name}.imzML"
    everything = _msi(path, pixel_size=50, min_frequency=0.0)
    mz = everything.var["mz"].to_numpy()[:: max(1, everything.n_vars // 40)]
    table = _msi(path, mz=mz, tolerance=200, pixel_size=50)
    expected, place = _oracle(path, mz * (1 - 200e-6), mz * (1 + 200e-6))
    assert expected.sum() > 0
    np.testing.assert_allclose(table.X.toarray(), expected, rtol=1e-5)
    np.testing.assert_array_equal(table.obs["col"], place[:, 0] - place[:, 0].min())
    np.testing.assert_array_equal(table.obs["row"], place[:, 1] - place[:, 1].min())
    total, _ = _oracle(path, [0], [np.inf])
    np.testing.assert_allclose(np.asarray(everything.X.sum(axis=1)), total, rtol=1e-4)
    for read in (everything, table):
        np.testing.assert_allclose(read.obs["tic"], total.ravel(), rtol=1e-9)


@pytest.mark.realdata
def test_real_metadata(data_dir):
    table = _msi(data_dir / "imzml" / "pyimzml_examples" / "Example_Continuous.imzML")
    attrs = table.uns["msi"]["attrs"]["Example_Continuous"]
    assert attrs["pixel_size"].tolist() == [100, 100]
    assert (attrs["instrument"], attrs["polarity"], attrs["spectrum_type"]) == ("LTQ FT Ultra", "negative", "profile")
    assert attrs["uuid"] == "554a27fa-79d2-4766-9a2c-862e6d78b1f3"

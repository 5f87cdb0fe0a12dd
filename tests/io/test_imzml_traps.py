"""What real imzML files do that the format does not foresee; each with numba and without."""

import gzip
import hashlib
import logging
import re
import threading

import numpy as np
import pytest
from pyimzml.ImzMLWriter import ImzMLWriter

from stmsi import settings
from stmsi._imzml import index as _imzml_index
from stmsi.io import read_imzml

SPECTRA = {
    (3, 5): ([100.0, 200.0, 300.0], [1.0, 2.0, 3.0]),
    (4, 5): ([100.0, 250.0], [4.0, 5.0]),
    (3, 6): ([200.0], [6.0]),
}
MZ = [100.0, 200.0, 250.0, 300.0]
EXPECTED = [[1, 2, 0, 3], [4, 0, 5, 0], [0, 6, 0, 0]]

pytestmark = pytest.mark.usefixtures("engine")


def _table(path, **options):
    return read_imzml(path, **({"mz": MZ} | options)).tables["msi"]


def _is_right(path, **options):
    table = _table(path, **options)
    assert table.X.toarray().tolist() == EXPECTED
    assert table.obs["tic"].tolist() == [6, 9, 6]
    assert table.obs["col"].tolist() == [0, 1, 0]
    assert table.obs["row"].tolist() == [0, 0, 1]


@pytest.fixture
def fallback(caplog):
    """Whether the XML parser had to take over."""
    caplog.set_level(logging.INFO, logger="stmsi")
    return lambda: "read by the XML parser" in caplog.text


def test_plain(tmp_path, handmade, fallback):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA))
    assert not fallback()


@pytest.mark.parametrize(
    ("old", "new", "slow"),
    [
        ("\n", "\r\n", False),
        ('cvRef="IMS" accession', 'value_="1" cvRef="IMS" accession', False),
        ('name="position" value', "name='a &lt; \"b\"' value", False),
        ('<spectrum id="s2"', '<!-- <spectrum id="s9"> value="7" --><spectrum id="s2"', None),
        ('<spectrum id="s2"', '<?note <spectrum> ?><spectrum id="s2"', True),
        ('<spectrum id="s2"', '<![CDATA[<spectrum>]]><spectrum id="s2"', True),
        (
            '<cvParam cvRef="IMS" accession="IMS:1000050"',
            '<cvParam\n\t cvRef = "IMS"\n accession = "IMS:1000050"',
            False,
        ),
        ('<spectrumList count="3">', '<spectrumList count="5">', True),
        ('<spectrumList count="3">', "<spectrumList>", False),
        ('<spectrumList count="3">', '<spectrumList count="99999999999">', True),
        ('defaultArrayLength="0" ', "", False),
        ("<run ", '<!-- <spectrumList count="7"> --><run ', False),
    ],
)
def test_spellings_of_xml(tmp_path, handmade, fallback, old, new, slow):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, replace=[(old, new)]))
    assert slow is None or fallback() == slow


def test_single_quotes_and_turned_attributes(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    text = path.read_text()
    turned = re.sub(r'accession="(IMS:10001\d\d)" name="external" value="(\d+)"', r"value='\2' accession='\1'", text)
    assert turned != text
    path.write_text(turned)
    _is_right(path)


def test_namespace_prefix(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    text = re.sub(r"<(/?)([A-Za-z])", r"<\1p:\2", path.read_text()).replace("xmlns=", "xmlns:p=")
    path.write_text(text)
    _is_right(path)


def test_entities_in_values(tmp_path, handmade, fallback):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, replace=[('value="3"/>', 'value="&#51;"/>')]))
    assert fallback()


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1"])
def test_encodings(tmp_path, handmade, encoding):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, encoding=encoding))


def test_numbers_as_floats(tmp_path, handmade, fallback):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, number=lambda v: f"{v:.1e}" if v == 1 else f"{v}.0"))
    assert fallback()


@pytest.mark.parametrize("leave_out", [("104",), ("103",), ("103", "104")])
def test_lengths_that_are_missing(tmp_path, handmade, leave_out):
    path = handmade(tmp_path / "a.imzML", SPECTRA, leave_out=leave_out)
    if len(leave_out) < 2:
        _is_right(path)
    else:
        with pytest.raises(ValueError, match=r"spectrum 1 says neither how many values its m/z array has nor how many"):
            _table(path)
        text = path.read_text()
        for number, (mz, _) in enumerate(SPECTRA.values(), 1):
            text = text.replace(
                f'id="s{number}" defaultArrayLength="0"', f'id="s{number}" defaultArrayLength="{len(mz)}"'
            )
        path.write_text(text)
        _is_right(path)


def test_lengths_that_are_zero(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    text = re.sub(r'(IMS:1000103" name="external" value=)"\d+"', r'\1"0"', path.read_text())
    path.write_text(text)
    _is_right(path)
    path.write_text(re.sub(r'(IMS:1000104" name="external" value=)"\d+"', r'\1"0"', text))
    assert _table(path).X.nnz == 0  # nothing says that they are not empty


@pytest.mark.parametrize("mz_type", ["<f4", "<f8"])
@pytest.mark.parametrize("intensity_type", ["<f4", "<f8", "<i4", "<i8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_number_types_given_inline(tmp_path, handmade, mz_type, intensity_type, compressed):
    options = {"mz_type": mz_type, "intensity_type": intensity_type, "compressed": compressed}
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, inline=True, **options))


def test_number_types_that_differ(tmp_path, handmade):
    """Two spectra of one file stored in different ways."""
    path = handmade(tmp_path / "a.imzML", SPECTRA, inline=True)
    text, binary = path.read_text(), bytearray(path.with_suffix(".ibd").read_bytes())
    at = len(binary)
    binary += np.array([1, 2, 3], "<i8").tobytes()
    first, rest = text.split("</spectrum>", 1)
    head, array = first.rsplit("<binaryDataArray ", 1)
    array = re.sub(r'(1000102" name="external" value=)"\d+"', rf'\1"{at}"', array).replace("MS:1000521", "MS:1000522")
    array = re.sub(r'(1000104" name="external" value=)"\d+"', r'\1"24"', array)
    path.write_text(f"{head}<binaryDataArray {array}</spectrum>{rest}")
    path.with_suffix(".ibd").write_bytes(bytes(binary))
    _is_right(path)


@pytest.mark.parametrize("leave_out", [(), ("104",), ("103",), ("103", "104")])
def test_compressed_arrays_of_unknown_length(tmp_path, handmade, leave_out):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, compressed=True, leave_out=leave_out))


@pytest.mark.parametrize("gap", [b"\0", b"\0" * 4, b"\0" * 7])
def test_misaligned_arrays_and_unreferenced_bytes(tmp_path, handmade, gap):
    _is_right(handmade(tmp_path / "a.imzML", SPECTRA, gap=gap, tail=b"\xff" * 33))


def test_offsets_that_do_not_ascend(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    head, *blocks = re.split(r"(?=<spectrum id)", path.read_text())
    last, foot = blocks[-1].split("</spectrumList>")
    path.write_text(head + last + "".join(blocks[-2::-1]) + "</spectrumList>" + foot)
    assert _table(path).X.toarray().tolist() == EXPECTED[::-1]


def test_offsets_of_32_bits(tmp_path, handmade):
    """Behind 2 GB, some programs count on from below zero; the file here is sparse."""
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    data = path.with_suffix(".ibd").read_bytes()
    far = 2**31 + 64
    with path.with_suffix(".ibd").open("r+b") as handle:
        handle.seek(far)
        handle.write(data[-12:])
    text = path.read_text()
    places = [int(v) for v in re.findall(r'1000102" name="external" value="(\d+)"', text)]
    text = text.replace(f'value="{places[-2]}"', f'value="{far - 2**32}"')
    path.write_text(text.replace(f'value="{places[-1]}"', f'value="{far + 8 - 2**32}"'))
    _is_right(path)


@pytest.mark.parametrize("continuous", [False, True])
def test_offsets_modulo_4_gigabytes(tmp_path, handmade, continuous):
    """Some programs write the last 32 bits of an offset; the file here is sparse."""
    spectra = {place: (MZ, [1.0, 2.0, 3.0, n]) for n, place in enumerate(SPECTRA, 1)} if continuous else SPECTRA
    path = handmade(tmp_path / "a.imzML", spectra)
    data = path.with_suffix(".ibd").read_bytes()
    text = path.read_text()
    places = [int(v) for v in re.findall(r'1000102" name="external" value="(\d+)"', text)]
    expected = _table(path).X.toarray()
    # the last spectrum lies behind 4 GB, those before near 3 GB
    for i, place in reversed(list(enumerate(places))):
        far = 3 * 2**30 + place if i < 4 else 2**32 + 4096 + place
        n = [*places, len(data)][i + 1] - place
        with path.with_suffix(".ibd").open("r+b") as handle:
            handle.seek(far)
            handle.write(data[place : place + n])
        text = text.replace(
            f'1000102" name="external" value="{place}"', f'1000102" name="external" value="{far % 2**32}"'
        )
    if continuous:
        first = 3 * 2**30 + places[0]
        for i in (2, 4):
            far = (3 * 2**30 if i < 4 else 2**32 + 4096) + places[i]
            text = text.replace(f'value="{far % 2**32}"', f'value="{first}"')
    path.write_text(text)
    np.testing.assert_array_equal(_table(path).X.toarray(), expected)


def test_offsets_that_start_again_without_order_are_refused(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    with path.with_suffix(".ibd").open("r+b") as handle:
        handle.truncate(2**32 + 50)
    text = path.read_text()
    places = [int(v) for v in re.findall(r'1000102" name="external" value="(\d+)"', text)]
    place = '1000102" name="external" value="{}"'.format
    path.write_text(text.replace(place(places[2]), place(2**32 - 4096)))
    with pytest.raises(ValueError, match=r"start again from 0 .* Export it again with 64-bit offsets"):
        _table(path)


def test_encoded_lengths_that_contradict_the_number_type(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA, replace=[("MS:1000521", "MS:1000523")], tail=b"\0" * 64)
    with pytest.raises(
        ValueError,
        match=r"intensity array of the spectrum at x=3, y=5 has 3 values of 8 bytes \(float64\), but takes 12",
    ):
        _table(path)
    path = handmade(tmp_path / "b.imzML", SPECTRA)
    text = path.read_text()
    path.write_text(re.sub(r'(1000103" name="external" value=)"2"', r'\1"1"', text))
    with pytest.raises(
        ValueError, match=r"m/z array of the spectrum at x=4, y=5 has 1 values of 8 bytes .*takes 16 bytes"
    ):
        _table(path)
    # the number of values there, in all spectra, is a habit of some programs
    counts = re.compile(
        r'1000103" name="external" value="(\d+)"/><cvParam cvRef="IMS" accession="IMS:1000104" name="external" value="\d+"'
    )
    same = counts.sub(
        r'1000103" name="external" value="\1"/><cvParam cvRef="IMS" accession="IMS:1000104" name="external" value="\1"',
        text,
    )
    assert same != text
    path.write_text(same)
    _is_right(path)


def test_a_packed_imzml(tmp_path, handmade, fallback):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    packed = tmp_path / "a.imzML.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    _is_right(packed)
    assert not fallback()
    assert set(read_imzml(packed, mz=MZ).shapes) == {"a_pixels"}
    packed.write_bytes(
        gzip.compress(
            handmade(path, SPECTRA, replace=[('<spectrum id="s2"', '<?note ?><spectrum id="s2"')]).read_bytes()
        )
    )
    _is_right(packed)
    assert fallback()
    for damaged in (packed.read_bytes()[:-20], b"<mzML/>", gzip.compress(b"")):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"no complete gzip file|is empty inside"):
            _table(packed)
    ibd = path.with_suffix(".ibd")
    ibd.rename(tmp_path / "a.ibd.gz")
    with pytest.raises(FileNotFoundError, match=r"unpack .*a.ibd.gz \(gunzip\)"):
        _table(path)
    with pytest.raises(ValueError, match=r"holds the binary part; unpack it"):
        _table(tmp_path / "a.ibd.gz")


def test_symbolic_links(tmp_path, handmade):
    (tmp_path / "store").mkdir()
    path = handmade(tmp_path / "store" / "real.imzML", SPECTRA)
    link = tmp_path / "link.imzML"
    link.symlink_to(path)
    _is_right(link)  # the binary part beside the file itself
    other = tmp_path / "link.ibd"
    other.symlink_to(tmp_path / "nowhere.ibd")
    _is_right(link)
    other.unlink()
    other.symlink_to(path.with_suffix(".ibd"))
    _is_right(link)
    path.rename(tmp_path / "store" / "moved.imzML")
    with pytest.raises(FileNotFoundError, match=r"The link leads to .*real.imzML, which does not exist"):
        _table(link)


@pytest.mark.parametrize("mz", [MZ, None])
@pytest.mark.parametrize("options", [{}, {"compressed": True}, {"mz_type": "<f4"}])
def test_padding_zeros(tmp_path, handmade, mz, options):
    """Arrays of a fixed length, filled up with zeros behind, before or between the peaks."""
    spectra = {
        (3, 5): ([100.0, 200.0, 300.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0, 0.0]),
        (4, 5): ([0.0, 0.0, 100.0, 0.0, 250.0], [0.0, 0.0, 4.0, 0.0, 5.0]),
        (3, 6): ([200.0, 0.0, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0, 0.0, 0.0]),
    }
    _is_right(handmade(tmp_path / "a.imzML", spectra, **options), mz=mz, min_frequency=0.0)
    spectra[3, 6] = ([200.0, 0.0], [6.0, 1.0])
    with pytest.raises(ValueError, match=r"x=3, y=6 has m/z that are not positive"):
        _table(handmade(tmp_path / "b.imzML", spectra, **options), mz=mz, min_frequency=0.0)


def test_positions_that_are_far_off(tmp_path, handmade, caplog):
    spectra = {(x, y): ([100.0], [1.0]) for x in range(1, 21) for y in range(1, 21)}
    path = handmade(tmp_path / "a.imzML", {**spectra, (2**31, 4): ([100.0], [1.0])})
    with pytest.raises(
        ValueError, match=r"a.imzML: 401 pixels lie on a raster of 2147483648 x 20; .*'\(2147483648, 4\)'.*Correct"
    ):
        _table(path)
    caplog.clear()
    _table(handmade(tmp_path / "b.imzML", {**spectra, (3, 90_000): ([100.0], [1.0])}))
    assert caplog.text.count("farthest from the others (x, y): '(3, 90000)'") == 1
    caplog.clear()
    _table(handmade(tmp_path / "c.imzML", {**spectra, (3, 900): ([100.0], [1.0])}))
    assert "farthest" not in caplog.text


@pytest.mark.parametrize("mz", [MZ, None])
def test_long_unsorted_and_empty_spectra(tmp_path, handmade, mz):
    rng = np.random.default_rng(0)
    long = rng.permutation(np.linspace(400, 900, 44_526))
    spectra = {
        (1, 1): (np.append(long, MZ), np.append(np.ones(len(long)), [1, 2, 3, 4])),
        (2, 1): ([], []),
        (9, 1): ([100], [7]),
    }
    table = _table(handmade(tmp_path / "a.imzML", spectra), mz=mz, min_frequency=0.0)
    assert table.obs["tic"].tolist() == [len(long) + 10, 0, 7]
    assert table.obs["col"].tolist() == [0, 1, 8]
    of_100 = np.abs(table.var["mz"] - 100).argmin()
    assert table.X.toarray()[:, of_100].tolist() == [1, 0, 7]
    if mz is not None:
        assert table.X.toarray().tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [7, 0, 0, 0]]


def test_windows_that_overlap_and_crowd(tmp_path, handmade):
    rng = np.random.default_rng(1)
    spectra = {(x, 1): (np.sort(rng.uniform(100, 110, 300)), rng.uniform(1, 9, 300)) for x in range(1, 6)}
    path = handmade(tmp_path / "a.imzML", spectra)
    for mz, tolerance in (
        (np.linspace(100, 110, 40), 0.2),
        (np.linspace(101, 109, 200), 0.5),
        (np.arange(101, 109), 0.001),
    ):
        low, high = mz - tolerance, mz + tolerance
        for reduce in (np.sum, np.max, np.mean):
            expected = [
                [reduce(np.float32(i)[(m >= a) & (m <= b)], initial=0) if reduce is np.max else _reduced(reduce, m, i, a, b)
                 for a, b in zip(low, high, strict=True)]
                for m, i in spectra.values()
            ]  # fmt: skip
            found = _table(path, mz=mz, tolerance=tolerance, unit="Da", reduce=reduce.__name__).X.toarray()
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def _reduced(reduce, mz, intensity, low, high):
    inside = np.float32(intensity)[(mz >= low) & (mz <= high)].astype(float)
    return reduce(inside) if inside.size else 0.0


def test_common_ions_equal_the_sorted_list(tmp_path, handmade, reference_mz):
    rng = np.random.default_rng(2)
    spectra = {}
    for x in range(1, 40):
        ions = np.concatenate([rng.choice([104.1, 300.2, 300.203, 760.5], 3, replace=False), rng.uniform(100, 900, 30)])
        spectra[x, 1] = np.sort(ions * (1 + rng.uniform(-4, 4, len(ions)) * 1e-6)), rng.integers(0, 5, len(ions))
    path = handmade(tmp_path / "a.imzML", spectra)
    for tolerance, unit in ((5.0, "ppm"), (60.0, "ppm"), (0.01, "Da")):
        seen = [(m[i > 0], np.full((i > 0).sum(), n)) for n, (m, i) in enumerate(spectra.values())]
        mz, owner = (np.concatenate(v) for v in zip(*seen, strict=True))
        centre, _, _, frequency = reference_mz(mz, owner, tolerance, unit, min_frequency=0.05, n_spectra=len(spectra))
        var = _table(path, mz=None, tolerance=tolerance, unit=unit, min_frequency=0.05).var
        np.testing.assert_allclose(var["mz"], centre, rtol=1e-12)
        np.testing.assert_array_equal(var["frequency"], frequency)


def test_regions_and_origins(tmp_path, handmade):
    spectra = {(x, y): ([100.0], [x + 10.0 * y]) for x, y in [(101, 51), (102, 51), (140, 90), (141, 91)]}
    sdata = read_imzml(handmade(tmp_path / "a.imzML", spectra), mz=[100.0])
    table = sdata.tables["msi"]
    assert table.obs["col"].tolist() == [0, 1, 39, 40]
    assert table.obs["row"].tolist() == [0, 0, 39, 40]
    image = sdata.images["a_tic"]
    assert image.shape == (1, 41, 41)
    assert float(image[0, 39, 39]) == 1040
    assert float(image.sum()) == table.obs["tic"].sum()


def test_cache_is_used_and_distrusted(tmp_path, handmade, monkeypatch, caplog):
    monkeypatch.setattr(_imzml_index, "_CACHE_FROM", 0)
    monkeypatch.setattr(settings, "_cache_dir", tmp_path / "cache")
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    _is_right(path)
    (cached,) = (tmp_path / "cache" / "imzml").glob("*")
    with monkeypatch.context() as patched:
        patched.setattr(_imzml_index, "scan_spectra", lambda *_: pytest.fail("the cache was not used"))
        _is_right(path)
    for damage in (b"", b"no zip", cached.read_bytes()[:-30], cached.read_bytes().replace(b"\x03", b"\x04")):
        cached.write_bytes(damage)
        _is_right(path)
    np.savez(cached, fields=np.zeros((3, 2)))
    _is_right(path)
    changed = handmade(tmp_path / "a.imzML", {k: SPECTRA[k] for k in [(3, 5), (4, 5)]})
    assert _table(changed).n_obs == 2  # the same uuid, another size
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(settings, "_cache_dir", blocked)
    assert _table(changed).n_obs == 2


def test_several_threads_at_once(tmp_path, handmade):
    path, right = handmade(tmp_path / "a.imzML", SPECTRA), []
    threads = [
        threading.Thread(target=lambda: right.append(_table(path).X.toarray().tolist() == EXPECTED)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_checksum(tmp_path, handmade):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    with pytest.raises(ValueError, match="holds no checksum"):
        _table(path, check_checksum=True)
    digest = hashlib.sha1(path.with_suffix(".ibd").read_bytes()).hexdigest().upper()
    term = f'<cvParam accession="IMS:1000091" name="ibd SHA-1" value="{digest}"/></fileContent>'
    path.write_text(path.read_text().replace("</fileContent>", term))
    _is_right(path, check_checksum=True)
    data = bytearray(path.with_suffix(".ibd").read_bytes())
    data[20] ^= 1
    path.with_suffix(".ibd").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="differs from what was exported: its sha1 is"):
        _table(path, check_checksum=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('value="16"', 'value="3"', "begin inside the 16 bytes of its identifier"),
        ('value="16"', 'value="90000"', "is truncated: .* bytes, at least 90024 expected"),
        ('value="16"', 'value="-5"', "begin inside the 16 bytes|is truncated"),
        (
            'IMS:1000103" name="external" value="3"',
            'IMS:1000103" name="external" value="2000000000000000000"',
            "is truncated",
        ),
        ('IMS:1000103" name="external" value="3"', 'IMS:1000103" name="external" value="-3"', "negative length"),
        (
            'IMS:1000103" name="external" value="3"',
            'IMS:1000103" name="external" value="many"',
            "is 'many', expected a whole",
        ),
        ('IMS:1000050" name="position" value="3"', 'IMS:1000050" name="position" value=""', "lacks position x"),
        ('ref="mzArray"', 'ref="other"', "lacks an m/z array"),
        ("</spectrum>", "</spectra>", "broken or truncated XML"),
        ("</spectrumList></run></mzML>", "</spectrumList></run>", "broken or truncated XML"),
        ('<spectrumList count="3">', '<list count="3">', "broken or truncated XML"),
        ("<run ", "<ran ", "broken or truncated XML"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, handmade, old, new, message):
    path = handmade(tmp_path / "a.imzML", SPECTRA, replace=[(old, new)])
    with pytest.raises(ValueError, match=message):
        _table(path)


def test_zero_pixels(tmp_path, handmade):
    with pytest.raises(ValueError, match="holds no spectra"):
        _table(handmade(tmp_path / "a.imzML", {}))


def test_no_list_of_spectra(tmp_path):
    path = tmp_path / "a.imzML"
    path.write_text("<mzML><run></run></mzML>")
    path.with_suffix(".ibd").write_bytes(b"\0" * 16)
    with pytest.raises(ValueError, match="it has no list of spectra"):
        _table(path)


def test_written_by_pyimzml_on_the_fast_path(tmp_path, fallback):
    with ImzMLWriter(str(tmp_path / "a.imzML"), mode="processed") as writer:
        for place, (mz, intensity) in SPECTRA.items():
            writer.addSpectrum(mz, intensity, (*place, 1))
    _is_right(tmp_path / "a.imzML", pixel_size=10)
    assert not fallback()


@pytest.mark.realdata
def test_real_files_on_the_fast_path(data_dir, fallback):
    for path in (data_dir / "imzml").glob("**/*.imzML"):
        read_imzml(path, mz=[500.0], pixel_size=50, tolerance=0.5, unit="Da")
        assert not fallback(), path

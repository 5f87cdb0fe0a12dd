"""imzML files that are damaged without an outward sign, or made to fill the memory; and their cache, which may fail."""

import errno
import os
import re
import tracemalloc
import zlib

import numpy as np
import pytest

from stmsi import settings
from stmsi._imzml import file as _imzml_file
from stmsi._imzml import index as _imzml_index
from stmsi.io import read_imzml
from stmsi.pp import pick_peaks

SPECTRA = {
    (3, 5): ([100.0, 200.0, 300.0], [1.0, 2.0, 3.0]),
    (4, 5): ([100.0, 250.0], [4.0, 5.0]),
    (3, 6): ([200.0], [6.0]),
}
MZ = [100.0, 200.0, 250.0, 300.0]


@pytest.fixture(autouse=True)
def _plain_numpy(monkeypatch):
    """Nothing here depends on the engine; compiling would take most of the time."""
    monkeypatch.setenv("STMSI_COMPILED", "0")


def table(path, **options):
    return read_imzml(path, **({"mz": MZ, "check_uuid": False} | options)).tables["msi"]


def compressed(handmade, path, spectra=SPECTRA, **options):
    return handmade(path, spectra, compressed=True, **options)


# --------------------------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize("leave_out", [(), ("103",), ("103", "104")], ids=["", "no length", "no lengths"])
@pytest.mark.parametrize("damage", ["checksum", "value", "cut"])
def test_a_damaged_stream_is_named_with_its_pixel(tmp_path, handmade, leave_out, damage):
    """Stored blocks unpack whatever their bytes are: only the checksum tells."""
    path = compressed(handmade, tmp_path / "a.imzML", leave_out=leave_out)
    ibd = path.with_suffix(".ibd")
    raw, stream = ibd.read_bytes(), zlib.compress(np.array([6.0], "<f4").tobytes())
    assert raw.endswith(stream)
    plain = bytearray(zlib.compress(np.array([6.0], "<f4").tobytes(), 0))
    head = raw[: -len(stream)]
    if damage == "cut":
        plain = plain[:-2]
    elif damage == "checksum":
        plain[-1] ^= 1
    else:
        plain[-5] ^= 1
    # the last array: its encoded length grows with it
    text = path.read_text()
    path.write_text(re.sub(rf'(1000104" name="external" value=)"{len(stream)}"', rf'\1"{len(plain)}"', text))
    ibd.write_bytes(head + bytes(plain))
    with pytest.raises(
        ValueError, match=r"a\.ibd: the spectrum at x=3, y=6 cannot be read: the zlib stream (is damaged|ends)"
    ):
        table(path)


def test_a_stream_that_holds_more_than_is_said(tmp_path, handmade):
    path = compressed(handmade, tmp_path / "a.imzML")
    path.write_text(re.sub(r'(1000103" name="external" value=)"3"', r'\1"2"', path.read_text()))
    with pytest.raises(
        ValueError, match=r"x=3, y=5 cannot be read: 2 values of . bytes expected, the zlib stream holds more"
    ):
        table(path)


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.fixture
def limited(monkeypatch):
    """Streams of 1 MB at most."""
    for module in (_imzml_file, _imzml_index):
        monkeypatch.setattr(module, "LARGEST_STREAM", 10**6)


def bomb(handmade, path, size=40 * 10**6, leave_out=("103", "104")):
    """Spectra that all point to one stream of one number."""
    spectra = {(x, 1): ([100.0], [1.0]) for x in range(1, 60)}
    path = compressed(handmade, path, spectra, leave_out=leave_out, mz_type="<f4")
    stream = zlib.compress(np.full(size // 4, 100, "<f4").tobytes(), 9)
    path.write_text(re.sub(r'(1000102" name="external" value=)"\d+"', r'\1"16"', path.read_text()))
    path.with_suffix(".ibd").write_bytes(bytes(16) + stream)
    return path


@pytest.mark.parametrize("out", [None, "a.zarr"])
def test_a_stream_without_a_length_that_fills_the_memory(tmp_path, handmade, limited, out):
    path = bomb(handmade, tmp_path / "a.imzML")
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"x=1, y=1 cannot be read: the zlib stream unpacks to more than 1000000 bytes"
        ):
            table(path, out=None if out is None else tmp_path / out)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert {p.name for p in tmp_path.iterdir()} == {"a.imzML", "a.ibd"}


def test_many_spectra_of_one_stream(tmp_path, handmade):
    path = bomb(handmade, tmp_path / "a.imzML", 4 * 10**5)
    with pytest.raises(
        ValueError, match=r"a\.ibd: the compressed intensities would unpack to 23600000 bytes, more than a file of"
    ):
        table(path)


@pytest.mark.parametrize("length", [3 * 10**6, 2 * 10**18])
def test_a_length_that_the_stream_cannot_have(tmp_path, handmade, length):
    path = compressed(handmade, tmp_path / "a.imzML")
    path.write_text(re.sub(r'(1000103" name="external" value=)"3"', rf'\1"{length}"', path.read_text()))
    with pytest.raises(
        ValueError, match=rf"a compressed array of spectrum 1 should hold {length} values; its \d+ bytes unpack to"
    ):
        table(path)


def test_lengths_are_measured_piece_by_piece(tmp_path, handmade):
    """Streams without a length give what streams with one do, also where all share one axis."""
    rng = np.random.default_rng(0)
    mz = np.sort(rng.uniform(100, 900, 30_000))
    spectra = {(x, 1): (mz, rng.uniform(0, 9, len(mz))) for x in range(1, 4)}
    known = compressed(handmade, tmp_path / "a.imzML", spectra, mode="continuous")
    unknown = compressed(handmade, tmp_path / "b.imzML", spectra, mode="continuous", leave_out=("103", "104"))
    for options in ({"mz": [300.0, 500.0], "tolerance": 0.5, "unit": "Da"}, {"mz": None}):
        left, right = table(known, **options), table(unknown, **options)
        np.testing.assert_array_equal(left.X.toarray(), right.X.toarray())
        np.testing.assert_array_equal(left.obs["tic"], right.obs["tic"])


@pytest.mark.parametrize("where", [(4_000_000_000, 4), (4, 4_000_000_000), (2**40, 2**40)])
def test_one_wrong_position_does_not_ask_for_terabytes(tmp_path, handmade, where):
    spectra = {(x, y): ([100.0], [1.0]) for x in (1, 2) for y in (1, 2)} | {where: ([100.0], [1.0])}
    path = handmade(tmp_path / "a.imzML", spectra)
    told = re.escape(f"'({where[0]}, {where[1]})'")
    for options in ({}, {"mz": None}, {"out": tmp_path / "a.zarr"}):
        with pytest.raises(
            ValueError, match=rf"a\.imzML: 5 pixels lie on a raster of .*{told}.*Correct or leave out"
        ) as error:
            table(path, **options)
        assert isinstance(error.value, ValueError)
    assert not (tmp_path / "a.zarr").exists()
    assert len(pick_peaks(path, spectrum_type="centroid")) == 1  # it needs no raster


# --------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Every index is kept."""
    monkeypatch.setattr(_imzml_index, "_CACHE_FROM", 0)
    monkeypatch.setattr(settings, "_cache_dir", tmp_path / "cache")
    return tmp_path / "cache" / "imzml"


def test_a_replaced_file_never_reads_an_old_index(tmp_path, handmade, cache):
    """The same identifier, size and times, as after ``rsync -t`` of a file that was edited."""
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    assert table(path).obs["col"].tolist() == [0, 1, 0]
    stat = path.stat()
    text = path.read_text()
    swapped = text.replace('name="position" value="4"', 'name="position" value="9"')
    assert len(swapped) == len(text)
    assert swapped != text
    path.write_text(swapped)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert table(path).obs["col"].tolist() == [0, 6, 0]
    assert len(list(cache.iterdir())) == 2


def test_the_key_holds_path_and_content(tmp_path, handmade, cache, monkeypatch):
    keys = []
    real = _imzml_index._cache_file
    monkeypatch.setattr(_imzml_index, "_cache_file", lambda *args: keys.append(real(*args)) or keys[-1])

    class Stat:
        st_size, st_mtime_ns, st_ctime_ns = 1, 2, 3

    for name, x in (("a", 3), ("a", 3), ("a", 9), ("b", 3)):
        path = handmade(tmp_path / f"{name}.imzML", {(x, 5): ([100.0], [1.0])})
        with monkeypatch.context() as patched:
            patched.setattr(_imzml_index, "_cache_file", lambda *args: keys.append(_key(real, Stat, *args)) or keys[-1])
            table(path)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def _key(real, stat, path, buffer, header):
    """The key where times and sizes tell nothing."""

    class Path(type(path)):
        def stat(self, **_):
            return stat

    return real(Path(path), buffer, header)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", ["mkdir", "savez", "zip"])
def test_a_cache_that_cannot_be_written_stops_no_run(tmp_path, handmade, cache, monkeypatch, code, step):
    def fail(where, *_, **__):
        if step == "savez":
            where.write_bytes(b"half")
        if step == "zip":
            msg = "Can't close the ZIP file while there is an open writing handle on it."
            raise ValueError(msg)
        raise OSError(code, os.strerror(code))

    path = handmade(tmp_path / "a.imzML", SPECTRA)
    if step == "mkdir":
        monkeypatch.setattr("pathlib.Path.mkdir", fail)
    else:
        monkeypatch.setattr(np, "savez", fail)
    assert table(path).obs["col"].tolist() == [0, 1, 0]
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_cache_in_a_device(tmp_path, handmade, cache, monkeypatch):
    monkeypatch.setattr(settings, "_cache_dir", type(tmp_path)("/dev/full"))
    assert table(handmade(tmp_path / "a.imzML", SPECTRA)).n_obs == 3


@pytest.mark.parametrize("error", [MemoryError, NotImplementedError, RuntimeError, zlib.error])
def test_a_damaged_cache_is_read_anew(tmp_path, handmade, cache, monkeypatch, error):
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    table(path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(np, "load", fail)
    assert table(path).n_obs == 3

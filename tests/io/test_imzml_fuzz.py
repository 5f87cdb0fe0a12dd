"""Damaged files: an error or numbers, but no crash, no hang and no half-written store."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stmsi.io import read_imzml

RNG = np.random.default_rng(0)
SPECTRA = {(x, y): (np.sort(RNG.uniform(100, 900, 6)), RNG.uniform(0, 9, 6)) for x in (1, 2) for y in (1, 2)}
TOKENS = [
    b"<",
    b">",
    b'"',
    b"'",
    b"&",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"\0",
    b"-",
    b"9" * 25,
    b"1e9",
    b"</spectrum>",
]
TOKENS += [
    b"<spectrum ",
    b"<spectrumList ",
    b'value="-1"',
    b'value="99999999999999"',
    b"\xff\xfe",
    b"<!DOCTYPE x>",
    b" ",
    b"=",
]

edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6)),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=4,
)


def _damaged(data: bytes, changes) -> bytes:
    """Bytes put in the place of `drop` others, and the end cut off where they are empty."""
    out = bytearray(data)
    for where, new, drop in changes:
        at = int(where * len(out)) if out else 0
        out[at : at + drop] = new
    return bytes(out)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("compiled", ["1", "0"])
@pytest.mark.parametrize("compressed", [False, True])
@settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(xml=st.one_of(st.just([]), edits), binary=st.one_of(st.just([]), edits), cut=st.floats(0.5, 1), mz=st.booleans())
def test_no_damage_crashes(handmade, pair, monkeypatch, compiled, compressed, xml, binary, cut, mz):
    monkeypatch.setenv("STMSI_COMPILED", compiled)
    path = handmade(pair / "a.imzML", SPECTRA, compressed=compressed)
    ibd = path.with_suffix(".ibd")
    path.write_bytes(_damaged(path.read_bytes(), xml))
    data = _damaged(ibd.read_bytes(), binary)
    ibd.write_bytes(data[: max(int(len(data) * cut), 1)])
    out = pair / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"mz": [300.0, 500.0] if mz else None, "min_frequency": 0.0, "tolerance": 50, "pixel_size": 1}
        try:
            table = read_imzml(path, **options, check_uuid=False).tables["msi"]
        except (ValueError, OSError):
            with pytest.raises((ValueError, OSError)):
                read_imzml(path, **options, check_uuid=False, out=out)
        else:
            assert np.isfinite(table.X.data).all()
            assert (table.X.data >= 0).all()
    assert {p.name for p in Path(pair).iterdir()} == {"a.imzML", "a.ibd"}


@pytest.mark.parametrize("compiled", ["1", "0"])
def test_every_truncation_is_an_error(handmade, tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("STMSI_COMPILED", compiled)
    path = handmade(tmp_path / "a.imzML", SPECTRA)
    text, data = path.read_bytes(), path.with_suffix(".ibd").read_bytes()
    for stop in range(1, len(text.rstrip()), 37):
        path.write_bytes(text[:stop])
        with pytest.raises(ValueError, match=r"XML|complete"):
            read_imzml(path, mz=[300.0])
    path.write_bytes(text)
    for stop in range(1, len(data), 11):
        path.with_suffix(".ibd").write_bytes(data[:stop])
        with pytest.raises(ValueError, match=r"truncated|does not belong"):
            read_imzml(path, mz=[300.0])

"""An imzML written by hand, so that every detail that programs get wrong can be got wrong."""

from __future__ import annotations

import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest

_TYPES = {"<f4": "MS:1000521", "<f8": "MS:1000523", "<i4": "MS:1000519", "<i8": "MS:1000522"}
_UUID = uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF)


def _array(kind: str, at: int, data: np.ndarray, n_bytes: int, o: dict) -> str:
    code = {"mz": "MS:1000514", "intensity": "MS:1000515"}[kind]
    terms = {"102": at, "103": len(data), "104": n_bytes}
    params = [
        f'<cvParam cvRef="IMS" accession="IMS:1000{c}" name="external" value="{o["number"](v)}"/>'
        for c, v in terms.items()
        if c not in o["leave_out"]
    ]
    if o["inline"]:
        compression = "MS:1000574" if o["compressed"] else "MS:1000576"
        codes = (code, _TYPES[o[f"{kind}_type"]], compression)
        params += [f'<cvParam accession="{c}" cvRef="MS" name="x" value=""/>' for c in codes]
    else:
        params.insert(0, f'<referenceableParamGroupRef ref="{kind}Array"/>')
    return f'<binaryDataArray encodedLength="0">{"".join(params)}<binary/></binaryDataArray>\n'


def _handmade(path: Path, spectra: dict, **options) -> Path:
    """An imzML of `spectra`, (x, y[, z]) -> (mz, intensity).

    Options: `mz_type`, `intensity_type`; `compressed`; `inline` (types in each array); `leave_out` (accessions of the
    external fields); `number` (how they are spelled); `gap` (bytes before each array); `tail` (bytes behind all);
    `count`; `replace` (pairs of text in the XML); `encoding`; `mode`; `spectrum_type`.
    """
    o = {
        "mz_type": "<f8", "intensity_type": "<f4", "compressed": False, "inline": False, "leave_out": (), "number": str,
        "gap": b"", "tail": b"", "count": len(spectra), "replace": (), "encoding": "utf-8", "mode": "processed",
        "spectrum_type": "centroid", "first_after": False,
    } | options  # fmt: skip
    binary, blocks = bytearray(_UUID.bytes), []
    for number, (place, arrays) in enumerate(spectra.items(), 1):
        parts = []
        for kind, values in zip(("mz", "intensity"), arrays, strict=True):
            data = np.asarray(values, o[f"{kind}_type"])
            raw = zlib.compress(data.tobytes()) if o["compressed"] else data.tobytes()
            binary += o["gap"]
            parts.append(_array(kind, len(binary), data, len(raw), o))
            binary += raw
        position = "".join(
            f'<cvParam cvRef="IMS" accession="IMS:100005{i}" name="position" value="{v}"/>' for i, v in enumerate(place)
        )
        blocks.append(
            f'<spectrum id="s{number}" defaultArrayLength="0" index="{number}"><referenceableParamGroupRef ref="spectrum1"/>\n'
            f'<scanList count="1"><scan>{position}</scan></scanList>\n'
            f'<binaryDataArrayList count="2">{"".join(parts)}</binaryDataArrayList></spectrum>\n'
        )
    groups = "".join(
        f'<referenceableParamGroup id="{kind}Array"><cvParam accession="{code}" name="array"/>'
        f'<cvParam accession="{_TYPES[o[f"{kind}_type"]]}" name="type"/>'
        f'<cvParam accession="{"MS:1000574" if o["compressed"] else "MS:1000576"}" name="compression"/>'
        "</referenceableParamGroup>\n"
        for kind, code in (("mz", "MS:1000514"), ("intensity", "MS:1000515"))
        if not o["inline"]
    )
    content = {"processed": "IMS:1000031", "continuous": "IMS:1000030"}[o["mode"]]
    kind = {"profile": "MS:1000128", "centroid": "MS:1000127"}[o["spectrum_type"]]
    text = (
        f'<?xml version="1.0" encoding="{o["encoding"]}"?>\n<mzML xmlns="http://psi.hupo.org/ms/mzml" version="1.1">\n'
        f'<fileDescription><fileContent><cvParam accession="{content}" name="mode"/>'
        f'<cvParam accession="IMS:1000080" name="uuid" value="{{{_UUID}}}"/></fileContent></fileDescription>\n'
        f"<referenceableParamGroupList>{groups}"
        f'<referenceableParamGroup id="spectrum1"><cvParam accession="{kind}" name="type"/></referenceableParamGroup>'
        "</referenceableParamGroupList>\n"
        '<scanSettingsList count="1"><scanSettings id="a"><cvParam accession="IMS:1000046" value="50" '
        'unitAccession="UO:0000017"/><cvParam accession="IMS:1000047" value="50" unitAccession="UO:0000017"/>'
        "</scanSettings></scanSettingsList>\n"
        f'<run id="r"><spectrumList count="{o["count"]}">\n{"".join(blocks)}</spectrumList></run></mzML>\n'
    )
    for old, new in o["replace"]:
        assert old in text, old
        text = text.replace(old, new)
    path.write_bytes(text.encode(o["encoding"]))
    path.with_suffix(".ibd").write_bytes(bytes(binary) + o["tail"])
    return path


@pytest.fixture
def handmade():
    """See :func:`_handmade`."""
    return _handmade


@pytest.fixture(params=["compiled", pytest.param("numpy", marks=pytest.mark.once)])
def engine(request, monkeypatch):
    """With numba and without."""
    monkeypatch.setenv("STMSI_COMPILED", "1" if request.param == "compiled" else "0")
    return request.param

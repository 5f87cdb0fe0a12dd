"""The list of spectra read by an XML parser: slow, and right where the fast readers cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, ParseError, iterparse

import numpy as np

from stmsi._core.spectra import imzml_fields as f
from stmsi._imzml.header import Header, header_of, level_of, local_name

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

_POSITION = {f.POSITION_X: f.X, f.POSITION_Y: f.Y, f.POSITION_Z: f.Z}
_EXTERNAL = {f.EXTERNAL_OFFSET: f.OFFSET, f.EXTERNAL_LENGTH: f.LENGTH, f.EXTERNAL_ENCODED: f.ENCODED}
_NEEDED = {f.X: "position x", f.Y: "position y", f.MZ: "an m/z array", f.INTENSITY: "an intensity array"}


def parse_spectra(buffer: mmap.mmap, path: Path) -> tuple[Header, np.ndarray]:
    """Header and fields of all spectra; `path` is named in errors."""
    rows: list[list[int]] = []
    header, listing = None, None
    buffer.seek(0)
    try:
        root = None
        for event, element in iterparse(buffer, events=("start", "end")):
            root = element if root is None else root
            name = local_name(element)
            if event == "start":
                if name == "spectrumList":
                    listing = element
                    header = header_of(root, element, 0) if header is None else header
            elif name == "spectrum" and header is not None and listing is not None:
                rows.append(_spectrum(element, header, path, len(rows)))
                listing.clear()
    except (ParseError, LookupError) as error:
        msg = f"{path} is broken or truncated XML ({error}). Copy or export it again."
        raise ValueError(msg) from error
    if header is None:
        msg = f"{path} is not a complete imzML file: it has no list of spectra."
        raise ValueError(msg)
    return header, np.array(rows, np.int64).reshape(-1, f.N_FIELDS)


def _spectrum(element: Element, header: Header, path: Path, number: int) -> list[int]:
    row = [f.MISSING] * f.N_FIELDS
    row[f.TRAITS] = _traits(element, header, 0)
    row[f.DEFAULT_LENGTH] = _integer(element.get("defaultArrayLength"), "defaultArrayLength", path, number)
    for child in element.iter():
        name = local_name(child)
        if name == "cvParam":
            column = _POSITION.get(f.accession_code(child.get("accession", "")))
            if column is not None and row[column] == f.MISSING:
                row[column] = _integer(child.get("value"), str(child.get("name")), path, number)
        elif name == "binaryDataArray":
            kind, array = _array(child, header, path, number)
            base = {f.KIND_MZ: f.MZ, f.KIND_INTENSITY: f.INTENSITY}.get(kind)
            if base is not None and row[base + f.GROUP] == f.MISSING:
                row[base : base + 5] = array
    absent = [what for column, what in _NEEDED.items() if row[column] == f.MISSING]
    if absent:
        msg = (
            f"{path} is not a complete imzML file: spectrum {number + 1} lacks {', '.join(absent)} (with an external "
            "offset). Export it again."
        )
        raise ValueError(msg)
    return row


def _traits(element: Element, header: Header, traits: int) -> int:
    """`traits` with what the terms and groups inside an element say; those of arrays are passed over."""
    for child in element:
        name = local_name(child)
        if name == "cvParam":
            traits = f.add_trait(traits, f.accession_code(child.get("accession", "")), level_of(child.get("value")))
        elif name == "referenceableParamGroupRef":
            group = header.groups.get(str(child.get("ref")))
            traits = traits if group is None else f.add_group_traits(traits, group.traits)
        elif name != "binaryDataArray":
            traits = _traits(child, header, traits)
    return traits


def _array(element: Element, header: Header, path: Path, number: int) -> tuple[int, list[int]]:
    names = list(header.groups)
    array, kind = [f.MISSING] * 3 + [-1, 0], f.KIND_NONE
    for child in element:
        name = local_name(child)
        if name == "referenceableParamGroupRef" and child.get("ref") in header.groups:
            group = header.groups[str(child.get("ref"))]
            if group.kind != f.KIND_NONE or array[f.GROUP] < 0:
                array[f.GROUP] = names.index(str(child.get("ref")))
            kind = group.kind or kind
        elif name == "cvParam":
            code = f.accession_code(child.get("accession", ""))
            if code in _EXTERNAL:
                if array[_EXTERNAL[code]] == f.MISSING:
                    array[_EXTERNAL[code]] = _integer(child.get("value"), str(child.get("name")), path, number)
            elif code in (f.MZ_ARRAY, f.INTENSITY_ARRAY):
                kind = f.KIND_MZ if code == f.MZ_ARRAY else f.KIND_INTENSITY
            else:
                array[f.FLAGS] = f.add_flag(array[f.FLAGS], code)
    if array[f.LENGTH] == f.MISSING:
        array[f.LENGTH] = _integer(element.get("arrayLength"), "arrayLength", path, number)
    return kind, array


def _integer(text: str | None, what: str, path: Path, number: int) -> int:
    """A whole number, also as ``1e+06`` or ``12.0``, as some programs write it."""
    if text is None or not text.strip():
        return f.MISSING
    try:
        value = float(text)
        exact = int(text) if text.strip().lstrip("+-").isdigit() else int(value)
        if value == int(value) and abs(value) < f.BIG:
            return exact
    except (ValueError, OverflowError):
        pass
    msg = f"{path} is not a complete imzML file: {what} of spectrum {number + 1} is {text!r}, expected a whole number."
    raise ValueError(msg)

"""Fast readers of the list of spectra in an imzML; what they do not understand is left to an XML parser.

pyimzML builds an XML element for every line, which takes about thirty times as long (docs/benchmarks.md).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.compiled import use_compiled
from stmsi._core.spectra import imzml_fields as f

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping

    Groups = Mapping[str, tuple[int, int]]


_CODES = b"|".join(
    [
        b"IMS:10000(?:50|51|52)|IMS:1000(?:102|103|104|141|142)|MS:1000(?:127|128|129|130|511|579|580|514|515|519|520|521|522|523|574|576)"
    ]
    + [b"MS:%d" % code for code in f.NUMPRESS]
)
# no prefixes, and atomic groups: what does not match at once is passed over
_ELEMENT = re.compile(
    rb"<(?:cvParam\s(?>[^<>]*?\baccession\s*=\s*[\"'])(" + _CODES + rb")[\"'][^<>]*>"
    rb"|referenceableParamGroupRef\s([^<>]*)>|binaryDataArray(?:\s([^<>]*))?>|spectrum\s([^<>]*)>"
    rb"|/(?:(binaryDataArray)|(spectrum)|(spectrumList))\s*>|(!|\?))"
)
_VALUE = re.compile(rb"(?<![\w:.-])value\s*=\s*(?:\"(-?\d{1,18})\"|'(-?\d{1,18})')")
_REF = re.compile(rb"(?<![\w:.-])ref\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_DEFAULT = re.compile(rb"(?<![\w:.-])(?:defaultA|a)rrayLength\s*=\s*[\"'](\d{1,18})[\"']")
_SMALLEST = 120  # bytes of a spectrum that holds what it must


def scan_spectra(buffer: mmap.mmap, start: int, groups: Groups, count: int | None) -> f.Scan:
    """The fields of all spectra of an imzML, from the byte `start` behind the opening tag of the list on.

    `groups` holds the kind of array that each referenceable group describes, and its traits of a spectrum; `count` is
    the announced number of spectra.
    """
    size = len(buffer)
    room = (size - start) // _SMALLEST + 1
    if count is not None and not 0 <= count <= room:
        return f.Scan(np.empty((0, f.N_FIELDS), np.int64), start, f"{count} spectra announced")
    if use_compiled():
        result = _scan_compiled(buffer, start, groups, room if count is None else count)
    else:
        result = _scan_regex(buffer, start, groups)
    if result.problem:
        return result
    if count is not None and count != len(result.fields):
        return result._replace(problem=f"{len(result.fields)} spectra found, {count} announced")
    if buffer.find(b"spectrumList", result.end) >= 0:
        return result._replace(problem="several lists of spectra")
    return result


def _scan_compiled(buffer: mmap.mmap, start: int, groups: Groups, room: int) -> f.Scan:
    from stmsi._core.spectra.imzml_scan_kernel import PROBLEMS, scan

    names = [name.encode() for name in groups]
    fields = np.empty((room, f.N_FIELDS), np.int64)
    text, ends = b"".join(names) or b"\0", np.cumsum([len(name) for name in names], dtype=np.int64)
    data, name_data = np.frombuffer(buffer, np.uint8), np.frombuffer(text, np.uint8)
    kinds = np.array([kind for kind, _ in groups.values()], np.int64)
    traits = np.array([word for _, word in groups.values()], np.int64)
    found, end, problem = scan(data, start, name_data, ends, kinds, traits, fields)
    return f.Scan(fields[:found], end, PROBLEMS[problem])


def _scan_regex(buffer: mmap.mmap, start: int, groups: Groups) -> f.Scan:
    """The same by regular expressions, where there is no numba: slower, but far faster than a tree of elements."""
    place = {name.encode(): (number, *said) for number, (name, said) in enumerate(groups.items())}
    columns = {b"IMS:1000050": f.X, b"IMS:1000051": f.Y, b"IMS:1000052": f.Z}
    parts = {b"IMS:1000102": f.OFFSET, b"IMS:1000103": f.LENGTH, b"IMS:1000104": f.ENCODED}
    traits = {b"MS:%d" % code: code for code in (*f.TRAIT_OF, *f.LEVEL_OF, f.MS_LEVEL)}
    kinds = {b"MS:1000514": f.KIND_MZ, b"MS:1000515": f.KIND_INTENSITY}
    empty_row, empty_array = [f.MISSING] * f.N_FIELDS, [f.MISSING] * 3 + [-1, 0]
    rows: list[list[int]] = []
    row: list[int] | None = None
    array: list[int] | None = None
    kind, end, problem = 0, start, "the file ends inside the list of spectra"
    for match in _ELEMENT.finditer(buffer, start):
        end = match.end()
        code, ref, opened, spectrum, array_end, spectrum_end, list_end, rare = match.groups()
        if code is not None:
            if row is None:
                continue
            if code in columns or code in parts:
                found = _VALUE.search(match[0])
                if found is None:
                    problem = "a number that is not plain"
                    break
                value = int(found[1] or found[2])
                target, column = (row, columns[code]) if code in columns else (array, parts.get(code, 0))
                if target is not None and target[column] == f.MISSING:
                    target[column] = value
            elif array is None and code in traits:
                found = _VALUE.search(match[0])
                if found is None and traits[code] == f.MS_LEVEL:
                    problem = "a number that is not plain"
                    break
                row[f.TRAITS] = f.add_trait(row[f.TRAITS], traits[code], int(found[1] or found[2]) if found else 0)
            elif array is not None:
                kind = kinds.get(code, kind)
                if code not in kinds:
                    array[f.FLAGS] = f.add_flag(array[f.FLAGS], f.accession_code(code.decode()))
        elif ref is not None:
            found = _REF.search(ref)
            number, of, said = (-1, 0, 0) if found is None else place.get(found[1] or found[2] or b"", (-1, 0, 0))
            if array is None and row is not None:
                row[f.TRAITS] = f.add_group_traits(row[f.TRAITS], said)
            elif array is not None and found is not None:
                kind = of or kind
                array[f.GROUP] = number if of or array[f.GROUP] < 0 else array[f.GROUP]
        elif spectrum is not None:
            row = empty_row.copy()
            row[f.TRAITS] = 0
            found = _DEFAULT.search(spectrum)
            row[f.DEFAULT_LENGTH] = int(found[1]) if found else f.MISSING
        elif array_end is not None:
            if array is None or row is None:
                problem = "an element is not well-formed"
                break
            base = {f.KIND_MZ: f.MZ, f.KIND_INTENSITY: f.INTENSITY}.get(kind)
            if base is not None and row[base + f.GROUP] != f.MISSING:
                problem = "two arrays of one kind in a spectrum"
                break
            if base is not None:
                row[base : base + 5] = array
            array = None
        elif spectrum_end is not None:
            if row is None or f.MISSING in (row[f.X], row[f.Y], row[f.MZ], row[f.INTENSITY]):
                problem = "a spectrum without position, offset or length"
                break
            rows.append(row)
            row = None
        elif rare is not None:
            problem = "a declaration or comment"
            break
        elif list_end is not None:
            problem = "an element is not well-formed" if row is not None else ""
            break
        else:
            array, kind = empty_array.copy(), 0
            found = _DEFAULT.search(opened or b"")
            array[f.LENGTH] = f.MISSING
            default = int(found[1]) if found else f.MISSING
            if default != f.MISSING:  # only where the external length is missing
                problem = "a length of an array that is not external"
                break
    fields = np.array(rows, np.int64).reshape(-1, f.N_FIELDS)
    return f.Scan(fields, end, problem)

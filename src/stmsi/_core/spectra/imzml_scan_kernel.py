"""The compiled reader of an imzML's XML; imported only where numba is to be used."""

# mypy: disable-error-code="no-untyped-def"
# numba takes the types from the call

from __future__ import annotations

import numpy as np

from stmsi._core.compiled import compiled
from stmsi._core.spectra import imzml_fields as f

_CV, _REF = np.frombuffer(b"cvParam", np.uint8), np.frombuffer(b"referenceableParamGroupRef", np.uint8)
_SPECTRUM, _ARRAY = np.frombuffer(b"spectrum", np.uint8), np.frombuffer(b"binaryDataArray", np.uint8)
_LIST = np.frombuffer(b"spectrumList", np.uint8)
_ACCESSION, _VALUE, _REF_ATTRIBUTE = (np.frombuffer(b, np.uint8) for b in (b"accession", b"value", b"ref"))
_DEFAULT, _ARRAY_LENGTH = (np.frombuffer(b, np.uint8) for b in (b"defaultArrayLength", b"arrayLength"))
_DTYPE_ACCESSION = np.array(list(f.DTYPE_OF), np.int64)
_DTYPE_CODE = np.array(list(f.DTYPE_OF.values()), np.int64)
_NUMPRESS = np.array(f.NUMPRESS, np.int64)
_MISSING, _BIG, _IMS, _DEPTH = f.MISSING, f.BIG, f.IMS, 64
_N_FIELDS, _INTENSITY, _TRAITS = f.N_FIELDS, f.INTENSITY, f.TRAITS
_TRAIT_ACCESSION, _TRAIT_BIT = np.array(list(f.TRAIT_OF), np.int64), np.array(list(f.TRAIT_OF.values()), np.int64)
_IMPLIED_ACCESSION = np.array(list(f.LEVEL_OF), np.int64)
_IMPLIED_LEVEL = np.array(list(f.LEVEL_OF.values()), np.int64)
_MS_LEVEL, _MOST = f.MS_LEVEL, f.MOST_LEVELS
_OWN, _GROUP = f.LEVEL_SHIFT, f.GROUP_LEVEL_SHIFT
_OPEN_OTHER, _OPEN_CV, _OPEN_REF, _OPEN_SPECTRUM, _OPEN_ARRAY, _OPEN_LIST = 0, 1, 2, 3, 4, 5

PROBLEMS = (
    "",
    "the file ends inside the list of spectra",
    "an element is not well-formed",
    "a declaration that is not plain XML",
    "a number that is not plain",
    "more spectra than the list announces",
    "a spectrum without position, offset or length",
    "two arrays of one kind in a spectrum",
)


@compiled
def _same(data, start, stop, name):
    if stop - start != name.size:
        return False
    for i in range(name.size):  # noqa: SIM110 (numba knows no all())
        if data[start + i] != name[i]:
            return False
    return True


@compiled
def _space(byte):
    return byte == 32 or byte == 10 or byte == 13 or byte == 9


@compiled
def _skip_space(data, p):
    while p < data.size and _space(data[p]):
        p += 1
    return p


@compiled
def _integer(data, start, stop):
    """A plain decimal integer, MISSING where it is anything else."""
    p, sign = start, 1
    if p < stop and data[p] == 45:
        sign, p = -1, p + 1
    if p >= stop:
        return _MISSING
    value = np.int64(0)
    while p < stop:
        digit = np.int64(data[p]) - 48
        if digit < 0 or digit > 9 or value > _BIG // 16:
            return _MISSING
        value = value * 10 + digit
        p += 1
    return sign * value


@compiled
def _accession(data, start, stop):
    if stop - start == 11 and data[start] == 73 and data[start + 1] == 77 and data[start + 2] == 83:
        shift, p = _IMS, start + 3
    elif stop - start == 10 and data[start] == 77 and data[start + 1] == 83:
        shift, p = 0, start + 2
    else:
        return np.int64(-1)
    if data[p] != 58 or data[p + 1] == 45:
        return np.int64(-1)
    value = _integer(data, p + 1, stop)
    return np.int64(-1) if value == _MISSING else value + shift


@compiled
def _flag(flags, code):
    if flags & 15 == 0:
        for i in range(_DTYPE_ACCESSION.size):
            if _DTYPE_ACCESSION[i] == code:
                return flags | (_DTYPE_CODE[i] + 1)
    if flags >> 4 == 0:
        if code == 1000576:
            return flags | (1 << 4)
        if code == 1000574:
            return flags | (2 << 4)
        for i in range(_NUMPRESS.size):
            if _NUMPRESS[i] == code:
                return flags | (3 << 4)
    return flags


@compiled
def _trait(traits, code, level):
    for i in range(_TRAIT_ACCESSION.size):
        if _TRAIT_ACCESSION[i] == code:
            return traits | _TRAIT_BIT[i]
    if code == _MS_LEVEL and 0 < level <= _MOST:
        return (traits & ~(_MOST << _OWN)) | (level << _OWN)
    for i in range(_IMPLIED_ACCESSION.size):
        if _IMPLIED_ACCESSION[i] == code and (traits >> _OWN) & _MOST == 0:
            return traits | (_IMPLIED_LEVEL[i] << _OWN)
    return traits


@compiled
def _group_trait(traits, group):
    traits |= (group & 15) << 4
    if (traits >> _GROUP) & _MOST == 0:
        traits |= ((group >> _OWN) & _MOST) << _GROUP
    return traits


@compiled
def scan(data, start, group_names, group_ends, group_kind, group_traits, fields):
    """Fill `fields` from the byte behind ``<spectrumList ...>`` on.

    Every element must be closed by its own name, so that damage to the structure shows. Returns the number of spectra,
    where the list ends, and the number of the problem (0: none).
    """
    n = data.size
    p, found = start, 0
    names = np.zeros(_DEPTH, np.uint64)
    depth = 0
    in_spectrum, in_array = False, False
    row = np.full(_N_FIELDS, _MISSING, np.int64)
    array = np.full(5, _MISSING, np.int64)
    kind, array_default = 0, _MISSING
    while True:
        while p < n and data[p] != 60:
            p += 1
        if p + 3 >= n:
            return found, p, 1
        p += 1
        byte = data[p]
        if byte == 33:  # a comment, or something rare
            if data[p + 1] != 45 or data[p + 2] != 45:
                return found, p, 3
            p += 3
            while p + 2 < n and not (data[p] == 45 and data[p + 1] == 45):
                p += 1
            if p + 2 >= n:
                return found, p, 1
            if data[p + 2] != 62:
                return found, p, 2
            p += 3
            continue
        if byte == 63:
            return found, p, 3
        closing = byte == 47
        if closing:
            p += 1
        whole = begin = p
        hashed = np.uint64(14695981039346656037)
        while p < n:
            byte = data[p]
            if byte == 62 or byte == 47 or byte == 60 or _space(byte):
                break
            if byte == 58:
                begin = p + 1
            hashed = (hashed ^ np.uint64(byte)) * np.uint64(1099511628211)
            p += 1
        if p >= n:
            return found, p, 1
        if p == whole or data[p] == 60:
            return found, p, 2
        size, tag = p - begin, _OPEN_OTHER
        if size == 7 and _same(data, begin, p, _CV):
            tag = _OPEN_CV
        elif size == 26 and _same(data, begin, p, _REF):
            tag = _OPEN_REF
        elif size == 8 and _same(data, begin, p, _SPECTRUM):
            tag = _OPEN_SPECTRUM
        elif size == 15 and _same(data, begin, p, _ARRAY):
            tag = _OPEN_ARRAY
        elif size == 12 and _same(data, begin, p, _LIST):
            tag = _OPEN_LIST
        ends_spectrum, ends_array = False, False
        if closing:
            p = _skip_space(data, p)
            if p >= n:
                return found, p, 1
            if data[p] != 62:
                return found, p, 2
            p += 1
            if depth == 0:  # the list itself
                return found, p, 0 if tag == _OPEN_LIST else 2
            depth -= 1
            if names[depth] != hashed:
                return found, p, 2
            ends_spectrum, ends_array = tag == _OPEN_SPECTRUM, tag == _OPEN_ARRAY
        else:
            if tag == _OPEN_LIST or (tag == _OPEN_SPECTRUM and depth != 0):
                return found, p, 2
            if tag == _OPEN_SPECTRUM:
                in_spectrum = True
                row[:] = _MISSING
                row[_TRAITS] = 0
            elif tag == _OPEN_ARRAY:
                in_array, kind, array_default = True, 0, _MISSING
                array[:] = _MISSING
                array[3], array[4] = -1, 0
            code, value_start, value_stop = np.int64(-1), -1, -1
            self_closed = False
            while True:
                gap = p
                p = _skip_space(data, p)
                if p + 1 >= n:
                    return found, p, 1
                if data[p] == 62:
                    p += 1
                    break
                if data[p] == 47 and data[p + 1] == 62:
                    self_closed, p = True, p + 2
                    break
                if gap == p:
                    return found, p, 2
                a0 = p
                while p < n and data[p] != 61 and data[p] > 32 and data[p] != 60 and data[p] != 62:
                    p += 1
                a1 = p
                p = _skip_space(data, p)
                if p >= n:
                    return found, p, 1
                if data[p] != 61 or a0 == a1:
                    return found, p, 2
                p += 1
                p = _skip_space(data, p)
                if p >= n:
                    return found, p, 1
                quote = data[p]
                if quote != 34 and quote != 39:
                    return found, p, 2
                p += 1
                v0 = p
                while p < n and data[p] != quote and data[p] != 60:
                    p += 1
                if p >= n:
                    return found, p, 1
                if data[p] == 60:
                    return found, p, 2
                v1 = p
                p += 1
                if tag == _OPEN_CV:
                    if _same(data, a0, a1, _ACCESSION):
                        code = _accession(data, v0, v1)
                    elif _same(data, a0, a1, _VALUE):
                        value_start, value_stop = v0, v1
                elif tag == _OPEN_REF and in_spectrum:
                    if _same(data, a0, a1, _REF_ATTRIBUTE):
                        before = 0
                        for g in range(group_ends.size):
                            if _same(data, v0, v1, group_names[before : group_ends[g]]):
                                if not in_array:
                                    row[_TRAITS] = _group_trait(row[_TRAITS], group_traits[g])
                                elif group_kind[g] != 0:
                                    kind, array[3] = group_kind[g], g
                                elif array[3] < 0:
                                    array[3] = g
                                break
                            before = group_ends[g]
                elif tag == _OPEN_SPECTRUM:
                    if _same(data, a0, a1, _DEFAULT):
                        row[13] = _integer(data, v0, v1)
                elif tag == _OPEN_ARRAY and _same(data, a0, a1, _ARRAY_LENGTH):
                    array_default = _integer(data, v0, v1)
            if tag == _OPEN_CV and code > 0 and in_spectrum:
                # position x, y, z; external offset, length, encoded length
                in_row = 11000050 <= code <= 11000052
                column = code - (11000050 if in_row else 11000102)
                known = in_row or 0 <= column <= 2
                if not known and in_array:
                    if code == 1000514:
                        kind = 1
                    elif code == 1000515:
                        kind = 2
                    else:
                        array[4] = _flag(array[4], code)
                if not known and not in_array:
                    level = np.int64(0)
                    if code == _MS_LEVEL:
                        level = np.int64(_MISSING if value_start < 0 else _integer(data, value_start, value_stop))
                        if level == _MISSING:
                            return found, p, 4
                    row[_TRAITS] = _trait(row[_TRAITS], code, level)
                if known:
                    value = _MISSING if value_start < 0 else _integer(data, value_start, value_stop)
                    if value == _MISSING:
                        return found, p, 4
                    if in_row:
                        if row[column] == _MISSING:
                            row[column] = value
                    elif in_array and array[column] == _MISSING:
                        array[column] = value
            if self_closed:
                ends_spectrum, ends_array = tag == _OPEN_SPECTRUM, tag == _OPEN_ARRAY
            else:
                if depth >= _DEPTH:
                    return found, p, 3
                names[depth] = hashed
                depth += 1
        if ends_array and in_array:
            in_array = False
            if array[1] == _MISSING:
                array[1] = array_default
            if kind != 0 and in_spectrum:
                base = 3 if kind == 1 else _INTENSITY
                if row[base + 3] != _MISSING:
                    return found, p, 7
                row[base : base + 5] = array
        if ends_spectrum and in_spectrum:
            in_spectrum = False
            if found >= fields.shape[0]:
                return found, p, 5
            if row[0] == _MISSING or row[1] == _MISSING or row[3] == _MISSING or row[8] == _MISSING:
                return found, p, 6
            fields[found] = row
            found += 1

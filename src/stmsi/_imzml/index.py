"""Positions, offsets and lengths of the spectra of an imzML: read once, checked, and kept in the cache folder."""

from __future__ import annotations

import gzip
import hashlib
import mmap
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stmsi._core.spectra import imzml_fields as f
from stmsi._core.spectra.imzml_scan import scan_spectra
from stmsi._data.unfinished import clear_leftovers, unfinished
from stmsi._imzml.header import Header, ends_well, read_header
from stmsi._imzml.traits import Traits, traits_of
from stmsi._imzml.xml_parser import parse_spectra
from stmsi._settings import logger, settings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CACHE_FROM = 1_000_000  # bytes; smaller files are read faster than found
_CACHED_FILES = 64
_VERSION = 3
_SAMPLED, _SAMPLES, _ENDS = 2**12, 32, 2**16
"""Bytes of each sample of the XML that the key of its index holds, number of samples, and bytes of both ends."""
LARGEST_STREAM = 2**28
"""Bytes that a compressed array may unpack to: 33 million 64-bit numbers."""
DEFLATE_RATIO = 1032
"""Bytes that zlib can make of one."""
_ITEMSIZE = np.array([np.dtype(name).itemsize for name in f.DTYPES])


class Arrays(NamedTuple):
    """The m/z or the intensity arrays of all spectra.

    First byte, number of values (-1: whatever the stream holds), bytes in the file, code of the number type, zlib or
    not, and the bytes of an uncompressed array as the file states them where they are not those of its values (else 0).
    """

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    dtype: NDArray[np.int8]
    zlib: NDArray[np.bool_]
    contradicting: NDArray[np.int64]


class Index(NamedTuple):
    """All that the XML says of the spectra."""

    header: Header
    xyz: NDArray[np.int64]
    mz: Arrays
    intensity: Arrays
    traits: Traits


def read_index(path: Path, ibd_size: int, ibd_name: str) -> Index:
    """Header, positions and places of the arrays of an imzML; every array lies inside the binary file."""
    buffer = _text_of(path)
    found = read_header(buffer, path)
    header, fields = parse_spectra(buffer, path) if found is None else _fields(buffer, found, path)
    if len(fields) == 0:
        msg = f"{path} holds no spectra; export the section again."
        raise ValueError(msg)
    flags = np.array([group.flags for group in header.groups.values()] + [0], np.int64)  # the last: no group
    places = {base: _arrays(fields, base, flags, path) for base in (f.MZ, f.INTENSITY)}
    places = _unwrapped(places, ibd_size, path)
    mz = _complete(places, fields, f.MZ, "m/z", path)
    intensity = _complete(places, fields, f.INTENSITY, "intensity", path)
    xyz = fields[:, f.X : f.Z + 1].copy()
    xyz[xyz[:, 2] == f.MISSING, 2] = 1
    traits = traits_of(header, fields[:, f.TRAITS])
    del fields, places  # 0.2 kB a spectrum
    mz, intensity = _inside(mz, intensity, ibd_size, ibd_name)
    return Index(header, xyz, mz, intensity, traits)


def _text_of(path: Path) -> mmap.mmap:
    """The XML, mapped into memory; one that is packed by gzip is unpacked there."""
    # not closed by hand, which is an error while an array looks at it: it ends with its last view
    if path.suffix.lower() != ".gz":
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        with gzip.open(path, "rb") as packed:
            text = packed.read()
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} is no complete gzip file ({error}). Copy it again."
        raise ValueError(msg) from error
    if not text:
        msg = f"{path} is empty inside (0 bytes); copy or export it again."
        raise ValueError(msg)
    buffer = mmap.mmap(-1, len(text))
    buffer.write(text)
    buffer.seek(0)
    return buffer


def _fields(buffer: mmap.mmap, header: Header, path: Path) -> tuple[Header, NDArray[np.int64]]:
    cache = _cache_file(path, buffer, header) if len(buffer) >= _CACHE_FROM else None
    if cache is not None and (known := _load(cache)) is not None:
        return header, known
    groups = {name: (group.kind, group.traits) for name, group in header.groups.items()}
    scan = scan_spectra(buffer, header.start, groups, header.announced)
    problem = scan.problem or ("" if ends_well(buffer, header, scan.end) else "what is around the spectra is not XML")
    if problem:
        logger.info("%s: %s; it is read by the XML parser.", path.name, problem)
        return parse_spectra(buffer, path)
    if cache is not None:
        _store(cache, scan.fields)
    return header, scan.fields


def _cache_file(path: Path, buffer: mmap.mmap, header: Header) -> Path:
    """Where the index of an imzML is kept: by its place, size, times and content.

    The identifier alone would not do, because programs copy it when they edit a file, and a time of change can be set. The time
    of the last change of the file's entry (on Windows, that of its creation) cannot; it stands for the content between the samples.
    """
    stat = path.stat()
    key = f"{_VERSION} {path.resolve()} {header.uuid} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {list(header.groups.items())}"
    digest = hashlib.sha256(key.encode(errors="surrogateescape"))
    digest.update(buffer[:_ENDS])
    digest.update(buffer[-_ENDS:])
    for start in np.linspace(0, max(len(buffer) - _SAMPLED, 0), _SAMPLES).astype(int).tolist():
        digest.update(buffer[start : start + _SAMPLED])
    return settings.cache_dir / "imzml" / f"{digest.hexdigest()[:32]}.npz"


def _load(cache: Path) -> NDArray[np.int64] | None:
    """The fields of all spectra; `None` where there are none, or the file is damaged."""
    try:
        with cache.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            fields: NDArray[np.int64] = stored["fields"]
    except Exception:  # noqa: BLE001 a damaged archive raises what it likes
        return None
    good = fields.dtype == np.int64 and fields.ndim == 2 and fields.shape[1] == f.N_FIELDS
    return fields if good else None


def _store(cache: Path, fields: NDArray[np.int64]) -> None:
    """Keep the fields; a folder that cannot be written is no error."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(cache.parent)
        with unfinished(cache) as folder:
            np.savez(folder / cache.name, fields=fields)
            (folder / cache.name).replace(cache)
        kept = sorted(cache.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns)
        for old in kept[:-_CACHED_FILES]:
            old.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # zipfile closes what it could not write with a ValueError
        logger.debug("The offsets of an imzML were not kept: %s", error)


def _arrays(fields: NDArray[np.int64], base: int, group_flags: NDArray[np.int64], path: Path) -> Arrays:
    """What the fields say; lengths may still be missing."""
    what = "m/z" if base == f.MZ else "intensity"
    of_group, own = group_flags[fields[:, base + f.GROUP]], fields[:, base + f.FLAGS]
    dtype = (np.where(own & 15, own & 15, of_group & 15) - 1).astype(np.int8)
    compression = np.where(own >> 4, own >> 4, of_group >> 4)
    if (dtype < 0).any():
        known = "16-, 32- or 64-bit float, 32- or 64-bit integer"
        msg = f"{path.name}: the imzML does not name a supported number type of the {what} arrays ({known})."
        raise ValueError(msg)
    if (compression == f.OTHER).any():
        msg = f"{path.name}: the {what} arrays are compressed with MS-Numpress; export them uncompressed or with zlib."
        raise ValueError(msg)
    offset = fields[:, base + f.OFFSET].copy()
    if (offset == f.MISSING).any():
        msg = f"{path} is not a complete imzML file: {what} arrays without an external offset."
        raise ValueError(msg)
    # some programs write 64-bit offsets as signed 32-bit ones, which start again below zero at 2 GB
    if (offset < 0).any():
        wraps = np.concatenate([[0], np.cumsum((offset[1:] < 0) & (offset[:-1] >= 0))])
        offset += wraps * 2**32
    return Arrays(
        offset, fields[:, base + f.LENGTH].copy(), fields[:, base + f.ENCODED].copy(), dtype, compression == f.ZLIB,
        np.zeros(len(fields), np.int64),
    )  # fmt: skip


def _unwrapped(places: dict[int, Arrays], size: int, path: Path) -> dict[int, Arrays]:
    """The offsets of a file above 4 GB that were written modulo 2^32: they start again from 0 in the middle."""
    if size <= 2**32 or max(int(arrays.offset.max()) for arrays in places.values()) >= 2**32:
        return places
    # one m/z axis for all spectra has one offset, and never starts again
    wraps = {base: np.cumsum(np.diff(arrays.offset, prepend=0) < -(2**31)) for base, arrays in places.items()}
    if not any(counts.any() for counts in wraps.values()):
        return places
    out = {base: arrays._replace(offset=arrays.offset + wraps[base] * 2**32) for base, arrays in places.items()}
    if any((np.diff(a.offset) < 0).any() or int(a.offset.max()) >= size for a in out.values()):
        msg = (
            f"{path.name}: offsets start again from 0 although the binary file has {size} bytes, and are not those of a file "
            "in order. Export it again with 64-bit offsets."
        )
        raise ValueError(msg)
    logger.info("%s: offsets were written modulo 2^32 and are counted on.", path.name)
    return out


def _complete(places: dict[int, Arrays], fields: NDArray[np.int64], base: int, what: str, path: Path) -> Arrays:
    """Lengths that are missing, from the encoded length, the spectrum's default, or the other array."""
    own, other = places[base], places[f.MZ + f.INTENSITY - base]
    item = _ITEMSIZE[own.dtype]
    encoded = np.maximum(own.n_bytes, 0)
    known = np.where(own.length == f.MISSING, -1, own.length)
    if (known < -1).any():
        msg = f"{path} is not a complete imzML file: {what} arrays with a negative length."
        raise ValueError(msg)
    unsure = (known < 0) | ((known == 0) & (encoded > 0) & ~own.zlib)
    length = np.where(unsure & ~own.zlib & (encoded > 0), encoded // item, known)
    bytes_of_other = np.where(other.zlib, 0, np.maximum(other.n_bytes, 0))
    partner = np.where(other.length > 0, other.length, bytes_of_other // _ITEMSIZE[other.dtype])
    for guess in (fields[:, f.DEFAULT_LENGTH], partner):
        length = np.where((length < 0) & (guess > 0), guess, length)
    length = np.where((length < 0) & (own.n_bytes == 0), 0, length)
    none = (length < 0) & ~own.zlib
    if none.any():
        msg = (
            f"{path} is not a complete imzML file: spectrum {int(none.argmax()) + 1} says neither how many values its "
            f"{what} array has nor how many bytes."
        )
        raise ValueError(msg)
    if unsure.any():
        logger.info("%s: %d lengths of %s arrays were missing and derived.", path.name, int(unsure.sum()), what)
    contradicting = np.where(~own.zlib & (encoded > 0) & (encoded != length * item), encoded, 0)
    filled = ~own.zlib & (encoded > 0)
    if (encoded[filled] == length[filled]).all():  # some programs write the number of values there
        contradicting[:] = 0
    return own._replace(length=length, n_bytes=np.where(own.zlib, encoded, length * item), contradicting=contradicting)


def _inside(mz: Arrays, intensity: Arrays, size: int, name: str) -> tuple[Arrays, Arrays]:
    """Raise where an array does not lie inside the binary file; the bytes of zlib streams are completed."""
    out = []
    for arrays in (mz, intensity):
        filled = arrays.length != 0
        if n := int((filled & (arrays.offset < 16)).sum()):
            msg = f"{name}: {n} arrays begin inside the 16 bytes of its identifier: offsets are wrong. Export it again."
            raise ValueError(msg)
        plain = np.where(arrays.zlib, 0, arrays.length)
        if (plain > size).any():
            longest = int(plain.max())
            end = int(arrays.offset[plain.argmax()]) + longest
        else:
            # how long a compressed array is shows only when it is decoded
            end = int(np.max((arrays.offset + np.where(arrays.zlib, 1, arrays.n_bytes))[filled], initial=0))
        if end > size:
            msg = f"{name} is truncated: {size} bytes, at least {end} expected. Copy the file again."
            raise ValueError(msg)
        # a compressed array ends before the next one begins, where its encoded length is not told
        n_bytes = arrays.n_bytes
        if (untold := arrays.zlib & (n_bytes == 0)).any():
            starts = np.sort(np.concatenate([mz.offset, intensity.offset, [size]]))
            following = starts[np.minimum(np.searchsorted(starts, arrays.offset, side="right"), len(starts) - 1)]
            n_bytes = np.where(untold, following - arrays.offset, n_bytes)
        n_bytes = np.clip(n_bytes, 0, np.maximum(size - arrays.offset, 0))
        most = np.minimum(n_bytes * DEFLATE_RATIO, LARGEST_STREAM) // _ITEMSIZE[arrays.dtype]
        if (wrong := arrays.zlib & (arrays.length > most)).any():
            row = int(wrong.argmax())
            msg = (
                f"{name}: a compressed array of spectrum {row + 1} should hold {arrays.length[row]} values; its {n_bytes[row]} bytes unpack "
                f"to {most[row]} at most. Its length is wrong, or the array too long to be read compressed. Export it again."
            )
            raise ValueError(msg)
        out.append(arrays._replace(n_bytes=np.where(filled, n_bytes, 0)))
    return out[0], out[1]

"""Spectra as arrays: decoding, windows of m/z, and names of ions."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Reduce: TypeAlias = Literal["sum", "max", "mean"]
Unit: TypeAlias = Literal["ppm", "Da"]

_PPM = 1e6
_WINDOW = 2**16  # bytes of a stream that is only counted
# "104.107", "mz-426.9288", "mz_426.92", "m/z 426.93", and "X426.93" as R renames it
_MZ_NAME = re.compile(r"^\s*(?:m/?z|x)?[\s_:=-]*(\d+(?:\.\d+)?)\s*(?:da)?\s*$", re.IGNORECASE)


class ReferenceIons(NamedTuple):
    """Ions that several spectra share, ascending: mean, smallest and largest m/z (Da), and the share of spectra."""

    mz: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    frequency: NDArray[np.float64]


def decode(raw: bytes, dtype: np.dtype[Any], length: int, *, compressed: bool = False) -> NDArray[Any]:
    """The first `length` values in the bytes of a binary file, which are a zlib stream where `compressed`."""
    if compressed and length > 0:
        raw, rest = _inflate(raw, length * dtype.itemsize)
        if rest:
            msg = f"{length} values of {dtype.itemsize} bytes expected, the zlib stream holds more"
            raise ValueError(msg)
    if len(raw) < length * dtype.itemsize:
        msg = f"{length} values of {dtype.itemsize} bytes expected, {len(raw)} bytes found"
        raise ValueError(msg)
    return np.frombuffer(raw, dtype=dtype, count=length)


def _inflate(raw: bytes, size: int) -> tuple[bytes, bytes]:
    """The first `size` bytes of a zlib stream, and one more where there are more; its checksum is compared.

    A decompressor object stops at the end of its stream, so that the encoded length need not be known.
    """
    stream = zlib.decompressobj()
    try:
        # the limit keeps a damaged or malicious stream from filling the memory
        found = stream.decompress(raw, size)
        # the checksum stands behind the values, and is looked at only when more is asked for
        rest = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        msg = f"the zlib stream is damaged ({error})"
        raise ValueError(msg) from error
    if not (stream.eof or rest) and len(found) == size:
        msg = "the zlib stream ends before its checksum"
        raise ValueError(msg)
    return found, rest


def stream_length(raw: bytes, dtype: np.dtype[Any], most: int) -> int:
    """Number of values in a zlib stream, which is unpacked and forgotten piece by piece; more than `most` bytes are an error."""
    stream, size, piece = zlib.decompressobj(), 0, raw
    try:
        while not stream.eof:
            found = len(stream.decompress(piece, _WINDOW))
            piece, size = stream.unconsumed_tail, size + found
            if size > most or not (found or piece):
                break
    except zlib.error as error:
        msg = f"the zlib stream is damaged ({error})"
        raise ValueError(msg) from error
    if size > most:
        msg = f"the zlib stream unpacks to more than {most} bytes"
        raise ValueError(msg)
    if not stream.eof or size % dtype.itemsize:
        msg = f"the zlib stream ends early, or holds no values of {dtype.itemsize} bytes ({size} bytes found)"
        raise ValueError(msg)
    return size // dtype.itemsize


def windows(mz: ArrayLike, tolerance: float, unit: Unit = "ppm") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end (Da, both belong to the window) around each m/z; `tolerance` is half the width."""
    centre = np.asarray(mz, dtype=np.float64)
    half = centre * (tolerance / _PPM) if unit == "ppm" else np.full(centre.shape, float(tolerance))
    return centre - half, centre + half


def sorted_spectrum(mz: NDArray[Any], intensity: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """A spectrum in ascending m/z (float64); one that is sorted already is not copied."""
    mz = mz.astype(np.float64, copy=False)
    if mz.size < 2 or bool(np.all(mz[1:] >= mz[:-1])):
        return mz, intensity
    order = np.argsort(mz, kind="stable")
    return mz[order], intensity[order]


def mz_labels(mz: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Readable names of m/z values, with as many decimals (4 to 9) as it takes to tell them apart."""
    values = np.asarray(mz, dtype=np.float64).tolist()
    distinct = len(set(values))
    labels: list[str] = []
    for decimals in range(4, 10):
        labels = [f"mz_{value:.{decimals}f}" for value in values]
        if len(set(labels)) >= distinct:
            break
    return labels


def mz_from_names(names: Iterable[object]) -> NDArray[np.float64]:
    """m/z that names such as ``104.107``, ``mz-104.107`` or ``m/z 104.107`` tell, NaN for the others."""
    found = (_MZ_NAME.match(str(name)) for name in names)
    return np.array([float(match[1]) if match else np.nan for match in found], dtype=np.float64)

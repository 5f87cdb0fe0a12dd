"""Spectra as arrays: decoding, windows of m/z, and names of ions."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Reduce: TypeAlias = Literal["sum", "max", "mean"]
Unit: TypeAlias = Literal["ppm", "Da"]

_PPM = 1e6
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
        # a decompressor object stops at the end of its stream, so the encoded length need not be known
        try:
            # the limit keeps a damaged or malicious stream from filling the memory
            raw = zlib.decompressobj().decompress(raw, length * dtype.itemsize)
        except zlib.error as error:
            msg = f"the zlib stream is damaged ({error})"
            raise ValueError(msg) from error
    if len(raw) < length * dtype.itemsize:
        msg = f"{length} values of {dtype.itemsize} bytes expected, {len(raw)} bytes found"
        raise ValueError(msg)
    return np.frombuffer(raw, dtype=dtype, count=length)


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


def sum_windows(
    mz: ArrayLike, intensity: ArrayLike, low: ArrayLike, high: ArrayLike, reduce: Reduce = "sum"
) -> NDArray[np.float64]:
    r"""One intensity per m/z window of one spectrum.

    .. math:: s_j = \sum_{i:\ \mathrm{low}_j \le m_i \le \mathrm{high}_j} I_i

    Both ends belong to a window. Windows may overlap and come in any order (ascending ones are fastest); a peak inside
    several windows counts in each. Each window is added up by itself, not as a difference of running sums, so a window
    without intensity is exactly 0.

    Parameters
    ----------
    mz
        Ascending, in Da, shape (peaks,).
    intensity
        Shape (peaks,).
    low, high
        Ends of the windows in Da, shape (windows,).
    reduce
        ``"sum"``, ``"max"`` or ``"mean"`` of the peaks inside a window.

    Returns
    -------
    Shape (windows,); 0 where a window holds no peak.

    Examples
    --------
    >>> sum_windows([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [0.5, 1.5, 4.0], [2.5, 3.5, 5.0]).tolist()
    [30.0, 50.0, 0.0]
    """
    mz = np.asarray(mz, dtype=np.float64)
    # a window may end behind the last peak, and reduceat takes no index beyond the last element
    padded = np.zeros(mz.size + 1)
    padded[:-1] = intensity
    start = np.searchsorted(mz, np.asarray(low, dtype=np.float64), side="left")
    stop = np.searchsorted(mz, np.asarray(high, dtype=np.float64), side="right")
    out = np.zeros(start.shape)
    hit = np.flatnonzero(stop > start)
    if hit.size == 0:
        return out
    # reduceat over (start, stop, start, stop, ...): the even results are the windows, the odd ones the gaps between
    bounds = np.column_stack([start[hit], stop[hit]]).ravel()
    ufunc = np.maximum if reduce == "max" else np.add
    out[hit] = ufunc.reduceat(padded, bounds)[::2]
    if reduce == "mean":
        out[hit] /= stop[hit] - start[hit]
    return out


def reference_mz(
    all_mz: ArrayLike,
    all_spectrum_index: ArrayLike,
    tolerance: float = 5.0,
    unit: Unit = "ppm",
    *,
    min_frequency: float = 0.0,
    n_spectra: int | None = None,
) -> ReferenceIons:
    """Common ions of many spectra: peaks no further apart than `tolerance` are one ion.

    The m/z of all spectra are sorted together and cut wherever two neighbours are further apart than `tolerance`. A run
    of close peaks wider than twice the tolerance (profile spectra, crowded regions) is cut into equal parts of at most
    that width, so that ions do not chain into each other. Ions seen in too few spectra are dropped.

    Parameters
    ----------
    all_mz
        m/z of all peaks of all spectra in Da, in any order.
    all_spectrum_index
        The spectrum of each peak, integers from 0.
    tolerance
        Largest gap inside an ion, in `unit`.
    unit
        ``"ppm"`` or ``"Da"``.
    min_frequency
        Smallest share of the spectra that must hold the ion, 0 to 1.
    n_spectra
        Number of spectra, those without a peak included; by default those that occur.

    Returns
    -------
    The ions kept, see :class:`ReferenceIons`; empty where none is.

    Examples
    --------
    >>> ions = reference_mz([100.0, 100.0002, 250.0], [0, 1, 1], 5.0, min_frequency=0.6)
    >>> ions.mz.round(4).tolist(), ions.frequency.tolist()
    ([100.0001], [1.0])
    """
    mz = np.asarray(all_mz, dtype=np.float64)
    spectrum = np.asarray(all_spectrum_index, dtype=np.int64)
    if mz.size == 0:
        return ReferenceIons(*(np.empty(0) for _ in range(4)))
    n_spectra = len(np.unique(spectrum)) if n_spectra is None else n_spectra
    order = np.argsort(mz, kind="stable")
    mz, spectrum = mz[order], spectrum[order]
    # on a logarithmic scale a gap in ppm is a difference
    scale = np.log(mz) * _PPM if unit == "ppm" else mz
    start = np.flatnonzero(_ion_starts(scale, tolerance))
    size = np.diff(start, append=mz.size)
    ion = np.repeat(np.arange(start.size), size)
    pair = np.unique(np.column_stack([ion, spectrum]), axis=0)
    frequency = np.bincount(pair[:, 0], minlength=start.size) / n_spectra
    low, high = mz[start], mz[start + size - 1]
    centre = np.clip(np.add.reduceat(mz, start) / size, low, high)  # a mean of equal numbers may leave them by an ulp
    keep = frequency >= min_frequency * (1 - 1e-9)
    return ReferenceIons(centre[keep], low[keep], high[keep], frequency[keep])


def _ion_starts(scale: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """Whether each peak of the sorted list opens a new ion."""
    opens = np.concatenate([[True], np.diff(scale) > tolerance])
    start = np.flatnonzero(opens)
    stop = np.append(start[1:], scale.size)
    first, width = scale[start], scale[stop - 1] - scale[start]
    parts = np.maximum(np.ceil(width / (2 * tolerance) - 1e-9), 1)
    run = np.cumsum(opens) - 1
    position = (scale - first[run]) * parts[run] / np.where(width > 0, width, 1)[run]
    part = np.minimum(np.floor(position), parts[run] - 1)
    return opens | np.concatenate([[False], np.diff(part) != 0])


def stack_rows(rows: Iterable[NDArray[Any]], n_columns: int) -> sp.csr_matrix:
    """Sparse matrix from dense rows that come one by one, so that only one is in memory at a time.

    Parameters
    ----------
    rows
        Intensities of one spectrum each, shape (ions,).
    n_columns
        Number of ions.

    Returns
    -------
    float32 CSR, shape (rows, ions), without explicit zeros.

    Examples
    --------
    >>> import numpy as np
    >>> stack_rows([np.array([0.0, 2.0]), np.zeros(2)], 2).toarray().tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    data, indices, indptr = [np.empty(0, np.float32)], [np.empty(0, np.intp)], [0]
    for row in rows:
        hit = np.flatnonzero(row)
        data.append(row[hit].astype(np.float32))
        indices.append(hit)
        indptr.append(indptr[-1] + hit.size)
    return sp.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(len(indptr) - 1, n_columns))


def mz_labels(mz: Sequence[float] | NDArray[np.float64], prefix: str = "mz_") -> list[str]:
    """Readable names of m/z values, with as many decimals (4 to 9) as it takes to tell them apart."""
    values = np.asarray(mz, dtype=np.float64).tolist()
    distinct = len(set(values))
    labels: list[str] = []
    for decimals in range(4, 10):
        labels = [f"{prefix}{value:.{decimals}f}" for value in values]
        if len(set(labels)) >= distinct:
            break
    return labels


def mz_from_names(names: Iterable[object]) -> NDArray[np.float64]:
    """m/z that names such as ``104.107``, ``mz-104.107`` or ``m/z 104.107`` tell, NaN for the others."""
    found = (_MZ_NAME.match(str(name)) for name in names)
    return np.array([float(match[1]) if match else np.nan for match in found], dtype=np.float64)

"""Passes over many spectra at once, from the raw bytes of their file: compiled where numba is there, else in NumPy.

pyimzML hands out one spectrum at a time; a pass over a chunk spares a Python call for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from stmsi._core.compiled import use_compiled
from stmsi._core.spectra.spectrum_arrays import sorted_spectrum

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stmsi._core.spectra.spectrum_arrays import Reduce

REDUCES: Final = ("sum", "max", "mean")
GOOD, BAD_MZ, BAD_INTENSITY, CHANGED = 0, 1, 2, 3
_KINDS = ("f4", "f8", "i4", "i8")
_CELLS = 16
"""Cells of a grid of m/z for each group of windows, so that few cells hold a second one."""
_CROWDED = 16
"""With more windows that overlap, all are merged with the peaks instead."""


class Chunk(NamedTuple):
    """Several spectra: buffers of bytes, where each array begins, how many values it has, and of which type."""

    mz_bytes: NDArray[np.uint8]
    mz_at: NDArray[np.int64]
    intensity_bytes: NDArray[np.uint8]
    intensity_at: NDArray[np.int64]
    length: NDArray[np.int64]
    mz_type: np.dtype[Any]
    intensity_type: np.dtype[Any]

    def arrays(self) -> tuple[Any, ...]:
        """What the kernels take."""
        mz, intensity = (_KINDS.index(kind.str[1:]) for kind in (self.mz_type, self.intensity_type))
        return self.mz_bytes, self.mz_at, mz, self.intensity_bytes, self.intensity_at, intensity, self.length


class Rows(NamedTuple):
    """Sparse rows of a chunk, `counts` values each, ascending in the windows; and their total ion currents."""

    data: NDArray[np.float32]
    indices: NDArray[np.int32]
    counts: NDArray[np.int64]
    tic: NDArray[np.float64]


class FaultError(Exception):
    """The spectrum `row` of a chunk cannot be used, because of its m/z or its intensities."""

    def __init__(self, row: int, fault: int) -> None:
        super().__init__(row, fault)
        self.row, self.fault = row, fault


def check_fault(row: int, fault: int) -> None:
    """Raise where a kernel stopped at a spectrum that cannot be used."""
    if fault != GOOD:
        raise FaultError(int(row), int(fault))


class Workspace:
    """Room for one spectrum and for the rows of a chunk; one for each thread."""

    def __init__(self, longest: int, n_values: int) -> None:
        self.longest = longest
        self.mz, self.intensity = np.empty(longest), np.empty(longest)
        raw = np.empty(longest, np.int64).view(np.uint8)
        self._room = (raw, *(raw.view(kind) for kind in (np.float32, np.float64, np.int32, np.int64)))
        self._marks = (np.empty(longest + 1, np.int32), np.empty(longest + 1, np.int32))
        self.data, self.indices = np.empty(n_values, np.float32), np.empty(n_values, np.int32)

    def arrays(self) -> tuple[Any, ...]:
        """What the kernels take."""
        return self.mz, self.intensity, self._room, self._marks


class _Layer:
    """Windows that do not overlap, and a grid of m/z that tells which one begins before a peak."""

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64], windows: NDArray[np.intp]) -> None:
        self.windows, self.high = windows, np.append(high[windows], -np.inf)
        self.low = np.append(low[windows], np.inf)
        n = _CELLS * len(windows)
        self.base, self.scale = float(self.low[0]), n / max(float(self.low[-2] - self.low[0]), 1e-9)
        first = np.searchsorted(self.low[:-1], self.base + np.arange(n) / self.scale, side="right") - 2
        self.table = np.maximum(first, 0).astype(np.int32)

    def find(self, mz: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Peaks inside a window, and its place in the layer."""
        cell = np.clip((mz - self.base) * self.scale, 0, len(self.table) - 1).astype(np.int32)
        window = self.table[cell]
        behind = self.low[window + 1] <= mz
        window += behind
        late = np.flatnonzero(behind)
        while late.size:  # most need no second step
            late = late[self.low[window[late] + 1] <= mz[late]]
            window[late] += 1
        hit = np.flatnonzero((mz <= self.high[window]) & (mz >= self.low[window]))
        return hit, window[hit]


class Windows:
    """Windows of m/z (both ends belong) that ascend in both ends, their columns, and what makes them quick to find."""

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64], column: NDArray[np.int32]) -> None:
        self.low, self.high, self.column = low, high, column
        self.layers = [] if use_compiled() else [_Layer(low, high, layer) for layer in disjoint_layers(low, high)]
        opens = np.flatnonzero(np.concatenate([[True], low[1:] > high[:-1]])[: len(low)])
        self.first = np.append(opens, len(low))
        # a sentinel behind the last group ends every search
        self.ends = np.stack([np.append(low[opens], np.inf), np.append(high[self.first[1:] - 1], -np.inf)])
        self.table, self.base, self.scale = np.empty(0, np.int32), 0.0, 0.0
        if len(low) and np.diff(self.first).max() <= _CROWDED:
            n = _CELLS * len(opens)
            self.base, self.scale = float(low[0]), n / max(float(high[-1] - low[0]), 1e-9)
            # a group too early is put right by the search, one too late would not be: hence the step back
            group = np.searchsorted(low[opens], self.base + np.arange(n) / self.scale, side="right") - 2
            self.table = np.maximum(group, 0).astype(np.int32)


def disjoint_layers(low: NDArray[np.float64], high: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Windows that ascend in both ends, dealt out to layers in which none overlaps another."""
    left, layers = np.arange(len(low)), []
    while left.size:
        # from each window, the next one that begins behind its end
        follower = np.searchsorted(low[left], high[left], side="right").tolist()
        taken, window = [], 0
        while window < left.size:
            taken.append(window)
            window = max(follower[window], window + 1)
        layers.append(left[taken])
        left = np.delete(left, taken)
    return layers


def sum_windows_of(chunk: Chunk, windows: Windows, reduce: Reduce, work: Workspace) -> Rows:
    """Intensities of spectra inside windows of m/z; a `FaultError` where a spectrum cannot be used."""
    if not use_compiled():
        return _sum_windows_numpy(chunk, windows, reduce)
    from stmsi._core.spectra import spectra_kernel as kernel

    w = windows
    return _rows(
        chunk, work, reduce, kernel.sum_windows, chunk.arrays(), work.arrays(),
        w.low, w.high, w.column, w.first, w.ends, w.table, w.base, w.scale,
    )  # fmt: skip


def sum_bins_of(
    chunk: Chunk,
    order: NDArray[np.intp],
    start: NDArray[np.intp],
    stop: NDArray[np.intp],
    column: NDArray[np.int32],
    reduce: Reduce,
    work: Workspace,
) -> Rows:
    """Intensities of spectra that share one axis, inside windows of it; their m/z are not looked at.

    `order` sorts the axis (empty: it is sorted); a window has the bins `start` to `stop` of the sorted axis.
    """
    filled = stop > start
    start, stop, column = start[filled], stop[filled], column[filled]
    if not use_compiled():
        return _sum_bins_numpy(chunk, order, start, stop, column, reduce)
    from stmsi._core.spectra import spectra_kernel as kernel

    given = chunk.arrays(), int(chunk.length[0]), work.arrays(), order, start, stop, column
    return _rows(chunk, work, reduce, kernel.sum_bins, *given)


def _rows(chunk: Chunk, work: Workspace, reduce: Reduce, kernel: Callable[..., tuple[int, int]], *given: Any) -> Rows:
    """What a kernel writes into the work space; the rows are copies."""
    counts, tic = np.empty(len(chunk.length), np.int64), np.empty(len(chunk.length))
    check_fault(*kernel(*given, REDUCES.index(reduce), work.data, work.indices, counts, tic))
    used = int(counts.sum())
    return Rows(work.data[:used].copy(), work.indices[:used].copy(), counts, tic)


def intensities_of(chunk: Chunk) -> NDArray[Any]:
    """Intensities of all spectra of a chunk, one after the other; a `FaultError` where one is impossible."""
    intensity = gather(chunk.intensity_bytes, chunk.intensity_at, chunk.length, chunk.intensity_type)
    bad = ~((intensity >= 0) & (intensity < np.inf))
    if bad.any():
        raise FaultError(int(np.searchsorted(np.cumsum(chunk.length), int(bad.argmax()), side="right")), BAD_INTENSITY)
    return intensity


def spectra_of(chunk: Chunk) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]:
    """m/z (ascending in each spectrum), intensities and rows of all peaks of a chunk, checked.

    Pairs of zeros, which fill arrays of a fixed length, are left out.
    """
    mz = gather(chunk.mz_bytes, chunk.mz_at, chunk.length, chunk.mz_type).astype(np.float64, copy=False)
    row = np.repeat(np.arange(len(chunk.length)), chunk.length)
    bad = ~((mz > 0) & (mz < np.inf))
    if bad.any():
        bad &= (mz != 0) | (gather(chunk.intensity_bytes, chunk.intensity_at, chunk.length, chunk.intensity_type) != 0)
    if bad.any():
        raise FaultError(int(row[bad.argmax()]), BAD_MZ)
    intensity = intensities_of(chunk)
    if (padding := mz == 0).any():
        mz, intensity, row = mz[~padding], intensity[~padding], row[~padding]
    length = np.bincount(row, minlength=len(chunk.length))
    ends = np.cumsum(length)
    for back in np.unique(row[1:][(mz[1:] < mz[:-1]) & (row[1:] == row[:-1])]):
        part = slice(ends[back] - length[back], ends[back])
        mz[part], intensity[part] = sorted_spectrum(mz[part].copy(), intensity[part].copy())
    return mz, intensity, row


def gather(
    source: NDArray[np.uint8], at: NDArray[np.int64], length: NDArray[np.int64], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The values of several arrays in a buffer, one after the other."""
    parts = [source[a : a + n] for a, n in zip(at.tolist(), (length * dtype.itemsize).tolist(), strict=True)]
    return np.concatenate([np.empty(0, np.uint8), *parts]).view(dtype)


def _sum_windows_numpy(chunk: Chunk, windows: Windows, reduce: Reduce) -> Rows:
    mz, intensity, row = spectra_of(chunk)
    n_rows = len(chunk.length)
    tic = np.bincount(row, weights=intensity, minlength=n_rows).astype(np.float64)
    data, rows, found = [], [], []
    for layer in windows.layers:
        hit, place = layer.find(mz)
        if hit.size == 0:
            continue
        window, of = layer.windows[place], row[hit]
        begins = np.flatnonzero(np.concatenate([[True], (window[1:] != window[:-1]) | (of[1:] != of[:-1])]))
        values = intensity[hit].astype(np.float64)
        result = (np.maximum if reduce == "max" else np.add).reduceat(values, begins)
        if reduce == "mean":
            result = result / np.diff(begins, append=hit.size)
        data.append(result.astype(np.float32))
        rows.append(of[begins])
        found.append(window[begins])
    if not data:
        return Rows(np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(n_rows, np.int64), tic)
    values, of, window = np.concatenate(data), np.concatenate(rows), np.concatenate(found)
    order = np.lexsort((window, of)) if len(data) > 1 else slice(None)
    values, of, window = values[order], of[order], window[order]
    seen = values != 0
    return Rows(
        values[seen], windows.column[window[seen]], np.bincount(of[seen], minlength=n_rows).astype(np.int64), tic
    )


def _sum_bins_numpy(
    chunk: Chunk,
    order: NDArray[np.intp],
    start: NDArray[np.intp],
    stop: NDArray[np.intp],
    column: NDArray[np.int32],
    reduce: Reduce,
) -> Rows:
    intensity = intensities_of(chunk).reshape(len(chunk.length), -1)
    tic = intensity.sum(axis=1, dtype=np.float64)
    if order.size:
        intensity = intensity[:, order]
    width = stop - start
    result = np.zeros((len(intensity), width.size))
    # windows of one bin and of several take turns: one slice of columns for each step into the windows
    for step in range(int(width.max(initial=0))):
        wide = np.flatnonzero(width > step)
        values = intensity[:, start[wide] + step]
        if reduce == "max":
            result[:, wide] = np.maximum(result[:, wide], values)
        else:
            result[:, wide] += values
    if reduce == "mean":
        result /= width
    single = result.astype(np.float32)
    row, window = np.nonzero(single)
    counts = np.bincount(row, minlength=len(intensity)).astype(np.int64)
    return Rows(single[row, window], column[window], counts, tic)


def check_finite(rows: Rows) -> None:
    """Spectra are checked as they are; 32 bits may still be too few for their sums."""
    if not np.isfinite(rows.data).all():
        msg = "Sums of intensities exceed what 32-bit floats hold; scale the intensities down."
        raise ValueError(msg)


def readable(dtype: np.dtype[Any]) -> bool:
    """Whether the passes take arrays of this type as they are; others become 64-bit floats before."""
    return dtype.str[1:] in _KINDS

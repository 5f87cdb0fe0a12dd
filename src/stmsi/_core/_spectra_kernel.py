"""Compiled passes over many spectra; imported only where numba is to be used.

Every offset and length must have been checked: a kernel reads where it is told to.
"""

from __future__ import annotations

import numpy as np

from stmsi._core._compiled import compiled

_SUM, _MAX, _MEAN = 0, 1, 2
_BAD_MZ, _BAD_INTENSITY, _CHANGED = 1, 2, 3
_F4, _F8, _I4 = 0, 1, 2


def _reassociated(function):
    return compiled(function, fastmath={"reassoc", "nsz"})  # lets a sum use vector instructions; NaN stays NaN


@_reassociated
def _total(values, n):
    total = 0.0
    for i in range(n):
        total += values[i]
    return total


@compiled
def _fill(out, source, start, n, kind, room):
    """Copy `n` numbers of a type from anywhere in `source` into 64-bit floats; one compiled function serves all types."""
    raw, single, short, long, out_raw = room
    if kind == _F8:
        out_raw[: 8 * n] = source[start : start + 8 * n]
    elif kind == _F4:
        raw[: 4 * n] = source[start : start + 4 * n]
        for i in range(n):
            out[i] = single[i]
    elif kind == _I4:
        raw[: 4 * n] = source[start : start + 4 * n]
        for i in range(n):
            out[i] = short[i]
    else:
        raw[: 8 * n] = source[start : start + 8 * n]
        for i in range(n):
            out[i] = long[i]


@compiled
def _impossible_mz(mz, n):
    bad = False
    for i in range(n):
        bad |= not (mz[i] > 0 and mz[i] < np.inf)
    return bad


@compiled
def _impossible_intensity(intensity, n):
    bad = False
    for i in range(n):
        bad |= not (intensity[i] >= 0 and intensity[i] < np.inf)
    return bad


@compiled
def _unsorted(mz, n):
    back = False
    for i in range(1, n):
        back |= mz[i] < mz[i - 1]
    return back


@compiled
def _load(chunk, i, work):
    """Copy a spectrum into the work space, sort it where it must be, and check it; returns its length and its fault."""
    mz_bytes, mz_at, mz_kind, intensity_bytes, intensity_at, intensity_kind, length = chunk
    mz, mz_room, intensity, intensity_room = work
    n = length[i]
    _fill(mz, mz_bytes, mz_at[i], n, mz_kind, mz_room)
    _fill(intensity, intensity_bytes, intensity_at[i], n, intensity_kind, intensity_room)
    if _impossible_mz(mz, n):
        return n, _BAD_MZ
    if _impossible_intensity(intensity, n):
        return n, _BAD_INTENSITY
    if _unsorted(mz, n):
        order = np.argsort(mz[:n], kind="mergesort")
        mz[:n] = mz[:n][order]
        intensity[:n] = intensity[:n][order]
    return n, 0


@compiled
def sum_windows(chunk, work, low, high, column, reduce, data, indices, counts, tic):
    """Intensities inside windows that ascend in both ends; returns the first bad spectrum and its fault, or -1, 0."""
    mz, intensity = work[0], work[2]
    used, n_windows = 0, low.size
    for i in range(counts.size):
        n, fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        tic[i] = _total(intensity, n)
        before, p, w = used, 0, 0
        while w < n_windows and p < n:
            # whichever lags behind moves on; far behind, it jumps
            start = low[w]
            step = 0
            while p < n and mz[p] < start and step < 8:
                p += 1
                step += 1
            if step == 8 and p < n and mz[p] < start:
                p += np.searchsorted(mz[p:n], start)
            if p >= n:
                break
            value = mz[p]
            step = 0
            while w < n_windows and high[w] < value and step < 8:
                w += 1
                step += 1
            if step == 8 and w < n_windows and high[w] < value:
                w += np.searchsorted(high[w:], value)
            if w >= n_windows:
                break
            if value < low[w]:
                continue
            stop = high[w]
            result = intensity[p]
            q = p + 1
            while q < n and mz[q] <= stop:
                if reduce == _MAX:
                    result = max(result, intensity[q])
                else:
                    result += intensity[q]
                q += 1
            if reduce == _MEAN:
                result /= q - p
            single = np.float32(result)
            if single != 0:
                data[used] = single
                indices[used] = column[w]
                used += 1
            w += 1
        counts[i] = used - before
    return -1, 0


@compiled
def sum_bins(chunk, length, work, order, start, stop, column, reduce, data, indices, counts, tic):
    """The same where all spectra share one axis: `start` to `stop` are bins of the sorted axis, `order` sorts it."""
    source, at, kind = chunk[3], chunk[4], chunk[5]
    intensity, room = work[2], work[3]
    used, n = 0, length
    scratch = np.empty(order.size)
    for i in range(counts.size):
        _fill(intensity, source, at[i], n, kind, room)
        if _impossible_intensity(intensity, n):
            return i, _BAD_INTENSITY
        tic[i] = _total(intensity, n)
        for k in range(order.size):
            scratch[k] = intensity[order[k]]
        for k in range(order.size):
            intensity[k] = scratch[k]
        before = used
        for w in range(start.size):
            first, last = start[w], stop[w]
            if first >= last:
                continue
            result = intensity[first]
            for k in range(first + 1, last):
                if reduce == _MAX:
                    result = max(result, intensity[k])
                else:
                    result += intensity[k]
            if reduce == _MEAN:
                result /= last - first
            single = np.float32(result)
            if single != 0:
                data[used] = single
                indices[used] = column[w]
                used += 1
        counts[i] = used - before
    return -1, 0


@compiled
def fill_cells(chunk, work, log_scale, width, first, count, low, high, total, top):
    """Number, extreme m/z, summed and largest intensity of the peaks in each cell of a grid of m/z."""
    mz, intensity = work[0], work[2]
    for i in range(chunk[6].size):
        n, fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        for p in range(n):
            if intensity[p] == 0:
                continue
            value = mz[p]
            cell = np.int64(np.floor((np.log(value) if log_scale else value) / width)) - first
            if cell < 0 or cell >= count.size:
                return i, _CHANGED
            count[cell] += 1
            low[cell] = min(low[cell], value)
            high[cell] = max(high[cell], value)
            total[cell] += intensity[p]
            top[cell] = max(top[cell], intensity[p])
    return -1, 0


@compiled
def range_of_mz(chunk, work, limits):
    """Widen `limits` to the smallest and the largest m/z of a peak; it also checks all spectra."""
    mz = work[0]
    for i in range(chunk[6].size):
        n, fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        if n > 0:
            limits[0] = min(limits[0], mz[0])
            limits[1] = max(limits[1], mz[n - 1])
    return -1, 0


@compiled
def describe_ions(chunk, work, log_scale, run_low, run_high, run_first, parts, spectra, peaks, total, low, high, top):
    """Peaks of each ion, the spectra that hold it, its m/z and intensity; an ion is a part of a run of close peaks."""
    mz, intensity = work[0], work[2]
    for i in range(chunk[6].size):
        n, fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        run, last = 0, -1
        for p in range(n):
            if intensity[p] == 0:
                continue
            value = mz[p]
            if value > run_high[run]:
                step = 0
                while run < run_high.size and run_high[run] < value and step < 8:
                    run += 1
                    step += 1
                if run < run_high.size and run_high[run] < value:
                    run += np.searchsorted(run_high[run:], value)
                if run >= run_high.size:
                    return i, _CHANGED
            ion = run_first[run]
            if parts[run] > 1:
                if log_scale:
                    first, width = np.log(run_low[run]), np.log(run_high[run]) - np.log(run_low[run])
                    position = (np.log(value) - first) / width
                else:
                    position = (value - run_low[run]) / (run_high[run] - run_low[run])
                ion += min(np.int64(np.floor(position * parts[run])), parts[run] - 1)
            if ion != last:
                spectra[ion] += 1
                last = ion
            peaks[ion] += 1
            total[ion] += value
            low[ion] = min(low[ion], value)
            high[ion] = max(high[ion], value)
            top[ion] += intensity[p]
    return -1, 0

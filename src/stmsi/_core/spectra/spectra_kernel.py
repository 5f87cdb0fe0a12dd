"""Compiled passes over many spectra; imported only where numba is to be used.

Every offset and length must have been checked: a kernel reads where it is told to.
"""

# mypy: disable-error-code="no-untyped-def"
# numba takes the types from the call

from __future__ import annotations

import numpy as np

from stmsi._core.compiled import compiled

_SUM, _MAX, _MEAN = 0, 1, 2
_BAD_MZ, _BAD_INTENSITY, _CHANGED = 1, 2, 3
_F4, _F8, _I4 = 0, 1, 2


def _reassociated(function):
    return compiled(function, fastmath={"reassoc", "nsz"})  # lets a sum use vector instructions; NaN stays NaN


@_reassociated
def _take(out, values):
    """Copy numbers of any type into 64-bit floats; returns their sum, and whether one of them is no possible intensity."""
    total, bad = 0.0, False
    for i in range(values.size):
        value = np.float64(values[i])
        out[i] = value
        total += value
        bad |= not ((value >= 0) & (value < np.inf))  # not "and", so that the loop runs in vectors
    return total, bad


@compiled
def _copy(out, values):
    for i in range(values.size):  # a loop runs in vectors; numba copies a slice byte by byte
        out[i] = values[i]


@compiled
def _fill(out, source, start, n, kind, room):
    """Take `n` numbers of a type from anywhere in `source`, also from odd addresses; one compiled function serves all types."""
    raw, single, double, short, long = room
    _copy(raw, source[start : start + (4 if kind in (_F4, _I4) else 8) * n])
    if kind == _F8:
        return _take(out, double[:n])
    if kind == _F4:
        return _take(out, single[:n])
    if kind == _I4:
        return _take(out, short[:n])
    return _take(out, long[:n])


@compiled
def _impossible_mz(mz, n):
    bad = False
    for i in range(n):
        bad |= not ((mz[i] > 0) & (mz[i] < np.inf))  # not "and", so that the loop runs in vectors
    return bad


@compiled
def _without_padding(mz, intensity, n):
    """Close the gaps that pairs of zeros leave, which fill arrays of a fixed length; returns how many values stay."""
    kept = 0
    for i in range(n):
        if mz[i] != 0 or intensity[i] != 0:
            mz[kept] = mz[i]
            intensity[kept] = intensity[i]
            kept += 1
    return kept


@compiled
def _unsorted(mz, n):
    back = False
    for i in range(1, n):
        back |= mz[i] < mz[i - 1]
    return back


@compiled
def _load(chunk, i, work):
    """Copy a spectrum into the work space, sort it where it must be, and check it; returns its length, sum and fault."""
    mz_bytes, mz_at, mz_kind, intensity_bytes, intensity_at, intensity_kind, length = chunk
    mz, intensity, room = work[0], work[1], work[2]
    n = length[i]
    _fill(mz, mz_bytes, mz_at[i], n, mz_kind, room)
    total, bad = _fill(intensity, intensity_bytes, intensity_at[i], n, intensity_kind, room)
    if _impossible_mz(mz, n):
        n = _without_padding(mz, intensity, n)
        if _impossible_mz(mz, n):
            return n, total, _BAD_MZ
    if bad:
        return n, total, _BAD_INTENSITY
    if _unsorted(mz, n):
        order = np.argsort(mz[:n], kind="mergesort")
        mz[:n] = mz[:n][order]
        intensity[:n] = intensity[:n][order]
    return n, total, 0


@compiled
def _put(data, indices, used, column, result, n, reduce):
    single = np.float32(result / n if reduce == _MEAN else result)
    if single != 0:
        data[used] = single
        indices[used] = column
        return used + 1
    return used


@compiled
def _group_of_windows(mz, intensity, p, q, low, high, column, start, stop, reduce, data, indices, used):
    """The peaks `p` to `q` in a group of windows that overlap, or in one window that holds several peaks."""
    for w in range(start, stop):
        result, inside = 0.0, 0
        for k in range(p, q):
            if mz[k] >= low[w] and mz[k] <= high[w]:
                result = max(result, intensity[k]) if reduce == _MAX else result + intensity[k]
                inside += 1
        used = _put(data, indices, used, column[w], result, max(inside, 1), reduce)
    return used


@compiled
def _mark(mz, n, begin, end, table, base, scale, hit_peak, hit_group):
    """Peaks inside a group of windows, and which; no branch depends on what nobody can foresee."""
    cells, one, hits = np.float64(table.size - 1), np.uint64(1), np.uint64(0)
    for p in range(n):
        value = mz[p]
        cell = (value - base) * scale
        cell = cell if cell > 0.0 else 0.0
        cell = cell if cell < cells else cells
        group = np.uint64(table[np.uint64(np.int64(cell))])
        group += np.uint64(begin[group + one] <= value)
        group += np.uint64(begin[group + one] <= value)
        while begin[group + one] <= value:  # seldom
            group += one
        hit_peak[hits] = p
        hit_group[hits] = group
        hits += np.uint64(value >= begin[group]) & np.uint64(value <= end[group])
    return np.int64(hits)


@compiled
def _by_table(mz, intensity, n, low, high, column, first, ends, table, base, scale, reduce, data, indices, used, marks):
    """Each peak looks its group of windows up; most groups are one window, and most windows hold one peak."""
    hit_peak, hit_group = marks
    hits = _mark(mz, n, ends[0], ends[1], table, base, scale, hit_peak, hit_group)
    hit_group[hits] = -1
    h = 0
    while h < hits:
        group, p = hit_group[h], hit_peak[h]
        start, stop = first[group], first[group + 1]
        if hit_group[h + 1] == group or stop - start > 1:
            while hit_group[h] == group:
                h += 1
            used = _group_of_windows(
                mz, intensity, p, hit_peak[h - 1] + 1, low, high, column, start, stop, reduce, data, indices, used
            )
        else:
            used = _put(data, indices, used, column[start], intensity[p], 1, reduce)
            h += 1
    return used


@compiled
def _by_merging(mz, intensity, n, low, high, column, reduce, data, indices, used):
    """Windows that may overlap, or many peaks for few windows: whichever lags behind moves on; far behind, it jumps."""
    p, w, n_windows = 0, 0, low.size
    while w < n_windows and p < n:
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
            result = max(result, intensity[q]) if reduce == _MAX else result + intensity[q]
            q += 1
        used = _put(data, indices, used, column[w], result, q - p, reduce)
        w += 1
    return used


@compiled
def sum_windows(chunk, work, low, high, column, first, ends, table, base, scale, reduce, data, indices, counts, tic):
    """Intensities inside windows that ascend in both ends; returns the first bad spectrum and its fault, or -1, 0.

    `first` is the first window of each group of overlapping ones, `ends` holds where groups begin and end, `table` a
    group that begins before each cell of a grid of m/z.
    """
    mz, intensity = work[0], work[1]
    used = 0
    for i in range(counts.size):
        n, tic[i], fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        before = used
        if table.size > 0 and n < 8 * low.size:
            used = _by_table(mz, intensity, n, low, high, column, first, ends, table, base, scale, reduce, data, indices, used, work[3])  # fmt: skip
        else:
            used = _by_merging(mz, intensity, n, low, high, column, reduce, data, indices, used)
        counts[i] = used - before
    return -1, 0


@compiled
def sum_bins(chunk, length, work, order, start, stop, column, reduce, data, indices, counts, tic):
    """The same where all spectra share one axis: `start` to `stop` are bins of the sorted axis, at least one, `order` sorts it."""
    source, at, kind = chunk[3], chunk[4], chunk[5]
    intensity, room = work[1], work[2]
    used, n = 0, length
    scratch = np.empty(order.size)
    for i in range(counts.size):
        tic[i], bad = _fill(intensity, source, at[i], n, kind, room)
        if bad:
            return i, _BAD_INTENSITY
        for k in range(order.size):
            scratch[k] = intensity[order[k]]
        for k in range(order.size):
            intensity[k] = scratch[k]
        before = used
        for w in range(start.size):
            first, last = start[w], stop[w]
            result = intensity[first]
            for k in range(first + 1, last):
                if reduce == _MAX:
                    result = max(result, intensity[k])
                else:
                    result += intensity[k]
            used = _put(data, indices, used, column[w], result, last - first, reduce)
        counts[i] = used - before
    return -1, 0


@compiled
def fill_cells(chunk, work, log_scale, width, first, count, low, high, total, top):
    """Number, extreme m/z, summed and largest intensity of the peaks in each cell of a grid of m/z."""
    mz, intensity = work[0], work[1]
    for i in range(chunk[6].size):
        n, _, fault = _load(chunk, i, work)
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
        n, _, fault = _load(chunk, i, work)
        if fault != 0:
            return i, fault
        if n > 0:
            limits[0] = min(limits[0], mz[0])
            limits[1] = max(limits[1], mz[n - 1])
    return -1, 0


@compiled
def describe_ions(
    chunk, work, log_scale, run_low, run_high, run_first, parts, spectra, peaks, total, low, high, summed, top
):
    """Peaks of each ion, the spectra that hold it, its m/z and intensity; an ion is a part of a run of close peaks."""
    mz, intensity = work[0], work[1]
    for i in range(chunk[6].size):
        n, _, fault = _load(chunk, i, work)
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
            summed[ion] += intensity[p]
            top[ion] = max(top[ion], intensity[p])
    return -1, 0

"""The bins of profile spectra: how far apart they are, windows that hold some, and one axis for spectra without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stmsi._core.spectra.common_ions import Cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECTIONS = 64
_STEPS = 8192
_CELLS_A_BIN = 4
_MOST_CELLS = 4_000_000  # of a fine grid, 160 MB
_MOST_EMPTY = 200  # bins that a gap is filled with: as many as the noise looks at
_DENSE = 0.3  # Da; the bins of a profile are closer
_COARSEST = 1.0  # Da; no profile has bins further apart
_LEAST_BINS = 50


class BinSpacing(NamedTuple):
    """Distance between neighbouring bins (Da) at some m/z (Da, ascending)."""

    mz: NDArray[np.float64]
    step: NDArray[np.float64]

    def at(self, mz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of bins (Da) at each m/z."""
        return np.exp(np.interp(np.log(mz), np.log(self.mz), np.log(self.step)))

    @property
    def credible(self) -> bool:
        """Whether these may be bins: lists of centroids that are called profiles have peaks further apart."""
        return bool(self.step.min() < _COARSEST)

    def position(self, mz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each m/z counted in bins."""
        return np.interp(mz, *self._count())

    def grid(self, low: float, high: float) -> tuple[NDArray[np.float64], int]:
        """m/z of whole positions that hold `low` and `high` between them, and the first position."""
        place, number = self._count()
        first, last = int(np.floor(np.interp(low, place, number))), int(np.floor(np.interp(high, place, number))) + 1
        return np.interp(np.arange(first, last + 1), number, place), first

    def _count(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # spectra that were not looked at may reach further
        place = np.geomspace(self.mz[0] / 4, self.mz[-1] * 4, _STEPS)
        density = 1 / self.at(place)
        return place, np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(place))])


def bin_spacing(mz: NDArray[np.float64], row: NDArray[np.integer] | None = None) -> BinSpacing | None:
    """Distance of the bins of one axis, or of several spectra one after the other (`row`); `None` with fewer than two bins.

    It is the lower fifth of the distances in each stretch of m/z: where zeros are not stored, there are gaps.
    """
    gap = np.diff(mz)
    inside = gap > 0
    if row is not None:
        inside &= row[1:] == row[:-1]
    at, gap = ((mz[1:] + mz[:-1]) / 2)[inside], gap[inside]
    if gap.size == 0:
        return None
    order = np.argsort(at, kind="stable")
    parts = np.array_split(order, min(_SECTIONS, max(gap.size // 20, 1)))
    places = np.array([np.median(at[part]) for part in parts])
    steps = np.array([np.quantile(gap[part], 0.2) for part in parts])
    keep = np.concatenate([[True], np.diff(places) > 0])
    return BinSpacing(places[keep], steps[keep])


def looks_like_profile(mz: NDArray[np.float64], row: NDArray[np.integer] | None = None) -> bool:
    """Whether m/z (of one axis, or of several spectra one after the other) are bins: dense and evenly spaced."""
    gap = np.diff(mz)
    same = np.ones(gap.size, bool) if row is None else row[1:] == row[:-1]
    pair = same[1:] & same[:-1] & (gap[1:] > 0) & (gap[:-1] > 0)
    if same.sum() < _LEAST_BINS or not pair.any() or np.median(gap[same]) >= _DENSE:
        return False
    ratio = gap[1:][pair] / gap[:-1][pair]
    return bool(np.mean(np.abs(np.log(ratio)) < 0.1) > 0.5)


def fill_gaps(axis: NDArray[np.float64], spacing: BinSpacing) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The axis with bins where zeros were not stored, and the place of each stored bin on it."""
    missing = np.clip(
        np.rint(np.diff(axis) / spacing.at((axis[1:] + axis[:-1]) / 2)).astype(np.int64) - 1, 0, _MOST_EMPTY
    )
    place = np.concatenate([[0], np.cumsum(missing + 1)])[: len(axis)]
    filled = np.interp(np.arange(place[-1] + 1 if len(axis) else 0), place, axis)
    return filled, place


def windows_of_bins(
    mz: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    spacing: BinSpacing,
    width: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Windows around ascending `mz` as wide as a bin at least; with the `width` of peaks (Da, NaN: unknown) twice that, or a peak.

    They are made wider no further than half-way to the next m/z, unless there would be no bin; `low` and `high` are the
    least that they hold. Both ends ascend.
    """
    step = spacing.at(mz)
    wanted = step / 2 if width is None else np.fmax(step, width / 2)
    half_way = np.diff(mz) * (0.5 - 1e-6)
    least = step * (0.5 + 1e-6)
    below = np.maximum(np.minimum(wanted, np.append(np.inf, half_way)), least)
    above = np.maximum(np.minimum(wanted, np.append(half_way, np.inf)), least)
    low, high = np.minimum(low, mz - below), np.maximum(high, mz + above)
    return np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)


def fine_tolerance(spacing: BinSpacing, low: float, high: float) -> float:
    """Width of cells (ppm) so fine that each bin of a profile from `low` to `high` (Da) has several."""
    inside = spacing.at(np.geomspace(low, high, _SECTIONS)) / np.geomspace(low, high, _SECTIONS)
    return float(max(inside.min() / _CELLS_A_BIN, np.log(high / low) / _MOST_CELLS) * 1e6)


def common_profile(cells: Cells, spacing: BinSpacing, *, mean: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axis, and summed (`mean`) or largest intensity on it, of profiles that were counted in fine cells.

    Where all spectra have the same bins, these are the axis. Otherwise it is a grid as fine as their bins, and an
    intensity between two of its places is shared among them, so that spectra that are shifted make no pattern.
    """
    seen = np.flatnonzero(cells.number)
    low, high, number = cells.low[seen], cells.high[seen], cells.number[seen]
    value = cells.total[seen] if mean else cells.top[seen]
    opens = np.flatnonzero(np.concatenate([[True], np.diff(seen) > 1])[: seen.size])
    closes = np.append(opens[1:], seen.size)[: opens.size] - 1
    start, stop = spacing.position(low[opens]), spacing.position(high[closes])
    narrow = np.mean(stop - start < 0.5) > 0.9
    apart = opens.size < 2 or np.mean(np.diff(start) > 0.75) > 0.9
    if narrow and apart:
        join = np.add if mean else np.maximum
        middle = np.add.reduceat(number * (low + high) / 2, opens) / np.add.reduceat(number, opens)
        return middle, join.reduceat(value, opens)
    axis, first = spacing.grid(float(low.min()), float(high.max()))
    at = spacing.position((low + high) / 2) - first
    left = np.clip(np.floor(at).astype(np.int64), 0, len(axis) - 2)
    share = at - left
    whole = np.zeros(len(axis))
    if mean:
        np.add.at(whole, left, value * (1 - share))
        np.add.at(whole, left + 1, value * share)
    else:
        np.maximum.at(whole, left + (share > 0.5), value)
    return axis, whole

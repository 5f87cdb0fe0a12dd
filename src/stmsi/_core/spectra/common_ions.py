"""Common ions of many spectra, counted on a grid of m/z.

Own code, because sorting or clustering all peaks (as pyimzML or scikit-learn users do) needs all of them in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stmsi._core.compiled import use_compiled
from stmsi._core.spectra.extraction import Chunk, Workspace, check_fault, spectra_of
from stmsi._core.spectra.spectrum_arrays import ReferenceIons, Unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PPM = 1e6
_MOST_CELLS = 50_000_000
_JOINS = (np.add, np.minimum, np.maximum, np.add, np.maximum)
"""How number, extreme m/z, summed and largest intensity are joined."""
_JOINS_OF_IONS = (np.add, *_JOINS)
"""The same of ions, which also count the sum of m/z."""


class Cells(NamedTuple):
    """Peaks counted in cells of m/z (of log m/z for ppm) as wide as the tolerance; `first` is the number of cell 0."""

    first: int
    width: float
    log_scale: bool
    number: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]
    top: NDArray[np.float64]

    def fill(self, chunk: Chunk, work: Workspace) -> None:
        """Count the peaks of a chunk with an intensity above 0."""
        if use_compiled():
            from stmsi._core.spectra import spectra_kernel as kernel

            check_fault(
                *kernel.fill_cells(chunk.arrays(), work.arrays(), self.log_scale, self.width, self.first, *self[3:])
            )
            return
        mz, intensity, _ = spectra_of(chunk)
        mz, intensity = mz[intensity > 0], intensity[intensity > 0]
        cell = np.floor((np.log(mz) if self.log_scale else mz) / self.width).astype(np.int64) - self.first
        _count(self[3:], _JOINS, cell, (1, mz, mz, intensity, intensity))

    def add(self, other: Cells) -> Cells:
        """Add what another grid of the same cells has counted."""
        for own, more, join in zip(self[3:], other[3:], _JOINS, strict=True):
            join(own, more, out=own)
        return self


def _count(
    counts: tuple[Any, ...], joins: tuple[np.ufunc, ...], at: NDArray[np.int64], values: tuple[Any, ...]
) -> None:
    for own, join, more in zip(counts, joins, values, strict=True):
        join.at(own, at, more)


def cells_between(low: float, high: float, tolerance: float, unit: Unit) -> Cells:
    """An empty grid from the m/z `low` to `high`; a `ValueError` where it would not fit into memory."""
    width = tolerance / _PPM if unit == "ppm" else tolerance
    ends = np.floor((np.log([low, high]) if unit == "ppm" else np.array([low, high])) / width)
    n = int(ends[1] - ends[0]) + 1
    if n > _MOST_CELLS:
        msg = (
            f"tolerance={tolerance:g} {unit} parts m/z {low:g} to {high:g} into {n} cells; make it larger or pass mz=."
        )
        raise ValueError(msg)
    return Cells(
        int(ends[0]), width, unit == "ppm", np.zeros(n, np.int64), np.full(n, np.inf), np.full(n, -np.inf),
        np.zeros(n), np.zeros(n),
    )  # fmt: skip


def mz_range(chunk: Chunk, work: Workspace, limits: NDArray[np.float64]) -> None:
    """Widen `limits` to the m/z of a chunk."""
    if use_compiled():
        from stmsi._core.spectra import spectra_kernel as kernel

        check_fault(*kernel.range_of_mz(chunk.arrays(), work.arrays(), limits))
        return
    mz, _, _ = spectra_of(chunk)
    limits[0], limits[1] = np.min(mz, initial=limits[0]), np.max(mz, initial=limits[1])


class Runs(NamedTuple):
    """Runs of peaks no further apart than the tolerance: ends, number of the first ion, ions that each is cut into."""

    log_scale: bool
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    first: NDArray[np.int64]
    parts: NDArray[np.int64]

    @property
    def n_ions(self) -> int:
        """Ions of all runs."""
        return int(self.parts.sum())


def find_runs(cells: Cells, tolerance: float, unit: Unit) -> Runs:
    """Cut the peaks on a grid wherever two neighbours are further apart than `tolerance`.

    Two peaks of one cell never are, so the extremes of each cell suffice. A run wider than twice the tolerance is cut
    into equal parts, so that ions do not chain into each other.
    """
    seen = np.flatnonzero(cells.number)
    low, high = cells.low[seen], cells.high[seen]
    scale_low, scale_high = (np.log(v) * _PPM if unit == "ppm" else v for v in (low, high))
    opens = np.flatnonzero(np.concatenate([[True], scale_low[1:] - scale_high[:-1] > tolerance])[: seen.size])
    closes = np.append(opens[1:], seen.size)[: opens.size] - 1
    width = scale_high[closes] - scale_low[opens]
    parts = np.maximum(np.ceil(width / (2 * tolerance) - 1e-9), 1).astype(np.int64)
    return Runs(unit == "ppm", low[opens], high[closes], np.cumsum(parts) - parts, parts)


class IonCounts(NamedTuple):
    """What is counted of each ion: spectra, peaks, sum of m/z, extreme m/z, summed and largest intensity."""

    spectra: NDArray[np.int64]
    peaks: NDArray[np.int64]
    total: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    intensity: NDArray[np.float64]
    top: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int) -> IonCounts:
        """Counts of `n` ions."""
        return cls(
            np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n), np.full(n, np.inf), np.full(n, -np.inf),
            np.zeros(n), np.zeros(n),
        )  # fmt: skip

    def fill(self, chunk: Chunk, work: Workspace, runs: Runs) -> None:
        """Count the peaks of a chunk with an intensity above 0."""
        if use_compiled():
            from stmsi._core.spectra import spectra_kernel as kernel

            check_fault(*kernel.describe_ions(chunk.arrays(), work.arrays(), *runs, *self))
            return
        mz, intensity, row = spectra_of(chunk)
        seen = intensity > 0
        mz, intensity, row = mz[seen], intensity[seen], row[seen]
        run = np.searchsorted(runs.high, mz)
        low, high = runs.low[run], runs.high[run]
        low_at, high_at, at = (np.log(v) if runs.log_scale else v for v in (low, high, mz))
        position = (at - low_at) / np.where(high > low, high_at - low_at, 1)
        part = np.minimum(np.floor(position * runs.parts[run]).astype(np.int64), runs.parts[run] - 1)
        ion = runs.first[run] + np.maximum(part, 0)
        new = np.concatenate([[True], (ion[1:] != ion[:-1]) | (row[1:] != row[:-1])])[: ion.size]
        np.add.at(self.spectra, ion[new], 1)
        _count(self[1:], _JOINS_OF_IONS, ion, (1, mz, mz, mz, intensity, intensity))

    def add(self, other: IonCounts) -> IonCounts:
        """Add what was counted elsewhere."""
        for own, more, join in zip(self, other, (np.add, *_JOINS_OF_IONS), strict=True):
            join(own, more, out=own)
        return self


def reference_ions(counts: IonCounts, n_spectra: int, min_frequency: float) -> tuple[ReferenceIons, NDArray[np.intp]]:
    """The ions that at least a share `min_frequency` of all spectra holds, and which of the counted ones they are."""
    frequency = counts.spectra / n_spectra
    keep = np.flatnonzero((counts.peaks > 0) & (frequency >= min_frequency * (1 - 1e-9)))
    low, high = counts.low[keep], counts.high[keep]
    # a mean of equal numbers may leave them by an ulp
    mz = np.clip(counts.total[keep] / counts.peaks[keep], low, high)
    return ReferenceIons(mz, low, high, frequency[keep]), keep

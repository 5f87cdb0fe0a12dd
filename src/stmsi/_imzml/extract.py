"""From the spectra of an imzML to rows of ions: what is read, in which chunks, and in which threads."""

from __future__ import annotations

import functools
from contextlib import closing
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from stmsi._core.compiled import n_threads, use_compiled
from stmsi._core.parallel import ordered_map
from stmsi._core.peaks.profile_axis import bin_spacing, fine_tolerance, looks_like_profile, windows_of_bins
from stmsi._core.spectra.common_ions import Cells, IonCounts, cells_between, find_runs, mz_range, reference_ions
from stmsi._core.spectra.extraction import (
    Chunk,
    FaultError,
    Rows,
    Windows,
    Workspace,
    check_finite,
    spectra_of,
    sum_bins_of,
    sum_windows_of,
)
from stmsi._core.spectra.spectrum_arrays import windows
from stmsi._progress import track

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stmsi._core.peaks.profile_axis import BinSpacing
    from stmsi._core.spectra.spectrum_arrays import Reduce, ReferenceIons, Unit
    from stmsi._imzml.file import ImzmlFile

    R = TypeVar("R")

_CHUNK_BYTES, _CHUNK_BYTES_NUMPY = 2**24, 2**22
_CHUNK_ROWS, _CHUNK_VALUES = 4096, 2**20
_EXAMPLES = 32  # spectra that tell how far apart the bins of profiles are


class Options(NamedTuple):
    """How ions are taken from spectra."""

    tolerance: float
    unit: Unit
    reduce: Reduce
    min_frequency: float
    show: bool | None


class Sink(Protocol):
    """Where rows go."""

    def append(self, rows: Rows) -> None:
        """Add the rows of the next chunk."""


class Bins(NamedTuple):
    """Number of bins of a shared axis, what sorts it (empty: it is sorted), and the bins that each window begins with."""

    n: int
    order: NDArray[np.intp]
    start: NDArray[np.intp]
    stop: NDArray[np.intp]


class Plan(NamedTuple):
    """Which ions are taken, in which columns, and how: inside windows of m/z, or of bins of a shared axis."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    column: NDArray[np.int32]
    bins: Bins | None = None

    @property
    def n_columns(self) -> int:
        """Number of ions."""
        return len(self.column)


def plan_targets(
    file: ImzmlFile,
    chosen: NDArray[np.intp],
    mz: NDArray[np.float64],
    options: Options,
    *,
    width: NDArray[np.float64] | None = None,
    profile: bool | None = None,
) -> Plan:
    """Windows around m/z, which may come in any order.

    Those of profiles are as wide as a bin at least, and with the `width` of peaks (Da) as these; `profile` as for
    `profile_spacing`.
    """
    by_mz = np.argsort(mz, kind="stable")
    low, high = windows(mz[by_mz], options.tolerance, options.unit)
    spacing = profile_spacing(file, chosen, profile)
    if spacing is not None:
        low, high = windows_of_bins(mz[by_mz], low, high, spacing, None if width is None else width[by_mz])
    bins = None
    if _one_place(file, chosen) and (shared := file.shared_axis(chosen)) is not None:
        axis, order = shared
        bins = Bins(len(axis), order, np.searchsorted(axis, low, "left"), np.searchsorted(axis, high, "right"))
    return Plan(low, high, by_mz.astype(np.int32), bins)


def _one_place(file: ImzmlFile, chosen: NDArray[np.intp]) -> bool:
    """Whether all spectra point to the same m/z."""
    return bool((file.mz.offset[chosen] == file.mz.offset[chosen[0]]).all())


def profile_spacing(file: ImzmlFile, chosen: NDArray[np.intp], profile: bool | None = None) -> BinSpacing | None:
    """Distance of the bins of profile spectra, `None` where they are none.

    `profile`: whether they are; `None`: what the file says, or whether some spectra of it look so.
    """
    stored = file.index.traits.name("spectrum_type", chosen)
    if profile is False or (profile is None and stored == "centroid"):
        return None
    some = chosen[:1] if _one_place(file, chosen) else spread(chosen, _EXAMPLES)
    file.lengths(some)
    try:
        mz, _, row = spectra_of(file.chunk(some))
    except FaultError as error:
        file.raise_fault(int(some[error.row]), error)
        raise
    if profile is None and stored != "profile" and not looks_like_profile(mz, row):
        return None
    spacing = bin_spacing(mz, row)
    return spacing if spacing is None or profile or spacing.credible else None


def spread(chosen: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most `n` of the chosen spectra, spread over the acquisition."""
    return chosen[np.unique(np.linspace(0, len(chosen) - 1, min(n, len(chosen))).astype(np.intp))]


def plan_axis(axis: NDArray[np.float64], order: NDArray[np.intp]) -> Plan:
    """Every bin of a shared axis."""
    bins = np.arange(len(axis))
    return Plan(axis, axis, bins.astype(np.int32), Bins(len(axis), order, bins, bins + 1))


def plan_ions(ions: ReferenceIons) -> Plan:
    """The span of the peaks of each common ion."""
    return Plan(ions.low, ions.high, np.arange(len(ions.mz), dtype=np.int32))


def extract(file: ImzmlFile, chosen: NDArray[np.intp], plan: Plan, options: Options, sink: Sink) -> NDArray[np.float64]:
    """Send the rows of the chosen spectra to `sink`; returns the total ion current of each."""
    tic, done = np.empty(len(chosen)), 0
    looked_for = Windows(plan.low, plan.high, plan.column)

    def job(chunk: Chunk, work: Workspace) -> Rows:
        if plan.bins is not None:
            return sum_bins_of(chunk, *plan.bins[1:], plan.column, options.reduce, work)
        return sum_windows_of(chunk, looked_for, options.reduce, work)

    visit = _Visit(file, chosen, plan.n_columns, None if plan.bins is None else plan.bins.n)
    with closing(ordered_map(lambda part: visit(part, job), visit.parts, n_threads())) as results:
        for rows in track(results, "Reading spectra", total=len(visit.parts), show=options.show):
            tic[done : done + len(rows.tic)] = rows.tic
            done += len(rows.tic)
            sink.append(rows)
    return tic


def count_ions(file: ImzmlFile, chosen: NDArray[np.intp], options: Options) -> IonCounts:
    """All ions of the chosen spectra, however seldom; the spectra are read three times."""
    cells = fill_cells(file, chosen, options)
    if cells is None:
        return IonCounts.empty(0)
    runs = find_runs(cells, options.tolerance, options.unit)
    del cells
    return _accumulate(
        file, chosen, "Looking for ions", options, lambda: IonCounts.empty(runs.n_ions),
        lambda counts, chunk, work: counts.fill(chunk, work, runs), IonCounts.add,
    )  # fmt: skip


def common_ions(file: ImzmlFile, chosen: NDArray[np.intp], options: Options) -> ReferenceIons:
    """Ions that occur in enough spectra; a `ValueError` where there is none."""
    ions, _ = reference_ions(count_ions(file, chosen, options), len(chosen), options.min_frequency)
    if ions.mz.size == 0:
        share = f"{options.min_frequency:.2%} of the {len(chosen)} spectra"
        msg = f"{file.ibd.name}: no ion occurs in {share}; lower min_frequency or pass mz=."
        raise ValueError(msg)
    return ions


def fill_cells(
    file: ImzmlFile, chosen: NDArray[np.intp], options: Options, spacing: BinSpacing | None = None
) -> Cells | None:
    """All peaks counted on a grid as fine as the tolerance, or finer than the bins of profiles; `None` without a peak."""
    low, high = range_of_mz(file, chosen, options)
    if not np.isfinite(low):
        return None
    if spacing is not None:
        options = options._replace(tolerance=fine_tolerance(spacing, low, high), unit="ppm")
    return _accumulate(
        file, chosen, "Counting peaks", options, lambda: cells_between(low, high, options.tolerance, options.unit),
        Cells.fill, Cells.add,
    )  # fmt: skip


def range_of_mz(file: ImzmlFile, chosen: NDArray[np.intp], options: Options) -> tuple[float, float]:
    """The smallest and the largest m/z of all peaks; infinite and turned around where there is none."""
    low, high = _accumulate(
        file, chosen, "Looking for the range", options, lambda: np.array([np.inf, -np.inf]),
        lambda limits, chunk, work: mz_range(chunk, work, limits),
        lambda a, b: np.array([min(a[0], b[0]), max(a[1], b[1])]),
    )  # fmt: skip
    return float(low), float(high)


def _accumulate(
    file: ImzmlFile,
    chosen: NDArray[np.intp],
    title: str,
    options: Options,
    new: Callable[[], R],
    fill: Callable[[R, Chunk, Workspace], None],
    join: Callable[[R, R], R],
) -> R:
    """What all chunks fill: always two halves, which are joined, so that sums do not depend on the threads."""
    visit = _Visit(file, chosen, 1, None)
    middle = (len(visit.parts) + 1) // 2

    def run(parts: list[tuple[int, int]]) -> R:
        result = new()
        for part in parts:
            visit(part, lambda chunk, work: fill(result, chunk, work))
        return result

    halves = [half for half in (visit.parts[:middle], visit.parts[middle:]) if half]
    with closing(ordered_map(run, halves, min(n_threads(), 2))) as results:
        return functools.reduce(join, track(results, title, total=len(halves), show=options.show))


class _Visit:
    """Chunks of the chosen spectra handed to a job, with room to work in; an error names the spectrum at fault.

    `n_columns` is what a row of the result has at most, `shared` the length of a shared axis, whose m/z are not looked
    at.
    """

    def __init__(self, file: ImzmlFile, chosen: NDArray[np.intp], n_columns: int, shared: int | None) -> None:
        self.file, self.chosen, self.shared = file, chosen, shared
        length = file.lengths(chosen)
        self.parts = _split(length, file.mz_type.itemsize + file.intensity_type.itemsize, n_columns)
        self.values = max(stop - start for start, stop in self.parts) * n_columns
        longest = int(length.max(initial=1))
        self.free: SimpleQueue[Workspace] = SimpleQueue()
        for _ in range(n_threads()):
            self.free.put(_workspace(longest, self.values))

    def __call__(self, part: tuple[int, int], job: Callable[[Chunk, Workspace], R]) -> R:
        index = self.chosen[part[0] : part[1]]
        work = self.free.get()
        try:
            chunk = self.file.chunk(index, with_mz=self.shared is None)
            if self.shared is not None and (chunk.length != self.shared).any():
                wrong = int((chunk.length != self.shared).argmax())
                self.file.raise_lengths(int(index[wrong]), self.shared, int(chunk.length[wrong]))
            return job(chunk, work)
        except FaultError as error:
            self.file.raise_fault(int(index[error.row]), error)
            raise
        finally:
            self.free.put(work)


def _workspace(longest: int, n_values: int) -> Workspace:
    return Workspace(max(longest, 1), n_values) if use_compiled() else Workspace(0, 0)


def _split(length: NDArray[np.int64], item: int, n_columns: int) -> list[tuple[int, int]]:
    """First and last row of each chunk, so that neither its bytes nor its values are too many."""
    limit = _CHUNK_BYTES if use_compiled() else _CHUNK_BYTES_NUMPY
    rows = int(np.clip(_CHUNK_VALUES // max(n_columns, 1), 1, _CHUNK_ROWS))
    ends = np.cumsum(np.maximum(length, 1) * item)
    parts, start = [], 0
    while start < len(length):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + limit, side="right"))
        stop = min(max(stop, start + 1), start + rows)
        parts.append((start, stop))
        start = stop
    return parts


def _moved(values: NDArray[Any], used: int, room: int) -> NDArray[Any]:
    out = np.empty(room, values.dtype)
    out[:used] = values[:used]
    return out


class FoundColumns:
    """Rows on their way to another sink; `any` says in which columns there was a value."""

    def __init__(self, sink: Sink, n_columns: int) -> None:
        self._sink = sink
        self.any = np.zeros(n_columns, dtype=bool)

    def append(self, rows: Rows) -> None:
        """Add the rows of the next chunk."""
        if not self.any.all():
            self.any |= np.bincount(rows.indices, minlength=len(self.any)) > 0
        self._sink.append(rows)


class SparseRows:
    """Rows that grow into one CSR matrix; each value is held once."""

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self._shape = (n_rows, n_columns)
        self._data, self._indices = np.empty(0, np.float32), np.empty(0, np.int32)
        self._used, self._done, self._counts = 0, 0, [np.zeros(1, np.int64)]

    def append(self, rows: Rows) -> None:
        """Add the rows of the next chunk."""
        end = self._used + len(rows.data)
        self._done += len(rows.counts)
        if end > len(self._data):
            # a guess from the rows so far; memory that is never written costs nothing
            room = max(end, int(1.1 * end * self._shape[0] / self._done))
            self._data, self._indices = _moved(self._data, self._used, room), _moved(self._indices, self._used, room)
        self._data[self._used : end], self._indices[self._used : end] = rows.data, rows.indices
        self._used = end
        self._counts.append(rows.counts)
        check_finite(rows)

    def matrix(self) -> sp.csr_matrix:
        """The matrix; columns ascend in each row."""
        self._data.resize(self._used, refcheck=False)
        self._indices.resize(self._used, refcheck=False)
        indptr = np.cumsum(np.concatenate(self._counts))
        X = sp.csr_matrix((self._data, self._indices, indptr), shape=self._shape)
        X.sort_indices()
        return X

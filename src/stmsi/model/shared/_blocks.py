"""Spots in blocks, each with the spots around it that a model sees, so that a section need not be in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._spot_reader import SpotReader

BLOCK_SIZE = 20_000
"""Spots that are predicted together where nothing else is said."""


@dataclass(frozen=True)
class Block:
    """Some spots, and what is read to predict them.

    Attributes
    ----------
    rows
        The spots, ascending.
    read
        These and those around them, ascending; `None`: all spots there are.
    at
        Where `rows` are among `read`.
    """

    rows: NDArray[np.int64]
    read: NDArray[np.int64] | None
    at: NDArray[np.int64]


def some_rows(values: NDArray[Any], at: NDArray[np.int64] | None) -> NDArray[Any]:
    """Values of the spots that are predicted; `None`: of all that were read."""
    return values if at is None else values[at]


def blocks_of(reader: SpotReader, reach: int | None, size: int) -> Iterator[Block]:
    """All spots in blocks.

    Parameters
    ----------
    reader
        The spots.
    reach
        Rings of neighbours that the prediction of a spot depends on; `None`: all of its section, which is never divided.
    size
        Spots in a block; more where a section has more and is not divided.
    """
    n, graph = len(reader), reader.spots.graph
    every = np.arange(n)
    if n <= size:
        yield Block(every, None, every)
        return
    for rows in _in_order(n, size) if reach is not None else _whole_sections(reader, size):
        read = rows if not reach or graph is None else _with_rings(rows, graph, reach)
        yield Block(rows, read, np.searchsorted(read, rows))


def read_in_blocks(
    spots: Spots, reach: int | None, size: int, at: NDArray[np.int64] | None = None
) -> Iterator[tuple[Block, Spots]]:
    """Spots some at a time with those around them, whose expression is read into memory where it is on disk.

    Parameters
    ----------
    spots
        The spots.
    reach, size
        As for :func:`blocks_of`.
    at
        Which of them blocks are made of, ascending; `None`: all.
    """
    graph, wanted = spots.graph, np.arange(len(spots)) if at is None else at
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]
    if reach is None:
        parts = ((np.intersect1d(rows, wanted), rows) for rows in _sections_of(spots))
    else:
        blocks = (wanted[some] for some in _in_order(len(wanted), size))
        parts = ((rows, rows if not reach or graph is None else _with_rings(rows, graph, reach)) for rows in blocks)
    for rows, read in parts:
        yield Block(rows, read, np.searchsorted(read, rows)), spots.take(read).in_memory()


def n_blocks(reader: SpotReader, reach: int | None, size: int) -> int:
    """How many :func:`blocks_of` makes."""
    n = len(reader)
    return -(-n // size) if reach is not None or n <= size else len(_whole_sections(reader, size))


def _in_order(n: int, size: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def _whole_sections(reader: SpotReader, size: int) -> list[NDArray[np.int64]]:
    """Rows of sections, as many together as fit."""
    number, count = reader.stored.number, np.bincount(reader.stored.number)
    before = np.cumsum(count) - count
    block = before // size  # a section belongs to the block in which it begins
    return [np.flatnonzero(block[number] == one) for one in np.unique(block)]


def _sections_of(spots: Spots) -> list[NDArray[np.int64]]:
    """Rows of each section."""
    if spots.sample is None:
        return [np.arange(len(spots))]
    number = np.unique(spots.sample.astype(str), return_inverse=True)[1]
    return [np.flatnonzero(number == one) for one in range(number.max(initial=-1) + 1)]


def _with_rings(rows: NDArray[np.int64], graph: sp.csr_matrix, reach: int) -> NDArray[np.int64]:
    seen = np.zeros(graph.shape[0], dtype=bool)
    seen[rows] = True
    front = rows
    for _ in range(reach):
        near = np.unique(graph[front].indices)
        front = near[~seen[near]]
        seen[front] = True
    return np.flatnonzero(seen)

"""Numbers of spots that are not in memory: in a temporary file, or made of others each time they are read."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import finalize

import numpy as np
from numpy.typing import DTypeLike, NDArray

_AT_ONCE = 2**20
"""Numbers that are worked on together: 8 MB in double precision."""
_FEWEST_ROWS = 64


class Matrix(Protocol):
    """Numbers of shape (spots, columns), of which pieces are read."""

    @property
    def shape(self) -> Any:
        """Spots and columns."""

    def __getitem__(self, at: Any, /) -> NDArray[Any]:
        """Some spots, or some spots and columns, in memory."""


class NotInMemory:
    """What arrays and numbers outside of memory have in common with arrays in memory: pickled, they are such arrays.

    Attributes
    ----------
    shape
        Spots and columns.
    dtype
        Type of the numbers that are read.
    """

    def __init__(self, shape: tuple[int, int], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), 2

    @abstractmethod
    def _read(self, rows: Any, columns: Any) -> NDArray[Any]:
        """Some of the numbers."""

    def __getitem__(self, at: Any, /) -> NDArray[Any]:
        return self._read(*_rows_and_columns(at))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (np.asarray(self),)


class DiskArray(NotInMemory):
    """Numbers in a temporary file that is gone with this object.

    Every access maps the file into memory for as long as it takes, so that nothing of it stays there.

    Parameters
    ----------
    folder
        Where the file is.
    shape
        Spots and columns.
    dtype
        Of the numbers, which are 0 at first.
    by_column
        Whether the numbers of a column lie together, as those that work on few columns want it, or those of a spot.

    Raises
    ------
    OSError
        The disk is full.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: DTypeLike, *, by_column: bool = False) -> None:
        super().__init__(shape, dtype)
        self.folder, self._by_column = folder, by_column
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as it is there
        finalize(self, self._file.close)
        size = max(int(np.prod(shape)) * self.dtype.itemsize, 1)
        if hasattr(os, "posix_fallocate"):  # a full disk is told here; a write into a mapped file would end the process
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)

    def _mapped(self, mode: Any) -> NDArray[Any]:
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self._file, self.dtype, mode, shape=self.shape, order="F" if self._by_column else "C")

    def _read(self, rows: Any, columns: Any) -> NDArray[Any]:
        return np.array(self._mapped("r")[rows, columns], order="C", subok=False)

    def __setitem__(self, at: Any, values: Any, /) -> None:
        self._mapped("r+")[_rows_and_columns(at)] = values


class Derived(NotInMemory):
    """Numbers that are made of others each time they are read.

    Parameters
    ----------
    shape
        Spots and columns.
    make
        Gives those of some rows and columns (slices, numbers or masks).
    dtype
        Of what it gives.
    """

    def __init__(
        self, shape: tuple[int, int], make: Callable[[Any, Any], NDArray[Any]], dtype: DTypeLike = np.float64
    ) -> None:
        super().__init__(shape, dtype)
        self._make = make

    def _read(self, rows: Any, columns: Any) -> NDArray[Any]:
        return self._make(rows, columns)


def array_like(other: Any, dtype: DTypeLike) -> Any:
    """An array of the shape of another one, on disk where that is; each column lies together there."""
    if isinstance(other, DiskArray):
        return DiskArray(other.folder, other.shape, dtype, by_column=True)
    return np.empty(other.shape, dtype)


def row_pieces(n_rows: int, width: int) -> list[slice]:
    """Rows that are worked on together, so that memory does not grow with their number."""
    size = max(_AT_ONCE // max(width, 1), _FEWEST_ROWS)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _rows_and_columns(at: Any) -> tuple[Any, Any]:
    rows, columns = at if isinstance(at, tuple) else (at, slice(None))
    return slice(None) if rows is Ellipsis else rows, columns

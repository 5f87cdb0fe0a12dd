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

    @property
    def folder(self) -> Path | None:
        """Where the numbers, or those that they are made of, are on disk; `None`: that is not known."""
        return None

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
        self._folder, self._by_column = folder, by_column
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as it is there
        finalize(self, self._file.close)
        size = max(int(np.prod(shape)) * self.dtype.itemsize, 1)
        if hasattr(os, "posix_fallocate"):  # a full disk is told here; a write into a mapped file would end the process
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)

    @property
    def folder(self) -> Path:
        """As of the base class."""
        return self._folder

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


class _Part(Derived):
    """Some spots and columns of numbers that are not in memory.

    Parameters
    ----------
    whole
        The numbers.
    rows, columns
        Which of them; `None`: all.
    """

    def __init__(self, whole: NotInMemory, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None) -> None:
        def make(at: Any, of: Any) -> NDArray[Any]:
            return whole[_crossed(at if rows is None else rows[at], of if columns is None else columns[of])]

        n, m = (size if own is None else len(own) for size, own in zip(whole.shape, (rows, columns), strict=True))
        super().__init__((n, m), make, whole.dtype)
        self._whole = whole

    @property
    def folder(self) -> Path | None:
        """As of the base class."""
        return self._whole.folder


def some_of(whole: Any, rows: NDArray[np.int64] | None = None, columns: NDArray[np.int64] | None = None) -> Any:
    """Some spots and columns: an array where the numbers are one, else what reads them when it is asked. Not to be changed.

    Parameters
    ----------
    whole
        Shape (spots, columns).
    rows, columns
        Numbers of the spots and columns; `None`: all.
    """
    rows, columns = (
        None if own is not None and np.array_equal(own, np.arange(size)) else own
        for own, size in zip((rows, columns), whole.shape, strict=True)
    )
    if isinstance(whole, NotInMemory):
        return whole if rows is None and columns is None else _Part(whole, rows, columns)
    some = whole if rows is None else whole[rows]
    return some if columns is None else some[:, columns]


def derived(make: Callable[..., NDArray[Any]], first: Any, *others: Any) -> Any:
    """What a function makes of the numbers of spots and columns: now of arrays in memory, when it is read of others.

    `first` and `others` are of one shape (spots, columns); the function works number by number.
    """
    arrays = first, *others
    if not any(isinstance(one, NotInMemory) for one in arrays):
        return make(*arrays)
    return Derived(first.shape, lambda rows, columns: make(*(one[rows, columns] for one in arrays)))


def array_like(other: Any, dtype: DTypeLike) -> Any:
    """An array of the shape of another one, on disk where that is; each column lies together there."""
    return new_array(getattr(other, "folder", None), other.shape, dtype)


def new_array(
    folder: Path | None,
    shape: tuple[int, int],
    dtype: DTypeLike,
    fill: float | None = None,
    *,
    by_column: bool = True,
) -> Any:
    """An array to be written into, filled with a number or not: in a folder (`by_column` as of :class:`DiskArray`), or (`None`) in memory."""
    out: Any = np.empty(shape, dtype) if folder is None else DiskArray(folder, shape, dtype, by_column=by_column)
    if fill is not None:
        for rows in row_pieces(*shape):
            out[rows] = fill
    return out


def write_into(out: Any, at: tuple[NDArray[np.int64], NDArray[np.int64]], values: Any) -> None:
    """Write numbers (spots, columns) into some spots and columns of a larger array; either may be on disk."""
    rows, columns = at
    for some in row_pieces(*values.shape):
        out[np.ix_(rows[some], columns)] = values[some]


def row_pieces(n_rows: int, width: int) -> list[slice]:
    """Rows that are worked on together, so that memory does not grow with their number."""
    size = max(_AT_ONCE // max(width, 1), _FEWEST_ROWS)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _crossed(rows: Any, columns: Any) -> tuple[Any, Any]:
    """What picks some columns of some rows, where both may be given as numbers."""
    return np.ix_(rows, columns) if np.ndim(rows) == np.ndim(columns) == 1 else (rows, columns)


def _rows_and_columns(at: Any) -> tuple[Any, Any]:
    rows, columns = at if isinstance(at, tuple) else (at, slice(None))
    return slice(None) if rows is Ellipsis else rows, columns

"""Writing h5ad files: a disk that is full ends in one error."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write what `adata.write_h5ad(path)` writes.

    HDF5 cannot close a file whose last blocks do not fit on the disk: it prints its own errors, and the process ends in a
    segmentation fault. Here it writes into a file that takes everything, and the first error is raised once it is closed.

    Raises
    ------
    OSError
        The disk is full, a file may not be that large, ...
    """
    import h5py
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with path.open("w+b", buffering=0) as handle:
        file = _TakesEverything(handle)
        try:
            with h5py.File(file, "w") as target:
                write_elem(target, "/", adata)
        except Exception:
            if file.error is None:  # else it has missed what could not be written
                raise
        if file.error is not None:
            raise file.error


class _TakesEverything(io.RawIOBase):
    """A file whose writes do not fail: after the first error they do nothing, and the error is kept."""

    def __init__(self, handle: io.FileIO) -> None:
        super().__init__()
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        values = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(values):
                done += self.handle.write(values[done:]) or 0
        except OSError as error:
            self.error = error
        self.handle.seek(len(values) - done, os.SEEK_CUR)
        return len(values)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.handle.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        return self.handle.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

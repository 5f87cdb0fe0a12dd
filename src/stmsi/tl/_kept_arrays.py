"""Arrays on disk, found again by what went into them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from stmsi._core.arrays import AnyFloats
from stmsi._data.whole_file import SCRATCH, clear_old, whole_file
from stmsi._settings import logger
from stmsi.tl._fold_cache import fingerprint, is_a_file, mark_used

_KEPT = (".npy", ".json", ".parquet")
"""What a folder of folds and sums holds."""


def usable_folder(directory: str | Path | None) -> Path | None:
    """The folder, made where it is not there; `None`, told in the log, where nothing can be written into it.

    It is absolute, as workers on a cluster have other working directories.

    Raises
    ------
    NotADirectoryError
        A file has the name of the folder.
    """
    if directory is None:
        return None
    path = Path(directory).expanduser().absolute()
    try:
        is_file = path.exists() and not path.is_dir()
        if not is_file:
            path.mkdir(parents=True, exist_ok=True)
            clear_old(path)
    except OSError as error:
        logger.warning(
            "Sums over sections cannot be kept in %s (%s): they go to a temporary folder, and another run will make them again.", path, error
        )  # fmt: skip
        return None
    if is_file:
        raise NotADirectoryError(is_a_file(directory))
    return path


class UsedFiles:
    """Which files of a folder of finished folds and sums a run uses; the others are of data that have changed since.

    Parameters
    ----------
    folder
        The folder; `None`: there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = usable_folder(folder)
        self._begin = 0
        if self._folder is not None:
            with tempfile.NamedTemporaryFile(dir=self._folder) as mark:  # by the clock of that file system
                self._begin = Path(mark.name).stat().st_mtime_ns

    def remove_others(self) -> None:
        """Remove what was neither read nor written since."""
        if self._folder is None:
            return
        for path in self._folder.iterdir():
            if path.suffix in _KEPT and not path.name.startswith("."):
                with suppress(OSError):  # another run may have removed it
                    if path.stat().st_mtime_ns < self._begin:
                        path.unlink()


class KeptOnDisk:
    """Arrays of parts of the spots, one file each, which appears whole or not at all.

    Parameters
    ----------
    keys
        What each part is made of; `None`: they are of no use to another run, and go to the temporary folder.
    directory
        Folder that keeps them. What is not kept is in a temporary folder (inside of it, where there is one) that goes with this object.
    once
        Whether each part is read once, so that only a folder would keep what is made of it.
    """

    def __init__(self, keys: Sequence[str] | None, directory: Path | None, *, once: bool = False) -> None:
        self._keys, self._kept, self._read_once = keys, directory, once
        self._scratch: Path | None = None

    @property
    def directory(self) -> Path:
        """The temporary folder."""
        if self._scratch is None or not self._scratch.exists():  # another run may have taken it for left over
            self._scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=self._kept))
            finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    @property
    def of_parts(self) -> bool:
        """Whether what is made of a part is read again, and worth its place on disk."""
        return self._kept is not None or not self._read_once

    def has(self, name: str, part: int) -> bool:
        """Whether something is kept under a name for a part; then it is in use."""
        path = self._path(name, part)
        there = path.exists()
        if there:
            mark_used(path)
        return there

    def _path(self, name: str, part: int) -> Path:
        if self._keys is None or self._kept is None:
            return self.directory / f"{fingerprint(name, part)}.npy"
        return self._kept / f"{fingerprint(name, self._keys[part])}.npy"

    def array(self, name: str, part: int, make: Callable[[], AnyFloats]) -> AnyFloats:
        """What is kept under a name for a part, or is made now; mapped into memory, not to be changed."""
        path = self._path(name, part)
        if path.exists():
            try:
                mark_used(path)
                return np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                logger.warning("%s cannot be read (%s); it is made again.", path, error)
        made = make()
        with whole_file(path) as new:
            np.save(new, made)
        return np.load(path, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # another process has a temporary folder of its own
        return {**self.__dict__, "_scratch": None}

"""Arrays on disk, found again by what went into them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from stmsi._core.arrays import AnyFloats
from stmsi._data.unfinished import unfinished
from stmsi._settings import logger
from stmsi.tl._fold_cache import fingerprint


class KeptOnDisk:
    """Arrays of parts of the spots, one file each, which appears whole or not at all.

    Parameters
    ----------
    keys
        What each part is made of; `None`: they are of no use to another run, and go to the temporary folder.
    directory
        Folder that keeps them. What is not kept is in a temporary folder (inside of it, where there is one) that goes with this object.
    """

    def __init__(self, keys: Sequence[str] | None, directory: Path | None) -> None:
        self._keys, self._kept = keys, directory
        self._scratch: Path | None = None

    @property
    def directory(self) -> Path:
        """The temporary folder."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix=".stmsi-", dir=self._kept))
            finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def array(self, name: str, part: int, make: Callable[[], AnyFloats]) -> AnyFloats:
        """What is kept under a name for a part, or is made now; mapped into memory, not to be changed."""
        if self._keys is None or self._kept is None:
            path = self.directory / f"{fingerprint(name, part)}.npy"
        else:
            path = self._kept / f"{fingerprint(name, self._keys[part])}.npy"
        if path.exists():
            try:
                return np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                logger.warning("%s cannot be read (%s); it is made again.", path, error)
        with unfinished(path) as folder:
            np.save(folder / path.name, make())
            (folder / path.name).replace(path)
        return np.load(path, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # another process has a temporary folder of its own
        return {**self.__dict__, "_scratch": None}

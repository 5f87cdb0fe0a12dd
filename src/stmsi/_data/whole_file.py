"""Small files of a cache that many processes, on many machines, may write at once: each appears whole, whoever is first."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"\.[0-9a-f]{32}\..+")
SCRATCH = ".stmsi-"
"""Begin of the names of temporary folders inside a cache."""
_OLD = 86_400.0
"""Seconds after which what nobody has changed is left over from a run that was killed."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name of its own beside `path` to write to; at the end it takes the place of `path`, at once.

    No lock is needed, which some file systems keep to one machine: two writers make two files, and the last one stays. What is
    interrupted leaves no trace; what is killed leaves a hidden file, which :func:`clear_old` removes.
    """
    new = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield new
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def clear_old(folder: Path) -> None:
    """Remove hidden files and temporary folders that nobody has changed for a day, by the clock of the file system.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as mark:
        now = os.fstat(mark.fileno()).st_mtime
    for path in folder.iterdir():
        if not (_NAME.fullmatch(path.name) or path.name.startswith(SCRATCH)):
            continue
        with suppress(OSError):  # another run may have removed it
            if now - path.stat().st_mtime < _OLD:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

"""Writes that are whole or not there: made in a hidden folder beside the target, which no run leaves behind for good."""

from __future__ import annotations

import errno
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from stmsi._settings import logger

try:
    import fcntl
except ImportError:  # Windows: what killed runs leave there is named and not removed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK = ".stmsi-unfinished"
"""File in a hidden folder that its writer holds locked; the system unlocks it when the process ends, however it ends."""
_OLD = "old"
"""What the target was before, while something else takes its place."""
_NAME = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.part")


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to make something in and move it from.

    Neither an error nor an interrupt leaves it behind. What killed runs left beside the same target is cleared first.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    clear_leftovers(target.absolute().parent, target.name)
    folder = target.absolute().parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    lock = _make(folder)
    try:
        yield folder
    finally:
        with lock:  # on Windows, nothing open can be removed: the lock file goes last
            _remove(folder, keep_lock=True)
        _remove(folder)


def take_place(new: Path, target: Path, folder: Path) -> None:
    """Move `new` to `target`; what was there waits in the hidden `folder`, and comes back where the move fails.

    If the process is killed between the two moves, the next write of the target puts it back.
    """
    old = folder / _OLD
    try:
        if target.exists():
            target.replace(old)
        new.replace(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.replace(target)
        raise


def clear_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what killed runs left of a target, or of all targets in a folder, and put back what they were about to replace.

    A hidden folder whose writer is still at work stays. One of which this cannot be told stays, too, and is named in the log.
    """
    for folder, target in _hidden(parent, name):
        lock = folder / _LOCK
        try:
            with lock.open("r+b") as handle:
                _hold(handle)
                if (folder / _OLD).exists() and not target.exists():
                    (folder / _OLD).replace(target)
                    logger.warning("%s is back as it was: a run was killed while it replaced it.", target)
                _remove(folder)
                logger.info("Removed %s, which a killed run had left.", folder)
        except BlockingIOError:  # its writer is at work
            continue
        except OSError as error:
            if folder.exists():  # and was not cleared by another run at the same time
                told = "%s may be left from a run that was killed (%s); remove it if no other program is writing %s."
                logger.warning(told, folder, error, target)


def kept_by_killed_run(target: Path) -> Path | None:
    """Where the earlier content of a missing target lies, if a run was killed while it replaced it."""
    found = [folder / _OLD for folder, _ in _hidden(target.absolute().parent, target.name) if (folder / _OLD).exists()]
    return None if target.exists() or not found else found[0]


def _hidden(parent: Path, name: str | None) -> list[tuple[Path, Path]]:
    """Hidden folders of unfinished writes, and their targets."""
    try:
        matches = [(path, _NAME.fullmatch(path.name)) for path in parent.iterdir()]
    except OSError:  # a folder that does not exist or cannot be listed
        return []
    found = [(path, parent / match["target"]) for path, match in matches if match is not None]
    return [(path, target) for path, target in found if name in (None, target.name) and path.is_dir()]


def _make(folder: Path) -> IO[bytes]:
    """Make a hidden folder and hold its lock; it has its name only once it is locked, so that nobody takes it for dead."""
    first = folder if fcntl is None else folder.with_name(f".{uuid.uuid4().hex}")
    first.mkdir()
    lock = None
    try:
        lock = (first / _LOCK).open("wb")
        with suppress(OSError):  # file systems without locks
            _hold(lock)
        if first != folder:  # Windows renames no folder in which a file is open
            first.rename(folder)
    except BaseException:
        if lock is not None:
            lock.close()
        shutil.rmtree(first, ignore_errors=True)
        raise
    return lock


def _hold(lock: IO[bytes]) -> None:
    """Lock a file, or raise a `BlockingIOError` where another process holds it, and another `OSError` where this cannot be told."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system tells nothing of its writer")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(folder: Path, *, keep_lock: bool = False) -> None:
    """Remove a hidden folder, its lock last: killed in between, it can still be told from one in use."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name == _LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if not keep_lock:
        shutil.rmtree(folder, ignore_errors=True)

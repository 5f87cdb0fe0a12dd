"""New files, folders and stores, made in one piece."""

from __future__ import annotations

import shutil
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check_new(path: Path, what: str) -> Path:
    """Raise where nothing can be made at `path`; `what` is ``"store"`` or ``"file"``."""
    if path.exists() or path.is_symlink():
        msg = f"{path} exists; remove it or name another {what}."
        raise FileExistsError(msg)
    if not path.absolute().parent.is_dir():
        msg = f"There is no folder {path.absolute().parent} to write {path.name} into."
        raise FileNotFoundError(msg)
    return path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A folder beside `path` to make something in and move it from; an error leaves nothing behind."""
    folder = path.absolute().parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

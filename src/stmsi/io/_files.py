"""New files, folders and stores: where nothing is overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

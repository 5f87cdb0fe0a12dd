"""What each step was made from: one small file a step, by which a later run tells what is to be done."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stmsi._data.small_files import read_json
from stmsi._data.stores import file_times
from stmsi._data.whole_file import whole_file

if TYPE_CHECKING:
    from pathlib import Path

_IMZML = (".imzml", ".imzml.gz")


@dataclass(frozen=True)
class Record:
    """A step that was done: the hash of its inputs and options, seconds, what it found, and what it warned of."""

    key: str
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    """Why it failed; then there is no output."""


class Records:
    """Records in a folder: ``<step>/<section>.json``, and ``<step>.json`` of steps of the whole cohort."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: str, section: str | None = None) -> Path:
        """File of a record."""
        return self.folder / (f"{step}.json" if section is None else f"{step}/{section}.json")

    def read(self, step: str, section: str | None = None) -> Record | None:
        """The record, or `None` where there is none that can be read."""
        path = self.path(step, section)
        try:
            return Record(**read_json(path, "a record")) if path.exists() else None
        except (ValueError, TypeError, OSError):  # cut short, or of another version: the step is done again
            return None

    def write(self, record: Record, step: str, section: str | None = None) -> None:
        """Write a record, whole or not at all."""
        path = self.path(step, section)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as new:
            new.write_text(json.dumps(asdict(record), ensure_ascii=False, default=_plain), encoding="utf-8")

    def forget(self, step: str, section: str | None = None) -> None:
        """Remove a record, before its output changes."""
        self.path(step, section).unlink(missing_ok=True)


def files_of(path: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file with its companion, or of all files of a folder, in a fixed order."""
    if path is None:
        return []
    return [one for file in (path, *_companions(path)) for one in file_times(file)]


def _companions(path: Path) -> list[Path]:
    """Where the intensities of an imzML file lie, if they are there; the reader tells what is wrong with them."""
    from stmsi._imzml.file import find_ibd

    if path.name.lower().endswith(_IMZML):
        with suppress(OSError, ValueError):
            return [find_ibd(path)]
    return []


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)

"""The command that comes next, as it can be pasted into a shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from stmsi._report._program import program
from stmsi.cli._app import say

_STEPS = re.compile(r"(_(combined|aligned|mapped|model|predicted|scores)(_\d+)?)+$")
"""What earlier steps have put behind a name."""


def say_next(*words: str | Path, also: str = "") -> None:
    """Tell the next command; `also` is a sentence behind it."""
    say(f"Next: {command_line(*words)}")
    if also:
        say(also)


def command_line(*words: str | int | Path) -> str:
    """A command of stmsi as it runs in this folder, with its words quoted where the shell needs it."""
    return shlex.join([program(), *map(str, words)])


def new_path(path: Path, step: str, suffix: str = "") -> Path:
    """A path beside `path` that does not exist yet, named by the step that will write it.

    ``pair_aligned.zarr`` and the step ``"mapped"`` give ``pair_mapped.zarr``.
    """
    stem = _STEPS.sub("", path.stem) or path.stem
    out, number = path.with_name(f"{stem}_{step}{suffix}"), 1
    while out.exists():
        number += 1
        out = path.with_name(f"{stem}_{step}_{number}{suffix}")
    return out

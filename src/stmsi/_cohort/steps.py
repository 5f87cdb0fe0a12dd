"""One step of a cohort: skipped where its output was made from the same, else made whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from stmsi._cohort.records import Record, Records
from stmsi._data.unfinished import take_place, unfinished
from stmsi._messages import held_back

State = Literal["done", "kept", "failed", "blocked"]


@dataclass(frozen=True)
class Step:
    """A step: what it is called, what it writes, the hash of all it is made from, and the work.

    The work gets a path to write to, which does not exist, and returns what is told of it.
    """

    name: str
    output: Path
    key: str
    work: Callable[[Path], dict[str, Any]]
    section: str | None = None
    needs: tuple[Step, ...] = ()
    spent: Callable[[], bool] | None = None
    """Whether the output may be missing, as what is made from it is there."""

    @property
    def title(self) -> str:
        """What it is called beside others."""
        return self.name if self.section is None else f"{self.section}: {self.name}"

    def fresh(self, records: Records) -> Record | None:
        """The record of an output that was made from the same, or `None`."""
        record = records.read(self.name, self.section)
        if record is None or record.key != self.key or record.error:
            return None
        there = self.output.exists() or (self.spent is not None and self.spent())
        return record if there else None


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    section: str | None
    state: State
    record: Record


def carry_out(step: Step, records: Records, explain: Callable[[Exception], str], *, again: bool = False) -> Outcome:
    """Do a step, unless it was done; an error is kept in the record, and others may go on.

    Parameters
    ----------
    step
        What to do.
    records
        Of earlier runs; the outcome is added.
    explain
        Makes one line of an error.
    again
        Do it although it was done.

    Returns
    -------
    What became of it; ``"blocked"`` where a step that it needs was not done.

    Raises
    ------
    OSError
        The disk is full or cannot be written to: no step would go on.
    """
    known = None if again else step.fresh(records)
    if known is not None:
        return Outcome(step.name, step.section, "kept", known)
    if missing := [need.title for need in step.needs if need.fresh(records) is None]:
        return Outcome(step.name, step.section, "blocked", Record(step.key, error=f"needs {', '.join(missing)}"))
    start = perf_counter()
    try:
        step.output.parent.mkdir(parents=True, exist_ok=True)
        with held_back() as said:
            with unfinished(step.output) as scratch:
                new = scratch / step.output.name
                result = step.work(new)
                records.forget(step.name, step.section)  # so that no record is of another output
                take_place(new, step.output, scratch)
            warned = list(dict.fromkeys(record.getMessage() for record in said))
        record = Record(step.key, perf_counter() - start, result, warned)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        record = Record(step.key, perf_counter() - start, error=explain(error))
    records.write(record, step.name, step.section)
    return Outcome(step.name, step.section, "failed" if record.error else "done", record)

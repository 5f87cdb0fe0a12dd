"""A table of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table: the first `labels` columns are names, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    note: str = ""
    folded: bool = False
    """At the end of the page; a long one is shown only when it is asked for."""
    sortable: bool = False
    """Sorted by a click on the name of a column."""

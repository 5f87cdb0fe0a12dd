"""The card of a model as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stmsi._report._table import Table

_SHOWN = 6
"""Entries of a list that are written out."""
_MOST_ROWS = 500


def card_tables(card: Mapping[str, Any]) -> list[Table]:
    """One table of what the card says, part by part, and one for each list of records in it, such as its metabolites."""
    rows, lists = [], []
    for part, value in card.items():
        if _is_table(value):
            lists.append(_records(part, value))
            continue
        for number, (name, text) in enumerate(_lines(value)):
            rows.append(["" if number else _words(part), name, text])
    facts = Table("Model card", ["part", "field", "value"], rows, labels=3, folded=True)
    return [facts, *lists] if rows or lists else []


def _lines(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of every value, those inside others by the names of both."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _lines(inner, f"{name}, {_words(key)}" if name else _words(key))
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    """A value for people."""
    if value is None or value in ("", {}, []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f" and {len(value) - _SHOWN:,} more" if len(value) > _SHOWN else ""
        return ", ".join(_text(v) for v in value[:_SHOWN]) + more
    return str(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(row, Mapping) for row in value)


def _records(name: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """A list of records with the same fields as a table."""
    columns = list(dict.fromkeys(key for row in records for key in row))
    rows = [[_text(row.get(c)) for c in columns] for row in records[:_MOST_ROWS]]
    note = "" if len(records) <= _MOST_ROWS else f"The first {_MOST_ROWS} of {len(records):,}."
    return Table(
        f"Model card: {_words(name)}", [_words(c) for c in columns], rows, note=note, folded=True, sortable=True
    )


def _words(name: Any) -> str:
    return str(name).replace("_", " ")

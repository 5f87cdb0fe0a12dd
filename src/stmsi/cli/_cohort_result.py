"""What the steps of a cohort have left, gathered from their records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._report import Found

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stmsi._cohort import Cohort, Record, Records, Step

    Known = dict[tuple[str, str | None], Record]


_OF_SECTION = {
    "combine": "combined",
    "align": "aligned",
    "map": "mapped",
    "section_report": "mapped",
    "predict": "predicted",
}
"""Steps of a section in their order, and how one is called that has come so far."""


_NAMES = dict.fromkeys(("patient", "sample", "metabolite", "model"), str)
"""Columns that hold names, whatever they look like."""


def gather(cohort: Cohort, steps: Iterable[Step], kept: Records) -> Found:
    """Sections, alignments, failures, warnings, scores and tiers; of steps whose inputs have changed since, nothing.

    Parameters
    ----------
    cohort
        The configuration.
    steps
        All steps but the report, in order.
    kept
        Their records.
    """
    records: Known = {}
    folder: Path | None = None
    for step in steps:
        record = kept.read(step.name, step.section)
        if record is not None and record.key == step.key:
            records[step.name, step.section] = record
            folder = step.output if step.name == "validate" and not record.error else folder
    trained, validated = (_good(records.get((name, None))) for name in ("train", "validate"))
    alignment = [row for name in cohort.measured for row in _good(records.get(("align", name))).get("sections", [])]
    return Found(
        source=cohort.source,
        sections=[_section(cohort, name, records) for name in cohort.sections],
        alignment=alignment,
        failed=[{"section": s, "step": n, "message": r.error} for (n, s), r in records.items() if r.error],
        warnings=[(n if s is None else f"{s}: {n}", text) for (n, s), r in records.items() for text in r.warnings],
        model=cohort.options["train"]["model"],
        simulated=any(_good(records.get(("combine", name))).get("simulated") for name in cohort.sections),
        by=validated.get("by"),
        trained=trained,
        scores=None if (scores := _table(folder, "scores.csv")) is None else constant_counts_as_zero(scores),
        tiers=_table(folder, "tiers.csv"),
    )


def _good(record: Record | None) -> dict[str, Any]:
    return {} if record is None or record.error else record.result


def _section(cohort: Cohort, name: str, records: Known) -> dict[str, Any]:
    own = {step: records[step, name] for step in _OF_SECTION if (step, name) in records}
    error = next((f"{step}: {record.error}" for step, record in own.items() if record.error), "")
    state = (
        "failed" if error else next((said for step, said in reversed(_OF_SECTION.items()) if step in own), "not begun")
    )
    counts = _good(own.get("combine")).get("sections", [{}])[0]
    return {
        "sample": name,
        "patient": cohort.sections[name].patient,
        "state": state,
        "spots": counts.get("spots"),
        "covered": _good(own.get("map")).get("sections", [{}])[0].get("covered"),
        "message": error,
    }


def _table(folder: Path | None, name: str) -> pd.DataFrame | None:
    if folder is None or not (folder / name).exists():
        return None
    # a section may be called NA
    return pd.read_csv(folder / name, dtype=_NAMES, keep_default_na=False, na_values=[""])

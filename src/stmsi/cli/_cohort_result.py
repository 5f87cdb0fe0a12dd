"""What the steps of a cohort have left, gathered from their records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from stmsi._report import Found

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stmsi._cohort import Cohort, Record, Records, Step

    Known = dict[tuple[str, str | None], Record]


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
        scores=_table(folder, "scores.csv"),
        tiers=_table(folder, "tiers.csv"),
    )


def _good(record: Record | None) -> dict[str, Any]:
    return {} if record is None or record.error else record.result


def _section(cohort: Cohort, name: str, records: Known) -> dict[str, Any]:
    own = [
        (step, records[step, name])
        for step in ("combine", "align", "map", "section_report", "predict")
        if (step, name) in records
    ]
    error = next((f"{step}: {record.error}" for step, record in own if record.error), "")
    reached = [step for step, record in own if not record.error]
    combined, mapped = (_good(records.get((step, name))) for step in ("combine", "map"))
    counts = combined.get("sections", [{}])[0]
    return {
        "sample": name,
        "patient": cohort.sections[name].patient,
        "state": "failed"
        if error
        else "predicted"
        if "predict" in reached
        else reached[-1]
        if reached
        else "not begun",
        "spots": counts.get("spots"),
        "covered": mapped["sections"][0]["covered"] if mapped else None,
        "message": error,
    }


def _table(folder: Path | None, name: str) -> pd.DataFrame | None:
    return None if folder is None or not (folder / name).exists() else pd.read_csv(folder / name)

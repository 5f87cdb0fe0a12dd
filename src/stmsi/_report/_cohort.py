"""What the reports of a cohort and of one of its sections say."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stmsi._report._page import Figure, Page
from stmsi._report._parts import COLUMNS, CONSTANT, MAX_ROWS, READING, SIMULATED, links, number
from stmsi._report._program import program
from stmsi._report._table import Table
from stmsi.tl._reliability import TIERS

if TYPE_CHECKING:
    from spatialdata import SpatialData

_HELD_OUT = (
    "Held out.",
    "Scores are of {by}s that the model of the fold had not seen. Predictions of the sections themselves come from a model "
    "that was trained on them: these are no evidence.",
)
_NO_SCORES = ("No scores.", "Nothing could be held out, so nothing is known of how good the predictions are.")
_SECTION = ("One section.", "Look whether tissue lies on tissue before you believe anything that is made from it.")
_TIERS = (*TIERS, "none")
_LEAST_OVERLAP, _LEAST_COVERED = 0.5, 0.3


@dataclass(frozen=True)
class Found:
    """What the steps of a cohort have left, as plain values and tables."""

    source: Path
    sections: Sequence[Mapping[str, Any]]
    """``sample``, ``patient``, ``state``, ``spots``, ``covered`` and ``message`` of each."""
    alignment: Sequence[Mapping[str, Any]]
    """Rows of :func:`stmsi.pp.alignment_report`."""
    failed: Sequence[Mapping[str, Any]]
    """``section``, ``step`` and ``message`` of steps that failed."""
    warnings: Sequence[tuple[str, str]]
    """Step and text."""
    model: str
    simulated: bool = False
    by: str | None = None
    """What was held out: patient or sample."""
    trained: Mapping[str, Any] = field(default_factory=dict)
    scores: pd.DataFrame | None = None
    """Where a correlation lacks as the prediction is constant, it is 0."""
    tiers: pd.DataFrame | None = None


def flags(row: Mapping[str, Any]) -> str:
    """What speaks against an alignment, in a few words; empty where nothing does."""
    found = []
    if row.get("ambiguous") is True:
        found.append("doubtful: another reading agrees better")
    if str(row.get("resolution", "")).startswith("not known"):
        found.append("genes and ions do not support it")
    for key, least, text in (
        ("mask_iou", _LEAST_OVERLAP, "outlines differ"),
        ("spots_covered", _LEAST_COVERED, "few spots covered"),
    ):
        if pd.notna(row.get(key)) and row[key] < least:
            found.append(f"{text} ({row[key]:.2f})")
    if row.get("folds", 0) > 0:
        found.append(f"{row['folds']:.1%} of the pixels folded")
    if row.get("outliers"):
        found.append(f"landmarks left out: {row['outliers']}")
    return "; ".join(found)


def cohort_report(found: Found, *, figures: bool = True) -> Page:
    """The report of ``stmsi cohort``."""
    rows = pd.DataFrame(found.sections)
    good = rows[rows["state"] != "failed"]
    flagged = [str(row["sample"]) for row in found.alignment if flags(row)]
    facts = {
        "Configuration": str(found.source),
        "Sections": f"{len(rows)}, of which {len(rows) - len(good)} failed",
        "Spots": str(int(rows["spots"].sum())),
        "Model": found.model,
    }
    if people := rows["patient"].dropna().nunique():
        facts["Patients"] = str(people)
    if found.trained:
        facts["Trained on"] = (
            f"{len(found.trained['sections'])} sections, {found.trained['spots']} spots, {found.trained['genes']} genes, "
            f"{found.trained['metabolites']} metabolites"
        )
    facts["Alignments with a flag"] = f"{len(flagged)} of {len(found.alignment)}"
    tables = [_failed(found), _alignment(found.alignment, f"Alignment ({len(flagged)} with a flag)")]
    if found.scores is not None and found.by is not None:
        tables += [_models(found.scores), *_by_group(found.scores, found.model, found.by)]
    if found.tiers is not None:
        tables += [_tier_counts(found.tiers), _tiers(found.tiers)]
    tables += [_sections(found.sections), _warnings(found.warnings)]
    caution = SIMULATED if found.simulated else _NO_SCORES
    if not found.simulated and found.by is not None:
        caution = (_HELD_OUT[0], _HELD_OUT[1].format(by={"sample": "section"}.get(found.by, found.by)))
    return Page(
        title=f"Cohort: {found.source.stem}",
        lead="Every section was combined, aligned and mapped; one model was trained on all of them, and scored on what it had "
        "not seen.",
        caution=caution,
        facts=facts,
        tables=[table for table in tables if table is not None and table.rows],
        figures=_figures(found) if figures else [],
        commands=[("Go on", f"{shlex.quote(program())} cohort {shlex.quote(str(found.source))}")],
        links=links("cohort", "alignment", "evaluation", "limits"),
    )


def section_report(
    sdata: SpatialData,
    name: str,
    alignment: Sequence[Mapping[str, Any]],
    warned: Sequence[str],
    *,
    figures: bool = True,
) -> Page:
    """The report of one section, after mapping: its alignment, and what MSI covers."""
    import stmsi
    from stmsi._data.keys import Key

    st, msi = sdata.tables[Key.table.ST], sdata.tables[Key.table.MSI]
    plots = [
        ("Alignment", "Pixels upon spots: dark spots are covered, red ones are not.", lambda: stmsi.pl.alignment(sdata, sample=name, show=False, return_fig=True)),
        ("Coverage by MSI", "Share of each spot's area that MSI has measured.", lambda: stmsi.pl.spatial(sdata, Key.obs.COVERAGE, show=False, return_fig=True)),
    ]  # fmt: skip
    drawn = [Figure.drawn(*plot) for plot in plots] if figures else []
    covered = int(st.obsm[Key.obsm.MSI].notna().any(axis=1).sum())
    return Page(
        title=f"Section {name}",
        lead="The section after combining, aligning and mapping.",
        caution=_SECTION,
        facts={
            "Spots": f"{st.n_obs}, of which {covered} are covered by MSI",
            "Genes": str(st.n_vars),
            "Pixels": str(msi.n_obs),
            "Ions": str(msi.n_vars),
        },
        tables=[t for t in (_alignment(alignment, "Alignment"), _warnings([(name, w) for w in warned])) if t.rows],
        figures=[figure for figure in drawn if figure is not None],
        commands=[],
        links=links("alignment", "cohort"),
    )


def _figures(found: Found) -> list[Figure]:
    import stmsi

    if found.scores is None:
        return []
    scores = found.scores
    plots = [
        ("Models", "Pearson correlation of each metabolite, held out.", lambda: stmsi.pl.performance(scores, metric="pearson", show=False, return_fig=True)),
        ("Presence", "AUROC of each metabolite, held out.", lambda: stmsi.pl.performance(scores, stage="presence", show=False, return_fig=True)),
    ]  # fmt: skip
    return [figure for figure in (Figure.drawn(*plot) for plot in plots) if figure is not None]


def _failed(found: Found) -> Table:
    rows = [[str(row["section"] or "cohort"), str(row["step"]), str(row["message"])] for row in found.failed]
    note = "The other sections went on without them. Mend the input and run the same command: only what is missing is done."
    return Table("Failed", ["section", "step", "why"], rows, labels=3, note=note)


def _alignment(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    shown = [
        [
            str(row["sample"]), str(row.get("method", "")), str(row.get("model", "")), "yes" if row.get("mirrored") else "no",
            flags(row) or "none", *(number(row.get(key, float("nan")), d) for key, d in (("tre_um", 0), ("mask_iou", 2), ("spots_covered", 2))),
        ]
        for row in sorted(rows, key=lambda row: not flags(row))  # those with a flag first
    ]  # fmt: skip
    columns = ["section", "method", "model", "mirrored", "flags", "TRE (µm)", "IoU of masks", "spots covered"]
    note = "TRE: error at landmarks that were left out, one by one. IoU: overlap of the tissue outlines. Sections with a flag come first."
    return Table(title, columns, shown, labels=5, note=note)


def _models(scores: pd.DataFrame) -> Table:
    """Medians over metabolites of all models."""
    columns = dict(COLUMNS) | {"pearson_between": "between sections"}
    medians = scores.groupby("model", sort=False)[list(columns)].median(numeric_only=True)
    rows = [[str(name), *(number(row[c]) for c in columns)] for name, row in medians.iterrows()]
    note = f"Medians over metabolites and sections. {READING} Pearson is the pattern within sections. {CONSTANT}"
    return Table("Models, held out", ["model", *columns.values()], rows, note=note)


def _by_group(scores: pd.DataFrame, model: str, by: str) -> list[Table]:
    """Medians over metabolites of the chosen model, by patient and by section."""
    own = scores[scores["model"] == model]
    tables = []
    for key, title in (("patient", "patient"), ("sample", "section")):
        if key not in own or own[key].isna().all():
            continue
        groups = own.groupby(key, sort=False)
        medians, counted = groups[list(COLUMNS)].median(numeric_only=True), groups["metabolite"].nunique().to_dict()
        rows = [[str(n), str(counted[n]), *(number(row[c]) for c in COLUMNS)] for n, row in medians.iterrows()]
        rows.sort(key=lambda row: row[0])
        note = f"Medians over metabolites of {model!r}. Whole {'sections' if by == 'sample' else 'patients'} were held out."
        columns = [title, "metabolites", *COLUMNS.values()]
        tables.append(Table(f"Scores by {title}", columns, rows, note=note, folded=key != by))
    return tables


def _tier_counts(tiers: pd.DataFrame) -> Table:
    count = tiers["tier"].value_counts()
    rows = [[tier, str(int(count.get(tier, 0)))] for tier in _TIERS]
    return Table("How far metabolites can be trusted", ["tier", "metabolites"], rows)


def _tiers(tiers: pd.DataFrame) -> Table:
    order = tiers["tier"].map({tier: place for place, tier in enumerate(_TIERS)})
    best = tiers.assign(_order=order).sort_values(["_order", "pearson"], ascending=[True, False])
    rows = [
        [str(row["metabolite"]), str(row["tier"]), str(row["reason"]), *(number(row[c]) for c in ("pearson", "auroc", "prevalence"))]
        for _, row in best.head(MAX_ROWS).iterrows()
    ]  # fmt: skip
    note = "" if len(best) <= MAX_ROWS else f"The first {MAX_ROWS} of {len(best)}; validation/tiers.csv has all."
    columns = ["metabolite", "tier", "why", "Pearson", "AUROC", "prevalence"]
    return Table("Metabolites", columns, rows, labels=3, note=note, folded=True, sortable=True)


def _sections(sections: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [str(row["sample"]), str(row["patient"] or ""), str(row["state"]), *("–" if row[c] is None else str(row[c]) for c in ("spots", "covered"))]
        for row in sections
    ]  # fmt: skip
    return Table("Sections", ["section", "patient", "state", "spots", "covered by MSI"], rows, labels=3, folded=True)


def _warnings(warnings: Sequence[tuple[str, str]]) -> Table:
    rows = [[title, text] for title, text in warnings[:MAX_ROWS]]
    return Table("Warnings", ["step", "what"], rows, labels=2, folded=True)

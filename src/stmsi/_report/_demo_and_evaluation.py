"""What the reports of the demo and of an evaluation say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from stmsi._data.checks import is_spatialdata
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._data.keys import ACROSS_SCORES, Key
from stmsi._data.tables import get_table
from stmsi._data.training_marks import PARTLY, SAID_OF, TRAINED_ON, UNKNOWN, of_scores
from stmsi._report._metabolites import features_with_tiers, with_labels
from stmsi._report._page import Figure, Page
from stmsi._report._parts import COLUMNS, CONSTANT, MAX_ROWS, READING, SIMULATED, links, number
from stmsi._report._program import program
from stmsi._report._table import Table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_NOT_EVIDENCE = (
    "Mind the split.",
    "Scores of sections that the model was trained on are not evidence. Those of other sections of the same patient say "
    "little about a new patient.",
)
_FIGURES = {
    "compare": ("Measured and predicted", "The held-out section: a metabolite that is predicted well, an average one, and one that follows no gene and cannot be predicted."),
    "presence": ("Probability of presence", "Stage 1 for the same metabolites: is it there?"),
    "performance": ("Intensity, metabolite by metabolite", "Pearson correlation on the held-out section; metabolites that follow genes, and those that follow none (predictable: False)."),
    "performance_presence": ("Presence, metabolite by metabolite", "AUROC on the held-out section."),
    "alignment": ("Alignment", "Pixels of MSI on the spots of the held-out section, after alignment. Dark rings lie on a pixel, red ones on none."),
    "coverage": ("Coverage by MSI", "Share of each spot's area that MSI has measured, after alignment."),
}  # fmt: skip
_ACROSS = {"pearson": "Pearson within", "pearson_between": "between", "pearson_pooled": "pooled"}
"""Columns of an evaluation in place of the correlation alone: pattern within sections, and level."""
_LEVEL = "Pearson: within sections (pattern), between the means of three sections or more (level), and over all their spots pooled."
_CONTROL = (
    "Metabolites driven by no gene are the control: single ones scatter around chance, and if all were predictable, "
    "something leaked."
)
_HERE = ", in the folder where this was made"


def demo_report(
    folder: Path,
    means: pd.DataFrame,
    facts: Mapping[str, str],
    commands: Sequence[tuple[str, str]],
    scores: pd.DataFrame,
    features: pd.DataFrame,
) -> Page:
    """The report of ``stmsi demo``, from its folder.

    `means` over metabolites have the index model and predictable; `commands` are headings with lines that run where the demo ran;
    `scores` are those of the model that is shown, `features` its metabolites with their tiers.
    """
    rows = []
    for key, row in means.iterrows():
        name, predictable = cast("tuple[str, bool]", key)
        shown = f"{name} (baseline)" if name == "mean" else name
        rows.append([shown, "genes" if predictable else "no gene", *(number(row[c]) for c in COLUMNS)])
    columns = ["model", "driven by", *COLUMNS.values()]
    held_out = facts.get("Held out", "")
    of_genes, headline = means["pearson"].xs(True, level="predictable").dropna(), ""
    if len(of_genes):
        headline = (
            f" There, metabolites that follow genes reach a mean Pearson correlation of {of_genes.max():.2f} with "
            f"{of_genes.idxmax()!r}. Sections of the training are marked wherever they are scored."
        )
    note = f"Means over metabolites; the baseline knows no gene. {READING} {CONSTANT} {_CONTROL}"
    figures = [
        Figure(title, caption, (folder / f"{name}.png").read_bytes()) for name, (title, caption) in _FIGURES.items()
    ]
    return Page(
        title="stmsi demo: metabolites predicted from genes",
        lead="Sections with spatial transcriptomics and mass-spectrometry imaging were simulated and aligned; models were "
        f"trained on all sections but one, and scored on that one, {held_out}.{headline}",
        caution=SIMULATED,
        facts=facts,
        tables=[
            Table(f"Scores on the held-out section {held_out}", columns, rows, labels=2, note=note),
            _alignment(pd.read_csv(folder / "alignment.csv")),
            _by_metabolite(constant_counts_as_zero(scores), features),
        ],
        figures=figures,
        card=json.loads((folder / "model" / "stmsi.json").read_text(encoding="utf-8")),
        commands=[(f"{heading}{_HERE}", lines) for heading, lines in commands],
        links=links("reading_msi", "two_stages", "choosing_a_model", "evaluation", "limits"),
    )


def evaluation_report(
    data: SpatialData | AnnData,
    scores: pd.DataFrame,
    *,
    source: Path,
    pred_key: str,
    table_key: str,
    card: Mapping[str, Any] | None = None,
) -> Page:
    """The report of ``stmsi evaluate``: what was scored, its scores, its file, and the card of the model if it is known."""
    import stmsi

    scores = constant_counts_as_zero(scores)
    record = get_table(data, table_key).uns.get(pred_key, {})
    sections = list(dict.fromkeys(scores["sample"].astype(str)))
    by_name = {str(s) for s in (card or {}).get("training", {}).get("samples", [])}
    states = of_scores(scores)
    # of what is not known, the names in the card tell something
    trained = {s: SAID_OF[TRAINED_ON if state == UNKNOWN and s in by_name else state] for s, state in states.items()}
    shown, sample = _examples(scores), next((s for s in sections if not trained[s]), sections[0])
    out: dict[str, Any] = {"show": False, "return_fig": True}
    keys: dict[str, Any] = {"pred_key": pred_key, "table_key": table_key, **out}
    plots: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "Measured and predicted",
            f"Section {_marked(sample, trained)}: the metabolites with the highest, the median and the lowest correlation.",
            lambda: stmsi.pl.compare(data, shown, sample=sample, **keys),
        ),
        (
            "Intensity",
            "Pearson correlation of each metabolite in each section.",
            lambda: stmsi.pl.performance(scores, by="sample", **out),
        ),
        (
            "Presence: ranking",
            "Mean over metabolites with quartiles. Dotted: without skill.",
            lambda: stmsi.pl.presence_curves(data, **keys),
        ),
        (
            "Presence and intervals: promises kept?",
            "Probabilities against what was found, and the share of spots inside the prediction interval.",
            lambda: stmsi.pl.calibration(data, **keys),
        ),
    ]
    if is_spatialdata(data) and sample in _aligned(data):
        plots.append(
            (
                "Alignment",
                f"Pixels of MSI on the spots of section {sample}. Dark rings lie on a pixel, red ones on none.",
                lambda: stmsi.pl.alignment(data, sample=sample, table_key=table_key, **out),  # type: ignore[arg-type]
            )
        )
    across = [c for c in _ACROSS if scores[c].notna().any()]
    if len(sections) > 1 and across:
        level = "Pearson correlation within sections, between the means of the sections, and of all spots pooled."
        plots.insert(2, ("Pattern and level", level, lambda: stmsi.pl.performance(scores, metric=across, **out)))
    facts = {
        "Data": str(source),
        "Prediction": f'obsm["{pred_key}"]',
        "Model": str(record.get("params", {}).get("model", "unknown")),
        "Sections": ", ".join(_marked(s, trained) for s in sections),
        "Metabolites": str(scores["metabolite"].nunique()),
        "Spots scored": str(int(scores.groupby("sample")["n"].max().sum())),
    }
    mark, caution = SIMULATED if is_simulated(data, table_key) else _NOT_EVIDENCE
    if seen := [s for s in sections if trained[s] in (SAID_OF[TRAINED_ON], SAID_OF[PARTLY])]:
        caution += f" The model was trained on {', '.join(seen)}: no evidence there."
    if unknown := [s for s in sections if trained[s] == SAID_OF[UNKNOWN]]:
        caution += f" Whether it was trained on {', '.join(unknown)} is not known."
    features = features_with_tiers(get_table(data, table_key), pred_key)
    names = f"{shlex.quote(str(source))} --pred-key {shlex.quote(pred_key)}"
    names += "" if table_key == Key.table.ST else f" --table-key {shlex.quote(table_key)}"
    stem = shlex.quote(f"{source.stem}_again")
    again = f"{shlex.quote(program())} evaluate {names} --report {stem}.html --out {stem}.csv"
    return Page(
        title=f"Scores of predicted metabolites: {source.name}",
        lead="Predicted against measured metabolites, per section and metabolite.",
        caution=(mark, caution),
        facts=facts,
        tables=[_by_section(scores, trained), _by_metabolite(scores, features)],
        figures=[f for f in (Figure.drawn(*plot) for plot in plots) if f is not None],
        card=card or _short_card(record),
        commands=[(f"Make it again{_HERE}", again)],
        links=links("evaluation", "limits"),
    )


def _aligned(data: SpatialData | AnnData) -> list[str]:
    """Sections whose pixels were aligned."""
    tables = data.tables  # type: ignore[union-attr]
    return list(tables[Key.table.MSI].uns.get(Key.uns.ALIGNMENT, {})) if Key.table.MSI in tables else []


def is_simulated(data: SpatialData | AnnData, table_key: str = Key.table.ST) -> bool:
    """Whether the data say of themselves that :mod:`stmsi.datasets` made them."""
    if Key.uns.TRUTH in get_table(data, table_key).uns:
        return True
    if not is_spatialdata(data) or Key.table.MSI not in data.tables:  # type: ignore[union-attr]
        return False
    attrs = data.tables[Key.table.MSI].uns.get(Key.uns.MSI, {}).get("attrs", {})  # type: ignore[union-attr]
    return any(bool(entry.get("simulated", False)) for entry in attrs.values())


def _by_section(scores: pd.DataFrame, trained: Mapping[str, str]) -> Table:
    columns = _with_level()
    known = [c for c in columns if c not in ACROSS_SCORES]
    groups = scores.groupby("sample", sort=False)
    medians = groups[known].median(numeric_only=True)
    counted = groups["metabolite"].nunique()
    rows = [
        [
            _marked(str(name), trained),
            f"{counted.loc[name]:.0f}",  # type: ignore[index,call-overload,unused-ignore]
            *(number(row.get(c, float("nan"))) for c in columns),
        ]
        for name, row in medians.iterrows()
    ]
    own = scores[scores["stage"] == "intensity"].drop_duplicates("metabolite")
    joint = pd.concat([scores[known].median(numeric_only=True), own[list(ACROSS_SCORES)].median()])
    whole = [_all_sections(trained), str(scores["metabolite"].nunique()), *(number(joint[c]) for c in columns)]
    unseen = scores[scores["sample"].astype(str).map(trained) == ""]
    held_out = []
    if 0 < unseen["sample"].nunique() < len(medians):  # first: those are the evidence
        only = unseen[known].median(numeric_only=True)
        rest = [number(only.get(c, float("nan"))) for c in columns]
        held_out = [["held-out sections", str(unseen["metabolite"].nunique()), *rest]]
    without = {"auroc": "0.500", "auprc": "the base", **dict.fromkeys(_ACROSS, "0"), "r2": "0 or less"}
    blind = ["a prediction without skill", "", *(without.get(c, "") for c in columns)]
    titles = ["section", "metabolites", *columns.values()]
    note = f"Medians over metabolites. {READING} {_LEVEL} {CONSTANT}"
    return Table("Scores by section", titles, [*held_out, *rows, whole, blind], note=note)


def _marked(section: str, trained: Mapping[str, str]) -> str:
    """A section with what is known of its part in the training."""
    return f"{section} ({trained[section]})" if trained[section] else section


def _all_sections(trained: Mapping[str, str]) -> str:
    """Name of the row of all sections, with what holds of all or of some of them."""
    said = set(trained.values())
    if len(said) == 1:
        return _marked("all sections", {"all sections": said.pop()})
    seen = said & {SAID_OF[TRAINED_ON], SAID_OF[PARTLY]}
    return f"all sections ({'with training spots' if seen else SAID_OF[UNKNOWN]})"


def _by_metabolite(scores: pd.DataFrame, features: pd.DataFrame | None = None) -> Table:
    columns = _with_level()
    means = scores.groupby("metabolite", sort=False)[list(columns)].mean(numeric_only=True)
    means = means.sort_values(["pearson", "auroc"], ascending=False, na_position="last")
    rows = [[str(name), *(number(row[c]) for c in columns)] for name, row in means.head(MAX_ROWS).iterrows()]
    note = f"Means over sections, best correlation first; – where a score does not exist. {_LEVEL} {CONSTANT}"
    if len(means) > len(rows):
        note += f" The first {len(rows)} of {len(means)}; stmsi evaluate --out scores.csv writes all."
    table = Table("Scores by metabolite", ["metabolite", *columns.values()], rows, note=note, folded=True)
    return with_labels(table, features)


def _with_level() -> dict[str, str]:
    """Scores and their titles, those of the level beside that of the pattern."""
    columns: dict[str, str] = {}
    for name, title in COLUMNS.items():
        columns |= _ACROSS if name == "pearson" else {name: title}
    return columns


def _alignment(report: pd.DataFrame) -> Table:
    columns = {"tre_um": "TRE (µm)", "mask_iou": "IoU of masks", "spots_covered": "spots covered"}
    there = {c: name for c, name in columns.items() if c in report}
    rows = [
        [str(row.iloc[0]), str(row["model"]), "yes" if row["mirrored"] else "no", *(number(row[c], 2) for c in there)]
        for _, row in report.iterrows()
    ]
    note = "TRE: error at landmarks that were left out, one by one. IoU: overlap of the tissue outlines."
    return Table("Alignment", ["section", "model", "mirrored", *there.values()], rows, labels=3, note=note)


def _examples(scores: pd.DataFrame) -> list[str]:
    """The metabolites with the highest, the median and the lowest correlation, each once."""
    own = scores[scores["stage"] == "intensity"].groupby("metabolite")["pearson"].mean().dropna()
    ranked = own.sort_values(ascending=False).index.tolist() or list(dict.fromkeys(scores["metabolite"]))
    return list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2], ranked[-1]]))


def _short_card(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a prediction tells of its model."""
    kept = {k: record[k] for k in ("model", "params", "missing_genes") if k in record}
    return json.loads(json.dumps(kept, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))

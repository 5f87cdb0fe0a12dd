"""Tables of the command line, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._data.keys import ACROSS_SCORES
from stmsi._data.training_marks import HELD_OUT, PARTLY, TRAINED_ON, UNKNOWN, of_scores
from stmsi.cli._console import SafeConsole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

SHOWN = ["prevalence", "auroc", "auprc", "f1", "r2", "pearson"]
"""What 80 columns hold; the csv has all."""
BETWEEN = "pearson_between"
"""One number for all sections, which stands beside those of single sections in a row of its own."""

MARKS = {HELD_OUT: "", TRAINED_ON: "*", PARTLY: "(*)", UNKNOWN: "?"}
"""Behind the name of a section; words would not fit into 80 columns."""


def print_table(title: str, labels: Sequence[str], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on the standard output; columns after the labels are numbers."""
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in labels:
        table.add_column(Text(name), no_wrap=True)
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    _literal().print(table)


def _literal() -> SafeConsole:
    """The standard output, where names stand as they are: brackets are no styles, ``:smile:`` is no picture."""
    return SafeConsole(markup=False, emoji=False)


def number(value: float, form: str = ".3f") -> str:
    """A number, or a dash where it does not exist."""
    return format(value, form) if value == value else "–"


def show_alignment(report: pd.DataFrame) -> None:
    """Print how well each section is aligned."""
    columns = {
        "tre_um": ("TRE", ".0f"), "tre_max_um": ("max", ".0f"), "mask_iou": ("IoU", ".2f"),
        "spots_covered": ("covered", ".2f"), "information_before": ("info before", ".2f"), "information": ("after", ".2f"),
        "folds": ("folds", ".3f"),
    }  # fmt: skip
    aligned = report[report["aligned"]]
    rows = []
    for section, row in aligned.iterrows():
        values = [number(row.get(c, float("nan")), form) for c, (_, form) in columns.items()]
        rows.append([str(section), str(row["model"]), "yes" if row["mirrored"] else "no", *values])
    titles = ["mirror", *(title for title, _ in columns.values())]
    print_table("TRE in µm, information in nats", ["section", "model"], titles, rows)
    for section, row in aligned.iterrows():
        notes = [f"supports {row['resolution']}"]
        if row.get("outliers"):
            notes.append(f"landmarks left out: {row['outliers']}")
        if row.get("ambiguous") is True:
            notes.append(f"AMBIGUOUS: {row.get('message', '')}")
        _literal().print(f"{section}: {'; '.join(notes)}", markup=False, soft_wrap=True)


def medians(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Medians over metabolites of the main scores of both stages, and of how many metabolites."""
    groups = constant_counts_as_zero(scores).groupby(by, sort=False)
    table = groups[SHOWN].median(numeric_only=True)
    table.insert(0, "metabolites", groups["metabolite"].nunique())
    return table


def all_sections(scores: pd.DataFrame) -> dict[str, float]:
    """The same medians over all sections, with those of the level between sections and of all spots pooled."""
    own = constant_counts_as_zero(scores[scores["stage"] == "intensity"]).drop_duplicates("metabolite")
    return medians(scores.assign(all=""), ["all"]).iloc[0].to_dict() | own[list(ACROSS_SCORES)].median().to_dict()


def show_scores(scores: pd.DataFrame, title: str = "") -> None:
    """Print medians over metabolites of the main scores of both stages, section by section and over all of them."""
    parts: list[tuple[str, dict[Any, Any]]]
    parts = [(str(name), row.to_dict()) for name, row in medians(scores, ["sample"]).iterrows()]
    said = {name: name + MARKS[state] for name, state in of_scores(scores).items()}
    rows = [
        [
            said.get(name, name),
            f"{row['metabolites']:.0f}",
            *(number(row.get(v, float("nan"))) for v in (*SHOWN, BETWEEN)),
        ]
        for name, row in [*parts, ("all sections", all_sections(scores))]
    ]
    titles = {"prevalence": "(base)", "pearson": "within", BETWEEN: "between"}
    print_table(title, ["sample"], ["metabolites", *(titles.get(v, v) for v in (*SHOWN, BETWEEN))], rows)


def show_demo(means: pd.DataFrame) -> None:
    """Print the scores of the demo."""
    means = means.rename(columns={"prevalence": "(base)", "r2": "R2"})
    rows = []
    for key, row in means.iterrows():
        model, predictable = cast("tuple[str, bool]", key)
        rows.append([model, "genes" if predictable else "no gene", *map(number, row)])
    title = "Held-out section, means over metabolites (simulated data)"
    print_table(title, ["model", "driven by"], list(means.columns), rows)

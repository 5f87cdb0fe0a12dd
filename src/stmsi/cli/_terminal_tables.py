"""Tables of the command line, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def show_alignment(report: pd.DataFrame) -> None:
    """Print how well each section is aligned."""
    columns = {
        "tre_um": ("TRE", ".0f"), "tre_max_um": ("max", ".0f"), "mask_iou": ("IoU", ".2f"),
        "spots_covered": ("covered", ".2f"), "information_before": ("info before", ".2f"), "information": ("after", ".2f"),
        "folds": ("folds", ".3f"),
    }  # fmt: skip
    table = Table(title="TRE in µm, information in nats", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("section", "model", "mirror", *(title for title, _ in columns.values())):
        table.add_column(name, justify="left" if name in ("section", "model") else "right", no_wrap=True)
    printer = Console()
    aligned = report[report["aligned"]]
    for section, row in aligned.iterrows():
        values = [
            format(row[c], form) if row.get(c, float("nan")) == row.get(c) else "–" for c, (_, form) in columns.items()
        ]
        table.add_row(str(section), str(row["model"]), "yes" if row["mirrored"] else "no", *values)
    printer.print(table)
    for section, row in aligned.iterrows():
        notes = [f"supports {row['resolution']}"]
        if row.get("outliers"):
            notes.append(f"landmarks left out: {row['outliers']}")
        if row.get("ambiguous") is True:
            notes.append(f"AMBIGUOUS: {row.get('message', '')}")
        printer.print(f"{section}: {'; '.join(notes)}", markup=False, soft_wrap=True)


SHOWN = ["prevalence", "auroc", "auprc", "f1", "pearson", "r2"]
"""What 80 columns hold; the csv has all."""


def medians(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Medians over metabolites of the main scores of both stages, and of how many metabolites."""
    groups = scores.groupby(by, sort=False)
    table = groups[SHOWN].median(numeric_only=True)
    table.insert(0, "metabolites", groups["metabolite"].nunique())
    return table


def show_scores(scores: pd.DataFrame, by: list[str], title: str = "") -> None:
    """Print medians over metabolites of the main scores of both stages."""
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in by:
        table.add_column(name, no_wrap=True)
    for name in ["metabolites", *SHOWN]:
        table.add_column(name, justify="right", no_wrap=True)
    for key, row in medians(scores, by).iterrows():
        labels = key if isinstance(key, tuple) else (key,)
        values = ["–" if row[v] != row[v] else f"{row[v]:.3f}" for v in SHOWN]
        table.add_row(*map(str, labels), f"{row['metabolites']:.0f}", *values)
    Console().print(table)

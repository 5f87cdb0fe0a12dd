"""Charts of the benchmarks page, drawn at build time from benchmarks/accuracy/results into docs/generated.

The figures stand in the tables of the page too; a chart shows what a paragraph would have to list.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.config import Config

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#999999")  # Okabe and Ito: safe for red-green colour blindness
MARKERS = ("o", "s", "D", "x")
WIDTH = 6.4  # inches; type of 11 points stays legible at the width of a phone
STYLE = {
    "font.size": 11,
    "svg.fonttype": "path",
    "svg.hashsalt": "stmsi",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def chart(path: Path, rows: int) -> Iterator[Axes]:
    """Axes for `rows` lines of dots; written to `path` as SVG, the same bytes for the same figures."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.36 * rows), layout="constrained")
        ax = figure.subplots()
        yield ax
        ax.set_yticks(range(rows))
        ax.set_ylim(rows - 0.4, -0.6)
        ax.grid(axis="x", color="#dddddd")
        ax.grid(axis="y", color="#eeeeee")
        ax.tick_params(length=0)
        ax.set_axisbelow(True)
        figure.savefig(path, metadata={"Date": None})


def dots(path: Path, table: pd.DataFrame, xlabel: str) -> None:
    """Rows of a table as lines, its columns as kinds of dots; NaN is left out."""
    with chart(path, len(table)) as ax:
        for (name, values), colour, marker in zip(table.items(), COLOURS, MARKERS, strict=False):
            ax.plot(values.to_numpy(), np.arange(len(table)), marker, color=colour, label=name, ls="none", ms=7)
        ax.set_yticks(range(len(table)), table.index)
        ax.set_xlabel(xlabel)
        ax.figure.legend(loc="outside upper center", ncols=4, frameon=False, handletextpad=0.1, columnspacing=1.2)


def default_predictor(results: Path, out: Path) -> None:
    """The default beside ridge: correlation inside sections, or pooled where there are no sections."""
    table = pd.read_csv(results / "predictor.csv")
    table["score"] = table["within"].fillna(table["pooled"])
    wide = table[table["model"] != "mean"].pivot(index="task", columns="model", values="score")
    dots(out / "chart_predictor.svg", wide.reindex(table["task"].unique()), "correlation on held-out groups")


def simulated_sections(results: Path, out: Path) -> None:
    """Every model by the kind of metabolite."""
    table = pd.read_csv(results / "summary.csv").query("task == 'simulator'").dropna(subset=["pearson"])
    wide = table.pivot(index="model", columns="kind", values="pearson")
    wide = wide[["linear", "product", "saturating", "unpredictable"]].sort_values("linear", ascending=False)
    dots(out / "chart_simulator.svg", wide, "correlation in held-out sections")


def histology_features(results: Path, out: Path) -> None:
    """Correlation and R² of every model on the stand-in."""
    table = pd.read_csv(results / "summary.csv").query("task == 'her2st_histology'").dropna(subset=["pearson"])
    wide = table.set_index("model")[["pearson", "r2"]].rename(columns={"pearson": "correlation", "r2": "R²"})
    dots(out / "chart_her2st_histology.svg", wide.sort_values("correlation", ascending=False), "held-out sections")


def coverage(results: Path, out: Path) -> None:
    """Coverage of 90 % intervals: mean and quartiles over metabolites, with the limits that were set."""
    table = pd.read_csv(results / "calibration.csv")
    by = table.groupby(["task", "model"], sort=False)["coverage_90"]
    mean, low, high = by.mean(), by.quantile(0.25), by.quantile(0.75)
    with chart(out / "chart_coverage.svg", len(mean)) as ax:
        y = np.arange(len(mean))
        ax.axvspan(88, 92, color=COLOURS[2], alpha=0.15, lw=0, label="limits that we set")
        ax.hlines(y, 100 * low, 100 * high, color=COLOURS[0], lw=2, label="quartiles over metabolites")
        ax.plot(100 * mean.to_numpy(), y, "o", color=COLOURS[0], ms=7, label="mean")
        ax.set_yticks(y, [f"{task}\n{model}" for task, model in mean.index], fontsize=9)
        ax.set_xlabel("coverage of the 90 % interval (%)")
        ax.figure.legend(loc="outside upper center", ncols=3, frameon=False)


def measured_in_part(results: Path, out: Path) -> None:
    """Correlation of the spots that were not measured, by what was measured."""
    table = pd.read_csv(results / "partial.csv").query("presence == 'any intensity' and design != 'denoised'")
    parts = {"all": "", "near": ", near", "far": ", far"}
    table["what"] = table["design"] + table["part"].map(parts)
    wide = table.pivot_table(index="what", columns="method", values="pearson", sort=False)
    wide = wide.rename(columns={"model": "model alone", "kriging": "kriging alone"})
    dots(
        out / "chart_partial.svg",
        wide[["model alone", "use_measured", "kriging alone"]],
        "correlation, spots not measured",
    )


CHARTS: tuple[Callable[[Path, Path], None], ...] = (
    default_predictor,
    simulated_sections,
    histology_features,
    coverage,
    measured_in_part,
)


def write_charts(app: Sphinx, _config: Config) -> None:
    """Draw all charts."""
    out = app.srcdir / "generated"
    out.mkdir(exist_ok=True)
    for draw in CHARTS:
        draw(app.srcdir.parent / "benchmarks" / "accuracy" / "results", out)


def setup(app: Sphinx) -> dict[str, Any]:
    """Draw before pages are read."""
    app.connect("config-inited", write_charts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

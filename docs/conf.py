"""Configuration of the documentation (https://www.sphinx-doc.org/en/master/usage/configuration.html)."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import metadata, packages_distributions
from pathlib import Path
from urllib.request import Request, urlopen

import pandas as pd
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
log = logging.getLogger(__name__)

# -- Project ------------------------------------------------------------------

info = metadata("stmsi")
project = info["Name"]
author = "The stmsi developers"
copyright = f"{datetime.now(tz=UTC):%Y}, {author}"
version = release = info["Version"]
repository_url = "https://github.com/stmsi/stmsi"

# -- General ------------------------------------------------------------------

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",  # after napoleon
    "sphinx_copybutton",
    "sphinx_design",
    "benchmark_charts",  # from here on: docs/_ext
    "own_members",
    "prose_docstrings",
    "short_types",
]
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "Thumbs.db",
    ".DS_Store",
    "**.ipynb_checkpoints",
    "ecosystem",  # what goes to the registry of scverse
    "generated/cli.md",
    "generated/accuracy_*.md",
    "generated/ablation_*.md",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
nitpicky = True
# `-b linkcheck` asks for every external link; these hosts turn robots away, or are not there before the first release
linkcheck_ignore = [
    rf"{re.escape(repository_url)}.*",
    r"https://stmsi\.readthedocs\.io/.*",
    r"https://doi\.org/.*",
]
linkcheck_timeout = 10
linkcheck_retries = 2

# -- API pages ----------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_ivar = True
napoleon_use_rtype = True
napoleon_use_param = True
typehints_defaults = "braces"
typehints_document_rtype_none = False
always_use_bars_union = True

# -- Pages and notebooks ------------------------------------------------------

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- HTML ---------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "stmsi"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "repository_url": repository_url,
    "repository_branch": "main",
    "path_to_docs": "docs/",
    "use_repository_button": True,
    "use_issues_button": True,
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # the sidebar has the search field already
    "logo": {"text": "stmsi"},
}

# -- Links to other packages --------------------------------------------------

INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "geopandas": "https://geopandas.org/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "scvi-tools": "https://docs.scvi-tools.org/en/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "xarray": "https://docs.xarray.dev/en/stable/",
}
FOREIGN = (set(packages_distributions()) | sys.stdlib_module_names | {"Ellipsis", "np"}) - {"stmsi"}

# Links into stmsi must always resolve. A link into another package is made where its inventory can be read and stays
# plain text elsewhere, so that the verdict of a build does not hang on the network or on somebody else's site.
nitpick_ignore_regex = [
    (r"py:.*", rf"(?:{'|'.join(map(re.escape, sorted(FOREIGN)))})(?:\..+)?"),
    (r"py:class", r"stmsi\..*\b_\w+\..+"),  # types of private modules, such as the base of the models, have no page
]


def reachable(urls: Iterable[str], timeout: float = 5) -> set[str]:
    """Those sites whose inventory can be read now."""

    def probe(url: str) -> bool:
        try:
            # some sites turn down the name that Python gives itself
            request = Request(f"{url}objects.inv", headers={"User-Agent": "Mozilla/5.0 (compatible; Sphinx)"})
            with urlopen(request, timeout=timeout) as answer:
                return answer.status == 200
        except OSError:
            return False

    urls = list(urls)
    with ThreadPoolExecutor(len(urls)) as pool:
        return {url for url, found in zip(urls, pool.map(probe, urls), strict=True) if found}


# STMSI_DOCS_OFFLINE=1 saves the look
online = set() if os.environ.get("STMSI_DOCS_OFFLINE") == "1" else reachable(INVENTORIES.values())
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if url in online}
intersphinx_timeout = 20
if missing := sorted(INVENTORIES.keys() - intersphinx_mapping.keys()):
    log.info("No links to the documentation of: %s", ", ".join(missing))

# -- Files made at build time -------------------------------------------------


def copy_tutorials() -> None:
    """Bring the notebooks of tutorials/ into the source tree of Sphinx."""
    source, target = HERE.parent / "tutorials", HERE / "tutorials"
    wanted = {path.name: path for path in source.glob("*.ipynb")}
    for old in target.glob("*.ipynb"):
        if old.name not in wanted:
            old.unlink()
    for name, path in wanted.items():
        copy = target / name
        if not copy.exists() or copy.stat().st_mtime != path.stat().st_mtime:  # an unchanged page is not built again
            shutil.copy2(path, copy)


def write_cli_page() -> None:
    """Write the reference of the command line from the commands themselves."""
    target = HERE / "generated" / "cli.md"
    target.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "typer", "stmsi.cli", "utils", "docs", "--name", "stmsi", "--output", str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_accuracy_tables() -> None:
    """Write a table for each task of benchmarks/accuracy from its results."""
    target = HERE / "generated"
    target.mkdir(exist_ok=True)
    results = pd.read_csv(HERE.parent / "benchmarks" / "accuracy" / "results" / "summary.csv")
    for task, rows in results.groupby("task"):
        columns = {"model": rows["model"]} | ({} if set(rows["kind"]) == {"all"} else {"kind": rows["kind"]})
        columns["targets"] = rows["metabolites"].astype(str)
        if rows["auroc"].notna().any():
            columns["AUROC"] = rows["auroc"].map("{:.3f}".format)
            columns["AUPRC (prevalence)"] = rows["auprc"].map("{:.3f}".format) + rows["prevalence"].map(
                " ({:.3f})".format
            )
        columns["Pearson (quartiles)"] = [
            "–" if pd.isna(mean) else f"{mean:.3f} ({low:.2f} to {high:.2f})"
            for mean, low, high in zip(rows["pearson"], rows["pearson_q25"], rows["pearson_q75"], strict=True)
        ]
        columns["R²"] = rows["r2"].map("{:.3f}".format)
        # none where the machine had other work
        columns["seconds"] = ["–" if pd.isna(s) else f"{s:.0f}" for s in rows["seconds"]]
        columns["measured"] = rows["date"]
        lines = [list(columns), ["---" if name in ("model", "kind") else "---:" for name in columns]]
        lines += map(list, zip(*columns.values(), strict=True))
        made = {c: " / ".join(map(str, rows[c].unique())) for c in ("folds", "machine", "python", "stmsi")}
        note = f"Means over targets; *seconds*: training and prediction, {made['folds']} folds; *measured*: with the code of that day. "
        note += f"{made['machine']}, Python {made['python']}, stmsi {made['stmsi']}."
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        (target / f"accuracy_{task}.md").write_text(f"{table}\n\n{note}\n", encoding="utf-8")


def write_calibration_table() -> None:
    """Write the table of benchmarks/accuracy/calibration.py: means and quartiles over metabolites."""
    results = pd.read_csv(HERE.parent / "benchmarks" / "accuracy" / "results" / "calibration.csv")
    lines = [
        [
            "task",
            "model",
            "50 %",
            "80 %",
            "90 % (quartiles)",
            "95 %",
            "called absent",
            "called present",
            "width",
            "ECE (floor)",
        ]
    ]
    lines.append(["---", "---", *["---:"] * (len(lines[0]) - 2)])
    for (task, model), rows in results.groupby(["task", "model"], sort=False):
        mean, low, high = rows.mean(numeric_only=True), *(rows["coverage_90"].quantile(q) for q in (0.25, 0.75))
        ece = "–" if rows["prevalence"].mean() > 0.999 else f"{mean['ece']:.3f} ({mean['ece_floor']:.3f})"
        of_part = [mean[f"coverage_90_{part}"] for part in ("absent", "present")]
        lines.append([
            f"`{task}`", model, *(f"{mean[f'coverage_{c}']:.3f}" for c in (50, 80)),
            f"{mean['coverage_90']:.3f} ({low:.2f} to {high:.2f})", f"{mean['coverage_95']:.3f}",
            *("–" if pd.isna(v) else f"{v:.3f}" for v in of_part), f"{mean['width_90']:.2f}", ece,
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (HERE / "generated" / "accuracy_calibration.md").write_text(f"{table}\n", encoding="utf-8")


def write_ablation_tables() -> None:
    """Write a table for each ablation of benchmarks/accuracy: what an input brings, with its standard error."""
    scores = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "pearson": "Pearson", "pearson_present": "where present"}
    results = pd.read_csv(HERE.parent / "benchmarks" / "accuracy" / "results" / "ablations.csv")
    results = results[results["kind"] == "all"]
    for ablation, part in results.groupby("ablation"):
        per_stage = [rows.set_index(["model", "variant"]) for _, rows in part.groupby("stage", sort=False)]
        lines: dict[tuple[str, str], list[str]] = {key: [] for key in per_stage[0].index}
        head = ["model", "input"]
        for rows in per_stage:
            for score, title in scores.items():
                if score not in rows or rows[score].isna().all():
                    continue
                head.append(title)
                for key, row in rows.iterrows():
                    gain = "" if key[1] == "none" else f" ({row[f'{score}_gain']:+.3f} ± {row[f'{score}_se']:.3f})"
                    lines[key].append(f"{row[score]:.3f}{gain}")
            if ablation == "prior":
                head.append("used")
                for key, row in rows.iterrows():
                    lines[key].append("–" if pd.isna(row["used"]) else f"{row['used']:.0%}")
        table = [head, ["---", "---", *["---:"] * (len(head) - 2)], *([*key, *line] for key, line in lines.items())]
        text = "\n".join(f"| {' | '.join(line)} |" for line in table)
        (HERE / "generated" / f"ablation_{ablation}.md").write_text(text + "\n", encoding="utf-8")


def write_predictor_table() -> None:
    """Write the table of benchmarks/accuracy/predictor.py: tasks x models."""
    results = pd.read_csv(HERE.parent / "benchmarks" / "accuracy" / "results" / "predictor.csv")
    shown = {
        "task": results["task"].map("`{}`".format), "model": results["model"], "folds": results["folds"].astype(str),
        "within sections": results["within"], "pooled": results["pooled"], "unpredictable": results["unpredictable"],
        "AUROC": results["auroc"], "90 % interval": results["coverage_90"],
        "CPU s": results["cpu_s"].map("{:.0f}".format), "GiB": results["peak_gb"].map("{:.1f}".format),
        "measured": results["date"],
    }  # fmt: skip
    columns = {
        name: values if values.dtype == object else ["–" if pd.isna(v) else f"{v:.3f}" for v in values]
        for name, values in shown.items()
    }
    lines = [
        list(columns),
        ["---", "---", *["---:"] * (len(columns) - 2)],
        *map(list, zip(*columns.values(), strict=True)),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (HERE / "generated" / "accuracy_predictor.md").write_text(f"{table}\n", encoding="utf-8")


copy_tutorials()
write_cli_page()
write_predictor_table()
write_accuracy_tables()
write_calibration_table()
write_ablation_tables()

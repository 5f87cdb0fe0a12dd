"""Coverage of intervals and calibration of probabilities, every test section predicted by models that never saw it.

    python benchmarks/accuracy/calibration.py                    # simulated sections, ridge
    python benchmarks/accuracy/calibration.py --tasks simulator_4_patients --models ridge mlp auto

Writes ``results/calibration.csv``, one row per task x model x metabolite over all test spots: coverage of intervals of
several levels, of the 90 % interval also for spots called absent and present apart, its width in standard deviations of
the measured intensity, the calibration error of presence (``ece``) and what probabilities without fault would score on
as many spots (``ece_floor``).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import stmsi
from stmsi.tl._models import train_model

try:
    from benchmarks.accuracy.run import RESULTS
    from benchmarks.accuracy.tasks import her2st_histology, simulated_sections
except ModuleNotFoundError:  # run as a script
    from run import RESULTS
    from tasks import her2st_histology, simulated_sections

COVERAGES = (0.5, 0.8, 0.9, 0.95)
N_BINS = 10
MODELS: Mapping[str, Any] = {
    "ridge": "ridge",
    "ridge, patients as sections": {"model": "ridge", "setup": {"sample_key": "patient"}},
    "mlp": "mlp",
    "mlp, all groups": {"model": "ensemble", "members": ["mlp"], "n_folds": 3},
    "auto": {"model": "auto", "setup": {"graph_key": "spatial_connectivities"}},
}


@dataclass(frozen=True)
class Task:
    """Data, and sections that are left out together."""

    adata: AnnData
    splitter: Any
    kind: Mapping[str, str]


def simulated(n_patients: int, by: str) -> Task:
    """Simulated sections, two a patient."""
    st = simulated_sections(n_patients=n_patients)
    st = st[st.obsm["msi"].notna().any(axis=1).to_numpy()].copy()
    splitters = stmsi.model_selection
    splitter = splitters.LeaveOnePatientOut() if by == "patient" else splitters.LeaveOneSampleOut()
    return Task(st, splitter, st.uns["kind"])


def histology() -> Task:
    """The stand-in, by section."""
    task = her2st_histology()
    return Task(task.adata, task.splitter, {})


TASKS = {
    "simulator": lambda: simulated(2, "section"),
    "simulator_2_patients": lambda: simulated(2, "patient"),
    "simulator_4_patients": lambda: simulated(4, "patient"),
    "her2st_histology": histology,
}


def predictions(task: Task, spec: Any) -> Iterator[dict[str, np.ndarray]]:
    """What is measured and predicted in each fold, arrays of shape (spots, metabolites)."""
    adata = task.adata
    presence = {"presence_key": "msi_presence"} if "msi_presence" in adata.obsm else {}
    for train, test in task.splitter.split(adata):
        inside, outside = adata[train].copy(), adata[test].copy()
        model = train_model(inside, spec, presence, show_progress_bar=False)
        columns = list(adata.obsm["msi"].columns)
        found = model._predict_all(outside)
        y = outside.obsm["msi"][columns]
        present = outside.obsm["msi_presence"][columns] if presence else y > 0
        frames = {
            "y": y,
            "present": present.where(y.notna()),
            "probability": found.presence,
            "expected": found.expected,
        }
        for c in COVERAGES:
            frames[f"lower_{c}"], frames[f"upper_{c}"] = model.predict_interval(outside, c)
        yield {name: f.reindex(columns=columns).to_numpy(np.float64) for name, f in frames.items()}


def noise_floor(present: np.ndarray, probability: np.ndarray, n_draws: int = 10) -> np.ndarray:
    """Calibration error that these probabilities would have if they were right."""
    rng = np.random.default_rng(0)
    draws = [np.where(np.isnan(present), np.nan, rng.random(present.shape) < probability) for _ in range(n_draws)]
    return np.mean([stmsi.metrics.ece(d, probability, N_BINS) for d in draws], axis=0)


def measure(task: Task, spec: Any) -> pd.DataFrame:
    """One row per metabolite."""
    folds = list(predictions(task, spec))
    a = {name: np.vstack([f[name] for f in folds]) for name in folds[0]}
    known = ~np.isnan(a["y"]) & ~np.isnan(a["expected"])

    def share(inside: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.where(of.any(axis=0), (inside & of).sum(axis=0) / np.maximum(of.sum(axis=0), 1), np.nan)

    ids = list(task.adata.obsm["msi"].columns)
    table = pd.DataFrame({"metabolite": ids, "kind": [task.kind.get(m, "all") for m in ids], "n": known.sum(axis=0)})
    for c in COVERAGES:
        inside = (a[f"lower_{c}"] <= a["y"]) & (a["y"] <= a[f"upper_{c}"])
        table[f"coverage_{100 * c:.0f}"] = share(inside, known)
        if c == 0.9:
            table["coverage_90_absent"] = share(inside, known & (a["expected"] == 0))
            table["coverage_90_present"] = share(inside, known & (a["expected"] > 0))
            width = np.nanmean(np.where(known, a[f"upper_{c}"] - a[f"lower_{c}"], np.nan), axis=0)
            table["width_90"] = width / np.nanstd(np.where(known, a["y"], np.nan), axis=0)
    table["prevalence"] = stmsi.metrics.prevalence(a["present"])
    table["brier"] = stmsi.metrics.brier(a["present"], a["probability"])
    table["ece"] = stmsi.metrics.ece(a["present"], a["probability"], N_BINS)
    table["ece_floor"] = noise_floor(a["present"], a["probability"])
    table["ece_pooled"] = stmsi.metrics.ece(a["present"].ravel(), a["probability"].ravel(), N_BINS)[0]
    # how far the mean coverage is from one group of test sections to the next
    each = [share((f["lower_0.9"] <= f["y"]) & (f["y"] <= f["upper_0.9"]), ~np.isnan(f["y"])) for f in folds]
    table["coverage_90_lowest_fold"], table["coverage_90_highest_fold"] = np.min(each, axis=0), np.max(each, axis=0)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["simulator", "simulator_4_patients"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ridge"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    path = args.out / "calibration.csv"
    for name in args.tasks:
        task = TASKS[name]()
        for model in args.models:
            start = perf_counter()
            table = measure(task, MODELS[model]).round(4)
            table.insert(0, "task", name)
            table.insert(1, "model", model)
            old = pd.read_csv(path) if path.exists() else table[:0]
            # rows of other tasks and models stay as they were measured
            rows = pd.concat([old[(old["task"] != name) | (old["model"] != model)], table], ignore_index=True)
            order = rows[["task", "model"]].apply(lambda c: c.map({k: i for i, k in enumerate([*TASKS, *MODELS])}))
            rows = rows.loc[order.sort_values(["task", "model"], kind="stable").index]
            rows.to_csv(path, index=False)
            numbers = table.drop(columns=["task", "model", "metabolite", "kind", "n"])
            print(f"{name}, {model}, {perf_counter() - start:.0f} s")
            print(numbers.describe().loc[["mean", "25%", "50%", "75%"]].round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()

"""The default predictor beside the fast one, on every task, with seconds of the processor and memory: one table.

    python benchmarks/accuracy/predictor.py                                  # all tasks: mean, ridge, auto
    python benchmarks/accuracy/predictor.py --tasks nci60 ccle --models auto kernel_ridge

Each task x model is cross-validated in a process of its own, so that peaks of memory do not mix. Writes ``results/predictor.csv``:
``within``: mean over metabolites of the correlation inside test sections; ``pooled``: of all test spots together, relative to the
training mean of the fold; ``unpredictable``: the first, of simulated metabolites that no gene knows of. On nci60, whose sections
are single lines, only ``pooled`` exists.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import warnings
from datetime import date
from pathlib import Path
from time import process_time

import pandas as pd

import stmsi

try:
    from benchmarks.accuracy.run import FirstFolds
    from benchmarks.accuracy.tasks import PREDICTOR_TASKS
except ModuleNotFoundError:  # run as a script
    from run import FirstFolds
    from tasks import PREDICTOR_TASKS

RESULTS = Path(__file__).parent / "results"


def measure(task_name: str, model: str, folds: int | None) -> dict[str, object]:
    """Cross-validate in this process."""
    task = PREDICTOR_TASKS[task_name]()
    setup = dict(task.adata.uns.get("setup", {}))
    cpu = process_time()
    scores = stmsi.tl.cross_validate(
        task.adata, model, splitter=FirstFolds(task.splitter, folds), setup=setup, on_leakage="ignore",
        show_progress_bar=False,
    )  # fmt: skip
    cpu = process_time() - cpu
    rows = scores[scores["stage"] == "intensity"]
    kind = rows["metabolite"].map(task.adata.uns.get("kind", {})).fillna("all")
    presence = scores[scores["stage"] == "presence"]

    def mean(column: str, of: pd.Series) -> float:
        return float(rows[of].groupby("metabolite")[column].mean().mean())

    known = kind != "unpredictable"
    return {
        "task": task_name, "what": task.kind, "model": model, "folds": rows["fold"].nunique(),
        "within": mean("pearson", known), "pooled": mean("pearson_pooled", known),
        "unpredictable": mean("pearson", ~known) if (~known).any() else float("nan"),
        "auroc": float(presence.groupby("metabolite")["auroc"].mean().mean()),
        "coverage_90": mean("coverage", known), "cpu_s": cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "date": date.today().isoformat(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(PREDICTOR_TASKS), default=list(PREDICTOR_TASKS))
    parser.add_argument("--models", nargs="+", default=["mean", "ridge", "auto"])
    parser.add_argument("--folds", type=int, help="only the first so many; needs --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--single", action="store_true", help="measure in this process and print JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.single:
        print(json.dumps(measure(args.tasks[0], args.models[0], args.folds)))
        return
    if args.folds and args.out == RESULTS:
        parser.error("--folds scores a part of a task; name another folder with --out.")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "predictor.csv"
    for task in args.tasks:
        for model in args.models:
            command = [sys.executable, __file__, "--single", "--tasks", task, "--models", model]
            command += ["--folds", str(args.folds), "--out", str(args.out)] if args.folds else []
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            if done.returncode:
                sys.exit(f"{task}, {model} failed:\n{done.stderr[-2000:]}")
            row = pd.DataFrame([json.loads(done.stdout.strip().splitlines()[-1])]).round(4)
            old = pd.read_csv(path) if path.exists() else row[:0]
            kept = old[(old["task"] != task) | (old["model"] != model)]
            pd.concat([kept, row], ignore_index=True).to_csv(path, index=False)
            print(row.drop(columns="what").to_string(index=False), flush=True)


if __name__ == "__main__":
    main()

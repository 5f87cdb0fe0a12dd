"""What each member of the default stack brings, and what choosing their weights brings.

    python benchmarks/accuracy/members.py
    python benchmarks/accuracy/members.py --tasks simulator_patients --folds 1 --out part

In each fold of a task the stack is trained once. The left-out sections are then predicted by every member alone, by the stack,
by the stack without each member (weights chosen again, from the same held-out predictions), and by the plain mean of all
members. Scores are the mean over metabolites of the correlation inside sections, of the map without thresholds: what is compared are
maps and weights. Metabolites of the simulator that follow no gene are left out. Writes ``results/members.csv``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import stmsi
from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.learning.stacking import selected_weights
from stmsi._core.metrics.intensity import pearson
from stmsi.model.ensemble._members import stages_of
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._training_data import TrainingData

try:
    from benchmarks.accuracy.tasks import PREDICTOR_TASKS, Task
except ModuleNotFoundError:  # run as a script
    from tasks import PREDICTOR_TASKS, Task

RESULTS = Path(__file__).parent / "results"


def within(truth: np.ndarray, predicted: np.ndarray, unit: np.ndarray) -> float:
    """Mean over metabolites and units of the correlation inside a unit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        scores = [pearson(truth[unit == u], predicted[unit == u]) for u in np.unique(unit)]
        return float(np.nanmean(np.nanmean(scores, axis=0)))


def score_fold(task: Task, train: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """Scores of members, stack and stacks without a member on the left-out sections of one fold."""
    inside, outside = task.adata[train].copy(), task.adata[test].copy()
    ensemble = stmsi.model.HurdleEnsemble
    ensemble.setup_anndata(inside, **task.adata.uns.get("setup", {}))
    model = ensemble(inside)
    data = TrainingData.read(inside, model._setup, None, None)
    model._fit(data, show_progress_bar=False)
    folds = InnerFolds.of(data, n_folds=model.n_folds, seed=model.rng)
    truth = HeldOutTruth.of(data.targets.intensity, folds.groups, folds.units)
    held_out = np.stack([np.prod(m._held_out_stages(), axis=0) for m in model.models_])
    spots = model._query_spots(outside, 0, input=model.state.setup.input)
    maps = np.stack([np.prod(stages_of(m, spots, model.state.metabolites), axis=0) for m in model.models_])
    measured = outside.obsm["msi"][model.metabolites].to_numpy(np.float64)
    kind = pd.Series(task.adata.uns.get("kind", {}), dtype=object).reindex(model.metabolites)
    follows = (kind != "unpredictable").to_numpy()
    unit = outside.obs["sample"].astype(str).to_numpy()

    def score(kept: np.ndarray, weights: np.ndarray) -> float:
        mean = np.einsum("km,ksm->sm", weights, maps[kept])
        return within(measured[:, follows], mean[:, follows], unit)

    def stacked(kept: np.ndarray) -> float:
        eligible = np.ones((len(kept), maps.shape[2]), bool)
        return score(kept, selected_weights(truth, held_out[kept], eligible))

    everyone = np.arange(len(maps))
    equal = np.full((len(maps), maps.shape[2]), 1 / len(maps))
    rows = [("stack", "", stacked(everyone)), ("equal weights", "", score(everyone, equal))]
    for k, name in enumerate(model.members):
        alone = np.ones((1, maps.shape[2]))
        rows += [("alone", name, score(everyone[[k]], alone)), ("stack without", name, stacked(np.delete(everyone, k)))]
    return pd.DataFrame(rows, columns=["variant", "member", "pearson"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(PREDICTOR_TASKS), default=["her2st_histology", "simulator_patients", "simulator_patients_dense", "ccle"])  # fmt: skip
    parser.add_argument("--folds", type=int, help="only the first so many; needs --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.folds and args.out == RESULTS:
        parser.error("--folds scores a part of a task; name another folder with --out.")
    warnings.filterwarnings("ignore")
    tables = []
    for name in args.tasks:
        task = PREDICTOR_TASKS[name]()
        folds = list(task.splitter.split(task.adata))[: args.folds]
        scores = pd.concat([score_fold(task, *fold).assign(fold=i) for i, fold in enumerate(folds)])
        table = scores.groupby(["variant", "member"], sort=False)["pearson"].mean().reset_index()
        tables.append(table.assign(task=name, folds=len(folds)))
        print(tables[-1].to_string(index=False), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    pd.concat(tables)[["task", "folds", "variant", "member", "pearson"]].to_csv(args.out / "members.csv", index=False, float_format="%.4f")  # fmt: skip


if __name__ == "__main__":
    main()

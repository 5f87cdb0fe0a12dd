"""Which members the default stack should have, judged without the test sections of any task.

    python benchmarks/accuracy/inner_choice.py --tasks ccle nci60 simulator_patients
    python benchmarks/accuracy/inner_choice.py --tasks ccle --parts 3 --splits 4 --out part

Each fold of a task gives a training part; its test sections are not looked at. The training part is split again, by its
sections, or at random where these are single spots. On each inner training part all members are trained once, and the stacks
that are compared are weighted from the same held-out predictions of its own folds. They are scored on the inner test part
(correlation of the map without thresholds, within sections and pooled, each relative to what the inner training part knows of
the mean). The knowledge prior is looked up as ``tl.cross_validate`` does for ``"auto"``, and gene attention is left out: what is compared is the place of
the prior. Tasks without one are named. Writes ``results/inner_choice.csv``, one row per training part and stack.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
from anndata import AnnData

import stmsi
from stmsi._core.learning.folds import inner_groups, random_groups
from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.learning.stacking import selected_weights
from stmsi._core.metrics.intensity import pearson
from stmsi._data.keys import Key
from stmsi.model.ensemble._members import of_metabolites, stages_of
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._training_data import TrainingData
from stmsi.tl._models import _look_up_prior

try:
    from benchmarks.accuracy.tasks import PREDICTOR_TASKS
except ModuleNotFoundError:  # run as a script
    from tasks import PREDICTOR_TASKS

RESULTS = Path(__file__).parent / "results"
ALONE = {"prior_key": None}
MEMBERS = {
    "two-stage ridge": {"model": "ridge", "setup": ALONE},
    "two-stage ridge, prior": "ridge",
    "gene ridge": {"model": "gene_ridge", "presence": "prior"},
    "gene ridge, z-scored": {"model": "gene_ridge", "unit_variance": True, "presence": "prior"},
    "kernel ridge": {"model": "kernel_ridge", "presence": "prior"},
    "screened ridge": {"model": "screened_ridge", "presence": "prior"},
    "prior ridge": {"model": "prior_ridge", "presence": "prior"},
}
STACKS = {
    "prior in both": [name for name in MEMBERS if name != "two-stage ridge"],
    "prior in its own member": [name for name in MEMBERS if name != "two-stage ridge, prior"],
    "no prior": [name for name in MEMBERS if "prior" not in name],
}
"""Stacks that are compared, by their members."""


def splits(adata: AnnData, n: int, seed: int) -> np.ndarray:
    """Number of the inner part of each spot: whole sections, or single spots where sections are no more than that."""
    sample = adata.obs["sample"].astype(str).to_numpy().astype(str)
    if len(np.unique(sample)) == len(sample):
        return random_groups(len(sample), n_groups=n, seed=seed)
    return inner_groups(sample, None, n_groups=n, seed=seed)


def score_split(adata: AnnData, train: np.ndarray, test: np.ndarray, follows: list[str]) -> dict[str, pd.DataFrame]:
    """Truth and map of each stack at the inner test spots, relative to the inner training mean."""
    inside, outside = adata[train].copy(), adata[test].copy()
    fields = dict(adata.uns.get("setup", {})) | {"prior_key": Key.varm.PRIOR}
    ensemble = stmsi.model.HurdleEnsemble
    ensemble.setup_anndata(inside, **fields)
    model = ensemble(inside, members=MEMBERS)
    data = TrainingData.read(inside, model._setup, None, None)
    model._fit(data, show_progress_bar=False)
    ids = model.state.metabolites
    folds = InnerFolds.of(data, n_folds=model.n_folds, seed=model.rng)
    intensity = pd.DataFrame(data.targets.intensity, columns=data.targets.metabolites)[ids].to_numpy()
    truth = HeldOutTruth.of(intensity, folds.groups, folds.units)
    held_out = np.stack(
        [of_metabolites(m._held_out_stages(), m.state.metabolites, ids).prod(axis=0) for m in model.models_]
    )
    spots = model._query_spots(outside, 0, input=model.state.setup.input)
    maps = np.stack([np.prod(stages_of(m, spots, ids), axis=0) for m in model.models_])
    names = list(model.members)
    found = {"truth": outside.obsm["msi"][ids].to_numpy(np.float64)}
    for stack, members in STACKS.items():
        own = [names.index(name) for name in members]
        weights = selected_weights(truth, held_out[own], np.isfinite(held_out[own]).any(axis=1))
        share = np.where(np.isnan(maps[own]), 0, weights[:, None])
        found[stack] = (share * np.nan_to_num(maps[own])).sum(axis=0) / np.maximum(share.sum(axis=0), 1e-300)
    kept, mean = ids.isin(follows), np.nanmean(intensity, axis=0)
    return {name: pd.DataFrame(value - mean, columns=ids).loc[:, kept] for name, value in found.items()}


def of_part(adata: AnnData, n_splits: int, seed: int) -> list[dict[str, float | str]]:
    """Scores of every stack over all inner parts of one training part."""
    part, follows = (
        splits(adata, n_splits, seed),
        [m for m in adata.obsm["msi"] if adata.uns.get("kind", {}).get(m) != "unpredictable"],
    )
    done, rows = [], []
    for k in np.unique(part):
        train, test = np.flatnonzero(part != k), np.flatnonzero(part == k)
        done.append((adata.obs["sample"].astype(str).to_numpy()[test], score_split(adata, train, test, follows)))
    truth = pd.concat([f["truth"] for _, f in done])
    unit = np.concatenate([sample for sample, _ in done])
    for stack in STACKS:
        said = pd.concat([f[stack] for _, f in done])[truth.columns]
        within = [
            pearson(truth[unit == u].to_numpy(), said[unit == u].to_numpy())
            for u in np.unique(unit) if (unit == u).sum() >= 5
        ]  # fmt: skip
        rows.append({
            "stack": stack,
            "within": float(np.nanmean(np.nanmean(within, axis=0))) if within else np.nan,
            "pooled": float(np.nanmean(pearson(truth.to_numpy(), said.to_numpy()))),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(PREDICTOR_TASKS), default=["ccle", "nci60", "her2st_histology", "simulator_patients"])  # fmt: skip
    parser.add_argument("--parts", type=int, help="only the first so many training parts; needs --out")
    parser.add_argument("--splits", type=int, default=4, help="inner parts of each training part")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.parts and args.out == RESULTS:
        parser.error("--parts scores a part of a task; name another folder with --out.")
    warnings.filterwarnings("ignore")
    tables = []
    for name in args.tasks:
        task = PREDICTOR_TASKS[name]()
        for i, (train, _) in enumerate(list(task.splitter.split(task.adata))[: args.parts]):
            inside, cpu = task.adata[train].copy(), process_time()
            _look_up_prior(inside, inside.uns.get("setup", {}))
            if Key.varm.PRIOR not in inside.varm:
                print(f"{name}: no metabolite has known genes; the stacks are the same.")
                break
            table = pd.DataFrame(of_part(inside, args.splits, seed=i)).assign(task=name, part=i)
            tables.append(table.assign(cpu_s=round(process_time() - cpu, 1)))
            print(tables[-1].to_string(index=False, header=i == 0), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    columns = ["task", "part", "stack", "within", "pooled", "cpu_s"]
    pd.concat(tables)[columns].to_csv(args.out / "inner_choice.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()

"""Score models on the tasks, every test section predicted by models that never saw it.

    python benchmarks/accuracy/run.py                      # all tasks: mean, ridge, mlp
    python benchmarks/accuracy/run.py --tasks simulator --models mean ridge lasso mlp
    python benchmarks/accuracy/run.py --tasks simulator --models ridge mlp "mlp, alone" --folds 2 --out part
    python benchmarks/accuracy/run.py --tasks her2st_panel --targets 30 --folds 1 --out part   # a part, for a first look
    python benchmarks/accuracy/run.py --data sma=PATH --matrix FMP-10 --landmarks clicked.csv  # measured metabolites
    python benchmarks/accuracy/run.py --data desium=PATH --cache folds   # an interrupted run goes on from its last fold

Writes, for each task, ``results/<task>.csv`` (model x metabolite x stage, means over test sections) and
``results/summary.csv`` (model x task: mean and quartiles over metabolites); with ``--data`` into ``accuracy/`` of the folder
you are in. Data of your own are aligned without landmarks where ``--landmarks`` names none: look at the report that is
printed before you believe a score.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import anndata as ad
import pandas as pd

import stmsi

try:
    from benchmarks.accuracy.tasks import READERS, TASKS, Task, paired, tasks
except ModuleNotFoundError:  # run as a script
    from tasks import READERS, TASKS, Task, paired, tasks

RESULTS = Path(__file__).parent / "results"
GRAPH = {"setup": {"graph_key": "spatial_connectivities"}}
MODELS = {
    **{name: name for name in ("mean", "ridge", "lasso", "pls", "knn", "boosting")},
    "ridge, diffused": {"model": "ridge", "context": "diffused", **GRAPH},
    **{name: {"model": name, **GRAPH} for name in ("gene_ridge", "kernel_ridge", "screened_ridge")},
    "mlp": "mlp",
    "mlp, alone": {"model": "mlp", "residual": None},
    "mlp, averaged": {"model": "mlp", "residual": None, "train": {"weight_averaging": True}},
    "mlp, by section": {"model": "mlp", "residual": None, "standardise": "sample"},
    "transformer": {"model": "HurdleNet", "encoder": "transformer"},
    **{name: {"model": "HurdleNet", "encoder": name, **GRAPH} for name in ("graph", "deepset", "niche")},
    "niche, alone": {"model": "HurdleNet", "encoder": "niche", "residual": None, **GRAPH},
    **{name: {"model": "HurdleNet", "encoder": name} for name in ("section", "crossmodal")},
    "crossmodal, retrieval": {
        "model": "HurdleNet",
        "encoder": "crossmodal",
        "encoder_kwargs": {"output": "retrieval"},
    },
    "CMRCNet": {
        "model": "HurdleNet",
        "encoder": "crossmodal",
        "encoder_kwargs": {"contrastive_weight": 1, "reconstruction_weight": 1},
    },
    "crossmodal, exemplars": {
        "model": "HurdleNet",
        "encoder": "crossmodal",
        "encoder_kwargs": {"output": "exemplars"},
    },
    "BLEEP": {
        "model": "HurdleNet",
        "encoder": "crossmodal",
        "encoder_kwargs": {"output": "retrieval", "weighting": "uniform", "contrastive_weight": 1},
    },
    "mclSTExp": {
        "model": "HurdleNet",
        "encoder": "crossmodal",
        "encoder_kwargs": {
            "output": "retrieval",
            "weighting": "similarity",
            "contrastive_weight": 1,
            "hard_labels": True,
        },
    },
    "auto, own": {"model": "auto", "setup": {"graph_key": None}},
    "auto": {"model": "auto", **GRAPH},
}
SCORES = ["pearson", "spearman", "r2", "pearson_present", "auroc", "auprc", "prevalence"]


@dataclass(frozen=True)
class FirstFolds:
    """The first folds of a splitter; `None`: all."""

    splitter: Any
    n: int | None

    def split(self, adata: ad.AnnData) -> Iterator[tuple[Any, Any]]:
        """Training and test spots of each fold."""
        yield from islice(self.splitter.split(adata), self.n)


def summarise(per_target: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and quartiles over metabolites of the mean over test sections."""
    rows = []
    for key, part in per_target.groupby(by, sort=False):
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        row["metabolites"] = part["metabolite"].nunique()
        for score in SCORES:
            values = part[score].dropna()
            row[score] = values.mean()
            if score in ("pearson", "auroc"):
                row[f"{score}_q25"], row[f"{score}_q75"] = values.quantile(0.25), values.quantile(0.75)
        rows.append(row)
    return pd.DataFrame(rows)


def update(path: Path, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Write rows into a table, in the place of those of the same models; the others stay as they were measured."""
    if path.exists():
        old = pd.read_csv(path)
        again = pd.MultiIndex.from_frame(old[by]).isin(pd.MultiIndex.from_frame(rows[by]))
        rows = pd.concat([old[~again], rows], ignore_index=True)
    # rows of models that are no longer there stay, at the end
    place = [rows["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))]
    if "task" in by:
        place.insert(0, rows["task"].map({name: i for i, name in enumerate([*TASKS, *READERS])}))
    order = pd.concat(place, axis=1).apply(tuple, axis=1)
    rows = rows.loc[order.sort_values(kind="stable").index]
    rows.to_csv(path, index=False)
    return rows


def on_disk(text: str) -> tuple[str, Path]:
    """``sma=PATH`` as deposit and path."""
    deposit, _, path = text.partition("=")
    if deposit not in READERS or not path:
        msg = f"expected DEPOSIT=PATH with one of {', '.join(READERS)}, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    if not Path(path).exists():
        msg = f"nothing at {path}"
        raise argparse.ArgumentTypeError(msg)
    return deposit, Path(path)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--data", nargs="+", type=on_disk, metavar="DEPOSIT=PATH", help="instead of the tasks: sma, desium"
    )
    parser.add_argument("--matrix", help="of SMA: the MALDI matrix")
    parser.add_argument("--landmarks", type=Path, help="of SMA: pairs of points for stmsi.pp.align")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["mean", "ridge", "mlp"])
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--targets", type=int, help="only the first so many; needs --out")
    parser.add_argument("--folds", type=int, help="only the first so many; needs --out")
    parser.add_argument("--cache", type=Path, help="folder that keeps finished folds; empty it when stmsi changes")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    args = parser.parse_args()
    if (args.targets or args.folds) and args.out is None:
        parser.error("--targets and --folds score a part of a task; name another folder with --out.")
    args.out = args.out or (Path("accuracy") if args.data else RESULTS)
    return args


def chosen(args: argparse.Namespace) -> Iterator[Task]:
    """The tasks asked for, each made when it is its turn."""
    if not args.data:
        yield from tasks(args.tasks)
        return
    for deposit, path in args.data:
        options = {"matrix": args.matrix} if deposit == "sma" else {}
        yield paired(deposit, path, args.landmarks if deposit == "sma" else None, **options)


def main() -> None:
    args = arguments()
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    for task in chosen(args):
        start = perf_counter()
        for key in {"msi", "msi_presence"} & set(task.adata.obsm):
            task.adata.obsm[key] = task.adata.obsm[key].iloc[:, : args.targets]
        scores = stmsi.tl.cross_validate(
            task.adata,
            {name: MODELS[name] for name in args.models},
            splitter=FirstFolds(task.splitter, args.folds),
            cache_dir=args.cache,
            n_jobs=args.n_jobs,
            show_progress_bar=False,
        )
        scores["kind"] = scores["metabolite"].map(task.adata.uns.get("kind", {})).fillna("all").astype(str)
        per_target = scores.groupby(["model", "kind", "metabolite", "stage"], sort=False)[SCORES].mean().reset_index()
        update(args.out / f"{task.name}.csv", per_target.round(4), ["model"])
        by_kind = summarise(per_target, ["model", "kind"])
        seconds = scores.drop_duplicates(["model", "fold"]).groupby("model")["seconds"].sum()
        by_kind.insert(0, "task", task.name)
        by_kind.insert(1, "what", task.kind)
        by_kind["folds"] = scores["fold"].nunique()
        by_kind["seconds"] = by_kind["model"].map(seconds)
        by_kind["machine"] = f"{platform.machine()}, processes: {args.n_jobs}"
        by_kind["python"], by_kind["stmsi"] = platform.python_version(), stmsi.__version__
        by_kind["date"] = date.today().isoformat()
        by_kind = update(args.out / "summary.csv", by_kind.round(4), ["task", "model"])
        print(f"{task.name} ({task.kind}), {perf_counter() - start:.0f} s")
        own = by_kind[by_kind["task"] == task.name]
        print(own[["model", "kind", "metabolites", *SCORES, "seconds"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()

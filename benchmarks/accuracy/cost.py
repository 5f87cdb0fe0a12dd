"""Seconds and memory that models take: 3,000 spots x 2,000 genes x 100 metabolites, simulated.

    python benchmarks/accuracy/cost.py                                         # all encoders
    python benchmarks/accuracy/cost.py --models ridge auto --n-metabolites 1000
    python benchmarks/accuracy/cost.py --models ridge --cross-validate         # 8 folds of real spots

Prints, for every family or encoder, seconds of training (of encoders with as many networks as they have by default, each to early stopping),
networks, epochs of the longest, seconds to predict 100,000 spots, CPU seconds of both (which count on a machine that is busy otherwise),
and the peak memory of a process of its own. ``--nets 1`` trains one network to early stopping. With ``--cross-validate`` the same of
leave-one-patient-out on 36 sections (``her2st_panel``, 20 targets; data as for ``run.py``), scores and search for leaks included. With ``--out`` also writes them to a table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import stmsi
from stmsi.model._families import FAMILIES, resolve
from stmsi.model.net.encoders import ENCODERS

try:
    from benchmarks.accuracy.tasks import her2st_panel, simulated_sections
except ModuleNotFoundError:  # run as a script
    from tasks import her2st_panel, simulated_sections

GRAPH_KEY = "spatial_connectivities"


def spots(n_spots: int, n_genes: int, n_metabolites: int) -> ad.AnnData:
    """Simulated spots of six sections, MSI and all."""
    st = simulated_sections(n_patients=3, sections_per_patient=2, n_genes=n_genes, n_metabolites=n_metabolites)
    rows = np.sort(np.random.default_rng(0).choice(st.n_obs, min(n_spots, st.n_obs), replace=False))
    st = st[rows].copy()
    stmsi.pp.spatial_graph(st)
    return st


def many(adata: ad.AnnData, n: int) -> ad.AnnData:
    """The same spots again and again, as a query of `n`."""
    times = -(-n // adata.n_obs)
    rows = np.tile(np.arange(adata.n_obs), times)[:n]
    query = ad.AnnData(adata.X[rows], obs=adata.obs.iloc[rows].set_axis(pd.RangeIndex(n).astype(str)), var=adata.var)
    query.obsm["spatial"] = np.asarray(adata.obsm["spatial"])[rows]
    query.obsp[GRAPH_KEY] = sp.block_diag([adata.obsp[GRAPH_KEY]] * times, format="csr")[:n, :n]
    return query


def measure(name: str, args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Train and predict in this process."""
    adata = spots(args.n_spots, args.n_genes, args.n_metabolites)
    is_net = name in ENCODERS
    graph = {} if is_net and not ENCODERS[name].uses_graph else {"graph_key": GRAPH_KEY}
    cls, params, _, train_options = (
        (
            stmsi.model.HurdleNet,
            {"encoder": name, "n_top_genes": args.n_genes, "encoder_kwargs": options},
            {},
            {"n_threads": args.threads},
        )
        if is_net
        else resolve(name)
    )
    if is_net and args.nets:
        params["n_nets"] = args.nets
        train_options["refit"] = False
    cls.setup_anndata(adata, presence_key="msi_presence", **graph)
    model = cls(adata, **params)
    start, cpu = perf_counter(), process_time()
    model.train(show_progress_bar=False, **train_options)
    train, train_cpu = perf_counter() - start, process_time() - cpu
    epochs = len(model.history["validation_loss"]) if is_net else 1
    query = many(adata, args.n_query)
    start, cpu = perf_counter(), process_time()
    model.predict(query)
    predict, predict_cpu = perf_counter() - start, process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "model": name, "options": json.dumps(options), "spots": adata.n_obs,
        "nets": model.state.training.get("n_nets", 1), "epochs": epochs, "train_s": round(train, 1), "predict_s": round(predict, 1),
        "train_cpu_s": round(train_cpu, 1), "predict_cpu_s": round(predict_cpu, 1), "peak_gib": round(peak, 2),
    }  # fmt: skip


def measure_folds(name: str) -> dict[str, Any]:
    """Cross-validate a family on real spots in this process."""
    task = her2st_panel()
    task.adata.obsm["msi"] = task.adata.obsm["msi"].iloc[:, :20]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start, cpu = perf_counter(), process_time()
    scores = stmsi.tl.cross_validate(
        task.adata, name, splitter=task.splitter, setup={"graph_key": GRAPH_KEY}, show_progress_bar=False
    )
    wall, cpu = perf_counter() - start, process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "model": name, "spots": task.adata.n_obs, "folds": scores["fold"].nunique(), "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1), "peak_before_gib": round(before, 2), "peak_gib": round(peak, 2),
        "pearson": round(scores.loc[scores["stage"] == "intensity", "pearson"].mean(), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*FAMILIES, *ENCODERS], default=list(ENCODERS))
    parser.add_argument("--options", type=json.loads, default={}, help="encoder_kwargs as JSON")
    parser.add_argument("--n-spots", type=int, default=3000)
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--n-metabolites", type=int, default=100)
    parser.add_argument("--n-query", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nets", type=int, default=0, help="networks of an encoder; 0: as many as it has by default")
    parser.add_argument("--cross-validate", action="store_true", help="all folds of real spots in the place of one fit")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--single", action="store_true", help="measure in this process and print JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.single:
        name = args.models[0]
        print(json.dumps(measure_folds(name) if args.cross_validate else measure(name, args, args.options)))
        return
    # a process for each, so that peaks of memory do not mix
    rows = []
    shared = ["--options", json.dumps(args.options), "--threads", str(args.threads), "--nets", str(args.nets)]
    for size in ("n_spots", "n_genes", "n_metabolites", "n_query"):
        shared += [f"--{size.replace('_', '-')}", str(getattr(args, size))]
    shared += ["--cross-validate"] * args.cross_validate
    for name in args.models:
        command = [sys.executable, __file__, "--single", "--models", name, *shared]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    if args.out is not None:
        pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

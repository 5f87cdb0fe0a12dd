"""Cross-validation on one dask worker and on two, and on two of which one is killed in the middle: seconds, and whether scores are the same.

    python benchmarks/scale/workers.py
    python benchmarks/scale/workers.py --model auto --n-targets 5

The 36 sections of ``her2st_panel`` (data as for ``benchmarks/accuracy``), each in a store of its own; 8 patients or, with ``--leave-out section``,
36 sections are left out one by one. Workers have one thread each. The clock counts from the call to the scores, with all workers up and the package loaded. Run it on a machine at rest.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from pathlib import Path
from threading import Timer
from time import perf_counter

import numpy as np
import pandas as pd
from benchmarks.accuracy.tasks import her2st_panel
from distributed import LocalCluster
from pandas.testing import assert_frame_equal

import stmsi


def write_stores(folder: Path, n_targets: int) -> list[Path]:
    """Each section of the task as an h5ad; the panel is smaller where `n_targets` says so."""
    data = her2st_panel().adata
    data.obsm["msi"] = data.obsm["msi"].iloc[:, :n_targets]
    paths = []
    for name in data.obs["sample"].unique():
        paths.append(folder / f"{name}.h5ad")
        data[(data.obs["sample"] == name).to_numpy()].copy().write_h5ad(paths[-1])
    return paths


def scores_on(
    n_workers: int, paths: list[Path], args: argparse.Namespace, *, kill_after: float | None = None
) -> tuple[pd.DataFrame, float]:
    """Scores, and seconds that they took."""
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
        cluster.get_client() as client,
    ):
        client.run(__import__, "stmsi.tl")
        if kill_after is not None:
            victim = next(iter(client.run(os.getpid).values()))
            Timer(kill_after, os.kill, (victim, signal.SIGKILL)).start()
        splitter = stmsi.model_selection.LeaveOnePatientOut() if args.leave_out == "patient" else None
        start = perf_counter()
        scores = stmsi.tl.cross_validate(
            paths, args.model, splitter=splitter, client=client, on_leakage="ignore", show_progress_bar=False
        )
        return scores, perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--leave-out", choices=["patient", "section"], default="patient")
    parser.add_argument("--n-targets", type=int, default=20)
    parser.add_argument("--times", type=int, default=2, help="Runs of each; the quickest counts.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = write_stores(Path(name), args.n_targets)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        fold: dict[int, list[float]] = {1: [], 2: []}
        found = []
        for _ in range(args.times):
            for n, times in seconds.items():
                scores, took = scores_on(n, paths, args)
                fold[n].append(scores.groupby("fold")["seconds"].first().mean())
                found.append(scores.drop(columns="seconds"))
                times.append(took)
        killed, _ = scores_on(2, paths, args, kill_after=min(seconds[2]) / 2)
    for other in [*found[1:], killed.drop(columns="seconds")]:
        assert_frame_equal(other, found[0])
    one, two = min(seconds[1]), min(seconds[2])
    print(
        f"{found[0]['fold'].nunique()} folds: {one:.1f} s on one worker, {two:.1f} s on two: {one / two:.2f} times as fast."
    )
    print(f"A fold takes {min(fold[1]):.1f} s beside an idle worker, and {min(fold[2]):.1f} s beside another fold.")
    print(f"All scores are the same, also where one of two workers was killed after {min(seconds[2]) / 2:.0f} s.")
    print(f"Mean correlation {np.nanmean(found[0].loc[found[0]['stage'] == 'intensity', 'pearson']):.4f}.")


if __name__ == "__main__":
    main()

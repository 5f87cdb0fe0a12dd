"""Prediction of a section on disk, some bins at a time: seconds, processor seconds, peak memory.

    python benchmarks/scale/predict.py --n-bins 100000 1000000 --models ridge auto

Bins of 8 um on a square grid, sparse counts (2,000 genes, 4 % of them above zero) in an h5ad that is never read whole, with a
neighbourhood graph, and a model trained on 3,000 simulated spots with 100 metabolites. The section is made of the counts of simulated spots,
again and again; it measures cost and nothing else. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.accuracy.tasks import simulated_sections
from scipy.optimize import brentq

import stmsi
from stmsi.tl._models import train_model

GRAPH_KEY = "spatial_connectivities"
_ENTRIES = 0.04
"""Share of the genes of a bin that have counts."""
_AT_ONCE = 50_000


def square_graph(n: int, width: int) -> sp.csr_matrix:
    """Neighbours of each bin of a grid on its four sides."""
    at = np.arange(n)
    right = at[((at + 1) % width > 0) & (at + 1 < n)]
    below = at[at + width < n]
    i, j = np.concatenate([right, below]), np.concatenate([right + 1, below + width])
    half = sp.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n))
    return sp.csr_matrix(half + half.T)


def write_section(path: Path, spots: ad.AnnData, n: int) -> None:
    """A section of `n` bins on disk; its counts are written some bins at a time."""
    rng, width = np.random.default_rng(0), int(np.sqrt(n))
    counts = sp.csr_matrix(spots.X, dtype=np.float32, copy=True)
    whole = counts.data.astype(int)
    wanted = _ENTRIES * counts.shape[0] * counts.shape[1]
    # a bin keeps each count of a spot with the chance that leaves as many genes
    kept = brentq(lambda chance: (1 - (1 - chance) ** whole).sum() - wanted, 0, 1)
    counts.data = rng.binomial(whole, kept).astype(np.float32)
    counts.eliminate_zeros()
    at = np.arange(n)
    obs = pd.DataFrame({"sample": pd.Categorical(["bins"] * n)}, index=at.astype(str))
    bins = ad.AnnData(sp.csr_matrix((n, spots.n_vars), dtype=np.float32), obs=obs, var=spots.var[[]].copy())
    bins.obsm["spatial"] = np.column_stack([at % width, at // width]) * 8.0
    bins.obsp[GRAPH_KEY] = square_graph(n, width)
    bins.write_h5ad(path)
    times = np.diff(counts.indptr)[at % spots.n_obs].astype(np.int64)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name in ("data", "indices", "indptr"):
            del group[name]
        group["indptr"] = np.append(0, np.cumsum(times))
        arrays = {
            name: group.create_dataset(name, (int(times.sum()),), dtype, chunks=(2**18,), compression="lzf")
            for name, dtype in (("data", np.float32), ("indices", np.int32))
        }
        done = 0
        for start in range(0, n, _AT_ONCE):
            some = counts[at[start : start + _AT_ONCE] % spots.n_obs]
            for name, array in arrays.items():
                array[done : done + some.nnz] = getattr(some, name)
            done += some.nnz


def peak_gib() -> float:
    """Most memory of this process so far; what getrusage says of a child is at least what its parent had."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 2**20


def measure(model: Path, section: Path, out: Path) -> dict[str, float]:
    """Predict a section on disk into a store."""
    loaded, before = stmsi.model.load(model), peak_gib()
    clock, processor = perf_counter(), process_time()
    stmsi.tl.predict_metabolites(ad.read_h5ad(section, backed="r"), loaded, out=out, show_progress_bar=False)
    seconds, cpu_s = perf_counter() - clock, process_time() - processor
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_gib": peak_gib(), "before_gib": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ridge"])
    parser.add_argument("--n-bins", nargs="+", type=int, default=[100_000])
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--n-metabolites", type=int, default=100)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*map(Path, args.one))))
        return
    st = simulated_sections(
        n_patients=3, sections_per_patient=2, n_genes=args.n_genes, n_metabolites=args.n_metabolites
    )
    st = st[np.sort(np.random.default_rng(0).choice(st.n_obs, min(3000, st.n_obs), replace=False))].copy()
    stmsi.pp.spatial_graph(st)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in args.models:
            fitted = train_model(st.copy(), model, {"graph_key": GRAPH_KEY}, show_progress_bar=False)
            fitted.save(folder / model)
        for n in args.n_bins:
            section = folder / f"{n}.h5ad"
            write_section(section, st, n)
            for model in args.models:
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    str(folder / model),
                    str(section),
                    str(folder / f"{model}_{n}"),
                ]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append({"model": model, "bins": n, **json.loads(done.stdout.splitlines()[-1])})
                print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)
            section.unlink()


if __name__ == "__main__":
    main()

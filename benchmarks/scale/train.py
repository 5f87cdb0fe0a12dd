"""Ridge trained on sections on disk that are never in memory together: seconds, processor seconds, peak memory, and how they grow.

    python benchmarks/scale/train.py --n-sections 5 10 20
    python benchmarks/scale/train.py --n-sections 25 50 100 --n-spots 5000      # 500,000 spots, about 4 GB on disk

Each section is an h5ad of its own with sparse counts (2,000 genes, 5 % of them above zero) and 100 metabolites that follow twelve programmes
of genes; it measures cost and nothing else. Each row is a process of its own. ``--in-memory`` reads all sections into one table first, as a
comparison. ``--epochs`` is of networks (``--model mlp``): one network, which is trained that often on all but its held-out spots, and
then on all. ``--cache`` keeps the sums over sections, so that the second of two rows with the same number shows what they save.
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
import numpy as np
import pandas as pd
import scipy.sparse as sp

import stmsi

_PROGRAMMES, _ENTRIES = 12, 0.05


def write_section(path: Path, n_spots: int, n_genes: int, n_metabolites: int, seed: int) -> None:
    """A section on a square grid, whose genes and metabolites share programmes with all other sections."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    genes = shared.gamma(0.3, 1, (_PROGRAMMES, n_genes))
    metabolites = shared.gamma(0.5, 1, (_PROGRAMMES, n_metabolites))
    width = int(np.ceil(np.sqrt(n_spots)))
    xy = np.column_stack([np.arange(n_spots) % width, np.arange(n_spots) // width]).astype(float)
    phase, direction = own.uniform(0, 2 * np.pi, _PROGRAMMES), own.normal(0, 6 / width, (2, _PROGRAMMES))
    activity = np.exp(np.sin(xy @ direction + phase) + 0.5 * own.normal(size=(n_spots, _PROGRAMMES)))
    rate = activity @ genes
    counts = sp.csr_matrix(own.poisson(rate * _ENTRIES / rate.mean()).astype(np.float32))
    level = activity @ metabolites
    intensity = np.maximum(level / level.mean(axis=0) - own.gamma(4, 0.2, level.shape), 0).astype(np.float32)
    names = pd.Index([f"spot{i}" for i in range(n_spots)])
    obs = pd.DataFrame({"sample": pd.Categorical([path.stem] * n_spots)}, index=names)
    var = pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)])
    frame = pd.DataFrame(intensity, names, [f"metabolite{m}" for m in range(n_metabolites)])
    ad.AnnData(counts, obs, var, obsm={"spatial": 100 * xy, "msi": frame}).write_h5ad(path)


def peak_gib() -> float:
    """Most memory of this process so far; what getrusage says of a child is at least what its parent had."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 2**20


def measure(paths: list[Path], model: str, *, epochs: int, in_memory: bool, cache: Path | None) -> dict[str, float]:
    """Train on sections."""
    first = {"n_nets": 1, "train": {"max_epochs": 1}} if epochs else {"n_components": 4}
    stmsi.tl.train(paths[:1], {"model": model} | first, show_progress_bar=False)  # compiles and imports
    before, clock, processor = peak_gib(), perf_counter(), process_time()
    data = ad.concat([ad.read_h5ad(path) for path in paths], index_unique="-") if in_memory else paths
    spec = {"model": model, "n_nets": 1, "train": {"max_epochs": epochs}} if epochs else model
    stmsi.tl.train(data, spec, cache_dir=None if in_memory else cache, show_progress_bar=False)
    return {
        "seconds": perf_counter() - clock,
        "cpu_s": process_time() - processor,
        "peak_gib": peak_gib(),
        "before_gib": before,
    }


def exponents(table: pd.DataFrame) -> dict[str, float]:
    """Slopes of the logarithms over that of the number of sections."""
    rest = table.assign(peak_gib=table["peak_gib"] - table["before_gib"])
    x = np.log(table["sections"])
    return {name: round(float(np.polyfit(x, np.log(rest[name]), 1)[0]), 2) for name in ("seconds", "cpu_s", "peak_gib")}


def bytes_a_spot(table: pd.DataFrame) -> int:
    """How much more the largest number of spots takes than the smallest, by the spots between them."""
    first, last = table.loc[table["spots"].idxmin()], table.loc[table["spots"].idxmax()]
    return round(2**30 * (last["peak_gib"] - first["peak_gib"]) / (last["spots"] - first["spots"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ridge")
    parser.add_argument("--n-sections", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--n-spots", type=int, default=2000)
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--n-metabolites", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=0, help="Of a network; 0: the model is none.")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--folder", type=Path, help="Keep the sections here.")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        options = {"epochs": args.epochs, "in_memory": args.in_memory, "cache": args.cache}
        print(json.dumps(measure([Path(p) for p in args.one], args.model, **options)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name) if args.folder is None else args.folder
        paths = [folder / f"S{k}_{args.n_spots}.h5ad" for k in range(max(args.n_sections))]
        for k, path in enumerate(paths):
            if not path.exists():
                write_section(path, args.n_spots, args.n_genes, args.n_metabolites, k)
        options = ["--model", args.model, "--epochs", str(args.epochs), *(["--in-memory"] if args.in_memory else [])]
        options += [] if args.cache is None else ["--cache", str(args.cache)]
        for n in args.n_sections:
            command = [sys.executable, __file__, *options, "--one", *map(str, paths[:n])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"sections": n, "spots": n * args.n_spots, **json.loads(done.stdout.splitlines()[-1])})
            print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)
    if len(set(args.n_sections)) > 1:
        print("grows with the number of sections to the power:", exponents(pd.DataFrame(rows)))
        print("bytes a spot beyond the fewest:", bytes_a_spot(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()

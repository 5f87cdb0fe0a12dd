"""Every encoder, and what its options bring, on one small simulation.

    python benchmarks/accuracy/encoders.py                                  # all of them
    python benchmarks/accuracy/encoders.py --models mlp deepset "transformer, entmax"
    python benchmarks/accuracy/encoders.py --seeds 3 --out encoders.csv

Three patients with two sections each, 300 genes and 40 metabolites, the third patient is left out. Scores are the mean correlation inside
the sections of that patient, over metabolites that follow genes and over those that follow none; CPU seconds are those of training.
``--seeds`` repeats simulation and training with further seeds.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import stmsi

try:
    from benchmarks.accuracy.attention import fit, sections, within
    from benchmarks.accuracy.run import MODELS
except ModuleNotFoundError:  # run as a script
    from attention import fit, sections, within
    from run import MODELS

ALONE = {"setup": {"graph_key": None}}
SPECS: dict[str, dict[str, Any]] = {
    "ridge": {"model": "ridge", **ALONE},
    "mlp": {"model": "mlp", **ALONE},
    **{name: MODELS[name] for name in ("ridge, diffused", "graph", "deepset")},
    **{name: MODELS[name] for name in ("niche", "niche, alone")},
    **{name: MODELS[name] | ALONE for name in ("section", "crossmodal", "CMRCNet", "crossmodal, exemplars", "BLEEP", "mclSTExp")},
    "transformer": {"model": "transformer"},
    "transformer, entmax": {"model": "transformer", "encoder_kwargs": {"attention": "entmax"}},
    "transformer, temperature=.5": {"model": "transformer", "encoder_kwargs": {"temperature": 0.5}},
    "transformer, temperature=2": {"model": "transformer", "encoder_kwargs": {"temperature": 2.0}},
    "transformer, n_layers=1": {"model": "transformer", "encoder_kwargs": {"n_layers": 1}},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SPECS), default=list(SPECS))
    parser.add_argument("--n-genes", type=int, default=300)
    parser.add_argument("--size", type=int, default=1600, help="of each section, in um")
    parser.add_argument("--rng", type=int, default=11, help="first seed of the simulator")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    stmsi.model.HurdleNet  # noqa: B018  (loads torch before the clock starts)
    rows = []
    for seed in range(args.seeds):
        st, follows = sections(args.n_genes, args.rng + seed, args.size)
        held_out, at = (st.obs["patient"] == "P3").to_numpy(), follows.to_numpy()
        train, test = st[~held_out].copy(), st[held_out].copy()
        for name in args.models:
            model, seconds = fit(train, SPECS[name], seed)
            found = within(test, model.predict(test).to_numpy(np.float64))
            rows.append({
                "model": name, "seed": args.rng + seed, "follow genes": found[at].mean(), "follow none": found[~at].mean(),
                "cpu_s": seconds,
            })  # fmt: skip
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    table = pd.DataFrame(rows)
    if args.seeds > 1:
        print(
            table.groupby("model", sort=False).agg(["mean", "std"]).drop(columns="seed", level=0).round(3).to_string()
        )
    if args.out is not None:
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

"""How often a true driver gene of the simulator is among the top 20 of a network's attention or attribution.

    python benchmarks/accuracy/drivers.py --n-genes 2000
    python benchmarks/accuracy/drivers.py --n-genes 2000 --options '{"n_heads": 4}'

Four sections, all used for training; 40 predictable metabolites; attributions of the intensity stage.
"""

from __future__ import annotations

import argparse
import json
import warnings
from time import perf_counter

import anndata as ad
import pandas as pd

import stmsi

try:
    from benchmarks.accuracy.tasks import simulated_sections
except ModuleNotFoundError:  # run as a script
    from tasks import simulated_sections


def sections(n_genes: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """Simulated sections ready for training, and their true drivers."""
    st = simulated_sections(n_genes=n_genes)
    return st, st.uns["truth"]["drivers"]


def share(effects: pd.DataFrame, drivers: pd.DataFrame, n: int = 20) -> float:
    """Share of the metabolites with a true driver among the n largest."""
    found = []
    for metabolite, own in drivers.groupby("metabolite"):
        top = effects[metabolite].abs().nlargest(n).index
        found.append(own["gene"].isin(top).any())
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--encoder", default="transformer")
    parser.add_argument("--options", nargs="+", type=json.loads, default=[{}], help="encoder_kwargs as JSON")
    parser.add_argument("--n-spots", type=int, default=100, help="spots for integrated gradients; 0: attention only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata, drivers = sections(args.n_genes)
    for options in args.options:
        start = perf_counter()
        stmsi.model.HurdleNet.setup_anndata(adata, presence_key="msi_presence")
        model = stmsi.model.HurdleNet(adata, encoder=args.encoder, n_top_genes=args.n_genes, encoder_kwargs=options)
        model.train(show_progress_bar=False)
        line = f"{args.encoder} {json.dumps(options)}, {args.n_genes} genes:"
        if args.encoder == "transformer":
            stmsi.tl.attention(adata, model, show_progress_bar=False)
            line += f" attention {share(adata.varm['msi_attention'], drivers):.0%}"
        if args.n_spots:
            predictable = sorted(drivers["metabolite"].unique())
            stmsi.tl.attribute(
                adata, model, metabolites=predictable, n_spots=args.n_spots, n_steps=16, show_progress_bar=False
            )
            line += f" integrated gradients {share(adata.varm['attribution'], drivers):.0%}"
        print(f"{line} ({perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

"""An experiment: metabolites that training did not have, predicted from their m/z alone.

    python benchmarks/accuracy/unseen.py
    python benchmarks/accuracy/unseen.py --sorted     # neighbours in m/z share drivers
    python benchmarks/accuracy/unseen.py --sorted --n-genes 300 --n-folds 3 --n-nets 1     # a part, for a first look

Every fold leaves out a fifth of the predictable metabolites of the simulator and one section, trains ``"transformer"`` on the
rest, and asks for the metabolites that were left out in the section that was left out. Scores are Pearson correlations with
the measured intensity where present, beside: the same network for metabolites that it was trained on, the measured
metabolite that is nearest in m/z predicted in its place, the mean of all predicted metabolites of its class, and the best that any
predicted metabolite could have done (chosen with the answer in hand, which nobody has).

Classes are groups of five predictable metabolites with consecutive m/z; standardised predictions of those of the class that training
had are averaged. ``--classes`` tells the network the class too, as descriptors.

In the simulator m/z is drawn at random and says nothing of drivers. ``--sorted`` deals the masses out again in the order of
a hierarchical clustering of the measured maps, so that neighbours in mass, and so classes, share drivers, which real ones do at best
in part.
"""

from __future__ import annotations

import argparse
import json
import warnings
from time import perf_counter

import numpy as np
import pandas as pd

import stmsi
from stmsi import metrics

try:
    from benchmarks.accuracy.drivers import sections
except ModuleNotFoundError:  # run as a script
    from drivers import sections


CLASS_SIZE = 5


def order_by_drivers(measured: pd.DataFrame) -> list[str]:
    """Metabolites in the order of families whose measured maps resemble one another."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    values = measured.fillna(0).to_numpy()
    correlation = np.nan_to_num(np.corrcoef(values.T))
    return [measured.columns[i] for i in leaves_list(linkage(correlation, "average"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sorted", action="store_true", help="let neighbouring masses share drivers")
    parser.add_argument("--classes", action="store_true", help="tell the network the class, as descriptors")
    parser.add_argument("--query-dropout", type=float, default=0.2)
    parser.add_argument("--options", type=json.loads, default={}, help="further encoder_kwargs as JSON")
    parser.add_argument("--n-folds", type=int, default=5)
    parser.add_argument("--n-genes", type=int, default=600)
    parser.add_argument("--n-nets", type=int, help="networks whose predictions are averaged; as many as by default")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata, drivers = sections(args.n_genes)
    full, presence = adata.obsm["msi"], adata.obsm["msi_presence"]
    features = adata.uns["msi"]["features"].copy()
    predictable = np.array(sorted(drivers["metabolite"].unique()))
    if args.sorted:
        order = order_by_drivers(full[list(predictable)])
        features.loc[order, "mz"] = np.sort(features.loc[order, "mz"])
    in_order = features.loc[predictable, "mz"].sort_values().index
    group = pd.Series(np.arange(len(in_order)) // CLASS_SIZE, in_order)
    descriptors = []
    if args.classes:
        indicators = pd.get_dummies(group, prefix="class", dtype=float)
        descriptors = list(indicators.columns)
        features = features.join(indicators)
    folds = np.array_split(np.random.default_rng(0).permutation(predictable), args.n_folds)
    sample = adata.obs["sample"].astype(str).to_numpy()
    rows = []
    start = perf_counter()
    for fold, left_out in enumerate(folds):
        kept = [m for m in full.columns if m not in left_out]
        adata.obsm["msi"], adata.obsm["msi_presence"] = full[kept], presence[kept]
        adata.uns["msi"]["features"] = features.loc[kept]
        test = sample == sorted(set(sample))[fold % len(set(sample))]
        stmsi.model.HurdleNet.setup_anndata(adata, presence_key="msi_presence")
        options = {"query_dropout": args.query_dropout, "descriptors": descriptors, **args.options}
        model = stmsi.model.HurdleNet(
            adata, encoder="transformer", encoder_kwargs=options, n_nets=args.n_nets or "auto"
        )
        model.train(train_idx=np.flatnonzero(~test), show_progress_bar=False)
        query = adata[test].copy()
        asked = stmsi.experimental.predict_unseen(model, features.loc[left_out], query)
        known = model.predict_intensity(query)
        measured = full[test].where(presence[test] > 0).astype(float)
        seen = [m for m in predictable if m in kept]
        rows += [("seen", m, r) for m, r in zip(seen, metrics.pearson(measured[seen].to_numpy(), known[seen].to_numpy(float)), strict=True)]  # fmt: skip
        for metabolite in left_out:
            truth = np.repeat(measured[[metabolite]].to_numpy(), len(known.columns), axis=1)
            all_known = pd.Series(metrics.pearson(truth, known.to_numpy(float)), known.columns)
            nearest = (features.loc[kept, "mz"] - features.loc[metabolite, "mz"]).abs().idxmin()
            rows.append(("unseen", metabolite, metrics.pearson(truth[:, :1], asked[[metabolite]].to_numpy(float))[0]))
            rows.append(("nearest in m/z", metabolite, all_known[nearest]))
            of_class = [m for m in group.index[group == group[metabolite]] if m in kept] or [nearest]
            standard = (
                known[of_class].astype(float).apply(lambda column: (column - column.mean()) / (column.std() or 1.0))
            )
            mean = standard.mean(axis=1).to_numpy()[:, None]
            rows.append(("mean of its class", metabolite, metrics.pearson(truth[:, :1], mean)[0]))
            rows.append(("best of all, chosen with the answer", metabolite, all_known.max()))
    table = pd.DataFrame(rows, columns=["what", "metabolite", "pearson"])
    summary = table.groupby("what", sort=False)["pearson"].describe()[["count", "mean", "25%", "50%", "75%"]]
    families = "families share masses" if args.sorted else "m/z at random"
    print(f"{families}, query_dropout={args.query_dropout}, {perf_counter() - start:.0f} s")
    print(summary.round(3).to_string())


if __name__ == "__main__":
    main()

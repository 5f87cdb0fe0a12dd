"""Gene attention on simulated sections with known drivers: does it carry the prediction, and does it find them?

    python benchmarks/accuracy/attention.py                                  # 600 genes, seed 11 of the simulator
    python benchmarks/accuracy/attention.py --n-genes 2000 --rng 12 --seeds 5
    python benchmarks/accuracy/attention.py --options '{"n_heads": 4}'
    python benchmarks/accuracy/attention.py --n-genes 300 --size 1600 --others --options '{"n_layers": 1}'   # a small one

Three patients with two sections each and 40 metabolites, the third patient is left out. Scores are the mean correlation inside the
sections of that patient, over metabolites that follow genes: of the transformer, of the same attention made uniform, and of ridge
regressions (``gene_ridge``: own expression and two rings of all genes). Drivers are the share of true drivers among the 20 genes with
the largest attention, and of metabolites with one there. ``--seeds`` repeats simulation and training with further seeds.
"""

from __future__ import annotations

import argparse
import json
import warnings
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stmsi
from stmsi.model._families import resolve

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def sections(n_genes: int, rng: int, size: int = 2600) -> tuple[AnnData, pd.Series]:
    """Spots with MSI, and which metabolites follow genes."""
    sdata = stmsi.datasets.simulate(
        n_patients=3, sections_per_patient=2, n_genes=n_genes, n_metabolites=40, size=size, rng=rng
    )
    stmsi.pp.normalize_msi(sdata, tic_key="tic")
    stmsi.pp.align(sdata, show_progress_bar=False)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.spatial_graph(sdata)
    st = sdata.tables["st"]
    st = st[st.obsm["msi"].notna().all(axis=1).to_numpy()].copy()
    return st, sdata.tables["msi"].var.loc[list(st.obsm["msi"].columns), "predictable"].astype(bool)


def within(test: AnnData, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each metabolite inside each section, averaged over sections."""
    y, sample = test.obsm["msi"].to_numpy(np.float64), test.obs["sample"].astype(str).to_numpy()
    scores = [stmsi.metrics.pearson(y[sample == s], predicted[sample == s]) for s in np.unique(sample)]
    return np.asarray(np.nan_to_num(scores).mean(axis=0))


def fit(train: AnnData, spec: str | dict[str, Any], seed: int) -> tuple[Any, float]:
    """A trained model, which sees neighbours unless its ``"setup"`` says otherwise, and the CPU seconds that it took."""
    cls, params, setup, options = resolve(spec)
    cls.setup_anndata(train, **{"graph_key": "spatial_connectivities", **setup})
    start = process_time()
    model = cls(train, **{"rng": seed, **params})
    model.train(show_progress_bar=False, **options)
    return model, process_time() - start


def evaluate(
    n_genes: int, rng: int, seed: int, options: dict[str, Any], others: list[str], size: int = 2600
) -> dict[str, float]:
    """All figures of one simulation."""
    st, follows = sections(n_genes, rng, size)
    drivers = st.uns["truth"]["drivers"]
    held_out = (st.obs["patient"] == "P3").to_numpy()
    train, test = st[~held_out].copy(), st[held_out].copy()
    model, seconds = fit(train, {"model": "transformer", "encoder_kwargs": options}, seed)
    found = within(test, model.predict(test).to_numpy(np.float64))
    flat = within(test, model._uniform_map(model._query_spots(test, 0.5)))
    present = test.obsm["msi"].to_numpy() > 0
    auroc = stmsi.metrics.auroc(present.astype(float), model.predict_presence(test).to_numpy(np.float64))
    low, high = model.predict_interval(test)
    inside = ((test.obsm["msi"] >= low) & (test.obsm["msi"] <= high)).to_numpy()
    stmsi.tl.attention(train, model, show_progress_bar=False)
    weights = train.varm["msi_attention"].fillna(0)
    ids = [m for m in weights if follows.get(m, False)]
    recall, any_there = [], []
    for m in ids:
        true, top = set(drivers.loc[drivers["metabolite"] == m, "gene"]), set(weights[m].nlargest(20).index)
        recall.append(len(true & top) / len(true))
        any_there.append(bool(true & top))
    maps = np.corrcoef(weights[ids].to_numpy().T)
    at = follows.to_numpy()
    figures = {
        "transformer": found[at].mean(), "uniform": flat[at].mean(), "unpredictable": found[~at].mean(),
        "auroc": np.nanmean(auroc[at]), "coverage": inside.mean(), "drivers": np.mean(recall), "with_driver": np.mean(any_there),
        "map_correlation": maps[np.triu_indices(len(ids), 1)].mean(), "cpu_s": seconds,
    }  # fmt: skip
    for name in others:
        other, _ = fit(train, name, seed)
        figures[name] = within(test, other.predict(test).to_numpy(np.float64))[at].mean()
    return {k: float(v) for k, v in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-genes", type=int, default=600)
    parser.add_argument("--size", type=int, default=2600, help="of each section, in um")
    parser.add_argument("--rng", type=int, default=11, help="first seed of the simulator")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--options", type=json.loads, default={}, help="encoder_kwargs as JSON")
    parser.add_argument("--others", nargs="*", default=["ridge", "gene_ridge"], help="families to compare with")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    stmsi.model.HurdleNet  # noqa: B018  (loads torch before the clock starts)
    rows = []
    for k in range(args.seeds):
        rows.append(evaluate(args.n_genes, args.rng + k, k, args.options, args.others, args.size))
        line = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items())
        print(f"{args.n_genes} genes, seed {args.rng + k}: {line}", flush=True)
    if args.seeds > 1:
        table = pd.DataFrame(rows)
        print(pd.DataFrame({"mean": table.mean(), "sd": table.std()}).round(3).to_string())


if __name__ == "__main__":
    main()

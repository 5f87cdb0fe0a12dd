"""Synthetic sections: do draws look measured, and does a model learn from them?

    python benchmarks/accuracy/synthetic.py                     # both, simulated sections
    python benchmarks/accuracy/synthetic.py --part realism
    python benchmarks/accuracy/synthetic.py --part blocks       # how the two-sample AUC hangs on the blocks held out

Writes ``results/synthetic_realism.csv`` (every section drawn by a ridge model that never saw it, against what was measured
there: two-sample AUC and medians of the other statistics, for draws, for draws without structure in space, for draws spot
by spot and for predictions) and ``results/synthetic_training.csv`` (a ridge model trained on two sections with MSI; on
these and synthetic layers of the third, whose MSI is withheld: a draw, or the prediction itself; and on all three as
measured. The fourth section is the test.) ``--part blocks`` writes ``results/synthetic_blocks.csv``: the two-sample AUC of two
draws and that between them, over three seeds of the simulation, with thirds of a section held out; for the first seed also
with tenths, and with tenths of each section by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from anndata import AnnData

import stmsi
import stmsi.experimental._realism as module
from stmsi.model import HurdleLinear
from stmsi.model.shared._setup import default_setup
from stmsi.tl._models import train_model

try:
    from benchmarks.accuracy.run import RESULTS
    from benchmarks.accuracy.tasks import simulated_sections
except ModuleNotFoundError:  # run as a script
    from run import RESULTS
    from tasks import simulated_sections

SIZE = {"size": 2000.0, "n_metabolites": 30}


def draw(model: HurdleLinear, st: AnnData, seed: int, **options: bool) -> pd.DataFrame:
    """One draw as a table."""
    drawn = stmsi.tl.sample_metabolites(st, model, rng=seed, key_added=None, **options)
    return drawn[0].to_pandas()


LAYERS: dict[str, Callable[[HurdleLinear, AnnData, int], pd.DataFrame]] = {
    "draw": draw,
    "draw, no space": lambda model, st, seed: draw(model, st, seed, spatial=False),
    "model.sample": lambda model, st, seed: model.sample(st, rng=seed)[0].to_pandas(),
    "prediction": lambda model, st, _: model.predict(st),
}


def trained(st: AnnData) -> HurdleLinear:
    """A ridge model of some sections."""
    st = st.copy()
    return train_model(st, "ridge", default_setup(st), show_progress_bar=False)


def compare(st: AnnData) -> pd.DataFrame:
    """Realism of layers drawn for sections that the model did not see."""
    samples = list(st.obs["sample"].cat.categories)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in LAYERS}
    for seed, name in enumerate(samples):
        model = trained(st[st.obs["sample"] != name])
        for layer, make in LAYERS.items():
            parts[layer].append(make(model, st[st.obs["sample"] == name].copy(), seed))
    tables = []
    for layer, frames in parts.items():
        table = stmsi.experimental.realism(st, pd.concat(frames).loc[st.obs_names])
        medians = table.groupby("statistic")[["measured", "synthetic"]].median().reset_index()
        tables.append(medians.assign(layer=layer))
        print(layer, medians.set_index("statistic")["synthetic"].round(3).to_dict(), flush=True)
    return pd.concat(tables, ignore_index=True)[["layer", "statistic", "measured", "synthetic"]]


def blocks(st: AnnData) -> pd.DataFrame:
    """Two-sample AUC of two draws, and between them, for blocks of several sizes."""
    rows: list[dict[str, object]] = []

    def add(kind: str, seed: int, data: AnnData, draws: list[pd.DataFrame], n_blocks: int) -> None:
        for k, frame in enumerate(draws):
            data.obsm[f"draw_{k}"] = frame.loc[data.obs_names]
        # the size of the blocks is no option, as one only has to know that it matters
        with mock.patch.object(module, "_BLOCKS", n_blocks):
            table = stmsi.experimental.realism(data, [f"draw_{k}" for k in range(len(draws))])
        auc = table[table["statistic"] == "auc"]
        rows.append(
            {"blocks": kind, "seed": seed, "between": auc["measured"].iloc[0]}
            | dict(zip(("draw", "second"), auc["synthetic"], strict=True))
        )
        print(rows[-1], flush=True)

    for seed in range(3):
        own = st if seed == 0 else covered(simulated_sections(rng=seed, **SIZE))
        samples = list(own.obs["sample"].cat.categories)
        parts: list[list[pd.DataFrame]] = [[], []]
        for number, name in enumerate(samples):
            model = trained(own[own.obs["sample"] != name])
            for k in range(2):  # one seed for all sections would make the noise of a draw known from its other sections
                parts[k].append(draw(model, own[own.obs["sample"] == name].copy(), 100 * seed + 10 * number + k))
        draws = [pd.concat(p) for p in parts]
        add("thirds of 4 sections", seed, own.copy(), draws, 10)
        if seed == 0:
            add("tenths of 4 sections", seed, own.copy(), draws, 40)
            for name in samples:
                add(f"tenths of {name}", seed, own[own.obs["sample"] == name].copy(), draws, 10)
    return pd.DataFrame(rows)


def covered(st: AnnData) -> AnnData:
    """Spots with MSI."""
    return st[st.obsm["msi"].notna().any(axis=1).to_numpy()].copy()


def learn(st: AnnData) -> pd.DataFrame:
    """Score on each section of models trained with and without a synthetic layer."""
    samples = list(st.obs["sample"].cat.categories)
    tables = []
    for k, test in enumerate(samples):
        *real, withheld = [s for s in np.roll(samples, -k) if s != test]
        base, extra = st[st.obs["sample"].isin(real)].copy(), st[st.obs["sample"] == withheld].copy()
        first = trained(base)
        both = st[st.obs["sample"].isin([*real, withheld])].copy()
        sets = {"real": base, "real, all sections": both}
        for name, layer in (("real + draw", "draw"), ("real + prediction", "prediction")):
            made = both.copy()
            values = LAYERS[layer](first, extra, k)[made.obsm["msi"].columns]
            for key, filled in (("msi", values), ("msi_presence", (values > 0).astype(np.float32))):
                frame = made.obsm[key].copy()
                frame.loc[extra.obs_names] = filled.astype(np.float32)
                made.obsm[key] = frame
            sets[name] = made
        target = st[st.obs["sample"] == test].copy()
        for name, data in sets.items():
            model = first if name == "real" else trained(data)
            own = target.copy()
            stmsi.tl.predict_metabolites(own, model)
            scores = stmsi.tl.evaluate(own)
            tables.append(scores.assign(training=name))
            mean = scores.groupby("stage")[["pearson", "auroc"]].mean()
            print(test, name, mean.round(3).to_dict(), flush=True)
    columns = ["training", "sample", "metabolite", "stage", "pearson", "r2", "mae", "auroc", "auprc", "coverage"]
    return pd.concat(tables, ignore_index=True)[columns]


def main() -> None:
    """Run one part or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["realism", "training", "blocks"], default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    st = covered(simulated_sections(**SIZE))
    for part, run in (("realism", compare), ("training", learn), ("blocks", blocks)):
        if args.part in (None, part):
            run(st).round(4).to_csv(args.out / f"synthetic_{part}.csv", index=False)


if __name__ == "__main__":
    main()

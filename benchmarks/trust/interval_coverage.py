"""Do intervals and draws cover what they say: every family, new patients, noise, shifted sections, missing genes, regions.

    python benchmarks/trust/interval_coverage.py --part families                        # new patients and noise
    python benchmarks/trust/interval_coverage.py --part families --models mlp transformer
    python benchmarks/trust/interval_coverage.py --part shift                           # missing genes, another kit, shallow sections
    python benchmarks/trust/interval_coverage.py --part regions                         # draws: means of regions, two-sample AUC

Four simulated patients with two small sections each (300 genes, 24 metabolites, about 1,350 spots); each patient is predicted by models of the
others. In *noise* all intensities are drawn at random, present in 10 to 100 % of the spots. Results go to
``benchmarks/trust/results/coverage_<part>.csv``, one row per setting.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi.model.ensemble._hurdle_ensemble import AUTO_MEMBERS
from stmsi.tl._models import train_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))
from calibration import Task, measure
from tasks import simulated_sections

RESULTS = Path(__file__).resolve().parent / "results"
SIZE: Mapping[str, Any] = {
    "n_patients": 4, "sections_per_patient": 2, "n_genes": 300, "n_metabolites": 24, "size": 1500
}  # fmt: skip
MODELS: Mapping[str, Any] = {
    "ridge": "ridge",
    "kernel ridge": "kernel_ridge",
    "screened ridge": "screened_ridge",
    "stack of auto without attention": {"model": "ensemble", "members": AUTO_MEMBERS},
    "mlp": "mlp",
    "mlp, one network": {"model": "mlp", "n_nets": 1},
    "transformer": "transformer",
}
SETUP = {"presence_key": "msi_presence"}
TASKS = ("new patients", "noise")
N_DRAWS = 60
SPLITTER = stmsi.model_selection.LeaveOnePatientOut()


def sections(seed: int) -> AnnData:
    """Spots with MSI of simulated sections."""
    st = simulated_sections(rng=seed, **SIZE)
    return st[st.obsm["msi"].notna().any(axis=1).to_numpy()].copy()


def noise(st: AnnData, seed: int) -> AnnData:
    """The same spots with intensities that have nothing to do with anything."""
    rng, out = np.random.default_rng(seed), st.copy()
    shape = st.obsm["msi"].shape
    there = rng.random(shape) < np.linspace(0.1, 1, shape[1])
    values = np.where(there, np.exp(rng.normal(1, 0.5, shape)), 0).astype(np.float32)
    out.obsm["msi"] = pd.DataFrame(values, st.obs_names, st.obsm["msi"].columns)
    out.obsm["msi_presence"] = (out.obsm["msi"] > 0).astype(np.float32)
    return out


def families(seeds: list[int], models: list[str], tasks: Sequence[str] = TASKS) -> Iterator[dict[str, Any]]:
    """Coverage of 90 % intervals and calibration error of presence."""
    for seed in seeds:
        st = sections(seed)
        for task in tasks:
            data = st if task == TASKS[0] else noise(st, seed)
            for name in models:
                table = measure(Task(data, SPLITTER, st.uns["kind"]), MODELS[name])
                mean = table.mean(numeric_only=True)
                low, high = (float(table["coverage_90"].quantile(q)) for q in (0.1, 0.9))
                yield {
                    "task": task, "model": name, "seed": seed, "coverage": mean["coverage_90"],
                    "metabolites_10": low, "metabolites_90": high, "lowest_fold": mean["coverage_90_lowest_fold"],
                    "highest_fold": mean["coverage_90_highest_fold"], "width": mean["width_90"], "ece": mean["ece"],
                    "ece_floor": mean["ece_floor"],
                }  # fmt: skip


def changed(st: AnnData, rng: np.random.Generator) -> Iterator[tuple[str, AnnData]]:
    """The sections as they are, and as they could come from elsewhere."""
    counts = st.X.toarray()

    def of(values: np.ndarray) -> AnnData:
        out = st.copy()
        out.X = sp.csr_matrix(values.astype(np.float32))
        return out

    yield "as measured", st
    yield "a third of the genes missing", st[:, np.sort(rng.permutation(st.n_vars)[st.n_vars // 3 :])].copy()
    yield "genes caught more or less often", of(rng.poisson(counts * np.exp(rng.normal(0, 1, st.n_vars))))
    yield "15 % of the counts", of(rng.binomial(counts.astype(int), 0.15))


def shift(seeds: list[int], models: list[str]) -> Iterator[dict[str, Any]]:
    """Coverage of 90 % intervals with and without their widening."""
    for seed in seeds:
        st = sections(seed)
        for name in models:
            for fold, (train, test) in enumerate(SPLITTER.split(st)):
                model = train_model(st[train].copy(), MODELS[name], SETUP, show_progress_bar=False)
                for what, data in changed(st[test].copy(), np.random.default_rng(fold)):
                    row = {"what": what, "model": name, "seed": seed, "fold": fold}
                    row["ood"] = float(np.median(model._predict_all(data).ood))
                    row["widened"] = covered(model, data)
                    plain = "stmsi.model.shared._block_prediction.doubt_of"
                    with mock.patch(plain, lambda distance, *_: np.zeros(len(distance))):
                        row["plain"] = covered(model, data)
                    yield row


def covered(model: Any, data: AnnData) -> float:
    """Share of the measured intensities inside their 90 % interval."""
    lower, upper = model.predict_interval(data)
    y = data.obsm["msi"][lower.columns]
    return float(((lower <= y) & (y <= upper)).where(y.notna()).mean().mean())


def region_means(values: np.ndarray, domain: np.ndarray) -> dict[str, np.ndarray]:
    """Means of a section, of its domains, and their differences, each (statements, metabolites)."""
    means = [np.nanmean(values[domain == d], axis=0) for d in np.unique(domain) if (domain == d).sum() >= 8]
    pairs = [a - b for i, a in enumerate(means) for b in means[:i]]
    return {"section": np.nanmean(values, axis=0)[None], "domain": np.stack(means), "difference": np.stack(pairs)}


def regions(seeds: list[int], models: list[str]) -> Iterator[dict[str, Any]]:
    """Share of measured means of regions inside 90 % of the draws, and how well draws are told from measurements."""
    for seed in seeds:
        st = sections(seed)
        for name in models:
            found: dict[str, list[float]] = {"section": [], "domain": [], "difference": []}
            drawn = []
            for fold, (train, test) in enumerate(SPLITTER.split(st)):
                model = train_model(st[train].copy(), MODELS[name], SETUP, show_progress_bar=False)
                data = st[test].copy()
                draws = stmsi.tl.sample_metabolites(data, model, N_DRAWS, rng=fold, key_added=None)
                ids = list(model.metabolites)
                drawn.append(pd.DataFrame(draws[0].to_numpy(), data.obs_names, ids))
                y = data.obsm["msi"][ids].mask(data.obsm["msi_presence"][ids] == 0, 0).to_numpy(np.float64)
                values = np.where(np.isnan(y), np.nan, draws.to_numpy())
                for section in data.obs["sample"].unique():
                    own, domain = (data.obs["sample"] == section).to_numpy(), data.obs["domain"].astype(str).to_numpy()
                    each = [region_means(one[own], domain[own]) for one in values]
                    for kind, measured in region_means(y[own], domain[own]).items():
                        low, high = np.quantile(np.stack([one[kind] for one in each]), [0.05, 0.95], axis=0)
                        found[kind].append(float(((low <= measured) & (measured <= high)).mean()))
            table = stmsi.experimental.realism(st, pd.concat(drawn).loc[st.obs_names])
            auc = float(table.loc[table["statistic"] == "auc", "synthetic"].iloc[0])
            yield {"model": name, "seed": seed, **{k: float(np.mean(v)) for k, v in found.items()}, "auc": auc}


PARTS: Mapping[str, Any] = {"families": families, "shift": shift, "regions": regions}


def main() -> None:
    """Run one part, and keep its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="families")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ridge"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="of the part families")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    path = args.out / f"coverage_{args.part}.csv"
    options = {"tasks": args.tasks} if args.part == "families" else {}
    for row in PARTS[args.part](args.seeds, args.models, **options):
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        new = pd.DataFrame([row]).round(4)
        old = pd.read_csv(path) if path.exists() else new[:0]
        key = [c for c in ("task", "what", "model", "seed", "fold") if c in new]
        # a row that is measured again replaces the one before
        kept = old[~old.set_index(key).index.isin(new.set_index(key).index)] if len(old) else old
        pd.concat([kept, new], ignore_index=True).to_csv(path, index=False)


if __name__ == "__main__":
    main()

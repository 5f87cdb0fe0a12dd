"""What single inputs bring, on simulated sections: the signature mask and the knowledge prior.

    python benchmarks/accuracy/ablations.py
    python benchmarks/accuracy/ablations.py --parts prior --seeds 0 1 2 --n-jobs 2

**mask**: the signature mask of the spot's cluster as an input of stage 1, of both stages, of none; and a random mask of the
same size (as many genes for each cluster). Clusters are the simulator's domains, the best clusters that there could be.

**prior**: the genes that drive each metabolite in the simulator as its knowledge prior of stage 2, against as many random
genes and none. *Noisy* priors hold the drivers and three times as many random genes. ``used`` is the share of metabolites whose
estimators took the prior in, trained on all sections.

Every section is predicted by models that saw none of its spots. Writes ``results/ablations.csv``: for each variant and
kind of metabolite the mean over seeds, test sections and metabolites, and the difference to the variant without the input,
with its standard error over seeds x test sections.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import stmsi

try:
    from benchmarks.accuracy.tasks import simulated_sections
except ModuleNotFoundError:  # run as a script
    from tasks import simulated_sections

RESULTS = Path(__file__).parent / "results"
SIZE: dict[str, Any] = {"n_patients": 3, "sections_per_patient": 1, "n_genes": 400, "n_metabolites": 20, "size": 1800}
SCORES = {"presence": ["auroc", "auprc", "f1"], "intensity": ["pearson", "pearson_present"]}
BASE = "none"
SIGNATURE_GENES = 50
RIDGE = {"model": "ridge", "n_components": 64}
MLP = {"model": "mlp", "train": {"max_epochs": 60, "patience": 10}}
DECOYS = 3

Variants = dict[str, dict[str, Any]]


def section_table(seed: int) -> ad.AnnData:
    """Mapped sections of three simulated patients, with both masks and all priors."""
    st = simulated_sections(seed, **SIZE)
    rng = np.random.default_rng(seed)
    genes = st.var_names.to_numpy()
    stmsi.pp.gene_signatures(st, cluster_key="domain", n_genes=SIGNATURE_GENES)
    random = {
        name: rng.choice(genes, SIGNATURE_GENES, replace=False).tolist() for name in st.uns["signature"]["clusters"]
    }
    stmsi.pp.gene_signatures(st, cluster_key="domain", gene_sets=random, key_added="random_signature")

    drivers = st.uns["truth"]["drivers"].groupby("metabolite")["gene"].apply(list).to_dict()
    priors = {
        "drivers": drivers,
        "random": {m: rng.choice(genes, len(own), replace=False).tolist() for m, own in drivers.items()},
        "noisy": {m: [*own, *rng.choice(genes, DECOYS * len(own), replace=False)] for m, own in drivers.items()},
        "noisy_random": {
            m: rng.choice(genes, (1 + DECOYS) * len(own), replace=False).tolist() for m, own in drivers.items()
        },
    }
    for name, prior in priors.items():
        stmsi.pp.knowledge_prior(st, prior, key_added=f"prior_{name}")
    return st


def mask_variants(model: dict[str, Any]) -> Variants:
    """Setups with the mask in no stage, in the first, in both."""
    off = {"signature_key": None, "cluster_key": None}
    on = {"cluster_key": "domain"}
    both = {"signature_stages": ["presence", "intensity"]}
    return {
        BASE: {**model, "setup": off},
        "signature": {**model, "setup": {**on, "signature_key": "signature"}},
        "random": {**model, "setup": {**on, "signature_key": "random_signature"}},
        "signature, both stages": {**model, **both, "setup": {**on, "signature_key": "signature"}},
    }


def prior_variants(model: dict[str, Any]) -> Variants:
    """Setups without a prior, and with each prior used in each way."""
    off = {"signature_key": None, "cluster_key": None, **model.get("setup", {})}
    variants: Variants = {BASE: {**model, "setup": off}}
    for use in ("penalty", "features"):
        for name in ("drivers", "random", "noisy", "noisy_random"):
            setup = {**off, "prior_key": f"prior_{name}"}
            variants[f"{name}, {use}"] = {**model, "prior": use, "setup": setup}
    return variants


def parts() -> dict[tuple[str, str], Variants]:
    """Ablation and model -> its variants."""
    graph = {"graph_key": "spatial_connectivities"}
    return {
        ("mask", "ridge"): mask_variants(RIDGE),
        ("mask", "mlp"): mask_variants(MLP),
        ("prior", "ridge"): prior_variants(RIDGE | {"presence": "prior"}),
        ("prior", "ridge, neighbours"): prior_variants(RIDGE | {"presence": "prior", "setup": graph}),
    }


def share_used(st: ad.AnnData, variants: Variants) -> pd.DataFrame:
    """Share of the metabolites with a prior whose estimators use it, trained on all sections."""
    rows = []
    for name, spec in variants.items():
        key = spec["setup"].get("prior_key")
        if key is None:
            continue
        adata = st.copy()
        stmsi.model.HurdleLinear.setup_anndata(adata, presence_key="msi_presence", **spec["setup"])
        options = {k: v for k, v in spec.items() if k not in ("model", "setup")}
        model = stmsi.model.HurdleLinear(adata, **options)
        model.train(show_progress_bar=False)
        with_genes = adata.varm[key][model.metabolites].any().to_numpy()
        used = float((model.prior_.strength["intensity"][with_genes] > 0).mean())
        rows.append({"variant": name, "stage": "intensity", "used": used})
    return pd.DataFrame(rows)


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Means, and paired differences to the variant without the input with their standard errors."""
    rows = []
    unit = ["seed", "fold"]
    for stage, names in SCORES.items():
        own = scores[scores["stage"] == stage]
        if stage == "presence":  # stage 1 of the prior's models knows no gene
            own = own[own["ablation"] != "prior"]
        for (ablation, model, kind), part in own.groupby(["ablation", "model", "kind"], sort=False):
            per_unit = part.groupby(["variant", *unit], sort=False)[names].mean()
            base = per_unit.loc[BASE]
            for variant in part["variant"].unique():
                here = per_unit.loc[variant]
                gain = here - base
                row = {"ablation": ablation, "model": model, "stage": stage, "kind": kind, "variant": variant}
                for name in names:
                    row[name] = here[name].mean()
                    row[f"{name}_gain"] = gain[name].mean()
                    row[f"{name}_se"] = gain[name].std() / np.sqrt(len(gain))
                rows.append(row | {"units": len(here)})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["mask", "prior"], default=["mask", "prior"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    scores, used = [], []
    for seed in args.seeds:
        st = section_table(seed)
        for (ablation, model), variants in parts().items():
            if ablation not in args.parts:
                continue
            start = perf_counter()
            table = stmsi.tl.cross_validate(
                st, variants, setup={"presence_key": "msi_presence"}, n_jobs=args.n_jobs, show_progress_bar=False
            )
            kind = table["metabolite"].map(st.uns["kind"])
            table = table.rename(columns={"model": "variant"}).assign(seed=seed, ablation=ablation, model=model)
            scores += [table.assign(kind=kind), table.assign(kind="all")]
            if ablation == "prior":
                used.append(share_used(st, variants).assign(seed=seed, ablation=ablation, model=model, kind="all"))
            print(f"seed {seed}, {ablation}, {model}: {st.n_obs} spots, {perf_counter() - start:.0f} s", flush=True)
    summary = summarise(pd.concat(scores, ignore_index=True))
    if used:
        by = ["ablation", "model", "stage", "kind", "variant"]
        summary = summary.merge(pd.concat(used).groupby(by)["used"].mean().reset_index(), how="left", on=by)
    path = args.out / "ablations.csv"
    if path.exists():  # parts that were not run again stay as they were measured
        old = pd.read_csv(path)
        summary = pd.concat([old[~old["ablation"].isin(args.parts)], summary], ignore_index=True)
    summary.round(4).to_csv(path, index=False)
    print(summary[summary["kind"] == "all"].round(3).to_string(index=False))


if __name__ == "__main__":
    main()

"""Sections measured in part, and measured sections denoised, on simulated sections of a patient that the model has not seen.

    python benchmarks/accuracy/partial.py

Three patients with two sections each, 600 genes, 40 metabolites; each patient is left out once, ridge. A part of each section of the
left-out patient is measured: its left or right half, random halves, stripes of 300 um, 30 spots, 4 spots. Scores are of the spots
that were not measured, means over the metabolites that follow genes:

- **model**: :func:`stmsi.tl.predict_metabolites`;
- **offset and scale**: the same with `use_measured`, without positions;
- **use_measured**: the same with positions;
- **kriging**: the measured spots alone, no gene.

Writes ``results/partial.csv``, one row per presence x design x part x method x section: Pearson correlation, R2 (of a metabolite at least
-1), and coverage of the 90 % interval. Rows of the design "denoised" hold ``unexplained``, 1 - r^2 of wholly measured sections against
the log of the noiseless intensity, over the metabolites that follow genes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.spatial import KDTree

import stmsi
from stmsi._core.spatial.kriging import krige
from stmsi.metrics import pearson, r2
from stmsi.model import HurdleLinear

try:
    from benchmarks.accuracy.run import RESULTS
    from benchmarks.accuracy.tasks import simulated_sections
except ModuleNotFoundError:  # run as a script
    from run import RESULTS
    from tasks import simulated_sections

OPTIONS = {"n_patients": 3, "sections_per_patient": 2, "n_genes": 600, "n_metabolites": 40, "size": 2600, "rng": 11}
NEAR, FAR = 300.0, 400.0
PRESENCE = {"any intensity": None, "called": "msi_presence"}


def designs(xy: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each design, and which spots of a section it measures."""
    x, rng = xy[:, 0], np.random.default_rng(0)
    yield "half", x < np.median(x)
    yield "half", x >= np.median(x)
    yield "random half", rng.random(len(x)) < 0.5
    yield "stripes of 300 um", (x - x.min()) // 300 % 2 == 0
    for n in (30, 4):
        yield f"{n} spots", np.isin(np.arange(len(x)), rng.choice(len(x), n, replace=False))


def parts(design: str, distance: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Which of the spots that were not measured are scored together, by their distance to the measured ones."""
    yield "all", np.ones(len(distance), bool)
    if design == "half":
        yield "near", distance < NEAR
        yield "far", distance > FAR


def predictions(section: ad.AnnData, model: HurdleLinear, known: np.ndarray) -> dict[str, ad.AnnData]:
    """The section as each method predicts it."""
    part = section.copy()
    part.obsm["msi"] = part.obsm["msi"].mask(np.tile(~known[:, None], part.obsm["msi"].shape[1]))
    placed = stmsi.tl.predict_metabolites(part, model, use_measured=True, copy=True)
    plain = stmsi.tl.predict_metabolites(part, model, copy=True)
    del part.obsm["spatial"]
    level = stmsi.tl.predict_metabolites(part, model, use_measured=True, copy=True)
    alone = plain.copy()
    values = krige(plain.obsm["msi"].to_numpy(float), plain.obsm["spatial"]).value
    alone.obsm["msi_pred"] = pd.DataFrame(np.maximum(values, 0), alone.obs_names, alone.obsm["msi"].columns)
    return {"model": plain, "offset and scale": level, "use_measured": placed, "kriging": alone}


def partial(section: ad.AnnData, model: HurdleLinear, follows: np.ndarray) -> Iterator[dict[str, Any]]:
    """Scores of each design, part and method."""
    xy, truth = section.obsm["spatial"], section.obsm["msi"].to_numpy(float)
    for design, known in designs(xy):
        distance = KDTree(xy[known]).query(xy[~known])[0]
        for method, made in predictions(section, model, known).items():
            found, *bounds = (made.obsm[f"msi_pred{k}"].to_numpy(float)[~known] for k in ("", "_lower", "_upper"))
            for part, own in parts(design, distance):
                y, p = truth[~known][own], found[own]
                inside = (bounds[0][own] <= y) & (y <= bounds[1][own])
                # where a prediction or a measurement does not vary, a correlation of 0 and no R2
                yield {
                    "design": design, "part": part, "method": method,
                    "pearson": np.nan_to_num(pearson(y, p))[follows].mean(),
                    "r2": np.nanmean(np.maximum(r2(y, p), -1)[follows]),
                    "coverage": np.nan if method == "kriging" else inside.mean(),
                }  # fmt: skip


def denoised(section: ad.AnnData, model: HurdleLinear, follows: np.ndarray) -> Iterator[dict[str, Any]]:
    """1 - r^2 against the truth of the measurement, the mean of a spot and its ring, and what denoising makes of them."""
    y, edges = section.obsm["msi"].to_numpy(float), section.obsp["spatial_connectivities"] > 0
    stmsi.tl.denoise(section, model, key_added="with_self")
    stmsi.tl.denoise(section, model, key_added="without_self", include_self=False)
    maps = {
        "measured": y,
        "mean of the ring": (y + edges @ y) / (1 + np.asarray(edges.sum(axis=1)).reshape(-1, 1)),
        "denoise": section.obsm["with_self"].to_numpy(float),
        "denoise, include_self=False": section.obsm["without_self"].to_numpy(float),
    }
    truth = np.log(section.obsm["truth_intensity"].to_numpy(float))
    for method, values in maps.items():
        unexplained = 1 - np.nan_to_num(pearson(truth, values))[follows] ** 2
        yield {"design": "denoised", "part": "all", "method": method, "unexplained": unexplained.mean()}


def main() -> None:
    """Simulate, leave each patient out, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="partial", help="name of the file in results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    stmsi.settings.verbosity = "error"
    st = simulated_sections(**OPTIONS)
    st = st[st.obsm["msi"].notna().all(axis=1).to_numpy()].copy()
    follows = np.array([st.uns["kind"][m] != "unpredictable" for m in st.obsm["msi"]])
    rows = []
    for presence, key in PRESENCE.items():
        for patient in st.obs["patient"].unique():
            own = (st.obs["patient"] == patient).to_numpy()
            train = st[~own].copy()
            HurdleLinear.setup_anndata(train, presence_key=key)
            model = HurdleLinear(train)
            model.train(show_progress_bar=False)
            for name in st.obs["sample"][own].unique():
                section = st[(st.obs["sample"] == name).to_numpy()].copy()
                scores = [*partial(section, model, follows), *denoised(section, model, follows)]
                rows += [{"presence": presence, "sample": name, **row} for row in scores]
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.round(5).to_csv(RESULTS / f"{args.out}.csv", index=False)
    by = ["presence", "design", "part", "method"]
    columns = ["pearson", "r2", "coverage", "unexplained"]
    print(table.groupby(by, sort=False)[columns].mean().round(3).to_string())


if __name__ == "__main__":
    main()

"""What cleaning MSI does to data whose truth is known: batches, presence, and ions that are noise.

    python benchmarks/accuracy/cleaning.py

Simulated sections (50 metabolites, 2 patients x 2 sections, 4 seeds), so no real measurement. ``batch``: root mean square, over
metabolites and sections, of the mean difference between measured and true log intensity in the section, relative to that
of all sections, where the metabolite is present. ``presence``: share of spots x metabolites that are called as the truth has them, and balanced over present and absent.
``noise``: share of ions without any pattern that are marked as spatially variable. Writes ``results/cleaning.csv``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import stmsi

RESULTS = Path(__file__).parent / "results"


def batches_and_presence(seed: int, normalised: bool) -> list[dict[str, object]]:
    """Residual batch effects by method, and calls of presence by method."""
    sdata = stmsi.datasets.simulate(n_genes=100, rng=seed)
    stmsi.pp.normalize_msi(sdata, **({"tic_key": "tic"} if normalised else {"method": "none"}))
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata)
    st = sdata.tables["st"]
    measured = st.obsm["msi"].to_numpy(float)
    truth = np.log(st.obsm["truth_intensity"].to_numpy(float))
    batch = st.obs["sample"].astype(str).to_numpy()

    def residual(values: np.ndarray) -> float:
        off = np.where(measured > 0, values - truth, np.nan)
        level = pd.DataFrame(off).groupby(batch).mean()
        return float(np.sqrt(np.nanmean((level - level.mean()).to_numpy() ** 2)))

    setting = {"seed": seed, "normalised": normalised}
    rows: list[dict[str, object]] = [setting | {"what": "batch", "method": "none", "value": residual(measured)}]
    for method in ("combat", "quantile"):
        corrected = stmsi.pp.correct_batch(st, method=method, copy=True)
        rows.append(
            setting | {"what": "batch", "method": method, "value": residual(corrected.obsm["msi"].to_numpy(float))}
        )
    there = st.obsm["truth_presence"].to_numpy(bool)
    for method in ("lod", "detected", "majority", "otsu"):
        stmsi.pp.call_presence(sdata, method=method)
        called = st.obsm["msi_presence"].to_numpy()
        known = np.isfinite(called)
        hit = (called == 1) == there
        balanced = np.mean([hit[known & there].mean(), hit[known & ~there].mean()])
        rows.append(setting | {"what": "presence", "method": method, "value": hit[known].mean()})
        rows.append(setting | {"what": "presence, balanced", "method": method, "value": balanced})
    return rows


def noise(seed: int) -> list[dict[str, object]]:
    """Ions of independent pixels, dense and sparse, on two rasters."""
    rng = np.random.default_rng(seed)
    row, col = (np.tile(v.ravel(), 2) for v in np.mgrid[:40, :40])
    rows: list[dict[str, object]] = []
    for sparsity in (0.0, 0.7, 0.97):
        values = rng.lognormal(0, 1.5, (len(row), 500)) * (rng.random((len(row), 500)) >= sparsity)
        obs = pd.DataFrame({"sample": np.repeat(["a", "b"], 1600), "row": row, "col": col}).set_axis(
            map(str, range(len(row)))
        )
        table = AnnData(values.astype(np.float32), obs=obs)
        stmsi.pp.select_spatially_variable(table)
        what = {"seed": seed, "what": f"noise, {sparsity:.0%} zeros"}
        rows.append(what | {"method": "fdr", "value": float(table.var["spatially_variable"].mean())})
        rows.append(what | {"method": "I > 0", "value": float((table.var["moran_i"] > 0).mean())})
    return rows


def main() -> None:
    """Measure, print the means and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("stmsi").setLevel(logging.ERROR)
    stmsi.settings.progress_bar = False
    rows = [row for s in seeds for normalised in (False, True) for row in batches_and_presence(s, normalised)]
    rows += [row for s in seeds for row in noise(s)]
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "cleaning.csv", index=False, float_format="%.4f")
    print(table.groupby(["what", "normalised", "method"], dropna=False)["value"].agg(["mean", "min", "max"]).round(3))


if __name__ == "__main__":
    main()

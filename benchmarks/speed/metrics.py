"""Scoring: seconds for 5,000 spots x 1,000 metabolites, and Moran's I as a ratio to squidpy's in the same run.

asv run --config benchmarks/asv.conf.json --python=same --quick
python benchmarks/speed/metrics.py          # prints the same numbers
"""

from __future__ import annotations

from time import perf_counter, process_time

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi import metrics
from stmsi._core.metrics.maps import near_graph
from stmsi.tl._section_scores import Comparison, score_sections

N_ORACLE = 50
"""Metabolites that squidpy scores, one after the other: enough for the time of each."""


class Metrics:
    """5,000 spots x 1,000 metabolites in one section, 40 % absent."""

    timeout = 600
    shape = (50, 100, 1000)

    def setup(self) -> None:
        n_row, n_col, m = self.shape
        rng = np.random.default_rng(0)
        self.xy = np.argwhere(np.ones((n_row, n_col))).astype(float)
        n = len(self.xy)
        wave = np.sin(self.xy[:, :1] / 8 + rng.random(m) * 6) * np.cos(self.xy[:, 1:] / 11)
        self.truth = np.exp(wave + 0.5 * rng.normal(size=(n, m))) * (rng.random((n, m)) < 0.6)
        self.pred = np.maximum(np.exp(wave) - 0.4, 0)
        self.present = (self.truth > 0).astype(float)
        self.probability = 1 / (1 + np.exp(-self.pred + rng.normal(size=(n, m))))
        self.bounds = self.pred - 1, self.pred + 1
        self.genes = rng.normal(size=(n, 500))
        self.region = rng.integers(0, 8, n).astype(str)
        self.graph = near_graph(self.xy)

    def table(self, *, maps: bool) -> pd.DataFrame:
        ids = [f"m{i}" for i in range(self.truth.shape[1])]
        sample = np.full(len(self.xy), "s", object)
        found = Comparison(
            ids, sample, self.truth, self.present, self.pred, self.probability, self.truth.mean(axis=0), self.bounds,
            xy=self.xy if maps else None,
        )  # fmt: skip
        return score_sections(found)

    def structure(self) -> None:
        metrics.correlation_preserved(self.truth, self.pred)
        metrics.gene_correlation_preserved(self.genes, self.truth, self.pred)
        metrics.group_agreement(self.truth, self.pred, self.region)
        metrics.differential_agreement(self.truth, self.pred, self.region)

    def moran(self) -> dict[str, float]:
        import squidpy as sq

        adata = AnnData(self.truth[:, :N_ORACLE], obsp={"spatial_connectivities": self.graph})
        options = {"mode": "moran", "copy": True, "n_jobs": 1, "show_progress_bar": False}
        sq.gr.spatial_autocorr(adata[:, :2].copy(), **options)  # compiles
        start = process_time()
        oracle = sq.gr.spatial_autocorr(adata, **options)["I"].reindex(adata.var_names).to_numpy()
        squidpy = (process_time() - start) / N_ORACLE  # of the processor: both use one core
        start = process_time()
        ours = metrics.moran_i(self.truth, self.graph)
        own = (process_time() - start) / len(ours)
        return {
            "squidpy, ms each": 1e3 * squidpy,
            "stmsi, ms each": 1e3 * own,
            "speedup": squidpy / own,
            "largest difference": float(np.abs(ours[:N_ORACLE] - oracle).max()),
        }

    def time_both_stages(self) -> None:
        self.table(maps=False)

    def time_both_stages_and_maps(self) -> None:
        self.table(maps=True)

    def time_structure(self) -> None:
        self.structure()

    def track_speedup_of_moran_over_squidpy(self) -> float:
        return self.moran()["speedup"]


if __name__ == "__main__":
    suite = Metrics()
    suite.setup()
    print(Metrics.__doc__)
    for name in ("both_stages", "both_stages_and_maps", "structure"):
        start, cpu = perf_counter(), process_time()
        getattr(suite, f"time_{name}")()
        print(f"  {name}: {perf_counter() - start:.2f} s, {process_time() - cpu:.2f} s of the processor")
    for name, value in suite.moran().items():
        print(f"  Moran's I, {name}: {value:.3g}")

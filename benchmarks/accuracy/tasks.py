"""Tasks with fixed splits: the simulator, and stand-ins on real ST whose second modality is not MSI.

No public paired ST + MSI section is small enough to come along; :func:`paired` reads those on your disk. A stand-in shows that the functions work on real
expression data and how models compare there; it is **not** evidence of skill on metabolites.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

import stmsi

DATA = Path(os.environ.get("STMSI_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Task:
    """Data, what they are, and how they are split."""

    name: str
    kind: str
    adata: ad.AnnData
    splitter: Any


def _with_graph(adata: ad.AnnData) -> ad.AnnData:
    """Neighbours on the square array of the first ST slides: the 8 around each spot (fewer where spots are missing)."""
    stmsi.pp.spatial_graph(adata, n_neighs=8)
    return adata


def simulated_sections(rng: int = 0, **options: Any) -> ad.AnnData:
    """Spots of simulated sections, aligned and mapped, with presence and graph; ``uns["kind"]``: of each metabolite."""
    sdata = stmsi.datasets.simulate(rng=rng, **options)
    stmsi.pp.normalize_msi(sdata, tic_key="tic")
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.spatial_graph(sdata)
    st = sdata.tables["st"]
    st.uns["kind"] = sdata.tables["msi"].var["kind"].astype(str).to_dict()
    return st


def simulator() -> Task:
    """Simulated sections with known truth, leave one section out."""
    return Task("simulator", "simulated", simulated_sections(), stmsi.model_selection.LeaveOneSampleOut())


def her2st_histology() -> Task:
    """Breast-tumour ST -> 14 histology features measured at the same spots (6 sections, 2 patients)."""
    he = pd.read_csv(DATA / "her2st" / "he_features_6sections.csv", index_col="spot")
    rna = ad.read_h5ad(DATA / "her2st" / "her2st_36_sections.h5ad")[he.index].copy()
    features = he.drop(columns=["section", "patient"]).clip(lower=0).astype(np.float32)
    rna.obsm["msi"] = features
    rna.obs["sample"] = rna.obs["section"].astype(str)
    kind = "stand-in: histology features, not metabolites"
    return Task("her2st_histology", kind, _with_graph(rna), stmsi.model_selection.LeaveOneSampleOut())


def her2st_panel(n: int = 100, seed: int = 0, min_umi: int = 500) -> Task:
    """Genes -> a hidden random panel of genes detected in 15 to 80 % of spots (36 sections, 8 patients)."""
    rna = ad.read_h5ad(DATA / "her2st" / "her2st_36_sections.h5ad")
    rna = rna[np.asarray(rna.X.sum(axis=1)).ravel() >= min_umi].copy()
    detected = np.asarray((rna.X > 0).mean(axis=0)).ravel()
    hidden = np.random.default_rng(seed).choice(np.flatnonzero((detected > 0.15) & (detected < 0.80)), n, replace=False)
    is_hidden = np.isin(np.arange(rna.n_vars), hidden)
    rest, panel = rna[:, ~is_hidden].copy(), rna[:, is_hidden]
    target = np.log1p(panel.X.toarray() / np.asarray(rest.X.sum(axis=1)) * 1e4)
    rest.obsm["msi"] = pd.DataFrame(target.astype(np.float32), rest.obs_names, panel.var_names)
    rest.obs["sample"] = rest.obs["section"].astype(str)
    return Task(
        "her2st_panel", "stand-in: RNA -> hidden RNA", _with_graph(rest), stmsi.model_selection.LeaveOnePatientOut()
    )


def _folds_by(label: pd.Series) -> FixedFolds:
    """Leave one label out."""
    values = label.to_numpy(str)
    return FixedFolds([np.flatnonzero(values == name) for name in np.unique(values)])


@dataclass(frozen=True)
class FixedFolds:
    """Test spots of each fold; all others are trained on."""

    tests: list[np.ndarray]

    def split(self, adata: ad.AnnData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Training and test spots of each fold."""
        for test in self.tests:
            yield np.setdiff1d(np.arange(adata.n_obs), test), test


def nci60(repeats: int = 2) -> Task:
    """Bulk RNA (log ratios, negative values included) -> 269 metabolites of 20 cell lines; five folds, repeated."""
    x, m = (pd.read_csv(DATA / "nci60" / f, index_col=0) for f in ("paired_mrna.csv.gz", "paired_metab.csv.gz"))
    m = m.loc[m.std(axis=1) > 1e-6, x.columns]
    low = m.min(axis=1)
    floor = m.eq(low, axis=0).sum(axis=1) >= 2  # a minimum that is tied stands for "not detected"
    y = m.sub(low, axis=0).add((~floor).astype(float), axis=0).T
    x = x[~x.index.duplicated()].T
    lines = ad.AnnData(x.to_numpy("f4"), obs=pd.DataFrame(index=x.index), var=pd.DataFrame(index=x.columns.astype(str)))
    lines.obs["sample"] = lines.obs_names
    lines.obsm["msi"] = y.loc[lines.obs_names].astype(np.float32)
    lines.uns["setup"] = {"input": "log"}
    rng, tests = np.random.default_rng(0), []
    for _ in range(repeats):
        fold = rng.permutation(np.arange(lines.n_obs) % 5)
        tests += [np.flatnonzero(fold == k) for k in range(5)]
    return Task("nci60", "bulk cell lines, real RNA -> metabolites, n = 20", lines, FixedFolds(tests))


def ccle(least: int = 10) -> Task:
    """Bulk RNA of 50 genes (log2) -> 225 metabolites (log10) of 873 cell lines; leave one lineage out."""
    x, y = (
        pd.read_csv(DATA / "ccle" / f, index_col=0)
        for f in ("rna_microarray_50genes.csv.gz", "metabolites_log10.csv.gz")
    )
    lineage = pd.read_csv(DATA / "ccle" / "lines.csv", index_col=0)["lineage"].loc[x.index]
    kept = lineage.map(lineage.value_counts()) >= least
    lines = ad.AnnData(
        x[kept].to_numpy("f4"),
        obs=pd.DataFrame({"sample": lineage[kept]}),
        var=pd.DataFrame(index=x.columns.astype(str)),
    )
    lines.obsm["msi"] = y.loc[lines.obs_names].astype(np.float32)
    lines.uns["setup"] = {"input": "log"}
    return Task("ccle", "bulk cell lines, real RNA -> metabolites, 50 genes", lines, _folds_by(lines.obs["sample"]))


def simulated_patients(*, dense: float = 0.0) -> Task:
    """Three simulated patients of two sections, leave one patient out; presence is an intensity above 0."""
    st = simulated_sections(
        rng=11, n_patients=3, sections_per_patient=2, n_genes=600, n_metabolites=40, size=2600, dense=dense
    )
    st.uns["setup"] = {}
    name = "simulator_patients_dense" if dense else "simulator_patients"
    return Task(name, "simulated", st, stmsi.model_selection.LeaveOnePatientOut())


def _in_context(task: Task) -> Task:
    """With the neighbourhood graph for every model."""
    task.adata.uns["setup"] = {"graph_key": "spatial_connectivities"}
    return task


READERS: dict[str, Callable[..., SpatialData]] = {"sma": stmsi.datasets.read_sma, "desium": stmsi.datasets.read_desium}


def paired(deposit: str, path: Path, landmarks: Path | None = None, **options: Any) -> Task:
    """Measured metabolites: the sections of a published deposit on disk.

    Parameters
    ----------
    deposit
        One of `READERS`.
    path
        Its files or folder.
    landmarks
        File of landmarks for :func:`stmsi.pp.align`; `None`: sections that are not aligned are aligned without any.
    options
        For the reader.
    """
    sdata = READERS[deposit](path, **options)
    stmsi.pp.normalize_msi(sdata)
    stmsi.pp.filter_metabolites(sdata, min_prevalence=0.05)
    if landmarks is not None:
        stmsi.pp.align(sdata, landmarks=landmarks)
    elif not stmsi.pp.alignment_report(sdata)["aligned"].all():
        stmsi.pp.align(sdata)
    print(stmsi.pp.alignment_report(sdata).T.to_string())
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.spatial_graph(sdata)
    st = sdata.tables["st"]
    return Task(deposit, "measured metabolites", st, _splitter(st))


def _splitter(st: ad.AnnData) -> Any:
    """By patient where there are three, else by section, and within a single section by blocks."""
    measured = st.obs[st.obsm["msi"].notna().any(axis=1).to_numpy()]
    if "patient" in measured and measured["patient"].nunique() > 2:
        return stmsi.model_selection.LeaveOnePatientOut()
    if measured["sample"].nunique() > 1:
        return stmsi.model_selection.LeaveOneSampleOut()
    return stmsi.model_selection.SpatialBlockKFold()


TASKS = {"simulator": simulator, "her2st_histology": her2st_histology, "her2st_panel": her2st_panel}
PREDICTOR_TASKS: dict[str, Callable[[], Task]] = {
    "her2st_histology": lambda: _in_context(her2st_histology()),
    "her2st_panel": lambda: _in_context(her2st_panel()),
    "nci60": nci60,
    "ccle": ccle,
    "simulator_patients": lambda: _in_context(simulated_patients()),
    "simulator_patients_dense": lambda: _in_context(simulated_patients(dense=2 / 3)),
}
"""What the predictor is measured on, with the fields of every model in ``uns["setup"]``."""


def tasks(names: list[str]) -> Iterator[Task]:
    """The tasks asked for; those whose data are not there are named and left out."""
    for name in names:
        if name != "simulator" and not DATA.is_dir():
            print(f"{name}: no data at {DATA}; set STMSI_DATA. Left out.")
            continue
        yield TASKS[name]()

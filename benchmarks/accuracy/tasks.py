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


def tasks(names: list[str]) -> Iterator[Task]:
    """The tasks asked for; those whose data are not there are named and left out."""
    for name in names:
        if name != "simulator" and not DATA.is_dir():
            print(f"{name}: no data at {DATA}; set STMSI_DATA. Left out.")
            continue
        yield TASKS[name]()

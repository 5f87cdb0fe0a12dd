"""What a linear member is for: without it, or with it switched off, metabolites that need it are predicted worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi.model import HurdleKernel, HurdleScreened
from stmsi.model.linear._context_kernels import mean_over_neighbours

SIDE, GENES = 14, 60
SECTIONS = ("s0", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def sections() -> AnnData:
    """Four sections of one grid. A metabolite each spreads from a gene, bends with a programme, or follows three genes."""
    rng = np.random.default_rng(0)
    n = SIDE * SIDE * len(SECTIONS)
    sample = np.repeat(SECTIONS, SIDE * SIDE)
    xy = np.tile(np.column_stack(np.divmod(np.arange(SIDE * SIDE), SIDE)), (len(SECTIONS), 1)) * 100.0
    near = (np.abs(xy[:, None] - xy[None]).sum(axis=2) == 100) & (sample[:, None] == sample)
    graph = sp.csr_matrix(near.astype(np.float32))
    z = rng.normal(size=(n, GENES))
    programme = rng.normal(size=n)
    z[:, 52:] = 0.3 * z[:, 52:] + programme[:, None]
    counts = rng.poisson(np.exp(2.5 + 0.7 * z)).astype(np.float32)
    around = mean_over_neighbours(graph) @ z
    value = np.column_stack([
        2 * around[:, 0],
        programme**2,
        z[:, 3] - z[:, 4] + z[:, 5],
    ]) + 0.5 * rng.normal(size=(n, 3))  # fmt: skip
    obs = pd.DataFrame({"sample": sample}, index=[f"{s}_{i}" for i, s in enumerate(sample)])
    adata = AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"Gene{g}" for g in range(GENES)]))
    adata.obsm["msi"] = pd.DataFrame(
        (value - value.min()).astype(np.float32), index=obs.index, columns=["spreads", "bends", "few"]
    )
    adata.obsm["spatial"], adata.obsp["spatial_connectivities"] = xy, graph
    return adata


def score(
    sections: AnnData, cls: Any, *, graph: bool = True, prior: dict[str, list[str]] | None = None, **options: Any
):
    """Correlation in the last section of a model trained on the others, by metabolite."""
    train, test = (sections[sections.obs["sample"].isin(s)].copy() for s in (SECTIONS[:-1], SECTIONS[-1:]))
    fields: dict[str, Any] = {"graph_key": "spatial_connectivities"} if graph else {}
    if prior is not None:
        stmsi.pp.knowledge_prior(train, prior)
        fields["prior_key"] = "msi_prior"
    cls.setup_anndata(train, **fields)
    model = cls(train, presence="prior", **options)
    model.train()
    predicted = model.predict(test)
    return predicted.corrwith(test.obsm["msi"][predicted.columns])


def test_rings_carry_what_spreads(sections):
    with_rings, without = (score(sections, HurdleKernel, kernel="genes", graph=graph) for graph in (True, False))
    assert with_rings["spreads"] > 0.6
    assert without["spreads"] < 0.3
    assert with_rings["few"] == pytest.approx(without["few"], abs=0.08)


def test_the_gaussian_kernel_carries_what_bends(sections):
    gaussian = score(sections, HurdleKernel, kernel="components", n_components=10, graph=False)
    linear = score(sections, HurdleKernel, kernel="genes", graph=False)
    assert gaussian["bends"] > linear["bends"] + 0.2


def test_known_genes_pay_and_others_do_not(sections):
    drivers = {"few": ["Gene3", "Gene4", "Gene5"]}
    right, wrong = (
        score(sections, HurdleScreened, genes="prior", prior=prior)["few"]
        for prior in (drivers, {"few": ["Gene20", "Gene21", "Gene22"]})
    )
    assert right > score(sections, HurdleKernel, kernel="genes")["few"] + 0.01
    assert wrong < 0.2

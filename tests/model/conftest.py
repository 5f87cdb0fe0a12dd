"""Small sections for tests of models: quick to train on, and with a signal that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

MakeSections = Callable[..., AnnData]


def small_sections(
    sizes: Sequence[int] = (30, 30, 30),
    *,
    genes: int = 30,
    log: bool = False,
    positions: bool = True,
    graph: bool = True,
    noise: float = 0.5,
    seed: int = 0,
) -> AnnData:
    """Sections of spots on a square grid, with counts that vary smoothly and four metabolites.

    Genes 0 and 1 drive ``"first"``, genes 2 and 3 ``"second"`` and genes 4 and 5 ``"third"``, each absent where they are low;
    ``"always"`` follows gene 6 and is present everywhere. With ``log=True`` the expression is log ratios, negative ones
    among them.
    """
    rng = np.random.default_rng(seed)
    sample = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    width = [int(np.ceil(np.sqrt(n))) for n in sizes]
    xy = np.vstack([np.column_stack(np.divmod(np.arange(n), w)) for n, w in zip(sizes, width, strict=True)]) * 100.0
    phase = rng.uniform(0, 6, (genes, 3))
    wave = np.sin(xy @ (rng.normal(size=(2, genes)) / 150) + phase[:, 0]) + 0.5 * rng.normal(size=(len(xy), genes))
    counts = rng.poisson(np.exp(1.5 + 0.8 * wave)).astype(np.float32)
    X = (wave - wave.mean(axis=0)).astype(np.float32) if log else counts
    z = X if log else np.log1p(X / np.maximum(X.sum(axis=1, keepdims=True), 1) * 100)
    z = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-6)
    drive = np.column_stack([z[:, [2 * m, 2 * m + 1]].sum(axis=1) for m in range(3)])
    value = np.maximum(drive + noise * rng.normal(size=drive.shape) + 1, 0)
    value = np.column_stack([value, 4 + z[:, 6] + noise * np.clip(rng.normal(size=len(z)), -2, 2)])
    obs = pd.DataFrame({"sample": sample}, index=[f"{s}_{i}" for i, s in enumerate(sample)])
    var = pd.DataFrame(index=[f"Gene{g}" for g in range(genes)])
    adata = AnnData(sp.csr_matrix(X), obs=obs, var=var)
    columns = ["first", "second", "third", "always"]
    adata.obsm["msi"] = pd.DataFrame(np.maximum(value, 0).astype(np.float32), index=obs.index, columns=columns)
    if positions:
        adata.obsm["spatial"] = xy
    if graph:
        near = np.abs(xy[:, None] - xy[None]).sum(axis=2) == 100
        adata.obsp["spatial_connectivities"] = sp.csr_matrix((near & (sample[:, None] == sample)).astype(np.float32))
    return adata


@pytest.fixture(scope="session")
def make_sections() -> MakeSections:
    """Makes small sections; see :func:`small_sections`."""
    return small_sections

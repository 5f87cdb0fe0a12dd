"""HurdleKernel; what it shares with other one-stage models is in test_one_stage.py."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stmsi.model import HurdleKernel
from stmsi.model.linear._context_kernels import ComponentKernel, GeneKernel


def fit(adata, fields=None, **params):
    HurdleKernel.setup_anndata(adata, **(fields or {}))
    model = HurdleKernel(adata, **{"n_folds": 3, **params})
    model.train()
    return model


def test_kernels_by_name(make_sections):
    data = make_sections()
    HurdleKernel.setup_anndata(data)
    assert HurdleKernel(data).kernel == "components"
    assert isinstance(fit(data, kernel="genes").kernel_, GeneKernel)
    assert isinstance(fit(data, kernel="components").kernel_, ComponentKernel)
    with pytest.raises(ValueError, match=r"kernel='gene' is not known.*Did you mean 'genes'"):
        HurdleKernel(data, kernel="gene")


@pytest.mark.parametrize("name", ["n_components", "n_landmarks"])
def test_sizes_are_at_least_1(make_sections, name):
    data = make_sections()
    HurdleKernel.setup_anndata(data)
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        HurdleKernel(data, **{name: 0})


def test_options_reach_the_kernel(make_sections):
    data = make_sections()
    genes = fit(data, kernel="genes", unit_variance=True, n_landmarks=20, rng=3).kernel_
    assert (genes.unit_variance, genes.n_landmarks, genes.seed) == (True, 20, 3)
    components = fit(data, kernel="components", n_components=4, n_landmarks=25).kernel_
    assert components.landmarks.shape == (25, 4)


def test_few_landmarks_are_close_to_all(make_sections):
    data = make_sections([60, 60, 60])
    whole, part = (fit(data.copy(), kernel="genes", n_landmarks=n).predict() for n in (1500, 90))
    r = [np.corrcoef(whole[m], part[m])[0, 1] for m in whole]
    assert min(r) > 0.9


def test_a_gene_kernel_has_a_weight_for_each_gene_and_ring(make_sections):
    data = make_sections()
    model = fit(data, {"graph_key": "spatial_connectivities"}, kernel="genes", presence="prior", unit_variance=True)
    own = np.abs(model.kernel_.weights[0] * model.kernel_.scale[:, None])
    assert model.kernel_.weights.shape == (3, len(model.kernel_.genes), 4)
    drivers = [np.isin(model.kernel_.genes, [2 * m, 2 * m + 1]) for m in range(3)]
    for m, own_genes in enumerate(drivers):
        assert own[own_genes, m].mean() > 2 * own[~own_genes, m].mean()


def test_what_the_setup_names_beside_genes_reaches_the_map(make_sections):
    data = make_sections()
    rng = np.random.default_rng(0)
    data.obs["dose"] = rng.normal(50, 10, data.n_obs)
    data.obsm["he"] = pd.DataFrame({"gland": rng.normal(size=data.n_obs)}, index=data.obs_names)
    gland = data.obsm["he"]["gland"].to_numpy()
    data.obsm["msi"] = data.obsm["msi"].assign(
        dose=(data.obs["dose"] / 10).astype(np.float32), gland=(5 + gland).astype(np.float32)
    )
    model = fit(data, {"covariate_keys": ["dose"], "feature_key": "he"}, kernel="genes")
    predicted = model.predict()
    assert np.corrcoef(predicted["dose"], data.obs["dose"])[0, 1] > 0.9
    assert np.corrcoef(predicted["gland"], gland)[0, 1] > 0.9

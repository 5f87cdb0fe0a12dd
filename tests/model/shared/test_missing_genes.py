"""Missing genes count by what the model makes of them."""

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from stmsi.model import HurdleEnsemble, HurdleKernel, HurdleLinear, HurdleScreened

GENES = 120
FAMILIES = {
    "ridge": (HurdleLinear, {"intensity": "ridge", "n_top_genes": 30}),
    "gene_kernel": (HurdleKernel, {"kernel": "genes"}),
    "component_kernel": (HurdleKernel, {"kernel": "components"}),
    "screened": (HurdleScreened, {}),
    "ensemble": (HurdleEnsemble, {"members": ["mean", "ridge"]}),
}


def spots(n: int, seed: int) -> AnnData:
    """Genes that follow three programmes, weak ones at the end."""
    rng = np.random.default_rng(seed)
    loads = np.random.default_rng(0).gamma(1, 1, (3, GENES)) * np.linspace(2, 0.2, GENES)
    factor = np.exp(rng.normal(size=(n, 3)))
    adata = AnnData(sp.csr_matrix(rng.poisson(factor @ loads), dtype=np.float32))
    adata.var_names = [f"G{i}" for i in range(GENES)]
    adata.obs_names = [f"s{seed}_{i}" for i in range(n)]
    adata.obs["sample"] = np.where(np.arange(n) < n // 2, "a", "b")
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(n), 20)) * 100.0
    level = np.maximum(factor[:, :2] - 0.5, 0)
    adata.obsm["msi"] = pd.DataFrame(level.astype(np.float32), index=adata.obs_names, columns=["m1", "m2"])
    return adata


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    kind, options = FAMILIES[request.param]
    train = spots(240, 1)
    kind.setup_anndata(train)
    model = kind(train, **options)
    model.train(show_progress_bar=False)
    return model


@pytest.fixture
def query() -> AnnData:
    return spots(120, 2)


def without(query: AnnData, genes: np.ndarray) -> AnnData:
    return query[:, np.setdiff1d(np.arange(GENES), genes)].copy()


def test_weights_are_shares_of_the_genes_used(model):
    weights = model._gene_weights()
    assert weights.shape == (GENES,)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert not weights[np.setdiff1d(np.arange(GENES), model._used_genes())].any()


def test_exactly_the_genes_that_count_are_enough(model, query, caplog):
    used = np.flatnonzero(model._gene_weights() > 0)
    with caplog.at_level(logging.WARNING, "stmsi"):
        found = model._predict_all(query[:, used].copy(), min_genes=1)
    assert found.missing_genes == 0
    assert "missing" not in caplog.text


def test_without_a_gene_that_counts_nothing_is_predicted(query):
    kind, options = FAMILIES["ridge"]
    train = spots(240, 1)
    kind.setup_anndata(train)
    model = kind(train, **options)
    model.train(show_progress_bar=False)
    for floor in (0, 0.1):
        with pytest.raises(ValueError, match=r"Only 0\.0% of the 30 training genes are in the data \(0 of those"):
            model.predict(without(query, model._used_genes()), min_genes=floor)


def test_the_share_is_that_of_the_weights(model, query, caplog):
    heavy = np.argsort(-model._gene_weights())[:5]
    with caplog.at_level(logging.WARNING, "stmsi"):
        found = model._predict_all(without(query, heavy))
    share = model._gene_weights()[heavy].sum()
    assert found.missing_genes == pytest.approx(share)
    assert f"{100 * share:.1f} % of the training genes are missing and were imputed" in caplog.text
    with pytest.raises(ValueError, match="training genes are in the data"):
        model.predict(without(query, heavy), min_genes=1 - share + 0.01)
    model.predict(without(query, heavy), min_genes=1 - share - 0.01)


@pytest.mark.once
@pytest.mark.parametrize("part", ["even", "odd", "strong", "weak", "random"])
def test_the_score_rises_with_what_is_imputed(model, query, part):
    strength = np.argsort(-model._gene_weights())
    random = np.random.default_rng(0).permutation(GENES)
    gone = {
        "even": np.arange(0, GENES, 2), "odd": np.arange(1, GENES, 2), "strong": strength[:20], "weak": strength[20:],
        "random": random[:80],
    }[part]  # fmt: skip
    less, more = (model._predict_all(without(query, g), min_genes=0) for g in (gone[: len(gone) // 2], gone))
    full = model._predict_all(query)
    assert np.median(full.ood) < np.median(more.ood)
    assert np.median(less.ood) < np.median(more.ood) * 1.1
    assert np.isfinite(more.ood).all()


def test_genes_that_the_model_does_not_use_change_no_score_of_the_components(query):
    kind, options = FAMILIES["ridge"]
    train = spots(240, 1)
    kind.setup_anndata(train)
    model = kind(train, **options)
    model.train(show_progress_bar=False)
    unused = np.setdiff1d(np.arange(GENES), model._used_genes())
    found, full = model._predict_all(without(query, unused)), model._predict_all(query)
    assert found.missing_genes == 0
    np.testing.assert_allclose(np.median(found.ood), np.median(full.ood), rtol=0.35)

"""HurdleScreened; what it shares with other one-stage models is in test_one_stage.py."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi.model import HurdleScreened, load

DRIVERS = {"first": ["Gene0", "Gene1"], "second": ["Gene2", "Gene3"], "third": ["Gene4", "Gene5"], "always": ["Gene6"]}


def fit(adata, fields=None, **params):
    HurdleScreened.setup_anndata(adata, **(fields or {}))
    model = HurdleScreened(adata, **{"n_folds": 3, **params})
    model.train()
    return model


@pytest.fixture
def data(make_sections):
    return make_sections([40, 40, 40], genes=60, graph=False)


@pytest.fixture
def known(data):
    """The same with the drivers of two metabolites as prior."""
    table = pd.DataFrame(
        [(m, gene) for m in ("first", "second") for gene in DRIVERS[m]], columns=["metabolite", "gene"]
    )
    stmsi.pp.knowledge_prior(data, table)
    return data


def test_drivers_are_found(data):
    model = fit(data, presence="prior")
    ridge = model.ridge_
    names = data.var_names[ridge.genes]
    size = np.zeros((len(names), 4))
    size[ridge.gene, ridge.metabolite] = np.abs(ridge.weights[0])
    weights = pd.DataFrame(size, index=names, columns=model.metabolites)
    for metabolite, genes in DRIVERS.items():
        assert set(genes) <= set(weights.index[weights[metabolite] > 0])
        assert set(weights[metabolite].nlargest(len(genes)).index) == set(genes)
    assert (ridge.size <= 30).all()


def test_few_drivers_of_many_genes_are_predicted_in_a_new_section(make_sections):
    data = make_sections([50, 50, 50], genes=200, graph=False, noise=0.3)
    new = make_sections([50, 50, 50], genes=200, graph=False, noise=0.3)[100:].copy()
    model = fit(data[:100].copy(), presence="prior")
    predicted = model.predict(new)
    r = [np.corrcoef(predicted[m], new.obsm["msi"][m])[0, 1] for m in DRIVERS]
    assert min(r) > 0.5


def test_a_prior_names_the_genes(known, caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit(known, {"prior_key": "msi_prior"}, genes="prior", presence="prior")
    assert "names no gene of the data are left out: 'third', 'always'" in caplog.text
    assert model.metabolites == ["first", "second"] == list(model.state.feature_table.index)
    assert list(known.var_names[model.ridge_.genes]) == ["Gene0", "Gene1", "Gene2", "Gene3"]
    assert model.ridge_.size.tolist() == [2, 2]
    assert (model.state.feature_table["held_out_pearson"] > 0.6).all()
    assert model.ridge_.metabolite.tolist() == [0, 0, 1, 1]
    assert model.ridge_.gene.tolist() == [0, 1, 2, 3]


def test_a_model_on_a_prior_is_saved(known, tmp_path):
    model = fit(known, {"prior_key": "msi_prior"}, genes="prior")
    model.save(tmp_path / "model")
    query = known[:40].copy()
    pd.testing.assert_frame_equal(load(tmp_path / "model").predict(query), model.predict(query), check_exact=True)


def test_a_prior_is_needed_and_read_by_the_prior_model_alone(known, data):
    HurdleScreened.setup_anndata(data)
    with pytest.raises(ValueError, match=r"genes='prior' needs a knowledge prior: call stmsi\.pp\.knowledge_prior"):
        HurdleScreened(data, genes="prior")
    assert HurdleScreened._default_fields(known, {"genes": "prior"}) == {"prior_key": "msi_prior"}
    assert HurdleScreened._default_fields(known, {"genes": "screened"}) == {}
    with pytest.raises(ValueError, match="genes='some' is not known"):
        HurdleScreened(data, genes="some")


def test_a_prior_of_genes_that_do_not_vary_is_refused(known):
    X = known.X.tolil()
    X[:, :4] = 0
    known.X = X.tocsr()
    with pytest.raises(ValueError, match=r"names no gene that is seen in 3 % of the training spots"):
        fit(known, {"prior_key": "msi_prior"}, genes="prior")


def test_fewer_genes_than_the_smallest_set(make_sections):
    data = make_sections(genes=7)
    model = fit(data, {"graph_key": "spatial_connectivities"})
    assert (model.ridge_.size == 7).all()
    assert np.isfinite(model.predict().to_numpy()).all()


def test_covariates_and_features_stand_beside_the_genes(make_sections, tmp_path):
    """A metabolite that follows a covariate and no gene is predicted with it only; saved models keep its weight."""
    data = make_sections([60, 60, 60], genes=30, graph=False)
    rng = np.random.default_rng(0)
    data.obs["stain"] = rng.normal(size=data.n_obs)
    data.obsm["msi"]["always"] = (5 + data.obs["stain"] + 0.1 * rng.normal(size=data.n_obs)).astype(np.float32)
    train, query = data[:120].copy(), data[120:].copy()
    with_it = fit(train, {"covariate_keys": ["stain"]}, presence="prior")
    without = fit(train, presence="prior")

    def r(model):
        return np.corrcoef(model.predict(query)["always"], query.obsm["msi"]["always"])[0, 1]

    assert r(with_it) > 0.95
    assert abs(r(without)) < 0.5
    with_it.save(tmp_path / "model")
    pd.testing.assert_frame_equal(load(tmp_path / "model").predict(query), with_it.predict(query), check_exact=True)

"""Intervals, probabilities and out-of-distribution scores on sections that a model has not seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi._core.uncertainty.conformal import GroupConformal
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet

pytestmark = pytest.mark.once  # coverage over many sections

LEFT_OUT = "P5S1"


@pytest.fixture(scope="module")
def sections() -> AnnData:
    sdata = stmsi.datasets.simulate(
        n_patients=5, sections_per_patient=1, n_genes=120, n_metabolites=12, size=1300, rng=3
    )
    stmsi.pp.normalize_msi(sdata, tic_key="tic")
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    return sdata.tables["st"]


def fit(adata: AnnData, **params) -> HurdleLinear:
    HurdleLinear.setup_anndata(adata, presence_key="msi_presence")
    model = HurdleLinear(adata, n_components=10, n_folds=4, **params)
    model.train()
    return model


@pytest.fixture(scope="module")
def held_out(sections) -> list[tuple[AnnData, HurdleLinear]]:
    """Each section with a model of the others."""
    folds = []
    for name in sections.obs["sample"].cat.categories:
        test = (sections.obs["sample"] == name).to_numpy()
        folds.append((sections[test].copy(), fit(sections[~test].copy())))
    return folds


@pytest.fixture(scope="module")
def model(held_out) -> HurdleLinear:
    return held_out[-1][1]


def covered(adata: AnnData, model: HurdleLinear, coverage: float) -> pd.DataFrame:
    lower, upper = model.predict_interval(adata, coverage)
    y = adata.obsm["msi"][lower.columns]
    return ((lower <= y) & (y <= upper)).where(y.notna()).astype(float)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_intervals_cover_new_sections(held_out, coverage):
    inside = pd.concat([covered(test, model, coverage) for test, model in held_out])
    called = pd.concat([model.predict(test) > 0 for test, model in held_out])
    assert inside.mean().mean() == pytest.approx(coverage, abs=0.035)
    # neither stratum at the expense of the other; spots that are absent lie in every interval that begins at 0
    assert inside.where(called).stack().mean() == pytest.approx(coverage, abs=0.05)
    assert coverage - 0.05 < inside.where(~called).stack().mean() < 1
    assert inside.mean().quantile(0.25) > coverage - 0.07


def test_probabilities_of_new_sections_are_calibrated(held_out):
    present = pd.concat([test.obsm["msi_presence"].where(test.obsm["msi"].notna()) for test, _ in held_out])
    probability = pd.concat([model.predict_presence(test) for test, model in held_out])
    y, p = present.to_numpy(float), probability[present.columns].to_numpy(float)
    rng = np.random.default_rng(0)
    floor = stmsi.metrics.ece(np.where(np.isnan(y), np.nan, rng.random(p.shape) < p), p)
    error = stmsi.metrics.ece(y, p)
    # a third of the metabolites follows no gene, and five sections say little of how often they are present in others
    assert np.median(error) < np.median(floor) + 0.03
    assert stmsi.metrics.ece(y.ravel(), p.ravel())[0] < 0.03
    assert stmsi.metrics.brier(y, p).mean() < 0.8 * np.nanmean(np.nanmean(y, 0) * (1 - np.nanmean(y, 0)))


def test_sections_weigh_the_same_and_are_what_is_left_out(monkeypatch, sections):
    seen = []
    original = GroupConformal.fit.__func__

    def spy(cls, *args):
        seen.append(args[5])
        return original(cls, *args)

    monkeypatch.setattr(GroupConformal, "fit", classmethod(spy))
    data = sections[(sections.obs["sample"] != LEFT_OUT).to_numpy()].copy()
    fit(data, presence="prior", intensity="mean")
    known = data.obsm["msi"].notna().any(axis=1).to_numpy()
    sample = data.obs["sample"].astype(str).to_numpy()[known]
    assert pd.crosstab(seen[0], sample).to_numpy().astype(bool).sum(axis=1).tolist() == [1, 1, 1, 1]
    # two sections are calibrated on blocks, each in one section
    fit(data[np.isin(data.obs["sample"], ["P1S1", "P2S1"])].copy(), presence="prior", intensity="mean")
    assert len(np.unique(seen[1])) == 4
    # spots that a user gives for calibration
    validation = np.flatnonzero(data.obs["sample"].isin(["P1S1", "P2S1", "P3S1"]).to_numpy())
    HurdleEnsemble.setup_anndata(data, presence_key="msi_presence")
    HurdleEnsemble(data, members=["mean"], n_folds=2).train(
        train_idx=(data.obs["sample"] == "P4S1").to_numpy(), validation_idx=validation
    )
    assert len(np.unique(seen[-1])) == 3


def test_a_network_is_calibrated_on_blocks_of_the_section_that_it_holds_out(monkeypatch, sections):
    seen = []
    original = GroupConformal.fit.__func__
    monkeypatch.setattr(GroupConformal, "fit", classmethod(lambda cls, *a: (seen.append(a[5]), original(cls, *a))[1]))
    data = sections.copy()
    HurdleNet.setup_anndata(data, presence_key="msi_presence")
    HurdleNet(data, encoder_kwargs={"n_hidden": 8, "n_layers": 1}).train(max_epochs=1, refit=False)
    assert len(np.unique(seen[0])) == 5


@pytest.fixture(scope="module")
def driven() -> tuple[AnnData, HurdleLinear]:
    """A section whose metabolites follow three genes each, no two the same, and a model of four others."""
    rng = np.random.default_rng(0)
    n, genes, metabolites = 80, 36, 12
    z = rng.normal(size=(5 * n, genes))
    level = np.repeat(rng.normal(0, 0.2, (5, genes)), n, axis=0)
    drivers = rng.permutation(genes).reshape(metabolites, 3)
    y = 8 + z[:, drivers].sum(axis=2) + 0.5 * rng.normal(size=(5 * n, metabolites))
    counts = rng.poisson(20 * np.exp(level + 0.8 * z)).astype(np.float32)
    adata = AnnData(
        sp.csr_matrix(counts),
        pd.DataFrame({"sample": np.repeat([f"s{k}" for k in range(5)], n)}, [f"c{i}" for i in range(5 * n)]),
        pd.DataFrame(index=[f"g{j}" for j in range(genes)]),
    )
    frame = pd.DataFrame(np.maximum(y, 0).astype(np.float32), adata.obs_names).add_prefix("m")
    adata.obsm["msi"] = frame
    train = adata[: 4 * n].copy()
    HurdleLinear.setup_anndata(train)
    model = HurdleLinear(train, n_components=30, n_folds=4)
    model.train(show_progress_bar=False)
    return adata[4 * n :].copy(), model


def without_third(adata: AnnData, rng: np.random.Generator) -> AnnData:
    return adata[:, np.sort(rng.permutation(adata.n_vars)[adata.n_vars // 3 :])].copy()


def shifted(adata: AnnData, rng: np.random.Generator) -> AnnData:
    """Every gene caught more or less often, as by another kit."""
    out = adata.copy()
    out.X = sp.csr_matrix(np.round(adata.X.toarray() * np.exp(rng.normal(0, 1, adata.n_vars))).astype(np.float32))
    return out


@pytest.mark.parametrize("change", [without_third, shifted])
def test_intervals_widen_with_imputed_genes_and_distance(driven, monkeypatch, change):
    test, model = driven
    assert covered(test, model, 0.9).mean().mean() == pytest.approx(0.9, abs=0.03)
    other = change(test, np.random.default_rng(0))
    widened = covered(other, model, 0.9).mean().mean()
    monkeypatch.setattr("stmsi.model.shared._block_prediction.doubt_of", lambda distance, *_: np.zeros(len(distance)))
    alone = covered(other, model, 0.9).mean().mean()
    assert alone < 0.87
    assert abs(widened - 0.9) < abs(alone - 0.9) - 0.03


def test_held_out_distances_are_those_to_other_sections(driven):
    _, model = driven
    spots = model._query_spots(None, 0.0)
    features, groups = model.state.features, np.repeat(np.arange(4), 80)
    np.testing.assert_array_equal(features.held_out_ood(spots, np.zeros(320)), features.ood(spots))
    apart = features.held_out_ood(spots, groups)
    assert 1 < apart.mean() / features.ood(spots).mean() < 1.3
    table = model.state.feature_table
    assert (table["held_out_coverage_lowest"] <= table["held_out_coverage"]).all()
    assert table["held_out_coverage"].mean() == pytest.approx(0.9, abs=0.03)


def test_a_network_is_calibrated_on_every_section(sections):
    data = sections.copy()
    HurdleNet.setup_anndata(data, presence_key="msi_presence")
    model = HurdleNet(data, encoder_kwargs={"n_hidden": 8, "n_layers": 1})
    model.train(max_epochs=2, show_progress_bar=False)
    known = data.obsm["msi"].notna().any(axis=1).to_numpy()
    assert len(model._nets) == 3
    assert (model.state.residuals.count.sum(axis=0) == known.sum()).all()
    assert model.state.feature_table["held_out_units"].max() == 5


def shuffled(adata: AnnData, rng: np.random.Generator) -> AnnData:
    out = adata.copy()
    dense = adata.X.toarray()
    out.X = sp.csr_matrix(np.stack([row[rng.permutation(len(row))] for row in dense]))
    return out


def score(model, adata: AnnData) -> np.ndarray:
    return model._predict_all(adata).ood


def test_the_score_of_training_spots_is_in_units_of_their_95th_percentile(model):
    assert (score(model, None) > 1).mean() == pytest.approx(0.05, abs=0.01)


def test_held_out_sections_of_the_same_tissue_mostly_look_usual(held_out):
    for test, model in held_out:
        assert (score(model, test) > 1).mean() < 0.5
    assert np.mean([(score(m, t) > 1).mean() for t, m in held_out]) < 0.3


def test_spots_with_shuffled_genes_lie_outside(model, held_out):
    odd = score(model, shuffled(held_out[-1][0], np.random.default_rng(0)))
    assert (odd > np.quantile(score(model, None), 0.95)).all()


def test_few_counts_and_strange_profiles_lie_outside(model, held_out):
    test = held_out[-1][0]
    rng = np.random.default_rng(0)
    usual = np.median(score(model, test))
    dense = test.X.toarray()
    for odd in (
        rng.binomial(dense.astype(int), 0.05),
        rng.poisson(np.full(dense.shape, dense.mean())),
        np.zeros_like(dense) + (np.arange(dense.shape[1]) < 2) * 1000,
        np.zeros_like(dense),
        np.round(0.5 * dense + 0.5 * shuffled(test, rng).X.toarray()),
    ):
        other = test.copy()
        other.X = sp.csr_matrix(odd.astype(np.float32))
        found = score(model, other)
        assert np.isfinite(found).all()
        assert (found > 1).mean() > 0.9
        assert np.median(found) > usual
    deeper = test.copy()
    deeper.X = test.X * 4
    np.testing.assert_allclose(score(model, deeper), score(model, test), rtol=1e-4)  # depth is normalised


def test_another_tissue_lies_outside(model, held_out):
    other = stmsi.datasets.simulate(
        n_patients=1, sections_per_patient=1, n_genes=120, n_metabolites=5, size=1000, rng=11
    ).tables["st"]
    other = other[:, : held_out[-1][0].n_vars].copy()
    other.var_names = held_out[-1][0].var_names
    other.obs["sample"] = "other"
    assert (score(model, other) > 1).mean() > 0.95


def test_the_score_rises_with_imputed_genes(model, held_out):
    test = held_out[-1][0]
    part = test[:, : test.n_vars // 2].copy()
    found = model._predict_all(part, min_genes=0.1)
    assert np.isfinite(found.ood).all()
    assert found.missing_genes == pytest.approx(model._gene_weights()[test.n_vars // 2 :].sum())
    assert np.median(found.ood) > np.median(score(model, test))

"""Small and unusual data for the models of the default stack: finite predictions, untouched inputs, or a clear error."""

from __future__ import annotations

import warnings
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.tl._models import train_model

MODELS = ["auto", "gene_ridge", "kernel_ridge", "screened_ridge"]
FAST = ["gene_ridge", "screened_ridge"]
PARAMS = [m if m == "gene_ridge" else pytest.param(m, marks=pytest.mark.once) for m in MODELS]
"""How data are read is the same in all, so that one goes through both stacks."""


def fit(name: str, adata: AnnData, setup: dict[str, Any] | None = None) -> Any:
    return train_model(adata, {"model": name}, setup, show_progress_bar=False)


def numbers_in(value: Any) -> list[np.ndarray]:
    """All float arrays that an object of stmsi holds."""
    if isinstance(value, np.ndarray):
        return [value] if value.dtype.kind == "f" else []
    if sp.issparse(value):
        return [value.data]
    if isinstance(value, dict):
        return [a for v in value.values() for a in numbers_in(v)]
    if isinstance(value, list | tuple):
        return [a for v in value for a in numbers_in(v)]
    if type(value).__module__.startswith("stmsi.") and hasattr(value, "__dict__"):
        return [a for v in vars(value).values() for a in numbers_in(v)]
    return []


def assert_sound(model: Any, adata: AnnData | None = None) -> Any:
    """No NaN in what is predicted, nor in what is learnt."""
    prediction = model._predict_all(adata)
    for name in ("presence", "intensity", "expected", "lower", "upper", "ood"):
        values = np.asarray(getattr(prediction, name))
        assert np.isfinite(values).all(), name
        assert (values >= 0).all(), name
    assert (prediction.presence <= 1).all().all()
    assert (prediction.lower <= prediction.expected + 1e-5).all().all()
    assert (prediction.expected <= prediction.upper + 1e-5).all().all()
    for one in (model, *getattr(model, "models_", ())):
        for part in ("kernel_", "ridge_", "scale_", "stack_", "beside_"):
            assert all(np.isfinite(a).all() for a in numbers_in(getattr(one, part, None))), part
        for part in ("classifiers_", "regressions_"):
            for estimator in (e.estimator for e in getattr(one, part, ())):
                assert all(np.isfinite(a).all() for a in numbers_in(estimator)), part
    return prediction


def blank(adata: AnnData, metabolite: str, where: Any, value: float = np.nan) -> None:
    frame = adata.obsm["msi"].copy()
    frame.loc[np.asarray(where), metabolite] = np.float32(value)
    adata.obsm["msi"] = frame


@pytest.fixture(params=PARAMS)
def name(request) -> str:
    return request.param


# ------------------------------------------------------------------------------------------------------------ sections


def test_one_section(make_sections, name):
    data = make_sections([60])
    prediction = assert_sound(fit(name, data))
    r = [np.corrcoef(prediction.expected[m], data.obsm["msi"][m])[0, 1] for m in data.obsm["msi"]]
    assert np.mean(r) > 0.3


@pytest.mark.parametrize("n_sections", [2, 3])
def test_sections_of_two_spots(make_sections, name, n_sections):
    data = make_sections([2] * n_sections * 10)
    assert_sound(fit(name, data))


def test_three_sections_of_two_spots(make_sections, name):
    assert_sound(fit(name, make_sections([2, 2, 2])))


def test_a_section_of_one_spot_among_others(make_sections, name):
    assert_sound(fit(name, make_sections([1, 30, 30])))


def test_bulk(make_sections, name):
    """Sixteen samples, log ratios, no positions, no column of sections."""
    data = make_sections([16], log=True, positions=False, graph=False)
    del data.obs["sample"]
    assert data.X.min() < 0
    model = fit(name, data, {"input": "log"})
    prediction = assert_sound(model)
    assert len(model.state.training["samples"]) == 1
    assert np.corrcoef(prediction.expected["always"], data.obsm["msi"]["always"])[0, 1] > 0.3
    new = make_sections([5], log=True, positions=False, graph=False, seed=1)
    del new.obs["sample"], new.obsm["msi"]
    assert_sound(model, new)


def test_bulk_with_a_section_for_each_sample(make_sections, name):
    assert_sound(fit(name, make_sections([1] * 16, log=True, positions=False, graph=False), {"input": "log"}))


def test_bulk_of_patients(make_sections, name):
    data = make_sections([16], log=True, positions=False, graph=False)
    data.obs["patient"] = [f"P{i // 2}" for i in range(16)]
    model = fit(name, data, {"input": "log"})
    assert_sound(model)
    if name == "auto":
        assert "held-out patients" in repr(model)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_a_handful_of_samples(make_sections, name, n):
    data = make_sections([n], log=True, positions=False, graph=False)
    assert_sound(fit(name, data, {"input": "log"}))


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_are_refused(make_sections, name, n):
    data = make_sections([n], log=True, positions=False, graph=False)
    with pytest.raises(ValueError, match=r"observation\(s\) cannot be split|No gene varies|No member could be trained"):
        fit(name, data, {"input": "log"})


# --------------------------------------------------------------------------------------------------------- metabolites


def test_all_metabolites_are_always_present(make_sections, name):
    data = make_sections()
    data.obsm["msi"] = data.obsm["msi"] + np.float32(1)
    prediction = assert_sound(fit(name, data))
    np.testing.assert_array_equal(prediction.presence, 1)
    # a map that falls below 0 is 0, however likely the metabolite is there
    assert (prediction.expected > 0).mean().min() > 0.9
    np.testing.assert_allclose(prediction.expected, prediction.intensity)


def test_metabolites_that_teach_little(make_sections, name):
    data = make_sections()
    n, inside = data.n_obs, (data.obs["sample"] == "s1").to_numpy()
    data.obsm["msi"] = data.obsm["msi"].assign(
        never=np.zeros(n, np.float32),
        constant=np.full(n, 0.1, np.float32),
        once=(np.arange(n) == 4).astype(np.float32),
        in_one_only=np.where(inside, data.obsm["msi"]["always"], 0).astype(np.float32),
    )
    prediction = assert_sound(fit(name, data))
    assert (prediction.expected["never"] == 0).all()
    assert prediction.presence["never"].max() == 0
    np.testing.assert_allclose(prediction.expected["constant"], 0.1, rtol=1e-3)
    # what teaches little does not spoil the others
    alone = assert_sound(fit(name, make_sections()))
    for m in ("first", "always"):
        assert np.corrcoef(prediction.expected[m], alone.expected[m])[0, 1] > 0.97


@pytest.mark.parametrize("metabolite", ["first", "always"])
def test_a_metabolite_measured_in_one_section_only(make_sections, name, metabolite):
    data = make_sections([40, 40, 40])
    outside = data.obs["sample"] != "s1"
    blank(data, metabolite, outside)
    truth = data.obsm["msi"][metabolite][~outside]
    model = fit(name, data)
    prediction = assert_sound(model)
    inside = prediction.expected[metabolite][(~outside).to_numpy()]
    assert np.corrcoef(inside, truth)[0, 1] > 0.3
    assert model.state.feature_table.loc[metabolite, "n_spots"] == 40
    assert np.isfinite(model.state.feature_table.loc[metabolite, "held_out_pearson"])


def test_a_metabolite_of_one_section_without_positions(make_sections, name):
    data = make_sections(positions=False, graph=False)
    blank(data, "first", data.obs["sample"] != "s1")
    assert_sound(fit(name, data))


def test_every_section_lacks_another_metabolite(make_sections, name):
    data = make_sections()
    for section, metabolite in zip(["s0", "s1", "s2"], ["first", "second", "always"], strict=True):
        blank(data, metabolite, data.obs["sample"] == section)
    blank(data, "third", np.random.default_rng(0).random(data.n_obs) < 0.3)
    model = fit(name, data)
    assert_sound(model)
    np.testing.assert_array_equal(model.state.feature_table["n_spots"], data.obsm["msi"].notna().sum())


def test_spots_without_msi_are_predicted(make_sections, name):
    data = make_sections()
    frame = data.obsm["msi"].copy()
    frame.iloc[::3] = np.nan
    data.obsm["msi"] = frame
    model = fit(name, data)
    prediction = assert_sound(model)
    assert len(prediction.expected) == 90
    assert model.state.training["n_spots"] == 60


def test_a_metabolite_measured_nowhere_is_left_out(make_sections, name):
    data = make_sections()
    blank(data, "second", np.ones(data.n_obs, bool))
    model = fit(name, data)
    assert model.metabolites == ["first", "third", "always"]
    assert_sound(model)


@pytest.mark.parametrize("unit", [1e-4, 1e6])
def test_the_unit_of_intensity_does_not_matter(make_sections, name, unit):
    data, other = make_sections(), make_sections()
    other.obsm["msi"] = (data.obsm["msi"] * unit).astype(np.float32)
    a, b = (assert_sound(fit(name, d)) for d in (data, other))
    np.testing.assert_allclose(b.expected / unit, a.expected, rtol=0.02, atol=0.02)


# --------------------------------------------------------------------------------------------------------------- genes


@pytest.mark.parametrize("genes", [7, 9])
def test_few_genes(make_sections, name, genes):
    assert_sound(fit(name, make_sections(genes=genes)))


@pytest.mark.parametrize("genes", [1, 2])
def test_one_or_two_genes_that_vary(make_sections, name, genes):
    data = make_sections(log=True)
    X = data.X.toarray()
    X[:, genes:] = 0.5
    data.X = sp.csr_matrix(X)
    assert_sound(fit(name, data, {"input": "log"}))


def test_spots_without_counts_and_without_neighbours(make_sections, name):
    data = make_sections()
    X = data.X.toarray()
    X[::7] = 0
    data.X = sp.csr_matrix(X)
    graph = data.obsp["spatial_connectivities"].tolil()
    graph[::5] = 0
    graph[:, ::5] = 0
    data.obsp["spatial_connectivities"] = graph.tocsr()
    assert_sound(fit(name, data))


def test_a_graph_without_edges(make_sections, name):
    data = make_sections()
    data.obsp["spatial_connectivities"] = sp.csr_matrix((90, 90), dtype=np.float32)
    assert_sound(fit(name, data))


def test_missing_genes_and_another_order(make_sections, name):
    data = make_sections()
    model = fit(name, data)
    query = data[:, 29:9:-1].copy()
    assert_sound(model, query)
    whole = data[:, ::-1].copy()
    np.testing.assert_allclose(model.predict(whole), model.predict(data), rtol=1e-4, atol=1e-4)


def test_genes_that_do_not_vary_are_refused(make_sections, name):
    data = make_sections()
    data.X = sp.csr_matrix(np.ones((90, 30), np.float32))
    with pytest.raises(ValueError, match="No gene varies over the training spots"):
        fit(name, data)


# --------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("form", ["dense", "csc", "float64", "dask", "dask_sparse"])
@pytest.mark.parametrize("name", PARAMS)
def test_every_form_of_a_matrix_gives_the_same(make_sections, name, form):
    data = make_sections()
    expected = fit(name, data.copy()).predict()
    dense = data.X.toarray()
    data.X = {
        "dense": lambda: dense,
        "csc": lambda: sp.csc_matrix(dense),
        "float64": lambda: sp.csr_matrix(dense.astype(np.float64)),
        "dask": lambda: da.from_array(dense, chunks=(40, 30)),
        "dask_sparse": lambda: da.from_array(dense, chunks=(40, 30)).map_blocks(sp.csr_matrix),
    }[form]()
    model = fit(name, data)
    assert_frame_equal(model.predict(), expected, rtol=1e-4, atol=1e-5)


def test_repeated_names_of_spots(make_sections, name):
    data = make_sections()
    expected = fit(name, data.copy()).predict()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        data.obs_names = ["spot"] * data.n_obs
        model = fit(name, data)
        np.testing.assert_array_equal(model.predict(), expected)
        np.testing.assert_array_equal(model.predict(data.copy()), expected)


def test_the_input_is_left_as_it_was(make_sections, name):
    data = make_sections()
    blank(data, "first", np.arange(90) % 4 == 0)
    before = data.copy()
    stmsi.tl.predict_metabolites(data, {"model": name}, show_progress_bar=False)
    assert (data.X != before.X).nnz == 0
    assert (data.obsp["spatial_connectivities"] != before.obsp["spatial_connectivities"]).nnz == 0
    np.testing.assert_array_equal(data.obsm["spatial"], before.obsm["spatial"])
    assert_frame_equal(data.obsm["msi"], before.obsm["msi"])
    assert_frame_equal(data.obs.drop(columns=["msi_pred_ood", "msi_pred_trained_on"]), before.obs)
    assert_frame_equal(data.var, before.var)
    assert set(data.uns) == {"msi_pred"}


def test_training_twice_gives_the_same(make_sections, name):
    data = make_sections()
    a, b = (fit(name, data.copy()).predict() for _ in range(2))
    assert_frame_equal(a, b, check_exact=True)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    ("where", "value", "match"), [("X", np.nan, "NaN"), ("msi", -1.0, "negative"), ("msi", np.inf, "infinite")]
)
def test_impossible_numbers_are_refused(make_sections, name, where, value, match):
    data = make_sections()
    if where == "X":
        data.X.data[3] = value
    else:
        blank(data, "first", np.arange(90) == 3, value)
    with pytest.raises(ValueError, match=rf"(?i){match}|finite"):
        fit(name, data)


def test_presence_as_measured(make_sections, name):
    """Presence beside intensities: traces below the detection limit are absent."""
    data = make_sections()
    frame = data.obsm["msi"]
    data.obsm["msi_presence"] = pd.DataFrame((frame > 1).astype(np.float32), index=frame.index)
    model = fit(name, data, {"presence_key": "msi_presence"})
    prediction = assert_sound(model)
    np.testing.assert_allclose(model.state.feature_table["prevalence"], (frame > 1).mean(), rtol=1e-6)
    assert prediction.presence["first"].mean() == pytest.approx((frame["first"] > 1).mean(), abs=0.1)

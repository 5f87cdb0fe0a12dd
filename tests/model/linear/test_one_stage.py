"""What one-stage models share: thresholds, intervals, files, and what they have to do with held-out spots."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleKernel, HurdleScreened

MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "genes": (HurdleKernel, {"kernel": "genes"}),
    "genes, z-scored": (HurdleKernel, {"kernel": "genes", "unit_variance": True}),
    "components": (HurdleKernel, {"kernel": "components", "n_components": 10}),
    "screened": (HurdleScreened, {}),
}
GRAPH = {"graph_key": "spatial_connectivities"}


def fit(name: str, adata: AnnData, fields: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    cls, params = MODELS[name]
    train = {k: kwargs.pop(k) for k in ("train_idx", "validation_idx") if k in kwargs}
    cls.setup_anndata(adata, **(GRAPH if fields is None else fields))
    model = cls(adata, **{**params, "n_folds": 3, **kwargs})
    model.train(**train)
    return model


@pytest.fixture
def data(make_sections) -> AnnData:
    return make_sections()


@pytest.fixture(scope="module", params=MODELS)
def trained(request, make_sections):
    """A model of three small sections: not to be trained again."""
    return fit(request.param, make_sections())


def frames(model: Any, adata: AnnData | None = None) -> list[pd.DataFrame]:
    return [
        model.predict_presence(adata),
        model.predict_intensity(adata),
        model.predict(adata),
        *model.predict_interval(adata),
    ]


def test_they_follow_a_section_that_they_have_not_seen(trained, make_sections):
    new = make_sections([60], seed=0)
    new.obs["sample"] = "new"
    predicted, truth = trained.predict(new), new.obsm["msi"]
    r = [np.corrcoef(predicted[m], truth[m])[0, 1] for m in truth]
    assert np.mean(r) > 0.35


def test_probability_times_intensity_is_the_map(trained, data):
    p, mean = trained.predict_presence(data).to_numpy(), trained.predict_intensity(data).to_numpy()
    spots = trained._query_spots(data, 0.5)
    scale = trained.scale_
    drawn_in = np.clip(scale.mean + scale.slope * (trained._map(spots) - scale.mean), 0, 1.5 * scale.largest)
    likely = p >= 0.1
    np.testing.assert_allclose((p * mean)[likely], drawn_in[likely], atol=1e-4)


def test_a_saved_model_predicts_the_same(trained, data, tmp_path):
    trained.save(tmp_path / "model")
    loaded = stmsi.model.load(tmp_path / "model")
    assert type(loaded) is type(trained)
    assert loaded._params() == trained._params()
    for a, b in zip(frames(loaded, data), frames(trained, data), strict=True):
        assert_frame_equal(a, b, check_exact=True)
    again = stmsi.model.load(tmp_path / "model", data)
    assert_frame_equal(again.predict(), trained.predict(data), check_exact=True)
    again.train()
    assert_frame_equal(again.predict(), trained.predict(data), check_exact=True)


def test_held_out_predictions_are_left_behind_and_not_saved(trained, tmp_path):
    held_out = trained._held_out_stages()
    assert held_out.shape == (2, 90, 4)
    assert np.isfinite(held_out).all()
    trained.save(tmp_path / "model")
    assert stmsi.model.load(tmp_path / "model")._held_out_stages() is None


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_spots_outside_train_idx_have_no_say(data, name):
    rows = np.flatnonzero(data.obs["sample"] != "s2")
    other = data.copy()
    frame = other.obsm["msi"].copy()
    frame.loc[(data.obs["sample"] == "s2").to_numpy()] = 77
    other.obsm["msi"] = frame
    a, b = (fit(name, adata, train_idx=rows) for adata in (data, other))
    for x, y in zip(frames(a), frames(b), strict=True):
        assert_frame_equal(x, y, check_exact=True)
    assert a.state.training["samples"] == ["s0", "s1"]


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_validation_spots_set_thresholds_and_intervals(data, name):
    inside = (data.obs["sample"] == "s2").to_numpy()
    model = fit(name, data, validation_idx=np.flatnonzero(inside))
    assert model.state.training["samples"] == ["s0", "s1"]
    np.testing.assert_array_equal(model.state.residuals.count.sum(axis=0), inside.sum())
    np.testing.assert_array_equal(model.state.feature_table["n_spots"], inside.sum())
    bare = fit(name, data, train_idx=np.flatnonzero(~inside))
    assert_frame_equal(model.predict_presence(), bare.predict_presence(), check_exact=True)
    assert_frame_equal(model.predict_intensity(), bare.predict_intensity(), check_exact=True)
    assert not np.array_equal(model.predict_interval()[1], bare.predict_interval()[1])


def test_the_training_data_keep_no_trace(trained, data):
    before = data.copy()
    trained.predict(data)
    assert_frame_equal(data.obsm["msi"], before.obsm["msi"])
    assert (data.X != before.X).nnz == 0
    assert set(data.obsm) == set(before.obsm)
    assert set(data.obs) == set(before.obs)


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_presence_can_be_the_share_of_the_training_spots(data, name):
    model = fit(name, data, presence="prior")
    np.testing.assert_allclose(model.predict_presence().iloc[0], (data.obsm["msi"] > 0).mean(), rtol=1e-5)
    assert (model.predict_presence().nunique() == 1).all()
    with_ridge = fit(name, data.copy())
    # the map is the same: presence stands beside it
    np.testing.assert_allclose(
        model._map(model._query_spots(None, 0)), with_ridge._map(with_ridge._query_spots(None, 0))
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_read_where_it_is_set_up(data, name):
    with_graph, without = fit(name, data.copy()), fit(name, data.copy(), {})
    assert not np.allclose(with_graph.predict(), without.predict())
    bare = data.copy()
    del bare.obsp["spatial_connectivities"]
    np.testing.assert_array_equal(without.predict(bare), without.predict(data))
    with pytest.raises(KeyError, match="uses the graph"):
        with_graph.predict(bare)


@pytest.mark.parametrize("name", MODELS)
def test_by_name_the_graph_is_read_unless_it_is_switched_off(data, name):
    cls, params = MODELS[name]
    assert cls._default_fields(data, params) == GRAPH
    bare = data.copy()
    del bare.obsp["spatial_connectivities"]
    assert cls._default_fields(bare, params) == {}


@pytest.mark.parametrize("cls", [HurdleKernel, HurdleScreened])
def test_impossible_options_are_refused(data, cls):
    with pytest.raises(ValueError, match="is not set up"):
        cls(data)
    cls.setup_anndata(data)
    with pytest.raises(ValueError, match="presence='svm' is not known"):
        cls(data, presence="svm")
    with pytest.raises(ValueError, match="n_folds must be at least 2, found 1"):
        cls(data, n_folds=1)
    model = cls(data)
    assert not model.is_trained
    with pytest.raises(RuntimeError, match="is not trained"):
        model.predict()


@pytest.mark.parametrize("name", MODELS)
def test_predictions_depend_on_the_genes_that_the_model_names(data, name):
    model = fit(name, data)
    used = model._used_genes()
    assert (np.diff(used) > 0).all()
    assert used.max() < data.n_vars


@pytest.mark.parametrize("name", MODELS)
def test_nothing_measured_is_refused(data, name, caplog):
    data.obsm["msi"] = data.obsm["msi"] * np.float32(np.nan)
    with caplog.at_level(logging.ERROR, "stmsi"), pytest.raises(ValueError, match="None of the training spots has MSI"):
        fit(name, data)

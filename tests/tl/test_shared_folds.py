"""Folds that share what they read are what they would be alone."""

import pickle

import numpy as np
import pytest

import stmsi
from stmsi.model import HurdleLinear
from stmsi.model_selection import LeaveOneSampleOut
from stmsi.tl import _shared_folds
from stmsi.tl._models import train_on
from stmsi.tl._shared_folds import SharedFolds

GRAPH = {"graph_key": "spatial_connectivities"}
FEW = {"n_top_genes": 40, "n_components": 8}


@pytest.fixture
def data(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3", "simPC_36_0"]]
    return st[st.obsm["msi"].notna().any(axis=1).to_numpy()].copy()


@pytest.mark.once
@pytest.mark.parametrize(
    ("fields", "params", "every"),
    [(GRAPH, FEW, 1), ({}, {"n_components": 8}, 4), (GRAPH | {"input": "log"}, FEW, 1)],
    ids=["products", "more genes than spots", "logarithms"],
)
def test_folds_are_those_of_models_trained_by_hand(data, fits, fields, params, every):
    data = data[::every].copy()
    if "input" in fields:
        data.X = stmsi._core.learning.expression_space.log_normalize(data.X.astype(np.float32))
    spec = {"m": {"model": "HurdleLinear", "context": "diffused", **params}}
    stmsi.tl.cross_validate(data, spec, setup=fields, on_leakage="ignore")
    for fit, (train, test) in zip(fits, LeaveOneSampleOut().split(data), strict=True):
        assert fit["shared"]
        inside = data[train].copy()
        HurdleLinear.setup_anndata(inside, **({"input": "counts"} | fields))
        model = HurdleLinear(inside, **{k: v for k, v in spec["m"].items() if k != "model"})
        model.train()
        alone = model._predict_all(data[test].copy(), input=model.state.setup.input)
        size = alone.expected.to_numpy().max()
        np.testing.assert_allclose(fit["predicted"], alone.expected, atol=1e-6 * size)
        np.testing.assert_allclose(fit["bounds"][1], alone.upper, atol=1e-5 * size)
        a, b = fit["model"].state, model.state
        np.testing.assert_array_equal(a.features.own.selected, b.features.own.selected)
        np.testing.assert_allclose(a.features.usual_distances, b.features.usual_distances, rtol=1e-5)
        np.testing.assert_allclose(a.threshold, b.threshold, rtol=1e-5)
        np.testing.assert_allclose(a.panel.mean_log, b.panel.mean_log, rtol=1e-12)
        assert a.training["n_genes"] == b.training["n_genes"]


@pytest.mark.parametrize("model", ["ridge", "shuffled_genes"])
def test_models_of_folds_do_not_learn_to_know_their_spots_again(data, fits, model, monkeypatch):
    spots = "stmsi.model.shared._training_data.TrainingSpots.of"
    with monkeypatch.context() as patch:
        patch.setattr(spots, lambda *_: pytest.fail("nobody sees the models of folds"))
        stmsi.tl.cross_validate(data, {"m": {"model": model, **FEW}}, setup={}, on_leakage="ignore")
    assert len(fits) == data.obs["sample"].nunique()
    kept, _ = train_on(data.copy(), {"model": model, **FEW}, {}, show_progress_bar=False)
    assert kept.state.seen is not None


@pytest.mark.once
def test_nothing_of_the_test_section_reaches_its_fold(data, fits):
    spec = {"ridge": {"model": "ridge", **FEW}}
    rows = (data.obs["sample"] == "P3S1").to_numpy()
    stmsi.tl.cross_validate(data, spec, setup=GRAPH, on_leakage="ignore")
    X = data.X.toarray()
    X[rows] = 3 * X[rows][:, ::-1]
    data.X = X
    for key in ("msi", "msi_presence"):
        data.obsm[key].loc[rows] = data.obsm[key].loc[rows].to_numpy()[::-1]
    stmsi.tl.cross_validate(data, spec, setup=GRAPH, on_leakage="ignore")
    a, b = fits[2]["model"], fits[5]["model"]
    assert "P3S1" not in a.state.training["samples"]
    np.testing.assert_array_equal(a.state.features.own.selected, b.state.features.own.selected)
    np.testing.assert_array_equal(a.state.panel.mean_log, b.state.panel.mean_log)
    np.testing.assert_array_equal(a.state.panel.mean_share, b.state.panel.mean_share)
    # products are summed beside those of genes that other folds choose: equal but for the order of sums
    np.testing.assert_allclose(a.state.features.own.components, b.state.features.own.components, atol=1e-6)
    np.testing.assert_allclose(a.held_out_, b.held_out_, atol=1e-5)
    np.testing.assert_allclose(a.state.threshold, b.state.threshold, rtol=1e-5)
    for x, y in zip(a.regressions_, b.regressions_, strict=True):
        np.testing.assert_allclose(
            x.estimator.weights, y.estimator.weights, atol=1e-4 * np.abs(y.estimator.weights).max()
        )
    assert np.abs(fits[2]["predicted"] - fits[5]["predicted"]).max() > 0, "it is predicted from other genes"


def test_models_that_read_the_matrix_themselves_get_it(data, fits):
    models = {"control": {"model": "shuffled_genes", **FEW}, "ridge": {"model": "ridge", **FEW}}
    stmsi.tl.cross_validate(data, models, setup={}, on_leakage="ignore")
    assert [fit["shared"] for fit in fits[:2]] == [False, True]
    assert fits[0]["adata"].X.nnz > 0
    assert fits[1]["adata"].X.nnz == 0, "expression is read from what the folds share"


def test_a_layer_is_read_once_as_well(data, fits):
    data.layers["raw"] = data.X.copy()
    data.X = None
    stmsi.tl.cross_validate(data, {"m": {"model": "ridge", **FEW}}, setup={}, layer="raw", on_leakage="ignore")
    assert all(fit["shared"] for fit in fits)
    assert fits[0]["model"].state.setup.layer == "raw"


def test_a_process_keeps_what_the_last_cross_validation_shares(data):
    folds = [train for train, _ in LeaveOneSampleOut().split(data)]
    first, second = SharedFolds(data, folds), SharedFolds(data, folds)
    there = pickle.dumps(first)
    a, b = pickle.loads(there), pickle.loads(there)
    assert a is b
    assert a is not first
    c = pickle.loads(pickle.dumps(second))
    assert c is not a
    assert list(_shared_folds._OF_PROCESS.values()) == [c]
    _shared_folds._OF_PROCESS.clear()

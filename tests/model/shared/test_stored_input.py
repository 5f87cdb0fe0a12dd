"""Counts and logarithms as input of every kind of model: what is told, brought to one scale, or refused."""

from __future__ import annotations

import json
import logging

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi._core.learning.expression_space import log_normalize
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet
from stmsi.model.shared._setup import Setup
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._stored_input import StoredExpression

FIELDS = {"presence_key": "msi_presence"}
GRAPH = "spatial_connectivities"
MODELS = {
    "linear": (HurdleLinear, {"n_components": 10, "n_folds": 2}, {}),
    "net": (HurdleNet, {"encoder_kwargs": {"n_hidden": 16, "n_layers": 1}}, {"max_epochs": 2}),
    "ensemble": (
        HurdleEnsemble,
        {"members": {"a": {"model": "ridge", "n_components": 8, "n_folds": 2}}, "n_folds": 2},
        {},
    ),
}


def fit(name, adata, **fields):
    cls, params, train = MODELS[name]
    cls.setup_anndata(adata, **{**FIELDS, **fields})
    model = cls(adata, **params)
    model.train(**train)
    return model


def logs(adata, rows=slice(None), total=1e4, shift=0.0):
    """A copy with some of the spots log-normalised."""
    out = adata.copy()
    X = out.X.toarray()
    X[rows] = log_normalize(sp.csr_matrix(X[rows]), total).toarray() + shift
    out.X = sp.csr_matrix(X)
    return out


def corrected(adata, rows=slice(None)):
    """A copy with some of the spots corrected for ambient RNA."""
    out = adata.copy()
    X = out.X.toarray()
    ambient = X.sum(axis=0) / X.sum()
    X[rows] = np.maximum(X[rows] - 0.05 * X[rows].sum(axis=1, keepdims=True) * ambient, 0)
    out.X = sp.csr_matrix(X)
    return out


def last(adata):
    return (adata.obs["sample"] == "P3S1").to_numpy()


def close(a, b, tolerance=1e-3):
    assert b.to_numpy().std() > 0
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def data(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :4]
    return st


@pytest.fixture
def query(st) -> AnnData:
    own = st[last(st)]
    return AnnData(own.X.copy(), obs=own.obs[["sample"]].copy(), var=own.var.copy())


@pytest.fixture(scope="module", params=MODELS)
def on_counts(request, _mapped):
    """A model of counts: not to be trained again."""
    st = _mapped.tables["st"].copy()
    return fit(request.param, st)


@pytest.fixture(scope="module", params=MODELS)
def on_logs(request, _mapped):
    """The same of log-normalised counts, whose scale is known."""
    st = logs(_mapped.tables["st"])
    return request.param, fit(request.param, st)


# ------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("total", [1e4, 250.0])
def test_log_normalised_data_are_logarithms_of_a_known_scale(data, caplog, total):
    with caplog.at_level(logging.INFO, "stmsi"):
        HurdleLinear.setup_anndata(logs(data, total=total), **FIELDS)
    assert len(caplog.messages) == 1
    assert "X holds logarithms (numbers that are not whole" in caplog.text
    assert f"normalised to {total:,.0f} in each spot), which are taken as they are (input='log')" in caplog.text
    assert "name their layer (layer=); layers: none" in caplog.text


def test_log_ratios_are_logarithms_and_negative(data, caplog):
    data = logs(data, shift=-2.0)
    with caplog.at_level(logging.INFO, "stmsi"):
        HurdleLinear.setup_anndata(data, **FIELDS)
    assert "from -2 to" in caplog.text
    assert "on a scale that cannot be told" in caplog.text
    assert Setup.read(data, "HurdleLinear").input == "log"


def test_counts_are_said_nothing_of(data, caplog):
    data.X = data.X.astype(np.float64)
    with caplog.at_level(logging.INFO, "stmsi"):
        HurdleLinear.setup_anndata(data, **FIELDS)
    assert caplog.messages == []
    assert Setup.read(data, "HurdleLinear").input == "counts"


def test_corrected_counts_are_counts_with_one_warning(data, caplog):
    data = corrected(data, last(data))
    HurdleLinear.setup_anndata(data, **FIELDS)
    assert len(caplog.messages) == 1
    assert "not whole in section 'P3S1'" in caplog.text
    assert "SoupX" in caplog.text
    assert Setup.read(data, "HurdleLinear").input == "counts"
    caplog.clear()
    HurdleLinear.setup_anndata(data, input="counts", **FIELDS)
    assert caplog.messages == [], "who says so is believed"


def test_sections_on_scales_that_cannot_be_told_are_refused(data):
    mixed = logs(data, last(data), shift=-1.0)
    with pytest.raises(
        ValueError, match=r"X holds counts in section 'P1S1', 'P2S1', but in section 'P3S1' .*layer=.*input='log'"
    ):
        HurdleLinear.setup_anndata(mixed, **FIELDS)
    mixed = logs(data)
    mixed.X = sp.csr_matrix(mixed.X.toarray() - last(data)[:, None])
    with pytest.raises(
        ValueError, match=r"X holds log-normalised counts in section 'P1S1', 'P2S1', but in section 'P3S1'"
    ):
        HurdleLinear.setup_anndata(mixed, **FIELDS)
    HurdleLinear.setup_anndata(mixed, input="log", **FIELDS)


def test_an_unknown_kind(data, on_counts):
    with pytest.raises(ValueError, match=r"input='raw' is not known; choose one of 'counts', 'log'"):
        HurdleLinear.setup_anndata(data, input="raw", **FIELDS)
    with pytest.raises(ValueError, match=r"input='raw' is not known"):
        on_counts.predict(data, input="raw")


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "dask", "backed", "view"])
def test_every_form_of_the_matrix_is_looked_at(data, form, tmp_path):
    mixed = logs(data, last(data))
    if form == "csc":
        mixed.X = sp.csc_matrix(mixed.X)
    elif form == "dense":
        mixed.X = mixed.X.toarray()
    elif form == "dask":
        mixed.X = da.from_array(mixed.X.toarray(), chunks=(50, -1))
    elif form == "backed":
        AnnData(mixed.X, obs=mixed.obs[["sample"]]).write_h5ad(tmp_path / "m.h5ad")
        mixed = ad.read_h5ad(tmp_path / "m.h5ad", backed="r")
    elif form == "view":
        mixed = mixed[::-1]
    found = StoredExpression.open(mixed, None, "sample")
    kinds = dict(zip(found.names, (kind.kind for kind in found.kinds), strict=True))
    assert kinds == {"P1S1": "counts", "P2S1": "counts", "P3S1": "log1p"}
    counts = found.as_counts("counts").toarray()
    own = last(mixed)
    np.testing.assert_allclose(counts[own].sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_array_equal(counts[~own], data[mixed.obs_names].X.toarray()[~own])
    if form == "backed":
        mixed.file.close()


def test_spots_without_a_section_are_named(data):
    data.obs["sample"] = data.obs["sample"].astype(object).where(~last(data))
    assert StoredExpression.open(logs(data, last(data)), None, "sample").names[-1] == "without a section"


# ------------------------------------------------------------------------------------------------------- one scale


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_a_log_normalised_section_trains_as_its_counts_do(data, name, caplog):
    expected = fit(name, data.copy())
    caplog.clear()
    mixed = logs(data, last(data))
    before = mixed.X.copy()
    model = fit(name, mixed)
    told = [m for m in caplog.messages if "log-normalised" in m]
    assert len(told) == 1
    assert "X is log-normalised in section 'P3S1': its numbers are not whole" in told[0]
    assert "add up to 10,000" in told[0]
    np.testing.assert_array_equal(mixed.X.toarray(), before.toarray())
    # pooled counts know no depth of the section any more; own expression is the same
    close(model.predict_presence(data), expected.predict_presence(data), 0.02)
    close(model.predict(), expected.predict(), 0.05)


def test_a_section_set_right_leaves_no_trace_in_the_net(data):
    mixed = logs(data, last(data))
    HurdleNet.setup_anndata(mixed, **FIELDS)
    assert "_stmsi_counts" in mixed.layers
    mixed.X = data.X.copy()
    HurdleNet.setup_anndata(mixed, **FIELDS)
    assert "_stmsi_counts" not in mixed.layers


@pytest.mark.parametrize("total", [1e4, 77.0])
def test_a_log_normalised_query_of_a_model_of_counts(on_counts, query, caplog, total):
    expected = on_counts.predict(query)
    close(on_counts.predict(logs(query, total=total)), expected)
    assert "X is log-normalised in section 'P3S1'" in caplog.text


def test_unknown_logarithms_are_refused_by_a_model_of_counts(on_counts, query):
    expected = on_counts.predict(query)
    few = logs(query)[:, np.arange(0, query.n_vars, 2)].copy()
    with pytest.raises(ValueError, match=r"The model reads counts, but X holds .*section 'P3S1'.*layer=.*input='log'"):
        on_counts.predict(few)
    assert np.isfinite(on_counts.predict(few, input="log").to_numpy()).all()
    close(on_counts.predict(logs(query), input="log"), expected)
    with pytest.raises(
        ValueError, match=r"negative numbers \(least: -2\), so these are no logarithms of 1 \+ counts.*layer="
    ):
        on_counts.predict(logs(query, shift=-2.0), input="log")


def test_corrected_counts_can_be_predicted(on_counts, query, caplog):
    prediction = on_counts.predict(corrected(query))
    assert "taken as counts" in caplog.text
    assert np.corrcoef(prediction.to_numpy().ravel(), on_counts.predict(query).to_numpy().ravel())[0, 1] > 0.9


def test_normalised_counts_are_the_same_as_counts(on_counts, query):
    expected = on_counts.predict(query)
    query.X = sp.csr_matrix(sp.diags(1e6 / np.asarray(query.X.sum(axis=1)).ravel()) @ query.X)
    close(on_counts.predict(query), expected)


def test_a_model_of_logs_predicts_logs_and_counts_alike(on_logs, query, caplog):
    name, model = on_logs
    assert model.state.setup.input == "log"
    assert model.state.panel.target_sum == pytest.approx(1e4, rel=1e-3)
    expected = model.predict(logs(query))
    with caplog.at_level(logging.INFO, "stmsi"):
        close(model.predict(query), expected)
        assert "counts in section 'P3S1'; they are log-normalised to a sum of 10,000" in caplog.text
        close(model.predict(logs(query, total=300.0)), expected)
        assert "log-normalised to another sum than the training data (10,000) in section 'P3S1'" in caplog.text
    close(model.predict(query, input="counts"), expected)
    half = np.arange(query.n_obs) % 2 == 0
    query.obs["sample"] = np.where(half, "a", "b")
    close(model.predict(logs(query, half)), expected)
    # without a neighbourhood, logs and counts of the same data make the same model
    if name == "linear":
        twin = fit(name, model.adata.copy())
        close(twin.predict(logs(query)), expected)


def test_logs_and_counts_of_the_same_data_make_the_same_model(data, query):
    a, b = fit("linear", data.copy()), fit("linear", logs(data))
    assert (a.state.setup.input, b.state.setup.input) == ("counts", "log")
    close(a.predict(query), b.predict(query), 0.01)


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_log_ratios_train_and_predict(data, query, name, tmp_path):
    centre = logs(data).X.toarray().mean(axis=0)
    ratios, own = logs(data), logs(query)
    ratios.X, own.X = ratios.X.toarray() - centre, own.X.toarray() - centre
    model = fit(name, ratios)
    assert model.state.panel.target_sum is None
    expected = model.predict(own)
    assert np.isfinite(expected.to_numpy()).all()
    with pytest.raises(
        ValueError, match=r"trained on logarithms whose scale is not known, but X holds counts .*'P3S1'"
    ):
        model.predict(query)
    assert np.isfinite(model.predict(query, input="counts").to_numpy()).all()
    if name != "ensemble":  # the shift of every gene says nothing: it is learnt from logs as from log ratios
        close(expected, fit(name, logs(data)).predict(logs(query)), 0.02)
    model.save(tmp_path / "m")
    loaded = stmsi.model.load(tmp_path / "m")
    assert loaded.card["setup"]["input"] == "log"
    close(loaded.predict(own), expected, 1e-5)
    assert np.isfinite(stmsi.model.load(tmp_path / "m", ratios).predict().to_numpy()).all()


def test_a_model_saved_before_there_were_logs_reads_counts(data, tmp_path):
    model = fit("linear", data)
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    text = path.read_text()
    for entry in ('"input":"counts",', ',"target_sum":null'):
        assert entry in text
        text = text.replace(entry, "")
    path.write_text(text)
    card = json.loads((tmp_path / "m" / "stmsi.json").read_text())
    card["files"]["model.json"] = path.stat().st_size
    (tmp_path / "m" / "stmsi.json").write_text(json.dumps(card))
    loaded = stmsi.model.load(tmp_path / "m")
    assert loaded.state.setup.input == "counts"
    assert loaded.state.panel.target_sum is None
    close(loaded.predict(data), model.predict(), 1e-5)


def test_genes_that_a_log_query_lacks_get_their_training_mean(data, query, on_logs):
    _, model = on_logs
    columns = np.r_[5 : query.n_vars]
    few = logs(query)[:, columns].copy()
    spots = SpotReader.open(few, model.state.setup, model.state.panel, input="log").read()
    assert spots.input == "log"
    assert spots.missing == pytest.approx(5 / query.n_vars)
    np.testing.assert_allclose(
        spots.log_expression().toarray()[:, :5], np.tile(model.state.panel.mean_log[:5], (query.n_obs, 1)), rtol=1e-5
    )
    np.testing.assert_array_equal(spots.counts.toarray()[:, 5:], few.X.toarray())


def test_ensembl_ids_of_a_log_query(on_logs, query):
    _, model = on_logs
    own = logs(query)
    expected = model.predict(own)
    own.var_names = pd.Index(own.var["gene_ids"].astype(str))
    own.var = own.var[[]]
    close(model.predict(own[:, ::-1].copy()), expected)


@pytest.mark.parametrize("context", ["pooled", "diffused"])
def test_neighbourhoods_of_logs_are_means(data, context):
    log = logs(data)
    HurdleLinear.setup_anndata(log, graph_key=GRAPH, **FIELDS)
    model = HurdleLinear(log, n_components=10, n_folds=2, context=context)
    model.train()
    spots = SpotReader.open(log, model.state.setup).read()
    i = 7
    around = [i, *sp.csr_matrix(log.obsp[GRAPH])[i].indices]
    np.testing.assert_allclose(
        spots.pooled_log_expression().toarray()[i], log.X.toarray()[around].mean(axis=0), atol=1e-5
    )
    assert np.isfinite(model.predict().to_numpy()).all()


def test_spots_without_a_graph_have_no_neighbourhood(data):
    HurdleLinear.setup_anndata(data, **FIELDS)
    with pytest.raises(ValueError, match="the spots have no graph"):
        SpotReader.open(data, Setup.read(data, "HurdleLinear")).read().pooled_log_expression()


# ---------------------------------------------------------------------------------------------------------- sections


@pytest.mark.parametrize("name", MODELS)
def test_without_a_column_of_sections_all_spots_are_one(data, name):
    del data.obs["sample"]
    model = fit(name, data)
    assert model.state.training["samples"] == ["all spots"]
    assert np.isfinite(model.predict().to_numpy()).all()
    with pytest.raises(KeyError, match="obs has no column 'slide'"):
        MODELS[name][0].setup_anndata(data, sample_key="slide", **FIELDS)


@pytest.mark.once
def test_the_explanations_of_a_model_of_logs(data):
    log = logs(data, shift=-1.0)
    model = fit("linear", log)
    for method in ("coefficients", "permutation"):
        stmsi.tl.attribute(log, model, method=method, n_spots=40, n_repeats=8, key_added=method)
    exact, shuffled = (log.varm[k].to_numpy()[:, 0] for k in ("coefficients", "permutation"))
    used = ~np.isnan(exact)
    assert np.corrcoef(np.abs(exact[used]), shuffled[used])[0, 1] > 0.9


def test_cross_validation_reads_all_folds_alike(data):
    named = {"ridge": {"model": "ridge", "n_components": 8, "n_folds": 2}}
    del data.varm["signature"]
    scores = stmsi.tl.cross_validate(data, named, on_leakage="ignore")
    other = data.copy()
    other.layers["log"] = logs(data).X
    other.X = np.ones(data.shape, np.float32)
    on_layer = stmsi.tl.cross_validate(other, named, layer="log", on_leakage="ignore")
    mixed = stmsi.tl.cross_validate(logs(data, last(data)), named, on_leakage="ignore")
    for table in (on_layer, mixed):
        assert (scores["pearson"] - table["pearson"]).abs().max() < 0.02

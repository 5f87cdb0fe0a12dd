"""Tissue and files that are not as they should be: every model gives finite predictions or says what is wrong."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet
from stmsi.model._families import FAMILIES
from stmsi.model.net.encoders import ENCODERS

GRAPH = "spatial_connectivities"
LINEAR = {"n_components": 8, "n_folds": 2}
SHORT = {"max_epochs": 2, "refit": False}
MODELS: dict[str, dict[str, Any]] = {
    **{name: {"model": name, **LINEAR} for name, spec in FAMILIES.items() if spec["model"] == "HurdleLinear"},
    "svm": {"model": "HurdleLinear", "presence": "svm", **LINEAR},
    "networks": {"model": "HurdleLinear", "presence": "mlp", "intensity": "mlp", **LINEAR},
    "diffused": {"model": "ridge", "context": "diffused", "setup": {"graph_key": GRAPH}, **LINEAR},
    **{
        name: {
            "model": "HurdleNet",
            "encoder": name,
            "train": SHORT,
            "setup": {"graph_key": GRAPH if kind.uses_graph else None},
        }
        for name, kind in ENCODERS.items()
    },
    "ensemble": {
        "model": "HurdleEnsemble",
        "members": ["mean", {"model": "ridge", **LINEAR}],
        "n_folds": 2,
    },
    **{
        name: {"model": name, "n_folds": 2, "setup": {"graph_key": GRAPH}}
        for name in ("gene_ridge", "kernel_ridge", "screened_ridge", "auto")
    },
}
FAST = ("ridge", "gene_ridge", "screened_ridge", "mlp", "ensemble")


def some(st: AnnData) -> AnnData:
    """Every second spot of the three sections, with three metabolites."""
    st = st[np.arange(st.n_obs) % 2 == 0].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3", "simPC_36_0"]]
    return st


@pytest.fixture
def data(st) -> AnnData:
    return some(st)


def fit(name: str, adata: AnnData, **setup: Any) -> Any:
    from stmsi.tl._models import train_model

    return train_model(adata, MODELS[name], setup, show_progress_bar=False)


def assert_finite(model: Any, adata: AnnData | None = None, **kwargs: Any) -> None:
    prediction = model._predict_all(adata, **kwargs)
    for name in ("presence", "intensity", "expected", "lower", "upper", "ood"):
        values = np.asarray(getattr(prediction, name))
        assert np.isfinite(values).all(), name
        assert (values >= 0).all(), name
    for net in (model, *getattr(model, "models_", ())):
        if isinstance(net, HurdleNet):
            assert all(np.isfinite(v.numpy()).all() for v in net.module.state_dict().values()), "no NaN weights"


def difficult(data: AnnData) -> AnnData:
    """Metabolites that are constant, absent, present once, or measured in one section or one spot."""
    measured = data.obsm["msi"].notna().to_numpy()[:, 0]
    first = np.flatnonzero(measured)[0]
    blank = pd.Series(np.where(measured, np.float32(0), np.float32(np.nan)), index=data.obs_names)
    in_one = measured & (data.obs["sample"] == "P1S1").to_numpy()
    row = np.arange(data.n_obs)
    more = {
        "absent": blank,
        "constant": blank + np.float32(2),
        "once": blank.mask(row == first, np.float32(5)),
        "one_section": data.obsm["msi"]["simPC_36_0"].where(in_one),
        "absent_but_in_one": blank.mask(in_one, np.float32(3)),
        "one_spot": blank.mask(row == first, np.float32(4)).where(row == first),
        "huge": blank.mask(measured, np.float32(1e30)),
    }
    data.obsm["msi"] = data.obsm["msi"].assign(**more)
    return data


def shaken(data: AnnData) -> AnnData:
    """Spots without counts and without neighbours, genes that nobody has, and one that drowns the others."""
    X = data.X.toarray()
    X[::7] = 0
    X[:, :5] = 0
    X[:, 5] = 1e6
    data.X = sp.csr_matrix(X)
    graph = sp.lil_matrix(data.obsp[GRAPH])
    graph[::5] = 0
    graph[:, ::5] = 0
    data.obsp[GRAPH] = sp.csr_matrix(graph)
    return data


@pytest.fixture(scope="module", params=MODELS)
def hardened(request, _mapped):
    """A model trained on all of that: not to be trained again."""
    return fit(request.param, shaken(difficult(some(_mapped.tables["st"]))))


@pytest.mark.once
def test_metabolites_that_teach_little(hardened):
    assert_finite(hardened)
    prediction = hardened._predict_all(None)
    assert (prediction.expected["absent"] == 0).all()
    assert prediction.presence["absent"].max() < 0.2
    assert prediction.presence["constant"].min() > 0.8
    if isinstance(hardened, HurdleLinear):
        np.testing.assert_allclose(prediction.intensity["constant"], 2, rtol=1e-5)


@pytest.mark.once
def test_spots_that_are_hard_to_predict(hardened, data):
    """Without counts, without neighbours, alone, with 5 % of the genes."""
    rows = np.flatnonzero(data.obs["sample"] == "P2S1")[:12]
    X = data.X[rows].toarray()
    X[:2] = 0
    query = AnnData(sp.csr_matrix(X), var=data.var.copy(), obsm={"spatial": data.obsm["spatial"][rows]})
    query.obsp[GRAPH] = sp.csr_matrix((12, 12))
    assert_finite(hardened, query)
    assert_finite(hardened, query[2].copy())
    few = query[:, ::20].copy()
    with pytest.raises(ValueError, match=r"Only \d+\.\d% of the \d+ training genes are in the data .*at least 40%"):
        hardened.predict(few)
    assert_finite(hardened, few, min_genes=0)


@pytest.mark.once
@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n].get("setup", {}).get("graph_key")])
def test_a_graph_without_edges(data, name):
    data.obsp[GRAPH] = sp.csr_matrix((data.n_obs, data.n_obs))
    assert_finite(fit(name, data))


@pytest.mark.parametrize("name", FAST)
def test_one_spot_cannot_be_trained_on(data, name):
    covered = np.flatnonzero(data.obsm["msi"].notna().all(axis=1))
    with pytest.raises(ValueError, match=r"1 spot\(s\) cannot be split|No gene varies over the training spots"):
        fit(name, data[covered[:1]].copy())


@pytest.mark.parametrize("name", [*FAST, "boosting", "pls", "knn"])
def test_a_handful_of_spots(data, name):
    """Few, but they train, or the message says that they are too few."""
    covered = np.flatnonzero(data.obsm["msi"].notna().all(axis=1))
    few = data[covered[:6]].copy()
    try:
        model = fit(name, few)
    except ValueError as error:
        assert "spot" in str(error)  # noqa: PT017
    else:
        assert_finite(model, data)


@pytest.mark.once
@pytest.mark.parametrize("name", FAST)
def test_a_fold_without_positives(data, name):
    """Each metabolite is present in one section only: whatever is held out, the others know no present or no absent."""
    measured = data.obsm["msi"].notna()
    own = pd.DataFrame({m: (data.obs["sample"] == s) for m, s in zip(measured, ("P1S1", "P2S1", "P3S1"), strict=True)})
    data.obsm["msi"] = (own.astype(np.float32) * 3).where(measured).astype(np.float32)
    assert_finite(fit(name, data))
    if name != "ensemble":
        scores = stmsi.tl.cross_validate(data, {name: MODELS[name]}, setup={}, show_progress_bar=False)
        assert set(scores["fold"]) == {0, 1, 2}


@pytest.mark.parametrize("name", FAST)
def test_nothing_measured(data, name):
    data.obsm["msi"] = data.obsm["msi"] * np.nan
    with pytest.raises(ValueError, match=r"None of the training spots has MSI"):
        fit(name, data)
    with pytest.raises(ValueError, match=r"No spot has MSI"):
        stmsi.tl.cross_validate(data, {name: MODELS[name]}, show_progress_bar=False)
    with pytest.raises(ValueError, match=r"None of the training spots has MSI"):
        stmsi.tl.predict_metabolites(data, MODELS[name])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    ("where", "value", "match"),
    [
        ("genes", np.inf, r"Gene counts contain 1 infinite values; remove or cap"),
        ("genes", np.nan, r"Gene counts contain 1 NaN"),
        ("genes", -1, r"Gene counts contain 1 negative"),
        ("msi", np.inf, r"obsm\['msi'\] contain 1 infinite values; remove or cap"),
        ("msi", -1, r"obsm\['msi'\] contain 1 negative"),
        ("names", None, r"Gene names must be unique; repeated: 'SIMG0001'"),
    ],
)
def test_impossible_training_data(data, name, where, value, match):
    if where == "genes":
        data.X[0, 0] = value
    elif where == "msi":
        data.obsm["msi"].iloc[3, 1] = value
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.var_names = [data.var_names[0], *data.var_names[:-1]]
    with pytest.raises(ValueError, match=match):
        fit(name, data)


@pytest.fixture(scope="module")
def trained(_mapped):
    st = some(_mapped.tables["st"])
    st.obs["batch"] = np.where(np.arange(st.n_obs) % 2, "a", "b")
    return {name: fit(name, st.copy(), covariate_keys=["batch"]) for name in FAST}


@pytest.mark.parametrize("name", FAST)
def test_repeated_genes_in_a_query(trained, st, name):
    st.obs["batch"] = "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        st.var_names = [st.var_names[0], *st.var_names[:-1]]
    st.var = st.var[[]]
    with pytest.raises(ValueError, match=r"Gene names must be unique; repeated: 'SIMG0001'"):
        trained[name].predict(st)


@pytest.mark.parametrize("name", FAST)
def test_a_category_that_training_did_not_have(trained, st, name):
    st.obs["batch"] = "c"
    with pytest.raises(
        ValueError,
        match=r"Covariate 'batch' has categories that training did not: 'c'; known: 'a', 'b'\. Set .*known one",
    ):
        stmsi.tl.predict_metabolites(st, trained[name])


@pytest.mark.parametrize(("name", "other"), [("ridge", HurdleNet), ("mlp", HurdleEnsemble), ("ensemble", HurdleLinear)])
def test_a_folder_of_another_model(trained, st, tmp_path, name, other):
    trained[name].save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"holds a {type(trained[name]).__name__}, not a {other.__name__}"):
        other.load(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is not a saved stmsi model: it has no stmsi\.json; found none"):
        stmsi.tl.predict_metabolites(st, tmp_path / "empty")

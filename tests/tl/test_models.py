"""Models that are trained by name: what they read without being told."""

from __future__ import annotations

import pandas as pd
import pytest
from anndata import AnnData

import stmsi
from stmsi.tl._models import is_named, train_model

SMALL = {"n_folds": 2}
READ_GRAPH = ["gene_ridge", "kernel_ridge", "screened_ridge"]


@pytest.fixture
def data(st) -> AnnData:
    """Every third spot of three sections, two metabolites, and the genes that drive one of them as prior."""
    st = st[::3].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3"]]
    drivers = st.uns["truth"]["drivers"]
    stmsi.pp.knowledge_prior(st, drivers[drivers["metabolite"] == "simPC_28_0"])
    return st


def setup_of(data, spec, setup=None):
    fitted = train_model(data.copy(), spec, setup, show_progress_bar=False)
    return fitted.state.setup, fitted


def test_the_default_reads_graph_and_prior(data):
    setup, fitted = setup_of(data, {"model": "auto", **SMALL})
    assert (setup.graph_key, setup.prior_key) == ("spatial_connectivities", "msi_prior")
    assert setup.presence_key == "msi_presence"
    assert "prior ridge" in fitted.members


def test_none_switches_both_off(data):
    setup, fitted = setup_of(data, {"model": "auto", **SMALL}, {"graph_key": None, "prior_key": None})
    assert (setup.graph_key, setup.prior_key) == (None, None)
    assert "prior ridge" not in fitted.members
    own = setup_of(data, {"model": "auto", **SMALL, "setup": {"graph_key": None, "prior_key": None}})[0]
    assert (own.graph_key, own.prior_key) == (None, None)


@pytest.mark.parametrize("name", READ_GRAPH)
def test_one_stage_models_read_the_graph_and_no_prior(data, name):
    setup, _ = setup_of(data, {"model": name, **SMALL})
    assert (setup.graph_key, setup.prior_key) == ("spatial_connectivities", None)
    assert setup_of(data, {"model": name, **SMALL}, {"graph_key": None})[0].graph_key is None


def test_prior_ridge_reads_both(data):
    setup, fitted = setup_of(data, {"model": "prior_ridge", **SMALL})
    assert (setup.graph_key, setup.prior_key) == ("spatial_connectivities", "msi_prior")
    assert fitted.metabolites == ["simPC_28_0"]


def test_the_fast_ridge_reads_neither(data):
    setup, _ = setup_of(data, {"model": "ridge", **SMALL})
    assert (setup.graph_key, setup.prior_key) == (None, None)


@pytest.mark.parametrize("name", ["auto", *READ_GRAPH])
def test_data_without_graph_and_prior_are_no_problem(data, name):
    del data.obsp["spatial_connectivities"], data.varm["msi_prior"]
    setup, fitted = setup_of(data, {"model": name, **SMALL})
    assert (setup.graph_key, setup.prior_key) == (None, None)
    assert fitted.predict().shape[1] == 2


def test_the_default_looks_up_what_is_known_of_the_metabolites(data):
    """Names of the core table and genes that belong to them: the prior is found without being asked for."""
    del data.varm["msi_prior"]
    assert setup_of(data, "auto")[0].prior_key is None, "simulated lipids are not in the table"
    for key in ("msi", "msi_presence"):
        data.obsm[key] = data.obsm[key].set_axis(["glucose", "unheard of"], axis=1)
    data.var_names = ["HK1", "HK2", *data.var_names[2:]]
    setup, fitted = setup_of(data, "auto")
    assert setup.prior_key == "msi_prior"
    assert "prior ridge" in fitted.members
    assert setup_of(data, "auto", {"prior_key": None})[0].prior_key is None
    stmsi.tl.predict_metabolites(data, "auto", show_progress_bar=False)
    assert "msi_prior" not in data.varm


def test_training_by_name_leaves_no_trace(data):
    before = {slot: set(getattr(data, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "uns")}
    stmsi.tl.predict_metabolites(data, {"model": "auto", **SMALL}, show_progress_bar=False)
    after = {slot: set(getattr(data, slot)) for slot in before}
    added = {slot: after[slot] - before[slot] for slot in before if after[slot] - before[slot]}
    assert added == {
        "obs": {"msi_pred_ood", "msi_pred_trained_on"},
        "obsm": {"msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper"},
        "uns": {"msi_pred"},
    }
    assert all(before[slot] <= after[slot] for slot in before)
    assert data.uns["msi_pred"]["model"]["class"] == "HurdleEnsemble"


def test_the_default_is_auto(data):
    import inspect

    assert inspect.signature(stmsi.tl.predict_metabolites).parameters["model"].default == "auto"
    assert is_named("auto")
    assert is_named({"model": "auto"})
    assert not is_named("a/folder")
    assert not is_named(pd.DataFrame())

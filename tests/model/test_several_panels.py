"""Sections measured with different lists of ions train together."""

import logging

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet

OWN = slice(8, 12)  # metabolites of the first section only, which is the largest and held out first
SHARED = slice(4, 8)
MODELS = {
    "ridge": (HurdleLinear, {"n_components": 15, "n_folds": 3}, {}),
    "knn": (HurdleLinear, {"presence": "prior", "intensity": "knn", "n_components": 15, "n_folds": 3}, {}),
    "net": (
        HurdleNet,
        {"encoder": "mlp", "encoder_kwargs": {"n_hidden": 32, "n_layers": 1}},
        {"max_epochs": 4, "lr": 0.01},
    ),
    "ensemble": (
        HurdleEnsemble,
        {"members": ["mean", {"model": "ridge", "n_components": 15, "n_folds": 2}], "n_folds": 2},
        {},
    ),
}


@pytest.fixture(scope="module")
def _panels(_mapped):
    sections = []
    for name, columns in (("P1S1", slice(4, 12)), ("P2S1", slice(0, 8)), ("P3S1", slice(0, 8))):
        own = _mapped.filter_by_coordinate_system([name, f"{name}_msi"])
        own.tables["msi"] = own.tables["msi"][:, columns].copy()
        sections.append(own)
    sdata = stmsi.pp.combine(sections, mz_tolerance=5)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    both, st = sdata.tables["st"], _mapped.tables["st"]
    assert (both.uns["msi"]["features"].index == both.obsm["msi"].columns).all()
    # columns in the order of the toy again
    both.obsm["msi"] = both.obsm["msi"][st.obsm["msi"].columns]
    both.obsm["msi_presence"] = st.obsm["msi_presence"].where(both.obsm["msi"].notna())
    return both


@pytest.fixture
def panels(_panels):
    return _panels.copy()


def fit(name, adata, **train):
    cls, params, own = MODELS[name]
    cls.setup_anndata(adata, presence_key="msi_presence")
    model = cls(adata, **params)
    model.train(**{**own, **train})
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_metabolite_is_predicted_everywhere(panels, st, name):
    model = fit(name, panels)
    assert model.metabolites == list(panels.obsm["msi"].columns)
    lower, upper = model.predict_interval()
    for frame in (model.predict(), model.predict_presence(), model.predict_intensity(), lower, upper):
        assert frame.shape == panels.obsm["msi"].shape
        assert np.isfinite(frame.to_numpy()).all()
    assert model.predict_intensity().iloc[:, OWN].std().min() > 0, "learnt, and not a constant"
    # what was not measured must not count as absent: presence is as common as where it was measured
    measured = panels.obsm["msi_presence"].mean()
    common = measured[OWN] > 0.9
    assert (model.predict_presence().iloc[:, OWN].mean()[common] > 0.7).all()
    card = {m["id"]: m for m in model.card["metabolites"]}
    if name != "net":  # whose evidence is of its validation spots
        n = panels.obsm["msi"].notna().sum()
        assert {m: c["n_spots"] for m, c in card.items()} == n.to_dict()


@pytest.mark.parametrize("name", ["ridge", "knn"])
def test_metabolites_of_one_section_are_trained_on_it_alone(panels, name):
    expected = fit(name, panels.copy()).predict().iloc[:, OWN]
    for key in ("msi", "msi_presence"):
        frame = panels.obsm[key].copy()
        other = frame.columns[:8]
        frame[other] = frame[other].to_numpy()[:, ::-1]
        panels.obsm[key] = frame
    assert_frame_equal(fit(name, panels).predict().iloc[:, OWN], expected, check_exact=True)


def test_their_penalty_is_chosen_on_blocks_of_that_section(panels):
    model = fit("ridge", panels)
    chosen = [r.strength for r in model.regressions_]
    assert np.isfinite(chosen[OWN]).all()
    held_out = model.state.feature_table["held_out_pearson"].to_numpy()
    assert np.isfinite(held_out[OWN]).any()


def test_without_positions_they_have_no_held_out_evidence(panels, caplog):
    del panels.obsm["spatial"]
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit("ridge", panels)
    ids = list(panels.obsm["msi"].columns[OWN])
    assert f"whose spots cannot be split into blocks, have no held-out predictions: {ids[0]!r}" in caplog.text
    assert model.state.feature_table.loc[ids, "held_out_pearson"].isna().all()
    assert np.isfinite(model.predict_intensity()[ids]).all(axis=None)
    assert model.metabolites == list(panels.obsm["msi"].columns)


def test_a_net_holds_out_a_block_of_a_section_that_alone_measured_something(panels, caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit("net", panels, refit=False)
    assert "left out" not in caplog.text
    own = model.state.feature_table["n_spots"].to_numpy()[OWN]
    covered = int(panels.obsm["msi"].iloc[:, 8].notna().sum())
    assert (own > 0).all()
    assert (own < covered / 2).all(), "the rest of the section is trained on"


def test_sections_of_one_panel_predict_another_section(panels, st):
    """Query data need no list of ions at all."""
    model = fit("ridge", panels)
    query = st[st.obs["sample"] == "P3S1"].copy()
    del query.obsm["msi"], query.obsm["msi_presence"]
    stmsi.tl.predict_metabolites(query, model)
    assert query.obsm["msi_pred"].shape[1] == 12
    assert query.obsm["msi_pred"].iloc[:, OWN].std().min() > 0
    features = stmsi.get.feature_table(query, metabolite_key="msi_pred")
    assert features["mz"].notna().all(), "also of those that the first table did not have"


def test_a_metabolite_whose_presence_was_never_called_is_left_out(st, caplog):
    unknown = st.obsm["msi"].columns[1]
    st.obsm["msi_presence"][unknown] = np.nan
    HurdleLinear.setup_anndata(st, presence_key="msi_presence")
    model = HurdleLinear(st, n_components=5, n_folds=2)
    model.train(show_progress_bar=False)
    assert unknown not in model.metabolites
    assert f"never measured in the training spots are left out: {unknown}" in caplog.text.replace("'", "")

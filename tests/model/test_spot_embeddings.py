"""Embeddings of spots by a foundation model, as features beside the genes; a stub stands in for the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi

KEY = "X_stub"
LINEAR = {"n_components": 8, "n_folds": 2}
MODELS: dict[str, dict[str, Any]] = {
    "ridge": {"model": "ridge", **LINEAR},
    "gene_ridge": {"model": "gene_ridge", "n_folds": 2},
    "kernel_ridge": {"model": "kernel_ridge", "n_folds": 2},
    "mlp": {"model": "mlp", "train": {"max_epochs": 5}},
    "ensemble": {"model": "ensemble", "members": ["mean", {"model": "ridge", **LINEAR}], "n_folds": 2},
}


class StubEmbedding:
    """What a pretrained model offers: fixed weights, and an embedding of 12 numbers for the spots of any AnnData.

    It sees a state of the spots (``obs["state"]``) that the few genes of the panel do not show.
    """

    def __init__(self) -> None:
        self.weight = np.random.default_rng(5).normal(size=(2, 12))

    def embed(self, adata: AnnData) -> np.ndarray:
        state = adata.obs["state"].to_numpy()
        return np.column_stack([state, np.sin(3 * state)]) @ self.weight * 50 + 7


@pytest.fixture
def data(make_sections) -> AnnData:
    """Three sections whose first metabolite follows the hidden state, and no gene."""
    adata = make_sections((40, 40, 40), seed=3)
    state = np.cos(adata.obsm["spatial"] @ [0.012, 0.007] + np.repeat([0.0, 1.0, 2.0], 40))
    adata.obs["state"] = state
    frame = adata.obsm["msi"].copy()
    frame["first"] = (4 + 2 * state).astype(np.float32)
    adata.obsm["msi"] = frame
    adata.obsm[KEY] = StubEmbedding().embed(adata)
    return adata


def score(adata: AnnData, spec: dict[str, Any], setup: dict[str, Any]) -> float:
    scores = stmsi.tl.cross_validate(adata, {"it": spec}, setup=setup, show_progress_bar=False)
    return float(scores.query("stage == 'intensity' and metabolite == 'first'")["pearson"].mean())


@pytest.mark.once
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_tell_what_genes_do_not(data, name):
    """On sections that were not trained on."""
    without, with_it = (score(data, MODELS[name], {"graph_key": None, "feature_key": k}) for k in (None, KEY))
    assert with_it > 0.8
    assert with_it > without + 0.3


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_read_from_data_that_are_predicted(data, name, tmp_path):
    own = data.obs["sample"] == "s2"
    old, new = data[~own].copy(), data[own].copy()
    new.obsm = {KEY: new.obsm[KEY], "spatial": new.obsm["spatial"]}
    if name == "ensemble" or "ridge" in name:
        new.obsp = data[own].obsp
    setup = {"graph_key": None, "feature_key": KEY}
    from stmsi.tl._models import train_model

    model = train_model(old, MODELS[name], setup, show_progress_bar=False)
    expected = model.predict(new)
    assert np.corrcoef(expected["first"], 4 + 2 * new.obs["state"])[0, 1] > 0.8
    model.save(tmp_path / "model")
    assert_frame_equal(stmsi.model.load(tmp_path / "model").predict(new), expected, rtol=1e-4)
    # whoever scales the embedding anew gives other inputs; forms do not matter
    new.obsm[KEY] = sp.csr_matrix(new.obsm[KEY])
    assert_frame_equal(model.predict(new), expected, rtol=1e-4, atol=1e-4)
    narrow = new.copy()
    narrow.obsm[KEY] = narrow.obsm[KEY][:, :4]
    with pytest.raises(ValueError, match=r"had 12 columns in training, found 4"):
        model.predict(narrow)
    del new.obsm[KEY]
    with pytest.raises(
        KeyError, match=r"features obsm\['X_stub'\], which the data lack.*Compute them for these spots too"
    ):
        model.predict(new)


def test_several_embeddings_and_names_of_columns(data):
    frame = pd.DataFrame(data.obsm[KEY], index=data.obs_names, columns=[f"dim{i}" for i in range(12)])
    data.obsm["X_other"] = frame
    stmsi.model.HurdleLinear.setup_anndata(data, feature_key=[KEY, "X_other"])
    model = stmsi.model.HurdleLinear(data, **LINEAR)
    model.train()
    other = data.copy()
    other.obsm["X_other"] = frame[frame.columns[::-1]]
    assert_frame_equal(model.predict(other), model.predict(), rtol=1e-4)


def test_spots_that_were_not_embedded_are_named(data):
    data.obsm[KEY][3] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_stub'\] are NaN or infinite in 1 spots; fill them or leave"):
        stmsi.tl.predict_metabolites(data, MODELS["ridge"], setup={"feature_key": KEY})
    with pytest.raises(KeyError, match=r"obsm has no 'X_stubb'.*Did you mean 'X_stub'"):
        stmsi.tl.predict_metabolites(data, MODELS["ridge"], setup={"feature_key": "X_stubb"})


def test_the_call_of_the_guide(mapped):
    """On a SpatialData, by name, with the features in its ST table."""
    st = mapped.tables["st"]
    st.obsm[KEY] = np.random.default_rng(0).normal(size=(st.n_obs, 6)).astype(np.float32)
    stmsi.tl.predict_metabolites(
        mapped, {"model": "ridge", **LINEAR, "setup": {"feature_key": KEY}}, show_progress_bar=False
    )
    assert st.obsm["msi_pred"].shape == st.obsm["msi"].shape


def test_a_stack_does_without_an_embedding_that_tells_nothing(data):
    """The call of the guide: members with and without it."""
    rng = np.random.default_rng(1)
    data.obsm[KEY] = rng.normal(size=(data.n_obs, 200))
    members = {"genes": {"model": "gene_ridge", "setup": {"feature_key": None}}, "both": "gene_ridge"}
    setup = {"graph_key": None, "feature_key": KEY}
    stmsi.model.HurdleEnsemble.setup_anndata(data, **setup)
    stack = stmsi.model.HurdleEnsemble(data, members=members, n_folds=3)
    stack.train()
    weight = stack.weights.query("stage == 'intensity'").groupby("member")["weight"].mean()
    assert weight["genes"] > 0.8

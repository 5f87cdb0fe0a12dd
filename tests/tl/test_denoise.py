import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleLinear


@pytest.fixture(scope="module")
def sections(three_patients):
    return three_patients.copy()


@pytest.fixture(scope="module")
def model(sections):
    HurdleLinear.setup_anndata(sections)
    fitted = HurdleLinear(sections, n_components=10)
    fitted.train()
    return fitted


@pytest.fixture
def st(sections):
    return sections.copy()


def _unexplained(st, found):
    """Mean of 1 - r^2 against the log of the noiseless intensity, inside sections."""
    truth, sample = np.log(st.obsm["truth_intensity"]), st.obs["sample"].astype(str)
    return np.mean([(1 - found[sample == s].corrwith(truth[sample == s]) ** 2).mean() for s in sample.unique()])


@pytest.mark.once
def test_closer_to_the_truth_than_the_mean_of_the_ring(st, model):
    before = st.obsm["msi"].copy()
    assert stmsi.tl.denoise(st, model) is None
    found = st.obsm["msi_denoised"]
    graph = (st.obsp["spatial_connectivities"] > 0).astype(float)
    filled, known = before.fillna(0).to_numpy(), before.notna().to_numpy().astype(float)
    ring = before.where(before.isna(), (filled + graph @ filled) / np.maximum(known + graph @ known, 1))
    assert _unexplained(st, found) < 0.96 * _unexplained(st, ring) < _unexplained(st, before)
    assert_frame_equal(st.obsm["msi"], before)
    np.testing.assert_array_equal(found.isna(), before.isna())
    assert (found.dtypes == np.float32).all()
    assert float(found.min(axis=None)) >= 0
    assert st.uns["msi_denoised"]["params"] == {
        "metabolite_key": "msi", "graph_key": "spatial_connectivities", "include_self": True, "model": "HurdleLinear"
    }  # fmt: skip
    assert list(stmsi.get.feature_table(st, metabolite_key="msi_denoised").index) == list(found)


def test_predictions_of_training_spots_are_held_out(st, model, caplog):
    """What the model keeps in memory is used, and is not what it predicts when it has seen the spot."""
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.denoise(st, model)
    assert caplog.text == ""
    stmsi.tl.predict_metabolites(st, model)
    stmsi.tl.denoise(st, key_added="seen")
    assert st.uns["seen"]["params"]["pred_key"] == "msi_pred"
    assert not np.allclose(st.obsm["seen"].fillna(0), st.obsm["msi_denoised"].fillna(0))


def test_a_saved_model_is_told_of(st, model, tmp_path, caplog):
    model.save(tmp_path / "lipids")
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.tl.denoise(st, tmp_path / "lipids")
    assert "has no held-out predictions of their measured spots" in caplog.text
    assert st.uns["msi_denoised"]["params"]["model"] == "lipids"


def test_sections_do_not_mix(st, model):
    stmsi.tl.denoise(st, model)
    one = st[(st.obs["sample"] == "P2S1").to_numpy()].copy()
    whole = one.obsm["msi_denoised"].copy()
    stmsi.tl.denoise(one, model)
    np.testing.assert_allclose(one.obsm["msi_denoised"], whole, rtol=1e-5)


def test_what_is_not_predicted_is_denoised_by_its_surroundings(st, model):
    frame = st.obsm["msi"].copy()
    frame["more"] = frame.iloc[:, 0]
    st.obsm["msi"] = frame
    stmsi.tl.denoise(st, model)
    more = st.obsm["msi_denoised"]["more"]
    np.testing.assert_array_equal(more.isna(), frame["more"].isna())
    assert not np.allclose(more.fillna(0), st.obsm["msi_denoised"].iloc[:, 0].fillna(0))


def test_a_copy_leaves_the_data_alone_and_the_result_goes_to_disk(st, model, tmp_path):
    out = stmsi.tl.denoise(st, model, copy=True)
    assert "msi_denoised" not in st.obsm
    assert "msi_denoised" not in st.uns
    out.write_h5ad(tmp_path / "st.h5ad")
    back = ad.read_h5ad(tmp_path / "st.h5ad")
    np.testing.assert_array_equal(back.obsm["msi_denoised"], out.obsm["msi_denoised"])


def test_imputed_values_were_not_measured(st, model):
    frame = st.obsm["msi"].copy()
    observed = frame.notna()
    observed.iloc[::3, 0] = False
    st.obsm["msi_observed"] = observed
    stmsi.tl.denoise(st, model)
    np.testing.assert_array_equal(st.obsm["msi_denoised"].isna(), ~observed)


def test_what_is_missing_is_named(st, model):
    with pytest.raises(KeyError, match=r"obsm has no 'msi_pred'.*predict_metabolites"):
        stmsi.tl.denoise(st)
    with pytest.raises(KeyError, match=r"obsp has no 'neighbours'.*stmsi\.pp\.spatial_graph"):
        stmsi.tl.denoise(st, model, graph_key="neighbours")
    with pytest.raises(KeyError, match=r"obsm has no 'lipids'.*map_to_spots"):
        stmsi.tl.denoise(st, model, metabolite_key="lipids")
    with pytest.raises(TypeError, match="Expected a trained model"):
        stmsi.tl.denoise(st, 3)
    st.obsm["msi"] = st.obsm["msi"] * np.nan
    with pytest.raises(ValueError, match="holds no measured intensity"):
        stmsi.tl.denoise(st, model)


@pytest.mark.parametrize("key", ["msi", "spatial"])
def test_nothing_but_an_earlier_result_is_replaced(st, model, key):
    with pytest.raises(
        ValueError, match=rf"key_added='{key}' would replace (obsm|uns)\['{key}'\], which was not denoised"
    ):
        stmsi.tl.denoise(st, model, key_added=key)
    stmsi.tl.denoise(st, model)
    stmsi.tl.denoise(st, model, include_self=False)
    assert st.uns["msi_denoised"]["params"]["include_self"] is False


def test_predictions_may_be_a_frame_of_the_user(st):
    st.obsm["other"] = pd.DataFrame(1.0, st.obs_names, st.obsm["msi"].columns)
    stmsi.tl.denoise(st, pred_key="other")
    assert st.obsm["msi_denoised"].notna().to_numpy().any()

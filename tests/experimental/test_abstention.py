import numpy as np
import pandas as pd
import pytest

import stmsi

NAMES = ["simPC_28_0", "simPC_31_3", "simPC_36_0"]


@pytest.fixture
def predicted(st):
    """Invented predictions, whose error is as large as the interval is wide."""
    rng = np.random.default_rng(0)
    st.obsm["msi"] = st.obsm["msi"][NAMES]
    width = pd.DataFrame(rng.gamma(2, 1, (st.n_obs, 3)), index=st.obs_names, columns=NAMES)
    error = width * rng.normal(size=width.shape)
    mean = (st.obsm["msi"].fillna(1) + error).clip(lower=0)
    st.obsm["msi_pred"] = mean
    st.obsm["msi_pred_lower"], st.obsm["msi_pred_upper"] = mean, mean + width
    st.obsm["msi_pred_presence"] = pd.DataFrame(rng.random(width.shape), index=st.obs_names, columns=NAMES)
    st.obs["msi_pred_ood"] = rng.random(st.n_obs)
    return st


def test_the_table_is_tidy(predicted):
    before = predicted.copy()
    curve = stmsi.experimental.abstention(predicted)
    assert list(curve) == ["sample", "by", "metabolite", "share", "n", "mae", "mse", "relative_mae"]
    assert len(curve) == 3 * 3 * 3 * 10
    assert not curve.duplicated(["sample", "by", "metabolite", "share"]).any()
    assert curve["by"].drop_duplicates().tolist() == ["interval", "presence", "ood"]
    assert list(predicted.obsm) == list(before.obsm)


def test_errors_by_hand(predicted):
    curve = stmsi.experimental.abstention(predicted, ["interval", "presence", "ood"], shares=[0.3, 1])
    rows = (predicted.obs["sample"] == "P2S1").to_numpy() & predicted.obsm["msi"][NAMES[1]].notna().to_numpy()
    part = {key: predicted.obsm[key].loc[rows, NAMES[1]] for key in predicted.obsm if key.startswith("msi")}
    error = (part["msi_pred"] - part["msi"]).abs()
    uncertain = {
        "interval": part["msi_pred_upper"] - part["msi_pred_lower"],
        "presence": -(part["msi_pred_presence"] - 0.5).abs(),
        "ood": predicted.obs.loc[rows, "msi_pred_ood"],
    }
    n = int(np.ceil(0.3 * len(error)))
    for name, values in uncertain.items():
        kept = error.loc[values.sort_values(kind="stable").index[:n]]
        own = curve[(curve["sample"] == "P2S1") & (curve["by"] == name) & (curve["metabolite"] == NAMES[1])]
        assert own["n"].tolist() == [n, len(error)]
        np.testing.assert_allclose(own["mae"], [kept.mean(), error.mean()])
        np.testing.assert_allclose(own["mse"], [(kept**2).mean(), (error**2).mean()])
        np.testing.assert_allclose(own["relative_mae"], [kept.mean() / error.mean(), 1])


@pytest.mark.once
def test_a_good_uncertainty_lowers_the_error_a_useless_one_does_not_and_none_beats_the_oracle(predicted):
    curve = stmsi.experimental.abstention(predicted, ["interval", "ood", "oracle"], shares=[0.5, 1])
    half = curve[curve["share"] == 0.5].groupby("by")["relative_mae"].mean()
    assert half["oracle"] < half["interval"] < 0.75
    assert half["ood"] == pytest.approx(1, abs=0.1)
    everything = curve[curve["share"] == 1]
    assert (everything["relative_mae"] == 1).all()


def test_sections_and_metabolites_without_msi_have_no_rows(predicted):
    frame = predicted.obsm["msi"].copy()
    frame.loc[(predicted.obs["sample"] == "P1S1").to_numpy()] = np.nan
    frame.loc[(predicted.obs["sample"] == "P2S1").to_numpy(), NAMES[0]] = np.nan
    predicted.obsm["msi"] = frame
    curve = stmsi.experimental.abstention(predicted, "ood")
    assert curve.groupby("sample")["metabolite"].nunique().to_dict() == {"P2S1": 2, "P3S1": 3}
    predicted.obsm["msi"] = frame * np.nan
    with pytest.raises(ValueError, match="No section has MSI"):
        stmsi.experimental.abstention(predicted)


def test_a_prediction_without_error_has_no_relative_one(predicted):
    predicted.obsm["msi"] = predicted.obsm["msi_pred"]
    curve = stmsi.experimental.abstention(predicted, "interval")
    assert (curve["mae"] == 0).all()
    assert curve["relative_mae"].isna().all()


@pytest.mark.parametrize("shares", [[], [0.0, 0.5], [1.1], [np.nan]])
def test_shares_out_of_range(predicted, shares):
    with pytest.raises(ValueError, match="shares lie above 0 and up to 1"):
        stmsi.experimental.abstention(predicted, shares=shares)


def test_missing_input_is_named(predicted):
    with pytest.raises(ValueError, match=r"by='width' is not known; choose one of .*interval"):
        stmsi.experimental.abstention(predicted, "width")
    with pytest.raises(ValueError, match="at least one uncertainty"):
        stmsi.experimental.abstention(predicted, [])
    predicted.obsm["msi_pred_upper"] = predicted.obsm["msi_pred_upper"].drop(columns=NAMES[0])
    with pytest.raises(ValueError, match=r"obsm\['msi_pred_upper'\] lacks the metabolites .*simPC_28_0"):
        stmsi.experimental.abstention(predicted)
    del predicted.obs["msi_pred_ood"]
    with pytest.raises(KeyError, match="predict_metabolites writes it"):
        stmsi.experimental.abstention(predicted, "ood")
    predicted.obsm["msi"] = predicted.obsm["msi"].rename(columns=lambda c: f"other_{c}")
    with pytest.raises(ValueError, match="share no metabolite"):
        stmsi.experimental.abstention(predicted)

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal
from scipy import stats
from sklearn import metrics as sk

import stmsi

PRESENCE = ["precision", "recall", "f1", "mcc", "auroc", "auprc", "prevalence", "brier", "ece"]
INTENSITY = [
    "mse", "mae", "r2", "pearson", "pearson_between", "pearson_pooled", "spearman", "pearson_present", "coverage",
    "interval_width",
]  # fmt: skip
MOMENTS = [
    "measured_mean", "predicted_mean", "measured_sd", "predicted_sd", "training_mean", "training_predicted_mean",
]  # fmt: skip
ACROSS = ["pearson_between", "pearson_pooled"]


@pytest.fixture
def predicted(st) -> AnnData:
    """Invented predictions: scores do not depend on a model."""
    rng = np.random.default_rng(0)
    names = ["simPC_28_0", "simPC_31_3", "simPC_36_0"]
    measured = st.obsm["msi"][names]
    st.obsm["msi"], st.obsm["msi_presence"] = measured, st.obsm["msi_presence"][names]
    p = pd.DataFrame(rng.random(measured.shape).astype(np.float32), index=st.obs_names, columns=names)
    mean = measured.fillna(1) + rng.gamma(1, 1, measured.shape)
    st.obsm["msi_pred_presence"] = p
    st.obsm["msi_pred"] = (mean * p).where(p > 0.4, 0).astype(np.float32)
    st.uns["msi_pred"] = {"features": pd.DataFrame({"training_mean": [1.0, 2.0, 3.0]}, index=names)}
    return st


def row(table, stage, sample="P2S1", metabolite="simPC_28_0"):
    found = table[(table["sample"] == sample) & (table["metabolite"] == metabolite) & (table["stage"] == stage)]
    assert len(found) == 1
    return found.iloc[0]


def test_one_row_per_section_metabolite_and_stage(predicted):
    table = stmsi.tl.evaluate(predicted)
    assert list(table) == [
        "sample",
        "metabolite",
        "stage",
        "n",
        "trained_on",
        *PRESENCE,
        *INTENSITY,
        *MOMENTS,
        "reason",
    ]
    assert len(table) == 3 * 3 * 2
    assert not table.duplicated(["sample", "metabolite", "stage"]).any()
    assert table.loc[table["stage"] == "presence", [*INTENSITY, *MOMENTS]].isna().to_numpy().all()
    assert table.loc[table["stage"] == "intensity", PRESENCE].isna().to_numpy().all()
    assert (table[[*PRESENCE, *INTENSITY]].dtypes == np.float64).all()


@pytest.fixture
def arrays(predicted):
    """Covered spots of one section and metabolite: truth, presence, prediction, probability."""
    own = (predicted.obs["sample"] == "P2S1").to_numpy() & predicted.obsm["msi"]["simPC_28_0"].notna().to_numpy()
    keys = ("msi", "msi_presence", "msi_pred", "msi_pred_presence")
    return [predicted.obsm[k].loc[own, "simPC_28_0"].to_numpy(float) for k in keys]


def test_presence_scores_by_hand(predicted, arrays):
    _, present, pred, p = arrays
    got = row(stmsi.tl.evaluate(predicted), "presence")
    called = pred > 0
    expected = {
        "n": len(present),
        "precision": sk.precision_score(present, called),
        "recall": sk.recall_score(present, called),
        "f1": sk.f1_score(present, called),
        "auroc": sk.roc_auc_score(present, p),
        "auprc": sk.average_precision_score(present, p),
        "prevalence": present.mean(),
        "brier": ((p - present) ** 2).mean(),
        "ece": stmsi.metrics.ece(present, p)[0],
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_intensity_scores_by_hand(predicted, arrays):
    y, present, pred, _ = arrays
    got = row(stmsi.tl.evaluate(predicted), "intensity")
    there = present > 0
    expected = {
        "n": len(y),
        "mse": sk.mean_squared_error(y, pred),
        "mae": sk.mean_absolute_error(y, pred),
        "r2": 1 - ((y - pred) ** 2).sum() / ((y - 1.0) ** 2).sum(),
        "pearson": stats.pearsonr(y, pred)[0],
        "spearman": stats.spearmanr(y, pred)[0],
        "pearson_present": stats.pearsonr(y[there], pred[there])[0],
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_coverage_and_width_by_hand(predicted, arrays):
    y, _, pred, _ = arrays
    assert np.isnan(row(stmsi.tl.evaluate(predicted), "intensity")["coverage"])  # no bounds were written
    predicted.obsm["msi_pred_lower"] = 0.5 * predicted.obsm["msi_pred"]
    predicted.obsm["msi_pred_upper"] = 1.5 * predicted.obsm["msi_pred"]
    got = row(stmsi.tl.evaluate(predicted), "intensity")
    assert 0 < got["coverage"] < 1
    assert got["coverage"] == pytest.approx(((0.5 * pred <= y) & (y <= 1.5 * pred)).mean())
    assert got["interval_width"] == pytest.approx(pred.mean(), rel=1e-6)


def test_scores_are_inside_sections(predicted):
    """The level of another section changes nothing in this one."""
    base = stmsi.tl.evaluate(predicted)
    frame = predicted.obsm["msi"].copy()
    frame.loc[(predicted.obs["sample"] == "P1S1").to_numpy()] *= 100
    predicted.obsm["msi"] = frame
    got = stmsi.tl.evaluate(predicted)
    others = base["sample"] != "P1S1"
    assert_frame_equal(got[others].drop(columns=ACROSS), base[others].drop(columns=ACROSS))
    both = others & (base["stage"] == "intensity")
    assert (got.loc[both, ACROSS] != base.loc[both, ACROSS]).all(axis=None)
    assert not got[~others].equals(base[~others])


def test_level_and_pattern_by_hand(predicted):
    table = stmsi.tl.evaluate(predicted)
    name = "simPC_31_3"
    own = table[(table["metabolite"] == name) & (table["stage"] == "intensity")].set_index("sample")
    frame = pd.DataFrame({k: predicted.obsm[k][name].to_numpy(float) for k in ("msi", "msi_pred")}).dropna()
    sample = predicted.obs["sample"].astype(str).to_numpy()[frame.index]
    means = frame.groupby(sample).mean()
    np.testing.assert_allclose(own["measured_mean"], means["msi"][own.index])
    np.testing.assert_allclose(own["predicted_sd"], frame.groupby(sample)["msi_pred"].std(ddof=0)[own.index])
    assert (own["training_mean"] == 2).all()
    np.testing.assert_allclose(own["pearson_between"], stats.pearsonr(means["msi"], means["msi_pred"])[0])
    np.testing.assert_allclose(own["pearson_pooled"], stats.pearsonr(frame["msi"], frame["msi_pred"])[0])


def test_two_sections_tell_nothing_of_the_level(predicted):
    frame = predicted.obsm["msi"].copy()
    frame.loc[(predicted.obs["sample"] == "P1S1").to_numpy()] = np.nan
    predicted.obsm["msi"] = frame
    own = stmsi.tl.evaluate(predicted).query("stage == 'intensity'")
    assert own["pearson_between"].isna().all()
    assert own["reason"].str.endswith("fewer than 3 sections").all()
    assert own["pearson_pooled"].notna().all()


def test_sections_without_msi_have_no_rows(predicted):
    frame = predicted.obsm["msi"].copy()
    frame.loc[(predicted.obs["sample"] == "P1S1").to_numpy()] = np.nan
    predicted.obsm["msi"] = frame
    table = stmsi.tl.evaluate(predicted)
    assert set(table["sample"]) == {"P2S1", "P3S1"}


def test_a_metabolite_that_a_section_lacks_has_no_row_there(predicted):
    frame = predicted.obsm["msi"].copy()
    frame.loc[(predicted.obs["sample"] == "P1S1").to_numpy(), "simPC_31_3"] = np.nan
    predicted.obsm["msi"] = frame
    table = stmsi.tl.evaluate(predicted)
    assert table.groupby("sample")["metabolite"].nunique().to_dict() == {"P1S1": 2, "P2S1": 3, "P3S1": 3}


def test_scores_that_do_not_exist_are_nan(predicted):
    predicted.obsm["msi_pred"] = predicted.obsm["msi_pred"].assign(simPC_28_0=np.float32(2))
    got = row(stmsi.tl.evaluate(predicted), "intensity")
    assert np.isnan(got["pearson"])
    assert np.isnan(got["spearman"])
    assert np.isfinite(got["mse"])
    always = row(stmsi.tl.evaluate(predicted), "presence", metabolite="simPC_36_0")
    assert always["prevalence"] == 1
    assert np.isnan(always["auroc"])


def test_presence_comes_from_the_table_or_from_the_intensity(predicted):
    default = stmsi.tl.evaluate(predicted)
    assert_frame_equal(stmsi.tl.evaluate(predicted, presence_key="msi_presence"), default)
    predicted.obsm["other"] = (1 - predicted.obsm["msi_presence"]).astype(np.float32)
    other = row(stmsi.tl.evaluate(predicted, presence_key="other"), "presence")
    assert other["prevalence"] == pytest.approx(1 - row(default, "presence")["prevalence"])
    del predicted.obsm["msi_presence"]
    y = predicted.obsm["msi"].loc[(predicted.obs["sample"] == "P2S1").to_numpy(), "simPC_28_0"].dropna()
    assert row(stmsi.tl.evaluate(predicted), "presence")["prevalence"] == pytest.approx((y > 0).mean())


def test_other_keys_and_tables(predicted, mapped):
    expected = stmsi.tl.evaluate(predicted)
    mapped.tables["st"] = predicted
    assert_frame_equal(stmsi.tl.evaluate(mapped), expected)
    for key in ("", "_presence"):
        predicted.obsm[f"lipids{key}"] = predicted.obsm.pop(f"msi_pred{key}")
    predicted.uns["lipids"] = predicted.uns.pop("msi_pred")
    predicted.obsm["truth"] = predicted.obsm["msi"]
    predicted.obs["slide"] = predicted.obs["sample"]
    got = stmsi.tl.evaluate(
        predicted, pred_key="lipids", metabolite_key="truth", presence_key="msi_presence", sample_key="slide"
    )
    assert_frame_equal(got, expected)


def test_only_shared_metabolites_are_scored(predicted):
    predicted.obsm["msi"] = predicted.obsm["msi"].rename(columns={"simPC_31_3": "other"})
    predicted.obsm["msi_presence"] = predicted.obsm["msi_presence"].rename(columns={"simPC_31_3": "other"})
    assert set(stmsi.tl.evaluate(predicted)["metabolite"]) == {"simPC_28_0", "simPC_36_0"}
    predicted.obsm["msi_pred"] = predicted.obsm["msi_pred"][["simPC_31_3"]]
    with pytest.raises(ValueError, match=r"share no metabolite: 'simPC_31_3' against 'simPC_28_0', 'other'"):
        stmsi.tl.evaluate(predicted)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("msi_pred", "tl.predict_metabolites"),
        ("msi_pred_presence", "tl.predict_metabolites"),
        ("msi", "pp.map_to_spots"),
    ],
)
def test_what_is_missing_names_the_call_that_writes_it(predicted, key, call):
    del predicted.obsm[key]
    with pytest.raises(KeyError, match=rf"obsm has no '{key}'.*stmsi\.{call} writes it"):
        stmsi.tl.evaluate(predicted)


def test_missing_training_means_name_the_call(predicted):
    del predicted.uns["msi_pred"]
    with pytest.raises(KeyError, match=r"uns\['msi_pred'\] has no training means; predict again with stmsi\.tl"):
        stmsi.tl.evaluate(predicted)


def test_nothing_to_score_against(predicted):
    predicted.obsm["msi"] = predicted.obsm["msi"] * np.nan
    with pytest.raises(ValueError, match="No section has MSI to score against"):
        stmsi.tl.evaluate(predicted)


def test_the_data_are_not_changed(predicted):
    before = predicted.copy()
    stmsi.tl.evaluate(predicted)
    assert set(predicted.obsm) == set(before.obsm)
    assert_frame_equal(predicted.obsm["msi"], before.obsm["msi"])
    assert_frame_equal(predicted.obs, before.obs)


def test_a_prediction_is_not_scored_against_itself(predicted):
    with pytest.raises(ValueError, match="cannot be scored against itself"):
        stmsi.tl.evaluate(predicted, pred_key="msi", metabolite_key="msi")


@pytest.mark.parametrize("key", ["msi", "msi_pred"])
@pytest.mark.parametrize(("value", "match"), [(np.inf, "infinite"), (-1.0, "negative")])
def test_intensities_that_cannot_be(predicted, key, value, match):
    predicted.obsm[key].iloc[0, 0] = value
    with pytest.raises(ValueError, match=rf"obsm\['{key}'\] contain 1 {match}"):
        stmsi.tl.evaluate(predicted)


def test_presence_of_other_metabolites(predicted):
    predicted.obsm["some"] = predicted.obsm["msi_presence"].iloc[:, 1:]
    with pytest.raises(ValueError, match=r"obsm\['some'\] lacks the metabolites 'simPC_28_0'; it holds"):
        stmsi.tl.evaluate(predicted, presence_key="some")


@pytest.mark.parametrize("called", [True, False])
def test_imputed_intensities_are_no_truth(predicted, called):
    if not called:
        del predicted.obsm["msi_presence"]
    before = stmsi.tl.evaluate(predicted)
    measured = predicted.obsm["msi"].copy()
    stmsi.pp.impute_dropout(predicted)
    assert (predicted.obsm["msi"] != measured).to_numpy()[measured.notna().to_numpy()].any()
    after = stmsi.tl.evaluate(predicted)
    # stage 1 is scored as before, stage 2 on what was measured
    stage = before["stage"] == "presence"
    assert_frame_equal(after[stage], before[stage])
    own = (predicted.obs["sample"] == "P2S1").to_numpy() & (measured["simPC_28_0"] > 0).to_numpy()
    y, pred = (f.loc[own, "simPC_28_0"].to_numpy(float) for f in (measured, predicted.obsm["msi_pred"]))
    got = row(after, "intensity")
    assert got["n"] == own.sum() < row(before, "intensity")["n"]
    assert got["mse"] == pytest.approx(np.mean((y - pred) ** 2))
    assert got["pearson"] == pytest.approx(stats.pearsonr(y, pred)[0])


def test_a_record_of_imputation_that_does_not_fit_is_refused(predicted):
    stmsi.pp.impute_dropout(predicted)
    predicted.obsm["msi_observed"] = predicted.obsm["msi_observed"].iloc[:, :1]
    with pytest.raises(ValueError, match=r"obsm\['msi_observed'\] lacks the metabolites.*map and impute again"):
        stmsi.tl.evaluate(predicted)

import numpy as np
import pandas as pd
import pytest

import stmsi

IDS = ["good", "fair", "weak", "lucky", "seen", "never"]


def rows(
    model: str, pearson: dict[str, float], auroc: dict[str, float] | None = None, noise: float = 0.02
) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for sample in ("A", "B", "C", "D"):
        shift = noise * rng.standard_normal(len(pearson))
        base = {"model": model, "fold": 0, "sample": sample, "metabolite": list(pearson)}
        parts.append(pd.DataFrame({**base, "stage": "intensity", "pearson": np.array(list(pearson.values())) + shift}))
        parts.append(
            pd.DataFrame({**base, "stage": "presence", "auroc": list((auroc or dict.fromkeys(pearson, 0.5)).values())})
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def scores() -> pd.DataFrame:
    level = dict(zip(IDS, [0.8, 0.35, 0.15, 0.6, 0.0, 0.0], strict=True))
    auroc = dict(zip(IDS, [0.5, 0.5, 0.5, 0.5, 0.8, 0.5], strict=True))
    control = dict(zip(IDS, [0.1, 0.0, 0.0, 0.65, -0.2, 0.1], strict=True))
    return pd.concat([rows("ridge", level, auroc), rows("coordinates", control, noise=0.0)]).assign(r2=0.1)


@pytest.fixture
def predicted(st):
    lower = [0.8, 0.27, np.nan, 0.11, 0.0, -0.1]
    features = pd.DataFrame(
        {
            "held_out_pearson": [0.9, 0.3, np.nan, 0.2, 0.3, 0.0], "held_out_pearson_lower": lower, "held_out_auroc": 0.5,
            "held_out_auroc_lower": 0.4, "held_out_units": 3,
        },
        index=IDS,
    )  # fmt: skip
    st.obsm["msi_pred"] = pd.DataFrame(np.ones((st.n_obs, len(IDS)), np.float32), st.obs_names, IDS)
    st.uns["msi_pred"] = {"features": features.assign(name=IDS), "params": {}}
    return st


def test_tiers(predicted, scores) -> None:
    out = stmsi.tl.reliability(predicted, scores)
    assert out["tier"].to_dict() == {
        "good": "high", "fair": "medium", "weak": "low", "lucky": "none", "seen": "medium", "never": "none",
    }  # fmt: skip
    assert out.loc["lucky", "reason"] == "not better than coordinates"
    assert out.loc["seen", "reason"].startswith("presence only")
    assert (out["pearson_lower"] < out["pearson"]).all()
    assert out.loc["good", "margin"] == pytest.approx(0.7, abs=0.05)
    pd.testing.assert_frame_equal(predicted.uns["msi_pred"]["reliability"], out)


def test_tables_and_titles_carry_the_tier(predicted, scores) -> None:
    stmsi.tl.reliability(predicted, scores)
    assert stmsi.get.feature_table(predicted, metabolite_key="msi_pred").loc["good", "tier"] == "high"
    assert stmsi.get.as_table(predicted, metabolite_key="msi_pred").var.loc["never", "tier"] == "none"
    ax = stmsi.pl.spatial(predicted, "fair", metabolite_key="msi_pred", sample="P1S1")
    assert "trust: medium" in ax.get_title()


def test_a_high_share_of_a_low_ceiling_lifts(predicted, scores) -> None:
    ceiling = pd.DataFrame({"sample": "A", "metabolite": IDS, "ceiling": [0.9, 0.4, 0.9, 0.9, 0.9, 0.9]})
    out = stmsi.tl.reliability(predicted, scores, ceiling=ceiling)
    assert out.loc["fair", "tier"] == "high"
    assert out.loc["fair", "share_of_ceiling"] == pytest.approx(0.35 / 0.4, abs=0.05)


def test_evidence_of_training_is_worth_less_and_judged_by_its_lower_bound(predicted, scores) -> None:
    out = stmsi.tl.reliability(predicted)
    assert out.loc["fair", "reason"] == "lower bound of the held-out correlation 0.27"
    assert (out["n_sections"] == 3).all()
    assert out["tier"].to_dict() == {
        "good": "medium", "fair": "medium", "weak": "none", "lucky": "low", "seen": "none", "never": "none",
    }  # fmt: skip
    one = stmsi.tl.reliability(predicted, scores[scores["sample"] == "A"])
    assert set(one["tier"]) == {"none"}
    assert one.loc["good", "reason"].startswith("one section only")


def test_bad_input(predicted, scores, st) -> None:
    with pytest.raises(ValueError, match="must name the model"):
        stmsi.tl.reliability(predicted, pd.concat([scores, scores.assign(model="mlp")]))
    with pytest.raises(ValueError, match="share no metabolite"):
        stmsi.tl.reliability(predicted, scores.assign(metabolite="z"))
    with pytest.raises(KeyError, match="no column 'auroc'"):
        stmsi.tl.reliability(predicted, scores.drop(columns="auroc"))
    del predicted.uns["msi_pred"]
    with pytest.raises(KeyError, match="There is no prediction"):
        stmsi.tl.reliability(predicted, scores)


@pytest.fixture
def measured(st):
    """The metabolites that were measured, all of them predicted, and scores of one section."""
    ids = list(st.obsm["msi"].columns)
    names = [f"held_out_{s}{bound}" for s in ("pearson", "auroc") for bound in ("", "_lower")]
    features = pd.DataFrame(0.5, index=ids, columns=names).assign(held_out_units=2)
    st.obsm["msi_pred"], st.uns["msi_pred"] = st.obsm["msi"].fillna(0), {"features": features}
    values = {"pearson": np.linspace(0, 1, len(ids)), "r2": 0.1, "mcc": 0.2, "auroc": np.nan}
    return st, pd.DataFrame({"sample": "P1S1", "metabolite": ids, "stage": "intensity", **values})


def test_what_limits_a_metabolite(measured) -> None:
    st, scores = measured
    ids = list(st.obsm["msi"].columns)
    ceiling = pd.DataFrame({"sample": "P1S1", "metabolite": ids, "ceiling": 0.9})
    table = stmsi.tl.reliability(st, scores, ceiling=ceiling)
    assert list(table) == [
        "tier", "reason", "pearson", "pearson_se", "pearson_lower", "auroc", "auroc_se", "auroc_lower", "n_sections",
        "ceiling", "share_of_ceiling", "control", "margin", "margin_lower", "model", "r2_share", "prevalence", "morans_i",
        "dynamic_range", "mcc", "r2",
    ]  # fmt: skip
    np.testing.assert_allclose(table["pearson"], scores["pearson"])
    np.testing.assert_allclose(table[["r2", "mcc"]], [[0.1, 0.2]] * len(ids))
    by_section = [(st.obsm["msi"][st.obs["sample"] == s].dropna() > 0).mean() for s in ("P1S1", "P2S1", "P3S1")]
    expected = pd.concat(by_section, axis=1).mean(axis=1)
    np.testing.assert_allclose(table["prevalence"], expected[table.index])
    assert table["morans_i"].between(-0.3, 1).all()
    without = stmsi.tl.reliability(st)
    pd.testing.assert_frame_equal(without[["prevalence", "morans_i"]], table[["prevalence", "morans_i"]])
    del st.obsm["msi"]
    assert stmsi.tl.reliability(st, scores)[["prevalence", "morans_i", "dynamic_range"]].isna().all(axis=None)


def test_limits_of_metabolites_measured_in_different_spots(measured) -> None:
    st, scores = measured
    ids, limits = list(st.obsm["msi"].columns), ["prevalence", "morans_i", "dynamic_range"]
    before = stmsi.tl.reliability(st, scores)[limits]
    half = np.arange(st.n_obs) % 2 == 0
    st.obsm["msi"].loc[half, ids[0]] = np.nan
    st.obsm["msi"].loc[~half, ids[1]] = np.nan
    st.obsm["msi"].iloc[5:, 2] = np.nan
    after = stmsi.tl.reliability(st, scores)[limits]
    pd.testing.assert_frame_equal(after.loc[ids[3:]], before.loc[ids[3:]])
    np.testing.assert_allclose(after.loc[ids[:2], "prevalence"], before.loc[ids[:2], "prevalence"], atol=0.1)
    assert after.loc[ids[:2], "morans_i"].notna().all()


def test_shares_are_of_the_ceiling_of_the_section(measured) -> None:
    st, scores = measured
    ids = list(st.obsm["msi"].columns)
    scores = pd.concat([scores.assign(pearson=0.4), scores.assign(pearson=0.6, sample="P2S1")])
    presence = scores.assign(stage="presence", auroc=0.7, pearson=np.nan, r2=np.nan)
    ceiling = pd.DataFrame(
        {"sample": ["P1S1", "P3S1", "P1S1"], "metabolite": [ids[0], ids[0], ids[1]], "ceiling": [0.8, 0.4, 0.01]}
    )
    table = stmsi.tl.reliability(st, pd.concat([scores, presence]), ceiling=ceiling)
    own, other = 0.8, 0.6  # a section without a ceiling takes the mean over sections
    assert table.loc[ids[0], "ceiling"] == pytest.approx((own + other) / 2)
    assert table.loc[ids[0], "share_of_ceiling"] == pytest.approx((0.4 / own + 0.6 / other) / 2)
    assert table.loc[ids[0], "r2_share"] == pytest.approx((0.1 / own**2 + 0.1 / other**2) / 2)
    assert table.loc[ids[1], "ceiling"] == pytest.approx(0.01)
    assert table.loc[ids[1:], ["share_of_ceiling", "r2_share"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="Scores and ceilings share no metabolite"):
        stmsi.tl.reliability(st, scores, ceiling=ceiling.assign(metabolite="z"))
    with pytest.raises(KeyError, match="no column 'r2'"):
        stmsi.tl.reliability(st, scores.drop(columns="r2"), ceiling=ceiling)
    with pytest.raises(KeyError, match=r"lacks 'ceiling'; stmsi\.tl\.noise_ceiling makes it"):
        stmsi.tl.reliability(st, scores, ceiling=ceiling.drop(columns="ceiling"))


def test_a_copy_leaves_the_data_alone(predicted, scores) -> None:
    out = stmsi.tl.reliability(predicted, scores, copy=True)
    assert "reliability" not in predicted.uns["msi_pred"]
    assert "tier" not in predicted.uns["msi_pred"]["features"]
    table = stmsi.tl.reliability(predicted, scores)
    pd.testing.assert_frame_equal(out.uns["msi_pred"]["reliability"], table)
    assert out.uns["msi_pred"]["features"]["tier"].tolist() == table["tier"].tolist()


def test_the_table_survives_a_file(predicted, scores, tmp_path) -> None:
    import anndata as ad

    table = stmsi.tl.reliability(predicted, scores)
    predicted.write_h5ad(tmp_path / "st.h5ad")
    again = ad.read_h5ad(tmp_path / "st.h5ad").uns["msi_pred"]["reliability"]
    pd.testing.assert_frame_equal(again, table, check_dtype=False, check_index_type=False, check_column_type=False)

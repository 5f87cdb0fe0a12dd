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
    features = pd.DataFrame({"held_out_pearson": [0.9, 0.3, np.nan, 0.1, 0.0, 0.0], "held_out_auroc": 0.5}, index=IDS)
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
    assert stmsi.get.feature_table(predicted, key="msi_pred").loc["good", "tier"] == "high"
    assert stmsi.get.as_table(predicted, key="msi_pred").var.loc["never", "tier"] == "none"
    ax = stmsi.pl.spatial(predicted, "fair", metabolite_key="msi_pred", sample="P1S1")
    assert "trust: medium" in ax.get_title()


def test_a_high_share_of_a_low_ceiling_lifts(predicted, scores) -> None:
    ceiling = pd.DataFrame({"sample": "A", "metabolite": IDS, "ceiling": [0.9, 0.4, 0.9, 0.9, 0.9, 0.9]})
    out = stmsi.tl.reliability(predicted, scores, ceiling=ceiling)
    assert out.loc["fair", "tier"] == "high"
    assert out.loc["fair", "share_of_ceiling"] == pytest.approx(0.35 / 0.4, abs=0.05)


def test_one_score_alone_is_worth_less(predicted, scores) -> None:
    out = stmsi.tl.reliability(predicted)
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


def test_learnability(st) -> None:
    ids = list(st.obsm["msi"].columns)
    scores = pd.DataFrame(
        {"sample": "P1S1", "metabolite": ids, "stage": "intensity", "pearson": np.linspace(0, 1, len(ids)), "r2": 0.0}
    )
    ceiling = pd.DataFrame({"sample": "P1S1", "metabolite": ids, "ceiling": 0.9})
    table = stmsi.tl.learnability(st, scores, ceiling=ceiling)
    assert list(table) == [
        "model", "metabolite", "metric", "score", "morans_i", "prevalence", "dynamic_range", "ceiling",
    ]  # fmt: skip
    by_section = [(st.obsm["msi"][st.obs["sample"] == s].dropna() > 0).mean() for s in ("P1S1", "P2S1", "P3S1")]
    expected = pd.concat(by_section, axis=1).mean(axis=1)
    np.testing.assert_allclose(table["prevalence"], expected[table["metabolite"]])
    assert table["morans_i"].between(-0.3, 1).all()
    with pytest.raises(ValueError, match="No scored metabolite"):
        stmsi.tl.learnability(st, scores.assign(metabolite="z"))


def test_learnability_of_metabolites_measured_in_different_spots(st) -> None:
    ids = list(st.obsm["msi"].columns)
    scores = pd.DataFrame({"sample": "P1S1", "metabolite": ids, "stage": "intensity", "pearson": 0.5})
    before = stmsi.tl.learnability(st, scores).set_index("metabolite")
    half = np.arange(st.n_obs) % 2 == 0
    st.obsm["msi"].loc[half, ids[0]] = np.nan
    st.obsm["msi"].loc[~half, ids[1]] = np.nan
    st.obsm["msi"].iloc[5:, 2] = np.nan
    after = stmsi.tl.learnability(st, scores).set_index("metabolite")
    pd.testing.assert_frame_equal(after.loc[ids[3:]], before.loc[ids[3:]])
    np.testing.assert_allclose(after.loc[ids[:2], "prevalence"], before.loc[ids[:2], "prevalence"], atol=0.1)
    assert after.loc[ids[:2], "morans_i"].notna().all()

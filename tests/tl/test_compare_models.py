import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from stmsi.tl import compare_models
from stmsi.tl._compare_models import best_model


def _scores(better=0.1, n_samples=8, n_metabolites=5, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n_samples):
        for m in range(n_metabolites):
            base = rng.normal(0.3, 0.2)
            for model, shift in (("new", better), ("old", 0.0), ("twin", 0.0)):
                value = base + shift + (0 if model == "twin" else rng.normal(0, 0.05))
                rows.append(
                    {
                        "model": model,
                        "fold": s // 2,
                        "sample": f"s{s}",
                        "metabolite": f"m{m}",
                        "stage": "intensity",
                        "pearson": value,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("unit", "n"), [("sample", 8), ("fold", 4), ("metabolite", 5)])
def test_the_test_is_scipys_on_the_means_of_units(unit, n):
    scores = _scores()
    found = compare_models(scores, unit=unit).set_index(["model", "other"])
    assert len(found) == 3
    means = scores.pivot_table("pearson", unit, "model")
    for (model, other), row in found.iterrows():
        assert row["n_units"] == n
        assert row["n_pairs"] == 40
        assert row["difference"] == pytest.approx((means[model] - means[other]).mean())
        assert row["p_value"] == pytest.approx(wilcoxon(means[model], means[other]).pvalue)
        assert row["mean"] == pytest.approx(means[model].mean())
        assert row["se"] == pytest.approx(means[model].std(ddof=0) / np.sqrt(n), rel=0.1)
        assert row["lower"] < row["difference"] < row["upper"]
        assert row["p_adjusted"] >= row["p_value"]
        assert row["reason"] == ("" if n >= 6 else f"{n} units cannot be significant")


def test_pairing_finds_what_the_spread_of_scores_hides():
    found = compare_models(_scores(), reference="old").set_index("model")
    assert list(found.index) == ["new", "twin"]
    assert found.loc["new", "p_adjusted"] < 0.05
    assert found.loc["new", "lower"] > 0
    assert found.loc["new", "difference_se"] < 0.5 * found.loc["new", "se"]
    assert abs(found.loc["twin", "difference"]) < 0.3 * found.loc["new", "difference"]


@pytest.mark.once
def test_no_difference_is_rarely_one():
    p = [compare_models(_scores(0, seed=s), reference="old", n_bootstrap=2)["p_value"].iloc[0] for s in range(20)]
    assert np.mean(np.array(p) < 0.05) <= 0.15


def test_it_is_the_same_every_time():
    first, again = (compare_models(_scores()) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert compare_models(_scores(), rng=1)["se"].iloc[0] != first["se"].iloc[0]


def test_a_model_without_a_correlation_counts_as_one_without_skill():
    """A constant prediction, such as that of "mean", has none; leaving its places out would flatter it."""
    scores = _scores()
    lost = (scores["model"] == "old") & (scores["metabolite"] == "m0")
    scores.loc[lost, "pearson"] = np.nan
    row = compare_models(scores, reference="old").iloc[0]
    assert (row["n_pairs"], row["n_without_skill"], row["n_left_out"], row["n_units"]) == (40, 8, 0, 8)
    pd.testing.assert_series_equal(
        compare_models(scores.assign(pearson=scores["pearson"].fillna(0)), reference="old")
        .iloc[0]
        .drop("n_without_skill"),
        row.drop("n_without_skill"),
    )
    scores.loc[scores["model"] == "old", "pearson"] = np.nan
    row = compare_models(scores, reference="old").iloc[0]
    assert row["other_mean"] == 0
    assert row["difference"] == pytest.approx(row["mean"])
    assert row["p_value"] < 0.05


def test_places_without_an_error_are_left_out_and_counted():
    scores = _scores()
    scores["mse"] = 1 - scores["pearson"]
    scores.loc[(scores["model"] == "old") & (scores["metabolite"] == "m0"), "mse"] = np.nan
    row = compare_models(scores, reference="old", metric="mse").iloc[0]
    assert (row["n_pairs"], row["n_without_skill"], row["n_left_out"], row["n_units"]) == (32, 0, 8, 8)


def test_why_there_is_no_number():
    scores = _scores().assign(mse=lambda s: 1 - s["pearson"])
    scores.loc[scores["model"] == "old", "mse"] = np.nan
    row = compare_models(scores, reference="old", metric="mse").iloc[0]
    assert np.isnan(row["difference"])
    assert row["reason"] == "the models share no score"
    row = compare_models(_scores(n_samples=1)).iloc[0]
    assert np.isfinite(row["difference"])
    assert np.isnan([row["se"], row["p_value"]]).all()
    assert row["reason"] == "one unit only"
    same = pd.concat([_scores().query("model == 'old'").assign(model=m) for m in "ab"])
    row = compare_models(same).iloc[0]
    assert row["reason"] == "no difference in any unit"
    assert row["difference"] == 0


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="Two models or more are needed to compare; scores has 'new'"):
        compare_models(_scores().query("model == 'new'"))
    with pytest.raises(ValueError, match=r"reference='odl' is not among the models.*Did you mean 'old'"):
        compare_models(_scores(), reference="odl")
    with pytest.raises(ValueError, match="unit='patient' is not known"):
        compare_models(_scores(), unit="patient")
    with pytest.raises(KeyError, match="scores has no column 'auroc'"):
        compare_models(_scores(), metric="auroc")
    with pytest.raises(ValueError, match="No model has a 'pearson'"):
        compare_models(_scores().assign(pearson=np.nan))


def test_scores_across_sections_are_one_per_metabolite():
    scores = _scores()
    by = [scores["model"], scores["metabolite"]]
    scores["pearson_between"] = scores["pearson"].groupby(by).transform("mean")
    row = compare_models(scores, metric="pearson_between", unit="metabolite", reference="old").iloc[0]
    assert (row["n_units"], row["n_pairs"]) == (5, 5)
    assert row["difference"] == pytest.approx(compare_models(scores, reference="old")["difference"].iloc[0])
    lost = (scores["model"] == "old") & (scores["metabolite"] == "m0")
    gone = scores.assign(pearson_between=scores["pearson_between"].mask(lost))
    row = compare_models(gone, metric="pearson_between", unit="metabolite", reference="old").iloc[0]
    assert (row["n_units"], row["n_without_skill"], row["n_left_out"]) == (5, 1, 0)
    with pytest.raises(ValueError, match=r"one number for all sections.*pass unit='metabolite'"):
        compare_models(scores, metric="pearson_between")


# -- the best of several


def _means(**models):
    rows = [
        {"model": m, "fold": i, "sample": "s", "metabolite": "x", "stage": "intensity", "pearson": v, "mse": v}
        for m, values in models.items()
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_best_mean_is_chosen():
    scores = _means(a=[0.1, 0.5], b=[0.3, 0.4], c=[0.3, 0.4])
    assert best_model(scores) == "b"  # of equals the first
    assert best_model(scores, metric="mse") == "a"


def test_nobody_is_chosen_for_leaving_out_what_is_hard():
    scores = _means(constant=[np.nan, np.nan], picky=[0.5, np.nan], steady=[0.4, 0.3])
    assert best_model(scores) == "steady"
    assert best_model(_means(constant=[np.nan, np.nan], wrong=[-0.4, 0.3])) == "constant"
    # squared errors have no value without skill: only what all have counts
    assert best_model(_means(a=[0.5, np.nan], b=[0.6, 0.1]), metric="mse") == "a"


def test_where_no_model_has_a_score_none_counts():
    assert best_model(_means(a=[0.2, np.nan], b=[0.1, np.nan])) == "a"
    with pytest.raises(ValueError, match="No model has a pearson"):
        best_model(_means(a=[np.nan], b=[np.nan]))


def test_what_cannot_be_chosen_by():
    with pytest.raises(ValueError, match=r"metric='pearsn' is not known.*Did you mean 'pearson'"):
        best_model(_means(a=[1]), metric="pearsn")
    with pytest.raises(KeyError, match=r"scores has no column 'r2'; found 'model'.*cross_validate"):
        best_model(_means(a=[1]), metric="r2")
    twice = pd.concat([_means(a=[1])] * 2)
    with pytest.raises(ValueError, match="several values of 'pearson' for a model, fold, section and metabolite"):
        best_model(twice)

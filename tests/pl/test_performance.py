"""pl.performance."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stmsi


def groups(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def numbers(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_picture(scores: pd.DataFrame, same_picture) -> None:
    same_picture(stmsi.pl.performance(scores, metric=["pearson", "r2"], return_fig=True), "performance")


def test_picture_by_section(scores: pd.DataFrame, same_picture) -> None:
    figure = stmsi.pl.performance(scores, stage="presence", metric=["auroc", "auprc"], hue="sample", return_fig=True)
    same_picture(figure, "performance_hue")


def test_best_on_top_with_medians_over_metabolites(scores: pd.DataFrame) -> None:
    ax = stmsi.pl.performance(scores)
    assert groups(ax) == ["HurdleNet", "HurdleLinear", "baseline"]
    assert ax.yaxis_inverted()
    part = scores[scores["stage"] == "intensity"]
    means = part.groupby(["model", "metabolite"])["pearson"].mean().dropna()
    expected = [f"{means[m].median():.2f} (n={len(means[m])})" for m in groups(ax)]
    assert numbers(ax) == expected
    assert expected[-1].endswith("(n=15)")


def test_missing_scores_are_told(scores: pd.DataFrame) -> None:
    assert stmsi.pl.performance(scores).get_xlabel() == (
        "Pearson correlation\n10 NaN scores left out\nn differs: not the same metabolites"
    )
    same = scores[scores["model"] != "baseline"]
    assert stmsi.pl.performance(same).get_xlabel() == "Pearson correlation"
    assert stmsi.pl.performance(scores, metric="r2").get_xlabel() == "R²"


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        (["no", "no"], None),
        (["yes", "partly"], "training spots: no evidence of skill"),
        (["no", "yes"], "some scores are of training spots"),
        (["no", "unknown"], "training spots?"),
    ],
)
def test_scores_of_training_spots_are_told(scores: pd.DataFrame, marks, said) -> None:
    own = scores[scores["model"] != "baseline"]
    label = stmsi.pl.performance(
        own.assign(trained_on=own["sample"].map(dict(zip(["P1S1", "P2S1"], marks, strict=True))))
    )
    assert label.get_xlabel().split("\n") == ["Pearson correlation", *([said] if said else [])]


def test_the_level_stands_beside_the_pattern(scores: pd.DataFrame) -> None:
    scores["pearson_between"] = scores["pearson"] / 2
    axes = stmsi.pl.performance(scores[scores["model"] != "baseline"])
    labels = ["Pearson correlation within sections", "Pearson correlation between sections"]
    assert [ax.get_xlabel() for ax in axes] == labels
    # one value for all sections tells nothing of one
    assert stmsi.pl.performance(scores, by="sample").get_xlabel().startswith("Pearson correlation\n")
    assert stmsi.pl.performance(scores, hue="sample").get_xlabel().startswith("Pearson correlation\n")
    assert stmsi.pl.performance(scores, ax=plt.figure().subplots()).get_xlabel().startswith("Pearson correlation\n")
    scores["pearson_between"] = np.nan
    assert stmsi.pl.performance(scores).get_xlabel().startswith("Pearson correlation\n")


def test_small_errors_are_best(scores: pd.DataFrame) -> None:
    assert groups(stmsi.pl.performance(scores, metric="mse")) == ["HurdleNet", "HurdleLinear", "baseline"]


@pytest.mark.parametrize(
    ("stage", "metric", "at"), [("intensity", "pearson", 0), ("intensity", "r2", 0), ("presence", "auroc", 0.5)]
)
def test_reference_line(scores: pd.DataFrame, stage, metric: str, at: float) -> None:
    ax = stmsi.pl.performance(scores, stage=stage, metric=metric)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [at]


def test_prevalence_beside_auprc(scores: pd.DataFrame) -> None:
    ax = stmsi.pl.performance(scores, stage="presence", metric="auprc")
    median = scores.groupby("metabolite")["prevalence"].mean().median()
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([median] * 3)
    assert "median prevalence" in ax.get_xlabel()


def test_default_metric_and_single_model(scores: pd.DataFrame) -> None:
    alone = scores[scores["model"] == "HurdleNet"].drop(columns=["model", "fold"])
    ax = stmsi.pl.performance(alone, stage="presence")
    assert ax.get_xlabel() == "AUROC"
    assert groups(ax) == [""]


def test_other_groups_and_hue(scores: pd.DataFrame) -> None:
    assert sorted(groups(stmsi.pl.performance(scores, by="sample"))) == ["P1S1", "P2S1"]
    ax = stmsi.pl.performance(scores.astype({"model": "category"}), hue="sample")
    assert len(numbers(ax)) == 6
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["P1S1", "P2S1"]


def test_failures_of_r2_do_not_squeeze_the_rest(scores: pd.DataFrame) -> None:
    scores.loc[(scores["metabolite"] == "m3") & (scores["model"] == "baseline"), "r2"] = -40.0
    ax = stmsi.pl.performance(scores, metric="r2")
    assert ax.get_xlim()[0] > -2
    assert ax.get_xlabel() == "R²\n1 below -1 not shown"


def test_infinite_scores_count_as_missing(scores: pd.DataFrame) -> None:
    scores.loc[scores.index[0], "mse"] = np.inf
    assert "1 NaN score left out" in stmsi.pl.performance(scores, metric="mse").get_xlabel()


def test_input_is_left_alone(scores: pd.DataFrame) -> None:
    before = scores.copy()
    stmsi.pl.performance(scores.drop(columns="model"))
    stmsi.pl.performance(scores)
    pd.testing.assert_frame_equal(scores, before)


def test_given_axes(scores: pd.DataFrame) -> None:
    figure, axes = plt.subplots(1, 2)
    assert stmsi.pl.performance(scores, metric=["pearson", "r2"], ax=axes) == list(axes)
    assert stmsi.pl.performance(scores, ax=axes[0]) is axes[0]
    assert stmsi.pl.performance(scores, ax=axes[0], return_fig=True) is figure
    with pytest.raises(ValueError, match="2 axes, but there are 1 panels"):
        stmsi.pl.performance(scores, ax=axes)


def test_errors(scores: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"stage='presense' is not known.*Did you mean 'presence'"):
        stmsi.pl.performance(scores, stage="presense")
    with pytest.raises(KeyError, match=r"no column 'pearsn'.*Did you mean 'pearson'"):
        stmsi.pl.performance(scores, metric="pearsn")
    with pytest.raises(ValueError, match="belongs to stage='presence'"):
        stmsi.pl.performance(scores, metric="auroc")
    with pytest.raises(KeyError, match="no column 'kind'"):
        stmsi.pl.performance(scores, hue="kind")
    with pytest.raises(ValueError, match="not numeric"):
        stmsi.pl.performance(scores, metric="sample")
    with pytest.raises(ValueError, match="no rows of stage 'presence'; found 'intensity'"):
        stmsi.pl.performance(scores[scores["stage"] == "intensity"], stage="presence")
    with pytest.raises(TypeError, match="must be the DataFrame"):
        stmsi.pl.performance({"pearson": [1.0]})

"""Constant predictions count as 0 in means of correlations; what no prediction can reach stays missing."""

import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi._data.constant_predictions import constant_counts_as_zero

SCORES = ["pearson", "spearman", "pearson_present", "pearson_between", "pearson_pooled"]


@pytest.mark.parametrize(
    ("reason", "zero"),
    [
        ("", []),
        ("constant prediction; constant where present", SCORES[:3]),
        ("constant prediction; present in fewer than 2 spots", SCORES[:2]),
        ("constant measurement; constant prediction", []),
        (
            "constant prediction; fewer than 3 sections; constant prediction in all sections",
            [*SCORES[:3], "pearson_pooled"],
        ),
        ("predicted means are equal", ["pearson_between"]),
        ("measured means are equal; predicted means are equal", []),
        ("fewer than 2 spots", []),
    ],
)
def test_by_reason(reason, zero):
    table = pd.DataFrame(
        {"metabolite": ["a", "b"], "reason": ["", reason], "r2": np.nan, **dict.fromkeys(SCORES, np.nan)}
    )
    found = constant_counts_as_zero(table)
    assert found.columns[found.iloc[1] == 0].tolist() == [s for s in SCORES if s in zero]
    assert found[["r2", *SCORES]].iloc[0].isna().all()
    assert table[SCORES].isna().all(axis=None), "the table is not changed"


def test_scores_that_are_there_stay(mapped):
    """`evaluate` gives no score to a constant, and medians, plots and evidence count it as 0."""
    from stmsi.cli._terminal_tables import all_sections, medians

    st = mapped.tables["st"]
    guess = st.obsm["msi"].fillna(0.5) * 0.9 + 0.1
    constant = guess.columns[: guess.shape[1] // 2 + 1]
    guess[constant] = 1.0
    st.obsm["msi_pred"], st.obsm["msi_pred_presence"] = guess, guess.clip(0, 1)
    st.uns["msi_pred"] = {"features": pd.DataFrame({"training_mean": 0.5}, index=guess.columns)}
    scores = stmsi.tl.evaluate(mapped)
    own = scores[scores["stage"] == "intensity"]
    assert own.loc[own["metabolite"].isin(constant), "pearson"].isna().all()
    assert (medians(scores, ["sample"])["pearson"] == 0).all()
    assert all_sections(scores)["pearson"] == 0
    assert all_sections(scores)["pearson_pooled"] == 0
    ax = stmsi.pl.performance(scores, metric="pearson", show=False)
    assert f"0.00 (n={guess.shape[1]})" in [text.get_text() for text in ax.texts]
    kept = constant_counts_as_zero(scores)
    pd.testing.assert_series_equal(kept["pearson"].fillna(0), scores["pearson"].fillna(0))
    assert constant_counts_as_zero(scores.drop(columns="reason"))["pearson"].isna().any()

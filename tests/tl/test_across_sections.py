"""Level and pattern: scores over all sections from the rows of a table."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stmsi
from stmsi.model_selection import SpatialBlockKFold
from stmsi.tl import _cross_validate
from stmsi.tl._across_sections import score_across
from stmsi.tl._section_scores import Comparison, score_sections


def scored(parts, ids=("a",), **columns):
    """Rows of `score_sections`; a part is (sample, truth, prediction, training mean, and that of predictions) of a fold."""
    tables = []
    for fold, (sample, y, p, mean, *said) in enumerate(parts):
        y, p = (np.asarray(v, float).reshape(-1, len(ids)) for v in (y, p))
        found = Comparison(
            list(ids), np.full(len(y), sample, object), y, np.where(np.isnan(y), np.nan, y > 0), p, np.full(y.shape, 0.5),
            np.full(len(ids), float(mean)), training_predicted_mean=np.full(len(ids), said[0]) if said else None,
        )  # fmt: skip
        tables.append(score_sections(found).assign(fold=fold, **columns))
    return pd.concat(tables, ignore_index=True)


def intensity(table):
    return score_across(table).query("stage == 'intensity'")


@pytest.fixture
def folds():
    """Three sections and a fourth in two folds; each fold has a training mean of its own."""
    rng = np.random.default_rng(0)
    parts = []
    for sample, n in (("s1", 7), ("s2", 4), ("s3", 9), ("s4", 5), ("s4", 3)):
        y = rng.gamma(2, 1, n) + rng.normal(3)
        y[0] = np.nan if sample == "s3" else y[0]
        parts.append((sample, y, np.maximum(y + rng.normal(size=n), 0), rng.normal(3), rng.normal(2)))
    return parts


def test_rows_give_what_all_spots_give(folds):
    own = intensity(scored(folds))
    y, p = (np.concatenate([np.asarray(part[k]) - part[k + 2] for part in folds]) for k in (1, 2))
    sample = np.concatenate([[part[0]] * len(part[1]) for part in folds])
    known = ~np.isnan(y)
    assert own["pearson_pooled"].nunique() == own["pearson_between"].nunique() == 1
    assert own["pearson_pooled"].iloc[0] == pytest.approx(stats.pearsonr(y[known], p[known])[0])
    means = pd.DataFrame({"y": y, "p": p}).dropna().groupby(sample[known]).mean()
    assert own["pearson_between"].iloc[0] == pytest.approx(stats.pearsonr(means["y"], means["p"])[0])
    assert (own["reason"].str.count("sections") == 0).all()


def test_models_and_metabolites_have_scores_of_their_own(folds):
    two = [(s, np.column_stack([y, y]), np.column_stack([p, -np.asarray(p) + 20]), *means) for s, y, p, *means in folds]
    table = pd.concat([scored(two, ("a", "b"), model="x"), scored(folds, model="y")], ignore_index=True)
    found = intensity(table).groupby(["model", "metabolite"])["pearson_pooled"].first()
    alone = intensity(scored(folds))["pearson_pooled"].iloc[0]
    assert found["x", "a"] == pytest.approx(alone)
    assert found["y", "a"] == pytest.approx(alone)
    assert found["x", "b"] < 0


def test_one_spot_per_section():
    rng = np.random.default_rng(1)
    y = rng.normal(5, 1, 8)
    p = y + rng.normal(0, 0.5, 8)
    own = intensity(scored([(f"s{i}", [y[i]], [p[i]], 0) for i in range(8)]))
    assert own["pearson"].isna().all()
    np.testing.assert_allclose(own["pearson_between"], stats.pearsonr(y, p)[0])
    np.testing.assert_allclose(own["pearson_pooled"], stats.pearsonr(y, p)[0])
    assert (own["measured_sd"] == 0).all()


@pytest.mark.parametrize("factor", [1.0, 0.8, 1.3])
def test_a_constant_of_the_fold_is_no_skill(factor):
    """The mean of the other sections is low where a section is high; a biased model keeps its bias on the training spots."""
    y = np.array([1.0, 2.0, 4.0, 8.0])
    means = (y.sum() - y) / 3
    said = factor * means
    assert stats.pearsonr(y, said)[0] == pytest.approx(-1)
    folds = [(f"s{i}", [y[i], y[i] + 1], [said[i], said[i]], means[i], said[i]) for i in range(4)]
    own = intensity(scored(folds))
    assert own[["pearson_between", "pearson_pooled"]].isna().all(axis=None)
    assert own["reason"].str.endswith("predicted means are equal; constant prediction in all sections").all()


def test_why_there_is_no_score():
    pair = [("s1", [1, 2], [2, 3], 0), ("s2", [5, 6], [6, 8], 0)]
    own = intensity(scored(pair))
    assert own["pearson_between"].isna().all()
    assert own["pearson_pooled"].notna().all()
    assert own["reason"].str.endswith("fewer than 3 sections").all()
    flat = [(f"s{i}", [1, 2], [i, i + 1], 0) for i in range(3)]
    own = intensity(scored(flat))
    assert own["pearson_between"].isna().all()
    assert own["pearson_pooled"].notna().all()
    assert own["reason"].str.endswith("measured means are equal").all()


def test_the_table_given_is_not_changed(folds):
    table = scored(folds)
    before = table.copy()
    score_across(table)
    pd.testing.assert_frame_equal(table, before)


def test_cross_validation_joins_its_folds(st, tmp_path, monkeypatch):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3"]]
    options = {"setup": {"presence_key": "msi_presence"}, "on_leakage": "ignore", "cache_dir": tmp_path}
    scores = stmsi.tl.cross_validate(st, ["mean", "ridge"], **options)
    own = scores[scores["stage"] == "intensity"]
    assert own.groupby(["model", "metabolite"])[["pearson_between", "pearson_pooled"]].nunique().max(axis=None) <= 1
    assert own.loc[own["model"] == "ridge", ["pearson_between", "pearson_pooled"]].notna().all(axis=None)
    assert own.loc[own["model"] == "mean", ["pearson_between", "pearson_pooled"]].isna().all(axis=None)
    assert own.groupby(["sample", "metabolite"])["training_mean"].nunique().eq(1).all(), "a fold has one for all models"
    assert own.groupby("metabolite")["training_mean"].nunique().eq(3).all()
    # folds that are read, and others beside them
    again = stmsi.tl.cross_validate(st, ["mean", "ridge"], **options)
    pd.testing.assert_frame_equal(again, scores)
    assert len(list(tmp_path.glob("*.parquet"))) == 6
    # what a version with other columns kept does not count
    monkeypatch.setattr(_cross_validate, "_LAYOUT", _cross_validate._LAYOUT[:-1])
    stmsi.tl.cross_validate(st, "mean", **options)
    assert len(list(tmp_path.glob("*.parquet"))) == 9


def test_blocks_of_one_section(st):
    one = st[(st.obs["sample"] == "P1S1").to_numpy()].copy()
    for key in ("msi", "msi_presence"):
        one.obsm[key] = one.obsm[key][["simPC_31_3"]]
    scores = stmsi.tl.cross_validate(one, "ridge", splitter=SpatialBlockKFold(2, 350, 0), on_leakage="ignore")
    own = scores[scores["stage"] == "intensity"]
    assert len(own) == 2
    assert own["pearson_between"].isna().all()
    assert own["pearson_pooled"].nunique() == 1
    assert own["reason"].str.contains("fewer than 3 sections").all()

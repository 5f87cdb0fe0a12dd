import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as skm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import pearsonr, rankdata, spearmanr

import stmsi
from stmsi import metrics
from stmsi._core.metrics.columns import ranks

PAIRS = ["mse", "mae", "r2", "pearson", "spearman"]
CALLS = ["precision", "recall", "f1", "mcc"]
SCORES = ["auroc", "auprc", "brier"]

ORACLE = {
    "mse": skm.mean_squared_error,
    "mae": skm.mean_absolute_error,
    "r2": skm.r2_score,
    "pearson": lambda y, p: pearsonr(y, p)[0],
    "spearman": lambda y, p: spearmanr(y, p)[0],
    "precision": skm.precision_score,
    "recall": skm.recall_score,
    "f1": skm.f1_score,
    "mcc": skm.matthews_corrcoef,
    "auroc": skm.roc_auc_score,
    "auprc": skm.average_precision_score,
    "brier": skm.brier_score_loss,
}


def _masked(rng, array, share=0.2):
    return np.where(rng.random(array.shape) < share, np.nan, array)


def _per_column(name, truth, prediction):
    out = []
    for y, p in zip(truth.T, prediction.T, strict=True):
        known = ~(np.isnan(y) | np.isnan(p))
        out.append(ORACLE[name](y[known], p[known]))
    return out


def _intensities(rng, ties):
    truth = rng.lognormal(0, 1, (60, 8)) * (rng.random((60, 8)) < 0.7)
    prediction = truth + rng.normal(0, 1, (60, 8))
    if ties:
        truth, prediction = np.round(truth), np.round(prediction)
    return truth, prediction


def _presence(rng, ties):
    present = (rng.random((60, 8)) < np.linspace(0.1, 0.9, 8)).astype(float)
    present[:2] = [[0.0], [1.0]]  # both classes
    score = 1 / (1 + np.exp(-2 * (present + rng.normal(0, 1, (60, 8)))))
    return present, np.round(score, 1) if ties else score


@pytest.mark.parametrize("nan", [False, True], ids=["complete", "nan"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", PAIRS)
def test_intensity_scores_agree_with_their_oracle(name, ties, nan):
    rng = np.random.default_rng(0)
    truth, prediction = _intensities(rng, ties)
    if nan:
        truth, prediction = _masked(rng, truth), _masked(rng, prediction)
    np.testing.assert_allclose(
        getattr(metrics, name)(truth, prediction), _per_column(name, truth, prediction), rtol=1e-9
    )


@pytest.mark.parametrize("nan", [False, True], ids=["complete", "nan"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", [*CALLS, *SCORES])
def test_presence_scores_agree_with_scikit_learn(name, ties, nan):
    rng = np.random.default_rng(1)
    present, score = _presence(rng, ties)
    if nan:
        present[2:], score[2:] = _masked(rng, present[2:]), _masked(rng, score[2:])
    if name in CALLS:
        score = np.where(np.isnan(score), np.nan, score >= 0.5).astype(float)
    np.testing.assert_allclose(getattr(metrics, name)(present, score), _per_column(name, present, score), rtol=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.int8, st.integers(2, 30), elements=st.integers(0, 1)),
    st.integers(0, 2**31),
    st.integers(1, 5),
)
def test_ranking_scores_agree_with_scikit_learn_for_any_ties(present, seed, n_levels):
    score = np.random.default_rng(seed).integers(0, n_levels, len(present)).astype(float)
    found = metrics.auroc(present, score)[0], metrics.auprc(present, score)[0]
    if len(set(present)) < 2:
        assert np.isnan(found).all()
    else:
        expected = skm.roc_auc_score(present, score), skm.average_precision_score(present, score)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_every_column_is_scored_by_itself(name):
    truth, prediction = _intensities(np.random.default_rng(2), ties=False)
    together = getattr(metrics, name)(truth, prediction)
    alone = [getattr(metrics, name)(truth[:, j], prediction[:, j])[0] for j in range(8)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together.shape == (8,)


def test_r2_measures_against_the_training_mean():
    truth, prediction = _intensities(np.random.default_rng(3), ties=False)
    reference = np.linspace(-1, 3, 8)
    expected = 1 - ((truth - prediction) ** 2).sum(0) / ((truth - reference) ** 2).sum(0)
    np.testing.assert_allclose(metrics.r2(truth, prediction, reference), expected)
    np.testing.assert_allclose(metrics.r2(truth, np.broadcast_to(reference, truth.shape), reference), 0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 3.7, 1e8])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_column_has_no_correlation(name, constant):
    values = np.random.default_rng(4).normal(size=(30, 1))
    flat = np.full((30, 1), constant)
    flat[0] *= 1 + 1e-15  # rounding is no signal
    score = getattr(metrics, name)
    if name == "pearson":
        assert np.isnan(score(values, flat)).all()
        assert np.isnan(score(flat, values)).all()
    flat[:] = constant
    assert np.isnan(score(values, flat)).all()
    assert np.isnan(score(flat, values)).all()


def test_a_small_but_real_spread_keeps_its_correlation():
    y = 1e6 + np.random.default_rng(5).normal(size=50)
    assert metrics.pearson(y, 2 * y)[0] == pytest.approx(1)
    assert metrics.pearson(y * 1e-12, y)[0] == pytest.approx(1)


def test_constant_truth():
    truth, prediction = np.full((5, 1), 2.0), np.arange(5.0)[:, None]
    assert np.isnan(metrics.r2(truth, prediction)).all()
    assert metrics.mse(truth, prediction)[0] == pytest.approx(np.mean((np.arange(5) - 2) ** 2))


@pytest.mark.parametrize(
    ("name", "present", "called"),
    [
        ("precision", [1, 0], [0, 0]),
        ("recall", [0, 0], [1, 0]),
        ("f1", [0, 0], [0, 0]),
        ("auroc", [1, 1], [0.1, 0.2]),
        ("auroc", [0, 0], [0.1, 0.2]),
        ("auprc", [1, 1], [0.1, 0.2]),
        ("auprc", [0, 0], [0.1, 0.2]),
    ],
)
def test_scores_that_do_not_exist_are_nan(name, present, called):
    assert np.isnan(getattr(metrics, name)(present, called)).all()


@pytest.mark.parametrize(
    ("name", "present", "called"), [("recall", [1, 1], [0, 0]), ("precision", [0, 0], [1, 1]), ("f1", [1, 0], [0, 1])]
)
def test_scores_that_are_zero_are_not_nan(name, present, called):
    assert getattr(metrics, name)(present, called).tolist() == [0.0]


@pytest.mark.parametrize("name", [*PAIRS, *CALLS, *SCORES])
def test_columns_without_any_pair_are_nan(name):
    column = np.array([[1.0], [np.nan], [0.0]])
    other = np.array([[np.nan], [1.0], [np.nan]])
    assert np.isnan(getattr(metrics, name)(column, other)).tolist() == [True]
    assert np.isnan(getattr(metrics, name)(np.empty((0, 3)), np.empty((0, 3)))).tolist() == [True] * 3


@pytest.mark.parametrize("name", [*PAIRS, *CALLS, *SCORES])
def test_shapes_must_agree(name):
    with pytest.raises(ValueError, match=r"must have the same shape, found \(4, 2\) and \(4, 3\)"):
        getattr(metrics, name)(np.zeros((4, 2)), np.zeros((4, 3)))


@pytest.mark.parametrize("name", [*PAIRS, *CALLS, *SCORES])
def test_inputs_stay_untouched(name):
    truth, prediction = (np.array([[1.0, 0], [0, np.nan], [1, 1]]) for _ in range(2))
    getattr(metrics, name)(truth, prediction)
    np.testing.assert_array_equal(truth, [[1.0, 0], [0, np.nan], [1, 1]])
    np.testing.assert_array_equal(prediction, truth)


def test_prevalence_counts_covered_spots():
    present = np.array([[1.0, 0, np.nan], [0, 0, np.nan], [np.nan, 0, np.nan], [1, 0, np.nan]])
    np.testing.assert_allclose(metrics.prevalence(present), [2 / 3, 0, np.nan])


def test_every_public_score_is_tested_here():
    maps = {"ssim", "moran_i", "moran_gap", "hotspot_jaccard"}  # test_metrics_maps.py
    structure = {
        name for name in stmsi.metrics.__all__ if "correlation" in name or "group" in name or "differential" in name
    }
    assert set(stmsi.metrics.__all__) == {*ORACLE, "prevalence", "ece", *maps, *structure}


@pytest.fixture(scope="module")
def bench():
    folder = Path(os.environ.get("STMSI_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")).parent
    path = folder / "bench" / "metrics.py"
    if not path.is_file():
        pytest.skip(f"no benchmark metrics at {path}")
    spec = importlib.util.spec_from_file_location("bench_metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.realdata
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_scores_agree_with_the_shared_benchmark(bench, ties):
    rng = np.random.default_rng(6)
    truth, prediction = _intensities(rng, ties)
    mean = rng.normal(size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = bench.score_unit(truth, prediction, mean, np.zeros(8))
    np.testing.assert_allclose(metrics.pearson(truth, prediction), theirs["pearson"], atol=1e-6)
    np.testing.assert_allclose(metrics.spearman(truth, prediction), theirs["spearman"], atol=1e-6)
    np.testing.assert_allclose(metrics.r2(truth, prediction, mean), theirs["r2"], atol=1e-6)
    present = (truth > 0).astype(float)
    np.testing.assert_allclose(metrics.auroc(present, prediction), theirs["auroc"], atol=1e-6)
    gain = metrics.auprc(present, prediction) - metrics.prevalence(present)
    np.testing.assert_allclose(gain, theirs["auprc_gain"], atol=1e-6)


def test_calibration_error_by_hand():
    probability = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0.6, 0.6, 0.6, 0.6])
    present = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0])
    expected = (4 * abs(0.1 - 0.25) + 5 * abs(0.6 - 0.6)) / 9
    assert metrics.ece(present, probability)[0] == pytest.approx(expected)
    assert metrics.ece(present, probability, n_bins=1)[0] == pytest.approx(abs(probability.mean() - present.mean()))
    with_gaps = metrics.ece([*present, np.nan, 1], [*probability, 0.9, np.nan])[0]
    assert with_gaps == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 15))
def test_calibration_error_does_not_depend_on_the_order(seed, n_bins):
    rng = np.random.default_rng(seed)
    probability = np.round(rng.random(50), 1)
    present = (rng.random(50) < probability).astype(float)
    order = rng.permutation(50)
    assert metrics.ece(present, probability, n_bins)[0] == pytest.approx(
        metrics.ece(present[order], probability[order], n_bins)[0]
    )


def test_calibration_error_of_right_and_of_wrong_probabilities():
    rng = np.random.default_rng(0)
    probability = rng.random((20_000, 4))
    present = (rng.random(probability.shape) < probability).astype(float)
    assert metrics.ece(present, probability).max() < 0.02
    assert metrics.ece(present, np.full_like(probability, 0.5)).max() < 0.02  # useless, and calibrated
    sure = np.clip(1.6 * (probability - 0.5) + 0.5, 0, 1)
    assert metrics.ece(present, sure).min() > 0.08
    assert (metrics.brier(present, probability) < metrics.brier(present, sure)).all()


def test_calibration_error_of_finite_spots_is_what_its_docstring_says():
    rng = np.random.default_rng(1)
    present = (rng.random((1000, 300)) < 0.5).astype(float)
    probability = 0.5 + 1e-3 * rng.random(present.shape)
    expected = np.sqrt(2 * 0.25 * 10 / (np.pi * 1000))
    assert metrics.ece(present, probability).mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", ["brier", "ece"])
def test_probabilities_are_probabilities(name):
    with pytest.raises(ValueError, match=r"between 0 and 1, found 0\.5 to 1\.5"):
        getattr(metrics, name)([0, 1], [0.5, 1.5])
    assert np.isnan(getattr(metrics, name)([[np.nan]], [[0.5]])).all()


def test_calibration_error_needs_bins():
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        metrics.ece([0, 1], [0.5, 0.5], n_bins=0)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_ranks_are_scipys(share):
    rng = np.random.default_rng(5)
    values = _masked(rng, np.round(rng.normal(size=(50, 7)), 1), share)
    np.testing.assert_array_equal(ranks(values), rankdata(values, axis=0, nan_policy="omit"))
    assert ranks(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("n_bins", [1, 2, 10])
@pytest.mark.parametrize("levels", [3, 1000])
def test_ece_is_that_of_one_column_at_a_time(n_bins, levels):
    rng = np.random.default_rng(6)
    p = _masked(rng, np.round(rng.random((90, 9)) * levels) / levels)
    present = (rng.random((90, 9)) < 0.4).astype(float)
    expected = []
    for q, y in zip(p.T, present.T, strict=True):
        q, y = q[~np.isnan(q)], y[~np.isnan(q)]
        edges = np.unique(np.quantile(q, np.arange(1, n_bins) / n_bins)) if n_bins > 1 else []
        bins = np.searchsorted(edges, q, side="right")
        expected.append(sum(abs((q - y)[bins == b].sum()) for b in np.unique(bins)) / len(q))
    np.testing.assert_allclose(metrics.ece(present, p, n_bins), expected, rtol=1e-9)


def test_mcc_without_skill_is_zero_and_of_one_class_is_nothing():
    present = np.tile([[1.0], [0.0]], (500, 1))
    called = np.repeat([[1.0], [0.0]], 500, axis=0)
    assert metrics.mcc(present, called)[0] == pytest.approx(0)
    assert np.isnan(metrics.mcc(present, np.ones((1000, 1)))).all()
    assert np.isnan(metrics.mcc(np.zeros((1000, 1)), called)).all()

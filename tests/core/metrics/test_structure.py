import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

from stmsi import metrics
from stmsi._core.metrics.structure import correlations


def _data(seed=0, n=80, m=7):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 3))
    truth = hidden @ rng.normal(size=(3, m)) + 0.3 * rng.normal(size=(n, m))
    return rng, hidden, truth


@pytest.mark.parametrize("share", [0, 0.2])
def test_correlations_are_pandas(share):
    rng, _, truth = _data()
    other = rng.normal(size=(80, 4)) + truth[:, :4] + 1e4
    truth[rng.random(truth.shape) < share] = np.nan
    both = pd.DataFrame(np.hstack([truth, other])).corr(min_periods=2).to_numpy()
    np.testing.assert_allclose(correlations(truth, other), both[:7, 7:], rtol=1e-6)
    np.testing.assert_allclose(correlations(truth, truth), both[:7, :7], rtol=1e-6)


def test_correlations_of_spots_without_msi_and_of_constants():
    _, _, truth = _data()
    truth[::3], truth[:, 2] = np.nan, 0.1
    found = correlations(truth, truth)
    assert np.isnan(found[2]).all()
    keep = [0, 1, 3, 4, 5, 6]
    np.testing.assert_allclose(found[np.ix_(keep, keep)], pd.DataFrame(truth[:, keep]).corr(), rtol=1e-9)


def test_metabolite_correlations():
    rng, hidden, truth = _data()
    assert metrics.correlation_preserved(truth, truth * 3 - 1) == pytest.approx(np.ones(7))
    shuffled = rng.permuted(truth, axis=0)
    assert np.abs(metrics.correlation_preserved(truth, shuffled)).mean() < 0.6
    table, other = (np.corrcoef(v.T) for v in (truth, hidden @ rng.normal(size=(3, 7))))
    rng, hidden, truth = _data()
    rng.permuted(truth, axis=0)
    found = metrics.correlation_preserved(truth, hidden @ rng.normal(size=(3, 7)))
    expected = [np.corrcoef(np.delete(table[j], j), np.delete(other[j], j))[0, 1] for j in range(7)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_gene_correlations():
    rng, hidden, truth = _data()
    genes = rng.poisson(np.exp(hidden @ rng.normal(size=(3, 20)))).astype(float)
    same = metrics.gene_correlation_preserved(genes, truth, truth)
    np.testing.assert_allclose(same, 1)
    np.testing.assert_allclose(metrics.gene_correlation_preserved(sp.csr_matrix(genes), truth, truth), same)
    np.testing.assert_allclose(metrics.gene_correlation_preserved(genes, truth, -truth), -1)
    with pytest.raises(ValueError, match=r"genes must be of shape \(80, genes\), found \(79, 20\)"):
        metrics.gene_correlation_preserved(genes[1:], truth, truth)


def test_means_of_groups():
    _, _, truth = _data()
    truth[::5, 1] = np.nan
    group = np.array(["b", "a", None, "c"] * 20, dtype=object)
    means, names = metrics.group_means(truth, group)
    expected = pd.DataFrame(truth).groupby(group).mean()
    assert names.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(means, expected)
    np.testing.assert_allclose(metrics.group_agreement(truth, 2 * truth + 1, group), 1)
    with pytest.raises(ValueError, match="group must name the group of each of the 80 spots, found 3"):
        metrics.group_means(truth, ["a", "b", "c"])


def test_two_groups_have_no_agreement():
    _, _, truth = _data()
    assert np.isnan(metrics.group_agreement(truth, truth, ["a", "b"] * 40)).all()


@pytest.mark.parametrize("ties", [False, True])
def test_differences_are_those_of_mann_and_whitney(ties):
    rng, _, truth = _data()
    truth = np.round(truth) if ties else truth
    truth[rng.random(truth.shape) < 0.1] = np.nan
    group = rng.integers(0, 3, 80).astype(str)
    effect, p, names = metrics.differential_abundance(truth, group)
    for g, name in enumerate(names):
        for m in range(7):
            own, rest = truth[group == name, m], truth[group != name, m]
            own, rest = own[~np.isnan(own)], rest[~np.isnan(rest)]
            test = mannwhitneyu(own, rest, method="asymptotic", use_continuity=False)
            assert effect[g, m] == pytest.approx(2 * test.statistic / (len(own) * len(rest)) - 1)
            assert p[g, m] == pytest.approx(test.pvalue)


def test_agreement_of_differences():
    rng = np.random.default_rng(0)
    region = np.repeat(["a", "b", "c"], 60)
    level = np.repeat([0.0, 2, 4], 60)[:, None] * [1, 1, 0] + rng.normal(size=(180, 3))
    assert metrics.differential_agreement(level, level, region)[:2].tolist() == [1, 1]
    assert np.isnan(metrics.differential_agreement(level[:, 2:], level[:, :1], region)[0])
    assert metrics.differential_agreement(level[:, :1], -level[:, :1], region)[0] == 0
    assert metrics.differential_agreement(level[:, :1], level[:, 2:], region)[0] < 0.5
    unknown = np.where(level > 3, np.nan, level)
    assert np.isfinite(metrics.differential_agreement(unknown, level, region)[0])
    with pytest.raises(ValueError, match="alpha is a rate"):
        metrics.differential_agreement(level, level, region, alpha=1)


def test_a_group_alone_differs_from_nothing():
    effect, p, _ = metrics.differential_abundance(np.arange(5.0), ["a"] * 5)
    assert np.isnan(effect).all()
    assert np.isnan(p).all()

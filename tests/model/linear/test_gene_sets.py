"""Ridge regressions on a few genes of each metabolite."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi.model.linear._gene_sets import SIZES, GeneBlocks, fit_gene_sets, screened_sets
from stmsi.model.shared._spot_input import Spots

N, GENES = 90, 40


@pytest.fixture(params=[False, True], ids=["alone", "ring"])
def problem(request):
    """Log expression of three sections; gene 3 drives the first metabolite, genes 7 and 8 the second, nothing the third."""
    rng = np.random.default_rng(0)
    section = np.repeat(np.arange(3), N // 3)
    X = rng.normal(1.5, 1, (N, GENES)) * (rng.random((N, GENES)) < 0.8)
    Y = np.column_stack([X[:, 3], X[:, 7] - X[:, 8], np.zeros(N)]) + 0.3 * rng.normal(size=(N, 3)) + 3
    Y[rng.random(N) < 0.2, 1] = np.nan
    dense = (np.abs(np.subtract.outer(np.arange(N), np.arange(N))) == 1) & (section[:, None] == section)
    graph = sp.csr_matrix(dense.astype(np.float32)) if request.param else None
    return sp.csr_matrix(X.astype(np.float32)), graph, Y, section


def spots_of(log, graph):
    return Spots(pd.RangeIndex(log.shape[0]).astype(str), log, graph, input="log")


def fit(log, graph, Y, groups, section=None, sets=None):
    section = groups if section is None else section
    blocks = GeneBlocks(spots_of(log, graph))
    sets = list(screened_sets(blocks, Y, section, groups)) if sets is None else sets
    return fit_gene_sets(blocks, Y, sets, groups, HeldOutTruth.of(Y, groups, section))


def test_the_screen_is_a_sum_of_correlations(problem):
    log, graph, Y, section = problem
    groups = np.array([0, 1, 1])[section]  # two sections in one group
    blocks = GeneBlocks(spots_of(log, graph))
    found = blocks.screen(Y, section, groups)
    X = log.toarray().astype(float)
    kinds = [X]
    if graph is not None:
        A = graph.toarray()
        kinds.append((A / np.maximum(A.sum(axis=1, keepdims=True), 1)) @ X)
    assert found.shape == (2, len(kinds), GENES, 3)
    for m in (0, 2):  # without gaps the correlation is that of numpy
        for b, values in enumerate(kinds):
            for gene in (3, 7, 20):
                r = np.array([np.corrcoef(values[section == s, gene], Y[section == s, m])[0, 1] for s in range(3)])
                r *= np.sqrt(N // 3)
                np.testing.assert_allclose(found[:, b, gene, m], [r[0], r[1] + r[2]], atol=1e-3)
    assert np.abs(found.sum(axis=0)).max(axis=0)[:, 1].argsort()[-2:].tolist() in ([7, 8], [8, 7])


def test_metabolites_that_do_not_vary_and_genes_that_do_not_are_finite(problem):
    log, graph, Y, section = problem
    X = log.toarray()
    X[section == 1, 5] = 2
    Y[:, 2] = 3
    Y[section == 0, 0] = np.nan
    found = GeneBlocks(spots_of(sp.csr_matrix(X), graph)).screen(Y, section, section)
    assert np.isfinite(found).all()
    assert (found[..., 2] == 0).all()
    assert (found[0, ..., 0] == 0).all()
    assert (np.abs(found[1, 0, 5]) < 1e-3).all()


def test_features_are_z_scores_and_their_ring(problem):
    log, graph, _, _ = problem
    blocks = GeneBlocks(spots_of(log, graph))
    genes = np.array([2, 9])
    F = blocks.features(genes)
    X = log.toarray()[:, blocks.genes[genes]]
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    np.testing.assert_allclose(F[:, :2], z, atol=1e-4)
    if graph is not None:
        A = graph.toarray()
        np.testing.assert_allclose(F[:, 2:], A @ z / A.sum(axis=1, keepdims=True), atol=1e-4)


def test_sets_are_found_without_the_held_out_group(problem):
    """A gene that goes with a metabolite in one section only is not in the set that predicts this section."""
    log, graph, Y, section = problem
    Y[:, 2] = np.where(section == 1, 5 * log[:, 30].toarray().ravel(), Y[:, 2])
    (sets,) = [s for m, s in enumerate(screened_sets(GeneBlocks(spots_of(log, graph)), Y, section, section)) if m == 2]
    small = sets[0]
    assert len(small) == 4, "one for each fold, and one of all spots"
    assert 30 not in small[1]
    assert 30 in small[0]
    assert 30 in small[2]
    assert 30 in small[3]
    assert all(len(s) == SIZES[0] for s in small)


def test_labels_of_a_group_have_no_say_in_its_held_out_predictions(problem):
    log, graph, Y, section = problem
    some = list(screened_sets(GeneBlocks(spots_of(log, graph)), Y, section, section))
    other = Y.copy()
    other[section == 2] = other[section == 2][::-1]
    again = list(screened_sets(GeneBlocks(spots_of(log, graph)), other, section, section))
    for a, b in zip(some, again, strict=True):
        for of_size, others in zip(a, b, strict=True):
            np.testing.assert_array_equal(of_size[2], others[2])


def test_sizes_follow_the_number_of_genes(problem):
    log, graph, Y, section = problem
    sizes = {len(s[-1]) for s in next(screened_sets(GeneBlocks(spots_of(log, graph)), Y, section, section))}
    assert sizes == {10, 30}
    few = GeneBlocks(spots_of(log[:, :6], graph))
    assert [len(s[-1]) for s in next(screened_sets(few, Y, section, section))] == [6]


def test_predictions_of_training_spots_are_ridge_on_the_features(problem):
    log, graph, Y, section = problem
    blocks = GeneBlocks(spots_of(log, graph))
    sets = [[[np.array(genes)] * 4] for genes in ([3, 4], [7, 8, 9], [1])]
    fitted, held_out = fit_gene_sets(blocks, Y, sets, section, HeldOutTruth.of(Y, section, section))
    got = fitted.predict(log, graph)
    assert fitted.genes.tolist() == [1, 3, 4, 7, 8, 9]
    assert fitted.size.tolist() == [2, 3, 1]
    best = []
    for m, genes in enumerate(([3, 4], [7, 8, 9], [1])):
        known, F = ~np.isnan(Y[:, m]), blocks.features(np.array(genes)).astype(float)
        paths = [
            Ridge(p * known.sum(), solver="svd").fit(F[known], Y[known, m]).predict(F) for p in (1e-2, 1e-1, 1.0, 10.0)
        ]
        best.append({i for i, path in enumerate(paths) if np.allclose(path, got[:, m], atol=1e-3)})
        own = section == 1
        used = known & ~own
        path = [
            Ridge(p * used.sum(), solver="svd").fit(F[used], Y[used, m]).predict(F[own])
            for p in (1e-2, 1e-1, 1.0, 10.0)
        ]
        assert any(np.allclose(p, held_out[own, m], atol=1e-3) for p in path)
    assert len(set.intersection(*best)) == 1, "one penalty for all metabolites"


def test_drivers_are_found_and_predict(problem):
    log, graph, Y, section = problem
    fitted, held_out = fit(log, graph, Y, section)
    assert {3, 7, 8} <= set(fitted.genes)
    for m in (0, 1):
        known = ~np.isnan(Y[:, m])
        assert np.corrcoef(held_out[known, m], Y[known, m])[0, 1] > 0.8
    assert abs(np.corrcoef(held_out[:, 2], Y[:, 2])[0, 1]) < 0.4


def test_a_metabolite_of_one_group_has_no_held_out_prediction_there(problem):
    log, graph, Y, section = problem
    Y[section != 1, 0] = np.nan
    fitted, held_out = fit(log, graph, Y, section)
    assert np.isnan(held_out[section == 1, 0]).all()
    assert np.isfinite(fitted.predict(log, graph)).all()


def test_many_metabolites_are_screened_and_chosen_in_parts(problem, monkeypatch):
    from stmsi.model.linear import _gene_sets

    log, graph, Y, section = problem
    whole, _ = fit(log, graph, Y, section)
    monkeypatch.setattr(_gene_sets, "_TOGETHER", 2)
    parts, _ = fit(log, graph, Y, section)
    np.testing.assert_array_equal(parts.predict(log, graph), whole.predict(log, graph))
    monkeypatch.setattr(_gene_sets, "_CHOOSING", 1)
    fitted, held_out = fit(log, graph, Y, section)
    assert np.isfinite(fitted.predict(log, graph)).all()
    assert np.isfinite(held_out).all()

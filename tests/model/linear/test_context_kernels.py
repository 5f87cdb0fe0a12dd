"""Kernels of spots and their surroundings against the same computed directly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import GeneMoments
from stmsi._core.learning.shared_ridge import GroupMoments, fit_shared_ridge
from stmsi.model.linear._context_kernels import (
    ComponentKernel,
    GeneKernel,
    genes_seen,
    mean_over_neighbours,
    rings,
)
from stmsi.model.shared._spot_input import Spots

N, GENES = 60, 25


def make_spots(graph: str = "none", *, log: bool = False, n: int = N, seed: int = 0) -> Spots:
    """Spots in a row; with `graph` ``"whole"`` each has neighbours, with ``"isolated"`` every fifth has none."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.uniform(0.5, 6, GENES), (n, GENES)).astype(np.float32)
    X = np.log1p(counts) - 1 if log else counts
    edges = None
    if graph != "none":
        dense = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) == 1).astype(np.float32)
        if graph == "isolated":
            dense[::5] = dense[:, ::5] = 0
        edges = sp.csr_matrix(7 * dense)
    return Spots(pd.RangeIndex(n).astype(str), sp.csr_matrix(X), edges, input="log" if log else "counts")


GRAPHS = ["none", "whole", "isolated"]


def ring_matrices(spots: Spots) -> list[np.ndarray]:
    """Identity, mean over the neighbours, and the mean of that; the first alone without a graph."""
    if spots.graph is None:
        return [np.eye(len(spots))]
    A = (spots.graph.toarray() > 0).astype(float)
    A /= np.maximum(A.sum(axis=1, keepdims=True), 1)
    return [np.eye(len(spots)), A, A @ A]


# --------------------------------------------------------------------------------------------------------------- genes


def test_genes_seen_in_few_spots_or_always_the_same_are_left_out():
    X = np.ones((100, 4), np.float32)
    X[:, 1] = np.arange(100) < 2
    X[:, 2] = np.arange(100) < 5
    X[:, 3] = np.arange(100)
    kept, mean, deviation = genes_seen(GeneMoments.of(sp.csr_matrix(X)))
    assert kept.tolist() == [2, 3]
    np.testing.assert_allclose(mean, X[:, kept].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deviation, X[:, kept].std(axis=0), rtol=1e-5)


def test_of_a_sparse_panel_all_genes_are_kept():
    X = np.zeros((100, 3), np.float32)
    X[0, 0] = X[1, 2] = 1
    assert genes_seen(GeneMoments.of(sp.csr_matrix(X)))[0].tolist() == [0, 2]


def test_expression_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="No gene varies over the training spots"):
        genes_seen(GeneMoments.of(sp.csr_matrix(np.ones((5, 3), np.float32))))


@pytest.mark.parametrize("graph", GRAPHS)
def test_rings_are_means_over_the_neighbours(graph):
    spots = make_spots(graph)
    values = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
    matrices = ring_matrices(spots)
    blocks = rings(values, spots.graph)
    assert len(blocks) == len(matrices)
    for block, A in zip(blocks, matrices, strict=True):
        np.testing.assert_allclose(block, A @ values, atol=1e-5)
    if spots.graph is not None:
        np.testing.assert_allclose(mean_over_neighbours(spots.graph).toarray(), matrices[1], atol=1e-6)


# --------------------------------------------------------------------------------------------------------- gene kernel


def direct_blocks(spots: Spots, kernel: GeneKernel) -> np.ndarray:
    """Centred genes of a spot and its rings, each block with a mean squared length of 1; shape (spots, blocks x genes)."""
    log = spots.log_expression().toarray()[:, kernel.genes].astype(float)
    z = (log - log.mean(axis=0)) / (log.std(axis=0) if kernel.unit_variance else 1)
    parts = [
        A @ z if b == 0 else A @ log - A.sum(axis=1, keepdims=True) * log.mean(axis=0)
        for b, A in enumerate(ring_matrices(spots))
    ]
    if kernel.unit_variance:
        parts = [parts[0], *(p / log.std(axis=0) for p in parts[1:])]
    return np.hstack([p / np.sqrt((p**2).sum(axis=1).mean()) for p in parts])


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("unit_variance", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_with_all_landmarks_products_of_features_are_the_kernel(graph, unit_variance, log):
    spots = make_spots(graph, log=log)
    kernel = GeneKernel(unit_variance)
    F = kernel.fit_transform(spots).astype(float)
    Z = direct_blocks(spots, kernel)
    expected = Z @ Z.T
    # jitter keeps the factorisation regular
    np.testing.assert_allclose(F @ F.T, expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("unit_variance", [False, True])
def test_it_is_ridge_on_all_genes_and_rings(graph, unit_variance):
    """The direct dual of ridge regression on all columns."""
    spots, alpha = make_spots(graph), 3.0
    Y = np.random.default_rng(2).normal(size=(N, 2)) + 4
    kernel = GeneKernel(unit_variance)
    F = kernel.fit_transform(spots)
    moments = GroupMoments.of(F, Y, np.arange(N) % 2)
    weights = moments.fit(alpha / moments.unit).astype(np.float32)
    kernel.keep(weights[:-1], weights[-1])
    Z = direct_blocks(spots, kernel)
    centred = Z - Z.mean(axis=0)
    K = centred @ centred.T
    dual = np.linalg.solve(K + alpha * np.eye(N), Y - Y.mean(axis=0))
    np.testing.assert_allclose(kernel.predict(spots), K @ dual + Y.mean(axis=0), atol=0.01)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_landmarks", [1500, 20])
@pytest.mark.parametrize("log", [False, True])
def test_predictions_of_training_spots_are_features_times_weights(graph, n_landmarks, log):
    spots = make_spots(graph, log=log)
    kernel = GeneKernel(n_landmarks=n_landmarks)
    F = kernel.fit_transform(spots)
    assert F.shape == (N, min(n_landmarks, N))
    rng = np.random.default_rng(3)
    weights, offset = rng.normal(size=(F.shape[1], 2)).astype(np.float32), np.array([1.0, -2.0], np.float32)
    kernel.keep(weights, offset)
    expected = F @ weights + offset
    np.testing.assert_allclose(kernel.predict(spots), expected, atol=2e-3 * np.abs(expected).max())
    assert kernel.weights.shape == (1 if graph == "none" else 3, len(kernel.genes), 2)
    assert not hasattr(kernel, "_landmarks"), "a fitted kernel holds no training spot"


def test_spots_without_neighbours_are_predicted_from_their_own_genes():
    spots = make_spots("isolated")
    kernel = GeneKernel()
    fitted = fit_shared_ridge(
        kernel.fit_transform(spots), np.random.default_rng(0).normal(size=(N, 1)), np.arange(N) % 3, np.arange(N) % 3
    )
    kernel.keep(fitted.weights, fitted.offset)
    alone = Spots(spots.names, spots.counts, sp.csr_matrix((N, N), dtype=np.float32))
    got, bare = kernel.predict(spots), kernel.predict(alone)
    np.testing.assert_allclose(got[::5], bare[::5], atol=1e-4)
    assert np.isfinite(bare).all()
    assert np.abs(got - bare).max() > 1e-3


def test_with_unit_variance_the_scale_of_a_gene_does_not_matter():
    spots = make_spots(log=True)
    other = Spots(spots.names, spots.counts.copy(), input="log")
    other.counts[:, 3] = other.counts[:, 3] * 10
    features = {u: [GeneKernel(u).fit_transform(s).astype(float) for s in (spots, other)] for u in (False, True)}
    np.testing.assert_allclose(*(F @ F.T for F in features[True]), atol=5e-3)
    a, b = (F @ F.T for F in features[False])
    assert np.abs(a - b).max() > 0.5


def test_landmarks_follow_the_seed():
    spots = make_spots()
    first, again, other = (GeneKernel(n_landmarks=10, seed=s).fit_transform(spots) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# ---------------------------------------------------------------------------------------------------- component kernel


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("log", [False, True])
def test_products_of_features_are_the_gaussian_kernel(graph, log):
    spots = make_spots(graph, log=log)
    kernel = ComponentKernel(n_components=6)
    F = kernel.fit_transform(spots).astype(float)
    Z = kernel._rows(spots).astype(float)
    expected = np.exp(-kernel.gamma * ((Z[:, None] - Z[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(F @ F.T, expected, atol=2e-3)
    assert Z.shape == (N, 6 if graph == "none" else 18)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_landmarks", [1500, 20])
def test_component_predictions_of_training_spots_are_features_times_weights(graph, n_landmarks):
    spots = make_spots(graph)
    kernel = ComponentKernel(n_components=6, n_landmarks=n_landmarks)
    F = kernel.fit_transform(spots)
    rng = np.random.default_rng(3)
    weights, offset = rng.normal(size=(F.shape[1], 2)).astype(np.float32), np.array([1.0, -2.0], np.float32)
    kernel.keep(weights, offset)
    expected = F @ weights + offset
    np.testing.assert_allclose(kernel.predict(spots), expected, atol=2e-3 * np.abs(expected).max())
    assert len(kernel.landmarks) == F.shape[1]


def test_of_counts_the_depth_of_a_spot_does_not_set_its_distances():
    spots = make_spots()
    Z = ComponentKernel(n_components=6)
    Z.fit_transform(spots)
    rows = Z._rows(spots)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(axis=1), 1, atol=1e-3)
    logs = ComponentKernel(n_components=6)
    logs.fit_transform(make_spots(log=True))
    assert logs._rows(make_spots(log=True)).std(axis=1).std() > 0.05


def test_one_gene_is_enough_for_both_kernels():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(5, (30, 1)).astype(np.float32) - 5)
    spots = Spots(pd.RangeIndex(30).astype(str), counts, input="log")
    for kernel in (GeneKernel(), ComponentKernel()):
        F = kernel.fit_transform(spots)
        assert np.isfinite(F).all()
        kernel.keep(np.ones((F.shape[1], 1), np.float32), np.zeros(1, np.float32))
        assert np.isfinite(kernel.predict(spots)).all()


def test_spots_that_are_all_alike_but_one():
    X = np.ones((20, 5), np.float32)
    X[3] = [5, 1, 0, 2, 1]
    spots = Spots(pd.RangeIndex(20).astype(str), sp.csr_matrix(X))
    for kernel in (GeneKernel(), ComponentKernel()):
        assert np.isfinite(kernel.fit_transform(spots)).all()

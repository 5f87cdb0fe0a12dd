import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import (
    ExpressionSpace,
    column_moments,
    column_sums,
    log_normalize,
    neighbour_mean,
    pool_counts,
    pool_logs,
)


@pytest.fixture
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    rate = rng.lognormal(1, 1, 30)[None] * rng.lognormal(0, 0.4, (60, 30))
    return sp.csr_matrix(rng.poisson(rate), dtype=np.float32)


@pytest.fixture
def log(counts) -> sp.csr_matrix:
    return log_normalize(counts)


def test_log_normalize_follows_its_formula(counts):
    dense = counts.toarray().astype(np.float64)
    expected = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    result = log_normalize(counts)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.toarray(), expected, rtol=1e-5)


def test_log_normalize_takes_depth_out(counts):
    np.testing.assert_allclose(
        log_normalize(sp.csr_matrix(counts * 3)).toarray(), log_normalize(counts).toarray(), rtol=1e-5
    )


def test_log_normalize_leaves_the_counts_alone_and_adds_up_repeated_entries():
    repeated = sp.csr_matrix((np.float32([1, 2, 3]), [0, 0, 1], [0, 3]), shape=(1, 2))
    np.testing.assert_allclose(log_normalize(repeated).toarray(), np.log1p([[5000, 5000]]), rtol=1e-6)
    np.testing.assert_array_equal(repeated.data, [1, 2, 3])
    assert repeated.nnz == 3


def test_a_spot_without_counts_stays_zero_and_finite(counts):
    counts = counts.tolil()
    counts[3] = 0
    result = log_normalize(counts.tocsr()).toarray()
    assert (result[3] == 0).all()
    assert np.isfinite(result).all()


def test_pool_counts_adds_neighbours_whatever_the_edge_weights():
    counts = sp.csr_matrix(np.array([[1, 0], [10, 5], [100, 0]], np.float32))
    graph = sp.csr_matrix(np.array([[0, 0.5, 0], [0.5, 0, 2], [0, 2, 0]]))
    before = graph.toarray()
    np.testing.assert_array_equal(pool_counts(counts, graph).toarray(), [[11, 5], [111, 5], [110, 5]])
    np.testing.assert_array_equal(graph.toarray(), before)


def test_pool_logs_is_the_mean_of_a_spot_and_its_neighbours_whatever_the_edge_weights():
    log = sp.csr_matrix(np.array([[1, 0], [4, -3], [0, 0]], np.float32))
    graph = sp.csr_matrix(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(pool_logs(log, graph).toarray(), [[2.5, -1.5], [2.5, -1.5], [0, 0]])


def test_log_normalize_to_another_sum(counts):
    np.testing.assert_allclose(np.expm1(log_normalize(counts, 50.0).toarray()).sum(axis=1), 50, rtol=1e-5)


def test_neighbour_mean_leaves_the_spot_out_whatever_the_edge_weights():
    graph = sp.csr_matrix(np.array([[0, 5.0, 2], [5, 0, 0], [2, 0, 0]]))
    values = np.array([[1.0], [2], [6]], np.float32)
    np.testing.assert_allclose(neighbour_mean(values, graph), [[4], [1], [1]])
    np.testing.assert_array_equal(neighbour_mean(values, sp.csr_matrix((3, 3))), 0)


def test_column_moments_against_numpy(counts):
    X = log_normalize(counts)
    before = X.toarray()
    mean, variance = column_moments(X)
    np.testing.assert_allclose(mean, before.astype(np.float64).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, before.astype(np.float64).var(axis=0), rtol=1e-4)
    np.testing.assert_array_equal(X.toarray(), before)


def test_stored_zeros_are_not_seen(counts):
    dense = counts.toarray()
    stored = counts.copy()
    stored.data[::3] = 0
    dense[dense > 0] = stored.data
    expected = np.stack([dense.sum(axis=0), (dense**2).sum(axis=0), (dense != 0).sum(axis=0)])
    np.testing.assert_allclose(column_sums(stored), expected, rtol=1e-12)


def test_the_most_variable_genes_are_kept_in_order(log):
    space = ExpressionSpace.fit(log, n_top_genes=8, n_components=3)
    variance = log.toarray().var(axis=0)
    assert set(space.selected) == set(np.argsort(-variance)[:8])
    assert (np.diff(space.selected) > 0).all()


def test_genes_that_do_not_vary_are_never_kept(counts):
    dense = counts.toarray()
    dense[:, :5] = 0
    space = ExpressionSpace.fit(log_normalize(sp.csr_matrix(dense)), n_top_genes=1000, n_components=3)
    assert len(space.selected) == 25
    assert space.selected.min() == 5


def test_expression_is_centred_at_the_training_mean_and_not_scaled(log):
    space = ExpressionSpace.fit(log[:40], n_top_genes=12, n_components=3)
    X = log.toarray()[:, space.selected].astype(np.float64)
    np.testing.assert_allclose(space.centred(log), X - X[:40].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(space.mean, X[:40].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(space.scale, X[:40].std(axis=0), rtol=1e-4)


def test_components_are_orthonormal_and_explain_the_stated_variance(log):
    space = ExpressionSpace.fit(log, n_top_genes=20, n_components=5)
    np.testing.assert_allclose(space.components @ space.components.T, np.eye(5), atol=1e-4)
    scores = space.transform(log)
    np.testing.assert_allclose(scores.std(axis=0, ddof=1), space.deviation, rtol=1e-3)
    assert (np.diff(space.deviation) <= 0).all()


def test_components_are_capped_by_spots_and_genes(log):
    assert ExpressionSpace.fit(log[:4], n_top_genes=30, n_components=50).components.shape[0] == 3
    assert ExpressionSpace.fit(log, n_top_genes=6, n_components=50).components.shape == (6, 6)


def test_few_entries_are_transformed_as_they_are(monkeypatch):
    rng = np.random.default_rng(0)
    log = sp.csr_matrix((rng.gamma(2, 1, (300, 50)) * (rng.random((300, 50)) < 0.05)).astype(np.float32))
    space = ExpressionSpace.fit(log, n_top_genes=20, n_components=5)
    assert len(space.selected) == 20
    in_full = space.centred(log) @ space.components.T
    dense = []
    monkeypatch.setattr(ExpressionSpace, "centred", lambda self, some: dense.append(some))
    np.testing.assert_allclose(space.transform(log), in_full, atol=1e-5)
    assert not dense, "spots x genes"


def test_transform_in_pieces_is_the_same_as_at_once(log, monkeypatch):
    space = ExpressionSpace.fit(log, n_top_genes=20, n_components=5)
    whole = space.transform(log)
    monkeypatch.setattr("stmsi._core.learning.expression_space._CHUNK", 7)
    np.testing.assert_allclose(space.transform(log), whole, atol=1e-5)


def test_no_spots_give_no_rows(log):
    space = ExpressionSpace.fit(log, n_top_genes=20, n_components=5)
    assert space.transform(log[:0]).shape == (0, 5)


def test_same_seed_same_bits(log):
    a, b = (ExpressionSpace.fit(log, n_top_genes=20, n_components=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.components, b.components)


def test_expression_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match=r"No gene varies over the training spots.*more than one spot"):
        ExpressionSpace.fit(sp.csr_matrix(np.ones((5, 4), np.float32)), n_top_genes=4, n_components=2)


@pytest.mark.parametrize("value", [0.7, 1.0, 8.3])
@pytest.mark.parametrize("n", [97, 20_000])
def test_moments_are_summed_in_double_precision(value, n):
    X = np.full((n, 2), value, np.float32)
    X[0, 1] = 0
    mean, variance = column_moments(sp.csr_matrix(X))
    np.testing.assert_allclose(mean, X.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variance, X.astype(np.float64).var(axis=0), atol=1e-12)

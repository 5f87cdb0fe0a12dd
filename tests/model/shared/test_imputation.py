import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import column_moments, log_normalize, mean_shares, pool_logs
from stmsi._core.learning.filled_expression import FilledExpression
from stmsi.model.shared._gene_panel import GenePanel
from stmsi.model.shared._imputation import Imputation

MISSING = np.array([1, 4])


@pytest.fixture
def counts() -> sp.csr_matrix:
    dense = np.random.default_rng(0).poisson(20, (15, 6))
    dense[3] = 0
    return sp.csr_matrix(dense, dtype=np.float32)


@pytest.fixture
def graph() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(1).random((15, 15)) < 0.2, dtype=np.float32)


@pytest.fixture
def panel(counts) -> GenePanel:
    return GenePanel({}, column_moments(log_normalize(counts))[0])


@pytest.fixture
def left(counts, panel) -> sp.csr_matrix:
    """Without the missing genes, in panel order."""
    return panel.align(counts[:, [0, 2, 3, 5]], np.array([0, -1, 1, 2, -1, 3]))


@pytest.fixture
def imputed(panel) -> Imputation:
    made = panel.imputation(MISSING)
    assert made is not None
    return made


def test_missing_genes_stay_empty_in_the_counts(left, counts):
    expected = counts.toarray()
    expected[:, MISSING] = 0
    np.testing.assert_array_equal(left.toarray(), expected)
    assert left.has_sorted_indices


def test_nothing_is_imputed_where_nothing_is_missing(panel):
    assert panel.imputation(np.array([], int)) is None


def test_a_missing_gene_has_its_training_mean_in_every_spot_with_counts(imputed, left, panel):
    log = imputed.log_expression(left).toarray()
    assert (log[3] == 0).all()
    for gene in MISSING:
        np.testing.assert_allclose(np.delete(log[:, gene], 3), panel.mean_log[gene], rtol=1e-6)
    np.testing.assert_array_equal(imputed.present, [True, False, True, True, False, True])


def test_it_is_what_filled_counts_would_give(imputed, left, graph):
    filled = imputed.fill(left)
    assert filled.has_canonical_format
    np.testing.assert_allclose(imputed.log_expression(left).toarray(), log_normalize(filled).toarray(), atol=2e-6)
    adjacency = sp.csr_matrix(graph != 0, dtype=np.float32)
    pooled = log_normalize(sp.csr_matrix(filled + adjacency @ filled))
    np.testing.assert_allclose(imputed.pooled(left, graph).toarray(), pooled.toarray(), atol=2e-6)


def test_filled_spots_keep_the_ratios_of_their_own_genes(imputed, left, counts):
    some = np.delete(np.arange(15), 3)
    log = np.expm1(imputed.log_expression(left).toarray())[some]
    own = counts.toarray()[some]
    np.testing.assert_allclose(log[:, 0] / log[:, 2], own[:, 0] / own[:, 2], rtol=1e-5)


def test_genes_that_are_not_read_add_to_the_library_in_one_column(panel, counts):
    imputed = panel.imputation(np.array([1, 3, 4]))
    left = panel.align(counts[:, [0, 2, 5]], np.array([0, -1, 1, -1, -1, 2]))
    whole, needed = imputed.fill(left), imputed.fill(left, np.array([0, 1]))
    np.testing.assert_allclose(needed.sum(axis=1), whole.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(needed[:, [0, 1, 2, 5]].toarray(), whole[:, [0, 1, 2, 5]].toarray())
    assert sorted((needed[0, 3] > 0, needed[0, 4] > 0)) == [False, True]


def test_logarithms_have_no_library(panel, left, graph):
    imputed = panel.imputation(MISSING, "log")
    filled = left.toarray()
    filled[:, MISSING] = panel.mean_log[MISSING]
    np.testing.assert_allclose(imputed.log_expression(left).toarray(), filled, rtol=1e-6)
    np.testing.assert_allclose(imputed.fill(left).toarray(), filled, rtol=1e-6)
    np.testing.assert_allclose(
        imputed.pooled(left, graph).toarray(),
        pool_logs(sp.csr_matrix(filled, dtype=np.float32), graph).toarray(),
        rtol=1e-5,
    )
    assert imputed.fill(left, np.array([1]))[:, [4]].nnz == 0


def test_nothing_becomes_dense():
    n, genes = 2000, 3000
    values = sp.random(n, genes // 2, 0.02, format="csr", random_state=0, dtype=np.float32)
    panel = GenePanel({}, np.full(genes, 0.1))
    columns = np.arange(genes)
    columns[genes // 2 :] = -1
    left = panel.align(values, columns)
    log = panel.imputation(np.flatnonzero(columns < 0)).log_expression(left)
    assert isinstance(log, FilledExpression)
    assert log.measured.nnz == left.nnz == values.nnz


# ---------------------------------------------------------------------------------- share of the missing genes in a spot


@pytest.fixture(scope="module")
def sparse():
    """Training spots and others, with 500 counts over 400 genes, every other one missing; logs as with all genes."""
    rng = np.random.default_rng(0)
    level = rng.gamma(0.3, 1, 400)

    def draw(n):
        rate = level * np.exp(0.5 * rng.normal(size=(n, 400)))
        return sp.csr_matrix(rng.poisson(500 * rate / rate.sum(axis=1, keepdims=True)), dtype=np.float32)

    train, query = draw(300), draw(100)
    panel = GenePanel({}, column_moments(log_normalize(train))[0], None, mean_shares(train))
    missing = np.arange(0, 400, 2)
    columns = np.cumsum(np.arange(400) % 2) - 1
    columns[missing] = -1
    return panel, panel.align(query[:, 1::2].tocsr(), columns), missing, log_normalize(query).toarray()


def test_genes_that_are_there_keep_their_level(sparse):
    panel, left, missing, truth = sparse
    log = panel.imputation(missing).log_expression(left).toarray()
    there = left.toarray() > 0
    assert abs((log - truth)[there].mean()) < 0.02
    by_logs = GenePanel({}, panel.mean_log).imputation(missing).log_expression(left).toarray()
    assert (by_logs - truth)[there].mean() > 0.1, "what the mean logarithms add up to is too little"
    np.testing.assert_allclose(log[:, missing], by_logs[:, missing])


def test_filled_counts_have_the_whole_library(sparse):
    panel, left, missing, _ = sparse
    imputed = panel.imputation(missing)
    library = np.asarray(left.sum(axis=1)).ravel() / (1 - panel.mean_share[missing].sum())
    log = imputed.log_expression(left).toarray()
    for needed in (None, np.arange(300)):
        filled = imputed.fill(left, needed)
        np.testing.assert_allclose(np.asarray(filled.sum(axis=1)).ravel(), library, rtol=1e-4)
        differ = (np.abs(log_normalize(filled).toarray() - log) > 1e-4).any(axis=0)
        read = np.arange(400) if needed is None else needed
        assert differ[read].sum() == (needed is None), (
            "the rest of the library is in one gene, one that is not read if there is one"
        )


def test_mean_shares_leave_empty_spots_out():
    counts = sp.csr_matrix(np.array([[1, 3], [0, 0], [2, 2]], np.float32))
    np.testing.assert_allclose(mean_shares(counts), [0.375, 0.625])
    np.testing.assert_array_equal(mean_shares(sp.csr_matrix((2, 3), dtype=np.float32)), [0, 0, 0])

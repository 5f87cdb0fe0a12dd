import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.learning.filled_expression import FilledExpression


@pytest.fixture
def filled() -> FilledExpression:
    measured = sp.random(9, 5, 0.5, format="csr", random_state=0, dtype=np.float32)
    measured = sp.csr_matrix(measured.multiply(np.array([[1, 0, 1, 0, 1]])), dtype=np.float32)
    where = np.ones(9, np.float32)
    where[2] = 0
    return FilledExpression(measured, np.array([0, 1.5, 0, 0.5, 0], np.float32), where)


@pytest.fixture
def dense(filled) -> np.ndarray:
    return filled.measured.toarray() + np.outer(filled.where, filled.row)


def test_the_whole(filled, dense):
    np.testing.assert_allclose(filled.toarray(), dense, rtol=1e-6)
    assert filled.shape == (9, 5)
    assert filled.toarray().dtype == np.float32


@pytest.mark.parametrize("rows", [slice(1, 4), np.array([3, 0, 2]), np.arange(9) % 2 == 0])
def test_some_spots(filled, dense, rows):
    np.testing.assert_allclose(filled[rows].toarray(), dense[rows], rtol=1e-6)


@pytest.mark.parametrize("columns", [slice(0, 3), np.array([4, 1]), np.array([False, True, True, False, False])])
def test_some_genes(filled, dense, columns):
    np.testing.assert_allclose(filled[:, columns].toarray(), dense[:, columns], rtol=1e-6)


@pytest.mark.parametrize("make", [np.asarray, sp.csc_matrix, sp.csr_matrix])
def test_products(filled, dense, make):
    right = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(filled @ make(right), dense @ right, rtol=1e-5, atol=1e-6)
    assert (filled @ make(right)).dtype == np.float32

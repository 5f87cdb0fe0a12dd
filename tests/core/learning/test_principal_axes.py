import numpy as np
import pytest
from sklearn.decomposition import PCA

from stmsi._core.learning import principal_axes
from stmsi._core.learning.principal_axes import leading_axes, sum_of_products


@pytest.fixture(scope="module")
def spots():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 60)) @ (rng.normal(size=(60, 60)) * np.logspace(0, -2, 60)[:, None])
    return (X - X.mean(axis=0)).astype(np.float32)


@pytest.mark.parametrize("few", [512, 10], ids=["full", "randomised"])
def test_axes_are_those_of_scikit_learn(spots, few, monkeypatch):
    monkeypatch.setattr(principal_axes, "_FEW", few)
    values, axes = leading_axes(sum_of_products(spots).astype(np.float64), 8, len(spots))
    solver = (
        {"svd_solver": "full"} if few > 60 else {"svd_solver": "randomized", "iterated_power": 3, "random_state": 0}
    )
    pca = PCA(8, **solver).fit(spots)
    np.testing.assert_allclose(values / (len(spots) - 1), pca.explained_variance_, rtol=1e-3)
    np.testing.assert_allclose(np.abs((axes * pca.components_).sum(axis=1)), 1, atol=1e-3)
    np.testing.assert_allclose(axes @ axes.T, np.eye(8), atol=1e-8)
    assert (axes[np.arange(8), np.abs(axes).argmax(axis=1)] > 0).all()


def test_directions_without_variance_stay_finite(monkeypatch):
    monkeypatch.setattr(principal_axes, "_FEW", 10)
    X = np.zeros((50, 30), np.float32)
    X[:, :3] = np.random.default_rng(1).normal(size=(50, 3))
    values, axes = leading_axes(sum_of_products(X).astype(np.float64), 6, 50)
    assert np.isfinite(axes).all()
    np.testing.assert_allclose(values[3:], 0, atol=1e-4 * values[0])
    np.testing.assert_allclose(values[:3], np.linalg.eigvalsh(X.T @ X)[::-1][:3], rtol=1e-4)


def test_products_of_few_columns_are_doubles(spots, monkeypatch):
    exact = spots.astype(np.float64).T @ spots.astype(np.float64)
    np.testing.assert_array_equal(sum_of_products(spots), exact)
    monkeypatch.setattr(principal_axes, "_FEW", 10)
    assert sum_of_products(spots).dtype == np.float32
    np.testing.assert_allclose(sum_of_products(spots), exact, atol=1e-5 * exact.max())

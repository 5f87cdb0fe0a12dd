"""Principal axes from sums of products: what the spots of many folds have in common is summed up once."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, eigh, lu, solve_triangular

from stmsi._core.arrays import AnyFloats, Floats, Floats32

_FEW = 512
"""Columns up to which products are summed in double precision, and axes are found by a full decomposition."""
_ROUNDS = 3  # spectra of expression fall fast: three rounds of the randomised solver find the axes that matter
_OVERSAMPLED = 10


def sum_of_products(Z: Floats32) -> AnyFloats:
    """``Z.T @ Z`` of centred columns, shape (columns, columns), in double precision where columns are few."""
    if Z.shape[1] <= _FEW:
        Z = Z.astype(np.float64)  # type: ignore[assignment]
    return Z.T @ Z


def leading_axes(products: Floats, n: int, n_spots: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Largest eigenvalues of a matrix of products, shape (n,), and their axes, shape (n, columns), signs fixed.

    Where columns are many, by the randomised solver that scikit-learn's ``PCA`` takes for the spots themselves, with the same
    random start. It needs the products alone: the projection that it ends with is that of Nystroem.

    Parameters
    ----------
    products
        Sums over spots of the products of centred columns, symmetric.
    n
        Number of axes.
    n_spots
        Over which the products were summed.
    seed
        Of the random start.
    """
    width = len(products)
    if width <= _FEW or n >= 0.8 * width or (width <= 1000 and n_spots >= 10 * width):
        values, vectors = eigh(products, subset_by_index=[width - n, width - 1], check_finite=False)
        values, axes = values[::-1], vectors.T[::-1]
    else:
        values, axes = _randomised(products, n, seed)
    largest = axes[np.arange(n), np.abs(axes).argmax(axis=1)]
    return np.maximum(values, 0), axes * np.where(largest < 0, -1.0, 1.0)[:, None]


def _randomised(products: Floats, n: int, seed: int) -> tuple[Floats, Floats]:
    from sklearn.utils import check_random_state

    width = len(products)
    rough = products.astype(np.float32)
    basis = check_random_state(seed).normal(size=(width, min(n + _OVERSAMPLED, width))).astype(np.float32)
    for _ in range(_ROUNDS):
        basis, _ = lu(rough @ basis, permute_l=True, check_finite=False)
    basis = np.linalg.qr(basis.astype(np.float64))[0]
    reached = products @ basis
    inner = basis.T @ reached
    # what rounding leaves of directions without variance
    inner[np.diag_indices_from(inner)] += 1e-12 * max(float(np.trace(inner)), 1e-300)
    root = cholesky((inner + inner.T) / 2, lower=True, check_finite=False)
    half = solve_triangular(root, reached.T, lower=True, check_finite=False)
    values, left = eigh(half @ half.T, check_finite=False)
    values, left = values[::-1][:n], left[:, ::-1][:, :n]
    return values, (left.T @ half) / np.sqrt(np.maximum(values, 1e-300))[:, None]

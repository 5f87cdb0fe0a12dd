"""Scores that take the correlation among features out."""

import numpy as np
from scipy.linalg import inv, sqrtm

from stmsi._core.learning.decorrelated_screen import decorrelated_scores


def programme(rng, n=400):
    """Twenty features of one programme, the first of which drives the target; two sections of another level."""
    section = np.repeat([0, 1], n // 2)
    hidden = rng.normal(size=n)
    X = hidden[:, None] + rng.normal(size=(n, 20))
    y = 3 * hidden + 1.5 * (X[:, 0] - hidden) + rng.normal(size=n)
    return X + 5 * section[:, None], (y + 20 * section)[:, None], section


def test_against_the_formula():
    rng = np.random.default_rng(0)
    X, y, section = programme(rng)
    Z, t = (
        np.vstack([(v[section == s] - v[section == s].mean(0)) / v[section == s].std(0) for s in (0, 1)])
        for v in (X, y)
    )
    P = 0.7 * Z.T @ Z / len(Z) + 0.3 * np.eye(20)
    expected = np.sqrt(len(Z)) * inv(sqrtm(P)) @ (Z.T @ t / len(Z))
    np.testing.assert_allclose(decorrelated_scores(X, y, section), expected, rtol=1e-3, atol=1e-3)


def test_the_driver_stands_out_of_its_programme():
    X, y, section = programme(np.random.default_rng(1))
    score = np.abs(decorrelated_scores(X, y, section)[:, 0])
    plain = np.abs(decorrelated_scores(X, y, section, shrinkage=1.0)[:, 0])
    assert score.argmax() == 0
    assert score[0] / np.sort(score)[-2] > plain[0] / np.sort(plain)[-2]


def test_noise_has_variance_one():
    rng = np.random.default_rng(2)
    X, _, section = programme(rng)
    score = decorrelated_scores(X, rng.normal(size=(400, 200)), section)
    assert abs(score.std() - 1) < 0.15


def test_missing_values_and_constants():
    rng = np.random.default_rng(3)
    X, y, section = programme(rng)
    X[:, 3] = 2.0
    y[::7] = np.nan
    Y = np.hstack([y, np.full_like(y, np.nan), np.ones_like(y)])
    score = decorrelated_scores(X, Y, section)
    assert np.isfinite(score).all()
    np.testing.assert_allclose(score[3], 0, atol=1e-5)
    assert (score[:, 1:] == 0).all()
    assert np.abs(score[:, 0]).argmax() == 0

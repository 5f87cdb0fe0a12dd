import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.spatial import ring_denoising
from stmsi._core.spatial.morans_i import raster_graph
from stmsi._core.spatial.ring_denoising import denoise_by_rings, graph_rings

ROW, COL = (a.ravel() for a in np.indices((18, 20)))
GRAPH = raster_graph(ROW, COL)
RINGS = graph_rings(GRAPH, 3)


def test_rings_are_steps():
    steps = np.maximum(np.abs(ROW[:, None] - ROW), np.abs(COL[:, None] - COL))
    for number, ring in enumerate(RINGS, start=1):
        np.testing.assert_array_equal(ring.toarray(), steps == number)


def test_weights_and_loops_do_not_count():
    other = graph_rings(sp.csr_matrix(GRAPH * 0.3 + sp.identity(GRAPH.shape[0])), 3)
    for a, b in zip(RINGS, other, strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())


@pytest.fixture
def maps():
    """Truth, noisy measurement and noisy prediction."""
    rng = np.random.default_rng(0)
    x, y = COL / 20, ROW / 18
    truth = 4 + np.column_stack([np.sin(9 * x) + np.cos(7 * y), np.sin(9 * y + 5 * x), np.cos(20 * x * y)])
    noisy = truth + 0.7 * rng.normal(size=truth.shape)
    predicted = truth + 0.9 * rng.normal(size=truth.shape)
    return truth, noisy, predicted


def unexplained(truth, found):
    return np.array([1 - np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(truth.T, found.T, strict=True)])


def test_closer_to_the_truth_than_the_mean_of_the_ring(maps):
    truth, noisy, predicted = maps
    ring = (noisy + RINGS[0] @ noisy) / (1 + np.asarray(RINGS[0].sum(axis=1)).reshape(-1, 1))
    found = denoise_by_rings(noisy, predicted, RINGS)
    alone = denoise_by_rings(noisy, np.full_like(noisy, np.nan), RINGS)
    assert (unexplained(truth, found) < unexplained(truth, noisy)).all()
    assert unexplained(truth, found).mean() < 0.92 * unexplained(truth, ring).mean()
    assert unexplained(truth, found).mean() < unexplained(truth, alone).mean()


def test_leave_one_out_is_that_of_refits(maps):
    _, noisy, predicted = maps
    noisy = noisy.copy()
    noisy[::7, 1] = np.nan
    known = ~np.isnan(noisy)
    found = denoise_by_rings(noisy, predicted, RINGS, include_self=False)
    terms = ring_denoising._terms(noisy, predicted, known, RINGS)
    for m in (0, 1):
        own = np.flatnonzero(known[:, m])
        for spot in own[[0, 50, -1]]:
            kept = own[own != spot]
            A, y = np.column_stack([np.ones(len(own)), terms[:, own, m].T]), noisy[own, m]
            use = np.isin(own, kept)
            penalty = np.diag([0.0] + [ring_denoising._PENALTY] * len(terms))
            slopes = np.linalg.solve(A[use].T @ A[use] + penalty, A[use].T @ y[use])
            assert found[spot, m] == pytest.approx(A[own == spot][0] @ slopes)


def test_the_own_value_has_no_part_without_include_self(maps):
    _, noisy, predicted = maps
    before = denoise_by_rings(noisy, predicted, RINGS, include_self=False)
    changed = noisy.copy()
    changed[100] += 1.0
    after = denoise_by_rings(changed, predicted, RINGS, include_self=False)
    # terms are scaled by all measured spots, and so a little by the spot itself
    np.testing.assert_allclose(after[100], before[100], atol=0.02)
    assert (
        np.abs(denoise_by_rings(changed, predicted, RINGS) - denoise_by_rings(noisy, predicted, RINGS))[100].min() > 0.1
    )


def test_nan_stay_and_the_rest_is_at_least_0(maps):
    _, noisy, predicted = maps
    noisy = np.maximum(noisy - 4, 0)
    noisy[::5, 0], noisy[:, 1], noisy[1:, 2] = np.nan, np.nan, np.nan
    found = denoise_by_rings(noisy, predicted, RINGS)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(noisy))
    assert np.nanmin(found) >= 0
    assert found[0, 2] == noisy[0, 2], "one measured spot keeps its value"


def test_a_constant_stays():
    found = denoise_by_rings(np.full((360, 1), 2.5), np.full((360, 1), 1.0), RINGS)
    np.testing.assert_allclose(found, 2.5)


def test_metabolites_do_not_mix(maps, monkeypatch):
    _, noisy, predicted = maps
    whole = denoise_by_rings(noisy, predicted, RINGS)
    monkeypatch.setattr(ring_denoising, "_COLUMNS", 1)
    np.testing.assert_allclose(denoise_by_rings(noisy, predicted, RINGS), whole)

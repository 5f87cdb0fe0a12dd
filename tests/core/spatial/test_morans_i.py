import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import squidpy as sq
from anndata import AnnData

from stmsi._core.spatial.morans_i import moran_scores, morans_i, raster_graph


def _raster(n=14, gaps=30, seed=0):
    rng = np.random.default_rng(seed)
    row, col = (v.ravel() for v in np.mgrid[:n, : n + 3])
    keep = np.sort(rng.permutation(len(row))[gaps:])
    return row[keep] + 5, col[keep] - 2, rng


@pytest.mark.parametrize("n_neighs", [4, 8])
def test_neighbours_are_those_one_step_away(n_neighs):
    row, col, _ = _raster()
    graph = raster_graph(row, col, n_neighs).toarray()
    dr, dc = np.abs(row[:, None] - row), np.abs(col[:, None] - col)
    expected = (dr + dc == 1) if n_neighs == 4 else (np.maximum(dr, dc) == 1)
    np.testing.assert_array_equal(graph, expected)


@pytest.mark.parametrize("n_neighs", [4, 8])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_it_is_squidpys(n_neighs, container):
    row, col, rng = _raster()
    X = rng.random((len(row), 6)) + np.sin(row / 4)[:, None] * np.arange(6)
    X = np.where(X < 0.3, 0, X)
    graph = raster_graph(row, col, n_neighs)
    adata = AnnData(X, obs=pd.DataFrame(index=np.arange(len(row)).astype(str)), obsp={"spatial_connectivities": graph})
    table = sq.gr.spatial_autocorr(adata, mode="moran", copy=True, n_jobs=1, show_progress_bar=False)
    expected = table["I"].reindex(adata.var_names).to_numpy()
    np.testing.assert_allclose(morans_i(graph, container(X)), expected, rtol=1e-9)


def test_a_checkerboard_a_gradient_and_nothing():
    row, col = (v.ravel() for v in np.mgrid[:20, :20])
    graph = raster_graph(row, col, 4)
    X = np.column_stack([(row + col) % 2, row, np.zeros(400), np.full(400, 0.1), np.random.default_rng(0).random(400)])
    score = morans_i(graph, X)
    assert score[0] == pytest.approx(-1)
    assert score[1] > 0.9
    assert np.isnan(score[2:4]).all()
    assert abs(score[4]) < 0.1


@pytest.mark.parametrize("n", [1, 2])
def test_pixels_without_neighbours(n):
    graph = raster_graph(np.zeros(n, int), 5 * np.arange(n), 8)
    assert graph.nnz == 0
    assert np.isnan(morans_i(graph, np.arange(n)[:, None] + 1.0)).all()


def test_scores_are_those_of_values_in_random_order():
    """Mean and variance of I over permutations, of values with heavy tails and many zeros."""
    row, col, rng = _raster()
    graph = raster_graph(row, col)
    x = rng.lognormal(0, 1.5, len(row)) * (rng.random(len(row)) < 0.4)
    shuffled = sp.csr_matrix(np.column_stack([rng.permutation(x) for _ in range(20_000)]))
    score = morans_i(graph, shuffled)
    z = moran_scores(graph, shuffled, score)
    assert abs(z.mean()) < 0.03
    assert z.std() == pytest.approx(1, abs=0.03)


def test_there_is_no_score_of_what_has_no_moran():
    graph = raster_graph(np.arange(3), np.zeros(3, int))
    X = sp.csr_matrix(np.eye(3))
    assert np.isnan(moran_scores(graph, X, morans_i(graph, X))).all()
    row, col, _ = _raster()
    graph, X = raster_graph(row, col), sp.csr_matrix(np.ones((len(row), 1)))
    assert np.isnan(moran_scores(graph, X, morans_i(graph, X))).all()

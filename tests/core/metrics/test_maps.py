import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import squidpy as sq
from anndata import AnnData
from skimage.metrics import structural_similarity

from stmsi import metrics
from stmsi._core.metrics.maps import near_graph
from stmsi._core.spatial.morans_i import morans_i, raster_graph


@pytest.fixture
def grid():
    row, col = (v.ravel() for v in np.mgrid[:14, :17])
    return 50.0 * np.column_stack([row, col]), raster_graph(row, col)


def _maps(xy, rng, m=5):
    truth = np.sin(xy[:, :1] / 120 + np.arange(m)) + 2 + 0.1 * rng.normal(size=(len(xy), m))
    return truth, truth + 0.3 * rng.normal(size=truth.shape)


def test_on_a_raster_it_is_scikit_images_similarity(grid):
    xy, _ = grid
    truth, prediction = _maps(xy, np.random.default_rng(0))
    expected = [
        structural_similarity(y.reshape(14, 17), p.reshape(14, 17), win_size=7, data_range=np.ptp(y), full=True)[
            1
        ].mean()
        for y, p in zip(truth.T, prediction.T, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(truth, prediction, xy), expected, rtol=1e-9)
    order = np.random.default_rng(1).permutation(len(xy))
    np.testing.assert_allclose(metrics.ssim(truth[order], prediction[order], xy[order]), expected, rtol=1e-9)


def test_similarity_falls_with_noise_and_does_not_depend_on_unit_or_hexagons():
    row, col = (v.ravel().astype(float) for v in np.mgrid[:20, :20])
    xy = 100 * np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)])
    rng = np.random.default_rng(0)
    truth, _ = _maps(xy, rng, 1)
    noise = rng.normal(size=truth.shape)
    score = [metrics.ssim(truth, truth + sd * noise, xy)[0] for sd in (0, 0.1, 0.5, 2)]
    assert score[0] == pytest.approx(1)
    assert (np.diff(score) < -0.005).all()
    assert score[-1] < 0.3
    other = metrics.ssim(1e4 * truth, 1e4 * (truth + 0.5 * noise), 1e-3 * xy)[0]
    assert other == pytest.approx(score[2], rel=1e-6)


def test_what_is_not_measured_has_no_say(grid):
    xy, graph = grid
    rng = np.random.default_rng(0)
    truth, prediction = _maps(xy, rng)
    gone = rng.random(truth.shape) < 0.2
    truth[gone] = np.nan
    wild = np.where(gone, 1e6, prediction)
    for score in (
        lambda p: metrics.ssim(truth, p, xy),
        lambda p: metrics.moran_gap(truth, p, graph),
        lambda p: metrics.hotspot_jaccard(truth, p),
        lambda p: metrics.hotspot_jaccard(truth, p, graph=graph),
    ):
        np.testing.assert_array_equal(score(prediction), score(wild))
        assert np.isfinite(score(prediction)).all()


def test_morans_i_with_gaps_is_squidpys_of_the_rest(grid):
    xy, graph = grid
    truth, _ = _maps(xy, np.random.default_rng(0))
    truth[:30, 0] = truth[50:60, 1] = np.nan
    expected = []
    for y in truth.T:
        rows = np.flatnonzero(~np.isnan(y))
        adata = AnnData(y[rows, None], obs=pd.DataFrame(index=rows.astype(str)))
        adata.obsp["spatial_connectivities"] = graph[rows][:, rows]
        expected.append(sq.gr.spatial_autocorr(adata, mode="moran", copy=True, show_progress_bar=False)["I"].iloc[0])
    np.testing.assert_allclose(metrics.moran_i(truth, graph), expected, rtol=1e-9)
    np.testing.assert_allclose(
        metrics.moran_i(truth[:, 2:], graph), morans_i(graph, sp.csr_matrix(truth[:, 2:])), rtol=1e-9
    )
    smooth = metrics.moran_gap(truth[:, 2:], np.tile(xy[:, :1], 3), graph)
    assert (smooth > 0).all()


def test_hot_spots():
    truth = np.arange(100.0)[:, None]
    assert metrics.hotspot_jaccard(truth, truth**3)[0] == 1
    assert metrics.hotspot_jaccard(truth, -truth)[0] == 0
    half = np.where(truth < 95, -truth, truth)
    assert metrics.hotspot_jaccard(truth, half, share=0.1)[0] == pytest.approx(5 / 15)
    # fewer spots above zero than asked for: only they are hot
    sparse = np.where(truth >= 97, truth, 0)
    assert metrics.hotspot_jaccard(sparse, truth, share=0.1)[0] == pytest.approx(3 / 10)


def test_hot_regions_are_found_through_noise(grid):
    xy, graph = grid
    truth = np.exp(-((xy - 300) ** 2).sum(axis=1) / 2e4)[:, None]
    noisy = truth + 0.3 * np.random.default_rng(0).normal(size=truth.shape)
    assert metrics.hotspot_jaccard(truth, noisy, graph=graph)[0] > metrics.hotspot_jaccard(truth, noisy)[0] + 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, np.nan])
def test_constant_maps_have_no_score(grid, value):
    xy, graph = grid
    flat, other = np.full((len(xy), 1), value), xy[:, :1]
    assert np.isnan(metrics.ssim(flat, other, xy)).all()
    for pair in ((flat, other), (other, flat)):
        assert np.isnan(metrics.moran_gap(*pair, graph)).all()
        assert np.isnan(metrics.hotspot_jaccard(*pair)).all()
        assert np.isnan(metrics.hotspot_jaccard(*pair, graph=graph)).all()


def test_sections_smaller_than_the_window_have_no_similarity():
    xy = np.argwhere(np.ones((5, 20))).astype(float)
    assert np.isnan(metrics.ssim(xy[:, :1], xy[:, :1], xy)).all()
    assert np.isnan(metrics.ssim([[1.0]], [[1.0]], [[0.0, 0]])).all()


def test_what_does_not_fit_is_refused(grid):
    xy, graph = grid
    y = xy[:, :1]
    with pytest.raises(ValueError, match=r"Positions must be finite numbers of shape \(238, 2\)"):
        metrics.ssim(y, y, xy[1:])
    with pytest.raises(ValueError, match=r"Positions must be finite"):
        metrics.ssim(y, y, xy * np.nan)
    apart = np.vstack([xy[:2] / 1000, [[1e9, 1e9]]])
    with pytest.raises(ValueError, match="would make a raster of"):
        metrics.ssim(y[:3], y[:3], apart)
    with pytest.raises(ValueError, match=r"graph is of shape \(238, 238\), but there are 237 spots"):
        metrics.moran_i(y[1:], graph)
    with pytest.raises(ValueError, match="share is a share of the spots"):
        metrics.hotspot_jaccard(y, y, share=0)


def test_neighbours_of_hexagons_and_squares():
    row, col = (v.ravel().astype(float) for v in np.mgrid[:9, :9])
    hexagon = near_graph(np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)]))
    square = near_graph(np.column_stack([row, col]))
    assert hexagon.sum(axis=1).max() == 6
    assert square.sum(axis=1).max() == 8
    assert near_graph(np.zeros((1, 2))).nnz == 0

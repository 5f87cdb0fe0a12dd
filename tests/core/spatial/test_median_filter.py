import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stmsi._core.spatial.median_filter import adaptive_median, distance_rings


def _hexagon(rows=9, cols=8):
    r, c = (v.ravel() for v in np.mgrid[:rows, :cols])
    return np.column_stack([c + 0.5 * (r % 2), r * np.sqrt(3) / 2]) * 100.0


def _square(n=9):
    return np.column_stack([v.ravel() for v in np.mgrid[:n, :n]]).astype(float)


def _slowly(values, xy, n_rings):
    """SEPAL's filter, spot by spot and value by value."""
    distance = cdist(xy, xy)
    step = np.median(np.sort(distance, axis=1)[:, 1])
    distance = np.rint(distance / step * 10)
    rings = np.unique(distance)[1 : n_rings + 1]
    out = values.copy()
    for i, j in np.argwhere(values == 0):
        for ring in rings:
            median = np.nanmedian(values[distance[i] <= ring, j])
            if median > 0:
                out[i, j] = median
                break
        else:
            above = values[:, j][values[:, j] > 0]
            out[i, j] = np.median(above) if len(above) else 0
    return out


@pytest.mark.parametrize("xy", [_hexagon(), _square()], ids=["hexagon", "square"])
@pytest.mark.parametrize("n_rings", [1, 3, 7])
def test_it_is_sepals_filter(xy, n_rings):
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(len(xy), 5)) * (rng.random((len(xy), 5)) < [0.9, 0.6, 0.3, 0.05, 0])
    values[rng.random(values.shape) < 0.03] = np.nan
    index, inside = distance_rings(xy, n_rings)
    np.testing.assert_allclose(adaptive_median(values, index, inside), _slowly(values, xy, n_rings), rtol=1e-12)


def test_rings_of_a_hexagon():
    xy = _hexagon(21, 21)
    index, inside = distance_rings(xy, 7)
    middle = 10 * 21 + 10
    assert inside[middle].tolist() == [7, 13, 19, 31, 37, 43, 55]
    assert index[middle, 0] == middle
    assert (index[:, 0] == np.arange(len(xy))).all()


def test_small_errors_of_the_positions_change_nothing():
    rng = np.random.default_rng(1)
    xy = _hexagon()
    values = rng.random((len(xy), 3)) * (rng.random((len(xy), 3)) < 0.5)
    exact = adaptive_median(values, *distance_rings(xy, 7))
    moved = adaptive_median(values, *distance_rings(xy + rng.normal(0, 0.5, xy.shape), 7))
    np.testing.assert_array_equal(exact, moved)


def test_rings_without_a_grid_are_one_step_wide():
    xy = np.random.default_rng(3).uniform(0, 30, (400, 2))
    inside = distance_rings(xy, 3)[1]
    step = np.median(np.sort(cdist(xy, xy), axis=1)[:, 1])
    within = (cdist(xy, xy) < 3.5 * step).sum(axis=1)
    np.testing.assert_array_equal(inside[:, 2], within)


def test_one_spot_and_many_blocks(monkeypatch):
    index, inside = distance_rings(np.zeros((1, 2)), 7)
    np.testing.assert_array_equal(adaptive_median(np.array([[0.0, 2.0, np.nan]]), index, inside), [[0, 2, np.nan]])
    rng = np.random.default_rng(2)
    xy = _square(7)
    values = rng.random((49, 4)) * (rng.random((49, 4)) < 0.4)
    whole = adaptive_median(values, *distance_rings(xy, 4))
    monkeypatch.setattr("stmsi._core.spatial.median_filter._BLOCK", 60)
    np.testing.assert_array_equal(adaptive_median(values, *distance_rings(xy, 4)), whole)

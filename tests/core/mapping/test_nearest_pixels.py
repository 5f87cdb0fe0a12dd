import numpy as np
import pytest

from stmsi._core.mapping.nearest_pixels import assignment, lattice_pitch, nearest_spots


def _hexagons(n=8, pitch=100.0):
    row, col = (v.ravel() for v in np.indices((n, n)))
    return np.column_stack([col * pitch + (row % 2) * pitch / 2, row * pitch * np.sqrt(3) / 2])


@pytest.mark.parametrize(
    "centres", [_hexagons(), np.indices((6, 6)).reshape(2, -1).T * 100.0], ids=["hexagons", "squares"]
)
def test_pitch(centres):
    keep = np.random.default_rng(0).random(len(centres)) < 0.8
    assert lattice_pitch(centres[keep]) == pytest.approx(100)


def test_no_pitch():
    assert np.isnan(lattice_pitch(np.zeros((1, 2))))
    assert lattice_pitch(np.zeros((3, 2))) == 0


def test_nearest_agrees_with_all_distances():
    rng = np.random.default_rng(1)
    spots, pixels = _hexagons(), rng.uniform(-100, 900, (500, 2))
    distance = np.hypot(*(pixels[:, None] - spots[None]).transpose(2, 0, 1))
    expected = np.where(distance.min(axis=1) <= 50, distance.argmin(axis=1), -1)
    np.testing.assert_array_equal(nearest_spots(pixels, spots, 50.0), expected)
    assert 0 < (expected < 0).mean() < 0.6


def test_the_limit_itself_counts():
    assert nearest_spots(np.array([[50.0, 0], [50.1, 0]]), np.zeros((1, 2)), 50.0).tolist() == [0, -1]


def test_no_spots():
    assert nearest_spots(np.zeros((2, 2)), np.empty((0, 2)), 1.0).tolist() == [-1, -1]


def test_assignment():
    assert assignment(np.array([1, -1, 0, 1]), 3).toarray().tolist() == [[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]

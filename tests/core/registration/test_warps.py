import numpy as np
import pytest

from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.warps import (
    Field,
    Homography,
    ThinPlate,
    apply_steps,
    folded,
    inverse_field,
    jacobian,
    nearest_affine,
    read_steps,
    write_steps,
)

RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(np.linspace(0, 2000, 21), np.linspace(0, 1500, 16)), -1).reshape(-1, 2)
SOURCE = np.stack(np.meshgrid([0.0, 1000, 2000], [0.0, 750, 1500]), -1).reshape(-1, 2)
TURN = np.array([[0.8, -0.6, 300.0], [0.6, 0.8, -50.0], [0, 0, 1]])
PERSPECTIVE = np.array([[1.0, 0.1, 5], [-0.2, 1.1, 8], [2e-5, -3e-5, 1]])


def bent(size=80.0, mirror=False):
    target = SOURCE + RNG.normal(0, size, SOURCE.shape)
    return ThinPlate(SOURCE, apply_affine(TURN, target * ([-1, 1] if mirror else [1, 1])))


def test_a_spline_without_smoothing_meets_its_landmarks_and_with_much_is_affine():
    spline = bent()
    np.testing.assert_allclose(spline(SOURCE), spline.target, atol=1e-6)
    stiff = ThinPlate(SOURCE, spline.target, 1e9)
    affine = nearest_affine(spline.target, SOURCE)
    np.testing.assert_allclose(stiff(GRID), apply_affine(affine, GRID), atol=0.01)


def test_smoothing_means_the_same_at_any_size():
    small = ThinPlate(SOURCE, bent().target, 0.3)
    large = ThinPlate(SOURCE * 50, small.target, 0.3)
    np.testing.assert_allclose(large(GRID * 50), small(GRID), atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_inverse_brings_points_back(mirror):
    spline = bent(mirror=mirror)
    matrix = nearest_affine(spline(GRID), GRID)
    back = inverse_field(spline, GRID, matrix, 50.0)
    assert np.hypot(*(spline(GRID) - apply_affine(matrix, GRID)).T).max() > 30, "there is something to undo"
    assert np.hypot(*(back(spline(GRID)) - GRID).T).max() < 0.5


def test_a_homography_has_its_inverse_and_derivatives():
    f = Homography(PERSPECTIVE)
    back = Homography(np.linalg.inv(PERSPECTIVE))
    np.testing.assert_allclose(back(f(GRID)), GRID, atol=1e-8)
    np.testing.assert_allclose(jacobian(Homography(TURN), GRID), np.broadcast_to(TURN[:2, :2], (len(GRID), 2, 2)))


def test_folds_are_found_where_they_are():
    # a landmark dragged beyond its neighbour
    target = SOURCE.copy()
    target[4] += [1500, 0]
    folds = folded(ThinPlate(SOURCE, target), GRID, np.eye(3), 5.0)
    assert 0.02 < folds.mean() < 0.5
    assert GRID[folds, 0].min() > 900, "between the dragged landmark and its neighbour"
    assert not folded(bent(20), GRID, TURN, 5.0).any()
    mirrored = bent(20, mirror=True)
    assert not folded(mirrored, GRID, nearest_affine(mirrored(GRID), GRID), 5.0).any()


def test_a_field_is_smooth_between_its_points_and_constant_beyond():
    displacement = np.zeros((6, 7, 2))
    displacement[..., 0] = 12
    field = Field(np.eye(3), np.array([0.0, 0]), 100.0, displacement)
    np.testing.assert_allclose(field(GRID), GRID + np.array([12, 0]), atol=1e-9)


def test_steps_survive_being_written():
    steps = (Homography(PERSPECTIVE), bent(), Field(TURN, np.zeros(2), 300.0, RNG.normal(0, 5, (6, 8, 2))))
    state = write_steps(steps)
    assert list(state) == ["step_1", "step_2", "step_3"]
    again = read_steps(state)
    assert [type(s) for s in again] == [type(s) for s in steps]
    np.testing.assert_array_equal(apply_steps(again, GRID), apply_steps(steps, GRID))


def test_the_nearest_affine_is_exact_for_an_affine_far_from_the_origin():
    far = GRID + 1e7
    np.testing.assert_allclose(apply_affine(nearest_affine(apply_affine(TURN, far), far), far), apply_affine(TURN, far))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.registration.landmarks import MODELS, SMOOTHING, apply_affine, fit_landmarks, perturbations
from stmsi._core.registration.warps import Homography

POINTS = np.array([[0.0, 0], [1000, 100], [900, 1200], [-100, 800], [400, 500]])


def _matrix(angle=0.7, scale=(1.0, 1.0), shear=0.0, mirror=False, shift=(350.0, -80.0)):
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out = np.eye(3)
    out[:2, :2] = rotation @ np.array([[scale[0], shear], [0, scale[1]]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    out[:2, 2] = shift
    return out


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("model", "kwargs"),
    [("rigid", {}), ("similarity", {"scale": (1.4, 1.4)}), ("affine", {"scale": (1.2, 0.8), "shear": 0.3})],
)
def test_recovers_the_transformation(model, kwargs, mirror):
    truth = _matrix(mirror=mirror, **kwargs)
    fit = fit_landmarks(POINTS, apply_affine(truth, POINTS), model)
    np.testing.assert_allclose(fit.matrix, truth, atol=1e-6)
    assert fit.mirrored is mirror
    np.testing.assert_allclose(fit.residual, 0, atol=1e-6)
    np.testing.assert_allclose(fit.tre, 0, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.floats(-np.pi, np.pi), st.floats(0.4, 2.5), st.booleans(), st.floats(-1e5, 1e5))
def test_recovers_any_similarity(angle, scale, mirror, shift):
    truth = _matrix(angle, (scale, scale), mirror=mirror, shift=(shift, -shift))
    fit = fit_landmarks(POINTS, apply_affine(truth, POINTS), "similarity")
    np.testing.assert_allclose(apply_affine(fit.matrix, POINTS), apply_affine(truth, POINTS), atol=1e-4)
    assert fit.mirrored is mirror


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_noise_leaves_errors_of_its_own_size(model, mirror):
    rng = np.random.default_rng(0)
    moving = rng.uniform(0, 3000, (40, 2))
    truth = _matrix(mirror=mirror)
    fit = fit_landmarks(moving, apply_affine(truth, moving) + rng.normal(0, 10, moving.shape), model)
    assert fit.mirrored is mirror
    np.testing.assert_allclose(apply_affine(fit.matrix, moving), apply_affine(truth, moving), atol=15)
    assert 8 < np.sqrt(np.mean(fit.residual**2)) < 20
    assert fit.residual.mean() < fit.tre.mean() < 1.5 * fit.residual.mean()


def test_a_wrong_landmark_shows_in_its_error():
    fixed = apply_affine(_matrix(), POINTS)
    fixed[2] += 500
    fit = fit_landmarks(POINTS, fixed, "similarity")
    assert fit.tre.argmax() == 2
    assert fit.tre[2] > fit.residual[2]


def test_a_rigid_fit_does_not_scale():
    fit = fit_landmarks(POINTS, apply_affine(_matrix(scale=(2, 2)), POINTS), "rigid")
    np.testing.assert_allclose(fit.matrix[:2, :2] @ fit.matrix[:2, :2].T, np.eye(2), atol=1e-9)
    assert fit.residual.max() > 100


def test_three_landmarks_fit_but_leave_nothing_to_test_with():
    fit = fit_landmarks(POINTS[:3], apply_affine(_matrix(), POINTS[:3]), "affine")
    assert np.isnan(fit.tre).all()
    np.testing.assert_allclose(fit.residual, 0, atol=1e-6)


def test_errors_are_not_given_where_the_rest_is_on_a_line():
    moving = np.array([[0.0, 0], [10, 0], [20, 0], [10, 10]])
    fit = fit_landmarks(moving, moving + 5, "similarity")
    assert np.isnan(fit.tre).tolist() == [False, False, False, True]


LINE = np.array([[0.0, 0], [10, 10], [20, 20], [30, 30]])
NAN = np.array([[np.nan, 0.0], *POINTS[1:].tolist()])


@pytest.mark.parametrize(
    ("moving", "fixed", "model", "message"),
    [
        (POINTS, POINTS, "elastic", "model='elastic' is not known; choose one of"),
        (POINTS[:, :1], POINTS, "rigid", r"MSI landmarks must have shape \(n, 2\), found \(5, 1\)"),
        (POINTS, POINTS.ravel(), "rigid", r"ST landmarks must have shape \(n, 2\), found \(10,\)"),
        (NAN, POINTS, "rigid", "MSI landmarks contain NaN.*remove those rows from both sides"),
        (POINTS, np.where(POINTS == 900, np.inf, POINTS), "rigid", "ST landmarks contain NaN or infinite"),
        (POINTS, POINTS[:4], "rigid", "come in pairs: found 5 in the MSI and 4 in the ST frame"),
        (POINTS[:2], POINTS[:2], "rigid", "needs 3 landmarks, found 2"),
        (POINTS[[0, 0, 1, 2]], POINTS[:4], "rigid", "Some MSI landmarks are the same point twice"),
        (POINTS[:4], POINTS[[0, 1, 2, 2]], "rigid", "Some ST landmarks are the same point twice"),
        (LINE, POINTS[:4], "affine", "MSI landmarks lie on one line.*add one beside the line"),
        (POINTS[:4], LINE, "similarity", "ST landmarks lie on one line"),
    ],
)
def test_errors_name_the_remedy(moving, fixed, model, message):
    with pytest.raises(ValueError, match=message):
        fit_landmarks(moving, fixed, model)


def _reference_dlt(moving, fixed):
    """Total least squares of an affine map: normalise, then the smallest singular vectors of [x, y, 1, -u, -v]."""

    def normalised(points):
        centre = points.mean(axis=0)
        size = np.sqrt(((points - centre) ** 2).sum() / len(points)) / np.sqrt(2)
        matrix = np.array([[1 / size, 0, -centre[0] / size], [0, 1 / size, -centre[1] / size], [0, 0, 1]])
        return matrix, apply_affine(matrix, points)

    (to_m, m), (to_f, f) = normalised(moving), normalised(fixed)
    n = len(m)
    rows = np.zeros((2 * n, 7))
    rows[:n, :2], rows[:n, 2], rows[:n, 6] = m, 1, f[:, 0]
    rows[n:, 3:5], rows[n:, 5], rows[n:, 6] = m, 1, f[:, 1]
    v = np.linalg.svd(rows)[2][-1]
    h = np.eye(3)
    h[:2] = -v[:6].reshape(2, 3) / v[6]
    return np.linalg.inv(to_f) @ h @ to_m


def test_the_affine_fit_is_total_least_squares():
    rng = np.random.default_rng(2)
    moving = rng.uniform(0, 3000, (10, 2))
    fixed = apply_affine(_matrix(scale=(1.2, 0.9), shear=0.1), moving) + rng.normal(0, 60, moving.shape)
    fit = fit_landmarks(moving, fixed, "affine")
    np.testing.assert_allclose(
        apply_affine(fit.matrix, moving), apply_affine(_reference_dlt(moving, fixed), moving), atol=1e-6
    )
    ordinary = np.linalg.lstsq(np.column_stack([moving, np.ones(10)]), fixed, rcond=None)[0]
    assert np.abs(np.column_stack([moving, np.ones(10)]) @ ordinary - apply_affine(fit.matrix, moving)).max() > 0.05


def test_a_perspective_is_recovered():
    truth = np.array([[1.0, 0.1, 5], [-0.2, 1.1, 8], [6e-5, -3e-5, 1]])
    moving = np.vstack([POINTS, [[200.0, 900], [800, 300]]])
    fit = fit_landmarks(moving, Homography(truth)(moving), "projective")
    np.testing.assert_allclose(fit.map(POINTS), Homography(truth)(POINTS), atol=1e-6)
    np.testing.assert_allclose(fit.tre, 0, atol=1e-4)
    assert len(fit.steps) == 1
    with pytest.raises(ValueError, match="needs 4 landmarks, found 3"):
        fit_landmarks(POINTS[:3], POINTS[:3], "projective")


def test_a_spline_bends_only_as_far_as_the_left_out_landmarks_ask():
    rng = np.random.default_rng(0)
    moving = rng.uniform(0, 3000, (12, 2))
    straight = apply_affine(_matrix(), moving) + rng.normal(0, 20, moving.shape)
    assert fit_landmarks(moving, straight, "thin_plate").smoothing >= SMOOTHING[-2]
    curved = moving + 200 * np.sin(moving[:, ::-1] / 1000)
    fit = fit_landmarks(moving, curved, "thin_plate")
    assert fit.smoothing < 0.1
    assert np.nanmedian(fit.tre) < 0.5 * np.nanmedian(fit_landmarks(moving, curved, "affine").tre)
    with pytest.raises(ValueError, match="smoothing is a number of at least 0"):
        fit_landmarks(moving, curved, "thin_plate", smoothing=-1)


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
def test_perturbations_spread_as_repeated_clicks_do(model):
    rng = np.random.default_rng(0)
    moving = rng.uniform(0, 3000, (8, 2))
    truth = _matrix(mirror=True)
    fixed = apply_affine(truth, moving)
    place = np.array([[1500.0, 1500], [0, 3000]])
    clicked = [
        apply_affine(fit_landmarks(moving, fixed + rng.normal(0, 20, fixed.shape), model).matrix, place)
        for _ in range(120)
    ]
    drawn = perturbations(fixed, 20.0, 120, rng, model)
    moved = [apply_affine(p, apply_affine(truth, place)) for p in drawn]
    np.testing.assert_allclose(np.std(moved, axis=0), np.std(clicked, axis=0), rtol=0.35)
    # the noise is known from the residuals
    sigma = [fit_landmarks(moving, fixed + rng.normal(0, 20, fixed.shape), model).sigma for _ in range(50)]
    assert np.sqrt(np.mean(np.square(sigma))) == pytest.approx(20, rel=0.15)

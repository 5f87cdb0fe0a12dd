import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.registration import MODELS, apply_affine, fit_landmarks

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

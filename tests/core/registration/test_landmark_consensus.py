import numpy as np
import pytest

from stmsi._core.registration.landmarks import apply_affine, fit_landmarks

MATRIX = np.array([[0.8, -0.6, 300.0], [0.6, 0.8, -50.0], [0, 0, 1]])


def clicks(seed, n=12, wrong=(), error=10.0, far=700.0):
    rng = np.random.default_rng(seed)
    moving = rng.uniform(0, 3000, (n, 2))
    fixed = apply_affine(MATRIX, moving) + rng.normal(0, error, moving.shape)
    for i in wrong:
        angle = rng.uniform(0, 2 * np.pi)
        fixed[i] += far * np.array([np.cos(angle), np.sin(angle)])
    return moving, fixed


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine", "projective", "thin_plate"])
@pytest.mark.parametrize("robust", ["ransac", "lmeds"])
def test_wrong_clicks_are_named_and_do_no_harm(robust, model):
    moving, fixed = clicks(1, wrong=(2, 7))
    fit = fit_landmarks(moving, fixed, model, robust=robust)
    assert fit.outliers.tolist() == [2, 7]
    assert np.isnan(fit.tre[[2, 7]]).all()
    assert (fit.residual[[2, 7]] > 400).all()
    grid = np.stack(np.meshgrid(np.linspace(300, 2700, 5), np.linspace(300, 2700, 5)), -1).reshape(-1, 2)
    assert np.hypot(*(fit.map(grid) - apply_affine(MATRIX, grid)).T).mean() < 40
    spoilt = fit_landmarks(moving, fixed, model)
    assert np.hypot(*(spoilt.map(grid) - apply_affine(MATRIX, grid)).T).mean() > 60


@pytest.mark.parametrize("robust", ["ransac", "lmeds"])
def test_right_clicks_are_kept(robust):
    left_out = [len(fit_landmarks(*clicks(seed), "similarity", robust=robust).outliers) for seed in range(5)]
    assert sum(left_out) <= 1


@pytest.mark.parametrize("robust", ["ransac", "lmeds"])
def test_exact_landmarks_agree_exactly(robust):
    assert len(fit_landmarks(*clicks(0, error=0), "affine", robust=robust).outliers) == 0


def test_a_seed_gives_the_same_and_many_landmarks_are_sampled():
    moving, fixed = clicks(3, n=60, wrong=range(0, 60, 3))
    for robust in ("ransac", "lmeds"):
        first, second = (fit_landmarks(moving, fixed, "affine", robust=robust, rng=5) for _ in range(2))
        np.testing.assert_array_equal(first.matrix, second.matrix)
        assert first.outliers.tolist() == list(range(0, 60, 3))


def test_landmarks_far_from_the_rest_are_judged_by_their_leverage():
    rng = np.random.default_rng(0)
    moving = np.vstack([rng.uniform(0, 800, (9, 2)), [[3000.0, 3000], [3200, 2800]]])
    fixed = apply_affine(MATRIX, moving) + rng.normal(0, 15, moving.shape)
    assert len(fit_landmarks(moving, fixed, "affine", robust="lmeds").outliers) == 0


def test_max_error_is_the_limit_of_ransac():
    moving, fixed = clicks(1, wrong=(2,), far=150)
    assert fit_landmarks(moving, fixed, robust="ransac", max_error=400).outliers.tolist() == []
    assert fit_landmarks(moving, fixed, robust="ransac", max_error=60).outliers.tolist() == [2]


def test_errors_name_the_remedy():
    moving, fixed = clicks(1)
    with pytest.raises(ValueError, match=r"robust='msac' is not known; choose one of"):
        fit_landmarks(moving, fixed, robust="msac")
    with pytest.raises(ValueError, match=r"needs 5 landmarks with this model .*found 4"):
        fit_landmarks(moving[:4], fixed[:4], robust="lmeds")
    with pytest.raises(ValueError, match="max_error is a positive number"):
        fit_landmarks(moving, fixed, robust="ransac", max_error=0)
    shuffled = np.random.default_rng(4).uniform(0, 3000, fixed.shape)
    with pytest.raises(ValueError, match=r"No set of landmarks agrees: the largest has \d of 12.*raise max_error, or"):
        fit_landmarks(moving, shuffled, "similarity", robust="ransac", max_error=20)

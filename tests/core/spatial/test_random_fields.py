import numpy as np
import pytest

from stmsi._core.spatial.random_fields import FieldSampler, matern32


@pytest.fixture(scope="module")
def places():
    rng = np.random.default_rng(0)
    xy = np.column_stack([v.ravel() for v in np.meshgrid(np.arange(20), np.arange(20))]) * 100.0
    return xy + rng.normal(0, 5, xy.shape), np.repeat([0, 1], 200)


def test_covariance_is_that_of_the_matern_correlation_and_sections_are_independent(places) -> None:
    xy, section = places
    draws = FieldSampler.build(xy, section, 300.0)(
        np.random.default_rng(1).standard_normal((400, 6000), dtype=np.float32)
    )
    found = draws @ draws.T / draws.shape[1]
    exact = matern32(np.linalg.norm(xy[:, None] - xy, axis=-1), 300.0)
    same = section[:, None] == section
    # of 6,000 draws a covariance has an error of 0.013; the approximation itself adds little
    assert np.abs(found - exact)[same].max() < 0.09
    assert np.abs(found - exact)[same].mean() < 0.02
    assert np.abs(found[~same]).max() < 0.08


def test_few_positions_and_repeated_ones() -> None:
    xy = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    field = FieldSampler.build(xy, np.zeros(3, int), 10.0)(
        np.random.default_rng(0).standard_normal((3, 500), dtype=np.float32)
    )
    np.testing.assert_allclose(field[0], field[1], atol=0.02)
    alone = FieldSampler.build(xy[:1], np.zeros(1, int), 10.0)
    noise = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(alone(noise.copy()), noise)

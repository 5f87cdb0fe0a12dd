import numpy as np
import pytest
import scipy.sparse as sp
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stmsi._core import overlap as module
from stmsi._core.overlap import circle_edge_area, circle_polygon_overlap, weighted_mean


def _squares(n, side=1.0):
    row, col = (v.ravel() for v in np.indices((n, n)))
    return shapely.box(col * side, row * side, (col + 1) * side, (row + 1) * side)


def _overlap(centres, radii, polygons):
    vertices, polygon = shapely.get_coordinates(polygons, return_index=True)
    return circle_polygon_overlap(
        np.asarray(centres, float), np.asarray(radii, float), vertices, polygon, len(polygons)
    )


def _oracle(centres, radii, polygons):
    circles = shapely.buffer(shapely.points(np.asarray(centres, float)), radii, quad_segs=4096)
    return shapely.area(shapely.intersection(circles[:, None], np.asarray(polygons)[None, :]))


def _moved(polygons, matrix, shift):
    return shapely.transform(polygons, lambda xy: xy @ np.asarray(matrix).T + shift)


MATRICES = {
    "identity": np.eye(2),
    "rotated": np.array([[0.6, -0.8], [0.8, 0.6]]),
    "mirrored": np.array([[-0.6, -0.8], [-0.8, 0.6]]),
    "sheared": np.array([[1.3, 0.7], [-0.2, 0.9]]),
    "sheared and mirrored": np.array([[-1.3, 0.7], [0.2, 0.9]]),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_areas_agree_with_shapely(matrix):
    rng = np.random.default_rng(0)
    polygons = _moved(_squares(6), matrix, [0.3, -0.2])
    centres = (rng.uniform(-0.5, 6.5, (30, 2))) @ matrix.T
    radii = rng.uniform(0.05, 2.5, 30)
    np.testing.assert_allclose(
        _overlap(centres, radii, polygons).toarray(), _oracle(centres, radii, polygons), rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_fully_covered_circles_sum_to_their_area(matrix):
    rng = np.random.default_rng(1)
    polygons = _moved(_squares(12), matrix, [100.0, 50.0])
    centres = rng.uniform(5, 7, (50, 2)) @ matrix.T + [100.0, 50.0]
    radii = rng.uniform(0.3, 1.0, 50)
    total = _overlap(centres, radii, polygons).sum(axis=1)
    np.testing.assert_allclose(np.asarray(total).ravel(), np.pi * radii**2, rtol=1e-12)


@settings(deadline=None, max_examples=60)
@example([1.0, 0.0, 0.0, 1.0], 1.0, 4.9e-23, 4.9e-23)  # the centre lies on a corner, but for a rounding
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0.05, 3), st.floats(-1, 1), st.floats(-1, 1))
def test_any_affine(entries, radius, x, y):
    matrix = np.array(entries).reshape(2, 2)
    if abs(np.linalg.det(matrix)) < 0.05:
        matrix = np.eye(2)
    polygons = _moved(_squares(2), matrix, [0, 0])
    found = _overlap([[x, y]], [radius], polygons).toarray()
    np.testing.assert_allclose(found, _oracle([[x, y]], [radius], polygons), atol=1e-5)


def test_hexagons_and_triangles_may_be_mixed():
    angle = np.linspace(0, 2 * np.pi, 7)[:-1]
    polygons = np.array(
        [shapely.Polygon(np.column_stack([np.cos(angle), np.sin(angle)])), shapely.Polygon([(1, 1), (3, 1), (2, 4)])]
    )
    centres, radii = [[0.7, 0.4], [2.0, 2.0], [1.0, 1.0]], [0.9, 0.8, 5.0]
    np.testing.assert_allclose(
        _overlap(centres, radii, polygons).toarray(), _oracle(centres, radii, polygons), atol=1e-5
    )


def test_inside_outside_and_touching():
    polygons = np.array([shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1), shapely.box(9, 9, 10, 10)])
    found = _overlap([[0.5, 0.5], [0.5, 0.5], [1.5, 0.5]], [0.1, 0.5, 20.0], polygons)
    np.testing.assert_allclose(found.toarray(), [[np.pi * 0.01, 0, 0], [np.pi * 0.25, 0, 0], [1, 1, 1]], atol=1e-12)
    assert found.nnz == 5, "pairs that only touch are not stored"


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(2)
    centres, radii = rng.uniform(0, 6, (20, 2)), rng.uniform(0.1, 2, 20)
    whole = _overlap(centres, radii, _squares(6))
    monkeypatch.setattr(module, "_BLOCK", 30)
    assert (_overlap(centres, radii, _squares(6)) != whole).nnz == 0


def test_empty():
    assert _overlap(np.empty((0, 2)), [], _squares(2)).shape == (0, 4)
    none = circle_polygon_overlap(np.zeros((3, 2)), np.ones(3), np.empty((0, 2)), np.empty(0, np.int64), 0)
    assert none.shape == (3, 0)
    assert _overlap([[50.0, 50.0]], [1.0], _squares(2)).nnz == 0


def test_an_edge_without_length_has_no_area():
    one = np.ones(1)
    assert circle_edge_area(one, one, one, one, one) == 0


@pytest.mark.parametrize("container", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_weighted_mean(container):
    areas = sp.csr_matrix([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    values = np.array([[3.0, 0.0], [0.0, 0.0], [5.0, 7.0]], dtype=np.float32)
    mean, covered = weighted_mean(areas, container(values))
    np.testing.assert_allclose(mean, [[2, 0], [np.nan, np.nan], [5, 7]])
    assert mean.dtype == np.float32
    assert covered.tolist() == [3, 0, 4]

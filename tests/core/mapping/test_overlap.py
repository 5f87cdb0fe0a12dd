import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stmsi._core.mapping import overlap as module
from stmsi._core.mapping.overlap import (
    circle_edge_area,
    circle_polygon_overlap,
    edges_of_rings,
    oriented_edges,
    polygon_overlap,
)


def _squares(n, side=1.0):
    row, col = (v.ravel() for v in np.indices((n, n)))
    return shapely.box(col * side, row * side, (col + 1) * side, (row + 1) * side)


def _overlap(centres, radii, polygons):
    return circle_polygon_overlap(np.asarray(centres, float), np.asarray(radii, float), _edges(polygons))


def _edges(polygons):
    return edges_of_rings(*shapely.get_coordinates(polygons, return_index=True), len(polygons))


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


def _matrix(a, b, c, d):
    """A matrix that does not flatten; the identity in the place of one that does."""
    return np.array([[a, b], [c, d]]) if abs(a * d - b * c) > 0.05 else np.eye(2)


@settings(deadline=None, max_examples=60)
@example([1.0, 0.0, 0.0, 1.0], 1.0, 4.9e-23, 4.9e-23)  # the centre lies on a corner, but for a rounding
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0.05, 3), st.floats(-1, 1), st.floats(-1, 1))
def test_any_affine(entries, radius, x, y):
    polygons = _moved(_squares(2), _matrix(*entries), [0, 0])
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


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("depth", [-0.9, -0.3, 0.0, 1e-3, 0.5, 0.999])
def test_a_circle_cut_by_one_edge_is_exact(matrix, depth):
    """A circular segment has a closed form; the edge belongs to a large pixel under any affine."""
    pixel = _moved(np.array([shapely.box(0, 0, 1000, 1000)]), matrix, [3.0, -7.0])
    a, b, _, d = shapely.get_coordinates(pixel)[:4]
    along = (b - a) / np.hypot(*(b - a))
    inward = np.array([-along[1], along[0]])
    inward *= np.sign(inward @ (d - a))
    radius = 27.5
    centre = a + 0.4 * (b - a) + depth * radius * inward
    expected = radius**2 * (np.pi - np.arccos(depth) + depth * np.sqrt(1 - depth**2))
    np.testing.assert_allclose(
        _overlap([centre], [radius], pixel).toarray(), [[expected]], rtol=1e-12, atol=1e-12 * 2376
    )


def test_boxes_of_unlike_size_are_found(monkeypatch):
    rng = np.random.default_rng(5)
    centres, radii = rng.uniform(0, 6, (40, 2)), rng.choice([0.01, 0.1, 3.0], 40)
    alike = _overlap(centres, radii, _squares(6))
    monkeypatch.setattr(module, "_ALIKE", np.inf)
    assert (_overlap(centres, radii, _squares(6)) != alike).nnz == 0


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(2)
    centres, radii = rng.uniform(0, 6, (20, 2)), rng.uniform(0.1, 2, 20)
    whole = _overlap(centres, radii, _squares(6))
    monkeypatch.setattr(module, "_BLOCK", 30)
    assert (_overlap(centres, radii, _squares(6)) != whole).nnz == 0


def test_empty():
    assert _overlap(np.empty((0, 2)), [], _squares(2)).shape == (0, 4)
    none = circle_polygon_overlap(np.zeros((3, 2)), np.ones(3), _edges(np.array([], dtype=object)))
    assert none.shape == (3, 0)
    assert _overlap([[50.0, 50.0]], [1.0], _squares(2)).nnz == 0


def test_an_edge_without_length_has_no_area():
    one = np.ones(1)
    assert circle_edge_area(one, one, one, one, one) == 0


def _blobs(rng, matrix, n=12):
    """Outlines with a hole each, and one of two parts."""
    discs = shapely.buffer(shapely.points(rng.uniform(0.5, 5.5, (n, 2)) @ matrix.T), rng.uniform(0.3, 1.5, n))
    rings = shapely.difference(discs, shapely.buffer(shapely.centroid(discs), 0.2))
    rings[0] = shapely.union(rings[0], shapely.box(20, 20, 21, 21))
    return rings


def _warped(polygons):
    return shapely.transform(polygons, lambda xy: xy + 0.2 * np.sin(3 * xy[:, ::-1]))


@pytest.mark.parametrize("pixels", ["affine", "warped", "concave"])
@pytest.mark.parametrize("spots", ["bins", "large bins", "cells", "aligned"])
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_polygons_agree_with_shapely(matrix, spots, pixels):
    rng = np.random.default_rng(0)
    pixel = _moved(_squares(6), matrix, [0.3, -0.2])
    if pixels == "warped":
        pixel = _warped(pixel)
    elif pixels == "concave":
        arrow = shapely.Polygon([(0, 0), (2, 1), (0, 2), (0.7, 1)])
        pixel = _moved(np.array([arrow, shapely.transform(arrow, lambda xy: xy[::-1] + 2)]), matrix, [1, 1])
    spot = {
        "bins": _moved(_squares(15, 0.4), matrix, [0.1, 0.1]),
        "large bins": _moved(_squares(2, 2.7), matrix, [0.1, 0.1]),
        "cells": _blobs(rng, matrix),
        "aligned": _moved(_squares(6), matrix, [0.3, -0.2]),  # edges and corners coincide
    }[spots]
    found = polygon_overlap(oriented_edges(spot), _edges(pixel))
    expected = shapely.area(shapely.intersection(spot[:, None], pixel[None, :]))
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)
    assert found.nnz == (expected > 1e-12).sum()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-2, 2), min_size=8, max_size=8))
@example([1.0, 0.0, 2.2e-311, 1.0, 1.0, 0.0, 0.0, 1.0])  # an edge that is not quite upright
def test_any_bin_on_any_pixel(entries):
    one, other = _matrix(*entries[:4]), _matrix(*entries[4:])
    spot, pixel = _moved(_squares(2), one, [0, 0]), _moved(_squares(2), other, [0, 0])
    found = polygon_overlap(oriented_edges(spot), _edges(pixel)).toarray()
    np.testing.assert_allclose(found, shapely.area(shapely.intersection(spot[:, None], pixel[None, :])), atol=1e-11)


def test_bins_sum_to_their_area_and_to_that_of_the_pixels():
    turned = _moved(_squares(8, 50.0), MATRICES["rotated"], [40.0, -90.0])
    bins = _squares(80, 8.0)
    found = polygon_overlap(oriented_edges(bins), _edges(turned))
    covered = np.asarray(found.sum(axis=1)).ravel()
    whole = shapely.covered_by(bins, shapely.union_all(turned).buffer(-1e-6))
    assert whole.sum() > 1000
    np.testing.assert_allclose(covered[whole], 64.0, rtol=1e-12)
    inside = shapely.covered_by(turned, shapely.box(0, 0, 640, 640))
    assert inside.any()
    np.testing.assert_allclose(np.asarray(found.sum(axis=0)).ravel()[inside], 2500.0, rtol=1e-12)


def test_blocks_do_not_change_overlaps_of_polygons(monkeypatch):
    spots, pixels = oriented_edges(_blobs(np.random.default_rng(3), np.eye(2))), _edges(_warped(_squares(6)))
    whole = polygon_overlap(spots, pixels)
    monkeypatch.setattr(module, "_BLOCK", 50)
    np.testing.assert_allclose(polygon_overlap(spots, pixels).toarray(), whole.toarray(), atol=1e-14)


def test_polygons_that_are_nothing():
    nothing = np.array([], dtype=object)
    assert polygon_overlap(oriented_edges(nothing), _edges(_squares(2))).shape == (0, 4)
    assert polygon_overlap(oriented_edges(_squares(2)), _edges(nothing)).shape == (4, 0)
    empty = np.array([shapely.Polygon(), shapely.box(0, 0, 1, 1)])
    found = polygon_overlap(oriented_edges(empty), _edges(_squares(2)))
    assert found.toarray().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    flat = np.array([shapely.Polygon([(0, 0), (1, 1), (2, 2), (1, 1)]), shapely.Polygon([(0, 0), (1, 0), (2, 0)])])
    assert polygon_overlap(oriented_edges(_squares(2)), _edges(flat)).nnz == 0


def test_areas_of_outlines():
    blobs = _blobs(np.random.default_rng(4), MATRICES["sheared and mirrored"])
    np.testing.assert_allclose(oriented_edges(blobs).area, shapely.area(blobs), rtol=1e-12)
    mirrored = _moved(_squares(3, 2.0), MATRICES["mirrored"], [1e7, 1e7])
    np.testing.assert_allclose(_edges(mirrored).area, 4.0, rtol=1e-7)

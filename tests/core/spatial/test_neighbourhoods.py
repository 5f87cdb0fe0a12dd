"""Neighbourhoods as dense arrays."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path

from stmsi._core.spatial.neighbourhoods import edge_length, neighbour_rings, relative_positions, section_positions


def _grid(side):
    """Squares with four neighbours each, and their positions."""
    row, col = (v.ravel() for v in np.indices((side, side)))
    xy = np.column_stack([col, row]) * 100.0
    distance = np.abs(xy[:, None] - xy[None]).sum(axis=2)
    return sp.csr_matrix(distance == 100), xy


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_rings_are_path_lengths(n, pairs):
    dense = np.zeros((n, n))
    for i, j in pairs:
        if i < n and j < n:
            dense[i, j] = dense[j, i] = 0.3
    index, ring = neighbour_rings(sp.csr_matrix(dense), most=(n, n))
    steps = shortest_path(dense > 0, unweighted=True)
    for spot in range(n):
        found = {int(j): int(r) for j, r in zip(index[spot], ring[spot], strict=True) if j >= 0}
        assert found == {j: int(steps[spot, j]) for j in range(n) if steps[spot, j] in (1, 2)}
    assert ((index < 0) == (ring == 0)).all()


def test_spots_at_the_border_and_alone():
    graph, _ = _grid(4)
    graph = sp.block_diag([graph, sp.csr_matrix((1, 1))], format="csr")
    index, ring = neighbour_rings(graph)
    assert index.shape == ring.shape == (17, 10)
    assert (ring == 1).sum(axis=1).tolist()[:2] == [2, 3]
    assert (ring[16] == 0).all()


def test_no_edges_at_all():
    index, ring = neighbour_rings(sp.csr_matrix((3, 3)))
    assert index.shape == ring.shape == (3, 0)


def test_edges_stored_as_zero_are_none():
    graph = sp.csr_matrix((np.zeros(2), ([0, 1], [1, 0])), shape=(2, 2))
    assert neighbour_rings(graph)[0].size == 0
    assert graph.nnz == 2, "the graph itself is left as it was"


def test_many_neighbours_are_thinned_evenly():
    n = 41
    graph = sp.csr_matrix(np.ones((n, n)) - np.eye(n))
    index, ring = neighbour_rings(graph, most=(8,))
    assert index.shape == (n, 8)
    assert (ring == 1).all()
    assert index[0].tolist() == list(range(1, 41, 5))
    assert all(len(set(row)) == 8 and i not in row for i, row in enumerate(index.tolist()))


def test_positions_are_in_steps_of_the_grid():
    graph, xy = _grid(5)
    index, ring = neighbour_rings(graph)
    offset = relative_positions(xy, index, edge_length(graph, xy))
    length = np.abs(offset).sum(axis=2)
    np.testing.assert_allclose(length[ring == 1], 1)
    np.testing.assert_allclose(length[ring == 2], 2)
    assert not offset[ring == 0].any()
    spot, neighbour = 12, int(np.flatnonzero(index[12] == 13)[0])
    assert offset[spot, neighbour].tolist() == [1, 0], "towards the neighbour"


@pytest.mark.parametrize("xy", [np.zeros((4, 2)), np.full((4, 2), 7.0)])
def test_spots_on_one_place_have_no_direction(xy):
    graph = sp.csr_matrix(np.ones((4, 4)) - np.eye(4))
    index, _ = neighbour_rings(graph)
    assert not relative_positions(xy, index, edge_length(graph, xy)).any()


def test_positions_in_steps_of_each_section():
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(4)), axis=-1).reshape(-1, 2).astype(float)
    xy = np.vstack([grid * 100 + 5000, grid * 0.5, [[7.0, 7.0]], np.full((2, 2), 3.0)])
    section = np.repeat([4, 0, 1, 2], [12, 12, 1, 2])
    expected = np.vstack([grid - grid.mean(axis=0)] * 2 + [np.zeros((3, 2))])
    np.testing.assert_allclose(section_positions(xy, section), expected, atol=1e-5)

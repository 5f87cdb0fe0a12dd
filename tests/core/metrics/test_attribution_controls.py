import numpy as np
import pytest
from scipy import stats

from stmsi._core.metrics.attribution_controls import (
    chance_of_best_rank,
    gene_blocks,
    shuffle_within,
    torus_shift,
    within_sections,
)


def grid(n=12, pitch=100.0):
    return np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) * pitch


def test_shuffle_stays_inside_sections():
    section = np.repeat([0, 1, 2], [40, 5, 30])
    order = shuffle_within(section, np.random.default_rng(0))
    assert sorted(order) == list(range(75))
    assert (section[order] == section).all()
    assert (order != np.arange(75)).mean() > 0.5


def test_blocks_join_genes_that_move_together():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 3))
    X = base[:, [0, 0, 1, 2, 1]] + 0.1 * rng.normal(size=(200, 5))
    block = gene_blocks(X, 3)
    assert block[0] == block[1]
    assert block[2] == block[4]
    assert sorted(set(block)) == [0, 1, 2]
    assert gene_blocks(X, None).tolist() == gene_blocks(X, 9).tolist() == [0, 1, 2, 3, 4]


def test_torus_shift_keeps_neighbours_and_sections():
    xy = np.vstack([grid(), grid()])
    section = np.repeat([0, 1], 144)
    source = torus_shift(xy, section, np.random.default_rng(1))
    assert (source >= 0).all()  # a full square wraps onto itself
    assert (section[source] == section).all()
    # nearly all neighbours stay neighbours, at the same distance but for the seam and rounding to the grid
    left = np.flatnonzero((xy[:, 0] < 1100) & (section == 0))
    apart = np.linalg.norm(xy[source[left]] - xy[source[left + 1]], axis=1)
    assert np.mean(apart <= 150) > 0.85
    moved = np.linalg.norm(xy[source] - xy, axis=1)
    assert np.median(moved) > 200


def test_torus_shift_marks_spots_off_the_tissue():
    xy = grid()
    disc = xy[np.linalg.norm(xy - 550, axis=1) < 500]
    source = torus_shift(disc, np.zeros(len(disc), int), np.random.default_rng(0))
    assert 0 < (source < 0).mean() < 0.8


def test_correlation_is_taken_inside_sections():
    rng = np.random.default_rng(0)
    a, section = rng.normal(size=(60, 2)), np.repeat([0, 1, 2], 20)
    b = a + rng.normal(size=a.shape)
    b[:, 1] = 3.0
    expected = np.mean([stats.pearsonr(a[section == s, 0], b[section == s, 0])[0] for s in range(3)])
    shifted = b + 100 * section[:, None]  # levels of sections do not count
    got = within_sections(a, shifted, section)
    assert got[0] == pytest.approx(expected)
    assert np.isnan(got[1])


@pytest.mark.parametrize(("d", "n"), [(1, 7), (3, 20), (6, 20)])
def test_chance_of_best_rank_by_drawing(d, n):
    rng = np.random.default_rng(0)
    best = np.array([rng.permutation(n)[:d].min() + 1 for _ in range(4000)])
    for rank in (1, 3, n - d + 1, n):
        assert chance_of_best_rank(rank, d, n) == pytest.approx((best <= rank).mean(), abs=0.03)
    assert chance_of_best_rank(1, d, n) == pytest.approx(d / n)

import numpy as np
import pytest

from stmsi._core.registration.agreement import (
    canonical,
    held_out_components,
    mask_iou,
    mutual_information,
    points_beside,
)
from stmsi._core.spatial.simulated_tissue import visium_positions

RNG = np.random.default_rng(0)
XY, _ = visium_positions(1500, 1500, 100)


def test_iou_counts_the_frame_only():
    left = XY[:, 0] < 800
    tissue, others = XY[left], XY[~left]
    assert points_beside(tissue, others, 100) is others
    covered = XY[:, 0] < 1100  # pixels go on beyond the tissue, and beyond the frame, where nobody asks
    iou = mask_iou(covered[left], covered[~left])
    assert iou == pytest.approx(left.sum() / covered.sum())
    assert mask_iou(np.ones(5, bool), np.zeros(5, bool)) == 1
    assert mask_iou(np.zeros(5, bool), np.zeros(5, bool)) == 0
    assert np.isnan(mask_iou(np.empty(0, bool), np.empty(0, bool)))


def test_a_frame_of_which_only_the_tissue_is_known_is_completed():
    tissue = XY[np.hypot(*(XY - 750).T) < 600]
    beside = points_beside(tissue, np.empty((0, 2)), 100)
    assert (np.hypot(*(beside - 750).T) > 540).all(), "corners of the rectangle, not the tissue"
    assert len(tissue) + len(beside) == pytest.approx(1200**2 / (100**2 * np.sqrt(3) / 2), rel=0.2)


def test_mutual_information_is_that_of_a_normal_pair():
    x, noise = RNG.standard_normal((2, 20000))
    for r in (0.0, 0.5, 0.9):
        y = r * x + np.sqrt(1 - r * r) * noise
        assert mutual_information(x, y) == pytest.approx(-0.5 * np.log(1 - r * r), abs=0.15)
        assert mutual_information(np.exp(x), -y) == pytest.approx(mutual_information(x, y), abs=0.02)
    assert np.isnan(mutual_information(x[:20], x[:20]))
    x[:100] = np.nan
    assert np.isfinite(mutual_information(x, noise))


def test_canonical_components_find_what_two_sets_share():
    shared = RNG.standard_normal((400, 2))
    x = np.column_stack([shared[:, 0] + 0.1 * RNG.standard_normal(400), RNG.standard_normal((400, 3))]) @ RNG.normal(
        size=(4, 4)
    )
    y = np.column_stack([-shared[:, 0] + 0.1 * RNG.standard_normal(400), RNG.standard_normal((400, 2))]) * 50 + 7
    found = canonical(x, y, 2, ridge=1e-9)
    assert found.correlation[0] > 0.97
    assert found.correlation[1] < 0.3
    a, b = found.of_x(x), found.of_y(y)
    np.testing.assert_allclose(a.std(axis=0), 1, rtol=1e-3)
    assert np.corrcoef(a[:, 0], b[:, 0])[0, 1] == pytest.approx(found.correlation[0], abs=1e-3)


def test_components_of_noise_do_not_agree_where_they_were_not_fitted():
    n = len(XY)
    x, y = RNG.standard_normal((2, n, 8))
    assert canonical(x, y, 1).correlation[0] > 0.25
    first, second = held_out_components(x, y, XY)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25
    y[:, 0] = x[:, 0]
    first, second = held_out_components(x, y, XY)
    assert np.corrcoef(first, second)[0, 1] > 0.9

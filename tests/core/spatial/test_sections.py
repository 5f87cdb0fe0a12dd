import numpy as np
import pytest

from stmsi._core.spatial.sections import rows_of_each, spacing, spot_pitch


def test_rows_come_in_the_order_of_the_names():
    rows = rows_of_each(np.array(["b", "a", "b", "c"]))
    assert [own.tolist() for own in rows] == [[1], [0, 2], [3]]
    assert rows_of_each(np.empty(0, int)) == []


def test_distances_are_those_inside_sections_and_repeats_count_once():
    xy = np.array([[0.0, 0], [0, 0], [3, 0], [3, 1], [10, 0], [10, 5]])
    section = np.array([0, 0, 0, 1, 1, 2])
    assert spacing(xy, section) == pytest.approx(np.median([3, 3, np.hypot(7, 1), np.hypot(7, 1)]))
    assert spot_pitch(xy[:3]) == 3


def test_one_position_has_no_distance():
    assert np.isnan(spacing(np.zeros((2, 2)), np.zeros(2, int)))
    assert spot_pitch(np.zeros((2, 2))) == 0

import numpy as np
import pytest

from stmsi._core.learning.folds import groups_where_measured, held_out_group, inner_groups, random_groups


def test_sections_stay_whole_and_are_spread_by_size():
    size = {"a": 50, "b": 30, "c": 30, "d": 20, "e": 10, "f": 10, "g": 10}
    sample = np.repeat(list(size), list(size.values()))
    group = inner_groups(sample, None, n_groups=3)
    assert sorted(set(group)) == [0, 1, 2]
    assert all(len(set(group[sample == s])) == 1 for s in size)
    load = np.bincount(group)
    assert load.max() - load.min() <= 10


def test_every_section_is_its_own_group_where_there_are_few():
    sample = np.array(["x", "y", "z", "x", "y", "z"])
    group = inner_groups(sample, None)
    assert len(set(group)) == 3
    assert (group[:3] == group[3:]).all()


@pytest.mark.parametrize("n_sections", [1, 2])
def test_few_sections_are_split_into_compact_blocks(n_sections):
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (200, 2))
    sample = np.array([f"s{i % n_sections}" for i in range(200)])
    group = inner_groups(sample, xy, n_groups=4)
    assert sorted(set(group)) == [0, 1, 2, 3]
    for g in range(4):
        own = group == g
        assert len(set(sample[own])) == 1, "a block lies in one section"
        assert xy[own].std(axis=0).mean() < 0.85 * xy.std(axis=0).mean()


def test_blocks_are_the_same_every_time():
    xy = np.random.default_rng(0).uniform(0, 1000, (60, 2))
    sample = np.repeat("a", 60)
    np.testing.assert_array_equal(inner_groups(sample, xy, seed=1), inner_groups(sample, xy, seed=1))


def test_groups_are_numbered_without_gaps():
    sample = np.array(["a", "a", "a", "a", "b"])
    xy = np.arange(10.0).reshape(5, 2)
    group = inner_groups(sample, xy, n_groups=4)
    assert sorted(set(group)) == list(range(group.max() + 1))
    assert group.max() >= 1


def test_blocks_need_positions():
    with pytest.raises(ValueError, match=r'2 section\(s\).*positions in obsm\["spatial"\]'):
        inner_groups(np.array(["a", "b"]), None)


def test_one_spot_cannot_be_split():
    with pytest.raises(ValueError, match=r"1 spot\(s\) cannot be split.*train on more spots"):
        inner_groups(np.array(["a"]), np.zeros((1, 2)))


def test_a_held_out_group_leaves_every_metabolite_something():
    rng = np.random.default_rng(0)
    sample = np.repeat(["a", "b", "c"], [40, 30, 30])
    xy = rng.uniform(size=(100, 2))
    measured = np.ones((100, 3), bool)
    whole = held_out_group(sample, xy, measured)
    assert whole.sum() == 40
    measured[40:, 2] = False
    part = held_out_group(sample, xy, measured)
    assert set(sample[part]) == {"a"}
    assert 0 < part.sum() < 20
    np.testing.assert_array_equal(held_out_group(sample, None, measured), whole)


def test_a_metabolite_of_one_group_has_groups_of_its_own():
    rng = np.random.default_rng(0)
    sample, xy = np.repeat(["a", "b", "c"], 20), rng.uniform(size=(60, 2))
    groups = inner_groups(sample, xy)
    measured = np.repeat([True, False, False], 20)
    own = groups_where_measured(sample, xy, groups, measured)
    assert (own[~measured] == -1).all()
    assert set(own[measured]) == {0, 1, 2, 3, 4}
    assert groups_where_measured(sample, xy, groups, np.repeat([True, True, False], 20)) is None
    assert groups_where_measured(sample, None, groups, measured) is None
    assert groups_where_measured(sample, xy, groups, np.arange(60) == 3) is None


@pytest.mark.parametrize(("n", "n_groups"), [(16, 5), (3, 5), (100, 4)])
def test_random_groups_are_of_equal_size(n, n_groups):
    group = random_groups(n, n_groups=n_groups, seed=3)
    size = np.bincount(group)
    assert len(size) == min(n, n_groups)
    assert size.max() - size.min() <= 1
    np.testing.assert_array_equal(group, random_groups(n, n_groups=n_groups, seed=3))


def test_random_groups_are_drawn():
    assert not np.array_equal(random_groups(60, seed=0), random_groups(60, seed=1))
    # neighbours in the table are no more alike than others
    assert 0.1 < (np.diff(random_groups(600)) == 0).mean() < 0.3


def test_two_observations_cannot_be_split():
    with pytest.raises(ValueError, match=r"2 observation\(s\) cannot be split.*train on three at least"):
        random_groups(2)

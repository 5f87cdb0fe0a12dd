import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.chemistry.ion_matching import match_ions


def match(*mz, names=None, kinds=None, ppm=10):
    names = names or [[f"{k}_{i}" for i in range(len(m))] for k, m in enumerate(mz)]
    kinds = kinds or [[("",)] * len(m) for m in mz]
    groups, ties = match_ions([np.array(m, float) for m in mz], kinds, names, ppm)
    return [g.tolist() for g in groups], ties


def test_ions_within_the_tolerance_are_one():
    assert match([100, 200, 300], [200.001, 100.0005, 400]) == ([[0, 1, 2], [1, 0, 3]], [])
    assert match([100], [100.0011]) == ([[0], [1]], [])


def test_each_ion_goes_with_its_nearest_one_to_one():
    # 500.002 is within 10 ppm of both, and 500.0025 takes it first
    assert match([500.000, 500.0025], [500.002]) == ([[0, 1], [1]], [])
    # the farther one has to go alone
    assert match([500.000], [500.0005, 500.004]) == ([[0], [0, 1]], [])


def test_a_group_is_no_chain():
    """Neighbours within the tolerance do not make the ends one ion."""
    groups, _ = match([500.000], [500.004], [500.0075])
    assert groups in ([[0], [1], [1]], [[0], [0], [1]])
    assert match([500.000], [500.002], [500.004])[0] == [[0], [0], [0]]


def test_the_order_of_the_lists_does_not_count():
    rng = np.random.default_rng(0)
    base = np.sort(rng.uniform(100, 1000, 60))
    lists = [base[rng.random(60) < 0.7] for _ in range(4)]
    lists = [m * (1 + rng.normal(0, 1e-6, len(m))) for m in lists]

    def partition(order):
        groups, ties = match(*(lists[k] for k in order))
        assert not ties
        cells = {}
        for k, group in zip(order, groups, strict=True):
            for i, g in enumerate(group):
                cells.setdefault(g, set()).add((k, i))
        return {frozenset(c) for c in cells.values()}

    assert partition([0, 1, 2, 3]) == partition([3, 1, 0, 2])


def test_names_go_before_masses():
    names = [["a"], ["b", "a"]]
    assert match([500.0], [500.0001, 500.003], names=names) == ([[0], [1, 0]], [])


def test_names_stand_in_for_masses_that_are_unknown():
    assert match([np.nan, 200], [np.nan, 200], names=[["a", "x"], ["a", "y"]]) == ([[0, 1], [0, 1]], [])
    assert match([np.nan], [np.nan], names=[["a"], ["b"]]) == ([[0], [1]], [])
    assert match([np.nan], [100], names=[["a"], ["a"]]) == ([[0], [0]], [])


def test_what_is_known_to_differ_is_never_joined():
    assert match([500], [500], kinds=[[("[M+H]+",)], [("[M+Na]+",)]])[0] == [[0], [1]]
    assert match([500], [500], kinds=[[("[M+H]+",)], [("",)]])[0] == [[0], [0]]
    # the third joins one of them, and does not bring them together
    groups, _ = match([500], [500], [500], kinds=[[("[M+H]+",)], [("[M+Na]+",)], [("",)]])
    assert groups[0] != groups[1]


def test_ions_that_are_equally_near_are_named():
    _, ties = match([500.0], [499.999, 500.001])
    assert [(ion, {a, b}) for ion, a, b in ties] == [((0, 0), {(1, 0), (1, 1)})]
    assert match([500.0], [499.999, 500.001], names=[["a"], ["b", "a"]])[1] == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(100, 100.02), max_size=6), min_size=1, max_size=4), st.sampled_from([1.0, 20.0, 80.0])
)
def test_groups_hold_one_ion_of_a_list_and_are_narrow(lists, ppm):
    groups, _ = match(*lists, ppm=ppm)
    cells = {}
    for own, group in zip(lists, groups, strict=True):
        assert len(set(group)) == len(group) == len(own)
        for m, g in zip(own, group, strict=True):
            cells.setdefault(g, []).append(m)
    for cell in cells.values():
        assert max(cell) - min(cell) <= ppm * 1e-6 * min(cell) * (1 + 1e-9)


def test_many_ions_are_matched_quickly():
    from time import perf_counter

    mz = np.sort(np.random.default_rng(0).uniform(100, 1000, 2000))
    start = perf_counter()
    groups, _ = match(*(mz * (1 + k * 1e-8) for k in range(4)), ppm=0.1)
    assert perf_counter() - start < 5
    assert all(g == groups[0] for g in groups)


@pytest.mark.parametrize("lists", [[[]], [[], []], [[100.0]]])
def test_little_to_match(lists):
    groups, ties = match(*lists)
    assert [len(g) for g in groups] == [len(m) for m in lists]
    assert ties == []

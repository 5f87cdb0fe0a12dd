import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stmsi._core.ids import safe_ids

NAMES = st.lists(st.one_of(st.text(max_size=8), st.text("aAbB_2.:/( )", max_size=6)), max_size=12)


@settings(deadline=None, max_examples=300)
@given(NAMES)
@example(["A b", "a_B", "a b"])
@example(["x", "x", "x_2", "X"])
@example(["", "_", "..", "__", "/", "é"])
def test_ids_are_safe_unique_and_stable(names):
    ids = safe_ids(names)
    assert len(ids) == len(names)
    assert len({i.lower() for i in ids}) == len(ids)
    assert all(re.fullmatch(r"[0-9A-Za-z-](?:[0-9A-Za-z_.-]*[0-9A-Za-z-])?", i) for i in ids)
    assert safe_ids(ids) == ids


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", fullmatch=True), unique=True))
def test_safe_unique_names_are_kept(names):
    assert safe_ids(names) == names


def test_a_safe_name_is_kept_whatever_comes_before_it():
    assert safe_ids(["a b", "a b", "a_b"]) == ["a_b_2", "a_b_3", "a_b"]
    assert safe_ids(["A b", "a_B"]) == ["A_b_2", "a_B"]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["PC(34:1)", "18:1/16:0"], ["PC_34_1", "18_1_16_0"]),
        (["PC(34:1)", "PC 34:1", "lactate"], ["PC_34_1", "PC_34_1_2", "lactate"]),
        (["Glc", "GLC"], ["Glc", "GLC_2"]),
        ([885.5499, 1], ["885.5499", "1"]),
        (["", "???"], ["feature", "feature_2"]),
        ([], []),
    ],
)
def test_examples(names, ids):
    assert safe_ids(names) == ids

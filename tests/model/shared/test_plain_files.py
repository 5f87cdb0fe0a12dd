import json

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LogisticRegression

from stmsi._core.uncertainty.conformal import GroupConformal
from stmsi.model.shared._fitted_state import FittedState
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._setup import Setup


def there_and_back(folder, value):
    write_payload(folder, {"value": value})
    return read_payload(folder)["value"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        10**30,
        -0.0,
        1 / 3,
        np.inf,
        "µm",
        [1, [2.5]],
        (1, ("a",)),
        {"a": 1, 2: "b", (1, 2): None},
        {"x", "y"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values(tmp_path, value):
    found = there_and_back(tmp_path, value)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, set)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([np.nan, -np.inf, 1e-320]),
        np.arange(5, dtype=np.int8)[::2],
        np.array(2.5, dtype=np.float32),
        np.empty((0, 4), np.float32),
        np.array([[True], [False]]),
        np.array(["a", "bcd"]),
        np.array(["a", None, 3], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda v: f"{v.dtype}{v.shape}",
)
def test_arrays_keep_type_values_and_layout(tmp_path, value):
    found = there_and_back(tmp_path, value)
    assert found.dtype == value.dtype
    assert found.flags.f_contiguous == value.copy(order="K").flags.f_contiguous
    np.testing.assert_array_equal(found, value)
    found[...] = value  # writable, as the original


def test_numpy_scalars(tmp_path):
    found = there_and_back(tmp_path, np.float32(0.1))
    assert isinstance(found, np.float32)
    assert found == np.float32(0.1)


def test_tables(tmp_path):
    frame = pd.DataFrame(
        {
            "number": [1.5, np.nan, 3],
            "whole": np.array([1, 2, 3], np.int32),
            "text": ["a", "", None],
            "kind": pd.Categorical(["x", "y", "x"], ["y", "x"], ordered=True),
            "maybe": pd.array([1, None, 3], dtype="Int64"),
            "when": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        },
        index=pd.Index(["r1", "r2", "r3"], name="id"),
    )
    pd.testing.assert_frame_equal(there_and_back(tmp_path, frame), frame)
    for index in (
        pd.RangeIndex(2, 8, 3),
        pd.Index([1.5, 2.5]),
        pd.Index(["a"], dtype="string"),
        pd.CategoricalIndex(["a"]),
    ):
        pd.testing.assert_index_equal(there_and_back(tmp_path, index), index, exact=True)
    series = pd.Series([1.0, 2.0], index=["a", "b"], name="s")
    pd.testing.assert_series_equal(there_and_back(tmp_path, series), series)
    repeated = pd.DataFrame([[1, 2.0]], columns=["a", "a"])
    pd.testing.assert_frame_equal(there_and_back(tmp_path, repeated), repeated)


def test_objects_of_stmsi_and_fields_that_came_later(tmp_path):
    parts = (
        np.arange(2.0),
        np.zeros((3, 2, 1)),
        np.ones((2, 1), np.int64),
        np.zeros((3, 1)),
        np.zeros(1),
        np.zeros((2, 1)),
    )
    value = GroupConformal(*parts)
    found = there_and_back(tmp_path, value)
    assert isinstance(found, GroupConformal)
    np.testing.assert_array_equal(found.count, value.count)
    state = FittedState(Setup(), None, None, pd.Index(["a"]))
    del state.training  # as if an older version had written it
    assert there_and_back(tmp_path, state).training == {}


@pytest.mark.parametrize(
    "value",
    [print, object(), RandomForestRegressor(), np.random.default_rng(0), lambda: None, ValueError],
    ids=["function", "object", "unlisted estimator", "generator", "lambda", "class"],
)
def test_what_is_no_data_is_refused_with_its_place(tmp_path, value):
    with pytest.raises(TypeError, match=r"\['a'\]\[1\] is a .*, which cannot be saved as plain data"):
        write_payload(tmp_path, {"a": [0, value]})


def forge(folder, tree):
    (folder / "model.json").write_text(json.dumps({"scikit-learn": "1.7", "tree": tree}))


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "stmsi.model.shared._persistence:Path",  # not its own
        "stmsi.model.shared._persistence:load",  # no class
        "stmsi.cli:app",
        "sklearn:RandomForestRegressor",
        "stmsi.model._nowhere:X",
        "",
    ],
)
def test_other_classes_are_not_made(tmp_path, name):
    write_payload(tmp_path, {})
    forge(tmp_path, {"type": "object", "class": name, "values": {}})
    with pytest.raises(ValueError, match="is damaged"):
        read_payload(tmp_path)


@pytest.mark.parametrize(
    "tree",
    [
        {"type": "array", "part": 0, "at": 2, "shape": [5], "order": "C"},
        {"type": "array", "part": 0, "at": -1, "shape": [1], "order": "C"},
        {"type": "array", "part": 0, "at": 0, "shape": [-1], "order": "C"},
        {"type": "array", "part": 7, "at": 0, "shape": [1], "order": "C"},
        {"type": "magic"},
        {"kind": "dict"},
    ],
)
def test_forged_trees_are_refused(tmp_path, tree):
    write_payload(tmp_path, {"a": np.arange(3.0)})
    forge(tmp_path, tree)
    with pytest.raises(ValueError, match="is damaged"):
        read_payload(tmp_path)


def test_no_constructor_of_an_estimator_is_called(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    model = LogisticRegression().fit(X, X[:, 0] > 0)
    found = there_and_back(tmp_path, model)
    np.testing.assert_array_equal(found.decision_function(X), model.decision_function(X))


@pytest.mark.parametrize(("field", "value"), [("left", 10**6), ("right", 0), ("feature_idx", 99), ("feature_idx", -5)])
def test_trees_that_lead_outside_are_refused(tmp_path, field, value):
    X = np.random.default_rng(0).normal(size=(80, 3))
    model = HistGradientBoostingRegressor(max_iter=2).fit(X, X[:, 0])
    np.testing.assert_array_equal(there_and_back(tmp_path, model).predict(X), model.predict(X))
    model._predictors[0][0].nodes[field][0] = value
    with pytest.raises(ValueError, match="a tree leads outside of itself"):
        there_and_back(tmp_path, model)


def test_what_is_unpacked_is_bounded(tmp_path):
    write_payload(tmp_path, {"a": np.arange(4.0)})
    tree = json.loads((tmp_path / "model.json").read_text())
    one = tree["tree"]["values"][0]
    tree["tree"] |= {"keys": ["a", "b"], "values": [one, one]}
    (tmp_path / "model.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="take the same numbers more than once"):
        read_payload(tmp_path)


def test_an_archive_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    write_payload(tmp_path, {"a": np.zeros(10_000)})
    read_payload(tmp_path)
    monkeypatch.setattr("stmsi.model.shared._plain_files._UNPACKED", 0)
    with pytest.raises(ValueError, match=r"model\.npz unpacks to 80000 bytes, more than"):
        read_payload(tmp_path)

"""Landmarks in the unit that the spots had before they became micrometres."""

import logging

import numpy as np
import pandas as pd
import pytest

import stmsi

COLUMNS = ["x_msi", "y_msi", "x_st", "y_st"]


def _points(sdata, name="P1S1"):
    return tuple(sdata.points[f"{name}_landmarks_{side}"].compute()[["x", "y"]].to_numpy() for side in ("msi", "st"))


def _found(sdata):
    return np.asarray(sdata.tables["msi"].uns["alignment"]["P1S1"]["matrix"])


def _came_in(sdata, um_per_unit):
    sdata.tables["st"].uns["st_units"] = {"P1S1": {"um_per_unit": um_per_unit, "source": "array_row and array_col"}}


@pytest.fixture(scope="module")
def expected(_toy):
    sdata = stmsi.pp.align(_toy, sample="P1S1", copy=True)
    return _found(sdata)


@pytest.mark.parametrize("um", [0.25, 0.8, 2.5])
@pytest.mark.parametrize("given", ["arrays", "file"])
def test_plain_pixels_are_converted_and_told(toy, expected, um, given, tmp_path, caplog):
    msi, st = _points(toy)
    _came_in(toy, um)
    pair = (msi, st / um)
    if given == "file":
        pair = tmp_path / "landmarks.csv"
        pd.DataFrame(np.hstack([msi, st / um]), columns=COLUMNS).to_csv(pair, index=False)
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, landmarks={"P1S1": pair})
    np.testing.assert_allclose(_found(toy), expected, atol=1e-6)
    assert f"(1 unit = {um:.4g} um, uns['st_units']) and were converted" in caplog.text


@pytest.mark.parametrize("units", ["pixels", (1, "pixels"), (50.0, "pixels")])
def test_pixels_that_are_said_are_taken_without_a_notice(toy, expected, units, caplog):
    msi, st = _points(toy)
    _came_in(toy, 0.5)
    size = 50.0 if units[0] == 50 else 1.0
    stmsi.pp.align(toy, landmarks={"P1S1": (msi / size, st / 0.5)}, landmark_units=units)
    np.testing.assert_allclose(_found(toy), expected, atol=1e-6)
    assert "converted" not in caplog.text


def test_micrometres_stay(toy, expected, caplog):
    for um in (0.95, 0.5):
        _came_in(toy, um)
        stmsi.pp.align(toy, landmarks={"P1S1": _points(toy)})
        np.testing.assert_allclose(_found(toy), expected, atol=1e-6)
    stmsi.pp.align(toy, sample="P1S1")  # elements know where they lie
    assert "converted" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda msi, st: (msi, 0.7 * st), "scales by"),  # neither unit gives the scale of micrometres
        (lambda msi, st: (msi, st / 0.5 + 5000), "no ST landmark lies near"),
        (lambda msi, st: (msi / 50, st / 0.5), "ST landmarks do not lie near"),
    ],
)
def test_what_is_not_plain_is_refused(toy, change, message):
    _came_in(toy, 0.5)
    with pytest.raises(ValueError, match=message):
        stmsi.pp.align(toy, landmarks={"P1S1": change(*_points(toy))})


def test_the_second_stage_is_converted_by_its_place(toy, expected, caplog):
    msi, st = _points(toy)
    _came_in(toy, 0.5)
    stmsi.pp.align(toy, landmarks={"P1S1": (msi, 3 * msi)}, via={"P1S1": (3 * msi, st / 0.5)})
    np.testing.assert_allclose(_found(toy), expected, atol=1)
    assert "were converted" in caplog.text


def test_pixels_of_a_section_that_came_in_micrometres(toy):
    with pytest.raises(ValueError, match=r"Section 'P1S1': landmark_units='pixels' needs a section .*st_units"):
        stmsi.pp.align(toy, landmarks={"P1S1": _points(toy)}, landmark_units="pixels")

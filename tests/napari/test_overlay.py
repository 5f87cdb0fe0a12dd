"""What keeps a window from opening; the window itself is tested in tests/gui."""

from __future__ import annotations

import sys

import pytest

import stmsi


def test_without_the_extra(monkeypatch, predicted):
    monkeypatch.setattr("stmsi.napari._requirements.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "stmsi\[napari\]"'):
        stmsi.napari.overlay(predicted, run=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display(monkeypatch, predicted):
    monkeypatch.setattr("stmsi.napari._requirements.find_spec", lambda name: object())
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="xvfb-run -a python"):
        stmsi.napari.overlay(predicted, run=False)


def test_needs_a_spatialdata(predicted):
    with pytest.raises(TypeError, match="Expected a SpatialData"):
        stmsi.napari.overlay(predicted.tables["st"], run=False)


def test_input_is_checked_before_the_window(predicted):
    with pytest.raises(KeyError, match="Did you mean"):
        stmsi.napari.overlay(predicted, "simPC(28:1)", run=False)
    with pytest.raises(KeyError, match="No section 'other'"):
        stmsi.napari.overlay(predicted, sample="other", run=False)

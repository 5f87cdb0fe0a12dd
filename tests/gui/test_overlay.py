"""The window: napari with napari-spatialdata and our widget."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from skimage.io import imread

import stmsi

# warnings of napari, napari-spatialdata and Qt are theirs
pytestmark = [pytest.mark.gui, pytest.mark.filterwarnings("ignore")]

SAMPLE = "P1S1"


@pytest.fixture(scope="module")
def one_window(napari, sections, settle):
    """Opened once: that takes the most time of all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        viewer = stmsi.napari.overlay(sections, "simPC(28:0)", sample=SAMPLE, run=False)
        settle(50)  # the canvas is drawn later than the window is open
        yield viewer
        viewer.close()


@pytest.fixture
def window(one_window):
    """The window, as it was opened."""
    yield one_window
    widget = dict(one_window.window.dock_widgets)["stmsi"]
    widget.search.clear()
    widget.section.setCurrentText(SAMPLE)
    widget.mode.setCurrentIndex(widget.mode.findData("compare"))
    widget.style_of_mix.setCurrentText("blend")
    widget.mix.setValue(50)
    widget.threshold.setValue(0)
    widget.view.show_metabolite("simPC_28_0")


@pytest.fixture
def widget(window):
    return dict(window.window.dock_widgets)["stmsi"]


def colours_of(picture):
    """Number of different colours in a picture."""
    return len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0))


def choose(widget, metabolite):
    row = widget.found.index(metabolite)
    widget.list.setCurrentIndex(widget.names.index(row, 0))


def test_the_window_shows_histology_spots_and_docks(window, widget, settle, tmp_path):
    assert [layer.name for layer in window.layers][:3] == ["P1S1_he", "measured", "predicted"]
    assert {"SpatialData", "View (napari-spatialdata)", "stmsi"} <= set(dict(window.window.dock_widgets))
    assert {str(u) for layer in window.layers for u in layer.units} == {"micrometer"}
    # histology and spots are in micrometres: 160 pixels of 10 um
    assert window.layers["P1S1_he"].extent.world[1] == pytest.approx((1500, 1600), abs=15)
    assert window.layers["measured"].extent.world[1] == pytest.approx(widget.view.section.xy.max(axis=0)[::-1], abs=60)
    whole = window.screenshot(canvas_only=False, flash=False)
    assert colours_of(whole) > 500
    widget.export(tmp_path / "view.png")
    canvas = imread(tmp_path / "view.png")
    assert colours_of(canvas) > 100
    # and changes with what is shown
    widget.view.show_mode("residual")
    settle()
    assert not np.array_equal(canvas, window.screenshot(canvas_only=True, flash=False))


def test_controls_change_the_view(widget, settle):
    view = widget.view
    other = view.source.features.index[3]
    choose(widget, other)
    assert view.metabolite == other
    widget.mode.setCurrentIndex(widget.mode.findData("presence"))
    assert view.mode == "presence"
    assert not widget.mix.isEnabled()
    widget.mode.setCurrentIndex(widget.mode.findData("compare"))
    widget.mix.setValue(80)
    assert view.layers["predicted"].opacity == pytest.approx(0.8)
    widget.style_of_mix.setCurrentText("swipe")
    assert view.layers["measured"].shown.sum() + view.layers["predicted"].shown.sum() == len(view.section.rows)
    widget.threshold.setValue(60)
    assert view.threshold == 0.6
    assert widget.threshold_label.text() == "0.60"
    assert "high" in widget.trust.text()


def test_search_narrows_the_list_and_keeps_the_choice(widget):
    view = widget.view
    mz = view.source.features["mz"].iloc[5]
    widget.search.setText(f"{mz:.5f}")
    assert widget.found == [view.source.features.index[5]]
    assert view.metabolite == "simPC_28_0"  # a search chooses nothing
    choose(widget, widget.found[0])
    assert view.metabolite == view.source.features.index[5]
    widget.search.setText("no such name at all")
    assert widget.found == []
    widget.search.clear()
    assert len(widget.found) == len(view.source.features)


def test_section_chooser(window, widget, settle):
    widget.section.setCurrentText("P2S1")
    settle()
    assert widget.view.section.name == "P2S1"
    assert not window.layers["P1S1_he"].visible
    widget.section.setCurrentText(SAMPLE)
    assert window.layers["P1S1_he"].visible
    assert window.layers[0].name == "P1S1_he"


def test_click_on_a_spot(window, widget, settle):
    view = widget.view
    spot = view.pick(*view.section.xy[20])
    text = widget.spot.text()
    assert spot.name in text
    assert "90% interval" in text
    assert spot.genes[0][0] in text
    settle()
    assert np.asarray(window.layers["selected spot"].data).shape == (1, 2)


def test_the_view_widget_of_napari_spatialdata_colours_our_spots(window, widget, sections, settle):
    view = widget.view
    window.layers.selection.active = view.layers["measured"]
    settle()
    theirs = dict(window.window.dock_widgets)["View (napari-spatialdata)"]
    gene = sections.tables["st"].var_names[0]
    assert gene in [theirs.var_widget.item(i).text() for i in range(theirs.var_widget.count())]
    before = view.layers["measured"].face_color.copy()
    theirs.var_widget._onAction([gene])
    assert not np.array_equal(before, view.layers["measured"].face_color)
    # and ours takes the layer back
    choose(widget, view.source.features.index[1])
    choose(widget, view.source.features.index[0])
    np.testing.assert_allclose(view.layers["measured"].face_color, before)


def test_a_second_overlay_takes_the_place_of_the_first(window, widget, sections):
    stmsi.napari.overlay(sections, "simPC(29:1)", sample=SAMPLE, viewer=window, run=False)
    assert [layer.name for layer in window.layers].count("measured") == 1
    assert list(dict(window.window.dock_widgets)).count("stmsi") == 1
    assert dict(window.window.dock_widgets)["stmsi"].view.metabolite == "simPC_29_1"


def test_the_widget_opens_from_the_menu(window, widget):
    from npe2 import PluginManager

    manager = PluginManager.instance()
    manager.discover()
    assert "stmsi" in manager
    own = manager.get_manifest("stmsi")
    assert [w.display_name for w in own.contributions.widgets] == ["Metabolites"]
    _, opened_widget = window.window.add_plugin_dock_widget("stmsi", "Metabolites")
    assert opened_widget.view.source.sections == widget.view.source.sections
    opened_widget.view.close()


def test_the_widget_without_data_says_so(napari, one_window):
    from stmsi.napari._metabolite_widget import MetaboliteWidget

    widget = MetaboliteWidget(napari.components.ViewerModel())
    assert widget.view is None
    assert "stmsi.napari.overlay" in widget.notice.text()

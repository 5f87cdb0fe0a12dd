"""The window: napari with napari-spatialdata and our widget."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from skimage.io import imread
from tests.napari.conftest import lattice

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
    widget.style_of_mix.setCurrentText("side by side")
    widget.mix.setValue(50)
    widget.threshold.setValue(0)
    widget.view.show_mode("compare")  # a test may have changed it without the widget
    widget.view.show_metabolite("simPC_28_0")


@pytest.fixture
def widget(window):
    return dict(window.window.dock_widgets)["stmsi"]


@pytest.fixture(scope="module")
def qapp(napari):
    """Qt, for widgets without a window."""
    from napari.qt import get_qapp

    return get_qapp()


def colours_of(picture):
    """Number of different colours in a picture."""
    return len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0))


def choose(widget, metabolite):
    row = widget.found.index(metabolite)
    widget.list.setCurrentIndex(widget.names.index(row, 0))


def test_the_window_shows_histology_spots_and_one_dock(window, widget, settle, tmp_path):
    assert [layer.name.split(",")[0] for layer in window.layers][:4] == [
        "histology",
        "measured",
        "histology (predicted)",
        "predicted",
    ]
    # the canvas comes first: other widgets are docked when they are asked for
    assert list(dict(window.window.dock_widgets)) == ["stmsi"]
    assert widget.minimumSizeHint().width() <= 320
    assert {str(u) for layer in window.layers for u in layer.units} == {"micrometer"}
    # histology and spots are in micrometres: 160 pixels of 10 um
    assert window.layers["histology"].extent.world[1] == pytest.approx((1500, 1600), abs=15)
    assert widget.view.layers["measured"].extent.world[1] == pytest.approx(
        widget.view.section.xy.max(axis=0)[::-1], abs=60
    )
    whole = window.screenshot(canvas_only=False, flash=False)
    assert colours_of(whole) > 500
    widget.export(tmp_path / "view.png")
    canvas = imread(tmp_path / "view.png")
    assert colours_of(canvas) > 100
    # and changes with what is shown
    widget.view.show_mode("residual")
    settle()
    assert not np.array_equal(canvas, window.screenshot(canvas_only=True, flash=False))


def test_colour_bars_have_three_labels_and_their_unit(window, widget, settle):
    visuals = window.window._qt_viewer.canvas._layer_overlay_to_visual
    for mode, roles in {"compare": ("measured", "predicted"), "residual": ("predicted - measured",)}.items():
        widget.view.show_mode(mode)
        settle(2)
        for role in roles:
            layer = widget.view.layers[role]
            assert layer.name == f"{role}, {widget.view.source.unit}"
            assert layer.name_overlay.visible
            assert len(visuals[layer][layer.face_colorbar].node.ticks._text.text) >= 3


def test_side_by_side_shows_the_same_place_in_both_boxes(window, widget, settle):
    settle(2)
    canvas = window.window._qt_viewer.canvas
    assert len(canvas.grid_views) == 2
    window.camera.zoom *= 3
    window.camera.center = (0, *widget.view.section.xy[30][::-1])
    settle(2)
    rects = [view.camera.rect for view in canvas.grid_views]
    np.testing.assert_allclose(rects[0].pos + rects[0].size, rects[1].pos + rects[1].size)


def test_controls_change_the_view(widget, settle):
    view = widget.view
    other = view.source.features.index[3]
    choose(widget, other)
    assert view.metabolite == other
    widget.mode.setCurrentIndex(widget.mode.findData("presence"))
    assert view.mode == "presence"
    assert widget.style_of_mix.isHidden()
    widget.mode.setCurrentIndex(widget.mode.findData("compare"))
    assert not widget.style_of_mix.isHidden()
    assert widget.mix_row.isHidden()  # side by side has nothing to slide
    widget.style_of_mix.setCurrentText("blend")
    assert not widget.mix_row.isHidden()
    widget.mix.setValue(80)
    assert "20% measured, 80% predicted" in view.title
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
    assert widget.answer.isHidden()
    widget.search.setText("simPC(28_0)")
    assert widget.answer.text().startswith("Nothing found for 'simPC(28_0)'. Nearest: simPC(28:0)")
    assert widget.found[0] == "simPC_28_0"
    widget.search.setText("zzzzzzzzzzzz")
    assert widget.answer.text() == "Nothing found for 'zzzzzzzzzzzz'."
    assert widget.found == []
    widget.search.clear()
    assert widget.answer.isHidden()
    assert len(widget.found) == len(view.source.features)


def test_section_chooser(window, widget, settle):
    widget.section.setCurrentText("P2S1")
    settle()
    assert widget.view.section.name == "P2S1"
    assert "histology" not in window.layers
    widget.section.setCurrentText(SAMPLE)
    assert window.layers["histology"].visible
    assert window.layers[0].name == "histology"


def test_click_on_a_spot(window, widget, settle):
    view = widget.view
    spot = view.pick(*view.section.xy[20])
    text = widget.spot.text()
    assert spot.name in text
    assert "90% interval" in text
    assert spot.genes[0][0] in text
    settle()
    assert np.asarray(window.layers["selected spot"].data).shape == (1, 2)
    view.pick(-1e4, -1e4)
    assert widget.spot.text() == "Click a spot for its values."
    assert not window.layers["selected spot"].visible


def test_the_view_widget_of_napari_spatialdata_colours_our_spots(window, widget, sections, settle):
    view = widget.view
    window.layers.selection.active = view.layers["measured"]
    settle()
    widget.elements.click()
    settle()
    docks = dict(window.window.dock_widgets)
    assert docks["SpatialData"].coordinate_system_widget.currentItem().text() == SAMPLE
    theirs = docks["View (napari-spatialdata)"]
    gene = sections.tables["st"].var_names[0]
    assert gene in [theirs.var_widget.item(i).text() for i in range(theirs.var_widget.count())]
    before = view.layers["measured"].face_color.copy()
    theirs.var_widget._onAction([gene])
    assert not np.array_equal(before, view.layers["measured"].face_color)
    # and ours takes the layer back
    choose(widget, view.source.features.index[1])
    choose(widget, view.source.features.index[0])
    np.testing.assert_allclose(view.layers["measured"].face_color, before)


def test_docks_of_napari_spatialdata_list_the_data_that_are_shown(window, widget, sections, settle):
    widget.elements.click()
    settle()
    other = lattice(5)
    stmsi.napari.overlay(other, viewer=window, run=False)
    settle()
    assert "SpatialData" not in dict(window.window.dock_widgets)
    dict(window.window.dock_widgets)["stmsi"].elements.click()
    settle()
    listed = dict(window.window.dock_widgets)["SpatialData"].coordinate_system_widget
    assert [listed.item(i).text() for i in range(listed.count())] == ["s"]
    stmsi.napari.overlay(sections, "simPC(28:0)", sample=SAMPLE, viewer=window, run=False)
    settle()
    assert "SpatialData" not in dict(window.window.dock_widgets)


def test_the_view_comes_back_when_the_landmark_dock_is_closed(window, widget, settle):
    shown = [layer.name for layer in window.layers if layer.visible]
    dock, landmarks = window.window.add_plugin_dock_widget("stmsi", "Landmarks")
    settle()
    assert not widget.view.layers["measured"].visible
    assert landmarks.section.currentText() == SAMPLE  # the section that was shown
    whole = landmarks.pairs.clicks["st"].data.copy()
    landmarks.undo.click()
    left = landmarks.pairs.counts
    dock.destroyOnClose()  # its x
    settle()
    assert [layer.name for layer in window.layers if layer.visible] == shown
    assert not any("landmarks" in layer.name for layer in window.layers)
    assert colours_of(window.screenshot(canvas_only=True, flash=False)) > 100
    # and no click is lost
    dock, landmarks = window.window.add_plugin_dock_widget("stmsi", "Landmarks")
    assert landmarks.pairs.counts == left
    landmarks.pairs.clicks["st"].data = whole
    dock.destroyOnClose()
    settle()


def test_a_second_overlay_takes_the_place_of_the_first(window, widget, sections):
    stmsi.napari.overlay(sections, "simPC(29:1)", sample=SAMPLE, viewer=window, run=False)
    assert [layer.name.split(",")[0] for layer in window.layers].count("measured") == 1
    assert list(dict(window.window.dock_widgets)).count("stmsi") == 1
    assert dict(window.window.dock_widgets)["stmsi"].view.metabolite == "simPC_29_1"


def test_the_widget_opens_from_the_menu(window, widget):
    from npe2 import PluginManager

    manager = PluginManager.instance()
    manager.discover()
    assert "stmsi" in manager
    own = manager.get_manifest("stmsi")
    assert [w.display_name for w in own.contributions.widgets] == ["Metabolites", "Landmarks"]
    _, opened_widget = window.window.add_plugin_dock_widget("stmsi", "Metabolites")
    assert opened_widget.view.source.sections == widget.view.source.sections
    opened_widget.view.close()


def test_the_widget_without_data_says_so(napari, qapp):
    from stmsi.napari._metabolite_widget import MetaboliteWidget

    widget = MetaboliteWidget(napari.components.ViewerModel())
    assert widget.view is None
    assert "stmsi.napari.overlay" in widget.notice.text()
    assert not widget.controls.isVisibleTo(widget)


def test_the_widget_opens_a_store(napari, qapp, tmp_path):
    from stmsi.napari._metabolite_widget import MetaboliteWidget

    widget = MetaboliteWidget(napari.components.ViewerModel())
    widget.open_data(tmp_path / "nothing.zarr")
    assert "could not be read as a SpatialData" in widget.notice.text()
    path = tmp_path / "one.zarr"
    lattice(5).write(path)
    widget.open_data(path)
    assert widget.view.section.name == "s"
    assert widget.controls.isVisibleTo(widget)
    assert not widget.notice.isVisibleTo(widget)


def test_landmarks_without_python(napari, qapp, sections):
    from stmsi.napari._landmark_widget import LandmarkWidget

    viewer = napari.components.ViewerModel()
    empty = LandmarkWidget(viewer)
    assert "No SpatialData in this viewer" in empty.notice.text()
    assert not empty.controls.isVisibleTo(empty)
    empty.use(sections)  # as its button to open a store does
    widget, pairs = empty, empty.pairs
    assert widget.section.currentText() == SAMPLE
    n = pairs.counts[0]  # the simulation brings landmarks along
    last = pairs.clicks["st"].data[-1:].copy()
    widget.undo.click()
    assert pairs.counts == (n, n - 1)
    assert f"{n - 1} pairs. Next: click the same place in the ST section" in widget.report.text()
    widget.next.click()
    assert pairs.clicks["st"].mode == "add"
    pairs.clicks["st"].add(last)
    assert pairs.clicks["msi"].mode == "add"
    before = widget.report.text()
    widget.model.setCurrentIndex(widget.model.findData("affine"))
    assert widget.report.text() != before  # errors are those of the model
    widget.ion.setCurrentIndex(2)
    assert widget.pairs.counts == (n, n)  # another ion keeps the clicks
    widget.align.click()
    assert widget.outcome.text().startswith(f"Aligned {SAMPLE}; MSI is shown where it lies now.")
    assert "call stmsi.pp.map_to_spots" in widget.outcome.text()
    assert widget.shown.currentText() == "after"
    widget.section.setCurrentText("P2S1")
    for _ in range(2 * n):
        widget.undo.click()
    widget.align.click()
    assert "at least three are needed" in widget.outcome.text()
    widget.section.setCurrentText(SAMPLE)
    widget.section.setCurrentText("P2S1")
    assert widget.pairs.counts == (0, 0)  # clicks are kept for each section

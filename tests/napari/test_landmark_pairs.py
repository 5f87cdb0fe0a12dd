"""Landmarks clicked pair by pair, in a viewer without window."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity
from tests.napari.conftest import napari_or_skip

from stmsi.napari._canvas import canvas_grid, canvas_overlay
from stmsi.napari._landmark_pairs import LAID_OVER, LandmarkPairs
from stmsi.napari._metabolite_maps import MetaboliteMaps
from stmsi.napari._metabolite_view import MetaboliteView

napari = napari_or_skip()
pytestmark = pytest.mark.filterwarnings("default")  # napari's own

SAMPLE = "P1S1"
PLACES = np.array([[300.0, 300], [1200, 400], [700, 1300], [1100, 1100], [500, 800]])


@pytest.fixture
def pairs(toy):
    """A section without landmarks, in an empty viewer."""
    for name in [n for n in toy.points if "landmarks" in n]:
        del toy.points[name]
    return LandmarkPairs(napari.components.ViewerModel(), toy, SAMPLE)


def truth(pairs):
    return np.asarray(pairs.sdata.tables["st"].uns["truth"]["transformation"][SAMPLE])


def in_st(pairs, xy, mirrored=False):
    matrix = truth(pairs)
    if mirrored:
        matrix = matrix @ np.diag([-1.0, 1, 1])
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def click(pairs, xy):
    """A click on the layer that is active, at a place in its own frame."""
    layer = pairs.viewer.layers.selection.active
    assert layer.mode == "add"
    layer.add(np.asarray(xy)[None, ::-1])


def click_all(pairs, places=PLACES, **how):
    pairs.next_pair()
    for place, other in zip(places, in_st(pairs, places, **how), strict=True):
        click(pairs, place)
        click(pairs, other)


def test_clicks_go_to_the_two_sides_in_turn(pairs):
    pairs.next_pair()
    for k, side in enumerate(("msi", "st", "msi", "st")):
        assert pairs.turn == side
        assert pairs.viewer.layers.selection.active is pairs.clicks[side]
        click(pairs, PLACES[k])
    assert pairs.counts == (2, 2)
    pairs.pause()
    assert {layer.mode for layer in pairs.clicks.values()} == {"pan_zoom"}


def test_undo_takes_back_the_last_click(pairs):
    click_all(pairs, PLACES[:2])
    click(pairs, PLACES[2])
    pairs.undo()
    assert pairs.counts == (2, 2)
    assert pairs.viewer.layers.selection.active is pairs.clicks["msi"]
    pairs.undo()
    assert pairs.counts == (2, 1)
    np.testing.assert_allclose(pairs.clicks["st"].data[0, ::-1], in_st(pairs, PLACES)[0])
    for _ in range(5):
        pairs.undo()
    assert pairs.counts == (0, 0)


def test_a_point_that_is_moved_by_hand_changes_no_turn(pairs):
    click_all(pairs, PLACES[:2])
    layer = pairs.clicks["st"]
    pairs.viewer.layers.selection.active = layer
    layer.mode = "select"
    layer.data = layer.data + 5
    assert pairs.viewer.layers.selection.active is layer
    assert layer.mode == "select"


def test_undo_of_landmarks_that_were_there_asks_for_their_partner(toy):
    pairs = LandmarkPairs(napari.components.ViewerModel(), toy, SAMPLE)
    pairs.next_pair()
    pairs.undo()
    assert pairs.turn == "st"
    assert pairs.viewer.layers.selection.active is pairs.clicks["st"]
    pairs.pause()
    pairs.show("after")
    for _ in range(2 * len(PLACES) + 20):
        pairs.undo()
    assert pairs.shown == "landmarks"  # there is no alignment to show any more
    assert pairs.clicks["st"].mode == "pan_zoom"


def test_leave_one_out_error_follows_every_click(pairs):
    told = []
    pairs.on_change.append(lambda: told.append(pairs.report()))
    click_all(pairs)
    assert len(told) >= 10
    assert "it takes three pairs" in told[0][-1]
    assert "Leave-one-out error: 0 um" in told[-1][1]
    twice = pairs.clicks["st"].data.copy()
    twice[3] = twice[2]
    pairs.clicks["st"].data = twice
    assert told[-1][1].startswith("No alignment yet: ")
    assert "three pairs" not in told[-1][1]  # the reason is another one
    click_again = in_st(pairs, PLACES)[:, ::-1]
    pairs.clicks["st"].data = click_again
    moved = click_again.copy()
    moved[3] += 400  # a slip of the hand
    pairs.clicks["st"].data = moved
    assert "at pair 4" in told[-1][1]
    expected = pairs.fit().tre
    assert f"{np.sqrt(np.mean(expected**2)):.0f} um (root mean square)" in told[-1][1]


def test_a_mirrored_reading_is_told(pairs):
    click_all(pairs)
    assert not any("mirror" in line for line in pairs.report())
    for layer in pairs.clicks.values():
        layer.data = np.empty((0, 2))
    click_all(pairs, mirrored=True)
    assert any(
        line.startswith("Warning: these landmarks say that MSI and ST are mirror images") for line in pairs.report()
    )


def test_before_and_after(pairs):
    over = pairs.viewer.layers[LAID_OVER]
    with pytest.raises(ValueError, match="'P1S1': No alignment yet: it takes three pairs"):
        pairs.show("after")
    click_all(pairs)
    assert not over.visible
    pairs.show("before")
    before = over.data.copy()
    pairs.show("after")
    assert over.visible
    assert not pairs.pixels.visible
    pixels = np.asarray(pairs.pixels.data)[:, ::-1]
    offset = pairs.clicks["st"].translate
    np.testing.assert_allclose(over.data - offset, in_st(pairs, pixels)[:, ::-1], atol=1e-6)
    assert not np.allclose(before, over.data)
    pairs.next_pair()
    assert not over.visible
    assert pairs.pixels.visible


def test_align(pairs):
    pairs.next_pair()
    with pytest.raises(ValueError, match="0 pairs"):
        pairs.align()
    click_all(pairs)
    pairs.align()
    report = pairs.sdata.tables["msi"].uns["alignment"][SAMPLE]
    np.testing.assert_allclose(np.asarray(report["matrix"]), truth(pairs), atol=1e-6)
    assert pairs.shown == "after"


def test_histology_lies_under_the_spots(toy):
    toy.images[f"{SAMPLE}_he"] = Image2DModel.parse(
        np.full((3, 20, 30), 200, np.uint8), dims=("c", "y", "x"), transformations={SAMPLE: Identity()}
    )
    other = napari.components.ViewerModel()
    other.add_points(np.zeros((1, 2)), name="mine")
    pairs = LandmarkPairs(other, toy, SAMPLE)
    names = [layer.name for layer in other.layers]
    assert names[1:4] == [f"{SAMPLE} MSI", "histology", f"{SAMPLE} ST"]
    offset = pairs.clicks["st"].translate
    np.testing.assert_allclose(other.layers["histology"].affine.affine_matrix[:2, 2], offset + 0.5)
    assert not other.layers["mine"].visible
    pairs.close()
    assert [layer.name for layer in other.layers] == ["mine"]


def test_what_lay_in_the_window_comes_back(predicted):
    viewer = napari.components.ViewerModel()
    view = MetaboliteView(viewer, MetaboliteMaps(predicted), sample=SAMPLE)
    before = {layer.name: layer.visible for layer in viewer.layers}
    title, order = canvas_overlay(viewer, "text").text, list(viewer.layers)
    assert sum(before.values()) == 2
    assert canvas_grid(viewer).enabled
    pairs = LandmarkPairs(viewer, predicted, SAMPLE)
    assert not any(layer.visible for layer in order)
    assert not canvas_grid(viewer).enabled
    viewer.layers.remove(view.layers["P(present)"])  # a layer that the user removes stays away
    pairs.close()
    assert list(viewer.layers) == [layer for layer in order if layer is not view.layers["P(present)"]]
    assert {layer.name: layer.visible for layer in viewer.layers}.items() <= before.items()
    assert canvas_grid(viewer).enabled
    assert canvas_overlay(viewer, "text").text == title

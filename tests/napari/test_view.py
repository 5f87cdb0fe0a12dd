"""The view in a viewer without window."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tests.napari.conftest import lattice, napari_or_skip

import stmsi
from stmsi.napari._canvas import BAR_SIZE, canvas_grid, canvas_overlay, fit_view
from stmsi.napari._metabolite_maps import BLEND, ROLES, MetaboliteMaps
from stmsi.napari._metabolite_view import BESIDE, DIVIDER, PICKED, STYLES, MetaboliteView

napari = napari_or_skip()
# napari's own: pydantic's deprecations, and those of its next release
pytestmark = pytest.mark.filterwarnings("default")

SAMPLE, GREY = "P1S1", 0xDC / 255


@pytest.fixture
def view(predicted):
    return MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(predicted), "simPC(28:0)", sample=SAMPLE)


def values(view, role):
    return view.layers[role].features["value"].to_numpy()


def column(view, key, metabolite=None, sample=SAMPLE):
    st = view.source.adata
    return st.obsm[key][metabolite or view.metabolite].to_numpy(float)[(st.obs["sample"] == sample).to_numpy()]


def test_what_was_not_measured_is_grey_and_absent_is_not(view):
    measured = column(view, "msi")
    colours = view.layers["measured"].face_color
    missing = np.isnan(measured)
    assert missing.any()
    assert (measured == 0).any()
    np.testing.assert_allclose(colours[missing] - [GREY, GREY, GREY, 1], 0, atol=1e-6)
    assert not np.isclose(colours[measured == 0, :3], GREY).all(axis=1).any()


def test_same_value_same_colour(view):
    view.source.adata.obsm["msi_pred"].loc[:, "simPC_28_0"] = view.source.adata.obsm["msi"]["simPC_28_0"].fillna(0)
    view.show_metabolite("simPC_28_0")
    covered = ~np.isnan(column(view, "msi"))
    np.testing.assert_array_equal(
        view.layers["measured"].face_color[covered], view.layers["predicted"].face_color[covered]
    )


def test_limits_of_measured_and_predicted_are_linked(view):
    view.layers["measured"].face_contrast_limits = (0.5, 2.0)
    assert view.layers["predicted"].face_contrast_limits == (0.5, 2.0)
    view.layers["predicted"].blending = "additive"
    assert view.layers["measured"].blending == "additive"


def test_layers_lie_in_micrometres(view):
    assert all(str(u) == "micrometer" for layer in view.layers.values() for u in layer.units)


def test_spots_cannot_be_moved(view):
    assert not any(layer.editable for layer in view.layers.values())


def test_switching_the_metabolite_keeps_the_layers(view):
    before, other = dict(view.layers), view.source.features.index[3]
    colours = view.layers["measured"].face_color.copy()
    view.show_metabolite(other)
    assert all(view.layers[role] is layer for role, layer in before.items())
    np.testing.assert_array_equal(values(view, "measured"), column(view, "msi", other))
    assert not np.array_equal(colours, view.layers["measured"].face_color)
    limits = view.source.limits(view.source.maps(other, view.section.rows))
    assert view.limits == {role: limits[role] for role in ("measured", "predicted")}
    assert view.source.features.loc[other, "name"] in view.title


def test_hidden_layers_follow_when_they_are_shown(view):
    other = view.source.features.index[3]
    view.show_metabolite(other)
    view.show_mode("presence")
    assert [role for role, layer in view.layers.items() if layer.visible] == ["P(present)"]
    np.testing.assert_array_equal(values(view, "P(present)"), column(view, "msi_pred_presence", other))
    view.layers["interval width"].visible = True  # by the eye in the list of layers
    width = column(view, "msi_pred_upper", other) - column(view, "msi_pred_lower", other)
    np.testing.assert_array_equal(values(view, "interval width"), width)


def test_a_layer_that_was_coloured_by_something_else_comes_back(view):
    layer = view.layers["predicted"]
    layer.features = pd.DataFrame({"gene": np.arange(len(layer.data), dtype=float), "index": 0})
    layer.face_color = np.ones((len(layer.data), 4))
    view.show_metabolite(view.source.features.index[2])
    np.testing.assert_array_equal(values(view, "predicted"), column(view, "msi_pred"))
    assert not (layer.face_color == 1).all()


def test_threshold(view):
    view.show_threshold(0.6)
    chance = column(view, "msi_pred_presence")
    np.testing.assert_array_equal(values(view, "predicted"), np.where(chance < 0.6, 0, column(view, "msi_pred")))
    view.show_threshold(0)
    np.testing.assert_array_equal(values(view, "predicted"), column(view, "msi_pred"))
    with pytest.raises(ValueError, match="threshold"):
        view.show_threshold(1.5)


def box_of(view):
    """Box of the grid that each visible layer is drawn in."""
    layers = view.viewer.layers
    grid = canvas_grid(view.viewer)
    return {layer.name.split(",")[0]: grid.position(i, layers) for i, layer in enumerate(layers) if layer.visible}


def test_opens_side_by_side(view):
    assert view.style == BESIDE
    assert canvas_grid(view.viewer).enabled
    assert box_of(view) == {"measured": (0, 0), "predicted": (0, 1)}
    view.show_mode("residual")
    assert not canvas_grid(view.viewer).enabled
    view.show_mode("compare")
    assert box_of(view) == {"measured": (0, 0), "predicted": (0, 1)}
    view.pick(*view.section.xy[3])
    assert box_of(view) == {
        "measured": (0, 0),
        "selected spot": (0, 0),
        "predicted": (0, 1),
        "selected spot (predicted)": (0, 1),
    }


def test_no_two_maps_are_ever_drawn_over_each_other(view):
    maps = (*ROLES, BLEND)
    for mode in view.modes:
        view.show_mode(mode)
        for style in STYLES:
            view.show_mix(0.4, style)
            seen = [layer for role, layer in view.layers.items() if role in maps and layer.visible]
            if canvas_grid(view.viewer).enabled:
                boxes = [
                    canvas_grid(view.viewer).position(view.viewer.layers.index(x), view.viewer.layers) for x in seen
                ]
                assert len(set(boxes)) == len(seen) == 2
            else:
                assert sum(layer.shown.astype(int) for layer in seen).max() == 1
            assert all(layer.opacity == 1 for layer in seen)


def test_blend_mixes_values(view):
    view.show_mix(0.25, "blend")
    assert [role for role, layer in view.layers.items() if layer.visible] == [BLEND]
    measured, predicted = column(view, "msi"), column(view, "msi_pred")
    np.testing.assert_allclose(values(view, BLEND), 0.75 * measured + 0.25 * predicted)
    assert view.limits[BLEND] == view.source.limits(view.source.maps(view.metabolite, view.section.rows))["measured"]
    assert "75% measured, 25% predicted" in view.title
    view.show_mix(1.0)
    np.testing.assert_array_equal(values(view, BLEND), predicted)
    other = view.source.features.index[4]
    view.show_metabolite(other)
    np.testing.assert_array_equal(values(view, BLEND), column(view, "msi_pred", other))
    view.show_mix(1.0, BESIDE)
    np.testing.assert_array_equal(values(view, "measured"), column(view, "msi", other))
    assert not view.layers[BLEND].visible


def test_swipe(view):
    measured, predicted = view.layers["measured"], view.layers["predicted"]
    view.show_mix(0.5, "swipe")
    middle = np.mean([view.section.bounds[0], view.section.bounds[2]])
    np.testing.assert_array_equal(predicted.shown, view.section.xy[:, 0] >= middle)
    np.testing.assert_array_equal(measured.shown, ~predicted.shown)
    divider = view.viewer.layers[DIVIDER]
    assert divider.visible
    np.testing.assert_allclose(divider.data[0][:, -1], middle)
    assert divider.features["sides"].iloc[1] == "measured  |  predicted"
    view.show_mix(0.0)
    assert measured.shown.all()
    np.testing.assert_allclose(divider.data[0][:, -1], view.section.bounds[2])
    view.show_mix(1.0)
    assert predicted.shown.all()
    view.show_mix(0.3, BESIDE)
    assert measured.shown.all()
    assert predicted.shown.all()
    assert not divider.visible
    with pytest.raises(ValueError, match="style='other' is not known"):
        view.show_mix(0.5, "other")


def test_a_section_without_msi_opens_on_its_prediction(predicted):
    st = predicted.tables["st"]
    st.obsm["msi"].loc[(st.obs["sample"] == "P2S1").to_numpy()] = np.nan
    view = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(predicted), mode="residual", sample=SAMPLE)
    view.show_section("P2S1")
    assert [role for role, layer in view.layers.items() if layer.visible] == ["predicted"]
    assert view.style == ""
    assert view.modes == ["compare", "uncertainty", "presence"]
    assert not canvas_grid(view.viewer).enabled
    with pytest.raises(KeyError, match="no data in section 'P2S1'; available: 'compare'"):
        view.show_mode("residual")
    view.show_section(SAMPLE)
    assert view.style == BESIDE


def test_over_histology_absence_is_transparent(predicted):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    predicted.images[f"{SAMPLE}_he"] = Image2DModel.parse(
        np.full((3, 15, 16), 200, np.uint8),
        dims=("c", "y", "x"),
        transformations={SAMPLE: Scale([100, 100], axes=("x", "y"))},
    )
    view = MetaboliteView(
        napari.components.ViewerModel(), MetaboliteMaps(predicted), "simPC(28:0)", sample=SAMPLE, histology=True
    )
    assert box_of(view) == {
        "histology": (0, 0),
        "measured": (0, 0),
        "histology (predicted)": (0, 1),
        "predicted": (0, 1),
    }
    # pixels of 100 um whose corners, and not centres, lie at multiples of 100 um
    np.testing.assert_allclose(view.viewer.layers["histology"].affine.affine_matrix[:2], [[100, 0, 50], [0, 100, 50]])
    for _ in range(2):
        alpha, measured = view.layers["measured"].face_color[:, 3], column(view, "msi")
        assert (measured == 0).any()
        np.testing.assert_array_equal(alpha == 0, measured == 0)
        view.show_metabolite(view.source.features.index[3])
    view.show_section("P2S1")  # which has no image
    assert "histology" not in view.viewer.layers
    assert (view.layers["measured"].face_color[:, 3] == 1).all()


def test_bins_switch_and_swipe_as_pixels():
    sdata = lattice()
    view = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(sdata), "a")
    measured, predicted = view.layers["measured"], view.layers["predicted"]
    st = sdata.tables["st"]
    view.show_metabolite("b")
    view.show_metabolite("a")
    pixels = measured.data[view.section.lattice.row, view.section.lattice.col]
    np.testing.assert_allclose(
        pixels[8:], st.obsm["msi"]["a"].to_numpy()[8:].clip(view.limits["measured"][0]), rtol=1e-4
    )
    assert np.isnan(pixels[7])
    measured.contrast_limits = (10, 20)
    assert tuple(predicted.contrast_limits) == (10, 20)
    view.show_mix(0.5, "swipe")
    at = view.section.lattice.row, view.section.lattice.col
    drawn = [np.isnan(x.data[at]) | (x.data[at] > -1e29) for x in (measured, predicted)]
    np.testing.assert_array_equal(drawn[1], view.section.xy[:, 0] >= np.mean(view.section.bounds[::2]))
    np.testing.assert_array_equal(drawn[0], ~drawn[1])
    view.show_mix(0.5, "blend")
    blended = view.layers[BLEND].data[view.section.lattice.row, view.section.lattice.col]
    np.testing.assert_allclose(blended[100], (st.obsm["msi"]["a"].iloc[100] + st.obsm["msi_pred"]["a"].iloc[100]) / 2)
    view.show_mix(0.5, BESIDE)
    assert (measured.data > -1e29).sum() + 1 == st.n_obs


def test_one_redraw_for_a_switch(view):
    told = {role: [] for role in ("measured", "predicted")}
    for role, calls in told.items():
        layer = view.layers[role]
        layer.events.face_color.connect(lambda event, calls=calls: calls.append(event))
        for emitter in (layer._face.events.colors, layer._face.events.color_properties):
            emitter.connect(lambda event, calls=calls: calls.append(event))
    view.show_metabolite(view.source.features.index[5])
    assert {role: len(calls) for role, calls in told.items()} == {"measured": 1, "predicted": 1}


def test_another_section(view):
    view.show_section("P2S1")
    st = view.source.adata
    assert len(view.layers["measured"].data) == (st.obs["sample"] == "P2S1").sum()
    np.testing.assert_array_equal(values(view, "predicted"), column(view, "msi_pred", sample="P2S1"))
    assert len(view.viewer.layers) == 5  # those of the first section are gone
    assert "P2S1" in view.title
    with pytest.raises(KeyError, match="No section 'other'"):
        view.show_section("other")


def test_layers_that_the_user_removed_do_no_harm(view):
    view.viewer.layers.clear()
    view.show_metabolite(view.source.features.index[1])
    view.show_section("P2S1")
    assert len(view.viewer.layers) == 5


def test_title_names_metabolite_section_and_trust(view):
    assert "simPC(28:0) [M+H]+ (m/z" in view.title
    assert "section P1S1" in view.title
    assert "trust: high" in view.title


def test_pick_a_spot(view):
    told = []
    view.on_pick.append(told.append)
    number = 40
    x, y = view.section.xy[number]
    spot = view.pick(x + 10, y - 10)  # within its radius
    assert told == [spot]
    st = view.source.adata
    row = view.section.rows[number]
    assert spot.name == st.obs_names[row]
    assert spot.value["predicted"] == pytest.approx(st.obsm["msi_pred"]["simPC_28_0"].iloc[row])
    assert (spot.value["lower"], spot.value["upper"]) == pytest.approx(
        [st.obsm[k]["simPC_28_0"].iloc[row] for k in ("msi_pred_lower", "msi_pred_upper")]
    )
    ring = view.viewer.layers[PICKED]
    np.testing.assert_array_equal(ring.data, [[y, x]])
    assert view.pick(-1e4, 0) is None
    assert told[-1] is None  # beside all spots: what was told of the last one holds no longer
    assert not ring.visible


def test_genes_of_a_spot_are_those_furthest_above_the_mean(view):
    st = view.source.adata
    X = st.X.toarray()[view.section.rows].astype(float)
    scaled = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    above = scaled[7] - scaled.mean(axis=0)
    spot = view.describe(7)
    assert [g for g, _ in spot.genes] == list(st.var_names[np.argsort(-above)[:5]])
    assert dict(spot.genes) == {g: X[7, st.var_names.get_loc(g)] for g, _ in spot.genes}


def test_drivers_come_from_where_they_are_stored(view):
    st = view.source.adata
    assert view.describe(0).drivers == ()
    weights = np.linspace(-1, 0.5, st.n_vars)[:, None]
    st.varm["attribution"] = pd.DataFrame(weights, index=st.var_names, columns=["simPC_28_0"])
    spot = view.describe(0)
    assert spot.drivers_of == "attribution, all spots"
    assert spot.drivers[0] == (st.var_names[0], -1.0)
    st.varm["msi_attention"] = pd.DataFrame(weights[::-1] ** 2, index=st.var_names, columns=["simPC_28_0"])
    assert view.describe(0).drivers_of == "attention, all spots"
    st.obsm["msi_attention_simPC_28_0"] = pd.DataFrame(
        np.tile([0.2, 0.8], (st.n_obs, 1)), index=st.obs_names, columns=["programme1", "programme2"]
    )
    spot = view.describe(0)
    assert (spot.drivers_of, spot.drivers[0]) == ("attention of this spot", ("programme2", 0.8))


def test_lines_of_a_spot_that_was_not_measured(view):
    number = int(np.flatnonzero(np.isnan(column(view, "msi")))[0])
    lines = dict(view.describe(number).lines())
    assert lines["measured"] == "not measured"
    assert "90% interval" in lines


def press(view, *positions, mode="pan_zoom"):
    """Press at the first of screen positions, move along, release at the last."""
    x, y = view.section.xy[12]
    view.layers["predicted"].mode = mode
    event = SimpleNamespace(type="mouse_press", pos=positions[0], position=(y, x))
    drag = view._on_drag(view.viewer, event)
    steps = [("mouse_move", p) for p in positions[1:]] + [("mouse_release", positions[-1])]
    for step in [None, *steps]:
        if step is not None:
            event.type, event.pos = step
        if next(drag, "done") == "done":
            break


def test_nothing_covers_anything_side_by_side(view):
    viewer = view.viewer
    if not hasattr(viewer, "canvas"):
        pytest.skip("napari before 0.9")
    bar = canvas_overlay(viewer, "scale_bar")
    assert bar.position == "top_right"  # names of layers take the whole width below
    viewer.canvas.size = (700, 700)
    fit_view(viewer, bars=False)
    centre, zoom = np.array(viewer.scene.camera.center), viewer.scene.camera.zoom
    fit_view(viewer)
    up = (np.array(viewer.scene.camera.center) - centre) * zoom
    assert up[-2] > 0
    assert up[-1] == 0
    height = np.ptp(viewer.layers.extent.world[:, -2]) * zoom
    above, below = (700 - height) / 2 - up[-2], (700 - height) / 2 + up[-2]
    assert above >= 80  # the title
    assert below >= BAR_SIZE[1] + 50 or above == pytest.approx(80)
    view.show_mode("presence")
    assert bar.position == "bottom_left"


def test_text_has_a_ground_over_histology_alone(view, monkeypatch):
    def ground():
        bars = [view.layers[role].face_colorbar for role in ("measured", "predicted")]
        return {overlay.box for overlay in (canvas_overlay(view.viewer, "text"), *bars)}

    if not hasattr(canvas_overlay(view.viewer, "text"), "box"):
        pytest.skip("napari before 0.9")
    assert ground() == {False}
    view.histology = True
    image = (np.zeros((9, 9, 3), np.uint8), {"name": "histology", "rgb": True}, "image")
    monkeypatch.setattr("stmsi.napari._metabolite_view.histology_layer", lambda *_: image)
    view.show_section(SAMPLE)
    assert ground() == {True}


def test_a_click_picks_and_a_drag_does_not(view):
    press(view, (10, 10), (90, 10))
    assert view.picked is None
    press(view, (10, 10))
    assert view.picked == 12


def test_a_click_that_sets_a_point_does_not_pick(view):
    view.viewer.layers.selection.active = view.viewer.add_layer(
        napari.layers.Layer.create(np.zeros((1, 2)), {"name": "l"}, "points")
    )
    view.viewer.layers["l"].mode = "add"
    press(view, (10, 10))
    assert view.picked is None


@pytest.mark.parametrize(
    ("marks", "title", "line"),
    [
        (["yes"], "section P1S1 (trained on)", "yes: this shows how well the model fits, not how well it predicts"),
        (["no"], "section P1S1", None),
        (["yes", "no"], "section P1S1 (partly trained on)", None),
        (["unknown"], "section P1S1 (trained on?)", "not known"),
    ],
)
def test_training_spots_are_told(predicted, marks, title, line):
    st = predicted.tables["st"]
    st.uns["msi_pred"]["model"] = {"name": "ridge"}
    measured = st.obsm["msi"].notna().any(axis=1).to_numpy()
    st.obs["msi_pred_trained_on"] = "no"  # what MSI did not measure does not count
    st.obs.loc[measured, "msi_pred_trained_on"] = np.resize(marks, measured.sum())
    own = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(predicted), "simPC(28:0)", sample=SAMPLE)
    assert title in own.title
    assert ("trained on" in own.title) == ("trained on" in title)
    last = np.flatnonzero(
        measured[own.section.rows] & (st.obs["msi_pred_trained_on"] == marks[-1]).to_numpy()[own.section.rows]
    )[0]
    assert dict(own.describe(int(last)).lines()).get("trained on") == line
    states = {layer.metadata["stmsi"]["trained_on"] for layer in own.layers.values()}
    assert states == {"partly" if len(marks) > 1 else marks[0]}


def test_close(view):
    view.pick(*view.section.xy[0])
    view.close()
    assert len(view.viewer.layers) == 0
    assert view._on_drag not in view.viewer.mouse_drag_callbacks


def test_one_spot(predicted):
    st = predicted.tables["st"]
    one = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(st[:1].copy()))
    one.show_mix(0.5, "swipe")
    assert one.pick(*one.section.xy[0]).name == st.obs_names[0]


def test_measured_only(mapped):
    view = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(mapped))
    assert list(view.layers) == ["measured"]
    assert view.source.modes == ["compare"]
    assert not view.can_mix
    view.show_mix(0.2)
    assert view.style == ""
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites"):
        view.show_mode("presence")


def test_outlines_do_not_swipe(predicted):
    from tests.napari.test_metabolite_layers import outlines

    outlines(predicted, 40, 20)
    view = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(predicted), sample=SAMPLE)
    assert not view.can_swipe
    view.show_mix(0.3, "swipe")
    assert view.style == BESIDE
    view.show_mix(0.3, "blend")
    np.testing.assert_allclose(values(view, BLEND), 0.7 * column(view, "msi") + 0.3 * column(view, "msi_pred"))
    view.show_mix(0.3, BESIDE)
    x, y = view.section.xy[5]
    assert view.spot_at(x + 19, y + 9) == 5
    assert view.spot_at(x, y + 11) is None
    view.show_metabolite(view.source.features.index[1])
    np.testing.assert_array_equal(values(view, "predicted"), column(view, "msi_pred"))


def test_thousands_of_metabolites(predicted):
    st = predicted.tables["st"]
    many = 3000
    rng = np.random.default_rng(0)
    columns = [f"m{j}" for j in range(many)]
    st.obsm["msi_pred"] = pd.DataFrame(rng.random((st.n_obs, many), np.float32), index=st.obs_names, columns=columns)
    view = MetaboliteView(napari.components.ViewerModel(), MetaboliteMaps(predicted), "m2999", sample=SAMPLE)
    assert len(view.source.search("")) == many + st.obsm["msi"].shape[1]
    assert view.source.search("m2999") == ["m2999"]
    np.testing.assert_array_equal(values(view, "predicted"), column(view, "msi_pred", "m2999"))


def test_add_layers_without_napari(monkeypatch, predicted):
    monkeypatch.setattr("stmsi.napari._requirements.find_spec", lambda name: None)
    layers = stmsi.napari.metabolite_layers(predicted, "simPC(28:0)", sample=SAMPLE)
    with pytest.raises(ImportError, match=r'pip install "stmsi\[napari\]"'):
        stmsi.napari.add_layers(napari.components.ViewerModel(), layers)

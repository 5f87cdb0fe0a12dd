from __future__ import annotations

import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity
from tests.napari.conftest import lattice

import stmsi

NAME, ID, SAMPLE = "simPC(28:0)", "simPC_28_0", "P1S1"
ALL = ["measured", "predicted", "predicted - measured", "interval width", "P(present)"]


def by_name(layers):
    return {options["name"]: (data, options, kind) for data, options, kind in layers}


def rows(sdata, sample=SAMPLE):
    return (sdata.tables["st"].obs["sample"] == sample).to_numpy()


def outlines(sdata, width, height):
    """Give the spots of a section rectangles for outlines."""
    x, y = sdata.tables["st"].obsm["spatial"][rows(sdata)].T
    geometry = shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    element = gpd.GeoDataFrame(geometry=geometry, index=sdata.shapes[f"{SAMPLE}_spots"].index)
    sdata.shapes[f"{SAMPLE}_spots"] = ShapesModel.parse(element, transformations={SAMPLE: Identity()})


def test_values_are_those_of_the_table(predicted):
    layers = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE))
    st, here = predicted.tables["st"], rows(predicted)
    assert list(layers) == ALL
    value = {name: options["features"]["value"] for name, (_, options, _) in layers.items()}
    measured, guess = (st.obsm[k][ID].to_numpy(float)[here] for k in ("msi", "msi_pred"))
    np.testing.assert_array_equal(value["measured"], measured)
    np.testing.assert_array_equal(value["predicted"], guess)
    np.testing.assert_array_equal(value["predicted - measured"], guess - measured)
    width = (st.obsm["msi_pred_upper"] - st.obsm["msi_pred_lower"])[ID].to_numpy()[here]
    np.testing.assert_allclose(value["interval width"], width, rtol=1e-6)
    np.testing.assert_array_equal(value["P(present)"], st.obsm["msi_pred_presence"][ID].to_numpy(float)[here])


def test_spots_lie_in_micrometres_and_are_true_to_size(predicted):
    data, options, kind = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)[0]
    assert kind == "points"
    np.testing.assert_array_equal(data[:, ::-1], predicted.tables["st"].obsm["spatial"][rows(predicted)])
    np.testing.assert_allclose(options["size"], 2 * predicted.shapes[f"{SAMPLE}_spots"]["radius"])


def test_measured_and_predicted_share_their_limits(predicted):
    layers = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, percentiles=(0, 100)))
    limits = {name: options["face_contrast_limits"] for name, (_, options, _) in layers.items()}
    both = np.concatenate([layers[name][1]["features"]["value"] for name in ("measured", "predicted")])
    assert limits["measured"] == limits["predicted"] == pytest.approx((np.nanmin(both), np.nanmax(both)))
    assert limits["predicted - measured"][0] == -limits["predicted - measured"][1]
    assert limits["P(present)"] == (0, 1)


def test_limits_can_be_given(predicted):
    layers = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, vmin=1, vmax=3)
    assert layers[0][1]["face_contrast_limits"] == layers[1][1]["face_contrast_limits"] == (1, 3)


@pytest.mark.parametrize(
    ("mode", "visible"),
    [("compare", ALL[:2]), ("residual", ALL[2:3]), ("uncertainty", ALL[3:4]), ("presence", ALL[4:])],
)
def test_modes(predicted, mode, visible):
    layers = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, mode=mode)
    assert [options["name"] for _, options, _ in layers if options["visible"]] == visible


def test_below_the_threshold_a_spot_counts_as_absent(predicted):
    plain = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE))
    layers = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, threshold=0.5))
    chance = layers["P(present)"][1]["features"]["value"]
    guess = layers["predicted"][1]["features"]["value"]
    assert (guess[chance < 0.5] == 0).all()
    assert (guess[chance >= 0.5] == plain["predicted"][1]["features"]["value"][chance >= 0.5]).all()
    # the colours of the others stay
    assert layers["predicted"][1]["face_contrast_limits"] == plain["predicted"][1]["face_contrast_limits"]


def test_squares_are_points(predicted):
    outlines(predicted, 40, 40)
    data, options, kind = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)[0]
    assert (kind, options["symbol"]) == ("points", "square")
    np.testing.assert_allclose(options["size"], 40)
    np.testing.assert_allclose(data[:, ::-1], predicted.tables["st"].obsm["spatial"][rows(predicted)])


def test_other_outlines_are_shapes(predicted):
    outlines(predicted, 40, 20)
    data, _, kind = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)[0]
    assert kind == "shapes"
    extent = np.ptp(np.asarray(data[0]), axis=0)
    np.testing.assert_allclose(extent, (20, 40))  # (y, x)


def test_many_bins_are_an_image():
    sdata = lattice()
    pixels, options, kind = stmsi.napari.metabolite_layers(sdata, "a", percentiles=(0, 100))[0]
    assert kind == "image"
    assert pixels.shape == (71, 71)
    st = sdata.tables["st"]
    # the centre of every bin is that of its pixel
    row, col = np.indices(pixels.shape)
    y, x, _ = np.tensordot(options["affine"], np.stack([row, col, np.ones_like(row)]), axes=1)
    places = {(u, v): w for u, v, w in zip(x.ravel(), y.ravel(), pixels.ravel(), strict=True)}
    drawn = np.array([places[tuple(xy)] for xy in st.obsm["spatial"]])
    measured = st.obsm["msi"]["a"].to_numpy()
    low, high = options["contrast_limits"]
    # what lies at the lower limit is lifted by a trifle: at and below it, an image is transparent
    np.testing.assert_allclose(drawn, np.where(measured == 0, 1e-6 * high, measured), rtol=1e-6)
    assert (drawn[measured == 0] > low).all()
    assert (pixels < low).sum() == 3
    assert options["colormap"]["low_color"][3] == 0
    assert options["colormap"]["nan_color"][3] == 1  # not measured is grey
    clear = stmsi.napari.metabolite_layers(sdata, "a", percentiles=(0, 100), transparent_zeros=True)[0][0]
    assert (clear == 0).sum() == 1


def test_zeros_can_be_transparent(predicted):
    st = predicted.tables["st"]
    st.obsm["msi"].loc[:, ID] = np.where(rows(predicted), 1.0, 3.0) + np.arange(st.n_obs)
    st.obsm["msi"].iloc[0, st.obsm["msi"].columns.get_loc(ID)] = 0.0
    plain = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE))
    clear = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, transparent_zeros=True))
    for name in ("measured", "predicted"):
        assert "low_color" not in plain[name][1]["face_colormap"]
        assert clear[name][1]["face_colormap"]["low_color"][3] == 0
        # else values above zero would vanish as well
        assert clear[name][1]["face_contrast_limits"][0] == 0 < plain[name][1]["face_contrast_limits"][0]
    assert "low_color" not in clear["predicted - measured"][1]["face_colormap"]
    assert "low_color" not in clear["P(present)"][1]["face_colormap"]


def test_a_section_without_msi_has_predictions_alone(predicted):
    predicted.tables["st"].obsm["msi"].loc[rows(predicted)] = np.nan
    layers = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)
    assert [options["name"] for _, options, _ in layers] == ["predicted", "interval width", "P(present)"]


def test_measured_only(mapped):
    layers = stmsi.napari.metabolite_layers(mapped, NAME, sample=SAMPLE)
    assert [options["name"] for _, options, _ in layers] == ["measured"]


def test_predicted_only(predicted):
    st = predicted.tables["st"]
    del st.obsm["msi"], st.uns["msi"]
    layers = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)
    assert [options["name"] for _, options, _ in layers] == ["predicted", "interval width", "P(present)"]


def test_an_anndata_will_do(predicted):
    st = predicted.tables["st"]
    layers = stmsi.napari.metabolite_layers(st[rows(predicted)].copy(), NAME)
    assert len(layers) == 5
    np.testing.assert_array_equal(layers[0][1]["size"], 55)


def test_the_table_goes_along_for_the_view_widget(predicted):
    metadata = stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE)[0][1]["metadata"]
    assert metadata["adata"].n_obs == len(metadata["indices"]) == rows(predicted).sum()
    assert metadata["stmsi"] == {"role": "measured", "sample": SAMPLE, "metabolite": ID, "trained_on": ""}


def test_one_spot(predicted):
    st = predicted.tables["st"]
    one = st[np.flatnonzero(rows(predicted))[:1]].copy()
    layers = stmsi.napari.metabolite_layers(one, NAME)
    assert layers[0][0].shape == (1, 2)
    low, high = layers[0][1]["face_contrast_limits"]
    assert low < high


def test_a_metabolite_that_is_nowhere_measured(predicted):
    st = predicted.tables["st"]
    st.obsm["msi"].loc[:, ID] = np.nan
    layers = by_name(stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE))
    assert np.isnan(layers["measured"][1]["features"]["value"]).all()
    assert np.isfinite(layers["measured"][1]["face_contrast_limits"]).all()
    assert np.isfinite(layers["predicted - measured"][1]["face_contrast_limits"]).all()


def test_unknown_metabolites_are_named_with_their_neighbours(predicted):
    with pytest.raises(KeyError, match=r"No metabolite 'simPC\(28:1\)'.*Did you mean 'simPC"):
        stmsi.napari.metabolite_layers(predicted, "simPC(28:1)", sample=SAMPLE)


def test_unknown_section(predicted):
    with pytest.raises(KeyError, match="No section 'P9S9'; sections: 'P1S1'"):
        stmsi.napari.metabolite_layers(predicted, NAME, sample="P9S9")
    with pytest.raises(ValueError, match="name one of them with sample="):
        stmsi.napari.metabolite_layers(predicted, NAME)


@pytest.mark.parametrize("mode", ["residual", "uncertainty", "presence"])
def test_modes_that_need_a_prediction_say_what_makes_it(mapped, mode):
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites writes it"):
        stmsi.napari.metabolite_layers(mapped, NAME, sample=SAMPLE, mode=mode)


def test_a_residual_without_measurement_says_what_makes_it(predicted):
    st = predicted.tables["st"]
    del st.obsm["msi"], st.uns["msi"]
    with pytest.raises(KeyError, match=r"stmsi\.pp\.map_to_spots writes it"):
        stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, mode="residual")


def test_nothing_to_show(toy):
    with pytest.raises(KeyError, match=r"neither 'msi' nor 'msi_pred'.*stmsi\.tl\.predict_metabolites"):
        stmsi.napari.metabolite_layers(toy, NAME, sample=SAMPLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "other"}, "mode='other' is not known"), ({"threshold": 2}, "threshold"), ({"opacity": -1}, "opacity")],
)
def test_wrong_options(predicted, options, message):
    with pytest.raises(ValueError, match=message):
        stmsi.napari.metabolite_layers(predicted, NAME, sample=SAMPLE, **options)


def test_layers_need_neither_napari_nor_qt():
    program = (
        "import sys, stmsi; stmsi.napari.metabolite_layers; stmsi.napari.landmark_layers; stmsi.napari.overlay; "
        "print([m for m in ('napari', 'qtpy', 'PyQt6', 'PyQt5') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.napari.conftest import napari_or_skip

import stmsi

SAMPLE = "P1S1"


def empty_viewer(layers):
    """The layers as a viewer would hold them."""
    return SimpleNamespace(
        layers=[SimpleNamespace(name=o["name"], data=d, metadata=o["metadata"]) for d, o, _ in layers]
    )


def test_landmarks_that_are_there_come_back(toy):
    viewer = empty_viewer(stmsi.napari.landmark_layers(toy, sample=SAMPLE))
    found = stmsi.napari.landmarks(viewer)
    assert list(found) == [SAMPLE]
    for side, xy in zip(("msi", "st"), found[SAMPLE], strict=True):
        np.testing.assert_allclose(xy, toy.points[f"{SAMPLE}_landmarks_{side}"][["x", "y"]].compute())


def test_clicked_landmarks_align(toy):
    layers = stmsi.napari.landmark_layers(toy, sample=SAMPLE)
    matrix = np.asarray(toy.tables["st"].uns["truth"]["transformation"][SAMPLE])
    in_msi = np.array([[300.0, 300], [1200, 400], [700, 1300], [1100, 1100]])
    in_st = in_msi @ matrix[:2, :2].T + matrix[:2, 2]
    clicked = {"msi": in_msi, "st": in_st}
    for name in [n for n in toy.points if "landmarks" in n]:
        del toy.points[name]
    viewer = empty_viewer(layers)
    for layer in viewer.layers[2:]:
        layer.data = clicked[layer.metadata["stmsi"]["landmarks"]][:, ::-1]
    stmsi.pp.align(toy, sample=SAMPLE, landmarks=stmsi.napari.landmarks(viewer))
    report = toy.tables["msi"].uns["alignment"][SAMPLE]
    np.testing.assert_allclose(np.asarray(report["matrix"]), matrix, atol=1e-6)


def test_sections_lie_side_by_side_in_their_own_frames(toy):
    msi, st, clicks_msi, clicks_st = stmsi.napari.landmark_layers(toy, sample=SAMPLE)
    places = toy.tables["st"].obsm["spatial"][(toy.tables["st"].obs["sample"] == SAMPLE).to_numpy()]
    np.testing.assert_array_equal(st[0][:, ::-1], places)
    np.testing.assert_array_equal(st[1]["translate"], clicks_st[1]["translate"])
    assert not clicks_msi[1]["translate"].any()
    assert (st[0] + st[1]["translate"])[:, 1].min() > msi[0][:, 1].max()


def test_colours_by_ion_and_gene(toy):
    plain = stmsi.napari.landmark_layers(toy, sample=SAMPLE)
    ion, gene = toy.tables["msi"].var_names[0], toy.tables["st"].var_names[0]
    layers = stmsi.napari.landmark_layers(toy, sample=SAMPLE, ion=ion, gene=gene)
    for (_, one, _), (_, other, _) in zip(plain[:2], layers[:2], strict=True):
        assert not np.array_equal(one["features"]["value"], other["features"]["value"])
    with pytest.raises(KeyError, match="No gene 'nothing'"):
        stmsi.napari.landmark_layers(toy, sample=SAMPLE, gene="nothing")
    with pytest.raises(KeyError, match="No section 'other'"):
        stmsi.napari.landmark_layers(toy, sample="other")
    with pytest.raises(ValueError, match="name one of them"):
        stmsi.napari.landmark_layers(toy)


def clicks(n_msi, n_st, sample="s"):
    sides = {"msi": n_msi, "st": n_st}
    return SimpleNamespace(
        layers=[
            SimpleNamespace(
                name=f"{sample}_landmarks_{side}", data=np.random.default_rng(0).random((n, 2)), metadata={}
            )
            for side, n in sides.items()
            if n is not None
        ]
    )


def test_unequal_or_too_few_or_missing():
    with pytest.raises(ValueError, match="4 landmarks in MSI and 3 in ST"):
        stmsi.napari.landmarks(clicks(4, 3))
    with pytest.raises(ValueError, match="2 pairs"):
        stmsi.napari.landmarks(clicks(2, 2))
    with pytest.raises(KeyError, match="no layer 's_landmarks_st'"):
        stmsi.napari.landmarks(clicks(4, None))
    with pytest.raises(KeyError, match="no layers with landmarks of section 'other'"):
        stmsi.napari.landmarks(clicks(4, 4), sample="other")


@pytest.mark.filterwarnings("default")
def test_clicks_are_numbered(toy):
    napari = napari_or_skip()
    for name in [n for n in toy.points if "landmarks" in n]:
        del toy.points[name]
    viewer = napari.components.ViewerModel()
    layers = stmsi.napari.add_layers(viewer, stmsi.napari.landmark_layers(toy, sample=SAMPLE))
    for _, layer in zip(range(2), layers[2:], strict=True):
        assert layer.editable
        for yx in ([10.0, 20.0], [500.0, 20.0], [10.0, 700.0]):
            layer.add(layer.world_to_data(np.array(yx) + layer.translate))
        assert list(layer.features["number"]) == [1, 2, 3]
    in_msi, in_st = stmsi.napari.landmarks(viewer)[SAMPLE]
    np.testing.assert_allclose(in_msi, [[20, 10], [20, 500], [700, 10]])
    np.testing.assert_allclose(in_st, in_msi)

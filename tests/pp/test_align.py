import logging

import numpy as np
import pytest
import shapely
from spatialdata.transformations import Affine, Identity, get_transformation

import stmsi
from stmsi._core.registration import apply_affine

SECTIONS = ["P1S1", "P2S1", "P3S1"]


def _truth(sdata):
    return sdata.tables["st"].uns["truth"]["transformation"]


def _found(sdata, sample):
    pixels = sdata.shapes[f"{sample}_pixels"]
    return get_transformation(pixels, to_coordinate_system=sample).to_affine_matrix(("x", "y"), ("x", "y"))


def _state(sdata):
    frames = {n: get_transformation(sdata.shapes[n], get_all=True) for n in sdata.shapes}
    return {
        n: {k: t.to_affine_matrix(("x", "y"), ("x", "y")).tolist() for k, t in f.items()} for n, f in frames.items()
    }


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
def test_landmarks_put_pixels_where_they_belong(toy, model):
    corners = np.array([[0.0, 0], [1000, 0], [0, 1000], [1000, 1000]])
    stmsi.pp.align(toy, model=model)
    for sample in SECTIONS:
        truth = apply_affine(_truth(toy)[sample], corners)
        assert np.abs(apply_affine(_found(toy, sample), corners) - truth).max() < 60, "landmarks are 10 um off"


def test_the_record_and_the_report(toy):
    stmsi.pp.align(toy)
    record = toy.tables["msi"].uns["alignment"]
    assert list(record) == SECTIONS
    np.testing.assert_allclose(record["P1S1"]["matrix"], _found(toy, "P1S1"))
    report = stmsi.pp.alignment_report(toy)
    assert report.index.tolist() == SECTIONS
    assert report.index.name == "sample"
    assert report["aligned"].all()
    assert report["mirrored"].tolist() == [np.linalg.det(_truth(toy)[s][:2, :2]) < 0 for s in SECTIONS]
    assert report["mirrored"].tolist() == [False, True, False]
    assert (report["n_landmarks"] == 8).all()
    assert report["scale"].between(0.95, 1.05).all()
    assert report["rmse_um"].between(3, 30).all()
    assert (report["tre_um"] <= report["tre_max_um"]).all()
    assert report["spots_covered"].between(0.5, 1).all()
    stmsi.pp.map_to_spots(toy)
    assert stmsi.pp.alignment_report(toy)["spots_covered"].between(0.5, 1).all()


@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize("degrees", [-170.0, -30.0, 0.0, 90.0, 135.0])
def test_the_report_tells_the_rotation(toy, degrees, mirror):
    a = np.radians(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(a) * mirror, -np.sin(a)], [np.sin(a) * mirror, np.cos(a)]]
    pixels, spots = (
        shapely.get_coordinates(toy.shapes[f"P1S1_{k}"].centroid).mean(axis=0) for k in ("pixels", "spots")
    )
    matrix[:2, 2] = spots - matrix[:2, :2] @ pixels
    stmsi.pp.align(toy, transformation=matrix, sample="P1S1")
    row = stmsi.pp.alignment_report(toy).loc["P1S1"]
    assert row["rotation_deg"] == pytest.approx(degrees)
    assert row["mirrored"] == (mirror < 0)
    assert np.isnan(row["rmse_um"])
    assert row["model"] == "given"


@pytest.mark.parametrize("kind", ["3x3", "2x3", "list", "spatialdata"])
def test_a_given_transformation_is_taken_as_it_is(toy, kind):
    truth = _truth(toy)["P2S1"]
    given = {
        "3x3": truth,
        "2x3": truth[:2],
        "list": truth.tolist(),
        "spatialdata": Affine(truth, input_axes=("x", "y"), output_axes=("x", "y")),
    }[kind]
    stmsi.pp.align(toy, transformation={"P2S1": given})
    np.testing.assert_allclose(_found(toy, "P2S1"), truth)
    assert list(toy.tables["msi"].uns["alignment"]) == ["P2S1"]
    report = stmsi.pp.alignment_report(toy)
    assert report["aligned"].tolist() == [False, True, False]


def test_arrays_and_names_of_points_are_the_same(toy):
    points = {m: toy.points[f"P1S1_landmarks_{m}"][["x", "y"]].compute().to_numpy() for m in ("msi", "st")}
    stmsi.pp.align(toy, landmarks={"P1S1": (points["msi"], points["st"])})
    by_array = _found(toy, "P1S1")
    stmsi.pp.align(toy, landmarks=("P1S1_landmarks_msi", points["st"].tolist()), sample="P1S1")
    np.testing.assert_allclose(_found(toy, "P1S1"), by_array, rtol=1e-12)


def test_sections_one_after_another(toy):
    stmsi.pp.align(toy, sample="P1S1")
    first = _found(toy, "P1S1")
    stmsi.pp.align(toy, sample=["P2S1", "P3S1"])
    assert list(toy.tables["msi"].uns["alignment"]) == SECTIONS
    np.testing.assert_array_equal(_found(toy, "P1S1"), first)


def test_aligning_twice_is_aligning_once(toy):
    stmsi.pp.align(toy)
    first = _state(toy)
    stmsi.pp.align(toy)
    assert _state(toy) == first


def test_coordinate_systems_are_plain_strings(toy):
    stmsi.pp.align(toy)
    assert {type(f) for f in get_transformation(toy.shapes["P1S1_pixels"], get_all=True)} == {str}


def test_pixels_that_are_not_in_the_msi_frame_count_as_being_in_it(toy):
    toy.shapes["P1S1_pixels"].attrs["transform"] = {"global": Identity()}
    stmsi.pp.align(toy, transformation={"P1S1": _truth(toy)["P1S1"]})
    np.testing.assert_allclose(_found(toy, "P1S1"), _truth(toy)["P1S1"])


def test_an_unusual_scale_is_warned_of(toy, caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, transformation={"P1S1": np.diag([1.3, 1.3, 1])})
    assert "scales by 1.3; is its pixel size right?" in caplog.text


def _points(sdata, sample="P1S1"):
    return tuple(sdata.points[f"{sample}_landmarks_{m}"][["x", "y"]].compute().to_numpy() for m in ("msi", "st"))


BAD = {
    "both": (lambda s: {"landmarks": {}, "transformation": {}}, ValueError, "landmarks or transformation, not both"),
    "which section": (
        lambda s: {"transformation": np.eye(3)},
        ValueError,
        "several sections .*pass a mapping from section, or sample=",
    ),
    "unknown section": (lambda s: {"sample": "X"}, KeyError, "Sections 'X' have no MSI.*known: 'P1S1', 'P2S1', 'P3S1'"),
    "section without landmarks": (
        lambda s: {"landmarks": {"P1S1": _points(s)}, "sample": "P2S1"},
        KeyError,
        "'P2S1'.*known: 'P1S1'",
    ),
    "no points": (
        lambda s: {"landmarks": {"P1S1": ("x", "y")}},
        KeyError,
        "No points 'x'; points elements: .*Pass landmarks=",
    ),
    "sides swapped": (
        lambda s: {"landmarks": {"P1S1": ("P1S1_landmarks_st", "P1S1_landmarks_msi")}},
        ValueError,
        "'P1S1_landmarks_st' lie in 'P1S1', not in 'P1S1_msi'; landmarks are",
    ),
    "not a pair": (lambda s: {"landmarks": {"P1S1": (1, 2, 3)}}, ValueError, "Section 'P1S1': Landmarks are a pair"),
    "too few": (
        lambda s: {"landmarks": {"P1S1": tuple(p[:2] for p in _points(s))}},
        ValueError,
        "Section 'P1S1': A similarity .*needs 3",
    ),
    "unequal": (
        lambda s: {"landmarks": {"P1S1": (_points(s)[0], _points(s)[1][1:])}},
        ValueError,
        "Landmarks come in pairs",
    ),
    "nan": (
        lambda s: {"landmarks": {"P1S1": (_points(s)[0] * np.nan, _points(s)[1])}},
        ValueError,
        "MSI landmarks contain NaN",
    ),
    "pixels, not um": (
        lambda s: {"landmarks": {"P1S1": (_points(s)[0] / 50, _points(s)[1])}},
        ValueError,
        "both frames are in micrometres.*raise max_scale",
    ),
    "model": (lambda s: {"model": "elastic"}, ValueError, "model='elastic' is not known"),
    "scale": (lambda s: {"transformation": {"P1S1": np.diag([0.1, 0.1, 1])}}, ValueError, "scales by 0.1"),
    "singular": (
        lambda s: {"transformation": {"P1S1": np.diag([1.0, 0, 1])}},
        ValueError,
        "Section 'P1S1': The transformation is singular",
    ),
    "nan matrix": (lambda s: {"transformation": {"P1S1": np.full((3, 3), np.nan)}}, ValueError, "finite affine matrix"),
    "perspective": (
        lambda s: {"transformation": {"P1S1": [[1, 0, 0], [0, 1, 0], [0.1, 0, 1]]}},
        ValueError,
        "finite affine matrix",
    ),
    "shape": (lambda s: {"transformation": {"P1S1": np.eye(2)}}, ValueError, r"found shape \(2, 2\)"),
    "table": (lambda s: {"table_key": "mis"}, KeyError, "no table 'mis'.*Did you mean 'msi'"),
    "sample_key": (lambda s: {"sample_key": "section"}, KeyError, "no column 'section'"),
}


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(toy, kwargs, error, message):
    before = _state(toy)
    with pytest.raises(error, match=message):
        stmsi.pp.align(toy, **kwargs(toy))
    assert _state(toy) == before
    assert "alignment" not in toy.tables["msi"].uns


def test_when_one_section_fails_none_is_changed(toy):
    before = _state(toy)
    with pytest.raises(ValueError, match="Section 'P3S1': A similarity"):
        stmsi.pp.align(toy, landmarks={s: _points(toy, s) if s != "P3S1" else (np.eye(2), np.eye(2)) for s in SECTIONS})
    assert _state(toy) == before
    del toy.shapes["P3S1_pixels"]
    before = _state(toy)
    with pytest.raises(KeyError, match="No shapes 'P3S1_pixels'; shapes elements"):
        stmsi.pp.align(toy)
    assert _state(toy) == before


def test_a_table_is_not_enough(toy):
    for call in (stmsi.pp.align, stmsi.pp.alignment_report):
        with pytest.raises(TypeError, match="Expected a SpatialData, found AnnData"):
            call(toy.tables["msi"])

import logging

import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import deepcopy, read_zarr
from spatialdata.transformations import Affine, Identity, get_transformation

import stmsi
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.warps import Field, apply_steps, read_steps

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
    return tuple(sdata.points[f"{sample}_landmarks_{m}"][["x", "y"]].compute().to_numpy().copy() for m in ("msi", "st"))


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
    "table": (lambda s: {"msi_table_key": "mis"}, KeyError, "no table 'mis'.*Did you mean 'msi'"),
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


# ------------------------------------------------------------------------------------------------- more than affine


@pytest.fixture(scope="module")
def _serial():
    """Two sections of which the MSI is deformed by up to 200 um, with twelve landmarks each."""
    return stmsi.datasets.simulate(
        n_patients=1, n_genes=120, n_metabolites=20, size=2000, deformation=200, n_landmarks=12, rng=2
    )


@pytest.fixture
def serial(_serial):
    return deepcopy(_serial)


def _errors(sdata, sample):
    msi = sdata.tables["msi"]
    own = (msi.obs["sample"] == sample).to_numpy()
    record = msi.uns["alignment"][sample]
    element = sdata.shapes[record.get("element", f"{sample}_pixels")]
    matrix = get_transformation(element, to_coordinate_system=sample).to_affine_matrix(("x", "y"), ("x", "y"))
    at = apply_affine(matrix, shapely.get_coordinates(element.centroid))
    return np.hypot(*(at - msi.obsm["truth_spatial"][own]).T)


@pytest.mark.once
def test_a_deformation_of_200_um_is_undone_from_twelve_landmarks(serial):
    stmsi.pp.align(serial, model="affine")
    stiff = [np.median(_errors(serial, s)) for s in ("P1S1", "P1S2")]
    stmsi.pp.align(serial, model="thin_plate")
    found = [np.median(_errors(serial, s)) for s in ("P1S1", "P1S2")]
    assert max(found) < 50
    assert np.mean(found) < 0.6 * np.mean(stiff)


@pytest.mark.once
def test_intensities_undo_it_without_more_landmarks(serial):
    stmsi.pp.align(serial, model="affine")
    stiff = [np.median(_errors(serial, s)) for s in ("P1S1", "P1S2")]
    stmsi.pp.align(serial, model="affine", refine="intensity", n_perturb=2)
    found = [np.median(_errors(serial, s)) for s in ("P1S1", "P1S2")]
    record = serial.tables["msi"].uns["alignment"]
    assert {r["refine"] for r in record.values()} == {"intensity"}
    assert max(found) < 50
    assert np.mean(found) < 0.7 * np.mean(stiff)
    for r in record.values():
        assert r["refine_information"][1] > r["refine_information"][0]
        assert r["folds"] == 0


@pytest.mark.parametrize("options", [{"model": "thin_plate"}, {"model": "projective"}])
def test_pixels_are_baked_and_mapped(serial, options):
    stmsi.pp.align(serial, **options)
    baked, plain = serial.shapes["P1S1_pixels_warped"], serial.shapes["P1S1_pixels"]
    assert baked.index.equals(plain.index)
    record = serial.tables["msi"].uns["alignment"]["P1S1"]
    assert record["element"] == "P1S1_pixels_warped"
    np.testing.assert_allclose(record["matrix"], _found(serial, "P1S1"))
    steps = read_steps(record["warp"])
    corners = shapely.get_coordinates(plain.geometry)
    np.testing.assert_allclose(shapely.get_coordinates(baked.geometry), apply_steps(steps, corners))
    back = Field(**{k: v for k, v in record["inverse"].items() if k != "kind"})
    assert np.hypot(*(back(apply_steps(steps, corners)) - corners).T).max() < 5
    stmsi.pp.map_to_spots(serial)
    coverage = serial.tables["st"].obs["msi_coverage"].copy()
    # without deformation the pixels lie elsewhere, and so is what the spots get
    del record["element"]
    stmsi.pp.map_to_spots(serial)
    assert np.abs(coverage - serial.tables["st"].obs["msi_coverage"]).max() > 0.1


def test_an_affine_alignment_takes_the_baked_pixels_away(toy):
    stmsi.pp.align(toy, sample="P1S1", model="projective")
    stmsi.pp.align(toy, sample="P1S1")
    assert "P1S1_pixels_warped" not in toy.shapes
    assert not {"element", "warp", "inverse"} & set(toy.tables["msi"].uns["alignment"]["P1S1"])
    stmsi.pp.align(toy)
    stmsi.pp.map_to_spots(toy)


def test_the_record_survives_a_store(toy, tmp_path):
    stmsi.pp.align(toy, model="thin_plate", robust="lmeds", n_perturb=4)
    toy.write(tmp_path / "s.zarr")
    again = read_zarr(tmp_path / "s.zarr")
    xy = np.array([[100.0, 200], [700, 400]])
    for sample in SECTIONS:
        old, new = (s.tables["msi"].uns["alignment"][sample] for s in (toy, again))
        assert set(new) == set(old)
        np.testing.assert_array_equal(
            apply_steps(read_steps(new["warp"]), xy), apply_steps(read_steps(old["warp"]), xy)
        )
        np.testing.assert_array_equal(new["perturbations"], old["perturbations"])
    pd.testing.assert_frame_equal(stmsi.pp.alignment_report(again), stmsi.pp.alignment_report(toy))


@pytest.mark.once
def test_a_spline_through_a_wrong_click_folds_and_is_refused(toy):
    # two landmarks in the middle, 60 um apart in the MSI, and on the wrong sides of each other in the ST
    side = np.array([60.0, 0])
    st_bad, msi_bad = (np.vstack([p, p.mean(axis=0), p.mean(axis=0) + side]) for p in _points(toy)[::-1])
    st_bad[-1] -= 5 * side
    before = _state(toy)
    with pytest.raises(ValueError, match=r"Section 'P1S1': the alignment folds \d.*robust='lmeds'.*raise smoothing"):
        stmsi.pp.align(toy, landmarks={"P1S1": (msi_bad, st_bad)}, model="thin_plate", smoothing=0)
    assert _state(toy) == before


# ------------------------------------------------------------------------------------------------- uncertainty, sections


@pytest.mark.once
def test_perturbations_are_about_the_error_of_the_alignment(toy):
    stmsi.pp.align(toy, n_perturb=200, rng=3)
    record = toy.tables["msi"].uns["alignment"]["P1S1"]
    drawn = record["perturbations"]
    assert drawn.shape == (200, 3, 3)
    assert toy.tables["msi"].uns["alignment"]["P2S1"]["perturbations"].shape == (200, 3, 3)
    spots = shapely.get_coordinates(toy.shapes["P1S1_spots"].geometry)
    moved = np.array([np.hypot(*(apply_affine(p, spots) - spots).T) for p in drawn])
    # of eight clicks with 14 um of error (10 um in either frame) along each axis
    assert 4 < np.sqrt((moved**2).mean()) < 20
    stmsi.pp.align(toy, n_perturb=200, perturb_sd=80, transformation={"P1S1": record["matrix"]})
    drawn = toy.tables["msi"].uns["alignment"]["P1S1"]["perturbations"]
    pixels = apply_affine(_found(toy, "P1S1"), shapely.get_coordinates(toy.shapes["P1S1_pixels"].centroid))
    (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    moved = np.array([np.hypot(*(apply_affine(p, corners) - corners).T) for p in drawn])
    assert np.sqrt((moved**2).mean()) == pytest.approx(80, rel=0.1)


@pytest.mark.once
@pytest.mark.parametrize("n_jobs", [2, -1])
def test_the_number_of_jobs_and_the_company_change_nothing(toy, n_jobs):
    options = {"robust": "ransac", "n_perturb": 3, "rng": 7}
    stmsi.pp.align(toy, **options)
    alone = toy.tables["msi"].uns["alignment"]
    stmsi.pp.align(toy, **options, n_jobs=n_jobs)
    together = toy.tables["msi"].uns["alignment"]
    stmsi.pp.align(toy, **options, sample="P3S1")
    last = toy.tables["msi"].uns["alignment"]
    for sample in SECTIONS:
        for other in (together, last):
            for key in ("matrix", "tre_um", "perturbations"):
                np.testing.assert_array_equal(other[sample][key], alone[sample][key])


def test_wrong_clicks_are_named(toy, caplog):
    msi, st = _points(toy)
    st[4] += [600, -300]
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, landmarks={"P1S1": (msi, st)}, robust="lmeds")
    assert "landmarks '4' (rows from 0) disagree with the others and are left out" in caplog.text
    report = stmsi.pp.alignment_report(toy, intensities=False)
    assert report.loc["P1S1", "outliers"] == "4"
    assert report.loc["P1S1", "rmse_um"] < 30, "at those that were kept"
    assert report.loc["P1S1", "tre_max_um"] < 60


def _shifted(sdata, by):
    return _points(sdata)[0], _points(sdata)[1] + by


MORE_BAD = {
    "elsewhere": (
        lambda s: {"landmarks": {"P1S1": _shifted(s, 50_000)}},
        "no ST landmark lies near the section: they span x 5.*landmark_units= converts",
    ),
    "no overlap": (
        lambda s: {"transformation": {"P1S1": [[1, 0, 5000], [0, 1, 0]]}},
        "after the alignment no pixel lies on any spot: pixels span x 5.*direction of the transformation",
    ),
    "collinear": (
        lambda s: {"landmarks": {"P1S1": ([[0, 0], [100, 100], [300, 300]], _points(s)[1][:3])}},
        "MSI landmarks lie on one line",
    ),
    "duplicate": (
        lambda s: {"landmarks": {"P1S1": (_points(s)[0][[0, 0, 1, 2]], _points(s)[1][:4])}},
        "same point twice",
    ),
    "too few for a spline": (
        lambda s: {"landmarks": {"P1S1": tuple(p[:3] for p in _points(s))}, "model": "thin_plate"},
        "A thin_plate alignment .*needs 4 landmarks, found 3",
    ),
    "too few to doubt": (
        lambda s: {"landmarks": {"P1S1": tuple(p[:4] for p in _points(s))}, "robust": "lmeds"},
        "needs 5 landmarks with this model",
    ),
    "text": (lambda s: {"landmarks": {"P1S1": ([["a", "b"]], [[1, 2]])}}, "Landmarks are numbers"),
    "one side in raster positions": (
        lambda s: {"landmarks": {"P1S1": (_points(s)[0] / 50, _points(s)[1])}},
        r"scales by \d\d\.\d+, but .*landmark_units=",
    ),
    "robust": (lambda s: {"robust": "huber"}, "robust='huber' is not known"),
    "refine": (lambda s: {"refine": "image"}, "refine='image' is not known"),
    "method": (lambda s: {"method": "manual"}, "method='manual' is not known"),
    "method without": (lambda s: {"method": "given"}, 'method="given" takes transformation='),
    "method with": (lambda s: {"method": "landmarks", "transformation": np.eye(3)}, "takes no transformation="),
    "via alone": (lambda s: {"via": _points(s)}, "via= holds the landmarks of the second stage"),
    "leg": (
        lambda s: {"landmarks": {"P1S1": _points(s)}, "via": {"P1S1": tuple(p[:2] for p in _points(s))}},
        "histology to ST: A similarity alignment",
    ),
    "n_perturb": (lambda s: {"n_perturb": -1}, "n_perturb is a number of transformations"),
    "perturb what": (
        lambda s: {"transformation": {"P1S1": _truth(s)["P1S1"]}, "n_perturb": 3},
        "pass perturb_sd= in micrometres",
    ),
    "max_error": (lambda s: {"max_error": 0}, "max_error must be a positive number"),
}


@pytest.mark.parametrize(("kwargs", "message"), MORE_BAD.values(), ids=MORE_BAD)
def test_more_errors_name_the_remedy_and_change_nothing(toy, kwargs, message):
    before = _state(toy)
    with pytest.raises(ValueError, match=message):
        stmsi.pp.align(toy, **kwargs(toy))
    assert _state(toy) == before
    assert "alignment" not in toy.tables["msi"].uns


def test_a_second_stage_of_another_section_is_named(toy):
    with pytest.raises(KeyError, match="via= has no section 'P1S1'; it has 'P2S1'"):
        stmsi.pp.align(toy, landmarks={"P1S1": _points(toy)}, via={"P2S1": _points(toy)})


def test_the_image_of_the_total_ion_current_follows_its_pixels(toy):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, get_transformation

    values = np.ones((1, 5, 5), np.float32)
    toy.images["P2S1_tic"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), transformations={"P2S1_msi": Scale([50.0, 50.0], ("x", "y"))}
    )
    stmsi.pp.align(toy, sample="P2S1")
    stmsi.pp.align(toy, sample="P2S1")  # twice is as once
    moved = get_transformation(toy.images["P2S1_tic"], to_coordinate_system="P2S1")
    expected = np.asarray(toy.tables["msi"].uns["alignment"]["P2S1"]["matrix"]) @ np.diag([50.0, 50.0, 1.0])
    np.testing.assert_allclose(moved.to_affine_matrix(("x", "y"), ("x", "y")), expected)


# ------------------------------------------------------------------------------------------------- sizes and units


@pytest.mark.parametrize("pixel", [0.77, 1.3])
def test_landmarks_in_pixels_of_the_image_are_refused_with_the_remedy(toy, pixel):
    msi, st = _points(toy)
    given = {"P1S1": (msi, st / pixel)}
    with pytest.raises(ValueError, match=r"Section 'P1S1': the transformation scales by .*landmark_units=.*max_scale"):
        stmsi.pp.align(toy, landmarks=given)
    stmsi.pp.align(toy, landmarks=given, landmark_units=(1.0, pixel))
    np.testing.assert_allclose(np.linalg.det(_found(toy, "P1S1")), 1, atol=0.1)


def test_landmarks_outside_the_section_are_refused(toy):
    msi, st = _points(toy)
    for side, pair in (("ST", (msi, st + 1000)), ("MSI", (msi + 1200, st))):
        with pytest.raises(ValueError, match=f"of 8 {side} landmarks do not lie near the section.*landmark_units="):
            stmsi.pp.align(toy, landmarks={"P1S1": pair})


def test_a_scale_that_somebody_wants_is_taken(toy, caplog):
    msi, st = _points(toy)
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, landmarks={"P1S1": (msi / 1.3, st)}, max_scale=1.5)
    assert "is its pixel size right? As it is, pixels stated as 50 um are 6" in caplog.text


def _sized(sdata, factor):
    """Pixels of another stated size."""
    from geopandas import GeoDataFrame

    for name in SECTIONS:
        old = sdata.shapes[f"{name}_pixels"]
        scaled = old.geometry.affine_transform([factor, 0, 0, factor, 0, 0])
        new = GeoDataFrame(old.drop(columns="geometry"), geometry=scaled)
        new.attrs = dict(old.attrs)
        sdata.shapes[f"{name}_pixels"] = new


def test_a_placeholder_for_the_pixel_size_needs_no_other_option(toy, caplog):
    _sized(toy, 1 / 50)
    with pytest.raises(ValueError, match=r"auto=\{'scale': 'free'\}"):
        stmsi.pp.align(toy, sample="P1S1", method="auto")
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, sample="P1S1", method="auto", auto={"scale": "free"})
    assert toy.tables["msi"].uns["alignment"]["P1S1"]["scale"] == pytest.approx(50, rel=0.1)
    assert "pixel size right" not in caplog.text
    with pytest.raises(ValueError, match="scales by"):
        stmsi.pp.align(toy, sample="P1S1", method="auto", auto={"scale": "free"}, max_scale=2)


def test_a_wrong_stated_size_is_a_suspect(toy, caplog):
    _sized(toy, 1.3)
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(toy, sample="P1S1", method="auto")
    assert "is the stated pixel size (65 um; " in caplog.text
    assert "auto={'scale': 'free'}" in caplog.text

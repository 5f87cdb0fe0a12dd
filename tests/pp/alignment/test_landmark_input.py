"""Landmarks from files, elements and in other units."""

import numpy as np
import pandas as pd
import pytest
from spatialdata.models import Image2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import stmsi
from stmsi._core.registration.landmarks import apply_affine


def _points(sdata, sample="P1S1"):
    return tuple(sdata.points[f"{sample}_landmarks_{m}"][["x", "y"]].compute().to_numpy() for m in ("msi", "st"))


def _found(sdata, sample="P1S1"):
    pixels = sdata.shapes[f"{sample}_pixels"]
    return get_transformation(pixels, to_coordinate_system=sample).to_affine_matrix(("x", "y"), ("x", "y"))


@pytest.fixture
def expected(toy):
    """The transformation that the landmarks of the first section give."""
    stmsi.pp.align(toy, sample="P1S1")
    return _found(toy)


OWN = ["x_msi", "y_msi", "x_st", "y_st"]
MAGPIE = ["X_left", "Y_left", "X_right", "Y_right"]
JSRS = ["met_before_x", "met_before_y", "rna_x", "rna_y"]


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@pytest.mark.parametrize("names", [OWN, MAGPIE, JSRS])
def test_columns_and_separators(toy, expected, tmp_path, names, sep):
    path = tmp_path / "landmarks.csv"
    table = pd.DataFrame(np.hstack(_points(toy)), columns=names)
    table.to_csv(path, sep=sep, index=names is MAGPIE)
    for given in (path, str(path)):
        stmsi.pp.align(toy, landmarks={"P1S1": given})
        np.testing.assert_allclose(_found(toy), expected, atol=1e-6)


def test_a_file_of_several_sections(toy, expected, tmp_path):
    path = tmp_path / "all.tsv"
    rows = [pd.DataFrame(np.hstack(_points(toy, s)), columns=OWN).assign(section_id=s) for s in ("P1S1", "P3S1")]
    pd.concat(rows).to_csv(path, sep="\t", index=False)
    del toy.tables["msi"].uns["alignment"]
    stmsi.pp.align(toy, landmarks=path)
    assert list(toy.tables["msi"].uns["alignment"]) == ["P1S1", "P3S1"]
    np.testing.assert_allclose(_found(toy), expected, atol=1e-6)


def test_units_of_the_file_and_of_an_image(toy, expected):
    msi, st = _points(toy)
    size = np.array([2.5, 2.5])
    toy.tables["msi"].uns["msi"]["attrs"]["P1S1"] |= {"origin": np.array([100.0, 30]), "pitch": np.array([1.0, 1])}
    toy.images["P1S1_he"] = Image2DModel.parse(
        np.zeros((3, 40, 50), np.uint8), dims=("c", "y", "x"), transformations={"P1S1": Scale(size, ("x", "y"))}
    )
    in_file = msi / 50 - 0.5 + [100, 30]
    for units, pair in {("file", "P1S1_he"): (in_file, st / size), (50, 2.5): (msi / 50, st / 2.5)}.items():
        stmsi.pp.align(toy, landmarks={"P1S1": pair}, landmark_units=units)
        np.testing.assert_allclose(_found(toy), expected, atol=1e-6)


def test_elements_bring_their_transformations(toy, expected):
    msi, st = _points(toy)
    turn = np.array([[0.0, -2, 300], [2, 0, 50], [0, 0, 1]])
    drawn = PointsModel.parse(
        apply_affine(np.linalg.inv(turn), st), transformations={"P1S1": Affine(turn, ("x", "y"), ("x", "y"))}
    )
    toy.points["drawn"] = drawn
    toy.shapes["circles"] = ShapesModel.parse(msi, geometry=0, radius=5, transformations={"P1S1_msi": Identity()})
    stmsi.pp.align(toy, landmarks={"P1S1": ("circles", "drawn")})
    np.testing.assert_allclose(_found(toy), expected, atol=1e-6)


@pytest.mark.parametrize("model", ["similarity", "affine", "thin_plate"])
def test_two_stages_are_one_after_the_other(toy, model):
    msi, _ = _points(toy)
    truth = toy.tables["st"].uns["truth"]["transformation"]["P1S1"]
    # the histology of the MSI section: pixels of 0.5 um, turned and shifted
    to_histology = np.array([[0.0, -2, 9000], [2, 0, 100], [0, 0, 1]])
    other = np.array([[100.0, 200], [900, 150], [500, 1000], [200, 800], [800, 700], [500, 450]])
    second = apply_affine(to_histology @ np.linalg.inv(truth), other)
    stmsi.pp.align(
        toy, landmarks={"P1S1": (msi, apply_affine(to_histology, msi))}, via={"P1S1": (second, other)}, model=model,
        robust="lmeds", n_perturb=3,
    )  # fmt: skip
    np.testing.assert_allclose(apply_affine(_found(toy), msi), apply_affine(truth, msi), atol=0.1)
    record = toy.tables["msi"].uns["alignment"]["P1S1"]
    assert record["n_landmarks"] == len(msi) + len(other)
    assert record["leg"].tolist() == [1] * len(msi) + [2] * len(other)
    assert record["perturbations"].shape == (3, 3, 3)
    np.testing.assert_allclose(record["landmarks_moved"], record["landmarks_st"], atol=0.1)


def test_errors_of_two_stages_add_up(toy):
    msi, st = _points(toy)
    rng = np.random.default_rng(0)
    stmsi.pp.align(toy, landmarks={"P1S1": (msi, 2 * msi + rng.normal(0, 60, msi.shape))}, via={"P1S1": (2 * msi, st)})
    row = stmsi.pp.alignment_report(toy, intensities=False).loc["P1S1"]
    tre, leg = (toy.tables["msi"].uns["alignment"]["P1S1"][k] for k in ("tre_um", "leg"))
    first, second = (np.median(tre[leg == i]) for i in (1, 2))
    assert 15 < first < 60, "30 um along each axis, in the ST frame"
    assert row["tre_um"] == pytest.approx(np.hypot(first, second))


def _write(path, text):
    path.write_text(text)
    return path


BAD = {
    "no file": (lambda p: p / "none.csv", FileNotFoundError, "There is no file"),
    "columns": (
        lambda p: _write(p / "a.csv", "a,b\n1,2\n"),
        ValueError,
        "a.csv has columns 'a', 'b'; expected x_msi,y_msi",
    ),
    "empty": (lambda p: _write(p / "e.csv", ""), ValueError, "e.csv is empty"),
    "text": (
        lambda p: _write(p / "t.csv", ",".join(OWN) + "\n" + "1,2,3,x\n" * 4),
        ValueError,
        "ST landmarks contain NaN",
    ),
    "other sections": (
        lambda p: _write(p / "s.csv", ",".join([*OWN, "sample"]) + "\n1,2,3,4,A\n5,6,7,8,B\n"),
        ValueError,
        "landmarks of sections 'A', 'B', but the data have 'P1S1'",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_files_that_are_none(toy, tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.align(toy, landmarks={"P1S1": make(tmp_path)})
    assert "alignment" not in toy.tables["msi"].uns


def test_units_that_are_none(toy):
    pair = {"P1S1": _points(toy)}
    for units, error, message in (
        ((0, 1), ValueError, "micrometres per unit, a positive number"),
        ((1, "P1S1_he"), KeyError, "'P1S1_he' is no element"),
        (("P1S1_spots", 1), ValueError, "lies in 'P1S1', not in 'P1S1_msi'"),
        (2.0, ValueError, "landmark_units is a pair"),
    ):
        with pytest.raises(error, match=message):
            stmsi.pp.align(toy, landmarks=pair, landmark_units=units)


@pytest.mark.realdata
def test_published_landmarks(data_dir):
    """Eight landmarks of an embryo section, as JSRS publishes them."""
    from stmsi._core.registration.landmarks import fit_landmarks
    from stmsi.pp._alignment.landmark_input import read_landmarks

    pairs = read_landmarks(data_dir / "registration" / "jsrs_cs12" / "example_landmarks.tsv", ["cs12_3"])
    moving, fixed = pairs["cs12_3"]
    assert len(moving) == 8
    fit = fit_landmarks(moving, fixed, "affine", robust="lmeds")
    assert not fit.mirrored
    assert np.median(fit.tre) < 30
    assert np.median(fit_landmarks(moving, fixed, "similarity").tre) < 60

import logging
from dataclasses import replace

import numpy as np
import pytest
from spatialdata import deepcopy

import stmsi
from stmsi._core.registration.landmarks import apply_affine, fit_landmarks
from stmsi.pp._alignment.other_readings import witness
from stmsi.pp._alignment.section_geometry import section_geometry

pytestmark = pytest.mark.once  # scores of placements, on arrays

KEYS = {"table_key": "st", "msi_table_key": "msi", "sample_key": "sample"}
SECTIONS = ["P1S1", "P2S1", "P3S1"]
FLIPS = {
    "y up": lambda xy, box: np.c_[xy[:, 0], box[1] - xy[:, 1]],
    "x to the left": lambda xy, box: np.c_[box[0] - xy[:, 0], xy[:, 1]],
    "row, col": lambda xy, box: xy[:, ::-1],
    "turned by 180": lambda xy, box: box - xy,
}


@pytest.fixture(scope="module")
def sections():
    return stmsi.datasets.simulate(n_patients=3, sections_per_patient=1, n_genes=80, n_metabolites=15, size=1500)


def _landmarks(sdata, name):
    return tuple(sdata.points[f"{name}_landmarks_{side}"][["x", "y"]].compute().to_numpy() for side in ("msi", "st"))


def _box(sdata, name):
    return sdata.shapes[f"{name}_pixels"].total_bounds[2:]


def _witness(sdata, name):
    return witness(sdata, name, section_geometry(sdata, name, sample_key="sample"), **KEYS)


def _opinion(asked, msi, st):
    return asked(fit_landmarks(msi, st, "similarity").matrix, np.random.default_rng(0))


@pytest.mark.once
def test_flipped_landmarks_are_caught_and_right_ones_are_not(sections):
    n_caught = 0
    for name in SECTIONS:
        asked = _witness(sections, name)
        msi, st = _landmarks(sections, name)
        right = _opinion(asked, msi, st)
        assert right.supported
        assert right.doubt == ""
        for flip in FLIPS.values():
            found = _opinion(asked, flip(msi, _box(sections, name)), st)
            assert not found.supported
            n_caught += "Pixels probably lie in wrong places" in found.doubt
    assert n_caught == len(FLIPS) * len(SECTIONS)


@pytest.mark.parametrize("degrees", [3.0, 45.0, 90.0, 200.0])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_right_landmarks_of_turned_sections_are_not_doubted(sections, degrees, mirror):
    """The MSI slide lay otherwise: all of its positions are turned, pixels and landmarks alike."""
    a = np.radians(degrees)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(a) * mirror, -np.sin(a)], [np.sin(a) * mirror, np.cos(a)]]
    asked = _witness(sections, "P2S1")
    section = replace(asked.section, resize=asked.section.resize @ np.linalg.inv(turn))
    turned = replace(asked, section=section, pixels=apply_affine(turn, asked.pixels))
    msi, st = _landmarks(sections, "P2S1")
    opinion = _opinion(turned, apply_affine(turn, msi), st)
    assert opinion.doubt == ""
    assert opinion.supported


def test_the_message_names_the_reading_that_is_right(sections):
    asked = _witness(sections, "P2S1")
    msi, st = _landmarks(sections, "P2S1")
    assert "with (y, x) for (x, y) of the MSI side" in _opinion(asked, msi[:, ::-1], st).doubt
    height = _box(sections, "P2S1")[1]
    doubt = _opinion(asked, FLIPS["y up"](msi, _box(sections, "P2S1")), st).doubt
    assert f"with (x, {height:.4g} - y) for (x, y) of the MSI side genes and ions share" in doubt


def test_a_picture_with_a_margin_is_caught_too(sections):
    """The mirror axis is the middle of the picture, not of the pixels."""
    asked = _witness(sections, "P1S1")
    msi, st = _landmarks(sections, "P1S1")
    assert _opinion(asked, np.c_[msi[:, 0], _box(sections, "P1S1")[1] + 200 - msi[:, 1]], st).doubt


def test_noise_neither_doubts_nor_supports(sections):
    asked = _witness(sections, "P1S1")
    ions = asked.section.ions
    shuffled = replace(
        asked, section=replace(asked.section, ions=ions[np.random.default_rng(0).permutation(ions.shape[0])])
    )
    opinion = _opinion(shuffled, *_landmarks(sections, "P1S1"))
    assert opinion.doubt == ""
    assert not opinion.supported


def test_align_warns_and_the_report_claims_no_spots(sections, caplog):
    sections = deepcopy(sections)
    wrong = {
        n: (FLIPS["y up"](_landmarks(sections, n)[0], _box(sections, n)), _landmarks(sections, n)[1]) for n in SECTIONS
    }
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(sections, landmarks=wrong)
    first, *others = SECTIONS
    assert f"Section {first!r}: the alignment is ambiguous. Pixels probably lie in wrong places" in caplog.text
    assert all(name in caplog.text.split("also holds for:")[1] for name in others)
    report = stmsi.pp.alignment_report(sections, intensities=False)
    assert report["ambiguous"].all()
    assert report["resolution"].str.startswith("doubtful").all()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(sections)
    assert "ambiguous" not in caplog.text
    report = stmsi.pp.alignment_report(sections, intensities=False)
    assert not report["resolution"].str.startswith(("doubtful", "not known")).any()


def test_a_given_transformation_is_weighed_as_landmarks_are(sections, caplog):
    sections = deepcopy(sections)
    truth = sections.tables["st"].uns["truth"]["transformation"]["P1S1"]
    flip = np.array([[1, 0, 0], [0, -1, _box(sections, "P1S1")[1]], [0, 0, 1]])
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.align(sections, transformation={"P1S1": truth})
        assert caplog.text == ""
        stmsi.pp.align(sections, transformation={"P1S1": truth @ flip})
    assert "for (x, y) of the MSI side genes and ions share" in caplog.text


def test_few_pixels_tell_nothing(sections):
    geometry = section_geometry(sections, "P1S1", sample_key="sample")
    assert witness(sections, "P1S1", replace(geometry, pixels=geometry.pixels[:10]), **KEYS) is None

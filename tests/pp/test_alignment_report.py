import numpy as np
import pytest
import shapely

import stmsi
from stmsi.pp._alignment_report import resolution


def _truth(sdata):
    return sdata.tables["st"].uns["truth"]["transformation"]


def test_masks_and_information_tell_a_good_alignment_from_a_wrong_one(toy):
    truth = _truth(toy)["P1S1"]
    stmsi.pp.align(toy, transformation={"P1S1": truth})
    good = stmsi.pp.alignment_report(toy).loc["P1S1"]
    spots = shapely.get_coordinates(toy.shapes["P1S1_spots"].geometry).mean(axis=0)
    half_turn = np.array([[-1.0, 0, 2 * spots[0]], [0, -1, 2 * spots[1]], [0, 0, 1]])
    stmsi.pp.align(toy, transformation={"P1S1": half_turn @ truth})
    bad = stmsi.pp.alignment_report(toy).loc["P1S1"]
    assert good["mask_iou"] > 0.8
    assert good["mask_iou"] > bad["mask_iou"] + 0.03
    assert good["information"] > bad["information"] + 0.2
    assert good["information"] > good["information_before"]
    assert good["resolution"].startswith("error not known")


def test_coverage_is_that_of_the_spots_centres(toy):
    truth = _truth(toy)["P1S1"]
    away = truth.copy()
    away[0, 2] += 500
    shares = []
    for matrix in (truth, away):
        stmsi.pp.align(toy, transformation={"P1S1": matrix})
        row = stmsi.pp.alignment_report(toy, intensities=False).loc["P1S1"]
        assert "information" not in row
        pixels = shapely.transform(
            toy.shapes["P1S1_pixels"].geometry.to_numpy(), lambda xy, m=matrix: xy @ m[:2, :2].T + m[:2, 2]
        )
        inside = shapely.contains(shapely.union_all(shapely.buffer(pixels, 0.01)), toy.shapes["P1S1_spots"].geometry)
        assert row["spots_covered"] == pytest.approx(inside.mean())
        shares.append(inside.mean())
    assert shares[0] > shares[1] + 0.2


def test_spots_off_tissue_are_frame_and_not_tissue(toy):
    st = toy.tables["st"]
    toy.tables["st"].obs["in_tissue"] = 1
    stmsi.pp.align(toy, sample="P1S1")
    whole = stmsi.pp.alignment_report(toy, intensities=False).loc["P1S1"]
    own = np.flatnonzero((st.obs["sample"] == "P1S1").to_numpy())
    toy.tables["st"].obs.loc[toy.tables["st"].obs_names[own[::2]], "in_tissue"] = 0
    half = stmsi.pp.alignment_report(toy, intensities=False).loc["P1S1"]
    # every other spot says that there is no tissue where pixels lie
    assert half["mask_iou"] == pytest.approx(0.5, abs=0.1)
    assert whole["mask_iou"] > 0.7


def test_what_automatic_alignment_leaves_in_the_record_is_shown(toy):
    stmsi.pp.align(toy)
    toy.tables["msi"].uns["alignment"]["P2S1"] |= {"ambiguous": True, "message": "a landmark at (1, 2) would tell"}
    report = stmsi.pp.alignment_report(toy, intensities=False)
    assert report.loc["P2S1", "ambiguous"] is True
    assert report.loc["P2S1", "message"].startswith("a landmark")


def test_a_section_without_spots_has_no_masks(toy):
    stmsi.pp.align(toy)
    del toy.shapes["P1S1_spots"]
    row = stmsi.pp.alignment_report(toy).loc["P1S1"]
    assert np.isnan(row["mask_iou"])
    assert row["tre_um"] > 0


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ((np.nan, np.nan, 100), "error not known"),
        ((20, 40, 100), "single spots (error at most 40 um"),
        ((20, 70, 100), "neighbourhoods of 1 ring of spots (error 20 um), not single spots"),
        ((130, 300, 100), "neighbourhoods of 2 rings of spots"),
        ((130, 300, np.nan), "about 130 um"),
    ],
)
def test_resolution(errors, text):
    assert resolution(*errors).startswith(text)

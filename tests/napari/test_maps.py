from __future__ import annotations

import numpy as np
import pytest

from stmsi.napari._metabolite_maps import MetaboliteMaps, blend


@pytest.fixture
def source(predicted):
    return MetaboliteMaps(predicted)


def test_search_by_part_of_the_name(source):
    found = source.search("pc(3")
    names = source.features.loc[found, "name"]
    assert len(names) > 1
    assert names.str.contains("PC(3", regex=False).all()
    assert source.search("  ") == list(source.features.index)


def test_search_by_mz(source):
    mz = source.features["mz"].iloc[4]
    shifted = mz * (1 + 8e-6)
    assert source.search(f"{shifted:.6f}") == [source.features.index[4]]
    assert source.search(f"m/z {shifted:.6f}", ppm=10) == [source.features.index[4]]
    assert source.search(f"{shifted:.6f}".replace(".", ",")) == [source.features.index[4]]
    assert source.search(f"{shifted:.6f}", ppm=5) == []


def test_the_nearest_mz_comes_first(source):
    _, second = source.features["mz"].iloc[:2]
    found = source.search(str(second), ppm=1e6)
    assert found[0] == source.features.index[1]
    assert source.features.index[0] in found


def test_a_number_may_be_part_of_a_name(source):
    found = source.search("28")
    assert source.features.loc[found, "name"].str.contains("28").all()
    assert found


def test_a_misspelt_name_is_not_found_and_finds_its_neighbours(source):
    assert source.search("simPC(28_0)") == []
    assert source.nearest("simPC(28_0)")[0] == "simPC_28_0"
    assert len(source.nearest("simPC(28_0)")) == 5
    assert source.nearest("simPC(28_0)", 2)[:1] == ["simPC_28_0"]
    assert source.nearest("zzzzzzzzzzzz") == []


def test_an_mz_that_is_not_found_has_the_nearest_ones(source):
    mz = source.features["mz"]
    text = f"{mz.iloc[3] + 0.01:.4f}"
    assert source.search(text) == []
    assert source.nearest(text, 2) == list((mz - float(text)).abs().sort_values().index[:2])


def test_a_section_knows_what_it_has(predicted):
    st = predicted.tables["st"]
    here = (st.obs["sample"] == "P2S1").to_numpy()
    st.obsm["msi"].loc[here] = np.nan
    source = MetaboliteMaps(predicted)
    assert source.roles(np.flatnonzero(here)) == {"predicted", "interval width", "P(present)"}
    assert source.roles(np.flatnonzero(~here)) == {
        "measured",
        "predicted",
        "predicted - measured",
        "interval width",
        "P(present)",
    }


def test_a_blend_is_of_values():
    measured, predicted = np.array([0.0, 2, np.nan]), np.array([4.0, 4, 4])
    np.testing.assert_array_equal(blend(measured, predicted, 0.25), [1.0, 2.5, np.nan])
    np.testing.assert_array_equal(blend(measured, predicted, 1.0), predicted)  # no NaN from a share of 0
    np.testing.assert_array_equal(blend(measured, predicted, 0.0), measured)


def test_trust(source, mapped):
    assert source.trust("simPC_28_0") == ("high", "held-out correlation 0.80")
    st = mapped.tables["st"]
    for key in ("msi_pred", "msi_pred_presence", "msi_pred_lower", "msi_pred_upper"):
        del st.obsm[key]
    del st.uns["msi_pred"]
    assert MetaboliteMaps(mapped).trust("simPC_28_0") == ("", "")


def test_a_metabolite_that_only_one_side_knows(predicted):
    st = predicted.tables["st"]
    st.obsm["msi"] = st.obsm["msi"].drop(columns="simPC_28_0")
    source = MetaboliteMaps(predicted)
    rows = np.arange(10)
    maps = source.maps("simPC_28_0", rows)
    assert np.isnan(maps["measured"]).all()
    assert np.isfinite(maps["predicted"]).all()


def test_after_a_round_trip(predicted, through_zarr):
    back = MetaboliteMaps(through_zarr(predicted))
    assert back.trust("simPC_28_0") == ("high", "held-out correlation 0.80")
    assert back.resolve("simPC(28:0)") == "simPC_28_0"

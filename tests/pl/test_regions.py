"""pl.regions."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import stmsi


def colours_of(ax):
    return ax.collections[-1].get_facecolor()[:, :3]


def test_picture(mapped, same_picture):
    same_picture(stmsi.pl.regions(mapped, "domain", return_fig=True), "regions")


def test_one_colour_for_a_label_in_all_sections(mapped):
    axes = stmsi.pl.regions(mapped, "domain")
    st = mapped.tables["st"]
    seen = {}
    for ax in axes:
        rows = (st.obs["sample"] == ax.get_title()).to_numpy()
        for label, colour in zip(st.obs["domain"][rows], map(tuple, colours_of(ax).tolist()), strict=True):
            assert seen.setdefault(label, colour) == colour
    assert len(set(seen.values())) == len(seen) == 4
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == sorted(seen)


def test_spots_without_a_label_are_grey_and_palettes_are_taken(mapped):
    st = mapped.tables["st"].copy()
    st.obs["part"] = pd.Categorical(["a", None] * (st.n_obs // 2), categories=["a", "b"])
    st.uns["part_colors"] = ["#ff0000", "#00ff00"]
    ax = stmsi.pl.regions(st, "part", sample="P1S1")
    own = st.obs["part"][st.obs["sample"] == "P1S1"]
    np.testing.assert_allclose(colours_of(ax)[own == "a"], [to_rgb("#ff0000")] * (own == "a").sum())
    np.testing.assert_allclose(colours_of(ax)[own.isna()], [to_rgb("#dcdcdc")] * own.isna().sum())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a"], "only what is drawn"
    ax = stmsi.pl.regions(st, "part", sample="P1S1", palette={"a": "blue", "b": "black"})
    assert tuple(colours_of(ax)[np.flatnonzero(own == "a")[0]]) == to_rgb("blue")


def test_labels_of_pixels(mapped):
    ax = stmsi.pl.regions(mapped, "patient", table_key="msi", sample="P2S1")
    assert len(colours_of(ax)) == (mapped.tables["msi"].obs["sample"] == "P2S1").sum()


def test_what_has_no_labels(mapped):
    with pytest.raises(KeyError, match="Did you mean 'domain'"):
        stmsi.pl.regions(mapped, "domains")
    with pytest.raises(ValueError, match=r"holds numbers .* stmsi.pl.spatial"):
        stmsi.pl.regions(mapped, "msi_coverage")
    with pytest.raises(ValueError, match="no colour for 'domain2'"):
        stmsi.pl.regions(mapped, "domain", palette=["red"])
    st = mapped.tables["st"].copy()
    st.obs["name"] = st.obs_names
    with pytest.raises(ValueError, match="of which a picture can show 60"):
        stmsi.pl.regions(st, "name")

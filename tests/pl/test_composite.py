"""pl.composite."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import stmsi

NAMES = ["simPC(28:0)", "simPC(33:1)"]


def test_picture(mapped, same_picture):
    same_picture(stmsi.pl.composite(mapped, NAMES, table_key="msi", return_fig=True), "composite")


def test_colours_add_up(mapped):
    ax = stmsi.pl.composite(mapped, NAMES, sample="P1S1", colors=["red", "blue"], percentiles=(0, 100))
    st = mapped.tables["st"]
    rows = (st.obs["sample"] == "P1S1").to_numpy()
    values = st.obsm["msi"][["simPC_28_0", "simPC_33_1"]].to_numpy()[rows]
    known = ~np.isnan(values).any(axis=1)
    found = ax.collections[-1].get_facecolor()[:, :3]
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    share = (values - low) / (high - low)
    np.testing.assert_allclose(found[known][:, [0, 2]], share[known], atol=1e-6)
    assert not found[known][:, 1].any()
    np.testing.assert_allclose(found[~known], [to_rgb("#dcdcdc")] * (~known).sum())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == NAMES


def test_ions_on_their_pixels(mapped):
    axes = stmsi.pl.composite(mapped, NAMES, table_key="msi")
    assert [ax.get_title() for ax in axes] == ["P1S1", "P2S1", "P3S1"]
    assert len(axes[0].collections[-1].get_paths()) == (mapped.tables["msi"].obs["sample"] == "P1S1").sum()
    plt.close("all")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (NAMES[:1], {}, "two or three names"),
        ([*NAMES, "simPC_29_1", "simPC_30_2"], {}, "found 4 names"),
        (NAMES, {"colors": ["red"]}, "1 colours"),
    ],
)
def test_what_is_no_composite(mapped, names, options, message):
    with pytest.raises(ValueError, match=message):
        stmsi.pl.composite(mapped, names, **options)

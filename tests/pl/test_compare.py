"""pl.compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import stmsi
from stmsi._data.training_marks import write_marks

if TYPE_CHECKING:
    from spatialdata import SpatialData

METABOLITE = "simPC_33_1"


def spots_of(ax) -> EllipseCollection:
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return found


def test_picture(mapped: SpatialData, predicted, same_picture) -> None:
    predicted(mapped.tables["st"], bounds=True)
    figure = stmsi.pl.compare(mapped, ["simPC(28:0)", METABOLITE], sample="P1S1", return_fig=True)
    same_picture(figure, "compare")


def test_one_norm_and_a_diverging_residual(st, predicted) -> None:
    predicted(st)
    measured, guess, residual = stmsi.pl.compare(st, METABOLITE, sample="P1S1")
    assert spots_of(measured).norm is spots_of(guess).norm
    own = (st.obs["sample"] == "P1S1").to_numpy()
    y, p = (st.obsm[k][METABOLITE].to_numpy()[own].astype(float) for k in ("msi", "msi_pred"))
    limits = np.nanpercentile(np.concatenate([y, p]), [1, 99])
    np.testing.assert_allclose([spots_of(guess).norm.vmin, spots_of(guess).norm.vmax], limits)
    norm = spots_of(residual).norm
    assert norm.vmin == -norm.vmax
    assert spots_of(residual).get_cmap().name == "RdBu_r"
    np.testing.assert_allclose(spots_of(residual).get_array().filled(np.nan), p - y, rtol=1e-6)


def test_scores_in_the_title(st, predicted) -> None:
    predicted(st)
    own = (st.obs["sample"] == "P1S1").to_numpy()
    part = {k: st.obsm[k][METABOLITE].to_numpy()[own] for k in ("msi", "msi_pred", "msi_presence", "msi_pred_presence")}
    pearson = stmsi.metrics.pearson(part["msi"], part["msi_pred"])[0]
    auroc = stmsi.metrics.auroc(part["msi_presence"], part["msi_pred_presence"])[0]
    title = stmsi.pl.compare(st, METABOLITE, sample="P1S1")[1].get_title()
    assert title == f"predicted\nPearson {pearson:.2f}, AUROC {auroc:.2f}"
    del st.obsm["msi_pred_presence"]
    assert "AUROC" not in stmsi.pl.compare(st, METABOLITE, sample="P1S1")[1].get_title()


def test_scores_of_training_spots_are_marked(st, predicted) -> None:
    predicted(st)
    st.uns["msi_pred"]["model"] = {"class": "HurdleLinear"}
    own, measured = (st.obs["sample"] == "P1S1").to_numpy(), st.obsm["msi"].notna().any(axis=1).to_numpy()

    def title() -> str:
        return stmsi.pl.compare(st, METABOLITE, sample="P1S1")[1].get_title().replace("\n", " ")

    assert title().endswith("(training spots?)"), "a prediction without marks"
    for where, mark in ((own & measured, "(training spots)"), (~own, ""), (own & ~measured, "")):
        write_marks(st, "msi_pred", np.where(where, "yes", "no"))
        assert title().endswith(mark)
        assert ("training" in title()) == bool(mark)
    write_marks(st, "msi_pred", np.where(np.arange(st.n_obs) % 2, "yes", "no"))
    assert title().endswith("(partly training spots)")


def test_rows_and_interval_width(st, predicted) -> None:
    predicted(st, bounds=True)
    axes = stmsi.pl.compare(st, ["simPC(28:0)", METABOLITE], sample="P2S1")
    assert len(axes) == 8
    assert [axes[i].get_title().split("\n") for i in (0, 4)] == [
        ["simPC(28:0) [M+H]+", "m/z 518.9531", "measured"],
        ["simPC(33:1) [M+H]+", "m/z 723.0786", "measured"],
    ]
    assert axes[3].get_title() == "interval width"
    st.uns["msi_pred"]["params"] = {"coverage": 0.9}
    last = stmsi.pl.compare(st, METABOLITE, sample="P2S1")[3]
    assert last.get_title() == "90 % interval width"
    assert last.child_axes[0].get_ylabel().split("\n") == ["90 % interval width", "log1p intensity (a.u.)"]
    own = (st.obs["sample"] == "P2S1").to_numpy()
    width = (st.obsm["msi_pred_upper"] - st.obsm["msi_pred_lower"])[METABOLITE].to_numpy()[own]
    np.testing.assert_allclose(spots_of(axes[7]).get_array(), width, rtol=1e-5)


@pytest.mark.parametrize("how", ["no MSI in the section", "no MSI at all", "another metabolite"])
def test_not_measured(st, predicted, how: str) -> None:
    predicted(st)
    if how == "no MSI in the section":
        st.obsm["msi"].loc[(st.obs["sample"] == "P2S1").to_numpy()] = np.nan
    elif how == "no MSI at all":
        del st.obsm["msi"], st.obsm["msi_presence"]
    else:
        st.obsm["msi"] = st.obsm["msi"].drop(columns=METABOLITE)
        st.obsm["msi_presence"] = st.obsm["msi_presence"].drop(columns=METABOLITE)
    axes = stmsi.pl.compare(st, METABOLITE, sample="P2S1")
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [["not measured"], [], ["not measured"]]
    assert "Pearson" not in axes[1].get_title()
    axes[0].figure.canvas.draw()


def test_section_must_be_named_where_there_are_several(st, predicted) -> None:
    predicted(st)
    with pytest.raises(ValueError, match=r"3 sections; name one.*'P1S1'"):
        stmsi.pl.compare(st, METABOLITE)
    with pytest.raises(ValueError, match="one section"):
        stmsi.pl.compare(st, METABOLITE, sample=["P1S1", "P2S1"])
    one = st[(st.obs["sample"] == "P1S1").to_numpy()].copy()
    assert len(stmsi.pl.compare(one, METABOLITE)) == 3


def test_errors(st, predicted) -> None:
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites writes"):
        stmsi.pl.compare(st, METABOLITE, sample="P1S1")
    predicted(st)
    with pytest.raises(KeyError, match="Did you mean 'simPC_33_1'"):
        stmsi.pl.compare(st, "simPC_33_11", sample="P1S1")


def test_given_axes(st, predicted) -> None:
    predicted(st)
    _, axes = plt.subplots(1, 3)
    assert stmsi.pl.compare(st, METABOLITE, sample="P1S1", ax=axes) == list(axes)
    with pytest.raises(ValueError, match="1 axes, but there are 3 panels"):
        stmsi.pl.compare(st, METABOLITE, sample="P1S1", ax=axes[0])

"""What all plots share: arguments, styles, scale bars, units."""

from __future__ import annotations

import inspect

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib_scalebar.scalebar import ScaleBar

import stmsi

PLOTS = [getattr(stmsi.pl, name) for name in stmsi.pl.__all__]
PANELS = {"compare": 4, "presence_curves": 2, "calibration": 2, "plot_realism": 8}
PLOTS += [stmsi.experimental.plot_realism, stmsi.experimental.plot_abstention]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_every_plot_takes_what_those_of_scanpy_take(plot) -> None:
    taken = inspect.signature(plot).parameters
    defaults = {"title": None, "figsize": None, "ax": None, "show": None, "return_fig": False}
    assert {name: taken[name].default for name in defaults if name in taken} == defaults
    assert all(taken[name].kind is inspect.Parameter.KEYWORD_ONLY for name in defaults)
    for name in defaults:
        assert f"\n{name}\n" in inspect.getdoc(plot), "described"


@pytest.fixture
def calls(mapped, predicted, attended, scores):
    """A cheap call of every plot."""
    st = mapped.tables["st"]
    predicted(st, bounds=True)
    attended(st)
    table = pd.DataFrame({"pearson": [0.1, 0.5, 0.4], "morans_i": [0.0, 0.6, 0.3]}, index=list("abc"))
    losses = {"train_loss": [2.0, 1.0], "validation_loss": [2.1, 1.5]}
    curve = pd.DataFrame({"by": "interval", "metabolite": "m", "share": [0.5, 1.0], "relative_mae": [0.5, 1.0]})
    auc = pd.DataFrame({"statistic": ["auc"], "draw": 0, "measured": 0.5, "synthetic": 0.6, "at": np.nan})
    name, own = "simPC(28:0)", {"sample": "P1S1"}
    return {
        "spatial": (stmsi.pl.spatial, (mapped, name), own),
        "composite": (stmsi.pl.composite, (mapped, [name, "simPC(33:1)"]), own),
        "regions": (stmsi.pl.regions, (mapped, "domain"), own),
        "spectrum": (stmsi.pl.spectrum, (mapped,), own),
        "compare": (stmsi.pl.compare, (mapped, name), own),
        "alignment": (stmsi.pl.alignment, (mapped,), own),
        "attention_heatmap": (stmsi.pl.attention_heatmap, (mapped,), {"n_genes": 5}),
        "attention_spatial": (stmsi.pl.attention_spatial, (mapped, name), {"n_top": 1, **own}),
        "performance": (stmsi.pl.performance, (scores,), {}),
        "presence_curves": (stmsi.pl.presence_curves, (mapped,), {}),
        "calibration": (stmsi.pl.calibration, (mapped,), {}),
        "reliability": (stmsi.pl.reliability, (table,), {}),
        "history": (stmsi.pl.history, (losses,), {}),
        "plot_realism": (stmsi.experimental.plot_realism, (auc,), {}),
        "plot_abstention": (stmsi.experimental.plot_abstention, (curve,), {}),
    }


def _is_legible(colour, back) -> bool:
    """Contrast of at least 3, as WCAG 2 asks of large text."""
    light = sorted(
        float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
        for c in (np.array(to_rgb(colour)), np.array(to_rgb(back)))
    )
    return (light[1] + 0.05) / (light[0] + 0.05) >= 3


def test_title_figsize_and_dark_style(calls) -> None:
    """Every plot on a dark background: its text can be read, it has the size and the titles that were asked for."""
    assert set(calls) == {plot.__name__ for plot in PLOTS}
    with plt.style.context("dark_background"):
        for name, (plot, data, options) in calls.items():
            given = [f"panel {i}" for i in range(PANELS.get(name, 1))]
            figure = plot(*data, figsize=(9, 7), title=given, return_fig=True, **options)
            assert isinstance(figure, Figure), name
            assert tuple(figure.get_size_inches()) == (9, 7), name
            assert [a.get_title() for a in figure.axes if a.get_title()] == given, name
            texts = [t for t in figure.findobj(Text) if t.get_text().strip()]
            assert [t.get_text() for t in texts if not _is_legible(t.get_color(), "black")] == [], name
            bars = [artist for a in figure.axes for artist in a.artists if isinstance(artist, ScaleBar)]
            assert all(_is_legible(bar.color, "black") for bar in bars), name
            plt.close(figure)


def test_wrong_titles_and_sizes(st) -> None:
    with pytest.raises(ValueError, match="title holds 2 titles, but there are 1 panels"):
        stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1", title=["a", "b"])
    with pytest.raises(ValueError, match="figsize is the width and height"):
        stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1", figsize=(3, 0))
    assert plt.get_fignums() == []


def test_an_empty_title_takes_all_away(st) -> None:
    axes = stmsi.pl.spatial(st, ["simPC_28_0", "simPC_29_1"], sample="P1S1", title="")
    assert [ax.get_title() for ax in axes] == ["", ""]


def test_spots_without_a_value_follow_the_style(st) -> None:
    with plt.style.context("dark_background"):
        ax = stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1")
        assert max(to_rgb(ax.collections[0].get_cmap().get_bad())) < 0.3


def array(pitch: float, *, places: bool) -> ad.AnnData:
    """Spots on a hexagonal array, `pitch` units apart."""
    row, col = (a.ravel() for a in np.indices((9, 9)))
    col = 2 * col + row % 2
    obs = pd.DataFrame(
        {"array_row": row, "array_col": col} if places else {"of": 0}, index=[f"s{i}" for i in range(81)]
    )
    table = ad.AnnData(np.ones((81, 1), np.float32), obs=obs)
    table.obsm["spatial"] = np.column_stack([col * pitch / 2, row * pitch * np.sqrt(3) / 2])
    table.obs["x"] = np.arange(81.0)
    return table


@pytest.mark.parametrize("told", ["micrometres", "array", "scale factors", "nothing"])
def test_scale_bars_are_in_micrometres_or_not_there(told: str) -> None:
    pitch = 100.0 if told == "micrometres" else 250.0
    table = array(pitch, places=told == "array")
    if told == "scale factors":
        table.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 65 * 2.5}}}
    ax = stmsi.pl.spatial(table, "x")
    bars = [a.dx for a in ax.artists if isinstance(a, ScaleBar)]
    assert bars == ([] if told == "nothing" else pytest.approx([100 / pitch]))
    (spots,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    np.testing.assert_allclose(2 * spots._widths, 55 * pitch / 100, rtol=1e-6)  # true to their distance in any unit


def test_a_plot_asks_for_no_argument_that_it_lacks(caplog) -> None:
    table = array(250.0, places=False)
    table.uns["spatial"] = {name: {"scalefactors": {"spot_diameter_fullres": 160}} for name in ("one", "two")}
    ax = stmsi.pl.spatial(table, "x")
    assert caplog.messages == []  # um_per_unit= is of stmsi.pp.combine
    assert not any(isinstance(a, ScaleBar) for a in ax.artists)


def test_pixels_of_a_table_alone_are_squares(mapped) -> None:
    msi = mapped.tables["msi"].copy()
    ax = stmsi.pl.spatial(msi, "simPC_28_0", sample="P1S1")
    (pixels,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    corners = pixels.get_paths()[0].vertices
    np.testing.assert_allclose(np.ptp(corners, axis=0), 50, rtol=1e-3)
    np.testing.assert_allclose(corners[:4].mean(axis=0), msi.obsm["spatial"][0], atol=1e-6)
    assert [a.dx for a in ax.artists if isinstance(a, ScaleBar)] == [1]


def test_pixels_without_a_place_on_the_raster_are_drawn(mapped) -> None:
    msi = mapped.tables["msi"].copy()
    msi.obs["row"] = msi.obs["row"].astype(float).mask(np.arange(msi.n_obs) == 0)
    ax = stmsi.pl.spatial(msi, "simPC_28_0", sample="P1S1")
    assert not any(isinstance(c, PolyCollection) for c in ax.collections)


def test_every_colour_bar_has_a_label(mapped, predicted) -> None:
    st = mapped.tables["st"]
    predicted(st, bounds=True)
    names = ["simPC_28_0", "msi_coverage", "msi_pred_ood", "array_row", st.var_names[0]]
    axes = stmsi.pl.spatial(mapped, names, sample="P1S1")
    labels = [ax.child_axes[0].get_ylabel() for ax in axes]
    assert labels == ["log1p intensity (a.u.)", "share of the spot", "score", "value", "counts"]


def test_predictions_and_draws_under_other_keys_have_the_unit_of_the_measurement(mapped) -> None:
    st = mapped.tables["st"]
    stmsi.tl.predict_metabolites(mapped, "ridge", key_added="mine")
    stmsi.tl.sample_metabolites(mapped, "ridge", n_samples=1, rng=0)
    st.obsm["stranger"] = st.obsm["mine"].copy()
    units = {}
    for key in ("mine", "msi_sample_0", "stranger"):
        ax = stmsi.pl.spatial(mapped, "simPC_28_0", metabolite_key=key, sample="P1S1")
        units[key] = ax.child_axes[0].get_ylabel()
    logged = "log1p intensity (a.u.)"
    assert units == {"mine": logged, "msi_sample_0": logged, "stranger": "intensity (a.u.)"}


def test_one_metabolite_is_drawn_as_bars(st, attended, same_picture) -> None:
    attended(st)
    stmsi.pp.knowledge_prior(st, {"simPC(29:1)": [st.var_names[4]]})
    axes = stmsi.pl.attention_heatmap(st, metabolites="simPC(29:1)", n_genes=6, group=["cortex", "white matter"])
    assert [ax.get_title().split("\n")[:3] for ax in axes] == [
        ["simPC(29:1) [M+H]+", "m/z 556.8362", group] for group in ("cortex", "white matter")
    ]
    assert axes[0].get_xlabel() == "contribution\nlog1p intensity (a.u.)"
    genes = [t.get_text() for t in axes[0].get_yticklabels()]
    stored = st.varm["msi_attention_effects_cortex"].loc[genes, "simPC_29_1"]
    np.testing.assert_allclose([bar.get_width() for bar in axes[0].patches], stored, rtol=1e-5)
    assert axes[0].get_xlim() == axes[1].get_xlim()
    same_picture(axes[0].figure, "attention_heatmap_bars")
    ax = stmsi.pl.attention_heatmap(st, metabolites="simPC(29:1)", genes=list(st.var_names[:6]))
    assert [t.get_text() for t in ax.get_yticklabels()] == list(st.var_names[:6])
    assert ax.lines[0].get_xydata()[:, 1].tolist() == [4.0]


def test_models_stand_in_one_order_with_the_baseline(scores) -> None:
    scores.loc[scores["model"] == "baseline", "pearson"] = np.nan
    found = []
    for stage, metric in (("intensity", "pearson"), ("intensity", "r2"), ("presence", "auroc")):
        ax = stmsi.pl.performance(scores, stage=stage, metric=metric)
        found.append([t.get_text() for t in ax.get_yticklabels()])
        if metric == "pearson":
            assert ax.texts[-1].get_text() == "no score"
    assert found == [["HurdleNet", "HurdleLinear", "baseline"]] * 3
    scores.loc[scores["model"] == "HurdleNet", "pearson"] = np.nan
    ax = stmsi.pl.performance(scores, metric="r2")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["HurdleLinear", "HurdleNet", "baseline"], (
        "scored before not"
    )
    order = ["baseline", "HurdleNet", "HurdleLinear"]
    ax = stmsi.pl.performance(scores.assign(model=pd.Categorical(scores["model"], order)))
    assert [t.get_text() for t in ax.get_yticklabels()] == order


def test_constant_predictions_count_in_the_order_of_models() -> None:
    rows = [(model, f"m{i}", value) for model, value in (("tries", 0.5), ("gives up", 0.6)) for i in range(3)]
    scores = pd.DataFrame(rows, columns=["model", "metabolite", "pearson"]).assign(
        sample="s", stage="intensity", reason=""
    )
    scores.loc[[3, 4], ["pearson", "reason"]] = np.nan, "constant prediction"
    ax = stmsi.pl.performance(scores)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["tries", "gives up"]

"""pl.spatial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.transforms import Affine2D
from matplotlib_scalebar.scalebar import ScaleBar
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Scale

import stmsi

if TYPE_CHECKING:
    from spatialdata import SpatialData

GREY = to_rgba("#dcdcdc")


def spots_of(ax) -> EllipseCollection | PolyCollection:
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection | PolyCollection)]
    return found


def test_picture(mapped: SpatialData, same_picture) -> None:
    figure = stmsi.pl.spatial(
        mapped, ["simPC(28:0)", "simPC_33_1", "msi_coverage"], sample=["P1S1", "P2S1"], return_fig=True
    )
    same_picture(figure, "spatial")


def test_one_panel_per_metabolite_and_section(mapped: SpatialData) -> None:
    axes = stmsi.pl.spatial(mapped, ["simPC(28:0)", "simPC_33_1"])
    assert [ax.get_title() for ax in axes] == [
        f"{name}\n{sample}"
        for name in ("simPC(28:0) [M+H]+\nm/z 518.9531", "simPC(33:1) [M+H]+\nm/z 723.0786")
        for sample in ("P1S1", "P2S1", "P3S1")
    ]
    # the three sections of a metabolite stay in one row
    assert axes[0].get_subplotspec().get_gridspec().ncols == 3


def test_frame_of_a_panel(mapped: SpatialData) -> None:
    ax = stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1")
    assert ax.get_title() == "simPC(28:0) [M+H]+\nm/z 518.9531"
    assert ax.yaxis_inverted()
    assert not ax.xaxis_inverted()
    assert ax.get_aspect() == 1
    assert list(ax.get_xticks()) == []
    (bar,) = [a for a in ax.artists if isinstance(a, ScaleBar)]
    assert bar.dx == 1
    plain = stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", scalebar=False)
    assert not [a for a in plain.artists if isinstance(a, ScaleBar)]


def test_values_colours_and_grey(mapped: SpatialData) -> None:
    st = mapped.tables["st"]
    values = st.obsm["msi"]["simPC_28_0"].to_numpy()[(st.obs["sample"] == "P1S1").to_numpy()]
    ax = stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1")
    spots = spots_of(ax)
    np.testing.assert_allclose(spots.get_array().filled(np.nan), values)
    assert spots.get_cmap().name == "viridis"
    ax.figure.canvas.draw()
    grey = (spots.get_facecolor() == GREY).all(axis=1)
    np.testing.assert_array_equal(grey, np.isnan(values))
    assert 0 < grey.sum() < len(grey)


def test_clipped_at_percentiles(mapped: SpatialData) -> None:
    values = mapped.tables["st"].obsm["msi"]["simPC_36_0"].to_numpy()
    norm = spots_of(stmsi.pl.spatial(mapped, "simPC_36_0")[0]).norm
    np.testing.assert_allclose([norm.vmin, norm.vmax], np.nanpercentile(values, [1, 99]), rtol=1e-5)
    norm = spots_of(stmsi.pl.spatial(mapped, "simPC_36_0", percentiles=(0, 100))[0]).norm
    np.testing.assert_allclose([norm.vmin, norm.vmax], [np.nanmin(values), np.nanmax(values)], rtol=1e-5)


def test_rare_metabolite_does_not_vanish(st) -> None:
    st.obsm["msi"].loc[:, "simPC_28_0"] = 0.0
    st.obsm["msi"].loc[st.obs_names[0], "simPC_28_0"] = 3.0
    norm = spots_of(stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1")).norm
    assert (norm.vmin, norm.vmax) == (0, 3)


def test_constant_metabolite(st) -> None:
    st.obsm["msi"].loc[:, "simPC_28_0"] = 2.0
    ax = stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1")
    ax.figure.canvas.draw()
    assert spots_of(ax).norm.vmin == 2


def test_norm_shared_by_sections(mapped: SpatialData) -> None:
    first, second, _ = stmsi.pl.spatial(mapped, "simPC_28_0")
    assert spots_of(first).norm is spots_of(second).norm
    first, second, _ = stmsi.pl.spatial(mapped, "simPC_28_0", share_norm=False)
    assert spots_of(first).norm.vmax != spots_of(second).norm.vmax


def test_limits_and_norms(mapped: SpatialData) -> None:
    norm = spots_of(stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", vmin=-1, vmax=9)).norm
    assert (norm.vmin, norm.vmax) == (-1, 9)
    own = Normalize(0, 4)
    axes = stmsi.pl.spatial(mapped, ["simPC_28_0", "simPC_33_1"], sample="P1S1", norm=own)
    assert all(spots_of(ax).norm is own for ax in axes)
    with pytest.raises(ValueError, match="either norm or vmin"):
        stmsi.pl.spatial(mapped, "simPC_28_0", norm=own, vmin=0)
    with pytest.raises(ValueError, match="smaller than vmax"):
        stmsi.pl.spatial(mapped, "simPC_28_0", vmin=2, vmax=1)
    with pytest.raises(ValueError, match="two rising numbers"):
        stmsi.pl.spatial(mapped, "simPC_28_0", percentiles=(99, 1))


def test_absent_is_not_grey_in_a_log_norm(st) -> None:
    ax = stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1", norm=LogNorm())
    ax.figure.canvas.draw()
    spots = spots_of(ax)
    values = st.obsm["msi"]["simPC_28_0"].to_numpy()[(st.obs["sample"] == "P1S1").to_numpy()]
    assert (values == 0).any()
    np.testing.assert_array_equal((spots.get_facecolor() == GREY).all(axis=1), np.isnan(values))


@pytest.mark.parametrize("key", ["msi_presence", "msi_pred_presence"])
def test_presence_spans_0_to_1(st, predicted, key: str) -> None:
    predicted(st)
    norm = spots_of(stmsi.pl.spatial(st, "simPC(28:0)", metabolite_key=key, sample="P1S1")).norm
    assert (norm.vmin, norm.vmax) == (0, 1)


def test_columns_of_obs(st, predicted) -> None:
    predicted(st)
    ax = stmsi.pl.spatial(st, "msi_pred_ood", sample="P1S1")
    np.testing.assert_allclose(spots_of(ax).get_array(), st.obs["msi_pred_ood"][st.obs["sample"] == "P1S1"])
    del st.obsm["msi"]
    assert spots_of(stmsi.pl.spatial(st, "msi_coverage", sample="P1S1")).norm.vmax == 1
    st.obs["flag"] = True
    assert stmsi.pl.spatial(st, "flag", sample="P1S1").get_title() == "flag"
    with pytest.raises(ValueError, match="not numeric"):
        stmsi.pl.spatial(st, "domain")


def test_true_size(mapped: SpatialData) -> None:
    st = mapped.tables["st"]

    def width(data, **options) -> float:
        spots = spots_of(stmsi.pl.spatial(data, "simPC_28_0", sample="P1S1", **options))
        return float(np.unique(spots.get_widths())[0])

    assert width(mapped) == 55
    assert width(st) == 55
    assert width(st, spot_diameter=8) == 8
    old = mapped.shapes["P1S1_spots"]
    circles = gpd.GeoDataFrame({"radius": 20.0}, geometry=list(old.geometry), index=old.index)
    del mapped.shapes["P1S1_spots"]
    # a radius of 20 pixels of 2 um each
    mapped.shapes["P1S1_spots"] = ShapesModel.parse(circles, transformations={"P1S1": Scale([2.0, 2.0], ("x", "y"))})
    assert width(mapped) == pytest.approx(80)
    with pytest.raises(ValueError, match="positive number"):
        width(st, spot_diameter=0)


def test_drawn_size_in_pixels(st) -> None:
    """A spot is as large on the canvas as its diameter in data units."""
    ax = stmsi.pl.spatial(st, "simPC_28_0", sample="P1S1")
    ax.figure.canvas.draw()
    spots = spots_of(ax)
    box = spots.get_paths()[0].get_extents(Affine2D(spots.get_transforms()[0]) + spots.get_transform())
    (x0, _), (x1, _) = ax.transData.transform([(0, 0), (55, 0)])
    assert box.width == pytest.approx(x1 - x0, rel=0.01)


def test_bins_are_polygons(mapped: SpatialData) -> None:
    old = mapped.shapes["P1S1_spots"]
    xy = shapely.get_coordinates(old.geometry) / 2
    squares = gpd.GeoDataFrame(geometry=shapely.box(*(xy - 10).T, *(xy + 10).T), index=old.index)
    del mapped.shapes["P1S1_spots"]
    mapped.shapes["P1S1_spots"] = ShapesModel.parse(squares, transformations={"P1S1": Scale([2.0, 2.0], ("x", "y"))})
    spots = spots_of(stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1"))
    assert isinstance(spots, PolyCollection)
    assert len(spots.get_paths()) == len(old)
    assert np.ptp(spots.get_paths()[0].vertices, axis=0) == pytest.approx([40, 40])


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_histology_behind(mapped: SpatialData, scale_factors: list[int] | None) -> None:
    pixels = np.zeros((3, 80, 100), dtype=np.uint8)
    pixels[0] = 255
    mapped.images["P1S1_he"] = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        scale_factors=scale_factors,
        transformations={"P1S1": Scale([12.0, 12.0], ("x", "y"))},
    )
    ax = stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", image=True)
    (picture,) = ax.images
    assert tuple(picture.get_extent()) == (0, 100, 80, 0)
    corner = picture.get_transform().transform((100, 80))
    np.testing.assert_allclose(ax.transData.inverted().transform(corner), [1200, 960])
    np.testing.assert_allclose(picture.get_array()[0, 0], [1, 0, 0])
    with pytest.raises(KeyError, match="No image 'P2S1_he'"):
        stmsi.pl.spatial(mapped, "simPC_28_0", image=True)
    with pytest.raises(TypeError, match="needs a SpatialData"):
        stmsi.pl.spatial(mapped.tables["st"], "simPC_28_0", image=True)


def test_given_axes(mapped: SpatialData, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    figure, axes = plt.subplots(1, 2)
    out = stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", ax=axes[0], show=True)
    assert out is axes[0]
    assert stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", ax=axes[1], return_fig=True) is figure
    assert shown == []
    with pytest.raises(ValueError, match="2 axes, but there are 3 panels"):
        stmsi.pl.spatial(mapped, "simPC_28_0", ax=axes)
    stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1")
    assert shown == []
    stmsi.pl.spatial(mapped, "simPC_28_0", sample="P1S1", show=True)
    assert shown == [1]


def test_section_without_msi(st) -> None:
    st.obsm["msi"].loc[(st.obs["sample"] == "P2S1").to_numpy()] = np.nan
    axes = stmsi.pl.spatial(st, "simPC_28_0")
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [[], ["not measured"], []]


def test_errors(st) -> None:
    with pytest.raises(KeyError, match=r"simPC\(28:1\).*Did you mean.*simPC\(28:0\)"):
        stmsi.pl.spatial(st, "simPC(28:1)")
    with pytest.raises(KeyError, match="Did you mean 'msi_coverage'"):
        stmsi.pl.spatial(st, "msi_coverag")
    with pytest.raises(KeyError, match=r"stmsi\.tl\.predict_metabolites writes it"):
        stmsi.pl.spatial(st, "simPC_28_0", metabolite_key="msi_pred")
    with pytest.raises(KeyError, match=r"No section 'P1S9'.*Did you mean"):
        stmsi.pl.spatial(st, "simPC_28_0", sample="P1S9")
    with pytest.raises(ValueError, match="at least one metabolite"):
        stmsi.pl.spatial(st, [])
    with pytest.raises(ValueError, match="ncols"):
        stmsi.pl.spatial(st, "simPC_28_0", ncols=0)
    del st.obsm["spatial"]
    with pytest.raises(KeyError, match="spot centres in micrometres"):
        stmsi.pl.spatial(st, "simPC_28_0")


def test_width_of_the_interval(st, predicted) -> None:
    predicted(st)
    with pytest.raises(KeyError, match=r"'msi_pred_width' is the width.*predict_metabolites writes it"):
        stmsi.pl.spatial(st, "simPC_28_0", metabolite_key="msi_pred_width")
    predicted(st, bounds=True)
    ax = stmsi.pl.spatial(st, "simPC(28:0)", metabolite_key="msi_pred_width", sample="P1S1")
    own = (st.obs["sample"] == "P1S1").to_numpy()
    width = (st.obsm["msi_pred_upper"] - st.obsm["msi_pred_lower"])["simPC_28_0"][own]
    np.testing.assert_allclose(spots_of(ax).get_array(), width, rtol=1e-6)
    assert spots_of(ax).get_cmap().name == "plasma"
    assert "interval width" in ax.child_axes[0].get_ylabel()


def test_ion_images_are_pixels_in_their_place(mapped: SpatialData) -> None:
    msi = mapped.tables["msi"]
    ax = stmsi.pl.spatial(mapped, "simPC(28:0)", table_key="msi", sample="P1S1")
    assert ax.get_title() == "simPC(28:0) [M+H]+\nm/z 518.9531"
    pixels, rows = spots_of(ax), (msi.obs["sample"] == "P1S1").to_numpy()
    assert isinstance(pixels, PolyCollection)
    np.testing.assert_allclose(pixels.get_array(), msi[rows, "simPC_28_0"].X.toarray().ravel())
    # on the spots, where the alignment has put them
    spots = stmsi.pl.spatial(mapped, "simPC(28:0)", sample="P1S1")
    for side in ("get_xlim", "get_ylim"):
        np.testing.assert_allclose(getattr(ax, side)(), getattr(spots, side)(), atol=400)


def test_genes_and_layers(mapped: SpatialData) -> None:
    st = mapped.tables["st"].copy()
    st.layers["logs"] = np.log1p(st.X.toarray())
    st.var["gene_symbols"] = [f"sym{i}" for i in range(st.n_vars)]
    rows = (st.obs["sample"] == "P1S1").to_numpy()
    for name, layer in ((st.var_names[3], None), ("sym3", "logs")):
        ax = stmsi.pl.spatial(st, name, layer=layer, sample="P1S1")
        values = (st.X.toarray() if layer is None else st.layers[layer])[rows, 3]
        np.testing.assert_allclose(spots_of(ax).get_array(), values)
    with pytest.raises(KeyError, match="no layer 'log'"):
        stmsi.pl.spatial(st, "sym3", layer="log")
    with pytest.raises(KeyError, match="Did you mean"):
        stmsi.pl.spatial(mapped, "simPC(28:1)", table_key="msi")

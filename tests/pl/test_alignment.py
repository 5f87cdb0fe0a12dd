"""pl.alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
from matplotlib.collections import EllipseCollection, PathCollection, PolyCollection
from matplotlib.quiver import Quiver

import stmsi

if TYPE_CHECKING:
    from spatialdata import SpatialData


def only(ax, kind):
    (found,) = [c for c in ax.collections if isinstance(c, kind)]
    return found


@pytest.mark.parametrize("kind", ["overlay", "landmarks", "checkerboard"])
def test_picture(mapped: SpatialData, same_picture, kind: str) -> None:
    figure = stmsi.pl.alignment(mapped, kind=kind, sample=["P1S1", "P2S1"], return_fig=True)
    same_picture(figure, f"alignment_{kind}")


def test_overlay_shows_what_is_covered(mapped: SpatialData) -> None:
    ax = stmsi.pl.alignment(mapped, sample="P1S1")
    spots, pixels = only(ax, EllipseCollection), only(ax, PolyCollection)
    assert len(pixels.get_paths()) == len(mapped.shapes["P1S1_pixels"])
    covered = (spots.get_edgecolors()[:, 0] < 0.5).mean()
    del mapped.tables["st"].obs["msi_coverage"]
    report = stmsi.pp.alignment_report(mapped, intensities=False)
    assert covered == pytest.approx(report.loc["P1S1", "spots_covered"])
    assert 0.5 < covered < 1
    title = ax.get_title().splitlines()
    assert title[0] == "P1S1"
    assert title[1] == f"{covered:.0%} of the spots on pixels"
    assert title[2].startswith("IoU 0.")
    assert ax.yaxis_inverted()


def test_pixels_lie_where_the_alignment_puts_them(toy: SpatialData) -> None:
    stmsi.pp.align(toy, sample="P1S1", model="projective")
    ax = stmsi.pl.alignment(toy)
    drawn = np.array([p.vertices[:4].mean(axis=0) for p in only(ax, PolyCollection).get_paths()])
    baked = shapely.get_coordinates(toy.shapes["P1S1_pixels_warped"].centroid)
    np.testing.assert_allclose(drawn, baked, atol=0.5)
    left, right = ax.get_xlim()
    assert left < baked[:, 0].min() < baked[:, 0].max() < right


def test_arrows_go_from_the_aligned_landmarks_to_their_targets(toy: SpatialData) -> None:
    msi, st = (toy.points[f"P1S1_landmarks_{m}"][["x", "y"]].compute().to_numpy().copy() for m in ("msi", "st"))
    st[2] += [500, 300]
    stmsi.pp.align(toy, landmarks={"P1S1": (msi, st)}, robust="lmeds")
    record = toy.tables["msi"].uns["alignment"]["P1S1"]
    ax = stmsi.pl.alignment(toy, kind="landmarks", arrow_scale=4)
    arrows = only(ax, Quiver)
    kept = np.arange(len(st)) != 2
    np.testing.assert_allclose(arrows.XY, record["landmarks_moved"][kept])
    np.testing.assert_allclose(np.column_stack([arrows.U, arrows.V]), (st - record["landmarks_moved"])[kept])
    assert arrows.scale == pytest.approx(1 / 4)
    np.testing.assert_allclose(arrows.get_array(), record["tre_um"][kept])
    assert ax.get_title().splitlines()[1] == "similarity, arrows x 4, 1 left out"
    assert ax.get_title().splitlines()[2].startswith("TRE ")
    (crosses,) = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 1]
    np.testing.assert_allclose(crosses.get_offsets()[0], st[2])


def test_tiles_take_turns(mapped: SpatialData) -> None:
    ax = stmsi.pl.alignment(mapped, kind="checkerboard", sample="P1S1", tiles=4)
    spots, pixels = only(ax, EllipseCollection), only(ax, PolyCollection)
    assert spots.norm is pixels.norm
    n_spots, n_pixels = len(spots.get_array()), len(pixels.get_array())
    assert 0.3 < n_spots / len(mapped.shapes["P1S1_spots"]) < 0.7
    assert 0.3 < n_pixels / len(mapped.shapes["P1S1_pixels"]) < 0.7
    assert float(ax.get_title().split("r = ")[1]) > 0.7


def test_given_axes(mapped: SpatialData) -> None:
    figure, axes = plt.subplots(1, 2)
    out = stmsi.pl.alignment(mapped, sample=["P1S1", "P3S1"], ax=axes)
    assert list(out) == list(axes)
    assert stmsi.pl.alignment(mapped, sample="P1S1", ax=axes[0], return_fig=True) is figure
    with pytest.raises(ValueError, match="2 axes, but there are 3 panels"):
        stmsi.pl.alignment(mapped, ax=axes)


def test_errors(toy: SpatialData) -> None:
    with pytest.raises(ValueError, match="are not aligned; aligned: none"):
        stmsi.pl.alignment(toy)
    truth = toy.tables["st"].uns["truth"]["transformation"]
    stmsi.pp.align(toy, transformation={"P1S1": truth["P1S1"]})
    with pytest.raises(ValueError, match=r"Sections 'P2S1' are not aligned; aligned: 'P1S1'"):
        stmsi.pl.alignment(toy, sample="P2S1")
    with pytest.raises(ValueError, match=r"aligned without landmarks \(method 'given'\)"):
        stmsi.pl.alignment(toy, kind="landmarks")
    with pytest.raises(ValueError, match=r"kind='overlap' is not known.*Did you mean 'overlay'"):
        stmsi.pl.alignment(toy, kind="overlap")
    with pytest.raises(ValueError, match="tiles is a number of at least 2"):
        stmsi.pl.alignment(toy, kind="checkerboard", tiles=1)
    with pytest.raises(ValueError, match="arrow_scale is a positive number"):
        stmsi.pl.alignment(toy, kind="landmarks", arrow_scale=0)
    with pytest.raises(KeyError, match="No section 'P1S9'"):
        stmsi.pl.alignment(toy, sample="P1S9")
    with pytest.raises(TypeError, match="Expected a SpatialData"):
        stmsi.pl.alignment(toy.tables["st"])

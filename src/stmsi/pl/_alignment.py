"""Pixels and spots after alignment, one upon the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize

from stmsi._core.registration.agreement import canonical
from stmsi._core.registration.displacement import values_at_spots
from stmsi._data.checks import check_choice, listing, require_spatialdata
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.pl._colour_limits import clipped_limits, get_cmap
from stmsi.pl._metabolite_layers import table_samples
from stmsi.pl._panels import add_spots, colour_bar, get_axes, hand_back, panel_size, prepare_panel, scale_bar, wrap
from stmsi.pl._sections import load_section
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import INTENSITY_CMAP, STYLE, WIDTH_CMAP, ink
from stmsi.pp._alignment.section_geometry import Geometry, aligned, msi_components, section_geometry, st_components
from stmsi.pp._alignment_report import REACH, alignment_report, points_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.pl._sections import Section

AlignmentPlot = Literal["overlay", "landmarks", "checkerboard"]
_PIXELS = "#8fb8de"
_COVERED = "#1b3a57"
_UNCOVERED = "#d1495b"
_ARROW_SHARE = 0.08
"""Length of the longest arrow, as a share of the section's longer side."""


@shared_docs
def alignment(
    sdata: SpatialData,
    *,
    kind: AlignmentPlot = "overlay",
    sample: str | Sequence[str] | None = None,
    tiles: int = 6,
    arrow_scale: float | None = None,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
    sample_key: str = Key.obs.SAMPLE,
    ncols: int = 4,
    cmap: str | Colormap | None = None,
    image: bool = False,
    scalebar: bool = True,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw the aligned pixels upon the spots, in the ST frame.

    Parameters
    ----------
    sdata
        After :func:`stmsi.pp.align`.
    kind
        ``"overlay"``: pixels, and spots as rings, dark where a pixel covers their centre and red where none does.
        ``"landmarks"``: an arrow from the aligned place of each landmark to its true place, coloured by the target
        registration error when that landmark is left out (um); crosses are landmarks that were left out as wrong.
        ``"checkerboard"``: tiles of spots and pixels in turn, coloured by the first pair of canonical components of genes
        and ions; structures should continue from tile to tile.
    sample
        Sections to draw; `None`: all that are aligned.
    tiles
        Tiles of the checkerboard along the longer side.
    arrow_scale
        Magnification of the arrows; `None`: so that the longest can be seen. The title tells it.
    %(tables)s
    msi_table_key
        The MSI table.
    ncols
        Panels in a row.
    cmap
        Colour map of the errors or components; `None`: plasma or viridis.
    image
        Whether to draw the histology ``images["<sample>_he"]`` behind.
    scalebar
        Whether to draw a scale bar.
    %(figure)s

    Raises
    ------
    ValueError
        A section is not aligned, or was aligned without landmarks and is to show them; wrong number of axes.
    KeyError
        Unknown section, table or image.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> ax = stmsi.pl.alignment(sdata, sample="P1S1", kind="landmarks")
    >>> ax.get_title().splitlines()[0]
    'P1S1'
    """
    require_spatialdata(sdata)
    check_choice(kind, get_args(AlignmentPlot), "kind")
    if tiles < 2:
        msg = f"tiles is a number of at least 2, found {tiles!r}."
        raise ValueError(msg)
    if arrow_scale is not None and not arrow_scale > 0:
        msg = f"arrow_scale is a positive number, found {arrow_scale!r}."
        raise ValueError(msg)
    adata = get_table(sdata, table_key)
    record = get_table(sdata, msi_table_key).uns.get(Key.uns.ALIGNMENT, {})
    names = table_samples(adata, sample_key, sample)
    if sample is None:
        names = [n for n in names if n in record]
    missing = [n for n in names if n not in record]
    if missing or not names:
        msg = f"Sections {listing(missing)} are not aligned; aligned: {listing(record)}. Call stmsi.pp.align first."
        raise ValueError(msg)
    keys = {"table_key": table_key, "msi_table_key": msi_table_key, "sample_key": sample_key}
    sections = [load_section(sdata, adata, n, sample_key=sample_key, image=image) for n in names]
    figure, axes = get_axes(len(names), ncols, ax, panel_size(sections, 3), figsize)
    report = alignment_report(sdata, intensities=False, **keys)
    for axis, section in zip(axes, sections, strict=True):
        own, row = record[section.name], {str(k): v for k, v in report.loc[section.name].items()}
        geometry = section_geometry(sdata, section.name, table_key=table_key, sample_key=sample_key)
        corners = aligned(own, geometry.corners.reshape(-1, 2)).reshape(geometry.corners.shape)
        prepare_panel(axis, section, "", corners.reshape(-1, 2))
        if kind == "overlay":
            lines = _overlay(axis, section, corners, row)
        elif kind == "landmarks":
            lines = _landmarks(axis, section, corners, own, row, arrow_scale, get_cmap(cmap, WIDTH_CMAP))
        else:
            values = _components(sdata, section, own, geometry, keys)
            lines = _checkerboard(axis, section, corners, values, tiles, get_cmap(cmap, INTENSITY_CMAP))
        axis.set_title(wrap(section.name, *lines), fontsize=STYLE.title_size)
        if scalebar:
            scale_bar(axis, section)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _add_pixels(ax: Axes, corners: NDArray[np.float64], **paint: Any) -> None:
    ax.add_collection(PolyCollection(list(corners), **{"edgecolors": "none", "zorder": 2, **paint}), autolim=False)


def _overlay(ax: Axes, section: Section, corners: NDArray[np.float64], row: dict[str, Any]) -> tuple[str, str]:
    _add_pixels(ax, corners, facecolors=_PIXELS, alpha=0.8)
    inside = points_on(section.xy, corners)
    colours = np.where(inside, _COVERED, _UNCOVERED)
    add_spots(ax, section, facecolors="none", edgecolors=colours, linewidths=0.6, zorder=3)
    iou = "" if np.isnan(row["mask_iou"]) else f"IoU {row['mask_iou']:.2f}"
    return f"{inside.mean():.0%} of the spots on pixels", iou


def _landmarks(
    ax: Axes,
    section: Section,
    corners: NDArray[np.float64],
    own: dict[str, Any],
    row: dict[str, Any],
    arrow_scale: float | None,
    cmap: Colormap,
) -> tuple[str, str]:
    if "landmarks_moved" not in own:
        msg = f"Section {section.name!r} was aligned without landmarks (method {row['method']!r}); draw kind='overlay'."
        raise ValueError(msg)
    _add_pixels(ax, corners, facecolors=ink(0.08))
    add_spots(ax, section, facecolors="none", edgecolors=ink(0.25), linewidths=0.4, zorder=3)
    start, end = np.asarray(own["landmarks_moved"]), np.asarray(own["landmarks_st"])
    tre = np.asarray(own["tre_um"], dtype=float)
    kept = np.setdiff1d(np.arange(len(start)), np.asarray(own.get("outliers", []), dtype=int))
    wrong = np.setdiff1d(np.arange(len(start)), kept)
    way = end - start
    if arrow_scale is None:
        longest = float(np.hypot(*way[kept].T).max(initial=0.0))
        room = _ARROW_SHARE * float(np.ptp(section.xy, axis=0).max())
        # to one digit, so that the title can tell it
        arrow_scale = max(1.0, float(f"{room / longest:.0e}")) if longest > 1e-6 * room else 1.0
    known = np.isfinite(tre[kept])
    norm = Normalize(0.0, float(tre[kept][known].max()) if known.any() else 1.0)
    arrows = ax.quiver(
        *start[kept].T, *way[kept].T, np.ma.masked_invalid(tre[kept]), angles="xy", scale_units="xy",
        scale=1 / arrow_scale, cmap=cmap, norm=norm, width=0.012, zorder=5,
    )  # fmt: skip
    ax.scatter(start[kept, 0], start[kept, 1], s=14, facecolors="white", edgecolors="black", linewidths=0.7, zorder=4)
    ax.scatter(end[wrong, 0], end[wrong, 1], s=28, marker="x", c=_UNCOVERED, linewidths=1.4, zorder=6)
    colour_bar(ax, arrows, "error when left out (µm)")
    error = f"TRE {row['tre_um']:.0f} µm, at most {row['tre_max_um']:.0f}"
    error = "TRE not known" if np.isnan(row["tre_um"]) else error
    left_out = f", {len(wrong)} left out" if len(wrong) else ""
    return f"{row['model']}, arrows x {arrow_scale:g}{left_out}", error


def _components(
    sdata: SpatialData, section: Section, own: dict[str, Any], geometry: Geometry, keys: dict[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """First pair of canonical components at the spots on tissue and at the pixels, and their correlation."""
    st = st_components(sdata, section.name, keys["table_key"], keys["sample_key"])
    msi = msi_components(sdata, section.name, keys["msi_table_key"], keys["sample_key"])
    known = np.isfinite(msi).all(axis=1)
    pixels = aligned(own, geometry.pixels)
    near, covered = values_at_spots(geometry.spots, pixels[known], msi[known], REACH * geometry.pitch)
    if covered.sum() < st.shape[1] + msi.shape[1]:
        msg = f"Section {section.name!r}: too few spots lie on pixels ({int(covered.sum())}) to compare what was measured."
        raise ValueError(msg)
    found = canonical(st[covered], near[covered], 1)
    # pixels are noisier than the mean at a spot: one scale for both
    at_spots, level = found.of_x(st)[:, 0], found.of_y(msi)[:, 0]
    # the sign is free: the longer tail is up, whichever the linear algebra chose
    sign = 1.0 if (at_spots**3).sum() >= 0 else -1.0
    return sign * at_spots, level * (sign / max(float(np.nanstd(level)), 1e-12)), float(found.correlation[0])


def _checkerboard(
    ax: Axes,
    section: Section,
    corners: NDArray[np.float64],
    values: tuple[NDArray[np.float64], NDArray[np.float64], float],
    tiles: int,
    cmap: Colormap,
) -> tuple[str, str]:
    at_spots, at_pixels, correlation = values
    left, top, right, bottom = section.bounds
    side = max(right - left, bottom - top) / tiles

    def black(xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.floor((xy - [left, top]) / side).astype(int).sum(axis=1) % 2 == 0

    norm = Normalize(*clipped_limits(np.concatenate([at_spots, at_pixels])))
    pixels = ~black(corners.mean(axis=1)) & np.isfinite(at_pixels)
    spots = black(section.xy)
    paint: dict[str, Any] = {"cmap": cmap, "norm": norm, "zorder": 2}
    _add_pixels(ax, corners[pixels], array=at_pixels[pixels], edgecolors="face", linewidths=0.1, **paint)
    drawn = add_spots(ax, section, chosen=spots, array=at_spots[spots], linewidths=0, **paint)
    colour_bar(ax, drawn, "canonical component", extend="both")
    return "genes (spots), ions (pixels)", f"r = {correlation:.2f}"

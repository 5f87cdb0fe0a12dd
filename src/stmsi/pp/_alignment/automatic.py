"""Find where a section's MSI belongs on its spots, without landmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stmsi._core.registration.placements import FREE, KNOWN, SERIAL, Freedom, inverse
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster, frame_points, pixel_raster
from stmsi._data.checks import check_choice, require_spatialdata
from stmsi._data.keys import Key
from stmsi.pp._alignment.automatic_fit import AutomaticFit, AutomaticInput
from stmsi.pp._alignment.section_input import pixel_centres, pixels_on_tissue, section_table, spot_centres, table_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

_MIN_POINTS = 20
_MAX_FACTOR = 5.0


def align_automatically(
    sdata: SpatialData,
    name: str,
    *,
    scale: Literal["known", "free"] = "known",
    model: Literal["similarity", "affine"] = "affine",
    serial: bool = False,
    frame: ArrayLike | Literal["auto", "crop"] = "auto",
    intensities: bool = True,
    layer: str | None = None,
    msi_layer: str | None = None,
    n_perturb: int = 12,
    table_key: str = Key.table.MSI,
    st_table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    rng: int | np.random.Generator | None = 0,
) -> AutomaticFit:
    r"""Find where the MSI pixels of a section belong on its spots, from tissue masks and intensities.

    **Masks.** Every turn, in steps of ten degrees, of either side of the section is tried at every shift. The best ones
    are refined, a similarity first, then an affine transformation, by a soft IoU that is scored at the spots of the
    capture frame only: tissue that MSI saw outside it costs nothing.

    **Intensities.** Masks cannot tell near-ties apart. Under each candidate, spatial components of one modality predict
    those of the other by ridge regression on spatial blocks that the fit has not seen; signs are free. What wrong
    placements reach, the section turned at random, is the reference: a candidate wins where it stands four
    standard deviations above it and leads every other by three. The winner is then refined by the same
    components.

    Where neither decides, the result is ``ambiguous`` and names the landmark that would tell.

    Parameters
    ----------
    sdata
        As made by :func:`stmsi.pp.combine`. It is not changed.
    name
        The section.
    scale
        ``"known"``: pixel size and spot positions are micrometres, and the tissue shrank by a few per cent at
        most. ``"free"``: the pixel size is a placeholder.
    model
        How far masks may go.
    serial
        The modalities measured neighbouring sections and not the same one: size and shape may differ by about 10 %.
    frame
        Which places without tissue ST has seen. ``"auto"``: spots with ``obs["in_tissue"] == 0`` where there are some,
        else around the tissue, except beyond a side along which the tissue was cut. ``"crop"``: the spots are a piece
        cut from the tissue, and only its holes and bays count. An array of shape (n, 2): all positions of the capture
        frame in the ST frame (um), on tissue or not.
    intensities
        Whether to use them; masks alone otherwise.
    layer, msi_layer
        Layers of the ST and MSI table with counts and intensities; `None`: ``X``.
    n_perturb
        Number of refits to perturbed data from which the resolution is told.
    table_key, st_table_key
        The MSI and the ST table.
    sample_key
        Column of ``obs`` with the section name.
    rng
        Seed or generator.

    Returns
    -------
    The alignment. Nothing is written.

    Raises
    ------
    ValueError
        Fewer than 20 pixels or spots, NaN coordinates, empty masks, sizes that show mixed-up units, no overlap.
    KeyError
        The section or its elements do not exist.

    Notes
    -----
    A resolution is precision, not accuracy: what shifts both masks alike, such as a torn edge that one of them lost, does
    not show in the spread of refits.

    References
    ----------
    Candidates are compared by cross-validated multivariate regression, as in canonical correlation analysis: H. Hotelling.
    Relations between two sets of variates. Biometrika 28, 321-377 (1936). Components: P. Switzer, A. A. Green. Min/max
    autocorrelation factors for multivariate spatial imagery. Technical report 6, Stanford University (1984).

    Examples
    --------
    >>> import stmsi
    >>> from stmsi.pp._alignment.automatic import align_automatically
    >>> sdata = stmsi.datasets.simulate(n_patients=2, sections_per_patient=1, n_genes=100, n_metabolites=20, size=2000)
    >>> fit = align_automatically(sdata, "P2S1", n_perturb=4)
    >>> fit.mirrored, fit.ambiguous, fit.decided_by
    (True, False, 'intensities')
    """
    section = automatic_input(
        sdata, name, scale=scale, model=model, serial=serial, frame=frame, intensities=intensities, layer=layer,
        msi_layer=msi_layer, table_key=table_key, st_table_key=st_table_key, sample_key=sample_key,
    )  # fmt: skip
    return section.fit(np.random.default_rng(rng), n_perturb)


def automatic_input(
    sdata: SpatialData,
    name: str,
    *,
    scale: Literal["known", "free"] = "known",
    model: Literal["similarity", "affine"] = "affine",
    serial: bool = False,
    frame: ArrayLike | Literal["auto", "crop"] = "auto",
    intensities: bool = True,
    layer: str | None = None,
    msi_layer: str | None = None,
    table_key: str = Key.table.MSI,
    st_table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
) -> AutomaticInput:
    """Read a section and check it; parameters and errors as for :func:`align_automatically`."""
    require_spatialdata(sdata)
    check_choice(scale, ("known", "free"), "scale")
    check_choice(model, ("similarity", "affine"), "model")
    if isinstance(frame, str):
        check_choice(frame, ("auto", "crop"), "frame")
        if frame == "crop" and scale == "free":
            msg = "A crop of unknown extent does not tell the size of a pixel: pass the pixel size and scale='known'."
            raise ValueError(msg)
    msi, st = (section_table(sdata, key, name, sample_key) for key in (table_key, st_table_key))
    pixels, size, to_msi = pixel_centres(sdata, name, msi)
    spots = spot_centres(sdata, name, st)
    ions, counts = table_values(msi, msi_layer, "MSI"), table_values(st, layer, "ST")
    on_tissue = pixels_on_tissue(msi, ions)
    in_tissue = np.ones(len(spots), bool)
    if Key.obs.IN_TISSUE in st.obs:
        in_tissue = st.obs[Key.obs.IN_TISSUE].to_numpy().astype(float) > 0
    _check_number(int(in_tissue.sum()), name, "spots on tissue", f"obs[{Key.obs.IN_TISSUE!r}]")
    _check_number(int(on_tissue.sum()), name, "MSI pixels on tissue", "the pixels")

    fixed = _fixed(spots, in_tissue, frame)
    moving = pixel_raster(pixels, size, on_tissue)
    factor = _unit(moving, fixed, name, scale)
    moving = moving.scaled(factor)
    freedom = SERIAL if serial and scale == "known" else FREE if scale == "free" else KNOWN
    if serial and scale == "free":
        freedom = Freedom(FREE.scale, SERIAL.stretch, FREE.scales)
    return AutomaticInput(
        name,
        moving,
        fixed,
        ions[on_tissue] if intensities else None,
        counts[in_tissue] if intensities else None,
        np.diag([factor, factor, 1.0]) @ inverse(to_msi),
        freedom,
        model == "affine",
        serial,
    )


def _check_number(n: int, name: str, what: str, where: str) -> None:
    if n < _MIN_POINTS:
        msg = (
            f"Section {name!r} has {n} {what}, and an alignment without landmarks needs at least {_MIN_POINTS}. "
            f"Check {where}, or pass landmarks."
        )
        raise ValueError(msg)


def _fixed(spots: NDArray[np.float64], in_tissue: NDArray[np.bool_], frame: Any) -> TissuePoints:
    on = spots[in_tissue]
    if isinstance(frame, str):
        off = spots[~in_tissue] if not in_tissue.all() and frame == "auto" else None
        return frame_points(on, off, crop=frame == "crop")
    from scipy.spatial import cKDTree

    places = np.asarray(frame, dtype=float)
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        msg = f"frame is 'auto', 'crop' or finite positions of shape (n, 2) in micrometres, found shape {places.shape}."
        raise ValueError(msg)
    pitch = frame_points(on, on[:0]).pitch
    return frame_points(on, places[cKDTree(on).query(places)[0] > 0.6 * pitch])


def _unit(moving: TissueRaster, fixed: TissuePoints, name: str, scale: str) -> float:
    """Factor that brings the MSI tissue to about the size of the ST tissue, 1 where the size is known."""
    ratio = float(np.sqrt(fixed.area / moving.area))
    if scale == "free":
        return ratio
    if not 1 / _MAX_FACTOR < ratio < _MAX_FACTOR:
        large, small = ("ST", "MSI") if ratio > 1 else ("MSI", "ST")
        msg = (
            f"Section {name!r}: the {large} tissue is {max(ratio, 1 / ratio):.3g} times as wide as the {small} tissue, but "
            "both should be in micrometres. Check the pixel size and the unit of the spots (pixels of the image?), or pass "
            "auto={'scale': 'free'}."
        )
        raise ValueError(msg)
    return 1.0

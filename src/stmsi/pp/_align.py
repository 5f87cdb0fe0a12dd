"""Put MSI pixels into the frame of the ST section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stmsi._core.registration.landmark_consensus import METHODS, RobustMethod
from stmsi._core.registration.landmarks import MODELS, TransformModel
from stmsi._data.checks import check_choice, check_positive, for_section, listing, require_spatialdata
from stmsi._data.keys import Key
from stmsi._data.position_units import noted_unit
from stmsi._data.tables import copy_of, get_table, sample_names
from stmsi._messages import warns_once
from stmsi._progress import track
from stmsi._settings import settings
from stmsi.pp._alignment.automatic import automatic_input, fit_automatically
from stmsi.pp._alignment.choices import (
    AlignMethod,
    automatic_model,
    chosen_method,
    chosen_sections,
    landmark_legs,
)
from stmsi.pp._alignment.earlier_unit import PIXELS
from stmsi.pp._alignment.histology import histology_method
from stmsi.pp._alignment.landmark_input import has_landmarks, is_file, read_landmarks
from stmsi.pp._alignment.other_readings import witness
from stmsi.pp._alignment.section_fit import Method, Result, Task, fit_given, fit_legs, run
from stmsi.pp._alignment.section_geometry import msi_components, section_geometry, st_components
from stmsi.pp._alignment.written import write_alignments

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from spatialdata import SpatialData
    from spatialdata.transformations import BaseTransformation

    from stmsi.pp._alignment.landmark_input import Landmarks, Unit

_AUTO = ("scale", "serial", "frame", "intensities", "layer", "msi_layer")
"""Options of an alignment without landmarks."""
_N_REFITS = 12
"""Refits from which the resolution of an automatic alignment is told."""
_MAX_SCALE = {"landmarks": 1.2}
"""Largest scale by method; positions in pixels of an image are often off by little more."""
_MAX_SCALE_ELSE = 3.0


@warns_once
def align(
    sdata: SpatialData,
    *,
    method: AlignMethod | None = None,
    landmarks: Landmarks | Mapping[str, Landmarks] | None = None,
    transformation: ArrayLike | BaseTransformation | Mapping[str, ArrayLike | BaseTransformation] | None = None,
    via: Landmarks | Mapping[str, Landmarks] | None = None,
    model: TransformModel | None = None,
    auto: Mapping[str, Any] | None = None,
    images: tuple[str | None, str | None] | Mapping[str, tuple[str | None, str | None]] | None = None,
    robust: RobustMethod | None = None,
    max_error: float = 250.0,
    smoothing: float | None = None,
    landmark_units: tuple[Unit, Unit] | Literal["pixels"] = (1.0, 1.0),
    refine: Literal["intensity"] | None = None,
    refine_length: float | None = None,
    n_perturb: int = 0,
    perturb_sd: float | None = None,
    sample: str | Sequence[str] | None = None,
    max_scale: float | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
    rng: int | np.random.Generator | None = 0,
    n_jobs: int | None = None,
    copy: bool = False,
    show_progress_bar: bool | None = None,
) -> SpatialData | None:
    """Align the MSI pixels of one or more sections to their ST section.

    The transformation goes from the MSI frame (micrometres on the raster, ``<sample>_msi``) to the ST frame
    (micrometres, ``<sample>``). It comes from landmarks, or without any from the outlines of the tissue and from what
    genes and ions say about it. Mirrored sections are recognised.

    Parameters
    ----------
    sdata
        As made by :func:`stmsi.pp.combine`.
    method
        ``"landmarks"``, ``"given"`` (takes `transformation`), ``"auto"`` (takes neither) or ``"histology"`` (takes
        `images`); `None`: what the arguments imply, and ``"auto"`` for a section without landmarks.
    landmarks
        Points that show the same place: ``(in the MSI frame, in the ST frame)``, each an array of shape (n, 2) in
        micrometres or the name of a points element (drawn in napari, for example), for one section; a mapping from
        section to such a pair; or the path of a csv file, see Notes. `None` (and no `transformation`) takes the points
        ``<sample>_landmarks_msi`` and ``<sample>_landmarks_st`` of the sections that have them.
    transformation
        A known transformation instead: matrix of shape (3, 3) or (2, 3), or a SpatialData transformation, for one
        section or a mapping from section to it.
    via
        Landmarks of a second stage, ``(in the histology of the MSI section, in the ST frame)``, given like `landmarks`,
        which then are ``(in the MSI frame, in the histology of the MSI section)``. That histology may be in any unit.
    model
        What landmarks are fitted with: ``"rigid"``, ``"similarity"``, ``"affine"``, ``"projective"`` or
        ``"thin_plate"``, a smoothed thin-plate spline for sections that are deformed against each other [1]_. Without
        landmarks it is ``"similarity"`` or ``"affine"``. `None`: similarity from landmarks, affine without.
    auto
        Options of ``method="auto"``:

        - ``scale``: ``"known"`` (pixels and spots are in micrometres, the default) or ``"free"`` (the pixel size is a
          placeholder);
        - ``serial``: whether the modalities measured neighbouring sections, so that size and shape may differ by about
          10 %;
        - ``frame``: which places without tissue ST has seen: ``"auto"`` (spots with ``obs["in_tissue"] == 0``, else around
          the tissue, except beyond a side along which it was cut), ``"crop"`` (the spots are a piece cut from the tissue)
          or an array of shape (n, 2), all positions of the capture frame in the ST frame;
        - ``intensities``: ``False`` for masks alone;
        - ``layer``, ``msi_layer``: layers with counts and intensities.
    images
        For ``method="histology"``: ``(of the MSI section, of the ST section)``, names of images in the MSI and in the ST
        frame, for one section or a mapping from section to them. `None`: ``<sample>_msi_he`` and ``<sample>_he``; without
        the first, the number of peaks of each pixel. Their contrasts may differ.
    robust
        ``"ransac"`` [2]_ or ``"lmeds"`` [3]_: find landmarks that disagree with the others (for the thin-plate spline:
        with an affine map), name them and leave them out.
    max_error
        Residual (um) up to which RANSAC takes a landmark as right. LMedS needs no limit.
    smoothing
        Of the thin-plate spline, with coordinates scaled to unit spread; 0 passes through every landmark. `None`: the
        value with the smallest leave-one-landmark-out error.
    landmark_units
        Of landmarks given as arrays or file, in the MSI and in the ST frame: micrometres per unit; ``"file"``: x and y
        as in the MSI file; on the ST side ``"pixels"``: the unit that the spots had before :func:`stmsi.pp.combine` or
        :func:`stmsi.io.read_visium` made it micrometres (``st.uns["st_units"]``); or the name of an element (such as an
        image) in whose own coordinates they are. ``"pixels"`` alone is ``(1, "pixels")``. Landmarks that are plainly in
        that unit are converted without being asked, with a warning.
    refine
        ``"intensity"``: look for a smooth displacement that makes genes and ions agree better. It is kept only where
        mutual information rises and nothing folds.
    refine_length
        Spacing (um) of the displacement's control points; `None`: five spot pitches.
    n_perturb
        Number of transformations to draw within the error of the alignment, for ``stmsi.pp.map_to_spots(spread=True)``: a
        parametric bootstrap of the landmarks, or refits to perturbed masks.
    perturb_sd
        Error of the alignment in micrometres (root mean square at the section's corners); `None`: from the landmarks.
    sample
        Sections to align; `None`: those that `landmarks` or `transformation` name, else all with MSI.
    max_scale
        Both frames are in micrometres, so a scale beyond this factor (either way) means mixed-up units and is refused.
        `None`: 1.2 with landmarks, 3 without, and no limit where ``auto={"scale": "free"}`` looks for the scale.
    sample_key
        Column of ``obs`` with the section name.
    table_key, msi_table_key
        The ST and the MSI table.
    rng
        Seed or generator, for RANSAC, ``"auto"`` and `n_perturb`.
    n_jobs
        Sections aligned at once; `None`: ``stmsi.settings.n_jobs``. The result does not depend on it.
    copy
        Return a changed copy instead of working in place.
    show_progress_bar
        `None`: ``stmsi.settings.progress_bar``.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Sets the transformation of ``shapes["<sample>_pixels"]`` (and of
    ``images["<sample>_tic"]``, where it is there) into the coordinate system ``<sample>`` and writes
    ``tables["msi"].uns["alignment"][<sample>]``:

    - ``matrix`` (3 x 3), ``model``, ``method``, ``mirrored``, ``scale``, ``n_landmarks``; for each landmark
      ``residual_um``, ``tre_um`` (leave-one-landmark-out), ``landmarks_moved`` and ``landmarks_st`` (where the alignment
      puts it and where it belongs); ``outliers`` (rows);
    - without landmarks ``ambiguous`` (the data cannot tell: look before you go on), ``message``, ``candidates`` (all
      placements that fit nearly as well), ``telling_landmark`` (the place that would tell the best two apart),
      ``decided_by``, ``confidence`` (where masks decided: the share of a bootstrap of the outlines in which they choose the
      same), ``partial`` (the MSI shows a part of the ST tissue only), ``mask_score`` and ``resolution`` (spread of refits, um, and the share of pixels that stay in their
      spot, within one ring, two rings; it is precision, not accuracy);
    - with landmarks or a given transformation ``supported`` (genes and ions agree more than in any other reading of it);
      where another reading agrees clearly better (a mirrored or transposed picture, a shift), ``ambiguous`` and
      ``message``, which names it, and a warning;
    - ``perturbations`` (n x 3 x 3, from the ST frame to the ST frame, to be applied after the alignment).

    An alignment that is more than affine (projective, thin plate, displacement) is baked into new pixels,
    ``shapes["<sample>_pixels_warped"]``, which lie in ``<sample>``; ``element`` names them, ``warp`` and ``inverse`` hold
    the map and its inverse, ``folds`` the share of pixels that it folds, and ``matrix`` its affine part, which
    ``<sample>_pixels`` gets.

    When one section fails, nothing is changed in any.

    Raises
    ------
    ValueError
        Too few, unequal, collinear or duplicate landmarks, NaN; landmarks in another frame or unit (by place and scale);
        a singular matrix; no overlap of pixels and spots; folds; without landmarks fewer than 20 pixels or spots.
    KeyError
        Unknown sections, or landmarks that are not there.

    Notes
    -----
    A csv file of landmarks (comma, semicolon or tab) has one row per pair and the columns ``x_msi,y_msi,x_st,y_st``, or
    those of MAGPIE (``X_left,Y_left,X_right,Y_right``: ``landmarks_noHE.csv``; ``landmarks_MSI2HE.csv`` with
    ``via="landmarks_HE2HE.csv"``), and for several sections a column ``sample``. An affine map is fitted by total least
    squares (the normalised direct linear transformation of scikit-image).

    References
    ----------
    .. [1] Bookstein, *Principal Warps*, IEEE TPAMI 11 (1989), https://doi.org/10.1109/34.24792
    .. [2] Fischler, Bolles, *Random Sample Consensus*, Commun. ACM 24 (1981), https://doi.org/10.1145/358669.358692
    .. [3] Rousseeuw, *Least Median of Squares Regression*, J. Am. Stat. Assoc. 79 (1984),
       https://doi.org/10.1080/01621459.1984.10477105

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> bool(stmsi.pp.alignment_report(sdata).loc["P2S1", "mirrored"])
    True

    A section that is deformed against the other:

    >>> stmsi.pp.align(sdata, sample="P1S1", model="thin_plate")
    >>> sdata.tables["msi"].uns["alignment"]["P1S1"]["element"]
    'P1S1_pixels_warped'
    """
    require_spatialdata(sdata)
    available = sample_names(sdata, msi_table_key, sample_key)
    method = chosen_method(method, landmarks, transformation, via)
    options = dict(auto or {})
    if unknown := [k for k in options if k not in _AUTO]:
        msg = f"auto= has unknown options {listing(unknown)}; known: {listing(_AUTO)}."
        raise ValueError(msg)
    if images is not None:
        if method not in (None, "histology") or landmarks is not None:
            msg = 'images= goes with method="histology" alone.'
            raise ValueError(msg)
        method = "histology"
    for name, choice, choices in (
        ("model", model, MODELS),
        ("robust", robust, METHODS),
        ("refine", refine, ("intensity",)),
    ):
        if choice is not None:
            check_choice(choice, choices, name)
    limits = {"max_error": max_error, "max_scale": max_scale, "refine_length": refine_length, "perturb_sd": perturb_sd}
    for name, limit in limits.items():
        check_positive(limit, name)
    if not isinstance(n_perturb, int | np.integer) or n_perturb < 0:
        msg = f"n_perturb is a number of transformations, at least 0; found {n_perturb!r}."
        raise ValueError(msg)
    if landmark_units == PIXELS:
        landmark_units = (1.0, PIXELS)
    if not isinstance(landmark_units, tuple | list) or len(landmark_units) != 2:
        msg = f"landmark_units is a pair (of the MSI frame, of the ST frame) or {PIXELS!r}, found {landmark_units!r}."
        raise ValueError(msg)
    sides: tuple[Any, Any] = (landmarks, via)
    first, second = (read_landmarks(side, available) if is_file(side) else side for side in sides)
    given = transformation if method == "given" else first
    keys: dict[str, Any] = {"table_key": table_key, "msi_table_key": msi_table_key, "sample_key": sample_key}

    tasks = []
    for name in chosen_sections(sample, given, available):
        try:
            geometry = section_geometry(sdata, name, table_key=table_key, sample_key=sample_key)
            fit: Method
            own_method = method or ("landmarks" if given is not None or has_landmarks(sdata, name) else "auto")
            if own_method == "given":
                fit = partial(fit_given, for_section(given, name, "transformation"))
            elif own_method == "histology":
                pair = images.get(name) if isinstance(images, Mapping) else images
                fit = histology_method(
                    sdata, name, pair or (None, None), table_key=msi_table_key, sample_key=sample_key
                )
            elif own_method == "auto":
                section = automatic_input(sdata, name, model=automatic_model(model), **options, **keys)
                fit = partial(fit_automatically, section, max(_N_REFITS, int(n_perturb)))
            else:
                own = (for_section(given, name, "landmarks"), for_section(second, name, "via"))
                earlier = noted_unit(get_table(sdata, table_key), name) if table_key in sdata.tables else None
                limit = _limit("landmarks", options, max_scale)
                legs = landmark_legs(sdata, name, *own, landmark_units, geometry, earlier, limit)
                fit = partial(fit_legs, legs, model or "similarity", robust, max_error, smoothing)
        except ValueError as error:
            msg = f"Section {name!r}: {error}"
            raise ValueError(msg) from error
        components = None
        if refine is not None and len(geometry.spots):
            msi = msi_components(sdata, name, msi_table_key, sample_key)
            components = st_components(sdata, name, table_key, sample_key), msi
        # an alignment without landmarks has weighed all placements already
        asked = None if own_method == "auto" else witness(sdata, name, geometry, **keys)
        tasks.append(
            Task(
                name, own_method, fit, geometry, _limit(own_method, options, max_scale), int(n_perturb), perturb_sd,
                components, refine_length, asked,
            )
        )  # fmt: skip
    results = _run_all(tasks, available, rng, n_jobs, show_progress_bar)
    out = copy_of(sdata) if copy else sdata
    write_alignments(out, tasks, results, msi_table_key)  # whatever could fail was done before
    return out if copy else None


def _limit(method: str, options: Mapping[str, Any], max_scale: float | None) -> float:
    """Scale beyond which an alignment is refused."""
    if max_scale is not None:
        return float(max_scale)
    if method == "auto" and options.get("scale") == "free":
        return float("inf")
    return _MAX_SCALE.get(method, _MAX_SCALE_ELSE)


def _run_all(
    tasks: list[Task],
    available: list[str],
    rng: int | np.random.Generator | None,
    n_jobs: int | None,
    show_progress_bar: bool | None,
) -> list[Result]:
    import joblib

    # one stream for each section that there is, so that it does not matter which are aligned together
    streams = dict(zip(available, np.random.default_rng(rng).spawn(len(available)), strict=True))
    n_jobs = settings.n_jobs if n_jobs is None else n_jobs
    jobs = (joblib.delayed(run)(task, streams[task.name]) for task in tasks)
    done = joblib.Parallel(n_jobs=min(n_jobs, len(tasks)) if tasks else 1, return_as="generator")(jobs)
    return list(track(done, "align", total=len(tasks), show=show_progress_bar))

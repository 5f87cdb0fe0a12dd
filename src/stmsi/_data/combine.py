"""One SpatialData from the sections of both modalities: :func:`combine`, and how it takes what users pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from stmsi._data.checks import (
    check_choice,
    check_nonnegative,
    check_positive,
    is_spatialdata,
    listing,
    require_rows,
    require_unique,
)
from stmsi._data.concatenate import concat_msi, concat_st
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_SPOT_DIAMETER, msi_section, st_section
from stmsi._data.tables import as_csr, layer_names, require_obs, require_sample, sample_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    Section: TypeAlias = AnnData | SpatialData
    Sections: TypeAlias = Section | Iterable[Section] | Mapping[str, Section]


def combine(
    st: Sections,
    msi: Sections | None = None,
    *,
    sample_key: str = Key.obs.SAMPLE,
    um_per_unit: float = 1.0,
    spot_diameter: float = VISIUM_SPOT_DIAMETER,
    pixel_size: float | tuple[float, float] | None = None,
    join: Literal["inner", "outer"] = "inner",
    mz_tolerance: float | None = None,
) -> SpatialData:
    """Combine ST and MSI sections into one SpatialData.

    Parameters
    ----------
    st
        ST sections: one object (which may hold several sections), several, or a mapping from section name to object. An
        object is what :func:`stmsi.io.read_visium` returns, or an AnnData of spots x genes with raw counts and
        ``obsm["spatial"]``. A SpatialData with both modalities, such as an earlier result, brings its MSI along.
    msi
        MSI sections, likewise: what the readers of :mod:`stmsi.io` return, or AnnData of pixels x ions with integer
        ``obs["row"]`` and ``obs["col"]``. Every MSI section needs an ST section of its name; an ST section without MSI is
        for prediction only.
    sample_key
        Column of ``obs`` with the section name, for AnnData that hold several sections.
    um_per_unit
        Micrometres per unit of ``obsm["spatial"]`` of ST given as AnnData: 100 for array positions with a pitch of one.
    spot_diameter
        Diameter of the spots of ST given as AnnData, in micrometres.
    pixel_size
        Side of a pixel of MSI given as AnnData, in micrometres, or ``(x, y)``.
    join
        Whether genes must be in every section (``"inner"``) or in any (``"outer"``, missing counts are 0). The ions of
        every section are always kept.
    mz_tolerance
        Which ions of different sections are the same. `None`: those with one name. A number: those whose m/z differ by no
        more than so many ppm, whatever their names. Each ion goes with its mutual nearest; ions whose adduct, formula or
        polarity are given and differ stay apart.

    Returns
    -------
    SpatialData with the tables ``st`` and ``msi``, shapes ``<sample>_spots`` and ``<sample>_pixels``, and the images
    and points of the inputs, which are not changed. In the table ``msi``:

    - ``var``: id, name and m/z of an ion are those of the first section that measured it;
    - ``varm["measured"]``: ions x sections, whether the section measured the ion. Where it did not, ``X`` holds nothing,
      which is not a measured 0: :func:`stmsi.pp.map_to_spots` writes NaN there;
    - ``varm["section_mz"]``: ions x sections, the m/z in each section (Da), NaN where it was not measured.

    Raises
    ------
    ValueError
        Names clash, MSI has no ST section, coordinates cannot be micrometres, or two ions of a section are equally near
        to one of another within `mz_tolerance`.
    KeyError
        A column or table is missing.

    Examples
    --------
    >>> import numpy as np, pandas as pd, stmsi
    >>> from anndata import AnnData
    >>> xy = np.array([[0.0, 0.0], [100.0, 0.0], [50.0, 86.6]])
    >>> st = AnnData(np.ones((3, 4)), obsm={"spatial": xy})
    >>> obs = pd.DataFrame({"row": [0, 0, 1, 1], "col": [0, 1, 0, 1]}, index=list("abcd"))
    >>> msi = AnnData(np.ones((4, 2)), obs=obs)
    >>> sdata = stmsi.pp.combine({"s1": st}, {"s1": msi}, pixel_size=50)
    >>> sorted(sdata.tables)
    ['msi', 'st']
    """
    from spatialdata import SpatialData

    check_choice(join, ("inner", "outer"), "join")
    check_positive(um_per_unit, "um_per_unit")
    check_positive(spot_diameter, "spot_diameter")
    if mz_tolerance is not None:
        check_positive(mz_tolerance, "mz_tolerance")
    st_sections = [s for section in _iterate(st) for s in _as_st(*section, sample_key, um_per_unit, spot_diameter)]
    brought = [(None, s) for s in st_sections if Key.table.MSI in s.tables]
    given = [] if msi is None else [pair for pair in _iterate(msi) if not any(pair[1] is s for _, s in brought)]
    msi_sections = [s for section in [*brought, *given] for s in _as_msi(*section, sample_key, pixel_size)]
    if not st_sections:
        msg = "No ST section was given."
        raise ValueError(msg)
    st_names = _unique_sections(st_sections, Key.table.ST)
    msi_names = _unique_sections(msi_sections, Key.table.MSI)
    orphans = [name for name in msi_names if name not in st_names]
    if orphans:
        msg = (
            f"MSI sections without an ST section of the same name: {listing(orphans)}; ST sections: {listing(st_names)}. "
            "Pass mappings {name: section} with the same names on both sides."
        )
        raise ValueError(msg)
    without = [name for name in st_names if name not in msi_names]
    if without:
        logger.info("Sections without MSI (for prediction only): %s", listing(without))

    elements: dict[str, Any] = {}
    given_as: dict[str, Any] = {}
    for section in [*st_sections, *msi_sections]:
        for kind, name, element in section.gen_elements():
            if kind == "tables":
                continue
            if given_as.setdefault(name, element) is not element:  # one object may be given as ST and as MSI
                msg = f"Two sections hold an element {name!r}; rename one of them."
                raise ValueError(msg)
            # shapes and points carry their transformations, which stmsi.pp.align changes: not those of the input
            elements[name] = element.copy() if kind in ("shapes", "points") else element
    tables = {Key.table.ST: concat_st([s.tables[Key.table.ST] for s in st_sections], join)}
    if msi_sections:
        tables[Key.table.MSI] = concat_msi([s.tables[Key.table.MSI] for s in msi_sections], mz_tolerance)
    return SpatialData.init_from_elements(elements | tables)


def _iterate(sections: Sections) -> Iterable[tuple[str | None, Section]]:
    if isinstance(sections, AnnData) or is_spatialdata(sections):
        return [(None, sections)]
    if isinstance(sections, Mapping):
        return [(str(name), section) for name, section in sections.items()]
    return [(None, section) for section in sections]


def _as_st(
    name: str | None, section: Section, sample_key: str, um_per_unit: float, spot_diameter: float
) -> list[SpatialData]:
    if is_spatialdata(section):
        return [_check_spatialdata(name, section, Key.table.ST, Key.spots, "stmsi.io.read_visium")]
    out = []
    for sample, part in _split(name, section, sample_key):
        require_unique(part.var_names, "Gene names")
        if part.X is None:
            msg = f"Section {sample!r} has no X; put the raw gene counts there."
            raise ValueError(msg)
        check_nonnegative(as_csr(part.X), f"Gene counts of section {sample!r}")
        require_unique(part.obs_names, f"Spot names of section {sample!r}", "Call .obs_names_make_unique() first.")
        if Key.obsm.SPATIAL not in part.obsm:
            found = listing(part.obsm.keys())
            msg = f'Section {sample!r} has no obsm["spatial"] (found {found}); it holds the spot centres.'
            raise KeyError(msg)
        xy = np.asarray(part.obsm[Key.obsm.SPATIAL], dtype=float)[:, :2] * um_per_unit
        _check_pitch(sample, xy, spot_diameter)
        out.append(st_section(part, xy, sample=sample, spot_diameter=spot_diameter))
    return out


def _as_msi(
    name: str | None, section: Section, sample_key: str, pixel_size: float | tuple[float, float] | None
) -> list[SpatialData]:
    if is_spatialdata(section):
        return [_check_spatialdata(name, section, Key.table.MSI, Key.pixels, "a reader of stmsi.io")]
    if pixel_size is None:
        msg = "MSI given as AnnData needs pixel_size= (micrometres)."
        raise ValueError(msg)
    out = []
    for sample, part in _split(name, section, sample_key):
        remedy = "MSI pixels need their integer raster position."
        row, col = (require_obs(part, key, remedy).to_numpy() for key in (Key.obs.ROW, Key.obs.COL))
        if part.X is None:
            msg = f"MSI section {sample!r} has no X; put the intensities there."
            raise ValueError(msg)
        extra = part.obs.drop(columns=[Key.obs.ROW, Key.obs.COL])
        made = msi_section(part.X, part.var, row, col, sample=sample, pixel_size=pixel_size, obs=extra)
        _carry_over(part, made.tables[Key.table.MSI])
        out.append(made)
    return out


def _carry_over(source: AnnData, table: AnnData) -> None:
    """What an AnnData of ions holds beside the data model: layers, further arrays, unstructured notes."""
    for key in layer_names(source):
        table.layers[key] = as_csr(source.layers[key], np.float32)
    for key in source.obsm.keys() - table.obsm.keys():
        table.obsm[key] = source.obsm[key].copy()
    for key in source.varm:
        value = source.varm[key].copy()
        table.varm[key] = value.set_axis(table.var_names) if isinstance(value, pd.DataFrame) else value
    for key in source.uns.keys() - table.uns.keys():
        table.uns[key] = deepcopy(source.uns[key])


def _split(name: str | None, adata: AnnData, sample_key: str) -> list[tuple[str, AnnData]]:
    """Sections of an AnnData with their names."""
    if not isinstance(adata, AnnData):
        msg = f"A section is an AnnData or a SpatialData, found {type(adata).__name__}. Read files with stmsi.io first."
        raise TypeError(msg)
    require_rows(adata, "observations")
    if sample_key not in adata.obs:
        if name is None:
            msg = f"Name the section: pass a mapping {{name: section}} or add obs[{sample_key!r}]."
            raise KeyError(msg)
        return [(name, adata)]
    label = require_sample(adata, sample_key)
    names = list(dict.fromkeys(label))
    if name is not None and len(names) == 1:
        return [(name, adata)]
    if name is not None:
        msg = f"Section {name!r} holds several sections in obs[{sample_key!r}] ({listing(names)}); pass it unnamed."
        raise ValueError(msg)
    return [(n, adata[label == n].copy()) for n in names]


def _check_spatialdata(name: str | None, section: Any, table: str, element: Any, remedy: str) -> SpatialData:
    """A SpatialData in the data model; the name it was given must be its own."""
    names = sample_names(section, table) if table in section.tables else []
    if not names or any(element(s) not in section.shapes for s in names):
        msg = (
            f"The SpatialData does not follow stmsi's data model: expected a table {table!r} and shapes "
            f"{element('<sample>')!r}; found {listing(n for _, n, _ in section.gen_elements())}. Make it with {remedy}."
        )
        raise ValueError(msg)
    if name is not None and names != [name]:
        msg = f"The SpatialData given as {name!r} holds the sections {listing(names)}; read it with sample={name!r}."
        raise ValueError(msg)
    return section


def _unique_sections(sections: list[SpatialData], table: str) -> list[str]:
    names = [name for s in sections for name in sample_names(s, table)]
    if len(set(names)) < len(names):
        msg = f"Section names of table {table!r} repeat: {listing(names)}. Give each section its own name."
        raise ValueError(msg)
    return names


def _check_pitch(sample: str, xy: np.ndarray, spot_diameter: float) -> None:
    """Spots that overlap give away coordinates in another unit than micrometres."""
    if len(xy) < 2 or not np.isfinite(xy).all():  # the latter is refused where the section is made
        return
    pitch = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))
    if pitch < 0.8 * spot_diameter:
        msg = (
            f"Section {sample!r}: neighbouring spots are {pitch:.3g} um apart but {spot_diameter:g} um wide. "
            'Is obsm["spatial"] in another unit? Pass um_per_unit= (or the right spot_diameter=).'
        )
        raise ValueError(msg)
    if pitch > 10 * spot_diameter:
        found = f"neighbouring spots are {pitch:.4g} um apart but {spot_diameter:g} um wide"
        logger.warning("Section %r: %s; check um_per_unit.", sample, found)

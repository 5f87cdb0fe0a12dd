"""One SpatialData from the sections of both modalities: :func:`combine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from stmsi._data.checks import check_choice, check_positive
from stmsi._data.concatenate import concat_msi, concat_st
from stmsi._data.given_sections import (
    Reading,
    as_msi,
    as_st,
    check_partners,
    each_section,
    unique_sections,
    with_only_name,
)
from stmsi._data.keys import Key
from stmsi._messages import warns_once

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stmsi._data.given_sections import Sections


@warns_once
def combine(
    st: Sections,
    msi: Sections | None = None,
    *,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str | None = None,
    shapes_key: str | None = None,
    um_per_unit: float | Mapping[str, float] | None = None,
    spot_diameter: float | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    join: Literal["inner", "outer"] = "inner",
    mz_tolerance: float | None = None,
) -> SpatialData:
    """Combine ST and MSI sections into one SpatialData.

    Parameters
    ----------
    st
        ST sections: one object (which may hold several sections), several, or a mapping from section name to object. An
        object is what :func:`stmsi.io.read_visium` returns, an AnnData of spots x genes with raw counts and
        ``obsm["spatial"]`` (as scanpy and squidpy read it, for example), or what spatialdata-io returns. A SpatialData with
        both modalities, such as an earlier result, brings its MSI along. One AnnData that nobody names gets the name of the
        MSI section.
    msi
        MSI sections, likewise: what the readers of :mod:`stmsi.io` return, or AnnData of pixels x ions with integer
        ``obs["row"]`` and ``obs["col"]``. Every MSI section needs an ST section of its name; an ST section without MSI is
        for prediction only.
    sample_key
        Column of ``obs`` with the section name, for AnnData that hold several sections.
    table_key, shapes_key
        Of ST sections given as SpatialData that stmsi has not made: the table with the counts (`None`: the only one), and
        the outlines of its observations (`None`: what the table annotates), such as ``"cell_boundaries"``.
    um_per_unit
        Micrometres per unit of the positions of ST: 100 for array positions with a pitch of one; or a mapping from section.
        `None`: what the data tell, by ``array_row`` and ``array_col`` of a Visium array, by the scale factors of Space
        Ranger, or by the reader of spatialdata-io; a conversion is logged. Where nothing tells, positions are taken for
        micrometres, and a doubtful pitch is warned of.
    spot_diameter
        Diameter of the spots of ST given as AnnData, in micrometres. `None`: 55 (Visium), or the size of a bin.
    pixel_size
        Side of a pixel of MSI given as AnnData, in micrometres, or ``(x, y)``; `None`: as ``uns["msi"]["attrs"]`` states.
    join
        Whether genes must be in every section (``"inner"``) or in any (``"outer"``, missing counts are 0). The ions of
        every section are always kept.
    mz_tolerance
        Which ions of different sections are the same. `None`: those with one name. A number: those whose m/z differ by no
        more than so many ppm, whatever their names; each ion goes with its mutual nearest. In both, ions whose adduct,
        formula or polarity are given and differ stay apart.

    Returns
    -------
    SpatialData with the tables ``st`` and ``msi``, shapes ``<sample>_spots`` and ``<sample>_pixels``, and the images
    and points of the inputs, which are not changed. MSI that is all on disk (``read_imzml(out=)``) stays there. What only some sections have is missing (NaN) in the others: columns
    of ``obs`` and ``var``, arrays in ``obsm``. What cannot be put together (layers and graphs of some sections only, notes
    that contradict each other) is left out and named in a warning. Where positions were converted, ``st.uns["st_units"]`` keeps
    for each section ``um_per_unit`` and ``source``. Columns ``sample``, ``region`` and ``instance_id`` of
    yours that mean something else are kept as ``sample_given`` and so on. Images in ``uns["spatial"]`` become
    ``images["<sample>_he"]``. In the table ``msi``:

    - ``var``: id, name and m/z of an ion are those of the first section that measured it;
    - ``varm["measured"]``: ions x sections, whether the section measured the ion. Where it did not, ``X`` holds nothing,
      which is not a measured 0: :func:`stmsi.pp.map_to_spots` writes NaN there;
    - ``varm["section_mz"]``: ions x sections, the m/z in each section (Da), NaN where it was not measured.

    Raises
    ------
    ValueError
        Names clash or differ in case alone, MSI has no ST section, coordinates cannot be micrometres, or two ions of a
        section are equally near to one of another within `mz_tolerance`.
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
    for value in um_per_unit.values() if isinstance(um_per_unit, Mapping) else [um_per_unit]:
        check_positive(value, "um_per_unit")
    check_positive(spot_diameter, "spot_diameter")
    check_positive(mz_tolerance, "mz_tolerance")
    reading = Reading(sample_key, um_per_unit, spot_diameter, table_key, shapes_key)
    given_msi = [] if msi is None else each_section(msi)
    given_st = with_only_name(each_section(st), given_msi, sample_key)
    st_sections = [s for section in given_st for s in as_st(*section, reading)]
    brought = [(None, s) for s in st_sections if Key.table.MSI in s.tables]
    given_msi = [pair for pair in given_msi if not any(pair[1] is s for _, s in brought)]
    msi_sections = [s for section in [*brought, *given_msi] for s in as_msi(*section, sample_key, pixel_size)]
    if not st_sections:
        msg = "No ST section was given."
        raise ValueError(msg)
    check_partners(unique_sections(st_sections, Key.table.ST), unique_sections(msi_sections, Key.table.MSI))

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
    tables, renamed = {}, set[str]()
    if msi_sections:
        tables[Key.table.MSI], renamed = concat_msi([s.tables[Key.table.MSI] for s in msi_sections], mz_tolerance)
    st_table = concat_st([s.tables[Key.table.ST] for s in st_sections], join, renamed)
    return SpatialData.init_from_elements(elements | {Key.table.ST: st_table} | tables)

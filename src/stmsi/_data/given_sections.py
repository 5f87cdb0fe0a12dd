"""Sections as users pass them to :func:`stmsi.pp.combine`, brought into the data model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.adopt import adopt
from stmsi._data.checks import check_nonnegative, for_section, is_spatialdata, listing, require_rows, require_unique
from stmsi._data.keys import Key
from stmsi._data.position_units import note_unit
from stmsi._data.sections import add_image, columns_to_keep, msi_section, st_section
from stmsi._data.spot_scale import known_scale, um_positions
from stmsi._data.tables import as_csr, layer_names, require_obs, require_sample, sample_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    Section: TypeAlias = AnnData | SpatialData
    Sections: TypeAlias = Section | Iterable[Section] | Mapping[str, Section]

_FOV, _ON_THE_SLIDE = "fov", ("global", "spatial_fov")
"""CosMx: the field of view of a cell, and where spatialdata-io and squidpy keep positions on the whole slide."""
_SCALED = 0.02
"""Share of the spread up to which positions are those of the slide in another unit."""
_ONLY_SECTION = "section"
"""Name of a single section that nobody has named."""
_TWO_MEASUREMENTS = (
    "One ST section with several MSI measurements (both polarities, several matrices): combine, align and map each "
    "measurement by itself, then bring the metabolites together with stmsi.pp.add_metabolites(..., append=True)."
)


@dataclass(frozen=True)
class Reading:
    """How ST sections are read; see :func:`stmsi.pp.combine`."""

    sample_key: str = Key.obs.SAMPLE
    um_per_unit: float | Mapping[str, float] | None = None
    spot_diameter: float | None = None
    table_key: str | None = None
    shapes_key: str | None = None


def each_section(sections: Sections) -> list[tuple[str | None, Section]]:
    """Sections with the names that they were given."""
    if isinstance(sections, AnnData) or is_spatialdata(sections):
        return [(None, sections)]  # type: ignore[list-item]
    if isinstance(sections, Mapping):
        return [(str(name), section) for name, section in sections.items()]
    return [(None, section) for section in sections]


def with_only_name(
    st: list[tuple[str | None, Section]], msi: list[tuple[str | None, Section]], sample_key: str
) -> list[tuple[str | None, Section]]:
    """A single ST section that nobody has named gets the name of the single MSI section, or a plain one."""
    if len(st) != 1:
        return st
    name, section = st[0]
    if name is not None or not isinstance(section, AnnData) or sample_key in section.obs:
        return st
    return [(_name_of(msi, sample_key), section)]


def _name_of(msi: list[tuple[str | None, Section]], sample_key: str) -> str:
    if len(msi) != 1:
        return _ONLY_SECTION
    name, section = msi[0]
    if name is not None:
        return name
    table = section if isinstance(section, AnnData) else section.tables.get(Key.table.MSI)
    if table is None or sample_key not in table.obs:
        return _ONLY_SECTION
    names = list(dict.fromkeys(require_sample(table, sample_key)))
    return names[0] if len(names) == 1 else _ONLY_SECTION


def as_st(name: str | None, section: Section, reading: Reading) -> list[SpatialData]:
    """ST sections of what was passed."""
    if is_spatialdata(section):
        if reading.table_key is None and reading.shapes_key is None and _follows(section, Key.table.ST, Key.spots):
            return [_named(name, section, Key.table.ST)]
        return [adopt(name, section, reading.table_key, reading.shapes_key, reading.um_per_unit, reading.sample_key)]
    out = []
    for sample, part in split(name, section, reading.sample_key):
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
        part = _on_one_slide(part, sample)
        scale = known_scale(
            part, sample, for_section(reading.um_per_unit, sample, "um_per_unit"), reading.spot_diameter
        )
        xy = um_positions(part, sample, scale)
        made = st_section(part, xy, sample=sample, spot_diameter=scale.spot_diameter)
        table = made.tables[Key.table.ST]
        for key, column in columns_to_keep(part, sample, Key.spots(sample)).items():
            table.obs[key] = column
        note_unit(table, part, sample, scale.um_per_unit, scale.source)
        image = scale.take_image(table)
        if image is not None:
            add_image(made, Key.image(sample), *image, sample)
        out.append(made)
    return out


def _on_one_slide(part: AnnData, sample: str) -> AnnData:
    """Positions on the slide where ``obsm["spatial"]`` counts from the corner of each field of view; `part` is not changed."""
    key = next((k for k in _ON_THE_SLIDE if k in part.obsm), None)
    if key is None or _FOV not in part.obs or part.obs[_FOV].nunique() < 2:
        return part
    own, slide = (np.asarray(part.obsm[k], dtype=np.float64)[:, :2] for k in (Key.obsm.SPATIAL, key))
    if not (np.isfinite(own).all() and np.isfinite(slide).all()):
        return part
    design = np.column_stack([slide, np.ones(len(slide))])
    off = design @ np.linalg.lstsq(design, own, rcond=None)[0] - own
    if np.sqrt((off**2).sum(axis=1).mean()) <= _SCALED * np.sqrt(own.var(axis=0).sum()):
        return part
    logger.warning(
        "Section %r: obsm['spatial'] counts from the corner of each of %d fields of view; obsm[%r], on the slide, is taken. Pass "
        "um_per_unit= (CosMx: 0.12028 um a pixel).", sample, part.obs[_FOV].nunique(), key,
    )  # fmt: skip
    part = part.copy()
    part.obsm[Key.obsm.SPATIAL] = slide
    return part


def as_msi(
    name: str | None, section: Section, sample_key: str, pixel_size: float | tuple[float, float] | None
) -> list[SpatialData]:
    """MSI sections of what was passed."""
    if is_spatialdata(section):
        if not _follows(section, Key.table.MSI, Key.pixels):
            msg = (
                f"The SpatialData does not follow stmsi's data model: expected a table {Key.table.MSI!r} and shapes "
                f"{Key.pixels('<sample>')!r}; found {listing(n for _, n, _ in section.gen_elements())}. Make it with a "
                "reader of stmsi.io."
            )
            raise ValueError(msg)
        return [_named(name, section, Key.table.MSI)]
    out = []
    for sample, part in split(name, section, sample_key):
        remedy = "MSI pixels need their integer raster position."
        row, col = (require_obs(part, key, remedy).to_numpy() for key in (Key.obs.ROW, Key.obs.COL))
        if part.X is None:
            msg = f"MSI section {sample!r} has no X; put the intensities there."
            raise ValueError(msg)
        attrs = _attrs_of(part, sample)
        stated = attrs.pop("pixel_size", None)
        size = pixel_size if pixel_size is not None or stated is None else tuple(np.broadcast_to(stated, 2).tolist())
        if size is None:
            msg = f"MSI given as AnnData needs pixel_size= (micrometres); section {sample!r} does not state its own."
            raise ValueError(msg)
        extra = part.obs.drop(columns=[Key.obs.ROW, Key.obs.COL])
        extra = extra.assign(**columns_to_keep(part, sample, Key.pixels(sample)))
        made = msi_section(part.X, part.var, row, col, sample=sample, pixel_size=size, obs=extra, attrs=attrs)
        _carry_over(part, made.tables[Key.table.MSI])
        out.append(made)
    return out


def unique_sections(sections: list[SpatialData], table: str) -> list[str]:
    """Names of all sections; refuses those that repeat, or that a file system may take for one."""
    names = [name for s in sections for name in sample_names(s, table)]
    if len(set(names)) < len(names):
        hint = f" {_TWO_MEASUREMENTS}" if table == Key.table.MSI else ""
        msg = f"Section names of table {table!r} repeat: {listing(names)}. Give each section its own name.{hint}"
        raise ValueError(msg)
    by_case: dict[str, list[str]] = {}
    for name in names:
        by_case.setdefault(name.casefold(), []).append(name)
    if alike := [n for own in by_case.values() if len(own) > 1 for n in own]:
        msg = (
            f"Section names differ in upper and lower case alone: {listing(alike)}. On many file systems they would be one "
            "folder; rename one of them."
        )
        raise ValueError(msg)
    return names


def check_partners(st_names: list[str], msi_names: list[str]) -> None:
    """Every MSI section needs an ST section of its name; the other way round is told."""
    orphans = [name for name in msi_names if name not in st_names]
    if orphans:
        several = f" {_TWO_MEASUREMENTS}" if len(msi_names) > len(st_names) else ""
        msg = (
            f"MSI sections without an ST section of the same name: {listing(orphans)}; ST sections: {listing(st_names)}. "
            f"Pass mappings {{name: section}} with the same names on both sides.{several}"
        )
        raise ValueError(msg)
    without = [name for name in st_names if name not in msi_names]
    if without:
        logger.info("Sections without MSI (for prediction only): %s", listing(without))


def _attrs_of(part: AnnData, sample: str) -> dict[str, Any]:
    """What an MSI table knows of a section: polarity, pixel size, file."""
    attrs = part.uns.get(Key.uns.MSI, {}).get("attrs", {})
    label = part.obs[Key.obs.SAMPLE].astype(str).iloc[0] if Key.obs.SAMPLE in part.obs else sample
    return deepcopy(dict(attrs.get(label, attrs.get(sample, {}))))


def _carry_over(source: AnnData, table: AnnData) -> None:
    """What an AnnData of ions holds beside the data model: layers, further arrays, unstructured notes."""
    for key in layer_names(source):
        table.layers[key] = as_csr(source.layers[key], np.float32)
    for key in source.obsm:
        value = source.obsm[key].copy()
        if isinstance(value, pd.DataFrame):
            value = value.set_axis(table.obs_names)
        if key not in table.obsm:
            table.obsm[key] = value
        elif np.shape(value) != np.shape(table.obsm[key]) or not np.allclose(value, table.obsm[key], equal_nan=True):
            table.obsm[f"{key}_given"] = value
    for key in source.varm:
        value = source.varm[key].copy()
        table.varm[key] = value.set_axis(table.var_names) if isinstance(value, pd.DataFrame) else value
    for key in source.uns.keys() - table.uns.keys():
        table.uns[key] = deepcopy(source.uns[key])


def split(name: str | None, adata: AnnData, sample_key: str) -> list[tuple[str, AnnData]]:
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


def _follows(section: Any, table: str, element: Any) -> bool:
    """Whether a SpatialData has a table of the data model and the shapes that it annotates."""
    if table not in section.tables or Key.obs.SAMPLE not in section.tables[table].obs:
        return False
    return all(element(name) in section.shapes for name in sample_names(section, table))


def _named(name: str | None, section: SpatialData, table: str) -> SpatialData:
    """A SpatialData of the data model; the name it was given must be its own."""
    names = sample_names(section, table)
    if name is not None and names != [name]:
        msg = f"The SpatialData given as {name!r} holds the sections {listing(names)}; read it with sample={name!r}."
        raise ValueError(msg)
    return section

"""Read the stores that thyra writes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.spectrum_arrays import mz_labels
from stmsi._data.checks import chosen, listing
from stmsi._data.concatenate import concat_msi
from stmsi._data.containers import open_store
from stmsi._data.keys import Key
from stmsi._data.sections import check_sample_name, msi_section
from stmsi._data.tables import as_csr
from stmsi.io._pixels import measured_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_SIBLINGS = ("_mobility", "_msms")
"""Tables beside the one of the summed spectra, with other axes."""
_X, _Y, _Z, _PART = "x", "y", "z", "region_number"
_SLICE = re.compile(r"_z\d+$")
_PLACEHOLDER = 1.0


class _Part(NamedTuple):
    """Rows of a table that are one section; its slice and region, where the table has several."""

    table: str
    rows: NDArray[np.bool_]
    labels: tuple[tuple[str, int], ...]


def read_thyra(
    path: str | Path,
    *,
    sample: str | None = None,
    slices: str | Sequence[str] | None = None,
    split_regions: bool = False,
    pixel_size: float | tuple[float, float] | None = None,
    keep_empty: bool = False,
) -> SpatialData:
    """Read a SpatialData store that thyra has converted from the files of an instrument.

    Parameters
    ----------
    path
        The store (``.zarr``). Each slice is a table, ``<id>_z0`` and so on, with ``var["mz"]`` and the raster in
        ``obs["x"]`` and ``obs["y"]``; a volume is one table ``<id>`` with ``obs["z"]``.
    sample
        Name of the section, or the start of the names of several; by default the store's ``<id>``.
    slices
        Sections to read, by the names they get; `None`: all.
    split_regions
        Whether regions of one acquisition (``obs["region_number"]``) become sections of their own.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``; by default that of the store.
    keep_empty
        Whether to keep pixels without any ion, with which older stores fill a rectangle.

    Returns
    -------
    SpatialData with table ``msi`` (pixels x ions, float32 CSR; ions are named by their m/z) and squares
    ``<sample>_pixels`` in micrometres, coordinate system ``<sample>_msi``. One section is called ``<sample>``, several
    ``<sample>_z0``, ...; regions ``<sample>_r1``, ...; both ``<sample>_z0_r1``. Row, column and further columns of ``obs`` and
    ``var`` are those of the store; images are not read. ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``file``,
    ``table``, and ``spectrum_type`` and ``thyra_version`` where known.

    Raises
    ------
    FileNotFoundError
        There is no store.
    KeyError
        `slices` names a section that is not there.
    ValueError
        It is no store of thyra, the pixel size is unknown, or intensities are negative or NaN.

    Warns
    -----
    UserWarning
        The size of a pixel is 1 um, which thyra writes when it knows none.

    Notes
    -----
    Store: https://github.com/M4i-Imaging-Mass-Spectrometry/thyra. It centres its first pixel on the origin; here its corner
    lies there, as in all readers.

    Examples
    --------
    >>> import stmsi
    >>> msi = stmsi.io.read_thyra("run.zarr", sample="s1")  # doctest: +SKIP
    """
    from spatialdata import SpatialData

    path = Path(path)
    store = open_store(path)
    tables = _tables(store, path)
    parts = _parts(tables, split_regions=split_regions)
    named = dict(zip(_names(parts, sample), parts, strict=True))
    sections = []
    for name in chosen(list(named), slices, path.name):
        table = tables[named[name].table]
        size = _pixel_size(store, table, path) if pixel_size is None else pixel_size
        sections.append(_section(table, named[name], name, size, path, keep_empty=keep_empty))
    if len(sections) == 1:
        return sections[0]
    elements: dict[str, Any] = {name: shapes for s in sections for name, shapes in s.shapes.items()}
    elements[Key.table.MSI], _ = concat_msi([s.tables[Key.table.MSI] for s in sections], None)
    return SpatialData.init_from_elements(elements)


def _tables(store: SpatialData, path: Path) -> dict[str, AnnData]:
    """The tables of summed spectra."""
    tables = {str(name): t for name, t in store.tables.items() if not str(name).endswith(_SIBLINGS)}
    fitting = {name: t for name, t in tables.items() if Key.var.MZ in t.var and {_X, _Y} <= set(t.obs)}
    if not fitting:
        held = "; ".join(f"{name!r}: obs {listing(t.obs)}, var {listing(t.var)}" for name, t in tables.items())
        msg = (
            f"{path} is no store of thyra: no table has var['mz'] and the raster in obs['x'] and obs['y']. "
            f"Tables: {held or 'none'}. Stores of metaspace-converter: stmsi.io.read_metaspace."
        )
        raise ValueError(msg)
    return dict(sorted(fitting.items()))


def _parts(tables: Mapping[str, AnnData], *, split_regions: bool) -> list[_Part]:
    """The sections: tables, parted by slices of a volume and, if asked for, by regions."""
    parts = []
    for name, table in tables.items():
        keys = [key for key in (_Z, _PART) if key in table.obs and (key == _Z or split_regions)]
        if not keys:
            parts.append(_Part(name, np.ones(table.n_obs, dtype=bool), ()))
            continue
        label = table.obs[keys].astype(np.int64)
        for values in sorted(set(label.itertuples(index=False, name=None))):
            rows = (label.to_numpy() == values).all(axis=1)
            parts.append(_Part(name, rows, tuple(zip(keys, values, strict=True))))
    return parts


def _names(parts: list[_Part], sample: str | None) -> list[str]:
    """Name of each section: what tells it from the others is appended to that of the data set."""
    ids = list(dict.fromkeys(_SLICE.sub("", part.table) for part in parts))
    several = len({part.table for part in parts}) > 1
    names = []
    for part in parts:
        own = _SLICE.search(part.table)
        base = _SLICE.sub("", part.table)
        if sample is not None:
            base = sample if len(ids) == 1 else f"{sample}_{base}"
        name = base + (own[0] if own and several else "")
        for key, value in part.labels:
            if len({dict(p.labels)[key] for p in parts if p.table == part.table}) > 1:
                name += f"_{'z' if key == _Z else 'r'}{value}"
        names.append(name)
    return [check_sample_name(name) for name in (names if sample is not None else safe_ids(names))]


def _pixel_size(store: SpatialData, table: AnnData, path: Path) -> tuple[float, float]:
    """In micrometres: what the store says, else the widths of its pixels."""
    stated = [store.attrs.get(f"pixel_size_{axis}_um") for axis in (_X, _Y)]
    if any(value is None for value in stated):
        step = [_step(table.obs, axis) for axis in (_X, _Y)]
        stated = [a if a is not None else b for a, b in (step, step[::-1])]
    if any(value is None or not np.isfinite(value) or value <= 0 for value in stated):
        msg = f"{path} does not tell the size of its pixels; pass pixel_size= (micrometres)."
        raise ValueError(msg)
    size = (float(stated[0]), float(stated[1]))  # type: ignore[arg-type]
    if size == (_PLACEHOLDER, _PLACEHOLDER):
        warnings.warn(
            f"{path.name}: pixels of 1 um, which thyra writes when it knows no size; pass pixel_size= where it is wrong.",
            stacklevel=3,
        )
    return size


def _step(obs: pd.DataFrame, axis: str) -> float | None:
    """Micrometres per raster index along an axis, from the two columns of places."""
    if f"spatial_{axis}" not in obs or obs[axis].nunique() < 2:
        return None
    index, um = (obs[key].to_numpy(dtype=np.float64) for key in (axis, f"spatial_{axis}"))
    return float((um[index.argmax()] - um[index.argmin()]) / (index.max() - index.min()))


def _section(
    table: AnnData, part: _Part, name: str, pixel_size: float | tuple[float, float], path: Path, *, keep_empty: bool
) -> SpatialData:
    X = as_csr(table.X, np.float32)[part.rows]
    keep = measured_pixels(X, keep_empty=keep_empty, what=f"Section {name!r} of {path.name}")
    obs = table.obs[part.rows][keep]
    mz = table.var[Key.var.MZ].to_numpy(dtype=np.float64)
    var = table.var.set_axis(mz_labels(mz), axis=0)
    essential = table.uns.get("essential_metadata", {})
    known = {key: str(essential[key]) for key in ("spectrum_type", "thyra_version") if key in essential}
    attrs = {"format": "thyra", "file": path.name, "table": part.table, **dict(part.labels), **known}
    own = [_X, _Y, _Z, "region", "instance_key", "instance_id", "spatial_x", "spatial_y"]
    return msi_section(
        X[keep], var, obs[_Y].to_numpy(), obs[_X].to_numpy(), sample=name, pixel_size=pixel_size,
        obs=obs.drop(columns=own, errors="ignore"), attrs=attrs,
    )  # fmt: skip

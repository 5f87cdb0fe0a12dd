"""Sections as the command line names them, read by the reader that their files ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmsi.cli._files import read_data

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_NAMED = re.compile(r"(?P<name>[0-9A-Za-z_.-]+)=(?P<path>.+)")
_IMZML = (".imzml", ".imzml.gz")
_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".csv.gz", ".tsv.gz", ".txt.gz")
_ENDINGS = (*_IMZML, *_TABLES, ".h5ad", ".zarr")


def named_path(text: str) -> tuple[str | None, Path]:
    """``NAME=PATH`` or a path alone."""
    found = None if Path(text).exists() else _NAMED.fullmatch(text)
    return (None, Path(text)) if found is None else (found["name"], Path(found["path"]))


def default_name(path: Path) -> str:
    """Name of a section from its file or folder; ``outs`` of Space Ranger has that of its parent."""
    from stmsi._core.ids import safe_ids

    path = path.resolve()
    path = path.parent if path.name == "outs" else path
    ending = next((e for e in _ENDINGS if path.name.lower().endswith(e)), "")
    return safe_ids([path.name[: len(path.name) - len(ending)]])[0]


def read_st(name: str | None, path: Path, options: dict[str, Any]) -> SpatialData:
    """ST sections of a Space Ranger folder, an AnnData or a SpatialData, in the data model.

    Parameters
    ----------
    name
        Of the section; `None`: as the data say, else from the path.
    path
        The folder, ``.h5ad`` or ``.zarr``.
    options
        Of :func:`stmsi.pp.combine`, for data that stmsi has not made.
    """
    import stmsi
    from stmsi._data.keys import Key
    from stmsi._data.tables import table_sections

    if path.is_dir() and path.suffix != ".zarr":
        return stmsi.io.read_visium(path, sample=name or default_name(path))
    content: Any = read_data(path)
    if path.suffix == ".h5ad":
        column = options["sample_key"]
        several = column in content.obs and len(table_sections(content, column)) > 1
        if name is None and column not in content.obs:
            name = default_name(path)
        options = {k: v for k, v in options.items() if k not in ("table_key", "shapes_key")}
        return stmsi.pp.combine(content if name is None or several else {name: content}, **options)
    if Key.table.ST in content.tables and options["table_key"] is None and options["shapes_key"] is None:
        return content
    return stmsi.pp.combine({name or default_name(path): content}, **options)


def read_msi(
    name: str, path: Path, pixel_size: float | None, mz: pd.DataFrame | None, pick_peaks: bool
) -> SpatialData | AnnData:
    """An MSI section of an imzML file, a wide table, a store of thyra or of stmsi.

    Parameters
    ----------
    name
        Of the section.
    path
        The file or store.
    pixel_size
        Micrometres; `None`: as the file states.
    mz, pick_peaks
        Of imzML: the ions to read, or whether to pick them first.

    Raises
    ------
    ValueError
        The suffix is not known, or ions are named for a file that is no imzML.
    """
    import stmsi
    from stmsi._data.keys import Key

    lower = path.name.lower()
    if (mz is not None or pick_peaks) and not lower.endswith(_IMZML):
        msg = f"--mz and --pick-peaks go with imzML; {path.name} brings its own ions."
        raise ValueError(msg)
    if lower.endswith(_IMZML):
        ions = stmsi.pp.pick_peaks(path) if pick_peaks else mz
        return stmsi.io.read_imzml(path, sample=name, pixel_size=pixel_size, mz=ions)  # type: ignore[arg-type]
    if lower.endswith(_TABLES):
        return stmsi.io.read_msi_table(path, sample=name, pixel_size=pixel_size)
    if path.suffix not in (".h5ad", ".zarr"):
        msg = f"Expected MSI as imzML, a table (.csv, .tsv, .parquet, .h5ad) or a store (.zarr), found {path.name!r}."
        raise ValueError(msg)
    content: Any = read_data(path)
    if path.suffix == ".zarr":
        if Key.table.MSI in content.tables:
            return content
        return stmsi.io.read_thyra(path, sample=name, pixel_size=pixel_size)
    if not {Key.obs.ROW, Key.obs.COL} <= set(content.obs):
        return stmsi.io.read_msi_table(path, sample=name, pixel_size=pixel_size)
    if Key.obs.SAMPLE not in content.obs:
        content.obs[Key.obs.SAMPLE] = name
    return content


def read_ions(path: Path) -> pd.DataFrame:
    """A list of ions: a column ``mz`` (Da), and ``name`` where they have names."""
    from stmsi._data.checks import listing
    from stmsi._data.keys import Key
    from stmsi._data.small_files import read_list

    table = read_list(path, "a list of ions", separators=",;\t|", heading="#", comment="#")
    if Key.var.MZ not in table:
        msg = f"{path} has the columns {listing(table.columns)}; expected {Key.var.MZ!r} (Da), and {Key.var.NAME!r} if you like."
        raise ValueError(msg)
    return table.set_index(Key.var.NAME) if Key.var.NAME in table else table

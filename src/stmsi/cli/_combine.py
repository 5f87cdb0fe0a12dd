"""``stmsi combine``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmsi.cli._app import Json, command, one_of, say, step
from stmsi.cli._files import check_output, write_data
from stmsi.cli._next_step import new_path, say_next
from stmsi.cli._sections import default_name, named_path, read_ions, read_msi, read_st

if TYPE_CHECKING:
    from spatialdata import SpatialData

_ST = (
    "An ST section (may be repeated), as PATH or NAME=PATH: a Space Ranger folder (outs), an AnnData (.h5ad, with the centres "
    "in obsm['spatial']), or a SpatialData (.zarr) of spatialdata-io or stmsi."
)
_MSI = (
    "An MSI section (may be repeated), as PATH or NAME=PATH: imzML, a wide table (.csv, .tsv, .parquet, .h5ad), or a store "
    "(.zarr) of thyra or stmsi. Sections of one name go together; a single pair needs no names."
)
_UNIT = "Micrometres per unit of the positions of ST; default: what the data tell."
_JOIN = "inner or outer: genes of every section, or of any."
_MZ = "Ions to read from imzML: csv with a column mz (Da) and, if you like, name."
_TOLERANCE = "Which ions of several sections are the same: those within so many ppm; default: those with one name."
_PICKED_PPM = 5.0
"""Ions that were picked in each file have names of their own, so they are matched by m/z."""


def combine(
    *,
    st: Annotated[list[str], typer.Option(help=_ST)],
    out: Annotated[Path, typer.Option(help="Where to write the sections together (.zarr).")],
    msi: Annotated[list[str] | None, typer.Option(help=_MSI)] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Side of an MSI pixel (um); default: as stated.")] = None,
    um_per_unit: Annotated[float | None, typer.Option(help=_UNIT)] = None,
    spot_diameter: Annotated[float | None, typer.Option(help="Diameter of a spot (um) of an AnnData.")] = None,
    table_key: Annotated[str | None, typer.Option(help="Table with the counts, of a SpatialData with several.")] = None,
    shapes_key: Annotated[
        str | None, typer.Option(help="Outlines of its cells or bins, such as cell_boundaries.")
    ] = None,
    sample_key: Annotated[str, typer.Option(help="Column of obs that names the section.")] = "sample",
    join: Annotated[str, one_of(_JOIN, "inner", "outer")] = "inner",
    mz: Annotated[Path | None, typer.Option(help=_MZ)] = None,
    pick_peaks: Annotated[bool, typer.Option("--pick-peaks", help="Pick the ions of imzML first (profiles).")] = False,
    mz_tolerance: Annotated[float | None, typer.Option(help=_TOLERANCE)] = None,
    as_json: Json = False,
) -> None:
    """Read ST and MSI sections from files and put them together."""
    with command("combine", as_json=as_json) as result:
        content = combine_files(
            st=st, out=out, msi=msi, pixel_size=pixel_size, um_per_unit=um_per_unit, spot_diameter=spot_diameter,
            table_key=table_key, shapes_key=shapes_key, sample_key=sample_key, join=join, mz=mz, pick_peaks=pick_peaks,
            mz_tolerance=mz_tolerance,
        )  # fmt: skip
        result |= {"out": str(out)} | counts_of(content)
        for row in result["sections"]:
            say(f"{row['sample']}: {row['spots']} spots, {row['pixels']} pixels")
        say(
            f"Combined {len(result['sections'])} section(s), {result['genes']} genes, {result['metabolites']} ions -> {out}"
        )
        if not any(row["pixels"] for row in result["sections"]):
            say("There is no MSI: predict metabolites with the folder of a saved model (stmsi predict --help).")
        else:
            say_next("align", out, "--out", new_path(out, "aligned", ".zarr"))


def combine_files(
    *,
    st: Sequence[str],
    out: Path,
    msi: Sequence[str] | None = None,
    pixel_size: float | None = None,
    um_per_unit: float | None = None,
    spot_diameter: float | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    sample_key: str = "sample",
    join: str = "inner",
    mz: Path | None = None,
    pick_peaks: bool = False,
    mz_tolerance: float | None = None,
) -> SpatialData:
    """Read the files, combine them and write the store; the options are those of the command."""
    import stmsi
    from stmsi._data.keys import Key
    from stmsi._data.tables import sample_names

    spots = [named_path(text) for text in st]
    rasters = [named_path(text) for text in msi or []]
    for _, path in (*spots, *rasters):
        if not path.exists():
            msg = f"No such file or folder: {path}"
            raise FileNotFoundError(msg)
        check_output(out, path, suffix=".zarr")
    if mz is not None and pick_peaks:
        msg = "--mz names the ions and --pick-peaks looks for them: pass one of them."
        raise ValueError(msg)
    ions = None if mz is None else read_ions(mz)
    options: dict[str, Any] = {
        "um_per_unit": um_per_unit, "spot_diameter": spot_diameter, "table_key": table_key, "shapes_key": shapes_key,
        "sample_key": sample_key,
    }  # fmt: skip
    st_sections = []
    for name, path in spots:
        with step(f"Reading {path}"):
            st_sections.append(read_st(name, path, options))
    known = [s for section in st_sections for s in sample_names(section, Key.table.ST)]
    msi_sections = []
    for name, path in rasters:
        own = name or (known[0] if len(known) == len(rasters) == 1 else default_name(path))
        with step(f"Reading {path}"):
            msi_sections.append(read_msi(own, path, pixel_size, ions, pick_peaks))
    if pick_peaks and len(rasters) > 1 and mz_tolerance is None:
        mz_tolerance = _PICKED_PPM
        say(f"Ions of the sections are matched by m/z, within {mz_tolerance:g} ppm (--mz-tolerance).")
    with step("Combining"):
        both: dict[str, Any] = {"join": join, "mz_tolerance": mz_tolerance, "pixel_size": pixel_size}
        content = stmsi.pp.combine(st_sections, msi_sections or None, **both)
    with step(f"Writing {out}"):
        write_data(content, out)
    return content


def counts_of(content: SpatialData) -> dict[str, Any]:
    """Numbers of genes, ions and, section by section, of spots and pixels."""
    from stmsi._data.keys import Key
    from stmsi._data.tables import sample_names

    table, pixels = content.tables[Key.table.ST], content.tables.get(Key.table.MSI)
    count = table.obs[Key.obs.SAMPLE].value_counts()
    n_pixels: Any = {} if pixels is None else pixels.obs[Key.obs.SAMPLE].value_counts()
    sections = [
        {"sample": s, "spots": int(count[s]), "pixels": int(n_pixels.get(s, 0))}
        for s in sample_names(content, Key.table.ST)
    ]
    return {"genes": table.n_vars, "metabolites": 0 if pixels is None else pixels.n_vars, "sections": sections}

"""Read the deposit of spatial multimodal analysis (SMA): MALDI-MSI and Visium of one section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from stmsi._core.ids import safe_ids
from stmsi._data.checks import check_choice, chosen, listing
from stmsi._data.containers import check_folder, inside
from stmsi._settings import logger
from stmsi.io._pixels import pixels_from_frame, section_of
from stmsi.io._read_visium import read_visium
from stmsi.io._text_table import read_text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

_PATTERN = "*smamsi.csv"
_LAYOUT = f"a section's {_PATTERN} and the Space Ranger folder outs of the same section"
_MATRICES = {"9aa": "9-AA", "dhb": "DHB", "fmp": "FMP-10", "fmp10": "FMP-10"}
_POLARITY = {"9-AA": "negative", "FMP-10": "positive"}
"""DHB is used in both."""
_UNKNOWN = "unknown"


class _Section(NamedTuple):
    """The files of one section."""

    name: str
    matrix: str
    table: Path
    outs: Path | None


def read_sma(
    path: str | Path,
    *,
    sample: str | Sequence[str] | None = None,
    matrix: str | None = None,
    pixel_size: float | tuple[float, float] = 100.0,
    polarity: Literal["positive", "negative"] | None = None,
    keep_empty: bool = False,
    images: bool = True,
) -> SpatialData:
    """Read sections of the SMA deposit: MALDI imaging and Visium of the same section.

    Parameters
    ----------
    path
        Any folder of the unpacked ``sma.zip``: the whole, a slide or a section. A section is a table ``*_smamsi.csv`` (``x``,
        ``y``, then one column an m/z) in ``<section>_MSI/`` beside ``<section>_RNA/outs``, or beside ``outs`` itself.
    sample
        Sections to read, such as ``"V11L12-109_B1"``; `None`: all that have both.
    matrix
        MALDI matrix of the sections to read: ``"DHB"``, ``"9-AA"`` or ``"FMP-10"``. Needed where the folder holds several,
        because one m/z is another ion in another matrix.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``; the tables hold raster indices.
    polarity
        Of the spectra; by default what goes with the matrix (9-AA negative, FMP-10 positive), else unknown.
    keep_empty
        Whether to keep pixels without any ion, with which the tables fill a rectangle.
    images
        Whether to keep the histology.

    Returns
    -------
    SpatialData as made by :func:`stmsi.pp.combine`. The deposit holds no transformation between the two modalities, and
    the raster may be turned or mirrored: :func:`stmsi.pp.align` comes next. ``uns["msi"]["attrs"][<sample>]`` holds
    ``matrix``, ``polarity``, ``pixel_size``, ``file``, and ``origin`` and ``pitch`` of the raster.

    Raises
    ------
    FileNotFoundError
        The folder, the tables or all of the Space Ranger folders are missing.
    KeyError
        `sample` names a section that is not there.
    ValueError
        There are several matrices, or tables for one section, or a table is not as described.

    Notes
    -----
    Vicari et al. 2024, https://doi.org/10.1038/s41587-023-01937-y; data https://doi.org/10.17632/w7nw4km7xd.1. The default
    size of a pixel fits the area of section V11L12-109_B1; pass that of your section where it is known.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.read_sma("sma", matrix="FMP-10")  # doctest: +SKIP
    """
    from stmsi.pp import combine

    root = check_folder(Path(path), _LAYOUT)
    sections = _select(_find(root), root, sample, matrix)
    msi = {}
    for s in sections:
        attrs = {"format": "sma", "matrix": s.matrix, "polarity": polarity or _POLARITY.get(s.matrix, _UNKNOWN)}
        pixels = pixels_from_frame(read_text_table(s.table), s.table, fixed=True)
        msi[s.name] = section_of(
            pixels, s.table, sample=s.name, pixel_size=pixel_size, attrs=attrs, keep_empty=keep_empty
        )
    st = {s.name: read_visium(s.outs, sample=s.name, images=images) for s in sections if s.outs is not None}
    return combine(st, msi)


def _find(root: Path) -> list[_Section]:
    # macOS puts a shadow of every file into its archives
    tables = sorted(p for p in root.rglob(_PATTERN) if "__MACOSX" not in p.parts and not p.name.startswith("._"))
    if not tables:
        msg = f"{root} holds no table {_PATTERN}; found {inside(root)}. Expected {_LAYOUT}."
        raise FileNotFoundError(msg)
    return [_Section(_name(table), _matrix(table), table, _outs(table, root)) for table in tables]


def _name(table: Path) -> str:
    folder = table.parent.name
    first = table.name.split(".")[0]
    return safe_ids([folder.removesuffix("_MSI") if folder.endswith("_MSI") else first.removesuffix("_smamsi")])[0]


def _matrix(table: Path) -> str:
    tokens = re.split(r"[._]", table.name.lower().replace("-", ""))
    return next((_MATRICES[token] for token in tokens if token in _MATRICES), _UNKNOWN)


def _outs(table: Path, root: Path) -> Path | None:
    """The Space Ranger folder that belongs to a table: the nearest one on the way up, and the only one there."""
    folder = table.parent
    twin = folder.with_name(f"{folder.name.removesuffix('_MSI')}_RNA") / "outs"
    if twin.is_dir():
        return twin
    while True:
        found = sorted({p for pattern in ("outs", "*_RNA/outs") for p in folder.glob(pattern) if p.is_dir()})
        if len(found) == 1:
            return found[0]
        if len(found) > 1 or folder in (root, folder.parent):
            return None
        folder = folder.parent


def _select(
    sections: list[_Section], root: Path, sample: str | Sequence[str] | None, matrix: str | None
) -> list[_Section]:
    if matrix is not None:
        check_choice(matrix, dict.fromkeys(s.matrix for s in sections), "matrix")
        sections = [s for s in sections if s.matrix == matrix]
    names = chosen(list(dict.fromkeys(s.name for s in sections)), sample, str(root))
    sections = [s for name in names for s in sections if s.name == name]
    unpaired = [s.name for s in sections if s.outs is None]
    if sample is not None and unpaired:
        msg = f"Section {listing(unpaired)} of {root} has no Space Ranger folder; expected <section>_RNA/outs beside <section>_MSI."
        raise FileNotFoundError(msg)
    sections = [s for s in sections if s.outs is not None]
    if not sections:
        msg = f"No table of {root} has a Space Ranger folder; expected {_LAYOUT}: <section>_RNA/outs beside <section>_MSI."
        raise FileNotFoundError(msg)
    if unpaired:
        logger.warning("Sections without a Space Ranger folder are left out: %s", listing(unpaired))
    matrices = list(dict.fromkeys(s.matrix for s in sections))
    if len(matrices) > 1:
        msg = (
            f"{root} holds sections of several MALDI matrices, {listing(matrices)}, whose ions do not go together: pass "
            "matrix=, one of them."
        )
        raise ValueError(msg)
    names = [s.name for s in sections]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        files = listing(str(s.table.relative_to(root)) for s in sections if s.name in repeated)
        msg = f"{root} holds several tables for one section: {files}. Pass the folder of one of them."
        raise ValueError(msg)
    return sections

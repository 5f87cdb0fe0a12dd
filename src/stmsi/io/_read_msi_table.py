"""Read mass-spectrometry imaging from a table of pixels x ions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.spectrum_arrays import mz_from_names
from stmsi._data.checks import check_choice, listing, suggest
from stmsi._data.containers import check_file, open_h5ad
from stmsi._data.keys import Key
from stmsi._data.sections import check_sample_name
from stmsi._data.small_files import read_parquet
from stmsi._settings import logger
from stmsi.io._pixels import Pixels, pixels_from_frame, section_of
from stmsi.io._scils import is_spectra_export, with_positions
from stmsi.io._text_table import check_numbers, check_repeats, read_text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

TableFormat: TypeAlias = Literal["csv", "tsv", "parquet", "h5ad"]

_SUFFIXES: dict[str, TableFormat] = {
    ".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".parquet": "parquet", ".pq": "parquet", ".h5ad": "h5ad",
}  # fmt: skip
_MZ_COLUMN = re.compile(r"(?:^|[_. ])m/?zs?(?:$|[_. ])", re.IGNORECASE)
_MZ_PREFERRED = ("mz", "m/z", "observed_mz", "raw_mz")
_DEFAULT_X, _DEFAULT_Y = "x", "y"


def read_msi_table(
    path: str | Path,
    *,
    sample: str | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    x_key: str = _DEFAULT_X,
    y_key: str = _DEFAULT_Y,
    table_format: TableFormat | None = None,
    separator: str | None = None,
    decimal: str = ".",
    obs_keys: Sequence[str] = (),
    mz_key: str | None = None,
    layer: str | None = None,
    coordinates: str | Path | None = None,
) -> SpatialData:
    r"""Read one MSI section from a wide table (csv, tsv, parquet) or an AnnData file (h5ad).

    Row and column of each pixel follow from its coordinates. Their pitch is the usual smallest step along each axis, and
    every coordinate must be near a multiple of it; gaps in the raster are fine.

    Parameters
    ----------
    path
        ``.csv``, ``.tsv``, ``.txt`` (tab), each also ``.gz``, ``.parquet`` or ``.h5ad``. A wide table has one row a pixel:
        `x_key`, `y_key`, then one column an ion, named by its m/z (``104.107``, ``mz-104.107``, ``m/z 104.107``) or by
        anything else. Comment lines (``#``) before the column names are left out.
    sample
        Name of the section; by default the name of the file.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``. By default the pitch of the coordinates where it is above 1;
        coordinates with a pitch of 1 are raster indices, which do not tell the size.
    x_key, y_key
        Columns with the coordinates. In an h5ad file the defaults mean ``obsm["spatial"]``, else these columns of ``obs``.
    table_format
        ``"csv"``, ``"tsv"``, ``"parquet"`` or ``"h5ad"``; by default what the suffix says.
    separator
        Between fields; by default a comma (csv), a tab (tsv), or after comment lines whatever the column names hold.
    decimal
        Decimal sign of the numbers in a text file.
    obs_keys
        Columns of a wide table that are not ions and are kept in ``obs``.
    mz_key
        Column of ``var`` of an h5ad file with the m/z; by default one whose name says m/z, else the names are parsed.
    layer
        Layer of an h5ad file to read instead of ``X``.
    coordinates
        The region spots of SCiLS Lab (``Spot index`` from 0, ``x``, ``y``), where `path` is its export of spectra: a first
        column ``m/z`` with ``Spot 1``, ``Spot 2``, ..., then one column an m/z.

    Returns
    -------
    SpatialData with table ``msi`` (pixels x ions, float32 CSR; `var` with ``mz`` in Da, NaN where the name holds none)
    and squares ``<sample>_pixels`` in micrometres, coordinate system ``<sample>_msi``. Row and column count from
    the smallest y and x. ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``file``, ``format``, and ``origin``
    and ``pitch`` of the coordinates.

    Raises
    ------
    FileNotFoundError
        The file is missing.
    ValueError
        The file is empty, of an unknown format, or not a table; coordinates are missing, repeat or lie on no raster; ions
        repeat; intensities are text, NaN, infinite or negative; the pixel size is unknown; spots of SCiLS Lab have no
        coordinates, or its export holds regions.

    Warns
    -----
    UserWarning
        Most columns are m/z but some are not: these may not be ions.

    Examples
    --------
    Coordinates with a pitch of 1 are raster indices, so the size of a pixel must be told:

    >>> import tempfile, stmsi
    >>> from pathlib import Path
    >>> rows = ["x,y,104.107,760.5851", "1,1,0.5,3", "2,1,0,4", "1,2,0.25,0", "2,2,0,1"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "section.csv")
    ...     n = path.write_text("\n".join(rows))
    ...     sdata = stmsi.io.read_msi_table(path, pixel_size=100)
    >>> sdata.tables["msi"].var["mz"].tolist()
    [104.107, 760.5851]
    """
    path = check_file(Path(path))
    kind = _format(path, table_format)
    sample = safe_ids([_plain(path).stem])[0] if sample is None else check_sample_name(sample)
    if kind == "h5ad":
        pixels = _from_h5ad(path, x_key, y_key, mz_key, layer)
    else:
        default = "," if kind == "csv" else "\t"
        frame = (
            _parquet(path)
            if kind == "parquet"
            else read_text_table(path, separator=separator, decimal=decimal, default=default)
        )
        if is_spectra_export(frame):
            frame = with_positions(frame, path, coordinates, separator=separator, decimal=decimal)
        elif coordinates is not None:
            msg = f"coordinates= goes with an export of spectra of SCiLS Lab (first column 'm/z'); {path.name} is none."
            raise ValueError(msg)
        pixels = pixels_from_frame(frame, path, x_key, y_key, obs_keys)
    return section_of(pixels, path, sample=sample, pixel_size=pixel_size, attrs={"format": kind})


def _plain(path: Path) -> Path:
    """The name of a file without ``.gz``."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _format(path: Path, table_format: TableFormat | None) -> TableFormat:
    if table_format is not None:
        check_choice(table_format, get_args(TableFormat), "table_format")
        return table_format
    found = _SUFFIXES.get(_plain(path).suffix.lower())
    if found is None or (_plain(path) != path and found not in ("csv", "tsv")):
        msg = (
            f"Cannot tell the format of {path.name} from its suffix; known: {listing(_SUFFIXES)}, and .csv.gz, "
            ".tsv.gz. Say it by table_format= (imzML files: stmsi.io.read_imzml)."
        )
        raise ValueError(msg)
    return found


def _parquet(path: Path) -> pd.DataFrame:
    frame = read_parquet(path)
    if isinstance(frame.columns, pd.MultiIndex) or frame.shape[1] == 0:
        msg = f"{path} must have plain columns x, y and one per ion."
        raise ValueError(msg)
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    # pandas calls an index without a name so
    return frame.drop(columns="index", errors="ignore")


def _from_h5ad(path: Path, x_key: str, y_key: str, mz_key: str | None, layer: str | None) -> Pixels:
    adata = open_h5ad(path)
    if layer is not None and layer not in adata.layers:
        msg = f"{path} has no layer {layer!r}; found {listing(adata.layers)}."
        raise ValueError(msg)
    X = adata.X if layer is None else adata.layers[layer]
    if X is None or 0 in adata.shape:
        msg = f"{path} holds no intensities (shape {adata.shape}); name a layer by layer=."
        raise ValueError(msg)
    check_repeats(adata.var_names, path, "ions", "; every ion needs its own name")
    obs, var = adata.obs.copy(), adata.var.copy()
    if (x_key, y_key) == (_DEFAULT_X, _DEFAULT_Y) and Key.obsm.SPATIAL in adata.obsm:
        xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)
        if xy.ndim != 2 or xy.shape[1] < 2:
            msg = f"{path}: obsm[{Key.obsm.SPATIAL!r}] must have the columns x and y, found shape {xy.shape}."
            raise ValueError(msg)
    elif x_key in obs and y_key in obs:
        check_numbers(obs[[x_key, y_key]], path)
        xy = obs[[x_key, y_key]].to_numpy(dtype=np.float64)
    else:
        msg = (
            f"{path} has no positions: neither obsm[{Key.obsm.SPATIAL!r}] nor the columns {x_key!r} and {y_key!r} of "
            f"obs; found {listing(obs.columns)}. Name them by x_key= and y_key=."
        )
        raise ValueError(msg)
    var[Key.var.MZ] = _mz_of(var, mz_key, path)
    obs.columns = pd.Index(safe_ids(obs.columns))
    return Pixels(X, var, xy[:, 0], xy[:, 1], obs)


def _mz_of(var: pd.DataFrame, mz_key: str | None, path: Path) -> NDArray[np.float64]:
    """m/z of the variables: a column that says so, else their names."""
    if mz_key is not None and mz_key not in var:
        msg = f"{path}: var has no column {mz_key!r}; found {listing(var.columns)}.{suggest(mz_key, var.columns)}"
        raise ValueError(msg)
    named = [c for c in var if _MZ_COLUMN.search(str(c)) and pd.api.types.is_numeric_dtype(var[c])]
    ranked = [*(c for c in _MZ_PREFERRED if c in named), *named] if mz_key is None else [mz_key]
    if not ranked:
        return mz_from_names(var.index)
    logger.info("%s: m/z from var[%r]", path.name, ranked[0])
    return pd.to_numeric(var[ranked[0]], errors="coerce").to_numpy(dtype=np.float64)

"""Write measured or predicted ions as imzML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._data.checks import check_choice, check_nonnegative, chosen, listing, require_rows
from stmsi._data.feature_table import base_key, find_features, written_by
from stmsi._data.keys import Key
from stmsi._data.sections import check_pixel_size
from stmsi._data.tables import as_csr, get_table, require_frame, require_obs, require_sample
from stmsi._data.unfinished import unfinished
from stmsi._imzml.header import UNKNOWN
from stmsi._imzml.provenance import ion_terms, origin_terms
from stmsi._imzml.traits import POLARITIES
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.io._files import check_new
from stmsi.io._pixels import find_raster

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Mode = Literal["continuous", "processed"]
Polarity = Literal["positive", "negative"]
_ROWS = 1024
_SOURCE = {"source file": "file", "source identifier": "uuid", "instrument": "instrument"}


class _Pixels(NamedTuple):
    """Positions as imzML counts them, and the pixel size in micrometres."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    size: tuple[float, float] | None


class _Known(NamedTuple):
    """What is known of what is written: polarity (`None`: unknown), origin, and a row for each ion."""

    polarity: Polarity | None
    origin: dict[str, str]
    ions: pd.DataFrame


def write_imzml(
    data: SpatialData | AnnData,
    path: str | Path,
    *,
    metabolite_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str | None = None,
    mode: Mode = "continuous",
    pixel_size: float | tuple[float, float] | None = None,
    polarity: Polarity | None = None,
    show_progress_bar: bool | None = None,
) -> None:
    """Write the ions of one section, measured or predicted, as an imzML file and its .ibd.

    Each pixel becomes a centroid spectrum with one peak an ion. Names, formulas, adducts and classes of the ions go into the
    list of targets, and the origin into the content of the file: measured or predicted, section, layer, model, version, the
    file that was read and its identifier. :func:`stmsi.io.read_imzml` reads both. Columns of ``obs`` are not written. Both files appear
    together when they are whole.

    Parameters
    ----------
    data
        SpatialData, or one of its tables. ``X`` and layers sparse, dense or dask.
    path
        The ``.imzML`` file to make; the ``.ibd`` goes beside it. Neither may exist.
    metabolite_key
        `None` writes the pixels of the MSI table. A layer in ``obsm`` of the ST table, such as ``"msi_pred"``, writes
        spots. Spots on a lattice (``obs["array_row"]`` and ``["array_col"]`` of Visium, or coordinates on a raster) keep
        their rows and columns, with gaps where a hexagonal lattice has no spot; others are put on a raster of `pixel_size`.
    layer
        A layer of the MSI table instead of ``X``.
    sample
        The section to write; needed where there are several.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The table; by default ``"msi"``, and ``"st"`` with `metabolite_key`.
    mode
        ``"continuous"`` writes every ion of every pixel, ``"processed"`` only those above 0.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``; by default what is known of the section.
    polarity
        ``"positive"`` or ``"negative"``; `None`: that of the section, of the adducts, or of the MSI of all sections, where one is known.
    show_progress_bar
        Whether to show progress; `None` follows ``stmsi.settings.progress_bar``.

    Raises
    ------
    KeyError
        The table, layer, section or m/z are missing.
    FileExistsError
        One of the files exists.
    ValueError
        m/z are missing or repeat, intensities are negative or in part NaN (pixels and ions that are NaN throughout are left
        out), or two spots fall into one pixel.

    Notes
    -----
    The files are written by pyimzML: m/z as 64-bit, intensities as 32-bit floats.

    Examples
    --------
    >>> import tempfile, stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stmsi.io.write_imzml(sdata, f"{folder}/section.imzML", sample="P1S1")
    ...     again = stmsi.io.read_imzml(f"{folder}/section.imzML")
    >>> sorted(again.tables["msi"].var_names) == sorted(sdata.tables["msi"].var_names)
    True
    >>> again.tables["msi"].uns["msi"]["attrs"]["section"]["provenance"]["values"]
    'measured'
    """
    check_choice(mode, get_args(Mode), "mode")
    if polarity is not None:
        check_choice(polarity, POLARITIES, "polarity")
    path = Path(path)
    if path.suffix.lower() != ".imzml":
        msg = f"{path} must end with .imzML."
        raise ValueError(msg)
    for file in (path, path.with_suffix(".ibd")):
        check_new(file, "file")
    key = metabolite_key
    adata = get_table(data, table_key or (Key.table.MSI if key is None else Key.table.ST))
    require_rows(adata, "pixels" if key is None else "spots")
    label = require_sample(adata, sample_key)
    names = list(dict.fromkeys(label))
    if sample is None and len(names) > 1:
        msg = f"The table holds {len(names)} sections; pass sample=, one of {listing(names)}. imzML holds one a file."
        raise ValueError(msg)
    name = chosen(names, sample, "the table")[0]
    rows = np.flatnonzero(label == name)
    attrs = _attrs(adata, name)
    if key is None:
        X, features, ids = as_csr(_matrix(adata, layer))[rows], adata.var, adata.var_names
        pixels = _msi_pixels(adata, rows, attrs, pixel_size)
    else:
        frame = require_frame(adata, key, written_by(key) + " ")
        X, features, ids = sp.csr_matrix(frame.to_numpy(np.float32)[rows]), find_features(adata, key), frame.columns
        pixels = _spot_pixels(adata, rows, name, pixel_size)
        attrs = attrs or _attrs_of_msi(data, name)
    mz = _masses(features, ids, key)
    X, keep_rows, keep_ions = _without_nan(X, name)
    check_nonnegative(X, f"Intensities of {key or layer or 'X'!r}")
    order = np.flatnonzero(keep_ions)[np.argsort(mz[keep_ions], kind="stable")]
    same = np.flatnonzero(np.diff(mz[order]) == 0)
    if same.size:
        msg = f"Several ions have one m/z, which imzML cannot tell apart: {listing(ids[order[same]])}. Leave all but one out."
        raise ValueError(msg)
    pixels = _Pixels(pixels.x[keep_rows], pixels.y[keep_rows], pixels.size)
    ions = (
        (pd.DataFrame(index=ids) if features is None else features.reindex(ids)).assign(**{Key.var.MZ: mz}).iloc[order]
    )
    known = _Known(_polarity(data, attrs, ions, polarity), _origin(adata, attrs, name, key, layer), ions)
    _write(X[keep_rows][:, order], mz[order], pixels, path, mode, known, show_progress_bar)
    logger.info("%s: %d pixels x %d ions", path.name, int(keep_rows.sum()), len(order))


def _attrs(adata: AnnData, name: str) -> dict[str, Any]:
    """What is known of a section."""
    record = adata.uns.get(Key.uns.MSI, {})
    return dict(record.get("attrs", {}).get(name, {})) if isinstance(record, dict) else {}


def _attrs_of_msi(data: SpatialData | AnnData, name: str) -> dict[str, Any]:
    """What the MSI table beside the spots knows of a section."""
    msi = getattr(data, "tables", {}).get(Key.table.MSI)
    return {} if msi is None else _attrs(msi, name)


def _polarity(
    data: SpatialData | AnnData, attrs: dict[str, Any], ions: pd.DataFrame, polarity: Polarity | None
) -> Polarity | None:
    """The polarity asked for, that of the section, of the adducts, or of all sections with MSI; `None`: unknown."""
    if polarity is not None:
        return polarity
    stated = [str(attrs.get("polarity", UNKNOWN))]
    if stated[0] not in POLARITIES and Key.var.ADDUCT in ions:
        signs = ions[Key.var.ADDUCT].astype(str).str.strip().str[-1:].map(dict(zip("+-", POLARITIES, strict=True)))
        stated = sorted(signs.dropna().unique())
    if not set(stated) & set(POLARITIES) and (msi := getattr(data, "tables", {}).get(Key.table.MSI)) is not None:
        record = msi.uns.get(Key.uns.MSI, {}).get("attrs", {})
        stated = sorted({str(one.get("polarity", UNKNOWN)) for one in record.values()})
    return cast("Polarity", stated[0]) if len(stated) == 1 and stated[0] in POLARITIES else None


def _origin(adata: AnnData, attrs: dict[str, Any], name: str, key: str | None, layer: str | None) -> dict[str, str]:
    """Where the intensities come from, in words."""
    record = adata.uns.get(key, {}) if key is not None else {}
    model = record.get("model") if isinstance(record, dict) else None
    predicted = isinstance(model, Mapping) or (key is not None and base_key(key) == Key.obsm.PRED)
    earlier = attrs.get("provenance", {})
    values = "predicted" if predicted else "measured" if key is None else "mapped to spots"
    origin = {"values": str(earlier.get("values", values)) if key is None else values, "section": name}
    origin |= {"layer": key or layer or "X", "version": version("stmsi")}
    if isinstance(model, Mapping):
        origin["model"] = f"{model.get('class', UNKNOWN)} (stmsi {model.get('stmsi', UNKNOWN)})"
    elif "model" in earlier and key is None:
        origin["model"] = str(earlier["model"])
    known = {title: str(attrs[key]) for title, key in _SOURCE.items() if str(attrs.get(key, UNKNOWN)) != UNKNOWN}
    return origin | ({} if predicted else known)


def _matrix(adata: AnnData, layer: str | None) -> Any:
    if layer is None:
        return adata.X
    if layer not in adata.layers:
        msg = f"The table has no layer {layer!r}; layers: {listing(adata.layers.keys())}."
        raise KeyError(msg)
    return adata.layers[layer]


def _masses(features: pd.DataFrame | None, ids: pd.Index, key: str | None) -> NDArray[np.float64]:
    where = "var" if key is None else f"the feature table of {key!r}"
    if features is None or Key.var.MZ not in features:
        msg = f"{where} has no column {Key.var.MZ!r}; add the m/z of each ion in Da, imzML needs them."
        raise KeyError(msg)
    mz = pd.to_numeric(features[Key.var.MZ].reindex(ids), errors="coerce").to_numpy(np.float64)
    bad = ~(np.isfinite(mz) & (mz > 0))
    if bad.any():
        msg = (
            f"{int(bad.sum())} of {len(mz)} ions have no m/z in {where}: {listing(ids[bad])}. Fill them in, or leave these "
            "ions out."
        )
        raise ValueError(msg)
    return mz


def _without_nan(X: sp.csr_matrix, name: str) -> tuple[sp.csr_matrix, NDArray[np.bool_], NDArray[np.bool_]]:
    """Intensities with 0 for NaN, and the pixels and ions that are not NaN throughout; raises where others are in part."""
    if not np.isnan(X.data).any():
        return X, np.ones(X.shape[0], bool), np.ones(X.shape[1], bool)
    values = X.toarray()
    unknown = np.isnan(values)
    rows, ions = ~unknown.all(axis=1), ~unknown.all(axis=0)
    if not rows.any():
        msg = f"Section {name!r} has only NaN there; nothing can be written."
        raise ValueError(msg)
    n = int(unknown[rows][:, ions].sum())
    if n:
        msg = (
            f"{n} values of section {name!r} are NaN in pixels that have others; imzML knows no missing value. Leave these "
            "ions or pixels out, or fill them."
        )
        raise ValueError(msg)
    return sp.csr_matrix(np.where(unknown, 0, values)), rows, ions


def _msi_pixels(
    adata: AnnData, rows: NDArray[np.intp], attrs: dict[str, Any], pixel_size: float | tuple[float, float] | None
) -> _Pixels:
    remedy = "It is the raster position of a pixel."
    row, col = (require_obs(adata, k, remedy).to_numpy(np.int64)[rows] for k in (Key.obs.ROW, Key.obs.COL))
    size = pixel_size if pixel_size is not None else attrs.get("pixel_size")
    origin = np.asarray(attrs.get("origin", (1, 1)))
    if origin.shape != (2,) or not (origin == np.round(origin)).all():
        origin = np.array([1, 1])  # a table in micrometres
    size = None if size is None else check_pixel_size(tuple(np.broadcast_to(size, 2)))
    return _Pixels(col + int(origin[0]), row + int(origin[1]), size)


def _spot_pixels(
    adata: AnnData, rows: NDArray[np.intp], name: str, pixel_size: float | tuple[float, float] | None
) -> _Pixels:
    if Key.obsm.SPATIAL not in adata.obsm:
        msg = f"The table has no obsm[{Key.obsm.SPATIAL!r}], the positions of the spots in micrometres."
        raise KeyError(msg)
    xy = np.asarray(adata.obsm[Key.obsm.SPATIAL], dtype=np.float64)[rows, :2]
    on_array = "array_row" in adata.obs and "array_col" in adata.obs
    if pixel_size is not None or on_array:
        if pixel_size is not None:
            size, remedy = check_pixel_size(pixel_size), "a smaller pixel_size="
            col, row = np.rint((xy - xy.min(axis=0)) / size).astype(np.int64).T
        else:
            row, col = (adata.obs[k].to_numpy(np.int64)[rows] for k in ("array_row", "array_col"))
            x, y = _pitch(col, xy), _pitch(row, xy)
            size, remedy = (x or y or 1.0, y or x or 1.0), "pixel_size="
        repeated = pd.DataFrame({"row": row, "col": col}).duplicated()
        if repeated.any():
            msg = f"{int(repeated.sum())} spots of section {name!r} fall into a pixel with another spot; pass {remedy}."
            raise ValueError(msg)
        return _Pixels(col - col.min() + 1, row - row.min() + 1, size)
    try:
        raster = find_raster(xy[:, 0], xy[:, 1], Path(name))
    except ValueError as error:
        msg = f"The spots of section {name!r} are not on a raster; pass pixel_size= (micrometres) to put them on one."
        raise ValueError(msg) from error
    return _Pixels(raster.col + 1, raster.row + 1, raster.pitch)


def _pitch(index: NDArray[np.int64], xy: NDArray[np.float64]) -> float:
    """Micrometres from one row (or column) to the next, whichever way the lattice is turned; 0 with a single one."""
    if index.min() == index.max():
        return 0.0
    centred = index - index.mean()
    slope = centred @ (xy - xy.mean(axis=0)) / (centred @ centred)
    return float(np.hypot(*slope))


def _write(
    X: sp.csr_matrix, mz: NDArray[np.float64], pixels: _Pixels, path: Path, mode: Mode, known: _Known, show: bool | None
) -> None:
    """Both files, first in a folder of their own beside the target."""
    from pyimzml.ImzMLWriter import IMZML_TEMPLATE, ImzMLWriter
    from wheezy.template import CoreExtension, DictLoader, Engine

    with unfinished(path) as folder:
        made = folder / "data.imzML"
        writer = ImzMLWriter(str(made), mode=mode, spec_type="centroid", polarity=known.polarity)
        with closing(writer.xml), closing(writer.ibd), writer:  # the writer leaves them open where it fails
            # the writer has no parameter for these, and names the run after the temporary folder
            template = IMZML_TEMPLATE
            for end, terms in (
                ("</fileContent>", origin_terms(known.origin)),
                ("</scanSettings>", _size_terms(pixels.size) + ion_terms(known.ions)),
            ):
                template = template.replace(
                    end, terms.replace("@", "@@") + end, 1
                )  # "@" begins a command of the template
            engine = Engine(loader=DictLoader({"imzml": template}), extensions=[CoreExtension()])
            writer.imzml_template, writer.run_id = engine.get_template("imzml"), "stmsi"
            starts = track(range(0, X.shape[0], _ROWS), "Writing spectra", total=-(-X.shape[0] // _ROWS), show=show)
            for start in starts:
                for i, intensity in enumerate(X[start : start + _ROWS].toarray(), start):
                    seen: Any = slice(None)
                    if mode == "processed":
                        # a spectrum without any peak is more than the writer, and many a reader, can take
                        seen = np.flatnonzero(intensity) if intensity.any() else slice(1)
                    writer.addSpectrum(mz[seen], intensity[seen], (int(pixels.x[i]), int(pixels.y[i])))
        os.replace(made.with_suffix(".ibd"), path.with_suffix(".ibd"))  # noqa: PTH105
        os.replace(made, path)  # noqa: PTH105 (last: without it, there is no imzML)


def _size_terms(size: tuple[float, float] | None) -> str:
    if size is None:
        return ""
    unit = 'unitCvRef="UO" unitAccession="UO:0000017" unitName="micrometer"'
    terms = zip(("6", "7"), ("pixel size (x)", "pixel size y"), size, strict=True)
    return "  ".join(
        f'<cvParam cvRef="IMS" accession="IMS:100004{code}" name="{name}" value="{value:.10g}" {unit}/>\n    '
        for code, name, value in terms
    )

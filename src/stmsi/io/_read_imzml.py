"""Read mass-spectrometry imaging from an imzML file and its binary .ibd."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.ids import safe_ids
from stmsi._core.spectra.spectrum_arrays import Reduce, Unit, mz_labels
from stmsi._data.checks import check_choice, check_positive, check_share, listing
from stmsi._data.keys import Key
from stmsi._data.sections import check_extent, check_pixel_size, check_sample_name, msi_section, raster_image
from stmsi._data.unfinished import unfinished
from stmsi._imzml.extract import (
    FoundColumns,
    Options,
    Plan,
    SparseRows,
    common_ions,
    extract,
    plan_axis,
    plan_ions,
    plan_targets,
    range_of_mz,
)
from stmsi._imzml.file import ImzmlFile, check_imzml, plain_stem, stated_pixel_size
from stmsi._imzml.provenance import ion_frame
from stmsi._imzml.traits import Kinds, check_kinds, choose_spectra, mixtures, warn_of_mixtures
from stmsi._settings import logger
from stmsi.io._files import check_new
from stmsi.io._msi_store import StoredRows, read_lazily, write_with
from stmsi.io._stored_pixels import StoredPixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    Targets: TypeAlias = Sequence[float] | NDArray[np.floating[Any]] | pd.Series | pd.DataFrame

_EXACT = 1e-6  # ppm, for m/z that were written as 64-bit floats


def read_imzml(
    path: str | Path,
    *,
    mz: Targets | None = None,
    tolerance: float = 5.0,
    unit: Unit = "ppm",
    reduce: Reduce = "sum",
    sample: str | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    min_frequency: float = 0.01,
    z: int | None = None,
    polarity: Literal["positive", "negative"] | None = None,
    spectrum_type: Literal["profile", "centroid"] | None = None,
    ms_level: int | None = None,
    check_uuid: bool = True,
    check_checksum: bool = False,
    out: str | Path | None = None,
    show_progress_bar: bool | None = None,
) -> SpatialData:
    """Read the ions of an imzML file, continuous or processed.

    One pass over the binary file finds all ions, in as many threads as numba is given (``NUMBA_NUM_THREADS``); without numba
    (or with ``STMSI_COMPILED=0`` in the environment) NumPy does the same, more slowly. Positions and offsets of large files
    are kept in ``stmsi.settings.cache_dir``. The raster comes from the positions of the spectra, because the size in the
    header is often wrong. Empty spectra give pixels without intensity. Arrays may be compressed by zlib.

    Parameters
    ----------
    path
        The ``.imzML`` file (or ``.imzML.gz``); its ``.ibd`` lies beside it under the same name, or beside the file that a
        symbolic link leads to.
    mz
        Ions to extract: m/z in Da, or a Series of them, or a DataFrame with a column ``mz``; the index holds the names
        unless it is numeric, and further columns are kept in ``var``. A column ``mz_measured`` says where to look instead
        of ``mz``. `None` takes every bin of the m/z axis of a continuous file, and the common ions of a processed file:
        peaks no further apart than `tolerance` are one ion (at most twice that wide). For profiles, pass what
        :func:`stmsi.pp.pick_peaks` finds. Files of :func:`stmsi.io.write_imzml` name their ions.
    tolerance
        Half width of the m/z window of an ion (both ends belong to it), or the gap that parts two common ions. Windows in
        profiles are as wide as a bin at least, and with a column ``peak_width`` (Da) in `mz` as wide as two bins and the peak.
    unit
        ``"ppm"`` or ``"Da"``, the unit of `tolerance`.
    reduce
        What becomes of several peaks in one window: ``"sum"``, ``"max"`` or ``"mean"``.
    sample
        Name of the section; by default the name of the file.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``; by default that of the file.
    min_frequency
        Share of the spectra, 0 to 1, in which a common ion must at least have an intensity above 0.
    z
        The slice to read where the file holds several.
    polarity
        Read the spectra of this polarity only, ``"positive"`` or ``"negative"``; `None`: all.
    spectrum_type
        Read the profiles or the centroided spectra only, ``"profile"`` or ``"centroid"``; `None`: all.
    ms_level
        Read the spectra of this MS level only, 1 for those of whole molecules; `None`: all.
    check_uuid
        Whether to raise where the two files do not belong together.
    check_checksum
        Whether to compare the binary file with the checksum in the imzML, which takes as long as reading it.
    out
        A new SpatialData store (zarr) to write to while reading, so that neither the intensities nor the outlines of the pixels
        are in memory at once. It appears when it is whole; an error leaves nothing behind.
    show_progress_bar
        Whether to show progress; `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    SpatialData with table ``msi`` (pixels x ions, float32 CSR, `var` with ``mz`` in Da; for common ions also
    ``frequency``) and squares ``<sample>_pixels`` in micrometres, coordinate system ``<sample>_msi``. Row and column
    count from the smallest y and x. ``obs["tic"]`` (float64) is the total ion current of each pixel, the sum of its whole
    spectrum, and the image ``<sample>_tic`` shows it; ``stmsi.pp.normalize_msi(tic_key="tic")`` divides by it.
    ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``origin`` (the smallest x and y), ``file``, ``uuid``,
    ``mode``, ``spectrum_type``, ``polarity``, ``ms_level`` (the last three ``"mixed"`` where spectra differ), ``instrument``
    and how the ions were taken; of files that stmsi wrote also ``provenance``. With `out`, the object belongs to
    the store, ``X`` is a dask array that is read when needed, and the squares are read when they are first asked for. Where ions of `mz` lie outside the m/z of the file,
    ``varm["measured"]`` is False for them, and :func:`stmsi.pp.map_to_spots` gives them NaN.

    Raises
    ------
    FileNotFoundError
        One of the two files is missing, or the folder of `out`.
    FileExistsError
        `out` exists.
    ValueError
        A file is broken, truncated or not an imzML, the two do not belong together, the pixel size is unknown, positions
        repeat, there are several slices, no spectrum is of the kind asked for, or intensities are negative, NaN or infinite.

    Warns
    -----
    UserWarning
        Spectra of both polarities, of several MS levels, or profiles and centroids are read together.

    Notes
    -----
    Format: Schramm et al. 2012, https://doi.org/10.1016/j.jprot.2012.07.026. Repaired, and logged: lengths that are missing,
    64-bit offsets written as 32-bit ones, whole numbers written as floats. Spectra whose m/z are not ascending are sorted.

    Examples
    --------
    >>> import tempfile, stmsi
    >>> from pyimzml.ImzMLWriter import ImzMLWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ImzMLWriter(f"{folder}/section.imzML", mode="processed") as writer:
    ...         for x, y in [(1, 1), (2, 1), (1, 2), (2, 2)]:
    ...             writer.addSpectrum([104.1071, 500.25, 760.5850], [x, 7.0, y], (x, y))
    ...     sdata = stmsi.io.read_imzml(f"{folder}/section.imzML", mz=[104.1070, 760.5851], pixel_size=50)
    >>> sdata.tables["msi"].X.toarray().tolist()
    [[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0]]
    >>> sdata.tables["msi"].obs["tic"].tolist()
    [9.0, 10.0, 10.0, 11.0]
    """
    options = Options(float(tolerance), unit, reduce, float(min_frequency), show_progress_bar)
    check_choice(unit, get_args(Unit), "unit")
    check_choice(reduce, get_args(Reduce), "reduce")
    check_positive(options.tolerance, "tolerance")
    check_share(options.min_frequency, "min_frequency")
    kinds = Kinds(polarity, spectrum_type, ms_level)
    check_kinds(kinds)
    targets = None if mz is None else _target_frame(mz)
    store = None if out is None else check_new(Path(out), "store")
    path = Path(path)
    check_imzml(path)
    sample = safe_ids([plain_stem(path)])[0] if sample is None else check_sample_name(sample)
    with nullcontext() if store is None else unfinished(store) as folder:
        with ImzmlFile(path) as file:
            size = stated_pixel_size(file) if pixel_size is None else check_pixel_size(pixel_size)
            chosen, row, col, origin = _raster(file, z, kinds, path)
            identifier = file.check_uuid(check=check_uuid)
            if check_checksum:
                file.check_checksum()
            plan, var, how = _plan(file, chosen, targets, options)
            if targets is not None:
                _tell_overlaps(plan, var.index, options, path)
            attrs: dict[str, Any] = {
                "format": "imzML", "file": path.name, "uuid": identifier, "mode": file.header.mode,
                **file.index.traits.names(chosen), "instrument": file.header.instrument, "origin": origin,
                "ions": how, "tolerance": options.tolerance, "unit": unit, "reduce": reduce,
            }  # fmt: skip
            if file.header.origin:
                attrs["provenance"] = dict(file.header.origin)
                if file.header.origin.get("values") == "predicted":
                    logger.warning("%s holds predicted intensities, not measured ones.", path.name)
            shape = (len(chosen), plan.n_columns)
            logger.info("%s: %d pixels x %d ions (%s)", path.name, *shape, how)
            rows: SparseRows | StoredRows
            if folder is None:
                rows = SparseRows(*shape)
            else:
                most = int(np.minimum(file.lengths(chosen), plan.n_columns).sum())
                rows = StoredRows(folder / "rows", *shape, most)
            found = FoundColumns(rows, plan.n_columns)
            tic = extract(file, chosen, plan, options, found)
            measured = None if targets is None else _measured(file, chosen, plan, found, options)
            if measured is not None and not measured.all():
                _tell_unmeasured(var, measured, path)
        del file, chosen  # 0.1 kB a spectrum

        def section(X: sp.csr_matrix, part: slice, squares: GeoDataFrame | None = None) -> SpatialData:
            sdata = msi_section(
                X, var, row[part], col[part], sample=sample, pixel_size=size, obs=pd.DataFrame({Key.obs.TIC: tic[part]}),
                attrs=attrs, checked=True, squares=squares,
            )  # fmt: skip
            sdata.images[Key.tic_image(sample)] = raster_image(row, col, tic, size, sample)
            if measured is not None and not measured.all():
                table = sdata.tables[Key.table.MSI]
                table.varm[Key.varm.MEASURED] = pd.DataFrame({sample: measured}, index=table.var_names)
            return sdata

        if isinstance(rows, SparseRows):
            return section(rows.matrix(), slice(None))
        assert folder is not None
        assert store is not None
        pixels = StoredPixels(sample, row, col, size, tic)
        empty = sp.csr_matrix((len(tic[pixels.first]), shape[1]), dtype=np.float32)
        write_with(rows, pixels, section(empty, pixels.first, pixels.corners()), folder, store)
    return read_lazily(store, pixels)


def _raster(
    file: ImzmlFile, z: int | None, kinds: Kinds, path: Path
) -> tuple[NDArray[np.intp], NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]:
    """Spectra of the slice and the kinds, their row and column, and the smallest x and y."""
    xyz, traits = file.xyz, file.index.traits
    slices = np.unique(xyz[:, 2])
    if z is None and len(slices) > 1:
        msg = f"{path.name} holds {len(slices)} slices; pass z=, one of {listing(slices)}."
        raise ValueError(msg)
    if z is not None and z not in slices:
        msg = f"{path.name} has no slice z={z}; it has {listing(slices)}."
        raise ValueError(msg)
    chosen = np.flatnonzero(xyz[:, 2] == (slices[0] if z is None else z))
    chosen = choose_spectra(traits, kinds, chosen, path.name)
    xy = xyz[chosen, :2]
    check_extent(xy[:, 1], xy[:, 0], path.name)
    origin = xy.min(axis=0)
    col, row = (xy - origin).T
    _, first, count = np.unique(col * (int(row.max()) + 1) + row, return_index=True, return_counts=True)
    if len(first) < len(xy):
        repeated = listing([tuple(place) for place in xy[first[count > 1]].tolist()])
        mixed = mixtures(traits, chosen)
        remedy = (
            f"Read one kind at a time: pass {' and '.join(f'{trait}=' for trait in mixed)}."
            if mixed
            else "Export one section and MS level a file."
        )
        msg = f"{path.name}: several spectra share a position (x, y): {repeated}. {remedy}"
        raise ValueError(msg)
    warn_of_mixtures(traits, chosen, path.name)
    return chosen, row, col, origin


def _tell_overlaps(plan: Plan, names: pd.Index, options: Options, path: Path) -> None:
    """Say which ions are asked for so close to each other that their windows share peaks."""
    near = np.flatnonzero(plan.low[1:] <= plan.high[:-1])
    if near.size:
        pairs = [f"{names[a]} and {names[b]}" for a, b in zip(plan.column[near], plan.column[near + 1], strict=True)]
        logger.warning(
            "%s: the windows of %d pairs of ions (%g %s to each side) overlap, and a peak inside both counts for both: %s. "
            "Name one of them, or lower tolerance.",
            path.name, near.size, options.tolerance, options.unit, listing(pairs),
        )  # fmt: skip


def _measured(
    file: ImzmlFile, chosen: NDArray[np.intp], plan: Plan, found: FoundColumns, options: Options
) -> NDArray[np.bool_]:
    """Which of the ions asked for lie inside the m/z that the file holds: elsewhere 0 would be invented."""
    out = np.ones(plan.n_columns, dtype=bool)
    if found.any.all():
        return out
    if plan.bins is not None:
        out[plan.column] = plan.bins.stop > plan.bins.start
    else:
        low, high = range_of_mz(file, chosen, options)
        out[plan.column] = (plan.high >= low) & (plan.low <= high)
    return out


def _tell_unmeasured(var: pd.DataFrame, measured: NDArray[np.bool_], path: Path) -> None:
    logger.warning(
        "%s holds no m/z near %d of %d ions, which are outside of what was acquired or stored; varm[%r] says so, and they "
        "are NaN (not measured) where they are mapped to spots: %s",
        path.name, int((~measured).sum()), len(measured), Key.varm.MEASURED, listing(var.index[~measured]),
    )  # fmt: skip


def _target_frame(mz: Targets) -> pd.DataFrame:
    """Ions asked for: index = names, column ``mz``."""
    if isinstance(mz, pd.DataFrame):
        frame = mz.copy()
    else:
        frame = pd.DataFrame({Key.var.MZ: mz if isinstance(mz, pd.Series) else list(mz)})
    if Key.var.MZ not in frame:
        msg = f"The DataFrame of ions needs a column {Key.var.MZ!r}; found {listing(frame.columns)}."
        raise ValueError(msg)
    values = pd.to_numeric(frame[Key.var.MZ], errors="coerce").to_numpy(dtype=np.float64)
    right = np.isfinite(values) & (values > 0)
    if len(values) == 0 or not right.all():
        wrong = listing(frame[Key.var.MZ][~right])
        msg = f"mz must hold at least one m/z in Da, positive and finite; found {len(values)}, wrong: {wrong}."
        raise ValueError(msg)
    if len(np.unique(values)) < len(values):
        msg = f"mz repeats {listing(frame[Key.var.MZ][frame[Key.var.MZ].duplicated()])}; name every ion once."
        raise ValueError(msg)
    frame[Key.var.MZ] = values
    if pd.api.types.is_numeric_dtype(frame.index):
        frame.index = pd.Index(safe_ids(mz_labels(values)))
    return frame


def _plan(
    file: ImzmlFile, chosen: NDArray[np.intp], targets: pd.DataFrame | None, options: Options
) -> tuple[Plan, pd.DataFrame, str]:
    """Which ions are taken, their table, and where they come from."""
    if targets is not None:
        place = Key.var.MEASURED_MZ if Key.var.MEASURED_MZ in targets else Key.var.MZ
        width = None
        if Key.var.PEAK_WIDTH in targets:
            width = pd.to_numeric(targets[Key.var.PEAK_WIDTH], errors="coerce").to_numpy(np.float64)
        return plan_targets(file, chosen, targets[place].to_numpy(), options, width=width), targets, "targets"
    if file.header.ions:
        # stmsi wrote the file: its peaks have these very m/z
        written = ion_frame(file.header.ions)
        exact = options._replace(tolerance=_EXACT, unit="ppm")
        return plan_targets(file, chosen, written[Key.var.MZ].to_numpy(), exact, profile=False), written, "written"
    shared = file.shared_axis(chosen)
    if shared is not None:
        plan, mz, how = plan_axis(*shared), shared[0], "axis"
        columns: dict[str, Any] = {Key.var.MZ: mz}
    else:
        ions = common_ions(file, chosen, options)
        plan, mz, how = plan_ions(ions), ions.mz, "reference"
        columns = {Key.var.MZ: mz, "frequency": ions.frequency}
    return plan, pd.DataFrame(columns, index=pd.Index(safe_ids(mz_labels(mz)))), how

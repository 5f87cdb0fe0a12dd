"""Read mass-spectrometry imaging from an imzML file and its binary .ibd."""

from __future__ import annotations

import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, get_args
from xml.etree.ElementTree import ParseError, iterparse

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.spectra import (
    Reduce,
    ReferenceIons,
    Unit,
    decode,
    mz_labels,
    reference_mz,
    sorted_spectrum,
    stack_rows,
    sum_windows,
    windows,
)
from stmsi._elements import check_sample_name, msi_section
from stmsi._keys import Key
from stmsi._logging import logger, track
from stmsi._validate import check_choice, listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray
    from pyimzml.ImzMLParser import ImzMLParser
    from spatialdata import SpatialData

    Targets: TypeAlias = Sequence[float] | NDArray[np.floating[Any]] | pd.Series | pd.DataFrame
    Spectrum: TypeAlias = tuple[NDArray[np.float64], NDArray[Any]]

_DTYPES = {
    "MS:1000519": "<i4",
    "MS:1000520": "<f2",
    "MS:1000521": "<f4",
    "MS:1000522": "<i8",
    "MS:1000523": "<f8",
    "IMS:1000141": "<i4",
    "IMS:1000142": "<i8",
}
_ZLIB, _UNCOMPRESSED = "MS:1000574", "MS:1000576"
_NUMPRESS = tuple(f"MS:{code}" for code in (1002312, 1002313, 1002314, 1002746, 1002747, 1002748))
_CONTINUOUS, _PROCESSED, _UUID = "IMS:1000030", "IMS:1000031", "IMS:1000080"
_PIXEL_X, _PIXEL_Y = "IMS:1000046", "IMS:1000047"
_MICROMETRES = {"UO:0000017": 1.0, "UO:0000016": 1000.0, "UO:0000015": 10000.0, "UO:0000018": 0.001}
_UNKNOWN = "unknown"


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
    check_uuid: bool = True,
    show_progress_bar: bool | None = None,
) -> SpatialData:
    """Read the ions of an imzML file, continuous or processed.

    Every spectrum is read and searched once for all ions. The raster comes from the positions of the spectra, because
    the size in the header is often wrong. Spectra whose m/z are not ascending are sorted; empty spectra give pixels
    without intensity. Plain and zlib-compressed arrays of 16- to 64-bit numbers are understood.

    Parameters
    ----------
    path
        The ``.imzML`` file; its ``.ibd`` lies beside it under the same name.
    mz
        Ions to extract: m/z in Da, or a Series of them, or a DataFrame with a column ``mz``; the index holds the names
        unless it is numeric, and further columns are kept in ``var``. `None` takes every bin of the m/z axis of a
        continuous file. In a processed file it looks for common ions: peaks no further apart than `tolerance` are
        one ion (at most twice that wide), and its intensity is that of its own peaks; the spectra are read twice then.
    tolerance
        Half width of the m/z window of an ion (both ends belong to it), or the gap that parts two common ions.
    unit
        ``"ppm"`` or ``"Da"``, the unit of `tolerance`.
    reduce
        What becomes of several peaks in one window: ``"sum"``, ``"max"`` or ``"mean"``.
    sample
        Name of the section; by default the name of the file.
    pixel_size
        Side of a pixel in micrometres, or ``(x, y)``; by default that of the file.
    min_frequency
        Common ions must occur, with an intensity above 0, in at least this share of the spectra, 0 to 1.
    z
        The slice to read where the file holds several.
    check_uuid
        Whether to raise where the two files do not belong together.
    show_progress_bar
        Whether to show progress; `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    SpatialData with table ``msi`` (pixels x ions, float32 CSR, `var` with ``mz`` in Da; for common ions also
    ``frequency``) and squares ``<sample>_pixels`` in micrometres, coordinate system ``<sample>_msi``. Row and column
    count from the smallest y and x. ``uns["msi"]["attrs"][<sample>]`` holds ``pixel_size``, ``origin`` (the smallest x
    and y), ``file``, ``uuid``, ``mode``, ``spectrum_type``, ``polarity``, ``instrument`` and how the ions were taken.

    Raises
    ------
    FileNotFoundError
        Where one of the two files is missing.
    ValueError
        Where a file is broken, truncated or not an imzML, the two do not belong together, the pixel size is unknown,
        positions repeat, there are several slices, or intensities are negative, NaN or infinite.

    Notes
    -----
    Format: Schramm et al. 2012, imzML: a common data format for the flexible exchange and processing of mass
    spectrometry imaging data, https://doi.org/10.1016/j.jprot.2012.07.026. The XML is parsed by pyimzML.

    Examples
    --------
    >>> from stmsi.io import read_imzml
    >>> sdata = read_imzml("section.imzML", mz=[104.1070, 760.5851], tolerance=5)  # doctest: +SKIP
    >>> sdata.tables["msi"].var["mz"]  # doctest: +SKIP
    """
    options = _Options(float(tolerance), unit, reduce, float(min_frequency), show_progress_bar)
    options.check()
    targets = None if mz is None else _target_frame(mz)
    path = _check_file(Path(path))
    ibd = _find_ibd(path)
    sample = safe_ids([path.stem])[0] if sample is None else check_sample_name(sample)
    parser = _parse(path)
    size = _pixel_size(parser, path) if pixel_size is None else pixel_size
    chosen, row, col, origin = _raster(np.asarray(parser.coordinates), z, path)
    with ibd.open("rb") as handle:
        spectra = _Spectra(parser, handle, ibd)
        identifier = _check_uuid(spectra, parser, check=check_uuid)
        X, var, how = _extract(spectra, chosen, targets, options)
    attrs = {
        "format": "imzML",
        "file": path.name,
        "uuid": identifier,
        "mode": spectra.mode,
        "spectrum_type": parser.spectrum_mode or _UNKNOWN,
        "polarity": parser.polarity or _UNKNOWN,
        "instrument": _instrument(parser),
        "origin": origin,
        "ions": how,
        "tolerance": options.tolerance,
        "unit": unit,
        "reduce": reduce,
    }
    logger.info("%s: %d pixels x %d ions (%s)", path.name, X.shape[0], X.shape[1], how)
    return msi_section(X, var, row, col, sample=sample, pixel_size=size, attrs=attrs)


class _Options(NamedTuple):
    """How ions are taken from spectra."""

    tolerance: float
    unit: Unit
    reduce: Reduce
    min_frequency: float
    show: bool | None

    def check(self) -> None:
        """Raise where a value is out of range."""
        check_choice(self.unit, get_args(Unit), "unit")
        check_choice(self.reduce, get_args(Reduce), "reduce")
        if not (np.isfinite(self.tolerance) and self.tolerance > 0):
            msg = f"tolerance must be a positive number, found {self.tolerance!r}."
            raise ValueError(msg)
        if not 0 <= self.min_frequency <= 1:
            msg = f"min_frequency is a share between 0 and 1, found {self.min_frequency!r}."
            raise ValueError(msg)


class _Spectra:
    """The spectra behind a parsed imzML, decoded one by one."""

    def __init__(self, parser: ImzMLParser, handle: BinaryIO, path: Path) -> None:
        self.handle, self.path, self.coordinates = handle, path, parser.coordinates
        content = parser.metadata.file_description
        declared = [name for code, name in ((_CONTINUOUS, "continuous"), (_PROCESSED, "processed")) if code in content]
        self.mode = declared[0] if len(declared) == 1 else _UNKNOWN
        self.mz = list(zip(parser.mzOffsets, parser.mzLengths, strict=True))
        self.intensity = list(zip(parser.intensityOffsets, parser.intensityLengths, strict=True))
        self.mz_type = _array_type(parser, parser.mzGroupId, "m/z", path)
        self.intensity_type = _array_type(parser, parser.intGroupId, "intensity", path)
        self.size = handle.seek(0, 2)
        self._last: tuple[tuple[int, int], NDArray[Any]] | None = None
        # a compressed array ends before the next one begins: pyimzML does not keep its encoded length
        self._starts = np.unique([offset for offset, _ in [*self.mz, *self.intensity]] + [self.size])
        self._check_size()

    def _check_size(self) -> None:
        for places, (dtype, compressed) in ((self.mz, self.mz_type), (self.intensity, self.intensity_type)):
            # how long a compressed array is shows only when it is decoded
            ends = [offset + (1 if compressed else n * dtype.itemsize) for offset, n in places if n > 0]
            end = max(ends, default=0)
            if end > self.size:
                msg = f"{self.path} is truncated: {self.size} bytes, at least {end} expected. Copy the file again."
                raise ValueError(msg)

    def _array(self, place: tuple[int, int], kind: tuple[np.dtype[Any], bool], index: int) -> NDArray[Any]:
        (offset, length), (dtype, compressed) = place, kind
        n_bytes = length * dtype.itemsize
        if compressed:
            n_bytes = int(self._starts[np.searchsorted(self._starts, offset, side="right")]) - offset if length else 0
        self.handle.seek(offset)
        try:
            return decode(self.handle.read(n_bytes), dtype, length, compressed=compressed)
        except ValueError as error:
            msg = f"{self.path}: the spectrum at {self.place(index)} cannot be read: {error}. Copy the file again."
            raise ValueError(msg) from error

    def place(self, index: int) -> str:
        """Position of a spectrum for a message."""
        x, y, _ = self.coordinates[index]
        return f"x={x}, y={y}"

    def read(self, index: int) -> Spectrum:
        """m/z (float64, ascending) and intensities of a spectrum, checked."""
        if self.mz[index][1] != self.intensity[index][1]:
            msg = (
                f"{self.path}: the spectrum at {self.place(index)} has {self.mz[index][1]} m/z but "
                f"{self.intensity[index][1]} intensities; export the file again."
            )
            raise ValueError(msg)
        if self._last is None or self._last[0] != self.mz[index]:
            self._last = self.mz[index], self._array(self.mz[index], self.mz_type, index)
        mz = self._last[1]
        intensity = self._array(self.intensity[index], self.intensity_type, index)
        if not (np.isfinite(mz).all() and (mz > 0).all()):
            msg = f"{self.path}: the spectrum at {self.place(index)} has m/z that are not positive finite numbers."
            raise ValueError(msg)
        bad = ~(np.isfinite(intensity) & (intensity >= 0))
        if bad.any():
            msg = (
                f"{self.path}: the spectrum at {self.place(index)} has {int(bad.sum())} intensities that are negative, "
                f"NaN or infinite ({listing(intensity[bad][:3])}); export it without baseline subtraction or clip it "
                "at 0."
            )
            raise ValueError(msg)
        return sorted_spectrum(mz, intensity)

    def shared_axis(self, chosen: NDArray[np.intp]) -> NDArray[np.float64] | None:
        """The m/z axis where all spectra have the same one, else `None`; what the header says does not decide."""
        places = {self.mz[i] for i in chosen}
        if len(places) == 1 and not (len(chosen) == 1 and self.mode == "processed"):
            return self.read(int(chosen[0]))[0]
        if self.mode != "continuous":
            return None
        axis = self.read(int(chosen[0]))[0]
        if all(np.array_equal(axis, self.read(int(i))[0]) for i in chosen[1:]):
            return axis
        warnings.warn(
            f"{self.path.name} calls itself continuous, but its spectra differ in m/z; it is read as processed.",
            stacklevel=4,
        )
        return None


def _check_file(path: Path) -> Path:
    if path.suffix.lower() == ".ibd":
        msg = f"{path} holds the binary part; pass the .imzML file beside it."
        raise ValueError(msg)
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    if path.is_dir():
        found = listing(sorted(p.name for p in path.glob("*.[iI][mM][zZ][mM][lL]")))
        msg = f"{path} is a directory; pass one imzML file. In it: {found}."
        raise ValueError(msg)
    if path.stat().st_size == 0:
        msg = f"{path} is empty (0 bytes); copy or export it again."
        raise ValueError(msg)
    return path


def _find_ibd(path: Path) -> Path:
    found = sorted(p for p in path.parent.iterdir() if p.stem == path.stem and p.suffix.lower() == ".ibd")
    if not found:
        msg = f"The binary part of {path} is missing: put {path.stem}.ibd beside it."
        raise FileNotFoundError(msg)
    if found[0].stat().st_size == 0:
        msg = f"{found[0]} is empty (0 bytes); copy or export it again."
        raise ValueError(msg)
    return found[0]


def _parse(path: Path) -> ImzMLParser:
    """Metadata, positions and offsets, by pyimzML; nothing is read from the binary file."""
    from pyimzml.ImzMLParser import ImzMLParser

    with path.open("rb") as handle:
        try:
            root = next(iter(iterparse(handle, events=("start",))))[1].tag.rpartition("}")[2]
        except ParseError as error:
            msg = f"{path} is not an imzML file: it is not XML ({error})."
            raise ValueError(msg) from error
        if root != "mzML":
            msg = f"{path} is not an imzML file: its outermost element is <{root}>, expected <mzML>."
            raise ValueError(msg)
        handle.seek(0)
        with warnings.catch_warnings():
            # it warns of every term whose spelling is not that of its ontology, which no user can mend
            warnings.filterwarnings("ignore", category=Warning, module=r"pyimzml\.")
            try:
                parser = ImzMLParser(handle, ibd_file=None, include_spectra_metadata=[_ZLIB])
            except ParseError as error:
                msg = f"{path} is broken or truncated XML ({error}). Copy or export it again."
                raise ValueError(msg) from error
            # what pyimzML trips over where an element that imzML requires is not there
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                msg = f"{path} is not a complete imzML file: no spectra with position, offset and length ({error})."
                raise ValueError(msg) from error
    if any(value is not None for value in parser.spectrum_metadata_fields[_ZLIB]):
        msg = f"{path} declares compression spectrum by spectrum, which is not supported; export it uncompressed."
        raise ValueError(msg)
    return parser


def _array_type(parser: ImzMLParser, group: str | None, what: str, path: Path) -> tuple[np.dtype[Any], bool]:
    """Type of the stored values and whether they are zlib-compressed."""
    params = parser.metadata.referenceable_param_groups[group].param_by_accession if group is not None else {}
    codes = [code for code in _DTYPES if code in params]
    if len(codes) != 1:
        known = "16-, 32- or 64-bit float, 32- or 64-bit integer"
        msg = f"{path.name}: the imzML does not name a supported number type of the {what} arrays ({known})."
        raise ValueError(msg)
    if any(code in params for code in _NUMPRESS):
        msg = f"{path.name}: the {what} arrays are compressed with MS-Numpress; export them uncompressed or with zlib."
        raise ValueError(msg)
    return np.dtype(_DTYPES[codes[0]]), _ZLIB in params and _UNCOMPRESSED not in params


def _check_uuid(spectra: _Spectra, parser: ImzMLParser, *, check: bool) -> str:
    """The identifier both files carry; the binary one begins with its 16 bytes."""
    text = parser.metadata.file_description.param_by_accession.get(_UUID)
    try:
        declared = uuid.UUID(str(text))
    except ValueError:
        logger.info("%s: no valid identifier to check the binary file against", spectra.path.name)
        return _UNKNOWN
    spectra.handle.seek(0)
    head = spectra.handle.read(16)
    if check and head not in (declared.bytes, declared.bytes_le):
        msg = (
            f"{spectra.path} does not belong to the imzML beside it: its identifier is {head.hex()}, expected "
            f"{declared.hex}. Find the right file, or pass check_uuid=False if you are sure."
        )
        raise ValueError(msg)
    return str(declared)


def _pixel_size(parser: ImzMLParser, path: Path) -> tuple[float, float]:
    """Pixel size (x, y) in micrometres from the metadata."""
    sizes: dict[str, float] = {}
    for settings in parser.metadata.scan_settings.values():
        for _, accession, value, _, _, _, unit in settings.cv_params:
            if accession in (_PIXEL_X, _PIXEL_Y) and isinstance(value, int | float) and value > 0:
                sizes[accession] = float(value) * _MICROMETRES.get(unit, 1.0)
    if not sizes:
        msg = f"{path.name} does not say how large a pixel is; pass pixel_size= (micrometres)."
        raise ValueError(msg)
    x, y = sizes.get(_PIXEL_X, sizes.get(_PIXEL_Y, 0.0)), sizes.get(_PIXEL_Y, sizes.get(_PIXEL_X, 0.0))
    if 1.0 in (x, y):
        warnings.warn(
            f"{path.name} gives a pixel size of {x:g} x {y:g} um, which programs write where they do not know it. "
            "Pass pixel_size= (micrometres).",
            stacklevel=3,
        )
    return x, y


def _raster(
    xyz: NDArray[np.int_], z: int | None, path: Path
) -> tuple[NDArray[np.intp], NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]:
    """Spectra of the slice, their row and column, and the smallest x and y."""
    slices = np.unique(xyz[:, 2])
    if z is None and len(slices) > 1:
        msg = f"{path.name} holds {len(slices)} slices; pass z=, one of {listing(slices)}."
        raise ValueError(msg)
    if z is not None and z not in slices:
        msg = f"{path.name} has no slice z={z}; it has {listing(slices)}."
        raise ValueError(msg)
    chosen = np.flatnonzero(xyz[:, 2] == (slices[0] if z is None else z))
    xy = xyz[chosen, :2]
    unique, count = np.unique(xy, axis=0, return_counts=True)
    if (count > 1).any():
        repeated = listing([tuple(place) for place in unique[count > 1].tolist()])
        msg = (
            f"{path.name}: several spectra share a position (x, y): {repeated}. Export one section and MS level a file."
        )
        raise ValueError(msg)
    origin = xy.min(axis=0)
    return chosen, xy[:, 1] - origin[1], xy[:, 0] - origin[0], origin


def _instrument(parser: ImzMLParser) -> str:
    """Name of the instrument, where the file has one: the first term without a value."""
    for configuration in parser.metadata.instrument_configurations.values():
        for name, _, _, _, raw_value, _, _ in configuration.cv_params:
            if not raw_value and name and name != "instrument model":
                return str(name)
            if raw_value and name == "instrument model":
                return str(raw_value)
    return _UNKNOWN


def _target_frame(mz: Targets) -> pd.DataFrame:
    """Ions asked for: index = names, column ``mz``."""
    if isinstance(mz, pd.DataFrame):
        if Key.var.MZ not in mz:
            msg = f"The DataFrame of ions needs a column {Key.var.MZ!r}; found {listing(mz.columns)}."
            raise ValueError(msg)
        frame = mz.copy()
    else:
        frame = pd.DataFrame({Key.var.MZ: mz}) if isinstance(mz, pd.Series) else pd.DataFrame({Key.var.MZ: list(mz)})
    values = pd.to_numeric(frame[Key.var.MZ], errors="coerce").to_numpy(dtype=np.float64)
    if len(values) == 0 or not (np.isfinite(values).all() and (values > 0).all()):
        wrong = listing(frame[Key.var.MZ][~(np.isfinite(values) & (values > 0))])
        msg = f"mz must hold at least one m/z in Da, positive and finite; found {len(values)}, wrong: {wrong}."
        raise ValueError(msg)
    if len(np.unique(values)) < len(values):
        msg = f"mz repeats {listing(frame[Key.var.MZ][frame[Key.var.MZ].duplicated()])}; name every ion once."
        raise ValueError(msg)
    frame[Key.var.MZ] = values
    if pd.api.types.is_numeric_dtype(frame.index):
        frame.index = pd.Index(safe_ids(mz_labels(values)))
    return frame


def _ion_frame(mz: NDArray[np.float64], **columns: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame({Key.var.MZ: mz, **columns}, index=pd.Index(safe_ids(mz_labels(mz))))


def _extract(
    spectra: _Spectra, chosen: NDArray[np.intp], targets: pd.DataFrame | None, options: _Options
) -> tuple[sp.csr_matrix, pd.DataFrame, str]:
    """Intensities, ions, and where the ions come from."""
    if targets is not None:
        order = np.argsort(targets[Key.var.MZ].to_numpy(), kind="stable")
        low, high = windows(targets[Key.var.MZ].to_numpy()[order], options.tolerance, options.unit)
        X = stack_rows(_windowed(spectra, chosen, low, high, options), len(order))
        return X[:, np.argsort(order)], targets, "targets"
    axis = spectra.shared_axis(chosen)
    if axis is not None:
        rows = (spectra.read(int(i))[1] for i in track(chosen, "Reading spectra", total=len(chosen), show=options.show))
        return stack_rows(rows, len(axis)), _ion_frame(axis), "axis"
    ions = _common_ions(spectra, chosen, options)
    X = stack_rows(_windowed(spectra, chosen, ions.low, ions.high, options), len(ions.mz))
    return X, _ion_frame(ions.mz, frequency=ions.frequency), "reference"


def _windowed(
    spectra: _Spectra,
    chosen: NDArray[np.intp],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    options: _Options,
) -> Iterator[NDArray[np.float64]]:
    for index in track(chosen, "Reading spectra", total=len(chosen), show=options.show):
        yield sum_windows(*spectra.read(int(index)), low, high, options.reduce)


def _common_ions(spectra: _Spectra, chosen: NDArray[np.intp], options: _Options) -> ReferenceIons:
    peaks, owner = [], []
    for number, index in enumerate(track(chosen, "Looking for ions", total=len(chosen), show=options.show)):
        mz, intensity = spectra.read(int(index))
        mz = mz[intensity > 0]
        peaks.append(mz)
        owner.append(np.full(mz.size, number))
    ions = reference_mz(
        np.concatenate(peaks),
        np.concatenate(owner),
        options.tolerance,
        options.unit,
        min_frequency=options.min_frequency,
        n_spectra=len(chosen),
    )
    if ions.mz.size == 0:
        share = f"{options.min_frequency:.2%} of the {len(chosen)} spectra"
        msg = f"{spectra.path.name}: no ion occurs in {share}; lower min_frequency or pass mz=."
        raise ValueError(msg)
    return ions

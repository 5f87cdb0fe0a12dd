"""An imzML file and its binary .ibd: opening, metadata, and the spectra behind them."""

from __future__ import annotations

import uuid
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from xml.etree.ElementTree import ParseError, iterparse

import numpy as np

from stmsi._core.spectra import decode, sorted_spectrum
from stmsi._logging import logger
from stmsi._validate import listing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from pyimzml.ImzMLParser import ImzMLParser

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
UNKNOWN = "unknown"


def check_imzml(path: Path) -> Path:
    """`path` itself, where it is a file that can be an imzML.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where it is the binary part, a directory or empty.
    """
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


def find_ibd(path: Path) -> Path:
    """The binary file beside an imzML: of the same name, its suffix in any case.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    ValueError
        Where it is empty.
    """
    found = sorted(p for p in path.parent.iterdir() if p.stem == path.stem and p.suffix.lower() == ".ibd")
    if not found:
        msg = f"The binary part of {path} is missing: put {path.stem}.ibd beside it."
        raise FileNotFoundError(msg)
    if found[0].stat().st_size == 0:
        msg = f"{found[0]} is empty (0 bytes); copy or export it again."
        raise ValueError(msg)
    return found[0]


def parse_imzml(path: Path) -> ImzMLParser:
    """Metadata, positions and offsets, by pyimzML; nothing is read from the binary file.

    Raises
    ------
    ValueError
        Where the file is not XML, is not a complete imzML or declares compression spectrum by spectrum.
    """
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


def matched_uuid(spectra: LazySpectra, parser: ImzMLParser, *, check: bool) -> str:
    """The identifier both files carry; the binary one begins with its 16 bytes.

    Parameters
    ----------
    spectra
        The spectra, whose binary file is open.
    parser
        The parsed imzML.
    check
        Whether to raise where the two differ.

    Returns
    -------
    The identifier that the imzML declares, `UNKNOWN` where that is none.

    Raises
    ------
    ValueError
        Where the files do not belong together.
    """
    text = parser.metadata.file_description.param_by_accession.get(_UUID)
    try:
        declared = uuid.UUID(str(text))
    except ValueError:
        logger.info("%s: no valid identifier to check the binary file against", spectra.path.name)
        return UNKNOWN
    spectra.handle.seek(0)
    head = spectra.handle.read(16)
    if check and head not in (declared.bytes, declared.bytes_le):
        msg = (
            f"{spectra.path} does not belong to the imzML beside it: its identifier is {head.hex()}, expected "
            f"{declared.hex}. Find the right file, or pass check_uuid=False if you are sure."
        )
        raise ValueError(msg)
    return str(declared)


def stated_pixel_size(parser: ImzMLParser, path: Path) -> tuple[float, float]:
    """Pixel size (x, y) in micrometres from the metadata.

    Raises
    ------
    ValueError
        Where the file does not tell it.

    Warns
    -----
    UserWarning
        Where it is 1, which is a placeholder. The warning points at the caller of the calling function.
    """
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


def instrument_name(parser: ImzMLParser) -> str:
    """Name of the instrument, where the file has one: the first term without a value; else `UNKNOWN`."""
    for configuration in parser.metadata.instrument_configurations.values():
        for name, _, _, _, raw_value, _, _ in configuration.cv_params:
            if not raw_value and name and name != "instrument model":
                return str(name)
            if raw_value and name == "instrument model":
                return str(raw_value)
    return UNKNOWN


class LazySpectra:
    """The spectra behind a parsed imzML, decoded one by one.

    Parameters
    ----------
    parser
        The parsed imzML.
    handle
        Its binary file, open.
    path
        The binary file, for messages.

    Raises
    ------
    ValueError
        Where the binary file is truncated or the type of its arrays is not supported.
    """

    def __init__(self, parser: ImzMLParser, handle: BinaryIO, path: Path) -> None:
        self.handle, self.path, self.coordinates = handle, path, parser.coordinates
        content = parser.metadata.file_description
        declared = [name for code, name in ((_CONTINUOUS, "continuous"), (_PROCESSED, "processed")) if code in content]
        self.mode = declared[0] if len(declared) == 1 else UNKNOWN
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

"""An imzML file and its binary .ibd: opening, checking that they belong together, and the bytes of the spectra."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from stmsi._core.compiled import n_threads
from stmsi._core.parallel import ordered_map
from stmsi._core.spectra import imzml_fields as f
from stmsi._core.spectra.extraction import BAD_MZ, Chunk, FaultError, gather, readable, spectra_of
from stmsi._core.spectra.spectrum_arrays import decode, stream_length
from stmsi._data.checks import listing
from stmsi._data.containers import check_file
from stmsi._imzml.header import UNKNOWN
from stmsi._imzml.index import DEFLATE_RATIO, LARGEST_STREAM, Arrays, read_index
from stmsi._settings import logger

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

_DTYPES = tuple(np.dtype(name) for name in f.DTYPES)
_FLOAT: np.dtype[Any] = np.dtype("<f8")
_BLOCK = 2**24


def check_imzml(path: Path) -> Path:
    """`path` itself, where it is a file that can be an imzML."""
    if path.suffix.lower() == ".ibd":
        msg = f"{path} holds the binary part; pass the .imzML file beside it."
        raise ValueError(msg)
    if path.name.lower().endswith(".ibd.gz"):
        msg = f"{path} holds the binary part; unpack it (gunzip), and pass the .imzML file beside it."
        raise ValueError(msg)
    if not path.exists():
        lost = f" The link leads to {path.readlink()}, which does not exist." if path.is_symlink() else ""
        msg = f"There is no file {path}.{lost}"
        raise FileNotFoundError(msg)
    if path.is_dir():
        found = listing(sorted(p.name for p in path.glob("*.[iI][mM][zZ][mM][lL]")))
        msg = f"{path} is a directory; pass one imzML file. In it: {found}."
        raise ValueError(msg)
    return check_file(path)


def plain_stem(path: Path) -> str:
    """Name of an imzML file without ``.imzML`` or ``.imzML.gz``."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem


def find_ibd(path: Path) -> Path:
    """The binary file beside an imzML, or beside the file that it is a link to: of the same name, its suffix in any case."""
    places = [path] + ([path.resolve()] if path.resolve() != path.absolute() else [])
    stems = [(place.parent, plain_stem(place)) for place in places]
    found = [
        file
        for folder, stem in stems
        for file in sorted(folder.iterdir())
        if file.stem == stem and file.suffix.lower() == ".ibd" and file.exists()
    ]
    if not found:
        packed = [folder / f"{stem}.ibd.gz" for folder, stem in stems if (folder / f"{stem}.ibd.gz").exists()]
        remedy = f"unpack {packed[0]} (gunzip)" if packed else f"put {plain_stem(path)}.ibd beside it"
        msg = f"The binary part of {path} is missing: {remedy}."
        raise FileNotFoundError(msg)
    return check_file(found[0], holes=True)  # mapped, never read whole


class ImzmlFile:
    """An imzML and its binary file, mapped into memory and not read: the spectra come in chunks."""

    def __init__(self, path: Path) -> None:
        self.path = check_imzml(path)
        self.ibd = find_ibd(path)
        self.size = self.ibd.stat().st_size
        self.index = read_index(path, self.size, str(self.ibd))
        self.header, self.xyz = self.index.header, self.index.xyz
        self.mz, self.intensity = self.index.mz, self.index.intensity
        self._map: NDArray[np.uint8] | None = np.asarray(np.memmap(self.ibd, np.uint8, mode="r"))
        if len(self._map) != self.size:
            msg = f"{self.ibd} changed while it was opened; wait until it is written."
            raise ValueError(msg)
        kinds: list[np.dtype[Any]] = [_DTYPES[int(arrays.dtype[0])] for arrays in (self.mz, self.intensity)]
        self._plain = all(map(readable, kinds)) and not any(
            arrays.zlib.any() or (arrays.dtype != arrays.dtype[0]).any() for arrays in (self.mz, self.intensity)
        )
        self.mz_type, self.intensity_type = kinds if self._plain else (_FLOAT, _FLOAT)

    def __enter__(self) -> ImzmlFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map = None  # the mapping ends with its last view

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The binary file."""
        if self._map is None:
            msg = f"{self.ibd} is closed."
            raise ValueError(msg)
        return self._map

    def place(self, index: int) -> str:
        """Position of a spectrum for a message."""
        x, y, _ = self.xyz[index]
        return f"x={x}, y={y}"

    def lengths(self, chosen: NDArray[np.intp]) -> NDArray[np.int64]:
        """Number of values of each spectrum; compressed arrays without a length are unpacked for it, one by one."""
        self._measure(self.mz, chosen)
        self._measure(self.intensity, chosen)
        mz, intensity = self.mz.length[chosen], self.intensity.length[chosen]
        differ = mz != intensity
        if differ.any():
            self.raise_lengths(int(chosen[differ.argmax()]), int(mz[differ][0]), int(intensity[differ][0]))
        for arrays, what in ((self.mz, "m/z"), (self.intensity, "intensity")):
            wrong = arrays.contradicting[chosen] > 0
            if wrong.any():
                self._raise_encoded(arrays, what, int(chosen[wrong.argmax()]))
        self._check_unpacked(chosen)
        return mz

    def _measure(self, arrays: Arrays, rows: NDArray[np.intp]) -> None:
        """Find lengths that the imzML does not tell by unpacking the streams, which keeps none of them."""
        unknown = rows[arrays.length[rows] < 0]
        if not unknown.size:
            return
        same = np.column_stack([part[unknown] for part in (arrays.offset, arrays.n_bytes, arrays.dtype)])
        _, first, place = np.unique(same, axis=0, return_index=True, return_inverse=True)

        def measured(row: int) -> int:
            try:
                return stream_length(self._raw(arrays, row).tobytes(), _DTYPES[int(arrays.dtype[row])], LARGEST_STREAM)
            except ValueError as error:
                self._raise_unreadable(row, error)

        lengths = list(ordered_map(measured, unknown[first].tolist(), n_threads()))
        arrays.length[unknown] = np.array(lengths, np.int64)[place.ravel()]

    def _check_unpacked(self, chosen: NDArray[np.intp]) -> None:
        """Raise where compressed intensities claim more than the file can hold, as spectra do that share one stream."""
        own = chosen[self.intensity.zlib[chosen]]
        item = np.array([dtype.itemsize for dtype in _DTYPES])[self.intensity.dtype[own]]
        total = float((self.intensity.length[own].astype(np.float64) * item).sum())
        if total > DEFLATE_RATIO * self.size:
            msg = (
                f"{self.ibd}: the compressed intensities would unpack to {total:.0f} bytes, more than a file of {self.size} bytes can "
                "hold, so that lengths or offsets are wrong. Export it again."
            )
            raise ValueError(msg)

    def _raise_encoded(self, arrays: Arrays, what: str, index: int) -> None:
        dtype = _DTYPES[int(arrays.dtype[index])]
        msg = (
            f"{self.path.name}: the {what} array of the spectrum at {self.place(index)} has {arrays.length[index]} values of "
            f"{dtype.itemsize} bytes ({dtype.name}), but takes {arrays.contradicting[index]} bytes by its encoded length, so "
            "that its length or its number type is wrong. Export the file again."
        )
        raise ValueError(msg)

    def raise_lengths(self, index: int, mz: int, intensity: int) -> None:
        msg = (
            f"{self.ibd}: the spectrum at {self.place(index)} has {mz} m/z but {intensity} intensities; export the file "
            "again."
        )
        raise ValueError(msg)

    def chunk(self, rows: NDArray[np.intp], *, with_mz: bool = True) -> Chunk:
        """The bytes of several spectra; compressed ones and those of several types become 64-bit floats."""
        if self._plain:
            return Chunk(
                self.bytes, self.mz.offset[rows], self.bytes, self.intensity.offset[rows], self.intensity.length[rows],
                self.mz_type, self.intensity_type,
            )  # fmt: skip
        intensity, length = self._decoded(self.intensity, rows)
        mz, mz_length = self._decoded(self.mz, rows) if with_mz else (np.empty(0), length)
        if not np.array_equal(mz_length, length):
            worst = int((mz_length != length).argmax())
            self.raise_lengths(int(rows[worst]), int(mz_length[worst]), int(length[worst]))
        at = np.concatenate([[0], np.cumsum(length)[:-1]]) * 8 if len(length) else np.empty(0, np.int64)
        raw, raw_mz = intensity.view(np.uint8), mz.view(np.uint8)
        raw.flags.writeable = raw_mz.flags.writeable = False  # as the mapped file, so that one compiled function serves
        return Chunk(raw_mz, at, raw, at, length, self.mz_type, self.intensity_type)

    def _decoded(self, arrays: Arrays, rows: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        self._measure(arrays, rows)
        parts = []
        for row in rows.tolist():
            dtype, length = _DTYPES[int(arrays.dtype[row])], int(arrays.length[row])
            try:
                parts.append(decode(self._raw(arrays, row).tobytes(), dtype, length, compressed=bool(arrays.zlib[row])))
            except ValueError as error:
                self._raise_unreadable(row, error)
        values = np.concatenate([np.empty(0), *parts]).astype(np.float64, copy=False)
        return values, np.array([len(part) for part in parts], np.int64)

    def _raw(self, arrays: Arrays, row: int) -> NDArray[np.uint8]:
        """An array as it is stored."""
        offset = int(arrays.offset[row])
        return self.bytes[offset : offset + int(arrays.n_bytes[row])]

    def _raise_unreadable(self, row: int, error: ValueError) -> NoReturn:
        msg = f"{self.ibd}: the spectrum at {self.place(row)} cannot be read: {error}. Copy the file again."
        raise ValueError(msg) from error

    def raise_fault(self, index: int, error: FaultError) -> None:
        """Say what is wrong with a spectrum that a pass stopped at."""
        where = f"{self.ibd}: the spectrum at {self.place(index)}"
        if error.fault == BAD_MZ:
            msg = f"{where} has m/z that are not positive finite numbers."
            raise ValueError(msg) from None
        chunk = self.chunk(np.array([index]))
        values = gather(chunk.intensity_bytes, chunk.intensity_at, chunk.length, chunk.intensity_type)
        bad = ~(np.isfinite(values) & (values >= 0))
        if not bad.any():
            msg = f"{self.ibd} changed while it was read; wait until it is written."
            raise ValueError(msg) from None
        msg = (
            f"{where} has {int(bad.sum())} intensities that are negative, NaN or infinite ({listing(values[bad][:3])}); "
            "export it without baseline subtraction or clip it at 0."
        )
        raise ValueError(msg) from None

    def read(self, index: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """m/z (float64, ascending) and intensities of one spectrum, checked."""
        try:
            mz, intensity, _ = spectra_of(self.chunk(np.array([index])))
        except FaultError as error:
            self.raise_fault(index, error)
        return mz, intensity

    def shared_axis(self, chosen: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
        """The ascending m/z axis of all spectra and what sorts it (empty: it is sorted); `None` where they differ."""
        # what the header says does not decide
        own = self.header.mode == "processed" and len(chosen) == 1
        if not own:
            self._measure(self.mz, chosen)
        first, offset, length = chosen[:1], self.mz.offset, self.mz.length
        same_place = (offset[chosen] == offset[first]) & (length[chosen] == length[first])
        if own or not (same_place.all() or self.header.mode == "continuous"):
            return None
        axis = self._axis(int(first[0]))
        for index in chosen[~same_place].tolist():
            if not np.array_equal(axis, self._axis(index)):
                warnings.warn(
                    f"{self.ibd.name} calls itself continuous, but its spectra differ in m/z; it is read as processed.",
                    stacklevel=4,
                )
                return None
        if not (np.isfinite(axis).all() and (axis > 0).all()):
            self.raise_fault(int(first[0]), FaultError(0, BAD_MZ))
        order = np.argsort(axis, kind="stable")
        return axis[order], np.empty(0, np.intp) if bool((np.diff(order) == 1).all()) else order

    def _axis(self, index: int) -> NDArray[np.float64]:
        values, _ = self._decoded(self.mz, np.array([index]))
        return values

    def check_uuid(self, *, check: bool) -> str:
        """The identifier that the imzML declares, or `UNKNOWN`; with `check` the binary file must begin with it."""
        declared = self.header.uuid
        if declared is None:
            logger.info("%s: no valid identifier to check the binary file against", self.ibd.name)
            return UNKNOWN
        head = self.bytes[:16].tobytes()
        if check and head not in (declared.bytes, declared.bytes_le):
            msg = (
                f"{self.ibd} does not belong to the imzML beside it: its identifier is {head.hex()}, expected "
                f"{declared.hex}. Find the right file, or pass check_uuid=False if you are sure."
            )
            raise ValueError(msg)
        return str(declared)

    def check_checksum(self) -> None:
        """Compare the binary file with the checksum in the imzML, which takes as long as reading all of it."""
        if self.header.checksum is None:
            msg = f"{self.path.name} holds no checksum of its binary file; pass check_checksum=False."
            raise ValueError(msg)
        name, expected = self.header.checksum
        digest = hashlib.new(name, usedforsecurity=False)
        for start in range(0, self.size, _BLOCK):
            digest.update(self.bytes[start : start + _BLOCK].tobytes())
        if digest.hexdigest() != expected:
            msg = (
                f"{self.ibd} differs from what was exported: its {name} is {digest.hexdigest()}, expected {expected}. "
                "Copy the file again, or pass check_checksum=False if it was changed on purpose."
            )
            raise ValueError(msg)


def stated_pixel_size(file: ImzmlFile) -> tuple[float, float]:
    """Pixel size (x, y) in um from the metadata; the warning about a placeholder points at the caller's caller."""
    size = file.header.pixel_size
    if size is None:
        problem = file.header.pixel_size_problem or "does not say how large a pixel is"
        msg = f"{file.path.name} {problem}; pass pixel_size= (micrometres)."
        raise ValueError(msg)
    if 1.0 in size:
        warnings.warn(
            f"{file.path.name} gives a pixel size of {size[0]:g} x {size[1]:g} um, which programs write where they do not "
            "know it. Pass pixel_size= (micrometres).",
            stacklevel=3,
        )
    return size

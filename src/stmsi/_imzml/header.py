"""The part of an imzML in front of its spectra: metadata, and the groups that describe the arrays."""

from __future__ import annotations

import re
import uuid
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from stmsi._core.spectra import imzml_fields as f
from stmsi._imzml.provenance import ions_of, origin_of

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable
    from pathlib import Path

UNKNOWN = "unknown"
_TRIES = 8  # a comment may hold the tag, too
_LIST = re.compile(rb"<(?:[\w.-]+:)?spectrumList(?:\s[^<>]*)?>")
_CONTINUOUS, _PROCESSED, _UUID = "IMS:1000030", "IMS:1000031", "IMS:1000080"
_PIXEL_X, _PIXEL_Y = "IMS:1000046", "IMS:1000047"
_UNITS = {
    "UO:0000008": 1e6, "UO:0000015": 1e4, "UO:0000016": 1e3, "UO:0000017": 1.0, "UO:0000018": 1e-3, "UO:0000019": 1e-4,
}  # fmt: skip
"""Micrometres in a unit, by its accession."""
_UNIT_NAMES = {
    1e6: ("m", "meter", "metre"), 1e4: ("cm", "centimeter", "centimetre"), 1e3: ("mm", "millimeter", "millimetre"),
    1.0: ("um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m", "micrometer", "micrometre", "micron"),
    1e-3: ("nm", "nanometer", "nanometre"), 1e-4: ("angstrom", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"),
}  # fmt: skip
_NAMED = {name.lower(): size for size, names in _UNIT_NAMES.items() for name in names}
# some programs write UTF-8 and declare Latin-1
_NAMED |= {name.encode().decode("latin-1").lower(): size for name, size in _NAMED.items()}
_CHECKSUMS = {"IMS:1000090": "md5", "IMS:1000091": "sha1", "IMS:1000092": "sha256"}


class Group(NamedTuple):
    """What a referenceable group says of an array or a spectrum; codes as in :mod:`stmsi._core.spectra.imzml_fields`."""

    kind: int
    flags: int
    traits: int


class Header(NamedTuple):
    """Metadata of an imzML. `start` is the first byte behind the opening tag of the list of spectra."""

    start: int
    announced: int | None
    groups: dict[str, Group]
    uuid: uuid.UUID | None
    checksum: tuple[str, str] | None
    mode: str
    pixel_size: tuple[float, float] | None
    pixel_size_problem: str
    instrument: str
    content_traits: int
    origin: dict[str, str]
    """What stmsi wrote of where the intensities come from; empty in other files."""
    ions: tuple[dict[str, Any], ...]
    """What stmsi wrote of the ions."""


def read_header(buffer: mmap.mmap, path: Path) -> Header | None:
    """The header of an imzML, `None` where a list of spectra is not found as plain bytes (as in UTF-16)."""
    check_root(buffer, path)
    for match in islice(_LIST.finditer(buffer), _TRIES):
        parser: Any = XMLPullParser(events=("start",))
        try:
            parser.feed(buffer[: match.end()])
            opened = [element for _, element in parser.read_events()]
        except ParseError as error:
            msg = f"{path} is broken or truncated XML ({error}). Copy or export it again."
            raise ValueError(msg) from error
        if local_name(opened[-1]) == "spectrumList":  # not inside a comment
            return header_of(opened[0], opened[-1], match.end())
    return None


def ends_well(buffer: mmap.mmap, header: Header, end: int) -> bool:
    """Whether a file without its spectra, whose list ends at byte `end`, is XML."""
    parser: Any = XMLPullParser(events=())
    try:
        parser.feed(buffer[: header.start])
        parser.feed(buffer[buffer.rfind(b"<", 0, end) :])
        list(parser.read_events())
        parser.close()
    except (ParseError, ValueError):
        return False
    return True


def check_root(buffer: mmap.mmap, path: Path) -> None:
    """Raise a `ValueError` where a file is not XML or something other than an imzML."""
    parser: Any = XMLPullParser(events=("start",))
    for start in range(0, len(buffer), 4096):
        try:
            parser.feed(buffer[start : start + 4096])
            first = next(iter(parser.read_events()), None)  # what comes behind it is looked at later
        except (ParseError, LookupError, ValueError) as error:
            msg = f"{path} is not an imzML file: it is not XML ({error})."
            raise ValueError(msg) from error
        if first is not None:
            root = local_name(first[1])
            if root not in ("mzML", "indexedmzML"):
                msg = f"{path} is not an imzML file: its outermost element is <{root}>, expected <mzML>."
                raise ValueError(msg)
            return
    msg = f"{path} is not an imzML file: it is not XML (no element)."
    raise ValueError(msg)


def local_name(element: Element) -> str:
    """Name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def header_of(root: Element, spectra: Element, start: int) -> Header:
    """The header behind the elements that stand in front of the spectra."""
    groups: dict[str, Group] = {}
    for group in _all(root, "referenceableParamGroup"):
        groups[group.get("id", "")] = _group(list(_params(group)))
    content = dict(param for part in _all(root, "fileContent") for param in _params(part))
    declared = [name for code, name in ((_CONTINUOUS, "continuous"), (_PROCESSED, "processed")) if code in content]
    sums = [(_CHECKSUMS[a], v.strip().lower()) for a, v in content.items() if a in _CHECKSUMS and v.strip()]
    count = spectra.get("count", "").strip()
    size, problem = _pixel_size(root)
    return Header(
        start=start,
        announced=int(count) if count.isascii() and count.isdigit() and len(count) < 18 else None,
        groups=groups,
        uuid=_uuid(content.get(_UUID)),
        checksum=sums[0] if sums else None,
        mode=declared[0] if len(declared) == 1 else UNKNOWN,
        pixel_size=size,
        pixel_size_problem=problem,
        instrument=_instrument(root),
        content_traits=_traits(content.items()),
        origin=origin_of(_all(root, "fileContent")),
        ions=ions_of(_all(root, "target")),
    )


def level_of(value: str | None) -> int:
    """The value of the term "ms level"; 0 where it is no whole number above 0."""
    try:
        number = float(value or 0)
    except ValueError:
        return 0
    return int(number) if 0 < number <= f.MOST_LEVELS and number.is_integer() else 0


def _traits(params: Iterable[tuple[str, str]]) -> int:
    traits = 0
    for accession, value in params:
        traits = f.add_trait(traits, f.accession_code(accession), level_of(value))
    return traits


def _group(params: list[tuple[str, str]]) -> Group:
    codes = [f.accession_code(accession) for accession, _ in params]
    kind = f.KIND_MZ if f.MZ_ARRAY in codes else f.KIND_INTENSITY if f.INTENSITY_ARRAY in codes else f.KIND_NONE
    types = {f.DTYPE_OF[code] for code in codes if code in f.DTYPE_OF}
    compression = f.OTHER if set(codes) & set(f.NUMPRESS) else 0
    if not compression:
        compression = f.PLAIN if f.NO_COMPRESSION in codes else f.ZLIB if f.ZLIB_COMPRESSION in codes else 0
    return Group(kind, (types.pop() + 1 if len(types) == 1 else 0) | (compression << 4), _traits(params))


def _all(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if local_name(element) == name]


def _params(element: Element) -> Iterable[tuple[str, str]]:
    for child in element:
        if local_name(child) == "cvParam":
            yield child.get("accession", ""), child.get("value", "")


def _uuid(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(str(text))
    except ValueError:
        return None


def _pixel_size(root: Element) -> tuple[tuple[float, float] | None, str]:
    """Pixel size (x, y) in micrometres, and why it cannot be told from what the file says."""
    groups = {group.get("id"): group for group in _all(root, "referenceableParamGroup")}
    sizes: dict[str, float] = {}
    for settings in _all(root, "scanSettings"):
        refs = [groups.get(c.get("ref")) for c in settings if local_name(c) == "referenceableParamGroupRef"]
        for child in (term for part in (settings, *refs) if part is not None for term in part):
            accession = child.get("accession")
            if accession not in (_PIXEL_X, _PIXEL_Y):
                continue
            try:
                value = float(child.get("value", ""))
            except ValueError:
                continue
            unit = _micrometres(child.get("unitAccession", "").strip(), child.get("unitName", "").strip())
            if unit is None:
                said = " ".join(filter(None, (child.get("unitAccession"), child.get("unitName"))))
                return None, f"gives its pixel size as {value:g} in {said!r}, which is no single unit of length"
            if 0 < value < float("inf"):
                sizes[accession] = value * unit
    if not sizes:
        return None, ""
    return (sizes.get(_PIXEL_X, sizes.get(_PIXEL_Y, 0.0)), sizes.get(_PIXEL_Y, sizes.get(_PIXEL_X, 0.0))), ""


def _micrometres(accession: str, name: str) -> float | None:
    """Micrometres in a unit, by accession, name or both; `None` where it is no length or the two contradict each other."""
    if not accession and not name:
        return 1.0  # the unit of the standard
    plain = name.lower()
    known = [
        size
        for said, size in ((accession, _UNITS.get(accession)), (name, _NAMED.get(plain, _NAMED.get(plain.rstrip("s")))))
        if said
    ]
    return known[0] if len(set(known)) == 1 else None


def _instrument(root: Element) -> str:
    """The first term without a value; the groups that a configuration refers to count, too."""
    groups = {group.get("id"): group for group in _all(root, "referenceableParamGroup")}
    for configuration in _all(root, "instrumentConfiguration"):
        refs = [groups.get(c.get("ref")) for c in configuration if local_name(c) == "referenceableParamGroupRef"]
        for part in (configuration, *(g for g in refs if g is not None)):
            for child in part:
                if local_name(child) != "cvParam":
                    continue
                name, value = child.get("name", ""), child.get("value", "").strip()
                if not value and name and name != "instrument model":
                    return name
                if value and name == "instrument model":
                    return value
    return UNKNOWN

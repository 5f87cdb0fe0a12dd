"""What each spectrum of an imzML is (polarity, profile or centroid, MS level), and the choice of those of one kind."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from stmsi._core.spectra import imzml_fields as f
from stmsi._data.checks import check_choice, listing
from stmsi._imzml.header import UNKNOWN, Header

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIXED = "mixed"
POLARITIES = ("positive", "negative")
SPECTRUM_TYPES = ("profile", "centroid")
_POLARITY_SHIFT, _TYPE_SHIFT, _GROUP_SHIFT = 0, 2, 4
_TITLES = {"polarity": "polarity", "spectrum_type": "spectrum type", "ms_level": "MS level"}


class Kinds(NamedTuple):
    """Which spectra to read; `None`: all."""

    polarity: Literal["positive", "negative"] | None = None
    spectrum_type: Literal["profile", "centroid"] | None = None
    ms_level: int | None = None


class Traits(NamedTuple):
    """What each spectrum is, 0 where the file does not say.

    `polarity` 1 positive, 2 negative; `spectrum_type` 1 profile, 2 centroid; `ms_level` from 1 on. `stated` is what the
    file says of all spectra together.
    """

    polarity: NDArray[np.int8]
    spectrum_type: NDArray[np.int8]
    ms_level: NDArray[np.int16]
    stated: dict[str, str]

    def name(self, trait: str, chosen: NDArray[np.intp]) -> str:
        """The trait of the chosen spectra: its value, ``"mixed"`` or ``"unknown"``."""
        names = [_name(trait, code) for code in _known(getattr(self, trait)[chosen])]
        return (names[0] if len(names) == 1 else MIXED) if names else self.stated[trait]

    def names(self, chosen: NDArray[np.intp]) -> dict[str, str]:
        """The same for all traits."""
        return {trait: self.name(trait, chosen) for trait in _TITLES}


def traits_of(header: Header, words: NDArray[np.int64]) -> Traits:
    """The traits in the column ``TRAITS`` of the spectra; what a spectrum does not say, the head of the file may."""
    groups = 0
    for group in header.groups.values():
        groups |= group.traits & 15
    stated, codes = {}, {}
    for trait, shift in (("polarity", _POLARITY_SHIFT), ("spectrum_type", _TYPE_SHIFT)):
        both = [(word >> shift) & 3 for word in (groups, header.content_traits)]
        common = next((bits for bits in both if bits in (1, 2)), max(both))
        stated[trait] = UNKNOWN if common == 0 else MIXED if common == 3 else _name(trait, common)
        own, of_group = (words >> shift) & 3, (words >> (_GROUP_SHIFT + shift)) & 3
        code = np.where(own > 0, own, of_group)
        code = np.where(code == 0, common, code)
        codes[trait] = np.where(code == 3, 0, code).astype(np.int8)  # both at once says nothing
    own, of_group = ((words >> shift) & f.MOST_LEVELS for shift in (f.LEVEL_SHIFT, f.GROUP_LEVEL_SHIFT))
    common = (header.content_traits >> f.LEVEL_SHIFT) & f.MOST_LEVELS
    level = np.where(own > 0, own, np.where(of_group > 0, of_group, common)).astype(np.int16)
    stated["ms_level"] = UNKNOWN
    return Traits(codes["polarity"], codes["spectrum_type"], level, stated)


def check_kinds(kinds: Kinds) -> None:
    """Raise where a kind of spectra is asked for that does not exist."""
    if kinds.polarity is not None:
        check_choice(kinds.polarity, POLARITIES, "polarity")
    if kinds.spectrum_type is not None:
        check_choice(kinds.spectrum_type, SPECTRUM_TYPES, "spectrum_type")
    level = kinds.ms_level
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | np.integer) or level < 1):
        msg = f"ms_level is a whole number from 1 on, found {level!r}."
        raise ValueError(msg)


def choose_spectra(traits: Traits, kinds: Kinds, chosen: NDArray[np.intp], file: str) -> NDArray[np.intp]:
    """Those of the chosen spectra that are of the kinds asked for; a `ValueError` where there is none.

    `file` is named in messages.
    """
    for trait, wanted in kinds._asdict().items():
        if wanted is None:
            continue
        codes = getattr(traits, trait)[chosen]
        kept = codes == _code(trait, wanted)
        if not kept.any():
            found = [_name(trait, code) for code in _known(codes)]
            has = f"they are {listing(found)}" if found else f"it does not say; leave out {trait}="
            msg = f"{file} has no spectra of {trait}={wanted!r}: {has}."
            raise ValueError(msg)
        chosen = chosen[kept]
    return chosen


def warn_of_mixtures(traits: Traits, chosen: NDArray[np.intp], file: str) -> None:
    """Warn of each trait in which the chosen spectra differ, and name the option that takes one kind."""
    for trait, title in _TITLES.items():
        codes = getattr(traits, trait)[chosen]
        known = _known(codes)
        if len(known) > 1:
            counts = ", ".join(f"{int((codes == code).sum())} of {_name(trait, code)}" for code in known)
            warnings.warn(
                f"{file} holds spectra of more than one {title} ({counts}), and they are read as one image. Read one kind "
                f"at a time: pass {trait}=, one of {listing(_value(trait, code) for code in known)}.",
                stacklevel=4,
            )


def mixtures(traits: Traits, chosen: NDArray[np.intp]) -> list[str]:
    """The traits in which the chosen spectra differ."""
    return [trait for trait in _TITLES if len(_known(getattr(traits, trait)[chosen])) > 1]


def _known(codes: NDArray[np.integer]) -> list[int]:
    return [int(code) for code in np.unique(codes) if code > 0]


def _value(trait: str, code: int) -> str | int:
    if trait == "ms_level":
        return code
    return (POLARITIES if trait == "polarity" else SPECTRUM_TYPES)[code - 1]


def _name(trait: str, code: int) -> str:
    return str(_value(trait, code))


def _code(trait: str, value: str | int) -> int:
    if trait == "ms_level":
        return int(value)
    return (POLARITIES if trait == "polarity" else SPECTRUM_TYPES).index(str(value)) + 1

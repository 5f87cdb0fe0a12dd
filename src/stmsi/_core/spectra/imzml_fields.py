"""What is taken from the XML of an imzML for each spectrum: columns, codes and number types."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MISSING: Final = -(2**62)
"""A field that the XML does not hold."""
BIG: Final = 2**61
"""Numbers in the XML must be smaller."""

# columns of the table of fields, one row a spectrum; the second array follows the first
X, Y, Z, MZ, INTENSITY, DEFAULT_LENGTH, TRAITS, N_FIELDS = 0, 1, 2, 3, 8, 13, 14, 15
# columns of an array, counted from MZ or INTENSITY
OFFSET, LENGTH, ENCODED, GROUP, FLAGS = 0, 1, 2, 3, 4

KIND_NONE, KIND_MZ, KIND_INTENSITY = 0, 1, 2
PLAIN, ZLIB, OTHER = 1, 2, 3
"""Compression codes: none, zlib, one that cannot be read; 0 where nothing is said."""

# accessions as numbers: those of the imaging ontology have IMS added
IMS: Final = 10_000_000
POSITION_X, POSITION_Y, POSITION_Z = IMS + 1000050, IMS + 1000051, IMS + 1000052
EXTERNAL_OFFSET, EXTERNAL_LENGTH, EXTERNAL_ENCODED = IMS + 1000102, IMS + 1000103, IMS + 1000104
MZ_ARRAY, INTENSITY_ARRAY = 1000514, 1000515
NO_COMPRESSION, ZLIB_COMPRESSION = 1000576, 1000574
POSITIVE_SCAN, NEGATIVE_SCAN, PROFILE_SPECTRUM, CENTROID_SPECTRUM = 1000130, 1000129, 1000128, 1000127
MS_LEVEL, MS1_SPECTRUM, MSN_SPECTRUM = 1000511, 1000579, 1000580
NUMPRESS = (1002312, 1002313, 1002314, 1002746, 1002747, 1002748)

DTYPES: Final = ("<f4", "<f8", "<i4", "<i8", "<f2")
"""Number types by their code."""
DTYPE_OF: Final = {1000521: 0, 1000523: 1, 1000519: 2, IMS + 1000141: 2, 1000522: 3, IMS + 1000142: 3, 1000520: 4}
"""Code of a number type by its accession."""

TRAIT_OF: Final = {POSITIVE_SCAN: 1, NEGATIVE_SCAN: 2, PROFILE_SPECTRUM: 4, CENTROID_SPECTRUM: 8}
"""Bit of the column ``TRAITS`` by accession; those of the groups that a spectrum refers to are four bits higher."""
LEVEL_OF: Final = {MS1_SPECTRUM: 1, MSN_SPECTRUM: 2}
"""MS level that a term implies where no level is given as a number."""
LEVEL_SHIFT, GROUP_LEVEL_SHIFT, MOST_LEVELS = 8, 16, 255
"""Bits of ``TRAITS`` from which on the MS level lies, of a spectrum itself and of its groups; 0: not told."""


class Scan(NamedTuple):
    """What a reader of the XML found.

    `fields` has one row a spectrum; `end` is the byte at which the list ends; `problem` says why the rest cannot be trusted, and is empty where all adds up.
    """

    fields: NDArray[np.int64]
    end: int
    problem: str


def accession_code(text: str) -> int:
    """An accession such as ``IMS:1000050`` as a number; -1 for those of other ontologies."""
    prefix, _, number = text.partition(":")
    if prefix not in ("MS", "IMS") or len(number) != 7 or not (number.isascii() and number.isdigit()):
        return -1
    return int(number) + (IMS if prefix == "IMS" else 0)


def add_flag(flags: int, code: int) -> int:
    """`flags` of an array with what the accession `code` says of its number type and compression; the first one counts."""
    if flags & 15 == 0 and code in DTYPE_OF:
        return flags | (DTYPE_OF[code] + 1)
    if flags >> 4 == 0:
        compression = PLAIN if code == NO_COMPRESSION else ZLIB if code == ZLIB_COMPRESSION else 0
        compression = OTHER if code in NUMPRESS else compression
        return flags | (compression << 4)
    return flags


def add_trait(traits: int, code: int, level: int = 0) -> int:
    """`traits` of a spectrum with what the accession `code` says; `level` is the value of the term "ms level"."""
    if code in TRAIT_OF:
        return traits | TRAIT_OF[code]
    if code == MS_LEVEL and 0 < level <= MOST_LEVELS:
        return (traits & ~(MOST_LEVELS << LEVEL_SHIFT)) | (level << LEVEL_SHIFT)
    if code in LEVEL_OF and not (traits >> LEVEL_SHIFT) & MOST_LEVELS:
        return traits | (LEVEL_OF[code] << LEVEL_SHIFT)
    return traits


def add_group_traits(traits: int, group: int) -> int:
    """`traits` of a spectrum with those of a group that it refers to."""
    traits |= (group & 15) << 4
    if not (traits >> GROUP_LEVEL_SHIFT) & MOST_LEVELS:
        traits |= ((group >> LEVEL_SHIFT) & MOST_LEVELS) << GROUP_LEVEL_SHIFT
    return traits

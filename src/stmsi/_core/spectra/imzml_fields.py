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
X, Y, Z, MZ, INTENSITY, DEFAULT_LENGTH, N_FIELDS = 0, 1, 2, 3, 8, 13, 14
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
NUMPRESS = (1002312, 1002313, 1002314, 1002746, 1002747, 1002748)

DTYPES: Final = ("<f4", "<f8", "<i4", "<i8", "<f2")
"""Number types by their code."""
DTYPE_OF: Final = {1000521: 0, 1000523: 1, 1000519: 2, IMS + 1000141: 2, 1000522: 3, IMS + 1000142: 3, 1000520: 4}
"""Code of a number type by its accession."""


class Scan(NamedTuple):
    """What a reader of the XML found.

    `fields` has one row a spectrum; `first_end` and `end` are the bytes at which the first spectrum and the list end;
    `problem` says why the rest cannot be trusted, and is empty where all adds up.
    """

    fields: NDArray[np.int64]
    first_end: int
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

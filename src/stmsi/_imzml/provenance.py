"""What stmsi writes into an imzML beside the spectra: which ions its peaks are, and where the intensities come from.

The ions are the ``targetList`` of the scan settings, as mzML has it, the origin ``userParam`` of the file's content. Programs
that do not know them pass over both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import pandas as pd

from stmsi._data.keys import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from xml.etree.ElementTree import Element

_PREFIX = "stmsi "
_MZ = "MS:1000744"  # selected ion m/z
_ID = "id"
_COLUMNS = (Key.var.NAME, Key.var.FORMULA, Key.var.ADDUCT, Key.var.CLASS)


def origin_terms(origin: Mapping[str, str]) -> str:
    """XML of where intensities come from."""
    return "".join(_user_param(key, value) for key, value in origin.items() if value)


def ion_terms(ions: pd.DataFrame) -> str:
    """XML of a table of ions: its index, ``mz`` (Da), and names, formulas, adducts and classes where it has them."""
    columns = [column for column in _COLUMNS if column in ions]
    text = [ions[column].astype(object).where(ions[column].notna(), "").astype(str) for column in columns]
    targets = []
    for mz, ident, *values in zip(ions[Key.var.MZ], ions.index.astype(str), *text, strict=True):
        given = [(_ID, ident), *((c, v) for c, v in zip(columns, values, strict=True) if v)]
        params = "".join(_user_param(key, value) for key, value in given)
        targets.append(
            f'<target><cvParam cvRef="MS" accession="{_MZ}" name="selected ion m/z" value="{float(mz)!r}" unitCvRef="MS" '
            f'unitAccession="MS:1000040" unitName="m/z"/>{params}</target>\n'
        )
    return f'<targetList count="{len(targets)}">\n{"".join(targets)}</targetList>\n'


def origin_of(elements: Iterable[Element]) -> dict[str, str]:
    """Where the intensities of a file come from, by the elements of its content; empty where another program wrote it."""
    return {key: value for element in elements for key, value in _user_params(element)}


def ions_of(elements: Iterable[Element]) -> tuple[dict[str, Any], ...]:
    """The ions in the elements of a target list, those of another program left out."""
    ions = []
    for element in elements:
        known: dict[str, Any] = dict(_user_params(element))
        mz = [child.get("value") for child in element if child.get("accession") == _MZ]
        if _ID in known and mz:
            ions.append(known | {Key.var.MZ: float(str(mz[0]))})
    return tuple(ions)


def ion_frame(ions: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Table of the ions in a file: named by their ids, with ``mz`` and what else was written of them."""
    frame = pd.DataFrame(list(ions)).set_index(_ID).rename_axis(None)
    columns = [Key.var.MZ, *(column for column in _COLUMNS if column in frame)]
    return frame[columns].fillna(dict.fromkeys(columns[1:], ""))


def _user_param(key: str, value: str) -> str:
    # the file says that it is Latin-1: what that lacks is written by its number
    quoted = quoteattr(value, {"\n": "&#10;", "\t": "&#9;"}).encode("ascii", "xmlcharrefreplace").decode()
    return f'<userParam name={quoteattr(_PREFIX + key)} value={quoted} type="xsd:string"/>\n'


def _user_params(element: Element) -> Iterable[tuple[str, str]]:
    for child in element:
        name = child.get("name", "")
        if str(child.tag).rpartition("}")[2] == "userParam" and name.startswith(_PREFIX):
            yield name.removeprefix(_PREFIX), child.get("value", "")

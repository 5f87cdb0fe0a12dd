"""The unit that the positions of an ST section had before they became micrometres: ``uns["st_units"]`` of the ST table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmsi._data.keys import Key

if TYPE_CHECKING:
    from anndata import AnnData

_SCALE, _SOURCE = "um_per_unit", "source"


def note_unit(table: AnnData, given: AnnData, sample: str, um_per_unit: float, source: str) -> None:
    """Write down by what the positions of a section were multiplied; 1 leaves no note.

    Parameters
    ----------
    table
        ST table of the section `sample`, which is changed: ``uns["st_units"][sample]`` gets ``um_per_unit`` and ``source``.
    given
        The table before; where it has a note already, both conversions together are written down.
    um_per_unit, source
        Micrometres per unit of the positions in `given`, and what told it.
    """
    known = given.uns.get(Key.uns.UNITS, {})
    names = given.obs[Key.obs.SAMPLE].astype(str).unique() if Key.obs.SAMPLE in given.obs else []
    earlier = known.get(names[0] if len(names) == 1 else sample)
    table.uns.pop(Key.uns.UNITS, None)
    if earlier is not None:
        source = str(earlier[_SOURCE]) if um_per_unit == 1 else f"{earlier[_SOURCE]}; {source}"
        um_per_unit *= float(earlier[_SCALE])
    elif um_per_unit == 1:
        return
    table.uns[Key.uns.UNITS] = {sample: {_SCALE: float(um_per_unit), _SOURCE: source}}


def noted_unit(table: AnnData, sample: str) -> float | None:
    """Micrometres per unit of the positions that a section came with; `None` where they were micrometres already."""
    known = table.uns.get(Key.uns.UNITS, {}).get(sample)
    return None if known is None else float(known[_SCALE])

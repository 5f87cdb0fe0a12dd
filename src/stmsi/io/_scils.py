"""Exports of SCiLS Lab: spectra of spots in one file, the places of the spots in another."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi.io._text_table import check_numbers, check_repeats, read_text_table, require_columns

_FIRST = "m/z"
_SPOT = re.compile(r"^\s*Spot\s+(\d+)\s*$", re.IGNORECASE)
_INDEX, _X, _Y = "Spot index", "x", "y"


def is_spectra_export(frame: pd.DataFrame) -> bool:
    """Whether a table has the m/z in its column names and spots, or features, in its first column."""
    return str(frame.columns[0]).strip().lower() == _FIRST


def with_positions(
    frame: pd.DataFrame, path: Path, coordinates: str | Path | None, *, separator: str | None, decimal: str
) -> pd.DataFrame:
    """A wide table with the columns ``x``, ``y`` and one per m/z, from the two files of SCiLS Lab.

    Spots are counted from 1 in the spectra and from 0 in the region spots.
    """
    spot = frame.iloc[:, 0].astype(str).str.extract(_SPOT)[0]
    if spot.isna().any():
        found = listing(frame.iloc[:, 0][spot.isna()].head(3))
        msg = (
            f"{path} has a column 'm/z' with {found}: a list of features, one value per region. Export the spectra of the "
            "spots (rows 'Spot 1', 'Spot 2', ...) and the region spots from SCiLS Lab, or an imzML file."
        )
        raise ValueError(msg)
    if coordinates is None:
        msg = (
            f"{path} holds spectra of spots without their places; pass coordinates=, the region spots that SCiLS Lab "
            f"exports (columns {listing((_INDEX, _X, _Y))})."
        )
        raise ValueError(msg)
    file = Path(coordinates)
    places = read_text_table(file, separator=separator, decimal=decimal)
    require_columns(places, (_INDEX, _X, _Y), file, "Export the region spots from SCiLS Lab.")
    check_numbers(places[[_INDEX, _X, _Y]], file, decimal="pass decimal=','")
    index = pd.Index(places[_INDEX])
    check_repeats(index, file, "spots")
    number = spot.to_numpy(dtype=np.int64) - 1
    at = index.get_indexer(number)
    if (at < 0).any():
        lost = listing(f"Spot {n + 1}" for n in number[at < 0])
        msg = f"{int((at < 0).sum())} spots of {path.name} have no place in {file.name}: {lost}. Export both for one region."
        raise ValueError(msg)
    out = frame.iloc[:, 1:].copy()
    out.insert(0, _X, places[_X].to_numpy()[at])
    out.insert(1, _Y, places[_Y].to_numpy()[at])
    return out

"""Whether spots of a prediction were trained on: what each is marked with, and what the marks of many say together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.keys import TRAINED_ON as COLUMN
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

TRAINED_ON, HELD_OUT, UNKNOWN = "yes", "no", "unknown"
"""Marks of a spot."""
PARTLY = "partly"
"""Of several spots: some were trained on, and not all."""
RECORD = "training_spots"
"""Entry of the record of a prediction: the marks counted by section."""
IN_WORDS = {TRAINED_ON: "training spots", PARTLY: "partly training spots", UNKNOWN: "training spots?", HELD_OUT: ""}
"""What stands beside a score."""
SAID_OF = {TRAINED_ON: "trained on", PARTLY: "partly trained on", UNKNOWN: "trained on?", HELD_OUT: ""}
"""What stands beside the name of a section."""


def write_marks(adata: AnnData, key: str, marks: NDArray[Any]) -> None:
    """Put the mark of each spot beside a prediction."""
    kinds = [HELD_OUT, TRAINED_ON, UNKNOWN]
    adata.obs[Key.trained_on_of(key)] = pd.Categorical(marks, categories=kinds)


def read_marks(adata: AnnData, key: str, rows: Any = slice(None)) -> NDArray[Any]:
    """The mark of each spot, or of some, shape (spots,); unknown where there is none."""
    column = adata.obs.get(Key.trained_on_of(key))
    if column is None:
        return np.full(adata.n_obs, UNKNOWN, dtype=object)[rows]
    marks = column.iloc[rows].astype(object).to_numpy()
    return np.where(np.isin(marks.astype(str), [HELD_OUT, TRAINED_ON]), marks, UNKNOWN).astype(object)


def together(marks: Iterable[Any]) -> str:
    """What marks of spots, or of sections, say together: nothing is held out where one is not known to be."""
    found = {str(m) for m in marks}
    if not found:
        return UNKNOWN
    if len(found) == 1:
        return found.pop()
    return PARTLY if found & {TRAINED_ON, PARTLY} else UNKNOWN


def of_metabolites(marks: NDArray[Any], counts: NDArray[np.bool_]) -> NDArray[Any]:
    """The same for each metabolite, of the spots that count for it; `counts`: (spots, metabolites)."""
    trained, unknown = ((counts & (marks == kind)[:, None]).sum(axis=0) for kind in (TRAINED_ON, UNKNOWN))
    n = counts.sum(axis=0)
    states = [(n == 0) | ((unknown > 0) & (trained == 0)), trained == 0, trained == n]
    return np.select(states, [UNKNOWN, HELD_OUT, TRAINED_ON], PARTLY).astype(object)


def by_section(marks: NDArray[Any], sample: NDArray[Any]) -> pd.DataFrame:
    """One row per section: ``sample``, ``n_spots``, ``n_trained_on``, ``n_unknown`` and ``trained_on``."""
    rows = []
    for name in dict.fromkeys(sample.astype(str)):
        own = marks[sample.astype(str) == name]
        n = [len(own), int((own == TRAINED_ON).sum()), int((own == UNKNOWN).sum())]
        rows.append([name, *n, together(own)])
    return pd.DataFrame(rows, columns=["sample", "n_spots", "n_trained_on", "n_unknown", COLUMN])


def of_scores(scores: pd.DataFrame) -> dict[str, str]:
    """What a table of scores says of each of its sections; unknown where it was made without marks."""
    if COLUMN not in scores:
        return dict.fromkeys(dict.fromkeys(scores["sample"].astype(str)), UNKNOWN)
    groups = scores.groupby(scores["sample"].astype(str), sort=False)[COLUMN]
    return {str(name): together(marks) for name, marks in groups}


def note(adata: AnnData, key: str, rows: Any = slice(None)) -> str:
    """What stands beside a score of some spots of a prediction; nothing where no model of stmsi has made it."""
    return IN_WORDS.get(mark(adata, key, rows), "")


def mark(adata: AnnData, key: str, rows: Any = slice(None)) -> str:
    """What the marks of some spots of a prediction say together; empty where no model of stmsi has made it."""
    record = adata.uns.get(key)
    made: Mapping[str, Any] = record if isinstance(record, dict) else {}
    return together(read_marks(adata, key, rows)) if "model" in made else ""

"""How a metabolite is called wherever people read it: in plots, in the viewer, in reports and in tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.keys import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIBING = (Key.var.ADDUCT, Key.var.MZ, Key.var.FORMULA, Key.var.MOLECULES, Key.var.N_ISOMERS)
"""Columns of a feature table that a label is made of, beside the name."""
_MISSING = ("", "nan", "none", "<na>", "null")
"""What a missing name looks like once it went through a text file."""
_LIST = re.compile(r"\s*[;|]\s*|,\s+")
"""Between the names of isomers."""
_MZ_NAME = re.compile(r"(?:m/?z)?[-_ ]*\d{2,5}(?:[._]\d+)?", re.IGNORECASE)
"""Names that are no more than an m/z: ``104.107``, ``mz_104_107``."""


@dataclass(frozen=True)
class Label:
    """A metabolite in words: ``PC 34:1 +36 [M+H]+ (m/z 760.5851)``."""

    name: str
    """Readable name, of isomers the first and how many others there are; the id where there is none; empty where that is an m/z."""
    adduct: str = ""
    mz: float = np.nan
    named: bool = True
    """Whether a readable name is known."""

    def __str__(self) -> str:
        """All on one line."""
        return f"{self.short} ({self.mass})" if self.name and self.mass else self.short

    @property
    def mass(self) -> str:
        """The m/z (Da); empty where it is unknown."""
        return f"m/z {self.mz:.4f}" if np.isfinite(self.mz) else ""

    @property
    def short(self) -> str:
        """Name and adduct, for one line."""
        return " ".join(filter(None, (self.name or self.mass, self.adduct)))

    def lines(self, width: int) -> list[str]:
        """Name and adduct, then the m/z, in lines of at most `width` letters: broken only behind a slash, else cut short."""
        lines = [""]
        for piece in re.findall(r"[^/]*/|[^/]+$", self.name):
            fits = not lines[-1] or len(lines[-1]) + len(piece) <= width
            lines = [*lines[:-1], lines[-1] + piece] if fits else [*lines, piece]
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
        below = [self.adduct, self.mass]
        if len(lines[-1]) + 1 + len(self.adduct) <= width:
            lines[-1], below = (
                " ".join(filter(None, (lines[-1] or self.mass, self.adduct))),
                [self.mass * bool(self.name)],
            )
        return [line for line in (*lines, ", ".join(filter(None, below))) if line]


def label(features: pd.DataFrame | None, metabolite: str) -> Label:
    """The label of a metabolite: name, adduct and m/z.

    Parameters
    ----------
    features
        Feature table, or ``var`` of an MSI table: index of ids, with some of the columns ``name``, ``adduct``, ``mz`` (Da), ``formula``,
        and of METASPACE ``molecule_names`` and ``n_isomers``. `None`: nothing but the id is known.
    metabolite
        Id of the metabolite. One that the table lacks is its own label.

    Returns
    -------
    The label. Lists of isomers are shortened: the first, and the number of the others.
    """
    row: Any = {} if features is None or metabolite not in features.index else features.loc[metabolite]
    if isinstance(row, pd.DataFrame):
        row = row.iloc[0]
    adduct, mz = _text(row.get(Key.var.ADDUCT)), pd.to_numeric(row.get(Key.var.MZ, np.nan), errors="coerce")
    name = _name(row, adduct)
    named = name not in ("", str(metabolite))
    name = name or str(metabolite)
    if adduct and name.endswith(adduct):
        name = name.removesuffix(adduct).rstrip()
    if np.isfinite(mz) and _MZ_NAME.fullmatch(name):
        return Label("", adduct, float(mz), named=False)
    return Label(name, adduct, float(mz), named)


def short_labels(features: pd.DataFrame | None, metabolites: Sequence[str]) -> list[str]:
    """Labels for rows and legends: the names; where one repeats, with the adduct; where that repeats as well, with the m/z."""
    found = [label(features, m) for m in metabolites]
    out = [one.name or one.mass for one in found]
    for more in (lambda one: one.short, str):
        number = Counter(out)
        out = [more(one) if number[text] > 1 else text for one, text in zip(found, out, strict=True)]
    return out


def _name(row: Mapping[str, Any], adduct: str) -> str:
    """The readable name, of isomers the first and the number of the others; empty where there is none."""
    name, formula = _text(row.get(Key.var.NAME)), _text(row.get(Key.var.FORMULA))
    molecules, n = _text(row.get(Key.var.MOLECULES)), pd.to_numeric(row.get(Key.var.N_ISOMERS, np.nan), errors="coerce")
    # METASPACE's reader calls an ion of several isomers by its formula
    if molecules and n > 1 and name in ("", f"{formula} {adduct}"):
        return f"{_LIST.split(molecules)[0]} +{int(n) - 1}"
    parts = [part for part in _LIST.split(name) if part]
    # an inverted name such as "glucose, D-" is no list
    if len(parts) < 2 or any(part.endswith("-") for part in parts):
        return name
    return f"{parts[0]} +{len(parts) - 1}"


def _text(value: Any) -> str:
    if value is None or (np.ndim(value) == 0 and pd.isna(value)):
        return ""
    text = str(value).strip()
    return "" if text.lower() in _MISSING else text

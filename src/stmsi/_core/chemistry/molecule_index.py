"""Which entries of a table of metabolites are meant by the names, ids, formulas or masses of others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stmsi._core.chemistry.adducts import ADDUCTS
from stmsi._core.chemistry.formulas import monoisotopic_mass, parse_formula

_STEREO = re.compile(r"^(?:\([rsze\d,+-]+\)-|(?:dl|l|d)-)+")
_LIPID = re.compile(r"^([a-z]+)[\s(]*((?:(?:[op]-|[dtm])?\d+:\d+(?:\([\dez,]+\))?[/_]?)+)\)?$")
_CHAIN = re.compile(r"([op]-|[dtm])?(\d+):(\d+)")
_IDS = {"hmdb": re.compile(r"HMDB0*(\d+)"), "kegg": re.compile(r"\bC\d{5}\b"), "chebi": re.compile(r"(\d+)")}


def normal_name(name: str) -> str:
    """A name without case, punctuation, acid or anion, and stereo prefix; chains of a lipid are added up."""
    text = name.strip().lower()
    lipid = _LIPID.match(text)
    if lipid is not None:
        chains = _CHAIN.findall(re.sub(r"\([\dez,]+\)", "", lipid[2]))
        link = next((c[0] for c in chains if c[0]), "")
        text = f"{lipid[1]}{link}{sum(int(c[1]) for c in chains)}:{sum(int(c[2]) for c in chains)}"
    text = _STEREO.sub("", text.replace("ic acid", "ate"))
    return re.sub(r"[^\w:]|_", "", text)


def read_ids(kind: str, text: str) -> list[str]:
    """Ids of a kind (``"hmdb"``, ``"kegg"``, ``"chebi"``) in a text that may hold several, zeros in front cut off."""
    return list(dict.fromkeys(_IDS[kind].findall(text)))


def formula_key(text: str) -> tuple[tuple[str, int], ...] | None:
    """Atoms in a fixed order; `None` where the text is not a formula."""
    try:
        return tuple(sorted(parse_formula(text.strip()).items()))
    except ValueError:
        return None


@dataclass(frozen=True)
class Entry:
    """What is known of a metabolite: names, ids by kind, formula, genes."""

    names: tuple[str, ...]
    genes: tuple[str, ...]
    ids: dict[str, str] = field(default_factory=dict)
    formula: str = ""


class EntryIndex:
    """Look-up of entries by name, id, formula and m/z."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.by: dict[str, dict[object, list[int]]] = {
            k: defaultdict(list) for k in ("exact", "name", "formula", *_IDS)
        }
        self.mass = np.full(len(entries), np.nan)
        for i, entry in enumerate(entries):
            for name in dict.fromkeys(entry.names):
                self.by["exact"][name].append(i)
            for name in dict.fromkeys(map(normal_name, entry.names)):
                self.by["name"][name].append(i)
            for kind, text in entry.ids.items():
                for one in read_ids(kind, text):
                    self.by[kind][one].append(i)
            key = formula_key(entry.formula)
            if key is not None:
                self.by["formula"][key].append(i)
                self.mass[i] = monoisotopic_mass(entry.formula.strip())

    def by_id(self, ids: dict[str, str]) -> list[int]:
        """Entries that share an id."""
        return _distinct(
            i for kind, text in ids.items() for one in read_ids(kind, text) for i in self.by[kind].get(one, ())
        )

    def by_name(self, names: Iterable[str]) -> list[int]:
        """Entries that bear one of the names as it is, or else in its normal form."""
        names = [n for n in names if n]
        exact = _distinct(i for n in names for i in self.by["exact"].get(n, ()))
        return exact or _distinct(i for n in names for i in self.by["name"].get(normal_name(n), ()))

    def by_formula(self, formula: str) -> list[int]:
        """Entries made of the same atoms: isomers are all found."""
        key = formula_key(formula)
        return [] if key is None else list(self.by["formula"].get(key, ()))

    def by_mz(self, mz: float, adducts: Iterable[str], ppm: float) -> list[int]:
        """Entries an ion of which lies within `ppm` of an m/z."""
        ions = self.mass[:, None] + np.array([ADDUCTS[a] for a in adducts])
        return np.flatnonzero((np.abs(ions - mz) <= ppm * 1e-6 * mz).any(axis=1)).tolist()


def _distinct(found: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(found))

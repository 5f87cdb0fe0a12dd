"""Kinds of gene names in a table, and which genes of two tables are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import require_unique
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

VAR_NAMES = "var_names"

_ALIASES = (
    Key.var.GENE_IDS, "gene_id", "ensembl_id", "ensembl", "feature_id",
    "gene_symbols", "gene_symbol", "gene_name", "gene_names", "feature_name", "symbol", "SYMBOL",
)  # fmt: skip
"""Columns of ``var`` in which readers leave the other kind of gene name."""
_NOTHING = ("", "nan", "NaN", "None", "NA", "<NA>")
_ENSEMBL = re.compile(r"^(ENS[A-Z]*)G\d+$")
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")
_GENOME = re.compile(
    r"^(?:GRC[a-z]\d{1,2}|hg\d{2}|mm\d{1,2}|danRer\d{1,2}|Rnor_6\.0|mRatBN7\.2|rn\d)(?:[.-][A-Za-z0-9.-]*)?_+(?=[^_])"
)
"""What Cell Ranger puts before names in references of several genomes: ``GRCh38_``, ``mm10___``."""
_SPECIES = {"ENS": "human", "ENSMUS": "mouse", "ENSRNO": "rat", "ENSDAR": "zebrafish", "ENSSSC": "pig"}
_LOOKED_AT = 2000
_MOST = 0.6
"""Share of the symbols that are written in the way of a species."""
_DISAGREE = 0.1
"""Share of the genes found by id and by symbol whose columns may differ before it is told."""


def gene_names(var: pd.DataFrame) -> dict[str, pd.Index]:
    """All kinds of gene names that a ``var`` offers.

    Ensembl versions (``.5``) and the genome before a name (``GRCh38_``) are cut off; missing names are empty.
    """
    kinds = {VAR_NAMES: var.index}
    kinds |= {a: pd.Index(var[a].astype(object).where(var[a].notna(), "")) for a in _ALIASES if a in var}
    return {kind: _plain(names) for kind, names in kinds.items()}


def _plain(names: pd.Index) -> pd.Index:
    return pd.Index([_plain_name(str(name)) for name in names], dtype=object)


@lru_cache(maxsize=2**18)
def _plain_name(name: str) -> str:
    # the same names come back with every fold and every query
    return _VERSION.sub(r"\1", _GENOME.sub("", name))


@dataclass(frozen=True)
class Match:
    """Which genes of a table are those of another one.

    Attributes
    ----------
    columns
        Column of each wanted gene, -1 where it is missing.
    by
        Kind of name in the table -> genes that were found by it.
    by_case
        Genes whose names agree only when case is ignored, where these are more than those found; else 0.
    disagreeing
        Share of the genes found by id and by symbol whose id and symbol lead to two columns.
    """

    columns: NDArray[np.int64]
    by: dict[str, int]
    by_case: int
    disagreeing: float


def match_genes(wanted: Mapping[str, pd.Index], var: pd.DataFrame) -> Match:
    """Find genes by every kind of name: Ensembl ids first, then the kind that finds most.

    An id names one gene; a symbol may be that of several, or may have been made unique by a number. A name that repeats,
    in the table or among the genes wanted, finds nothing.

    Parameters
    ----------
    wanted
        Kinds of names of the genes to find, each in order.
    var
        Of the table.

    Raises
    ------
    ValueError
        A gene that no other name finds has a name that repeats in the table.
    """
    theirs = gene_names(var)
    n = len(next(iter(wanted.values())))
    pairs = []
    for kind, names in theirs.items():
        for own in map(_plain, wanted.values()):
            found = np.asarray(own.isin(names) & ~own.isin(_NOTHING))
            if found.any():
                pairs.append((_are_ids(own[found]), int(found.sum()), kind, own))
    if not pairs:
        return Match(np.full(n, -1), {}, _by_case(wanted, theirs), 0.0)
    pairs.sort(key=lambda pair: pair[:2], reverse=True)
    columns, taken, by = np.full(n, -1), np.zeros(len(var), dtype=bool), dict[str, int]()
    alone: dict[bool, NDArray[np.int64]] = {}
    for ids, _, kind, own in pairs:
        at = _positions(own, theirs[kind])
        alone.setdefault(ids, at)
        new = (columns < 0) & (at >= 0)
        new[new] = ~taken[at[new]]
        columns[new] = at[new]
        taken[at[new]] = True
        if new.any():
            by[kind] = by.get(kind, 0) + int(new.sum())
    _, _, kind, own = max(pairs, key=lambda pair: pair[1])
    names = theirs[kind]
    lost = own[columns < 0].difference(list(_NOTHING))
    require_unique(
        names[names.isin(lost)], "Gene names",
        f"Put Ensembl ids into var[{Key.var.GENE_IDS!r}], call .var_names_make_unique() or rename them.",
    )  # fmt: skip
    both = np.logical_and.reduce([at >= 0 for at in alone.values()]) if len(alone) > 1 else np.zeros(n, dtype=bool)
    disagreeing = float((alone[True] != alone[False])[both].mean()) if both.any() else 0.0
    by_case = _by_case(wanted, theirs)
    return Match(columns, by, by_case if by_case > (columns >= 0).sum() else 0, disagreeing)


def disagree(match: Match) -> bool:
    """Whether ids and symbols lead to other columns more often than a change of the annotation would explain."""
    return match.disagreeing > _DISAGREE


def unlike_species(own: Mapping[str, pd.Index], theirs: Mapping[str, pd.Index]) -> tuple[str, str] | None:
    """The species that two tables look like, where these differ: by Ensembl ids if both have them, else by symbols."""
    for species_of in (_species_by_ids, _species_by_symbols):
        pair = species_of(own), species_of(theirs)
        if pair[0] is not None and pair[1] is not None:
            return None if pair[0] == pair[1] else (pair[0], pair[1])
    return None


def _species_by_ids(names: Mapping[str, pd.Index]) -> str | None:
    for kind in names.values():
        prefix = pd.Series([m.group(1) for m in map(_ENSEMBL.match, map(str, kind[:_LOOKED_AT])) if m], dtype=object)
        if len(prefix):
            most = str(prefix.mode()[0])
            return _SPECIES.get(most, f"the species of {most}G")
    return None


def _species_by_symbols(names: Mapping[str, pd.Index]) -> str | None:
    """By the way in which symbols are written."""
    for kind in names.values():
        symbols = [n for n in map(str, kind[:_LOOKED_AT]) if re.search("[A-Za-z]", n) and not _ENSEMBL.match(n)]
        if not symbols:
            continue
        shares = {
            "human": np.mean([s == s.upper() for s in symbols]),
            "mouse or rat": np.mean([s[0].isupper() and s != s.upper() for s in symbols]),
            "zebrafish (or symbols in lower case)": np.mean([s == s.lower() for s in symbols]),
        }
        species = max(shares, key=lambda one: shares[one])
        return species if shares[species] > _MOST else None
    return None


def _are_ids(names: pd.Index) -> bool:
    some = names[:200]
    return bool(np.mean([_ENSEMBL.match(str(n)) is not None for n in some]) > 0.5)


def _positions(own: pd.Index, names: pd.Index) -> NDArray[np.int64]:
    """Where each of `own` is in `names`, -1 where it is missing or a name repeats on either side."""
    once = ~names.duplicated(keep=False) & ~names.isin(_NOTHING)
    place = pd.Series(np.flatnonzero(once), index=names[once])
    at = place.reindex(own.where(~own.duplicated(keep=False), "")).fillna(-1)
    return at.to_numpy().astype(np.int64)


def _by_case(wanted: Mapping[str, pd.Index], theirs: Mapping[str, pd.Index]) -> int:
    """Genes whose names agree only when case is ignored, by the kinds of names that find most."""
    lowered = [(names, set(names.str.lower()) - {n.lower() for n in _NOTHING}) for names in theirs.values()]
    own = [(names, names.str.lower()) for names in map(_plain, wanted.values())]
    return max(int((low.isin(found) & ~name.isin(names)).sum()) for name, low in own for names, found in lowered)

"""Which genes Human-GEM and MEBOCOST link to a metabolite: reads their files, which are not part of the repository."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

HUMAN_GEM, MEBOCOST = "Human-GEM", "MEBOCOST"
IDS = ("kegg", "hmdb", "chebi")
_GEM_COLUMNS = {"kegg": "metKEGGID", "hmdb": "metHMDBID", "chebi": "metChEBIID", "bigg": "metBiGGID"}
RENAMED = {
    "ADSS": "ADSS2", "ADSSL1": "ADSS1", "AGPHD1": "HYKK", "BCMO1": "BCO1", "CCBL1": "KYAT1", "CCBL2": "KYAT3", "DHFRL1": "DHFR2",
    "FUK": "FCSK", "GBA": "GBA1", "MUT": "MMUT", "NT5C3": "NT5C3A", "PRHOXNB": "URAD", "PYCRL": "PYCR3", "SC5DL": "SC5D",
    "TAZ": "TAFAZZIN", "TSTA3": "GFUS",
}  # fmt: skip
"""Symbols of HGNC by those of the databases, where it has renamed a gene of the table."""
_TAG = re.compile(r"\[[^\]]*\]")


class Databases:
    """Genes of metabolites in both databases, and every gene symbol that they know.

    Parameters
    ----------
    folder
        Holds ``Human-GEM.txt``, ``genes.tsv`` and ``metabolites.tsv`` of Human-GEM (CC BY 4.0), and the two ``*_HMDB_summary.tsv``
        of MEBOCOST (BSD-3-Clause).
    """

    def __init__(self, folder: Path) -> None:
        with (folder / "genes.tsv").open(encoding="utf-8") as file:
            symbol = {
                r["genes"]: RENAMED.get(r["geneSymbols"], r["geneSymbols"])
                for r in csv.DictReader(file, delimiter="\t")
            }
        self._gem_ids = _read_gem_ids(folder / "metabolites.tsv")
        self._gem_genes = _read_reactions(folder / "Human-GEM.txt", symbol)
        self._mebo_ids = _read_mebocost_names(folder / "metabolite_annotation_HMDB_summary.tsv")
        self._mebo_genes = _read_mebocost_genes(
            folder / "human_metabolite_associated_gene_reaction_HMDB_summary.tsv", self._mebo_ids
        )
        self.spread = Counter(gene for genes in self._gem_genes.values() for gene in genes)
        self.symbols = {s for s in symbol.values() if s} | {g for genes in self._mebo_genes.values() for g in genes}

    def genes(self, ids: Mapping[str, str], names: Iterable[str], bigg: Iterable[str] = ()) -> dict[str, set[str]]:
        """Databases by gene, for a metabolite with these ids and names, or of a pool with these BiGG ids."""
        found: dict[str, set[str]] = defaultdict(set)
        keys = [(kind, ids[kind]) for kind in IDS if ids.get(kind)] + [("bigg", one) for one in bigg]
        for met in {met for key in keys for met in self._gem_ids.get(key, ())}:
            for gene in self._gem_genes.get(met, ()):
                found[gene].add(HUMAN_GEM)
        mebo = {ids.get("hmdb", "")} | {self._mebo_ids.get(name.lower(), "") for name in names}
        for one in mebo - {""}:
            for gene in self._mebo_genes.get(one, ()):
                found[gene].add(MEBOCOST)
        return found


def _read_gem_ids(path: Path) -> dict[tuple[str, str], set[str]]:
    """Metabolites without compartment by (kind of id, id)."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            for kind, column in _GEM_COLUMNS.items():
                for one in filter(None, row[column].split(";")):
                    found[kind, one].add(row["metsNoComp"])
    return found


def _read_reactions(path: Path, symbol: Mapping[str, str]) -> dict[str, set[str]]:
    """Genes by metabolite without compartment, of all reactions in which it stands."""
    found: dict[str, set[str]] = defaultdict(set)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            genes = {symbol.get(g, "") for g in re.findall(r"ENSG\d+", row["Gene-reaction association"])} - {""}
            for met in re.findall(r"MAM\d+(?=[a-z])", row["Formula"]):
                found[met] |= genes
    return found


def _read_mebocost_names(path: Path) -> dict[str, str]:
    """HMDB id by name and synonym in lower case; a name of its own goes before a synonym of another."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {s.strip().lower(): r["HMDB_ID"] for r in rows for s in r["synonyms_name"].split(";") if s.strip()}
    return found | {r["metabolite"].lower(): r["HMDB_ID"] for r in rows}


def _read_mebocost_genes(path: Path, names: Mapping[str, str]) -> dict[str, set[str]]:
    """Genes by HMDB id."""
    found: dict[str, set[str]] = defaultdict(set)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            symbols = {_TAG.sub("", g).strip() for g in (row["gene"] or "").split(";")} - {""}
            genes = {RENAMED.get(g, g) for g in symbols}
            found[row["HMDB_ID"] or names.get(row["metabolite"].lower(), "")] |= genes
    return found


def read_reactome(path: Path) -> dict[str, set[str]]:
    """Genes by pathway, of a GMT file."""
    lines = (line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8"))
    return {name: {RENAMED.get(g, g) for g in genes if g} for name, _, *genes in lines}

"""Makes the table of core metabolites that stmsi ships, from two curated lists, the rules for lipids and two databases.

    python benchmarks/core_table/build.py ../shared/data/annotation

``molecules.tsv`` holds the molecules one by one, ``lipids.py`` makes the lipid species. Where ``molecules.tsv`` names no
genes, they are those that Human-GEM and MEBOCOST agree on, or else of either, the most specific first; ``-`` stands for none. Every other pair of a row and a gene is looked up, in
this order: Human-GEM (CC BY 4.0) and MEBOCOST (BSD-3-Clause) by metabolite; Reactome (CC BY 4.0) by a pathway of the row's
class; ``evidence.tsv`` (an article, a reaction of Reactome, or the reaction in the enzyme nomenclature). Pairs that none of
them supports are left out, and told. So are pairs of ``evidence.tsv`` that support no row: they are not evidence of this table.
The column ``source`` names what supports the genes of the row. The databases' files are not part of the repository.

Every line of ``evidence.tsv`` was looked up. ``checked`` names where, and when. For an article it is a page that shows the
identifier with a title or abstract that names gene and metabolite. For an EC number it is a source that gives the gene this
number (mostly HGNC) and, where the name of the enzyme does not say it, a page with the reaction. Where the page of the article
was found without its DOI, the source is the PubMed or PubMed Central number. A pair that could not be confirmed goes.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from databases import HUMAN_GEM, MEBOCOST, Databases, read_reactome
from lipids import CLASSES

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src/stmsi/_core/chemistry/core_metabolites.tsv"
COLUMNS = ("name", "synonyms", "formula", "class", "kegg", "hmdb", "chebi", "genes", "transporters", "source")
MOST_DERIVED = 8
"""Genes of a molecule for which none are curated."""

LIPIDS = ("Phospholipid metabolism", "Sphingolipid metabolism", "Triglyceride metabolism", "Fatty acid metabolism")
AMINO = ("Metabolism of amino acids and derivatives", "Metabolism of amine derived hormones")
PATHWAYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("amino acid", "urea cycle", "creatine", "kynurenine", "neurotransmitter", "dipeptide", "hormone"), AMINO),
    "polyamine": ("Metabolism of polyamines",),
    **dict.fromkeys(("choline", "ethanolamine"), (*AMINO, "Phospholipid metabolism")),
    "TCA cycle": ("Pyruvate metabolism and citric acid TCA cycle",),
    "glycolysis": ("Glucose metabolism", "Pyruvate metabolism"),
    "ketone body": ("Ketone body metabolism",),
    "coenzyme A": ("Pyruvate metabolism and citric acid TCA cycle", "Vitamin B5 pantothenate metabolism", "Fatty acid metabolism"),
    **dict.fromkeys(("vitamin", "cofactor", "one-carbon"), ("Metabolism of vitamins and cofactors",)),
    "carnitine": ("Carnitine metabolism", "Fatty acid metabolism", AMINO[0]),
    "short-chain acid": ("Fatty acid metabolism", "Glyoxylate metabolism and glycine degradation"),
    "fatty acid": ("Fatty acid metabolism",),
    "eicosanoid": ("Arachidonic acid metabolism",),
    **dict.fromkeys(("steroid", "sterol"), ("Metabolism of steroids",)),
    "bile acid": ("Bile acid and bile salt metabolism",),
    "porphyrin": ("Metabolism of porphyrins",),
    **dict.fromkeys(("nucleotide", "nucleoside", "nucleobase"), ("Metabolism of nucleotides",)),
    "nucleotide sugar": ("Sialic acid metabolism", "Metabolism of carbohydrates"),
    "carbohydrate": ("Metabolism of carbohydrates", "Sialic acid metabolism"),
    **dict.fromkeys(("inositol phosphate", "glycerophosphodiester"), ("Inositol phosphate metabolism", "Phospholipid metabolism")),
    "phosphatidylinositol": ("PI metabolism", *LIPIDS),
    "sphingolipid": ("Sphingolipid metabolism",),
    **dict.fromkeys((c.title for classes in CLASSES.values() for c in classes if c.title != "phosphatidylinositol"), LIPIDS),
}  # fmt: skip
"""Pathways of Reactome by class: a gene of one of them supports a curated pair."""


def rows() -> list[dict[str, str]]:
    """Molecules and lipid species; ``bigg`` holds further names of the row in Human-GEM."""
    with (HERE / "molecules.tsv").open(encoding="utf-8") as file:
        molecules = list(csv.DictReader(file, delimiter="\t"))
    lipids = [
        {"kegg": "", "hmdb": "", "chebi": "", "bigg": ";".join(one.bigg), **row}
        for abbreviation, classes in CLASSES.items()
        for one in classes
        for row in one.rows(abbreviation)
    ]
    return molecules + lipids


def read_evidence() -> dict[tuple[str, str], str]:
    """Sources by (name or class of a row, gene)."""
    with (HERE / "evidence.tsv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    return {
        (row, gene): line["source"]
        for line in table
        for row in line["rows"].split(";")
        for gene in line["genes"].split(";")
    }


def derived(known: dict[str, set[str]], spread: dict[str, int]) -> tuple[list[str], list[str]]:
    """Enzymes and transporters that the databases name: those in both if there are any, those of fewest metabolites first."""
    order = sorted(known, key=lambda gene: (-len(known[gene]), spread.get(gene, 0), gene))
    carriers = [gene for gene in order if gene.startswith(("SLC", "ABC", "ATP1", "AQP"))]
    enzymes = [gene for gene in order if gene not in carriers]
    enzymes = [gene for gene in enzymes if len(known[gene]) == len((HUMAN_GEM, MEBOCOST))] or enzymes
    return enzymes[:MOST_DERIVED], carriers[: MOST_DERIVED // 2]


def build(folder: Path) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """The table, the pairs that are left out, and the pairs of ``evidence.tsv`` that support no row."""
    databases, reactome, evidence = Databases(folder), read_reactome(folder / "scMetab_REACT.gmt"), read_evidence()
    chains = {gene: databases.genes({}, (), CHAIN_PRODUCTS[gene]).get(gene, set()) for gene in CHAIN_PRODUCTS}
    table, left_out, idle = [], [], dict.fromkeys(evidence)
    for row in rows():
        names = [row["name"], *row["synonyms"].split(";")]
        known = databases.genes(row, names, filter(None, row["bigg"].split(";")))
        genes, carriers = (row[c].split(";") if row[c] else [] for c in ("genes", "transporters"))
        if genes == ["-"]:
            genes = []
        elif not genes:
            found = derived(known, databases.spread)
            genes, carriers = found[0], list(dict.fromkeys(carriers + found[1]))
        kept: dict[str, list[str]] = defaultdict(list)
        sources = []
        for column, wanted in (("genes", genes), ("transporters", carriers)):
            for gene in dict.fromkeys(wanted):
                supported = sorted(known.get(gene, ())) or (sorted(chains.get(gene, ())) if is_lipid(row) else [])
                supported = (
                    supported
                    or [
                        f"Reactome {path}"
                        for path in PATHWAYS.get(row["class"].removeprefix("ether "), ())
                        if gene in reactome[path]
                    ][:1]
                )
                if not supported:
                    keys = [key for key in ((row["name"], gene), (row["class"], gene)) if key in evidence][:1]
                    supported = [evidence[key] for key in keys]
                    for key in keys:
                        idle.pop(key, None)
                if supported:
                    kept[column].append(gene)
                    sources += supported
                else:
                    left_out.append(f"{row['name']}\t{column}\t{gene}")
        cells = {c: ";".join(kept[c]) for c in ("genes", "transporters")}
        order = sorted(set(sources), key=lambda s: (s != HUMAN_GEM, s != MEBOCOST, not s.startswith("Reactome"), s))
        table.append({**{c: row.get(c, "") for c in COLUMNS}, **cells, "source": "; ".join(order)})
    return table, left_out, ["\t".join(pair) for pair in idle]


CHAIN_PRODUCTS = {
    "SCD": ("hdcoa", "odecoa", "octdececoa"),
    "FADS1": ("arachdcoa", "tmndnccoa"),
    "FADS2": ("lnlncgcoa", "strdnccoa", "c226coa", "tethex3coa"),
    "ELOVL5": ("dlnlcgcoa", "adrncoa"),
    "ELOVL1": ("lgnccoa", "nrvnccoa"),
    "ACSL4": ("arachdcoa",),
    "ACSL6": ("c226coa",),
}
"""Acyl-CoAs of Human-GEM by the gene of a chain: what it makes stands in the lipid."""


def is_lipid(row: dict[str, str]) -> bool:
    """Whether the row is a species made by the rules."""
    return row["name"].split(" ")[0] in CLASSES


def main() -> None:
    """Write the table; print what is left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="Human-GEM.txt, genes.tsv, metabolites.tsv, MEBOCOST's tables, Reactome's GMT"
    )
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    table, left_out, idle = build(arguments.folder)
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"{len(table)} rows; left out, for want of a source:", *left_out, sep="\n")
    if idle:
        print("evidence that supports no row:", *idle, sep="\n")


if __name__ == "__main__":
    main()

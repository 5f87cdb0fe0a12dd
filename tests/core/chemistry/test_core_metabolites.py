"""The shipped table: formulas that are right, ids that look like ids, genes that look like genes."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import stmsi
from stmsi._core.chemistry.formulas import monoisotopic_mass, parse_formula
from stmsi._core.chemistry.molecule_index import Entry, EntryIndex

CORE_TABLE = Path(__file__).resolve().parents[3] / "benchmarks" / "core_table"
"""Where the table is made; not part of the package."""

ATOMS = {
    "C": 12.0,
    "H": 1.00782503,
    "N": 14.0030740,
    "O": 15.9949146,
    "P": 30.9737620,
    "S": 31.9720712,
    "I": 126.904473,
}
KNOWN = {
    "glucose": 180.0634, "ATP": 506.9957, "glutamate": 147.0532, "glutamine": 146.0691, "lactate": 90.0317,
    "taurine": 125.0147, "creatine": 131.0695, "glutathione": 307.0838, "citrate": 192.0270, "spermidine": 145.1579,
    "cholesterol": 386.3549, "dopamine": 153.0790, "acetyl-CoA": 809.1258, "FA 20:4": 304.2402, "PC 34:1": 759.5778,
    "PE 36:2": 743.5465, "PS 40:6": 835.5363, "PI 38:4": 886.5571, "SM 34:1": 702.5676, "Cer 34:1": 537.5121,
    "SHexCer 42:2": 889.6313, "LPC 16:0": 495.3325, "TG 52:2": 858.7676, "CL 72:8": 1448.9722, "NADH": 665.1248,
    "PE O-38:5": 751.5516, "GM1 36:1": 1545.8767, "GM3 36:1": 1180.7445, "DG 34:1": 594.5223, "CE 18:2": 648.5845, "FA 24:6": 356.2715, "PG 44:12": 866.5098,
    "LPS 18:0": 525.3067, "MG 18:1": 356.2927, "Hex2Cer 34:1": 861.6177, "SHexCer 42:2;O3": 905.6262, "maltose": 342.1162,
    "taurochenodeoxycholate": 499.2968, "GDP-mannose": 605.0772, "propionyl-CoA": 823.1414, "thyroxine": 776.6867,
}  # fmt: skip
"""Monoisotopic masses in Da, as the databases list them."""


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return stmsi.datasets.core_metabolites()


def test_columns(table):
    assert table.columns.tolist() == [
        "name", "synonyms", "formula", "class", "kegg", "hmdb", "chebi", "genes", "transporters", "source"
    ]  # fmt: skip
    assert len(table) >= 600
    assert table["name"].is_unique
    assert not table.isna().any().any()
    assert (table[["name", "formula", "class"]] != "").all().all()


@pytest.mark.parametrize(("name", "mass"), KNOWN.items(), ids=KNOWN)
def test_masses_are_those_of_the_databases(table, name, mass):
    """Summed here from a table of its own, so that a wrong one in the package would show."""
    formula = table.set_index("name").loc[name, "formula"]
    own = sum(ATOMS[e] * int(n or 1) for e, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula))
    assert own == pytest.approx(mass, abs=2e-3)
    assert monoisotopic_mass(formula) == pytest.approx(mass, abs=2e-3)


def test_every_formula_parses_and_is_chemically_possible(table):
    for name, formula in zip(table["name"], table["formula"], strict=True):
        atoms = parse_formula(formula)
        hydrogens = 2 * atoms.get("C", 0) + atoms.get("N", 0) + atoms.get("P", 0) + 2
        assert 0 < atoms["H"] <= hydrogens + 1, name
        if name not in {
            "choline",
            "acetylcholine",
            "thiamine",
            "1-methylnicotinamide",
            "nicotinamide riboside",
            "betaine aldehyde",
        }:
            assert sum(atoms.get(one, 0) for one in "HNPI") % 2 == 0, f"{name}: a radical or an ion"


def test_lipids_of_a_class_differ_by_what_their_chains_differ_in(table):
    lipids = table[table["name"].str.fullmatch(r"(\w+) \d+:\d+")]
    for _, group in lipids.groupby(lipids["name"].str.split().str[0]):
        base = None
        for name, formula in zip(group["name"], group["formula"], strict=True):
            carbon, double = map(int, name.split()[1].split(":"))
            atoms = parse_formula(formula)
            rest = {**atoms, "C": atoms["C"] - carbon, "H": atoms["H"] - 2 * carbon + 2 * double}
            base = base or rest
            assert rest == base, name


@pytest.mark.parametrize(("column", "pattern"), [("kegg", r"C\d{5}"), ("hmdb", r"HMDB\d{7}"), ("chebi", r"CHEBI:\d+")])
def test_ids(table, column, pattern):
    given = table.loc[table[column] != "", column]
    assert len(given) >= 150
    assert given.str.fullmatch(pattern).all()
    assert given.is_unique


def test_genes_are_symbols(table):
    symbols = {g for column in ("genes", "transporters") for cell in table[column] for g in cell.split(";") if g}
    assert all(re.fullmatch(r"[A-Z][A-Z0-9]+(-[A-Z0-9]+)?", g) for g in symbols)
    assert len(symbols) > 500
    for cell in table["genes"]:
        genes = cell.split(";")
        assert len(genes) == len(set(genes))


def test_some_textbook_enzymes(table):
    genes = table.set_index("name")["genes"].str.split(";")
    for name, gene in {
        "lactate": "LDHA", "glutamine": "GLUL", "4-aminobutyrate": "GAD1", "N-acetylaspartate": "NAT8L",
        "cholesterol": "HMGCR", "spermine": "SMS", "kynurenine": "IDO1", "SHexCer 42:2": "GAL3ST1", "SM 34:1": "SGMS1",
        "PE O-38:5": "AGPS", "FA 22:6": "FADS2", "CL 72:8": "TAFAZZIN",
    }.items():  # fmt: skip
        assert gene in genes[name], name


MENDED = {
    "SM 32:1": ("CERS2", "CERS5"), "LPC 18:2": ("SCD", "LPCAT3"), "LPE 18:2": ("SCD", "LPCAT3"), "LPA 18:2": ("SCD", "AGPAT1"),
    "CE 18:2": ("SCD", "SOAT1"), "urate": ("UOX", "XDH"), "allantoin": ("UOX", ""), "threonine": ("TDH", "SDS"),
    "1-methylhistidine": ("SETD3", "CNDP1"), "3-methylhistidine": ("CNDP1", "SETD3"), "CL 72:8": ("FADS2", "CRLS1"),
    "PC 34:2": ("SCD", "LPCAT1"), "TG 52:3": ("FADS1", "SCD"), "PE 36:2": ("NAPEPLD", "PCYT2"), "cholesteryl sulfate": ("SULT2A1", "SULT2B1"),
}  # fmt: skip
"""A gene that a row must not name, and one that it must.

Linoleate is not made by SCD, nor urate degraded in humans; NAPEPLD hydrolyses N-acylated phosphatidylethanolamine alone.
"""


@pytest.mark.parametrize(("name", "genes"), MENDED.items(), ids=MENDED)
def test_wrong_genes_are_not_named(table, name, genes):
    wrong, right = genes
    found = table.set_index("name").loc[name, "genes"].split(";")
    assert wrong not in found
    assert right in found


@pytest.mark.parametrize("pseudogene", ["UOX", "URAD", "TDH", "GULOP", "CYP21A1P", "GBAP1", "UOXP"])
def test_no_pseudogenes(table, pseudogene):
    for column in ("genes", "transporters"):
        assert not table[column].str.split(";").map(lambda cell: pseudogene in cell).any()


def test_rows_with_genes_name_their_source(table):
    with_genes = (table["genes"] != "") | (table["transporters"] != "")
    assert with_genes.equals(table["source"] != "")
    assert (~with_genes).sum() <= 15
    source = r"Human-GEM|MEBOCOST|Reactome \w.+|doi:10\.\d{4}/\S+|PMID:\d+|PMC\d+|EC \d+\.\d+\.\d+\.\d+"
    assert table.loc[with_genes, "source"].str.fullmatch(rf"({source})(; ({source}))*").all()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("PC(34:1)", "PC 34:1"), ("PC(16:0/18:1)", "PC 34:1"), ("LPC(16:0)", "LPC 16:0"), ("LysoPE(18:1)", "LPE 18:1"), ("lactic acid", "lactate"),
        ("PE(P-18:0/20:4)", "PE O-38:5"), ("SM(d18:1/16:0)", "SM 34:1"), ("TAG 52:2", "TG 52:2"), ("lauric acid", "FA 12:0"),
        ("LacCer(d18:1/16:0)", "Hex2Cer 34:1"), ("glycochenodeoxycholic acid", "glycochenodeoxycholate"), ("GalNAc", "N-acetylgalactosamine"),
    ],
)  # fmt: skip
def test_names_as_users_write_them(table, written, name):
    names = [
        (row.name, *filter(None, row.synonyms.split(";")))
        for row in table[["name", "synonyms"]].itertuples(index=False)
    ]
    index = EntryIndex([Entry(one, ()) for one in names])
    assert [names[i][0] for i in index.by_name([written])] == [name]


def test_fatty_acids_are_not_carried_by_what_carries_their_lysolipids(table):
    carriers = table.set_index("name")["transporters"].str.split(";")
    assert "MFSD2A" not in carriers["FA 22:6"]
    assert "MFSD2A" in carriers["LPC 22:6"]


@pytest.mark.skipif(not CORE_TABLE.exists(), reason="the benchmarks are not part of the source distribution")
def test_each_piece_of_evidence_says_where_it_was_looked_up(table):
    lines = pd.read_csv(CORE_TABLE / "evidence.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert lines.columns.tolist() == ["genes", "rows", "source", "checked"]
    assert lines["checked"].str.fullmatch(r"\S.+; \d{1,2} [A-Z][a-z]{2} \d{4}").all()
    pairs = [
        (row, gene) for line in lines.itertuples() for row in line.rows.split(";") for gene in line.genes.split(";")
    ]
    assert len(pairs) == len(set(pairs)), "a pair with two sources: the second would win without a word"
    shipped = {source for cell in table["source"] for source in cell.split("; ")}
    assert set(lines["source"]) <= shipped
    from_databases = ("Human-GEM", "MEBOCOST", "Reactome ")
    assert {s for s in shipped - {""} if not s.startswith(from_databases)} <= set(lines["source"])


@pytest.mark.realdata
def test_the_table_is_what_the_databases_give(table, data_dir, tmp_path):
    script = CORE_TABLE / "build.py"
    made = tmp_path / "made.tsv"
    run = [sys.executable, str(script), str(data_dir / "annotation"), "--out", str(made)]
    told = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    pd.testing.assert_frame_equal(pd.read_csv(made, sep="\t", dtype=str, keep_default_na=False), table)
    assert told.splitlines()[1:] == [], "pairs without a source, or evidence that supports no row"


def test_each_call_returns_a_table_of_its_own(table):
    changed = stmsi.datasets.core_metabolites()
    changed.loc[0, "name"] = "changed"
    assert stmsi.datasets.core_metabolites().loc[0, "name"] == table.loc[0, "name"] != "changed"

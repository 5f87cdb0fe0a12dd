"""The shipped table: formulas that are right, ids that look like ids, genes that look like genes."""

import re

import pandas as pd
import pytest

import stmsi
from stmsi._core.chemistry.formulas import monoisotopic_mass, parse_formula

ATOMS = {"C": 12.0, "H": 1.00782503, "N": 14.0030740, "O": 15.9949146, "P": 30.9737620, "S": 31.9720712}
KNOWN = {
    "glucose": 180.0634, "ATP": 506.9957, "glutamate": 147.0532, "glutamine": 146.0691, "lactate": 90.0317,
    "taurine": 125.0147, "creatine": 131.0695, "glutathione": 307.0838, "citrate": 192.0270, "spermidine": 145.1579,
    "cholesterol": 386.3549, "dopamine": 153.0790, "acetyl-CoA": 809.1258, "FA 20:4": 304.2402, "PC 34:1": 759.5778,
    "PE 36:2": 743.5465, "PS 40:6": 835.5363, "PI 38:4": 886.5571, "SM 34:1": 702.5676, "Cer 34:1": 537.5121,
    "SHexCer 42:2": 889.6313, "LPC 16:0": 495.3325, "TG 52:2": 858.7676, "CL 72:8": 1448.9722, "NADH": 665.1248,
    "PE O-38:5": 751.5516, "GM1 36:1": 1545.8767, "GM3 36:1": 1180.7445, "DG 34:1": 594.5223, "CE 18:2": 648.5845,
}  # fmt: skip
"""Monoisotopic masses in Da, as the databases list them."""


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return stmsi.datasets.core_metabolites()


def test_columns(table):
    assert table.columns.tolist() == [
        "name", "synonyms", "formula", "class", "kegg", "hmdb", "chebi", "genes", "transporters"
    ]  # fmt: skip
    assert len(table) >= 150
    assert table["name"].is_unique
    assert not table.isna().any().any()
    assert (table[["name", "formula", "class"]] != "").all().all()
    assert ((table["genes"] != "") | (table["transporters"] != "")).all()


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
        if name not in {"choline", "acetylcholine", "thiamine", "1-methylnicotinamide", "nicotinamide riboside"}:
            assert (atoms["H"] + atoms.get("N", 0) + atoms.get("P", 0)) % 2 == 0, f"{name}: a radical or an ion"


def test_lipids_of_a_class_differ_by_what_their_chains_differ_in(table):
    lipids = table[table["name"].str.fullmatch(r"(PC|PE|PS|PI|PA|PG|SM|Cer|HexCer|TG|LPC) \d+:\d+")]
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


def test_each_call_returns_a_table_of_its_own(table):
    changed = stmsi.datasets.core_metabolites()
    changed.loc[0, "name"] = "changed"
    assert stmsi.datasets.core_metabolites().loc[0, "name"] == table.loc[0, "name"] != "changed"

import logging

import numpy as np
import pandas as pd
import pytest

from stmsi.model.shared._gene_names import gene_names, match_genes, unlike_species
from stmsi.model.shared._gene_panel import GenePanel

SYMBOLS = ["ACTB", "GAPDH", "CD3E", "MS4A1", "EPCAM", "COL1A1"]
IDS = [f"ENSG0000000000{i}" for i in range(6)]
BOTH = pd.DataFrame({"gene_ids": IDS}, index=SYMBOLS)


def panel(var=BOTH) -> GenePanel:
    return GenePanel(gene_names(var), np.ones(len(var)))


def found(var, of=BOTH) -> list[int]:
    return list(panel(of).locate(var, tell=True))


@pytest.mark.parametrize(
    "prefix", ["GRCh38_", "mm10___", "hg19_", "GRCh38______", "GRCm39_", "GRCh38-2020-A_", "GRCh38.p13_"]
)
def test_the_genome_before_a_name_is_cut(prefix):
    assert list(gene_names(pd.DataFrame(index=[prefix + "ACTB"]))["var_names"]) == ["ACTB"]
    assert found(pd.DataFrame(index=[prefix + s for s in SYMBOLS])) == list(range(6))
    assert found(pd.DataFrame(index=[f"{prefix}{i}.7" for i in IDS])) == list(range(6))


def test_of_two_genomes_in_one_table_the_ids_tell_which(caplog):
    ids = [f"GRCh38_{i}" for i in IDS] + [f"mm10___ENSMUSG0000000000{i}" for i in range(6)]
    var = pd.DataFrame({"gene_ids": ids}, index=[f"GRCh38_{s}" for s in SYMBOLS] + [f"mm10___{s}" for s in SYMBOLS])
    assert found(var) == list(range(6))


@pytest.mark.parametrize("name", ["MM1_like", "HG3", "GRC1", "mm_gene", "rn7sk"])
def test_other_names_stay(name):
    assert list(gene_names(pd.DataFrame(index=[name]))["var_names"]) == [name]


def test_where_ids_and_symbols_find_as_many_the_id_decides():
    """Symbols that were made unique: which of them is the gene, only the id says."""
    swapped = [IDS[0], "ENSG00000000099", *IDS[2:], IDS[1]]
    var = pd.DataFrame({"gene_ids": swapped}, index=[*SYMBOLS, "GAPDH-1"])
    assert found(var) == [0, 6, 2, 3, 4, 5]


def test_ids_tell_repeated_symbols_apart():
    var = pd.DataFrame({"gene_ids": [*IDS, "ENSG00000000099"]}, index=[*SYMBOLS, "CD3E"])
    assert found(var) == list(range(6))


def test_repeated_symbols_that_no_id_tells_apart_are_refused():
    var = pd.DataFrame({"gene_ids": [*IDS[:2], "", *IDS[3:], ""]}, index=[*SYMBOLS, "CD3E"])
    with pytest.raises(ValueError, match=r"repeated: 'CD3E'. Put Ensembl ids into var\['gene_ids'\]"):
        found(var)


def test_a_gene_that_its_id_does_not_find_is_found_by_its_symbol_and_told(caplog):
    var = pd.DataFrame({"gene_ids": [*IDS[:4], "ENSG00000000098", ""]}, index=SYMBOLS)
    with caplog.at_level(logging.INFO, "stmsi"):
        assert found(var) == list(range(6))
    assert "found by var['gene_ids'] (4), var_names (2)" in caplog.text


def test_no_column_is_two_genes():
    of = pd.DataFrame({"gene_ids": IDS[:2]}, index=["OLD", "NEW"])
    var = pd.DataFrame({"gene_ids": [IDS[0]]}, index=["NEW"])
    assert found(var, of) == [0, -1]


def test_symbols_that_repeat_in_the_panel_find_nothing():
    of = pd.DataFrame({"gene_symbols": ["A", "A", "B"]}, index=IDS[:3])
    assert found(pd.DataFrame(index=["A", "B"]), of) == [-1, -1, 1]


def test_ids_in_another_order_than_the_symbols_are_told(caplog):
    with caplog.at_level(logging.WARNING, "stmsi"):
        found(pd.DataFrame({"gene_ids": IDS[::-1]}, index=SYMBOLS))
    assert "Ids and symbols of genes disagree: for 100 %" in caplog.text


def test_a_few_new_ids_are_no_disagreement():
    assert match_genes({"var_names": BOTH.index, "gene_ids": pd.Index(IDS)}, BOTH).disagreeing == 0


MOUSE = [s.title() for s in SYMBOLS]


@pytest.mark.parametrize("shared", [[], ["ACTB"]])
def test_another_species_is_named(shared):
    var = pd.DataFrame(index=[*shared, *MOUSE])
    with pytest.raises(
        ValueError, match=r"[56] names agree only when upper and lower case.*human.*mouse or rat.*ortholog"
    ):
        found(var)
    with pytest.raises(ValueError, match=r"panel looks like mouse or rat, the data like human"):
        found(BOTH[[]], pd.DataFrame(index=MOUSE))


def test_ids_of_another_species_are_named():
    var = pd.DataFrame(index=[f"ENSMUSG0000000000{i}" for i in range(6)])
    with pytest.raises(
        ValueError, match=r"share no gene.*Another species: the panel looks like human, the data like mouse"
    ):
        found(var)


def test_genes_renamed_to_orthologs_match_and_are_told(caplog):
    var = pd.DataFrame({"gene_ids": [f"ENSMUSG0000000000{i}" for i in range(6)]}, index=SYMBOLS)
    with caplog.at_level(logging.WARNING, "stmsi"):
        assert found(var) == list(range(6))
    assert "of the model look like human, those of the data like mouse" in caplog.text


def test_the_same_species_is_not_suspected(caplog):
    with caplog.at_level(logging.INFO, "stmsi"):
        found(BOTH[[]])
        found(pd.DataFrame(index=SYMBOLS))
    assert not caplog.records
    assert unlike_species(gene_names(BOTH), gene_names(pd.DataFrame(index=["C1orf112", *SYMBOLS]))) is None

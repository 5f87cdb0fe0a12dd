import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import column_moments, log_normalize
from stmsi.model.shared._gene_names import gene_names
from stmsi.model.shared._gene_panel import GenePanel

SYMBOLS = ["ACTB", "GAPDH", "CD3E", "MS4A1", "EPCAM", "COL1A1"]
IDS = [f"ENSG0000000000{i}" for i in range(6)]


@pytest.fixture
def counts() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(0).poisson(20, (15, 6)), dtype=np.float32)


@pytest.fixture
def panel(counts) -> GenePanel:
    var = pd.DataFrame({"gene_ids": IDS}, index=SYMBOLS)
    return GenePanel(gene_names(var), column_moments(log_normalize(counts))[0])


def test_the_same_genes_are_found_in_place(panel):
    np.testing.assert_array_equal(panel.locate(pd.DataFrame(index=SYMBOLS)), np.arange(6))
    assert len(panel) == 6


def test_any_order_and_more_genes(panel, counts):
    order = [4, 0, 5, 2, 1, 3]
    var = pd.DataFrame(index=["XIST", *(SYMBOLS[i] for i in order), "MT-CO1"])
    query = sp.hstack([counts[:, [0]] * 7, counts[:, order], counts[:, [1]]], format="csr")
    columns = panel.locate(var)
    np.testing.assert_array_equal(panel.align(query, columns).toarray(), counts.toarray())


@pytest.mark.parametrize("alias", ["gene_ids", "gene_id", "ensembl_id", "feature_id"])
def test_ids_in_a_column_of_the_query(panel, alias):
    var = pd.DataFrame({alias: IDS[::-1]}, index=[f"other{i}" for i in range(6)])
    np.testing.assert_array_equal(panel.locate(var), np.arange(6)[::-1])


def test_ensembl_ids_as_names_with_versions(panel):
    var = pd.DataFrame(index=[f"{name}.{i + 1}" for i, name in enumerate(IDS)])
    np.testing.assert_array_equal(panel.locate(var), np.arange(6))


def test_versions_on_the_training_side(counts):
    var = pd.DataFrame(index=[f"{name}.12" for name in IDS])
    panel = GenePanel(gene_names(var), column_moments(log_normalize(counts))[0])
    np.testing.assert_array_equal(panel.locate(pd.DataFrame(index=IDS)), np.arange(6))


@pytest.mark.parametrize("name", ["ENSMUSG00000051951.5", "ENSG00000141510.1"])
def test_version_is_cut_for_any_species(name):
    assert list(gene_names(pd.DataFrame(index=[name]))["var_names"]) == [name.split(".")[0]]


@pytest.mark.parametrize("name", ["RP11-34P13.7", "AC013394.1", "ENST00000456328.2"])
def test_a_dot_in_other_names_stays(name):
    assert list(gene_names(pd.DataFrame(index=[name]))["var_names"]) == [name]


def test_symbols_of_a_query_that_is_named_by_ids(panel):
    """Training offers both kinds; the kind with the most hits decides."""
    var = pd.DataFrame({"gene_symbols": SYMBOLS}, index=[*IDS[:2], "x", "y", "z", "w"])
    np.testing.assert_array_equal(panel.locate(var), np.arange(6))


def test_missing_genes_are_marked(panel):
    np.testing.assert_array_equal(panel.locate(pd.DataFrame(index=SYMBOLS[3:])), [-1, -1, -1, 0, 1, 2])


def test_no_gene_in_common_shows_both_sides(panel):
    with pytest.raises(ValueError, match=r"share no gene.*'ACTB', 'ENSG00000000000'.*'Actb', 'Gapdh'.*same species"):
        panel.locate(pd.DataFrame(index=["Actb", "Gapdh"]))


def test_repeated_names_in_the_query_are_refused(panel):
    with pytest.raises(ValueError, match=r"Gene names must be unique; repeated: 'CD3E'"):
        panel.locate(pd.DataFrame(index=[*SYMBOLS, "CD3E"]))


def test_repeated_names_that_the_panel_lacks_do_not_matter(panel):
    np.testing.assert_array_equal(panel.locate(pd.DataFrame(index=[*SYMBOLS, "X", "X"])), np.arange(6))


def test_repeated_symbols_do_not_matter_where_the_ids_match(panel):
    var = pd.DataFrame({"gene_ids": IDS}, index=["A", "A", "CD3E", "CD3E", "B", "B"])
    np.testing.assert_array_equal(panel.locate(var), np.arange(6))


@pytest.mark.parametrize("nothing", [np.nan, None, ""])
def test_genes_without_an_id_are_not_matched_to_each_other(counts, nothing):
    ids = pd.Series([*IDS[:4], nothing, nothing], dtype=object).to_numpy()
    trained = gene_names(pd.DataFrame({"gene_ids": ids}, index=SYMBOLS))
    panel = GenePanel(trained, column_moments(log_normalize(counts))[0])
    query = pd.DataFrame({"gene_ids": ids[::-1]}, index=[f"other{i}" for i in range(6)])
    np.testing.assert_array_equal(panel.locate(query), [5, 4, 3, 2, -1, -1])

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stmsi

GENES = ["GLS", "GLUL", "LDHA", "SLC1A5", "PEMT", "GNPAT", "ACTB", "GAD1"]


@pytest.fixture
def st():
    """Four metabolites with a feature table, eight genes."""
    ids = ["a", "PC_34_1", "c", "nothing"]
    st = AnnData(np.ones((5, len(GENES)), np.float32), var=pd.DataFrame(index=GENES))
    st.obsm["msi"] = pd.DataFrame(np.ones((5, 4), np.float32), index=st.obs_names, columns=ids)
    features = {"name": ["L-Glutamine", "PC(16:0/18:1)", "x1", "no such thing"], "formula": ["", "", "C3H6O3", ""]}
    st.uns["msi"] = {"features": pd.DataFrame(features, index=ids)}
    return st


def genes_of(st, metabolite, key="msi_prior"):
    return set(st.var_names[st.varm[key][metabolite]])


def test_the_core_table_by_name_and_formula(st):
    assert stmsi.pp.knowledge_prior(st) is None
    prior, record = st.varm["msi_prior"], st.uns["msi_prior"]
    assert prior.index.equals(st.var_names)
    assert prior.columns.tolist() == ["a", "PC_34_1", "c", "nothing"]
    assert set(map(str, prior.dtypes)) == {"bool"}
    assert genes_of(st, "a") == {"GLS", "GLUL", "SLC1A5"}
    assert genes_of(st, "PC_34_1") == {"PEMT"}
    assert genes_of(st, "c") == {"LDHA"}
    assert genes_of(st, "nothing") == set()
    assert record["matches"]["matched_by"].tolist() == ["name", "name", "formula", ""]
    assert record["matches"]["entries"].tolist() == ["glutamine", "PC 34:1", "lactate", ""]
    assert record["matches"]["n_genes"].tolist() == [3, 1, 1, 0]
    assert record["params"]["table"] == "core_metabolites"


def test_what_was_matched_is_reported(st, caplog):
    with caplog.at_level("INFO", logger="stmsi"):
        stmsi.pp.knowledge_prior(st)
    assert "3 of 4 metabolites matched (2 by name, 1 by formula)" in caplog.text


def test_without_transporters(st):
    stmsi.pp.knowledge_prior(st, transporters=False)
    assert genes_of(st, "a") == {"GLS", "GLUL"}


@pytest.mark.parametrize("column", ["HMDB", "hmdb_id", "KEGG", "chebi"])
def test_ids_go_before_names(st, column):
    given = {"HMDB": "HMDB00148", "hmdb_id": "HMDB0000148", "KEGG": "C00025", "chebi": "CHEBI:16015"}[column]
    st.uns["msi"]["features"][column] = [given, "", np.nan, ""]
    stmsi.pp.knowledge_prior(st)
    assert st.uns["msi_prior"]["matches"].loc["a", "entries"] == "glutamate"
    assert genes_of(st, "a") == {"GLS", "GLUL", "GAD1"}


def test_isomers_are_joined(st):
    st.uns["msi"]["features"].loc["nothing", "formula"] = "C6H12O6"
    table = pd.DataFrame({"name": ["glucose", "fructose"], "formula": "C6H12O6", "genes": ["GLS", "LDHA;ACTB"]})
    stmsi.pp.knowledge_prior(st, table)
    assert genes_of(st, "nothing") == {"GLS", "LDHA", "ACTB"}
    assert st.uns["msi_prior"]["matches"].loc["nothing", "entries"] == "glucose; fructose"


def test_mz_only_where_asked_for(st):
    features = st.uns["msi"]["features"].assign(mz=[np.nan, np.nan, np.nan, 148.0604], adduct="")
    st.uns["msi"]["features"] = features
    stmsi.pp.knowledge_prior(st)
    assert genes_of(st, "nothing") == set()
    stmsi.pp.knowledge_prior(st, ppm=5)
    assert "glutamate" in st.uns["msi_prior"]["matches"].loc["nothing", "entries"]
    assert st.uns["msi_prior"]["params"]["ppm"] == 5
    st.uns["msi"]["features"] = features.assign(adduct="[M-H]-")
    stmsi.pp.knowledge_prior(st, ppm=5)
    assert genes_of(st, "nothing") == set(), "the adduct of the feature table counts"


@pytest.mark.parametrize("rename", [str.capitalize, str.lower])
def test_case_of_symbols_does_not_count(st, rename):
    st.var_names = [rename(g) for g in GENES]
    stmsi.pp.knowledge_prior(st)
    assert genes_of(st, "a") == {rename(g) for g in ("GLS", "GLUL", "SLC1A5")}


def test_symbols_in_a_column(st):
    st.var["symbol"] = [*GENES[:-1], None]
    st.var_names = [f"ENSG{i}" for i in range(len(GENES))]
    with pytest.raises(ValueError, match=r"None of the \d+ genes .* gene_symbols="):
        stmsi.pp.knowledge_prior(st)
    stmsi.pp.knowledge_prior(st, gene_symbols="symbol")
    assert genes_of(st, "a") == {"ENSG0", "ENSG1", "ENSG3"}
    with pytest.raises(KeyError, match="Did you mean 'symbol'"):
        stmsi.pp.knowledge_prior(st, gene_symbols="symbols")


def test_a_table_like_that_of_mebocost(st):
    table = pd.DataFrame(
        {
            "metabolite": ["Glutamine", "Glutamine", "Lactate"],
            "HMDB_ID": ["HMDB0000641", "HMDB0000641", "HMDB0000190"],
            "reaction": "",
            "gene": ["GLS[Enzyme]; GLUL[Enzyme]", "SLC1A5[Transporter]", None],
            "direction": "substrate",
        }
    )
    stmsi.pp.knowledge_prior(st, table)
    assert genes_of(st, "a") == {"GLS", "GLUL", "SLC1A5"}
    assert genes_of(st, "c") == set()


def test_mapping_and_gmt_say_the_same(st, tmp_path):
    sets = {"glutamine": ["GLS", "GLUL"], "c": ["LDHA"], "unknown": ["ACTB"]}
    path = tmp_path / "sets.gmt"
    path.write_text("\n".join("\t".join([name, "", *genes]) for name, genes in sets.items()) + "\n")
    stmsi.pp.knowledge_prior(st, sets)
    stmsi.pp.knowledge_prior(st, path, key_added="from_file")
    pd.testing.assert_frame_equal(st.varm["msi_prior"], st.varm["from_file"])
    assert genes_of(st, "a") == {"GLS", "GLUL"}
    assert genes_of(st, "c") == {"LDHA"}
    assert not st.varm["msi_prior"].loc["ACTB"].any()
    assert st.uns["from_file"]["params"]["table"] == str(path)


def test_without_a_feature_table_ids_are_names(st):
    del st.uns["msi"]
    stmsi.pp.knowledge_prior(st, {"PC_34_1": ["PEMT"]})
    assert genes_of(st, "PC_34_1") == {"PEMT"}


def test_the_rest_of_the_object_is_left_alone(st):
    before = st.uns["msi"]["features"].copy()
    table = stmsi.datasets.core_metabolites()
    stmsi.pp.knowledge_prior(st, table)
    pd.testing.assert_frame_equal(st.uns["msi"]["features"], before)
    pd.testing.assert_frame_equal(table, stmsi.datasets.core_metabolites())
    assert set(st.uns) == {"msi", "msi_prior"}


def test_truth_of_the_simulator(mapped):
    drivers = mapped.tables["st"].uns["truth"]["drivers"]
    stmsi.pp.knowledge_prior(mapped, drivers)
    prior = mapped.tables["st"].varm["msi_prior"]
    for metabolite, own in drivers.groupby("metabolite"):
        assert set(prior.index[prior[metabolite]]) == set(own["gene"])
    assert prior.to_numpy().sum() == len(drivers)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"elsewhere": ["GLS"]}, ValueError, "None of the 4 metabolites"),
        ({}, ValueError, "None of the 4 metabolites"),
        ({"a": ["NOGENE"]}, ValueError, "None of the 1 genes"),
        (pd.DataFrame({"metabolite": ["a"]}), KeyError, "column 'gene'"),
        (pd.DataFrame({"gene": ["GLS"]}), KeyError, "column 'metabolite'"),
        ([("a", "GLS")], TypeError, "found list"),
        ("no_such_file.gmt", FileNotFoundError, "There is no file"),
    ],
)
def test_wrong_tables(st, table, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.knowledge_prior(st, table)
    assert "msi_prior" not in st.varm


def test_wrong_arguments(st):
    with pytest.raises(KeyError, match="map_to_spots"):
        stmsi.pp.knowledge_prior(st, metabolite_key="elsewhere")
    with pytest.raises(ValueError, match="adducts"):
        stmsi.pp.knowledge_prior(st, ppm=5, adducts=["[M+Li]+"])
    with pytest.raises(ValueError, match="ppm must be a positive number"):
        stmsi.pp.knowledge_prior(st, ppm=0)
    with pytest.raises(ValueError, match="cannot be stored"):
        stmsi.pp.knowledge_prior(st, key_added="a/b")

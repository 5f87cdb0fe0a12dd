"""What sections have beside their matrices, after :func:`stmsi.pp.combine`: nothing lost, invented or misplaced."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi._data.merge_fields import join_columns

XY = np.array([[0.0, 0.0], [100.0, 0.0], [50.0, 86.6]])


def _st(genes=("g1", "g2", "g3"), **obs):
    counts = np.arange(3 * len(genes), dtype=np.float32).reshape(3, -1)
    frame = pd.DataFrame(obs, index=["s1", "s2", "s3"])
    return AnnData(counts, obs=frame, var=pd.DataFrame(index=list(genes)), obsm={"spatial": XY.copy()})


def _msi(ions=("lipid",), mz=(500.25,), **var):
    obs = pd.DataFrame({"row": [0, 0, 1, 1], "col": [0, 1, 0, 1]}, index=list("abcd"))
    return AnnData(np.ones((4, len(ions))), obs=obs, var=pd.DataFrame({"mz": mz, **var}, index=list(ions)))


def _table(a, b, **kwargs):
    return stmsi.pp.combine({"A": a, "B": b}, **kwargs).tables["st"]


@pytest.fixture
def written(tmp_path):
    """A table after writing and reading, as h5ad and as zarr."""

    def both(table):
        table.write_h5ad(tmp_path / "a.h5ad")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr announces defaults of its next release
            table.write_zarr(tmp_path / "a.zarr")
        return ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")

    return both


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_what_one_section_has_is_missing_in_the_other(join, written, caplog):
    a = _st(patient="case1", tumour=["yes", None, "no"], n=[1, 2, 3], flag=[True, False, True], score=[0.5, 1, 2])
    a.obs["grade"] = pd.Categorical(["low", "high", "low"], categories=["low", "high"], ordered=True)
    a.obsm["histology"] = np.full((3, 4), 7)
    a.obsm["signs"] = pd.DataFrame({"x": [1, 2, 3], "y": [True, False, True]}, index=a.obs_names)
    table = _table(a, _st(), join=join)
    assert not caplog.records or "left out" not in caplog.text
    for t in (table, *written(table)):
        obs = t.obs.astype(object)
        assert obs["patient"].iloc[:3].tolist() == ["case1"] * 3
        assert obs["tumour"].isna().tolist() == [False, True, False, True, True, True]
        assert t.obs["grade"].cat.ordered
        assert list(t.obs["grade"].cat.categories) == ["low", "high"]
        for column in ("patient", "n", "flag", "score", "grade"):
            assert obs[column].isna().tolist() == [False] * 3 + [True] * 3, column
            assert "nan" not in set(obs[column].astype(str).iloc[:3])
        assert obs["flag"].iloc[:3].tolist() == [True, False, True]
        np.testing.assert_array_equal(t.obsm["histology"][:3], 7)
        assert np.isnan(t.obsm["histology"][3:]).all()
        assert t.obsm["signs"].isna().to_numpy().tolist() == [[False] * 2] * 3 + [[True] * 2] * 3


def test_columns_of_all_sections_keep_their_types(written):
    a, b = _st(n=[1, 2, 3], flag=True, cluster=[0, 1, 0]), _st(n=[4, 5, 6], flag=False, cluster=[1, 1, 2])
    for t in (a, b):
        t.obs["cluster"] = t.obs["cluster"].astype("category")
    table = _table(a, b)
    for t in (table, *written(table)):
        assert t.obs["n"].tolist() == [1, 2, 3, 4, 5, 6]
        assert t.obs["n"].dtype.kind == "i"
        assert t.obs["flag"].dtype == bool
        assert t.obs["cluster"].tolist() == [0, 1, 0, 1, 1, 2]
        assert list(t.obs["cluster"].cat.categories) == [0, 1, 2]


@pytest.mark.parametrize(
    ("columns", "right"),
    [
        ([[1, 2], None], [1.0, 2.0, np.nan]),
        ([[True], ["x"]], ["True", "x"]),
        ([[1], ["1"]], ["1", "1"]),
        ([None, [np.nan]], [np.nan, np.nan]),
        ([pd.array([1, None], "Int64"), [3]], [1.0, np.nan, 3.0]),
        ([pd.array(["x", None], "string"), None], ["x", None, None]),
        ([pd.to_datetime(["2020-01-01"]), None], [pd.Timestamp("2020-01-01"), pd.NaT]),
    ],
    ids=["ints", "truth and text", "number and text", "nothing", "nullable", "strings", "dates"],
)
def test_join_columns(columns, right):
    sizes = [1 if c is None else len(c) for c in columns]
    found = pd.Series(join_columns([None if c is None else pd.Series(c) for c in columns], sizes))
    assert found.isna().tolist() == pd.Series(right).isna().tolist()
    assert found.dropna().tolist() == pd.Series(right).dropna().tolist()


def test_gene_ids_of_genes_that_one_section_has_survive(written):
    a, b = _st(("g1", "g2")), _st(("g2", "g3"))
    a.var["gene_ids"], b.var["gene_ids"] = ["ENSG1", "ENSG2"], ["ENSG2", "ENSG3"]
    table = _table(a, b, join="outer")
    for t in (table, *written(table)):
        assert t.var["gene_ids"].astype(str).to_dict() == {"g1": "ENSG1", "g2": "ENSG2", "g3": "ENSG3"}
    del b.var["gene_ids"]
    table = _table(a, b, join="outer")
    for t in (table, *written(table)):
        assert t.var["gene_ids"].isna().to_dict() == {"g1": False, "g2": False, "g3": True}


def test_statistics_of_single_sections_are_not_those_of_the_whole(caplog):
    a, b = _st(), _st()
    a.var["n_cells"], b.var["n_cells"] = [1, 2, 3], [3, 2, 1]
    a.var["feature_types"] = b.var["feature_types"] = "Gene Expression"
    table = _table(a, b)
    assert table.var.columns.tolist() == ["feature_types"]
    assert "var['n_cells']" in caplog.text


def test_what_cannot_be_put_together_is_named_once(caplog):
    a, b = _st(), _st()
    a.obsp["graph"] = sp.identity(3, format="csr")
    a.obsm["pca"], b.obsm["pca"] = np.ones((3, 2)), np.ones((3, 5))
    a.obsm["sparse"] = sp.csr_matrix(np.eye(3))
    a.varm["loadings"], b.varm["loadings"] = np.ones((3, 2)), np.zeros((3, 2))
    a.varm["marks"] = np.eye(3)
    a.uns, b.uns = (
        {"colours": ["r"], "same": 1, "deep": {"x": 1, "y": 2}},
        {"colours": ["b"], "same": 1, "deep": {"x": 3}},
    )
    a.raw = a
    table = _table(a, b)
    (message,) = (r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    for name in (
        "raw",
        "obsp['graph']",
        "obsm['pca']",
        "obsm['sparse']",
        "varm['loadings']",
        "uns['colours']",
        "uns['deep']['x']",
    ):
        assert name in message
    assert "same" not in message
    assert table.uns["same"] == 1
    assert table.uns["deep"] == {"y": 2}
    np.testing.assert_array_equal(table.varm["marks"], np.eye(3))
    assert set(table.obsm) == {"spatial"}


def test_graphs_of_all_sections_become_blocks():
    a, b = _st(), _st()
    a.obsp["graph"], b.obsp["graph"] = (sp.csr_matrix(np.full((3, 3), v)) for v in (1.0, 2.0))
    graph = _table(a, b).obsp["graph"].toarray()
    np.testing.assert_array_equal(graph, np.kron(np.diag([1.0, 2.0]), np.ones((3, 3))))


def test_columns_that_stmsi_writes_are_kept_under_another_name(caplog):
    st = _st(region=["cortex", "cortex", "medulla"], instance_id=list("xyz"), sample="donor 7")
    table = stmsi.pp.combine({"A": st}).tables["st"]
    assert table.obs["region_given"].tolist() == ["cortex", "cortex", "medulla"]
    assert table.obs["instance_id_given"].tolist() == list("xyz")
    assert table.obs["sample_given"].tolist() == ["donor 7"] * 3
    assert "'region', 'instance_id'" in caplog.text
    assert st.obs.columns.tolist() == ["region", "instance_id", "sample"]
    # a table of stmsi's own has its own link, and nothing is renamed
    caplog.clear()
    again = stmsi.pp.combine({"A": table}).tables["st"]
    assert sorted(again.obs) == sorted(table.obs)
    assert not caplog.records or "stmsi writes" not in caplog.text
    # nor with a link that lost its note
    table.uns = {}
    assert sorted(stmsi.pp.combine({"A": table}).tables["st"].obs) == sorted(table.obs)
    msi = _msi()
    msi.obs["region"] = ["in", "in", "out", "out"]
    msi.obsm["spatial"] = np.full((4, 2), 7.0)
    made = stmsi.pp.combine({"A": _st()}, {"A": msi}, pixel_size=50).tables["msi"]
    assert made.obs["region_given"].tolist() == ["in", "in", "out", "out"]
    assert (made.obsm["spatial_given"] == 7).all()


@pytest.mark.parametrize("pair", [("a1", "A1"), ("A1", "a1")])
def test_names_that_differ_in_case_alone_are_refused(pair):
    with pytest.raises(ValueError, match="Section names differ in upper and lower case alone"):
        stmsi.pp.combine({name: _st() for name in pair})


def test_few_shared_genes_are_told(caplog):
    genes = [f"g{i}" for i in range(10)]
    _table(_st(genes), _st([*genes[:4], *"abcdef"]))
    assert "share 4 genes, 40 % of the smallest list" in caplog.text
    assert "join='outer' keeps all" in caplog.text
    caplog.clear()
    _table(_st(genes), _st(genes[:6]))
    assert "share" not in caplog.text


# ------------------------------------------------------------------------------------------------------- ions by name


@pytest.mark.parametrize("column", ["adduct", "formula"])
def test_one_name_with_another_adduct_is_another_ion(column):
    sections = {"A": _msi(**{column: ["x"]}), "B": _msi(**{column: ["y"]}), "C": _msi(**{column: ["x"]})}
    msi = stmsi.pp.combine({name: _st() for name in sections}, sections, pixel_size=50).tables["msi"]
    assert msi.var[column].tolist() == ["x", "y"]
    assert msi.var["name"].tolist() == ["lipid", "lipid"]
    np.testing.assert_array_equal(msi.varm["measured"], [[True, False, True], [False, True, False]])
    sections["B"].var[column] = ""
    assert stmsi.pp.combine({name: _st() for name in sections}, sections, pixel_size=50).tables["msi"].n_vars == 1


def _with_polarity(name, polarity):
    table = stmsi.pp.combine({name: _st()}, {name: _msi()}, pixel_size=50)
    table.tables["msi"].uns["msi"]["attrs"][name]["polarity"] = polarity
    return table


def test_polarities_are_kept_apart_in_combinations_of_combinations():
    pair = stmsi.pp.combine([_with_polarity("A", "positive"), _with_polarity("B", "negative")])
    assert pair.tables["msi"].n_vars == 2
    for polarity, right in (("negative", [False, True]), ("positive", [True, False])):
        msi = stmsi.pp.combine([pair, _with_polarity("C", polarity)]).tables["msi"]
        assert msi.varm["measured"]["C"].tolist() == right
    # the table alone keeps what it knows of its sections, too
    tables = {name: pair.tables["msi"][pair.tables["msi"].obs["sample"] == name].copy() for name in "AB"}
    msi = stmsi.pp.combine({"A": _st(), "B": _st()}, tables).tables["msi"]
    assert {s: a["polarity"] for s, a in msi.uns["msi"]["attrs"].items()} == {"A": "positive", "B": "negative"}


def test_two_measurements_of_one_section_are_told_what_to_do():
    for msi in ([_msi(("pos",)), _msi(("neg",))], {"A": _msi(("pos",)), "A_neg": _msi(("neg",))}):
        if isinstance(msi, list):
            for table in msi:
                table.obs["sample"] = "A"
        with pytest.raises(ValueError, match=r"both polarities, several matrices.*add_metabolites\(..., append=True\)"):
            stmsi.pp.combine({"A": _st()}, msi, pixel_size=50)


# --------------------------------------------------------------------------------------------------- mapped metabolites


def _mapped(name, **options):
    sdata = stmsi.pp.combine({name: _st()}, {name: _msi(("a", "b"), (100.0, 200.0))}, pixel_size=50)
    stmsi.pp.align(sdata, transformation={name: np.eye(3)})
    stmsi.pp.map_to_spots(sdata, **options)
    stmsi.pp.call_presence(sdata, method="detected")
    return sdata


def test_mapped_metabolites_are_kept(written):
    a, b = _mapped("A"), _mapped("B")
    table = stmsi.pp.combine([a, b, stmsi.pp.combine({"C": _st()})]).tables["st"]
    for t in (table, *written(table)):
        for key in ("msi", "msi_presence"):
            np.testing.assert_array_equal(t.obsm[key][:3], a.tables["st"].obsm[key])
            np.testing.assert_array_equal(t.obsm[key][3:6], b.tables["st"].obsm[key])
            assert t.obsm[key][6:].isna().all(axis=None)
        assert t.obsm["msi"].dtypes.unique().tolist() == [np.float32]
        assert stmsi.get.feature_table(t).index.tolist() == ["a", "b"]
        assert list(t.uns["msi"]["detection_limit"].columns) == ["A", "B"]


def test_metabolites_that_were_mapped_differently_are_left_out(caplog):
    sdata = stmsi.pp.combine([_mapped("A"), _mapped("B", agg="sum")])
    assert not any(key.startswith("msi") for key in sdata.tables["st"].obsm)
    assert "msi" not in sdata.tables["st"].uns
    assert "obsm['msi'] is left out, as it was made with different parameters ('agg')" in caplog.text
    assert "stmsi.pp.map_to_spots writes it" in caplog.text
    stmsi.pp.map_to_spots(sdata)


def test_presence_that_was_called_differently_is_left_out(caplog):
    b = _mapped("B")
    stmsi.pp.call_presence(b, threshold=0.5)
    table = stmsi.pp.combine([_mapped("A"), b]).tables["st"]
    assert "msi" in table.obsm
    assert "msi_presence" not in table.obsm
    assert "called differently" in caplog.text


def test_spots_of_which_nothing_is_known_count_as_tissue():
    a = _st(in_tissue=[1, 0, 1])
    sdata = stmsi.pp.combine({"A": a, "B": _st()})
    from stmsi.pp._alignment.section_geometry import spots_on_tissue

    assert spots_on_tissue(sdata.tables["st"]).tolist() == [True, False, True, True, True, True]

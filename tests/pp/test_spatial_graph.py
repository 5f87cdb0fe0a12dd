import logging

import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

import stmsi


def _table(xy, sample="A"):
    obs = pd.DataFrame({"sample": sample}, index=[str(i) for i in range(len(xy))])
    return AnnData(np.ones((len(xy), 2), np.float32), obs=obs, obsm={"spatial": np.asarray(xy, dtype=float)})


def _hexagon(n=6):
    row, col = (v.ravel() for v in np.indices((n, n)))
    return np.c_[100 * col + 50 * (row % 2), 86.6025 * row]


def test_neighbours_on_the_hexagon_are_those_one_pitch_away(toy):
    stmsi.pp.spatial_graph(toy)
    st = toy.tables["st"]
    graph = st.obsp["spatial_connectivities"].toarray()
    sample, xy = st.obs["sample"].to_numpy(), st.obsm["spatial"]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    expected = (distance > 0) & (distance < 110) & (sample[:, None] == sample[None])
    np.testing.assert_array_equal(graph > 0, expected)
    np.testing.assert_array_equal(graph, graph.T)
    assert graph.sum(axis=1).max() == 6
    assert "spatial_distances" in st.obsp
    assert "spatial_neighbors" in st.uns


def test_sections_are_never_connected_even_where_they_lie_on_each_other():
    xy = np.vstack([_hexagon()] * 3)
    table = _table(xy, np.repeat(["b", "a", "c"], 36))
    stmsi.pp.spatial_graph(table)
    n, label = connected_components(table.obsp["spatial_connectivities"])
    assert n == 3
    assert pd.crosstab(label, table.obs["sample"]).gt(0).sum(axis=1).tolist() == [1, 1, 1]


def test_spots_may_be_in_any_order():
    order = np.random.default_rng(0).permutation(72)
    xy, sample = np.vstack([_hexagon()] * 2), np.repeat(["a", "b"], 36)
    straight, mixed = _table(xy, sample), _table(xy[order], sample[order])
    for table in (straight, mixed):
        stmsi.pp.spatial_graph(table)
    expected = straight.obsp["spatial_connectivities"][order][:, order]
    np.testing.assert_array_equal(mixed.obsp["spatial_connectivities"].toarray(), expected.toarray())


def test_rings_and_squares():
    table = _table(_hexagon(9))
    stmsi.pp.spatial_graph(table, n_rings=2)
    assert (table.obsp["spatial_connectivities"] > 0).sum(axis=1).max() == 18
    row, col = (v.ravel() for v in np.indices((5, 5)))
    table = _table(np.c_[col, row] * 8.0)
    stmsi.pp.spatial_graph(table, n_neighs=4)
    assert table.obsp["spatial_connectivities"].sum(axis=1).max() == 4


def test_generic_positions_have_their_nearest_neighbours():
    xy = np.random.default_rng(0).uniform(0, 1000, (60, 2))
    table = _table(xy, np.repeat(["a", "b"], 30))
    stmsi.pp.spatial_graph(table, coord_type="generic", n_neighs=4)
    graph = table.obsp["spatial_connectivities"]
    for start in (0, 30):
        nearest = cKDTree(xy[start : start + 30]).query(xy[start : start + 30], k=5)[1][:, 1:] + start
        for i, own in enumerate(nearest):
            assert (graph[start + i].toarray().ravel()[own] > 0).all()
    assert graph[:30, 30:].nnz == 0


def test_generic_small_sections_have_fewer_neighbours():
    table = _table(np.random.default_rng(0).uniform(0, 100, (13, 2)), ["a"] * 10 + ["b"] * 3)
    stmsi.pp.spatial_graph(table, coord_type="generic", n_neighs=6)
    assert (table.obsp["spatial_connectivities"][10:] > 0).sum(axis=1).min() == 2


@pytest.mark.parametrize("kind", ["text", "numbers", "unused categories"])
def test_section_columns_of_any_kind(kind):
    values = {
        "text": ["a"] * 36 + ["b"] * 36,
        "numbers": [1] * 36 + [2] * 36,
        "unused categories": pd.Categorical(["a"] * 36 + ["b"] * 36, categories=["a", "z", "b"]),
    }[kind]
    table = _table(np.vstack([_hexagon()] * 2), values)
    stmsi.pp.spatial_graph(table)
    assert table.obsp["spatial_connectivities"].sum(axis=1).max() == 6
    assert table.obs["sample"].astype(str).tolist() == [str(v) for v in values]


def _positions(value):
    xy = _hexagon()
    xy[3, 1] = value
    return xy


def _without_positions():
    table = _table(_hexagon())
    table.obsm["position"] = table.obsm.pop("spatial")
    return table


BAD = {
    "no positions": (_without_positions(), {}, KeyError, "obsm has no .*spatial.* found .*position"),
    "nan": (_table(_positions(np.nan)), {}, ValueError, "contains NaN or infinite positions; drop those spots first"),
    "infinite": (_table(_positions(np.inf)), {}, ValueError, "contains NaN or infinite positions"),
    "lonely spot": (
        _table(_hexagon(), ["a"] * 35 + ["b"]),
        {},
        ValueError,
        "single spot have no neighbours: 'b'. Leave them out",
    ),
    "coord_type": (
        _table(_hexagon()),
        {"coord_type": "gird"},
        ValueError,
        "coord_type='gird' is not known.*Did you mean 'grid'",
    ),
    "n_neighs": (_table(_hexagon()), {"n_neighs": 0}, ValueError, "n_neighs"),
    "sample_key": (_table(_hexagon()), {"sample_key": "smaple"}, KeyError, "no column 'smaple'.*Did you mean 'sample'"),
    "missing section": (
        _table(_hexagon(), [None] + ["a"] * 35),
        {},
        ValueError,
        "1 missing values; every spot needs a section",
    ),
    "empty": (_table(_hexagon())[:0].copy(), {}, ValueError, "table is empty"),
}


@pytest.mark.parametrize(("table", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(table, kwargs, error, message):
    with pytest.raises(error, match=message):
        stmsi.pp.spatial_graph(table, **kwargs)
    assert not table.obsp
    assert "spatial_neighbors" not in table.uns


def test_fewer_neighbours_are_told(caplog):
    xy = np.random.default_rng(0).random((13, 2))
    table = _table(xy)
    table.obs["sample"] = ["A"] * 10 + ["B"] * 3
    stmsi.pp.spatial_graph(table, coord_type="generic", n_neighs=6)
    assert "n_neighs=6 is lowered to 2 in all sections, as 'B' have no more spots" in caplog.text


def test_what_squidpy_notes_is_not_said(toy):
    records, log = [], logging.getLogger("spatialdata._logging")
    handler = logging.Handler()
    handler.emit = records.append
    log.addHandler(handler)
    level = log.level
    try:
        stmsi.pp.spatial_graph(toy)
        stmsi.pp.spatial_graph(toy, coord_type="generic")
        assert records == []
        sq.gr.spatial_neighbors_knn(toy.tables["st"])
        assert any("graph" in record.getMessage() for record in records)
    finally:
        log.removeHandler(handler)
    assert log.level == level

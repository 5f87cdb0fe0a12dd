"""Tables in stores are opened without their matrices, whatever the kind of store."""

import os
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from stmsi._data import stores
from stmsi._data.stores import OpenMatrices, content_of, opened_table, stored_matrix, table_without_matrix

WANTED = {"obsm": ["msi", "other"], "uns": ["msi"]}


@pytest.fixture(scope="module")
def table():
    X = sp.random(30, 8, 0.4, format="csr", dtype=np.float32, random_state=0)
    out = ad.AnnData(X, uns={"msi": {"a": 1}, "unasked": 2})
    out.obsm["msi"] = pd.DataFrame(np.ones((30, 2)), out.obs_names, ["a", "b"])
    out.layers["dense"] = X.toarray() * 2
    return out


@pytest.fixture(scope="module", params=["h5ad", "zarr", "sdata"])
def store(request, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / f"table.{request.param}"
    if request.param == "h5ad":
        table.write_h5ad(path)
    elif request.param == "zarr":
        ad.io.write_elem(zarr.open_group(str(path), mode="w", zarr_format=3), "/", table)
    else:
        group = zarr.open_group(str(path), mode="w", zarr_format=3)
        ad.io.write_elem(group.create_group("tables"), "st", table)
    return path


def test_what_is_asked_for_is_read(store, table):
    with opened_table(store, "st") as group:
        found = table_without_matrix(group, store, WANTED)
        pd.testing.assert_frame_equal(found.obsm["msi"], table.obsm["msi"])
        assert list(found.obsm) == ["msi"]
        assert list(found.uns) == ["msi"]
        assert found.X is None
        np.testing.assert_array_equal(stored_matrix(group, store, None)[3:9].toarray(), table.X[3:9].toarray())
        np.testing.assert_array_equal(stored_matrix(group, store, "dense")[3:9], table.layers["dense"][3:9])
        with pytest.raises(KeyError, match="has no layer 'raw'; layers: 'dense'"):
            stored_matrix(group, store, "raw")


def test_what_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"), opened_table(tmp_path / "none.h5ad", "st"):
        pass
    (tmp_path / "damaged.h5ad").write_bytes(b"not hdf5" * 100)
    with (
        pytest.raises(ValueError, match=r"damaged.h5ad cannot be read as an h5ad file"),
        opened_table(tmp_path / "damaged.h5ad", "st"),
    ):
        pass
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="is not a zarr store"), opened_table(tmp_path / "empty.zarr", "st"):
        pass
    group = zarr.open_group(str(tmp_path / "other.zarr"), mode="w", zarr_format=3)
    with pytest.raises(ValueError, match="holds no AnnData and no table"), opened_table(tmp_path / "other.zarr", "st"):
        pass
    group.create_group("tables/stt")
    with (
        pytest.raises(KeyError, match=r"no table 'st'.*Did you mean 'stt'"),
        opened_table(tmp_path / "other.zarr", "st"),
    ):
        pass


def test_content_changes_with_the_file(store):
    before = content_of(store)
    assert before == content_of(store)
    file = store if store.is_file() else next(p for p in store.rglob("*") if p.is_file())
    os.utime(file, ns=(before[2] + 10**9, before[2] + 10**9))
    assert content_of(store) != before


def test_matrices_stay_open_the_last_ones(store, table, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "MOST_OPEN", 2)
    opened, paths = [], [store]
    for k in range(2):
        paths.append(tmp_path / f"{k}.h5ad")
        table.write_h5ad(paths[-1])
    real = stores.opened_table
    monkeypatch.setattr(stores, "opened_table", lambda path, key: opened.append(path) or real(path, key))
    matrices = OpenMatrices("st", None)
    for path in (*paths[:2], *paths[:2], paths[2], paths[1], paths[0]):
        with matrices.matrix(path) as matrix:
            np.testing.assert_array_equal(matrix[3:9].toarray(), table.X[3:9].toarray())
        assert len(matrices) <= 2
    assert opened == [*paths, paths[0]], "the one that was read longest ago is closed"
    assert len(pickle.loads(pickle.dumps(matrices))) == 0
    matrices.close()
    assert len(matrices) == 0
    table.write_h5ad(paths[1])  # which HDF5 refuses while the file is open


def test_an_error_closes_a_store_and_names_it(store, table):
    matrices = OpenMatrices("st", None)
    with pytest.raises(ValueError, match=rf"{store.name} cannot be read"), matrices.matrix(store) as matrix:
        matrix["no rows"]
    assert len(matrices) == 0
    with matrices.matrix(store) as matrix:
        np.testing.assert_array_equal(matrix[:4].toarray(), table.X[:4].toarray())
    with pytest.raises(KeyError, match="has no layer 'raw'"), OpenMatrices("st", "raw").matrix(store):
        pass
    matrices.close()

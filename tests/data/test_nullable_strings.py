"""Stores of a newer stack hold all text as nullable strings: what an older one reads, it writes again."""

import anndata as ad
import pandas as pd
import pytest
from spatialdata import deepcopy, read_zarr

import stmsi


def _as_newer_stack(table):
    table.obs_names, table.var_names = table.obs_names.astype("string"), table.var_names.astype("string")
    for frame in (table.obs, table.var):
        for column in frame:
            if frame[column].dtype == object:
                frame[column] = frame[column].astype("string")
    table.obs["note"] = pd.array(["x"] * (table.n_obs - 1) + [None], dtype="string")


@pytest.fixture
def newer(toy):
    sdata = deepcopy(toy)
    for table in sdata.tables.values():
        _as_newer_stack(table)
    return sdata


# anndata announces the format of zarr and of strings to come
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_stores_are_written_again(newer, tmp_path):
    newer.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert isinstance(back.tables["msi"].obs["note"].dtype, pd.StringDtype)
    stmsi.pp.normalize_msi(back)
    back.write(tmp_path / "b.zarr")
    again = read_zarr(tmp_path / "b.zarr").tables["msi"]
    assert again.obs_names.tolist() == newer.tables["msi"].obs_names.tolist()
    assert again.obs["note"].isna().sum() == 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_tables_are_written_again(newer, tmp_path):
    newer.tables["st"].write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    stmsi.pp.spatial_graph(back)
    back.write_h5ad(tmp_path / "b.h5ad")
    assert ad.read_h5ad(tmp_path / "b.h5ad").var_names.tolist() == newer.tables["st"].var_names.tolist()

"""What the tests of the commands share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import pytest
import spatialdata

import stmsi
from stmsi.model import HurdleLinear


@pytest.fixture(autouse=True, scope="module")
def _on_the_path() -> Iterator[None]:
    """A shell finds the stmsi of this Python, so that the commands that are printed begin with its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def folder(_mapped, tmp_path_factory) -> Path:
    """A saved model of two sections, and the data as h5ad and as store."""
    folder = tmp_path_factory.mktemp("cli")
    st = _mapped.tables["st"]
    train = st[(st.obs["sample"] != "P3S1").to_numpy()].copy()
    HurdleLinear.setup_anndata(train, presence_key="msi_presence")
    model = HurdleLinear(train, n_components=8, n_folds=2)
    model.train()
    model.save(folder / "model")
    st.copy().write_h5ad(folder / "st.h5ad")
    # the table alone: what else a SpatialData holds takes most of the time and is not touched
    alone = st.copy()
    del alone.uns["spatialdata_attrs"]
    for key in [k for k in alone.obsm if k.startswith("truth")]:
        del alone.obsm[key]
    spatialdata.SpatialData(tables={"st": alone}).write(folder / "s.zarr")
    return folder


@pytest.fixture(scope="session")
def predicted(folder, tmp_path_factory) -> Path:
    """The data with predictions of the model."""
    path = tmp_path_factory.mktemp("predicted") / "p.h5ad"
    st = ad.read_h5ad(folder / "st.h5ad")
    stmsi.tl.predict_metabolites(st, str(folder / "model"))
    st.write_h5ad(path)
    return path

"""Fixtures shared by all tests: sections are simulated once and handed out as copies."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import pytest
from spatialdata import SpatialData, deepcopy

import stmsi

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    stmsi.settings.progress_bar = False


@pytest.fixture(scope="session")
def _toy() -> SpatialData:
    return stmsi.datasets.toy()


@pytest.fixture(scope="session")
def _mapped(_toy: SpatialData) -> SpatialData:
    sdata = deepcopy(_toy)
    stmsi.pp.normalize_msi(sdata)
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.spatial_graph(sdata)
    stmsi.pp.gene_signatures(sdata, cluster_key="domain", n_genes=10)
    return sdata


@pytest.fixture
def toy(_toy: SpatialData) -> SpatialData:
    """Three simulated sections, not aligned yet."""
    return deepcopy(_toy)


@pytest.fixture
def mapped(_mapped: SpatialData) -> SpatialData:
    """The same, aligned and mapped, with presence, signatures and graph."""
    return deepcopy(_mapped)


@pytest.fixture
def st(_mapped: SpatialData):
    """The ST table of the mapped sections."""
    return _mapped.tables["st"].copy()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data; tests that need it are skipped where it is missing."""
    path = Path(os.environ.get("STMSI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set STMSI_DATA")
    return path

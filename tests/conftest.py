"""Fixtures shared by all tests: sections are simulated once and handed out as copies."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import settings
from spatialdata import SpatialData, deepcopy

import stmsi

mpl.use("Agg")

# whoever runs the tests: what is printed does not hang on the terminal
for _variable in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_variable, None)

# The same examples in every run; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("stmsi", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "stmsi"))


def _spare_collector() -> None:
    """Take what lives as long as the tests, modules above all, out of the garbage collector's rounds: a third of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    gc.set_threshold(20_000, 10, 50)
    _spare_collector()


@pytest.fixture(autouse=True, scope="module")
def _late_imports() -> Iterator[None]:
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 300:  # torch, squidpy and the like load when they are first used
        _spare_collector()


_LOG = logging.getLogger("stmsi")
_HANDLERS, _LEVEL = list(_LOG.handlers), _LOG.level


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The command line sets up logging and settings for its own process, also in fixtures of many tests; here they are as at the start."""
    _as_at_the_start()
    yield
    _as_at_the_start()


def _as_at_the_start() -> None:
    stmsi.settings.progress_bar = False
    _LOG.handlers = list(_HANDLERS)
    _LOG.setLevel(_LEVEL)


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


UM_PER_PX, HIRES = 0.5, 0.2
"""Of the Space Ranger folders: micrometres per full-resolution pixel, and hires pixels per full-resolution pixel."""


def write_space_ranger(path: Path, *, rows: int = 8, cols: int = 9, genes: int = 4, seed: int = 0) -> np.ndarray:
    """Write a Space Ranger folder of spots that all lie in the tissue; returns their places in micrometres."""
    from skimage.io import imsave

    (path / "spatial").mkdir(parents=True)
    row, col = (a.ravel() for a in np.indices((rows, cols)))
    col = 2 * col + row % 2
    um = np.column_stack([50.0 * col, 50 * np.sqrt(3) * row]) + 500
    barcodes = [f"AAAC{seed}{i:04d}-1" for i in range(len(um))]
    positions = pd.DataFrame(
        {"b": barcodes, "i": 1, "r": row, "c": col, "y": um[:, 1] / UM_PER_PX, "x": um[:, 0] / UM_PER_PX}
    )
    positions.to_csv(path / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    X = sp.csr_matrix(np.random.default_rng(seed).poisson(2, (len(um), genes)) + 1)
    with h5py.File(path / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = X.data, X.indices, X.indptr
        matrix["shape"] = X.shape[::-1]
        names = {"id": "ENSG{}", "name": "Gene{}", "feature_type": "Gene Expression", "genome": "mm10"}
        for key, value in names.items():
            matrix[f"features/{key}"] = np.array([value.format(i) for i in range(genes)], dtype="S")
    scale = {
        "spot_diameter_fullres": 65 / UM_PER_PX,
        "fiducial_diameter_fullres": 300.0,
        "tissue_hires_scalef": HIRES,
        "tissue_lowres_scalef": 0.05,
    }
    (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    imsave(path / "spatial" / "tissue_hires_image.png", image, check_contrast=False)
    return um


@pytest.fixture(scope="session")
def space_ranger():
    """Writes a Space Ranger folder."""
    return write_space_ranger


@pytest.fixture
def through_zarr(tmp_path):
    """Writes a SpatialData to a store and reads it back."""

    def write_and_read(sdata):
        import spatialdata

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr announces defaults of its next release
            sdata.write(tmp_path / "round_trip.zarr")
            return spatialdata.read_zarr(tmp_path / "round_trip.zarr")

    return write_and_read


@pytest.fixture(scope="session")
def reference_mz():
    """Common ions from the sorted list of all peaks, the slow way: mean, smallest and largest m/z, share of spectra."""

    def sorted_list(mz, spectrum, tolerance=5.0, unit="ppm", *, min_frequency=0.0, n_spectra):
        order = np.argsort(mz, kind="stable")
        mz, spectrum = np.asarray(mz)[order], np.asarray(spectrum)[order]
        scale = np.log(mz) * 1e6 if unit == "ppm" else mz
        found = []
        for run in np.split(np.arange(len(mz)), np.flatnonzero(np.diff(scale) > tolerance) + 1):
            width = np.ptp(scale[run])
            parts = max(np.ceil(width / (2 * tolerance) - 1e-9), 1)
            part = np.minimum(np.floor((scale[run] - scale[run[0]]) * parts / (width or 1)), parts - 1)
            for own in (run[part == k] for k in np.unique(part)):
                share = len(set(spectrum[own])) / n_spectra
                if share >= min_frequency * (1 - 1e-9):
                    found.append((mz[own].mean(), mz[own[0]], mz[own[-1]], share))
        return np.array(found).reshape(-1, 4).T

    return sorted_list

"""Files of others: damaged, foreign, newer, too large, or no files at all."""

import json
import logging
import os
import runpy
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data.containers import check_file, check_matrices, check_unpacked, open_h5ad, open_store, reading
from stmsi._data.small_files import read_json, read_list, read_parquet
from stmsi.io._text_table import read_text_table

FUZZ = Path(__file__).parents[2] / "benchmarks" / "trust" / "fuzz.py"
TRIALS = 6
"""Of each reader, as many as take few seconds together."""
CRASHING = "h5"
"""HDF5 follows some damaged addresses out of its memory, which no test may do in this process: damage is coarse there."""


@pytest.fixture
def h5ad(tmp_path):
    AnnData(np.eye(3), obs=pd.DataFrame({"a": ["x", "y", "z"]}, index=list("abc"))).write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


@pytest.mark.skipif(not FUZZ.exists(), reason="the benchmarks are not part of the source distribution")
def test_damaged_files_are_clear_errors_in_every_reader(tmp_path):
    fuzz = runpy.run_path(str(FUZZ))
    logging.disable(logging.CRITICAL)
    unclear, files = [], 0
    try:
        for number, (name, case) in enumerate(fuzz["cases"]().items()):
            if name in ("read_imzml", "read_sma (csv)", "read_magpie (csv)"):
                continue  # tests of their own
            valid = tmp_path / str(number)
            valid.mkdir()
            case.write(valid)
            if CRASHING in name:
                case = case._replace(kinds=("cut", "empty", "foreign", "folder", "gone", "pipe"))
            for seed in range(TRIALS):
                found, text = fuzz["trial"](case, valid, tmp_path / "damaged", [number, seed])
                files += 1
                if found == "unclear":
                    unclear.append(f"{name} [{number}, {seed}]: {text}")
    finally:
        logging.disable(logging.NOTSET)
    assert len(unclear) <= 0.02 * files, unclear


def test_a_newer_anndata_is_named(h5ad):
    with h5py.File(h5ad, "a") as file:
        file["X"].attrs["encoding-version"] = "9.0.0"
    with pytest.raises(
        ValueError, match=r"a\.h5ad cannot be read .*a newer anndata than the installed .*upgrade anndata"
    ):
        open_h5ad(h5ad)


def test_a_small_file_cannot_fill_the_memory(h5ad):
    with h5py.File(h5ad, "a") as file:
        del file["X"]
        x = file.create_dataset("X", shape=(3, 10**11), dtype="f8", chunks=(1, 1000))
        x.attrs["encoding-type"], x.attrs["encoding-version"] = "array", "0.2.0"
    with pytest.raises(ValueError, match=r"a\.h5ad would unpack to 24\d+ bytes, most of them never written \('X'\)"):
        open_h5ad(h5ad)


def test_a_store_cannot_fill_the_memory(tmp_path):
    (tmp_path / "s.zarr" / "tables" / "X").mkdir(parents=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"spatialdata_attrs": {"version": "0.2"}}}
    (tmp_path / "s.zarr" / "zarr.json").write_text(json.dumps(group))
    about = {"zarr_format": 3, "node_type": "array", "shape": [10**6, 10**6], "data_type": "float64"}
    (tmp_path / "s.zarr" / "tables" / "X" / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"s\.zarr would unpack to 8000000000000 bytes"):
        open_store(tmp_path / "s.zarr")


def test_zeros_that_compress_well_are_read():
    check_unpacked(Path("a"), [("X", 2**29, 0), ("Y", 2**40, 2**30)])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no name here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    for read in (check_file, open_h5ad, read_parquet, read_text_table, lambda p: read_json(p, "x")):
        with pytest.raises(ValueError, match=r"p\.csv is a pipe or a device"):
            read(tmp_path / "p.csv")


def test_a_file_that_is_one_hole_is_refused(tmp_path):
    with (tmp_path / "w.csv").open("wb") as handle:
        handle.write(b"x,y,104.1\n0,0,1\n")
        handle.truncate(2**34)
    if (tmp_path / "w.csv").stat().st_blocks * 512 > 2**30:
        pytest.skip("no sparse files here")
    with pytest.raises(ValueError, match=r"w\.csv says 17179869184 bytes, but most of them were never written"):
        read_text_table(tmp_path / "w.csv")


def test_indices_beyond_a_matrix_are_refused():
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indices[1] = 10**6
    with pytest.raises(ValueError, match="indices"):
        check_matrices(AnnData(matrix))


def test_column_names_of_a_wide_table_take_no_time(tmp_path):
    names = ["x", "y", *(f"{100 + i / 1000:.3f}" for i in range(20_000))]
    (tmp_path / "w.csv").write_text("\n".join([",".join(names), ",".join(["1"] * len(names))]))
    assert list(read_text_table(tmp_path / "w.csv")) == names


def test_lists_say_what_they_should_be(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\x00\x01\x02")
    with pytest.raises(ValueError, match=r"l\.csv is not text: .*a table of landmarks, saved as csv"):
        read_list(tmp_path / "l.csv", "a table of landmarks")
    (tmp_path / "l.csv").write_text("x;y\n1,5;2\n")
    assert read_list(tmp_path / "l.csv", "a table")["x"].tolist() == [1.5]


def test_what_is_not_the_fault_of_the_file_passes(tmp_path):
    path = tmp_path / "a"
    for error in (ImportError("no pyarrow"), PermissionError(13, "no"), OSError(28, "No space left")):
        with pytest.raises(type(error)), reading(path, "a file"):
            raise error
    with (
        pytest.raises(
            ValueError, match=r"a cannot be read as a file \(RecursionError: deep\); copy or export it again"
        ),
        reading(path, "a file"),
    ):
        raise RecursionError("deep")

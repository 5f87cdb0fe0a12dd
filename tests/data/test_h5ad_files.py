"""h5ad files as anndata writes them; a full disk is an error, and the process goes on."""

import errno
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pytest

from stmsi._data import h5ad_files
from stmsi._data.h5ad_files import write_h5ad


def content(path):
    """Attributes and values of everything in a file, by name."""
    found = {}

    def add(name, node):
        attributes = {key: str(value) for key, value in node.attrs.items()}
        found[name] = attributes, node[()] if isinstance(node, h5py.Dataset) else None

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def test_the_file_is_that_of_anndata(mapped, tmp_path):
    st = mapped.tables["st"]
    st.obs["text"] = np.resize(["a", "b", "a"], st.n_obs).astype(object)
    st.raw = st
    write_h5ad(st.copy(), tmp_path / "own.h5ad")
    st.copy().write_h5ad(tmp_path / "theirs.h5ad")
    own, theirs = content(tmp_path / "own.h5ad"), content(tmp_path / "theirs.h5ad")
    assert own.keys() == theirs.keys()
    for name, (attributes, values) in theirs.items():
        assert own[name][0] == attributes, name
        np.testing.assert_array_equal(own[name][1], values, err_msg=name)


@pytest.mark.parametrize(("full", "wanted"), [(True, "No space left"), (False, "cannot read it back")])
def test_what_was_not_written_cannot_be_read_back(tmp_path, monkeypatch, full, wanted):
    """HDF5 reads parts again before it closes a file: the first error is the one that tells why."""

    class Full(h5ad_files._TakesEverything):
        def write(self, data):
            self.error = OSError(errno.ENOSPC, "No space left on device") if full else None
            return super().write(data)

    def broken(target, *_):
        target.create_group("X")
        target.flush()
        raise RuntimeError("cannot read it back")

    monkeypatch.setattr(h5ad_files, "_TakesEverything", Full)
    monkeypatch.setattr("anndata.io.write_elem", broken)
    with pytest.raises((OSError, RuntimeError), match=wanted):
        write_h5ad(ad.AnnData(np.ones((2, 2))), tmp_path / "x.h5ad")


LIMITED = """
import resource, sys, errno
from pathlib import Path
import numpy as np
from anndata import AnnData
from stmsi._data.h5ad_files import write_h5ad
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_h5ad(AnnData(np.ones((300, 200), np.float32)), Path(sys.argv[1]))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_is_one_error(tmp_path):
    """In a process of its own: HDF5 by itself would end it."""
    args = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path / "x.h5ad"), "60000"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "EFBIG", "")

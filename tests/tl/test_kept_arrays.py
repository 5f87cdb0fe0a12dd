"""Folders that keep arrays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from stmsi.tl._kept_arrays import KeptOnDisk, usable_folder


def test_folders_that_can_be_written_and_others(tmp_path, monkeypatch, caplog):
    assert usable_folder(None) is None
    assert usable_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"):
        usable_folder(tmp_path / "file")

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", fail)
    assert usable_folder(tmp_path / "other") is None
    assert "cannot be kept in" in caplog.text


def test_arrays_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.arange(3.0)

    for keys, directory, times in ((["k"], tmp_path, 1), (["k"], tmp_path, 1), (None, None, 2)):
        kept = KeptOnDisk(keys, directory)
        for _ in range(2):
            np.testing.assert_array_equal(kept.array("sums", 0, make), np.arange(3.0))
        assert len(made) == times

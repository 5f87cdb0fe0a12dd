"""Folders that keep arrays."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from stmsi.tl._kept_arrays import KeptOnDisk, UsedFiles, usable_folder


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


def test_files_that_a_run_does_not_use_are_removed(tmp_path):
    for name in ("old", "used"):
        KeptOnDisk([name], tmp_path).array("sums", 0, lambda: np.arange(3.0))
    (tmp_path / "notes.txt").write_text("of somebody else")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    used = UsedFiles(tmp_path)
    KeptOnDisk(["used"], tmp_path).array("sums", 0, lambda: pytest.fail("it is kept"))
    KeptOnDisk(["new"], tmp_path).array("sums", 0, lambda: np.arange(3.0))
    used.remove_others()
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert (tmp_path / "notes.txt").exists()
    KeptOnDisk(["used"], tmp_path).array("sums", 0, lambda: pytest.fail("it is kept"))
    UsedFiles(None).remove_others()

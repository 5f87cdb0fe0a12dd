"""Files of a cache appear whole, without locks, and what killed runs left goes after a day."""

import os
import time

import pytest

from stmsi._data.unfinished import unfinished
from stmsi._data.whole_file import clear_old, whole_file


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "sums.npy"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        assert first.suffix == second.suffix == ".npy", "numpy would add one"
        second.write_text("second")
        clear_old(tmp_path)  # another run begins
        first.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["sums.npy"]


def test_with_locks_of_one_machine_a_folder_in_use_is_taken_for_dead(tmp_path, monkeypatch):
    """Why: where locks do not reach other machines, a second writer clears what the first is about to write."""
    monkeypatch.setattr("stmsi._data.unfinished._hold", lambda _: None)
    path = tmp_path / "sums.npy"
    with unfinished(path) as first:
        with unfinished(path):
            pass
        assert not first.exists()


def test_an_error_leaves_no_trace(tmp_path):
    def fail():
        with whole_file(tmp_path / "a.json") as new:
            new.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_is_old_goes(tmp_path):
    old = time.time() - 100_000
    for name in (f".{'0' * 32}.a.npy", f".{'1' * 32}.b.npy", "kept.npy", ".hidden"):
        (tmp_path / name).write_text("")
    for name in (".stmsi-abc", ".stmsi-new"):
        (tmp_path / name).mkdir()
    for name in (f".{'0' * 32}.a.npy", ".stmsi-abc", "kept.npy", ".hidden"):
        os.utime(tmp_path / name, (old, old))
    clear_old(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f".{'1' * 32}.b.npy", "kept.npy", ".hidden", ".stmsi-new"}

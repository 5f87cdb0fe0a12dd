"""Writes that are whole or not there, whatever stops them: an error, an interrupt, or the process being killed."""

import logging
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from stmsi._data import unfinished as module
from stmsi._data.unfinished import clear_leftovers, kept_by_killed_run, take_place, unfinished

pytestmark = pytest.mark.skipif(module.fcntl is None, reason="Windows has no such locks")

KILLED = """
import os, signal, sys
from pathlib import Path
from stmsi._data.unfinished import take_place, unfinished
target = Path(sys.argv[1])
with unfinished(target) as folder:
    (folder / "new").mkdir()
    (folder / "new" / "half").write_text("half")
    if target.exists():  # between the two moves of take_place
        target.replace(folder / "old")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def write(target, text="new"):
    with unfinished(target) as folder:
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text(text)
        take_place(folder / "new", target, folder)


@pytest.fixture
def kill(tmp_path):
    """Let a process be killed while it writes a target; returns its hidden folder."""

    def run(target):
        before = set(tmp_path.iterdir())
        done = subprocess.run([sys.executable, "-c", KILLED, target], check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = set(tmp_path.iterdir()) - before
        return left

    return run


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_fails_leaves_nothing(tmp_path, error):
    def stop(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises((ValueError, KeyboardInterrupt, OSError)), unfinished(tmp_path / "x") as folder:
        stop(folder)
    assert not names(tmp_path)


def test_what_a_killed_run_left_goes_with_the_next_write_of_the_same_target(tmp_path, kill, caplog):
    caplog.set_level(logging.INFO, logger="stmsi")
    left = kill(tmp_path / "x.zarr")
    assert left.name.startswith(".x.zarr.")
    write(tmp_path / "y.zarr")
    assert left.exists(), "that of another target stays"
    write(tmp_path / "x.zarr")
    assert names(tmp_path) == ["x.zarr", "y.zarr"]
    assert f"Removed {left}, which a killed run had left" in caplog.text


def test_what_was_being_replaced_comes_back(tmp_path, kill, caplog):
    target = tmp_path / "model"
    write(target, "first")
    left = kill(target)
    assert kept_by_killed_run(target) == left / "old"
    assert not target.exists()
    clear_leftovers(tmp_path, "model")
    assert (target / "file").read_text() == "first"
    assert names(tmp_path) == ["model"]
    assert "model is back as it was" in caplog.text
    assert kept_by_killed_run(target) is None


def test_a_write_that_goes_on_is_left_alone(tmp_path, caplog):
    with unfinished(tmp_path / "x") as folder:
        write(tmp_path / "x")
        clear_leftovers(tmp_path)
        assert folder.is_dir()
    assert names(tmp_path) == ["x"]
    assert not caplog.text


@pytest.mark.parametrize("what", ["without a lock", "no locks"])
def test_what_cannot_be_told_is_named(tmp_path, monkeypatch, caplog, what):
    left = tmp_path / ".x.0123abcd.part"
    left.mkdir()
    if what == "no locks":
        (left / module._LOCK).write_bytes(b"")

        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(module.fcntl, "flock", refuse)
    write(tmp_path / "x")
    assert left.is_dir()
    assert f"{left} may be left from a run that was killed" in caplog.text
    caplog.clear()
    write(tmp_path / "other")
    assert not caplog.text


def test_a_folder_of_that_kind_of_somebody_else_stays(tmp_path):
    for name in (".x.part", ".x.0123abcd", "x.0123abcd.part", ".x.0123ABCD.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / module._LOCK).write_bytes(b"")
    before = names(tmp_path)
    write(tmp_path / "x")
    assert names(tmp_path) == sorted([*before, "x"])


def test_on_systems_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    write(tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    rename = Path.rename

    def full(path, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"), unfinished(tmp_path / "x"):
        pass
    monkeypatch.setattr(Path, "rename", rename)
    assert not names(tmp_path)


def test_a_missing_folder(tmp_path):
    clear_leftovers(tmp_path / "no")
    assert kept_by_killed_run(tmp_path / "no" / "x") is None
    with pytest.raises(FileNotFoundError), unfinished(tmp_path / "no" / "x"):
        pass
    assert not names(tmp_path)

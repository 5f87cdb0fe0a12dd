"""Compiled code and its cache on disk, which may fail and stops nothing."""

import importlib.util
from pathlib import Path

import pytest

from stmsi._core import compiled as module

numba = pytest.importorskip("numba")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Compiles a function of a file, with its cache in a folder beside it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "of_a_file.py"
    path.write_text("def add(x):\n    return x + 1\n")
    spec = importlib.util.spec_from_file_location("of_a_file", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return lambda: module.compiled(found.add)


def kept(tmp_path):
    return list((tmp_path / "cache").rglob("*.nb?"))


def test_machine_code_is_kept_and_a_damaged_file_is_made_anew(make, tmp_path):
    assert make()(1) == 2
    assert len(kept(tmp_path)) == 2
    for path in kept(tmp_path):
        path.write_bytes(b"no pickle")
    assert make()(1) == 2
    again = make()
    assert again(1) == 2
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk(make, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert make()(1) == 2
    assert not kept(tmp_path)


def test_without_a_home_nothing_is_made_in_the_working_directory(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.os.path, "expanduser", lambda path: path)
    assert not module._has_cache_folder()
    assert type(make()._cache).__name__ == "NullCache"
    assert [p.name for p in Path().iterdir() if p.name == "~"] == []

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stmsi
from stmsi._settings import Settings, logger


@pytest.fixture
def settings():
    before = logger.level
    yield Settings()
    logger.setLevel(before)


def test_there_is_one_set_of_settings():
    assert isinstance(stmsi.settings, Settings)
    assert stmsi.settings is stmsi._settings.settings


@pytest.mark.parametrize(("level", "number"), [("debug", 10), ("WARNING", 30), (15, 15)])
def test_verbosity_is_the_level_of_the_package_logger(settings, level, number):
    settings.verbosity = level
    assert settings.verbosity == number
    assert logging.getLogger("stmsi").level == number


def test_an_unknown_verbosity_names_those_that_exist(settings):
    before = settings.verbosity
    with pytest.raises(ValueError, match=r"verbosity='loud' is not known; choose one of .*INFO.* or a number"):
        settings.verbosity = "loud"
    assert settings.verbosity == before


def test_progress_bar(settings):
    assert settings.progress_bar is True
    settings.progress_bar = 0
    assert settings.progress_bar is False


@pytest.mark.parametrize("n", [1, 4, -1])
def test_n_jobs(settings, n):
    settings.n_jobs = n
    assert settings.n_jobs == n


@pytest.mark.parametrize("n", [0, 1.5, "2", None])
def test_n_jobs_must_be_a_number_of_processes(settings, n):
    with pytest.raises(ValueError, match="n_jobs must be a non-zero integer"):
        settings.n_jobs = n
    assert settings.n_jobs == 1


def test_cache_dir(settings, monkeypatch, tmp_path):
    settings.cache_dir = "~/somewhere"
    assert settings.cache_dir == Path.home() / "somewhere"
    monkeypatch.setenv("STMSI_CACHE", str(tmp_path))
    assert Settings().cache_dir == tmp_path


def test_no_home_is_needed(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("STMSI_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Settings().cache_dir.parent == tmp_path
    assert Settings().cache_dir.name.startswith("stmsi-")


@pytest.mark.skipif(os.name == "nt", reason="users of POSIX")
@pytest.mark.parametrize("home", [None, "/proc/nonexistent"])
def test_import_without_a_home(home, tmp_path):
    """As in a container that runs under the number of a user without a name."""
    code = (
        "import pwd\ndef fail(*_): raise KeyError\npwd.getpwuid = fail\n"
        f"import stmsi\n{'' if home else 'import matplotlib; stmsi.io.read_imzml'}\nprint(stmsi.settings.cache_dir)"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "STMSI_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
    env |= {"PYTHONWARNINGS": "ignore", "TMPDIR": str(tmp_path)} | ({} if home is None else {"HOME": home})
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = Path(home) / ".cache" / "stmsi" if home else tmp_path / f"stmsi-{os.getuid()}"
    assert done.stdout.strip() == str(expected)
    assert not (tmp_path / "~").exists()


def test_repr_shows_every_setting(settings):
    settings.n_jobs = 3
    assert "n_jobs = 3" in repr(settings).splitlines()
    assert len(repr(settings).splitlines()) == 4

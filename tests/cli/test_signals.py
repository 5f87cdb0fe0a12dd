"""SIGTERM, as batch systems send it before they kill: the same as Ctrl-C."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stmsi
from stmsi.cli import _signals, app
from stmsi.cli._signals import Stopped, termination_as_interrupt

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")


def terminate(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("where", ["at work", "while writing"])
def test_a_command_ends_with_143_and_leaves_nothing(folder, tmp_path, monkeypatch, where):
    if where == "at work":
        monkeypatch.setattr(stmsi.tl, "predict_metabolites", terminate)
    else:
        monkeypatch.setattr("stmsi.cli._files.write_h5ad", lambda _, path: (Path(path).write_text("half"), terminate()))
    args = ["predict", folder / "st.h5ad", "--model", folder / "model", "--out", tmp_path / "p.h5ad", "--json"]
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == 143
    assert "Terminated; no output was written" in re.sub(r"\s+", " ", result.stderr)
    assert json.loads(result.stdout)["ok"] is False
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_one_does_not_stop_the_cleaning_up():
    stopped, done = Stopped(), []
    with termination_as_interrupt(stopped):
        try:
            terminate()
        except KeyboardInterrupt:
            terminate()
            done.append(1)
    assert done
    assert stopped.terminated


def test_an_interrupt_that_is_swallowed_comes_again(monkeypatch):
    """As in a callback of an import, or in a destructor, where Python prints it and goes on."""
    monkeypatch.setattr(_signals, "_AGAIN", 0.01)

    stopped, cleaned = Stopped(), []

    def work():
        with suppress(BaseException):
            terminate()
        try:
            time.sleep(10)
        finally:
            time.sleep(0.05)  # no second one while that goes on
            cleaned.append(1)

    with pytest.raises(KeyboardInterrupt), termination_as_interrupt(stopped):
        work()
    assert cleaned
    assert stopped.terminated
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_handler_of_the_program_around_stays():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with termination_as_interrupt(Stopped()) as _:
            terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]

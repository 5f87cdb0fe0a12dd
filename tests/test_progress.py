"""Progress bars, by themselves and inside one display."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

import stmsi
from stmsi._progress import current_display, shared_display, track
from stmsi.cli import _app
from stmsi.model import HurdleNet


@pytest.fixture
def display():
    return Progress(console=Console(file=io.StringIO(), force_terminal=True))


def test_without_a_display(capsys):
    assert list(track([1, 2], "numbers", show=True)) == [1, 2]
    assert "numbers" in capsys.readouterr().err
    assert list(track([1, 2], "numbers", show=False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_inside_a_display(display, capsys):
    seen = []
    with shared_display(display):
        assert current_display() is display
        for item in track(iter("ab"), "letters", total=2, show=True):
            (task,) = display.tasks
            seen.append((item, task.description, task.completed, task.total))
        assert display.tasks == [], "taken away when done"
        assert list(track("ab", "hidden", show=False)) == ["a", "b"]
    assert seen == [("a", "letters", 0, 2), ("b", "letters", 1, 2)]
    assert current_display() is None
    assert capsys.readouterr().err == ""


def test_the_time_left_is_told_after_the_first_step(monkeypatch):
    """Also where steps take minutes: the display of the command line forgets nothing, and bars start their clock at once."""
    now = [0.0]
    made = []
    monkeypatch.setattr(_app, "Progress", lambda *columns, **kwargs: made.append(columns) or Slow(*columns, **kwargs))

    class Slow(Progress):
        def __init__(self, *columns, **kwargs):
            super().__init__(*columns, **kwargs | {"get_time": lambda: now[0], "disable": True})

    stmsi.settings.progress_bar = True
    with _app._display():
        left = []
        for _ in track(range(4), "slow steps", show=True):
            (task,) = current_display().tasks
            left.append(made[0][-1].render(task).plain)
            now[0] += 300
    assert left == ["", "0:15:00 left", "0:10:00 left", "0:05:00 left"]


def test_nothing_is_left_after_an_error(display):
    def stop():
        for _ in track([1, 2], "numbers", show=True):
            msg = "planted"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="planted"), shared_display(display):
        stop()
    assert current_display() is None
    assert display.tasks == []


def test_epochs_of_a_network(display, st, capsys):
    HurdleNet.setup_anndata(st, presence_key="msi_presence")
    model = HurdleNet(st, residual=None)
    totals = []
    add = display.add_task
    display.add_task = lambda text, **kwargs: (totals.append((text, kwargs["total"])), add(text, **kwargs))[1]
    with shared_display(display):
        model.train(max_epochs=2, refit=False, show_progress_bar=True)
        assert display.tasks == []
    assert ("epochs, at most", 2) in totals
    shown = "".join(capsys.readouterr())
    assert "Epoch 1/2" not in shown, "no second bar"

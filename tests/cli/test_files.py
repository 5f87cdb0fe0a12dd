"""What the command line writes and prints: safe to open, literal, and never in the place of what others wrote."""

import pandas as pd
import pytest

from stmsi.cli import _run_demo
from stmsi.cli._files import write_csv
from stmsi.cli._terminal_tables import print_table


def test_text_that_spreadsheets_would_run_is_quoted(tmp_path):
    table = pd.DataFrame(
        {"=a": ["=1+1", "@x", "glucose"], "n": [-1.5, 2.0, 3.0], "c": pd.Categorical(["+H", "-H", None])}
    )
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == ["'=a,n,c", "'=1+1,-1.5,'+H", "'@x,2.0,'-H", "glucose,3.0,"]
    assert list(table) == ["=a", "n", "c"], "the table itself stays"


def test_names_are_printed_literally(capsys):
    print_table("[red]t[/]", ["a [b]"], ["n"], [["[bold]PC[/] :smile:", "[link=x]1"]])
    out = capsys.readouterr().out
    for text in ("[red]t[/]", "a [b]", "[bold]PC[/] :smile:", "[link=x]1"):
        assert text in out


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Runs a demo that writes two files and takes no time."""

    def write(folder, *_):
        (folder / "model").mkdir()
        (folder / "model" / "m.json").write_text("{}")
        (folder / "scores.csv").write_text("a\n")

    monkeypatch.setattr(_run_demo, "_run", write)
    return lambda: _run_demo.run_demo(tmp_path / "d", seed=0, small=True)


def test_an_untouched_demo_is_replaced(demo, tmp_path):
    demo()
    demo()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "model" / "m.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["notes.txt", "model/notes.txt", "scores.csv"])
def test_a_demo_with_files_of_others_stays(demo, tmp_path, name):
    demo()
    (tmp_path / "d" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"not written by the demo, or changed since: '{name}'\. Move them"):
        demo()
    assert (tmp_path / "d" / name).read_text() == "mine"


def test_a_link_or_a_mark_without_a_list_is_no_demo(demo, tmp_path):
    demo()
    (tmp_path / "d").rename(tmp_path / "real")
    (tmp_path / "d").symlink_to(tmp_path / "real")
    with pytest.raises(FileExistsError, match="was not written by the demo"):
        demo()
    (tmp_path / "d").unlink()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".stmsi-demo").touch()
    with pytest.raises(FileExistsError, match="was not written by the demo"):
        demo()

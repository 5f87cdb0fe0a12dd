"""What the command line writes and prints: safe to open, literal, and never in the place of what others wrote."""

import io
import json

import pandas as pd
import pytest
import typer

from stmsi.cli import _run_demo
from stmsi.cli._app import command, say
from stmsi.cli._files import write_csv, write_text
from stmsi.cli._terminal_tables import print_table


def test_text_that_spreadsheets_would_run_is_quoted(tmp_path):
    table = pd.DataFrame(
        {"=a": ["=1+1", "＠x", "glucose"], "n": [-1.5, 2.0, 3.0], "c": pd.Categorical(["+H", "-H", None])}
    )
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "'=a,n,c",
        "'=1+1,-1.5,'+H",
        "'＠x,2.0,'-H",
        "glucose,3.0,",
    ]
    assert list(table) == ["=a", "n", "c"], "the table itself stays"


def test_names_are_printed_literally(capsys):
    print_table("[red]t[/]", ["a [b]"], ["n"], [["[bold]PC[/] :smile:", "[link=x]1"]])
    out = capsys.readouterr().out
    for text in ("[red]t[/]", "a [b]", "[bold]PC[/] :smile:", "[link=x]1"):
        assert text in out


def test_names_do_not_steer_the_terminal(capsys):
    """Escape sequences set titles, colours and clipboards, and hide lines; they are shown instead."""
    evil = "a\x1b[2J\x1b]52;c;aGk=\x07b\x9b31m\u202egnp.exe\udcff"
    print_table("", ["name"], ["n"], [[evil, "1"]])
    say(evil)
    with pytest.raises(typer.Exit), command("fake", as_json=True):
        raise ValueError(evil)
    out, err = capsys.readouterr()
    assert not set("\x1b\x07\x9b\u202e\udcff") & set(out[: out.index("{")] + err)
    assert "a\u241b[2J\u241b]52;c;aGk=" in out
    assert "a\u241b[2J" in err
    assert "\x9b" not in out
    assert json.loads(out[out.index("{") :])["error"]["message"] == evil
    out.encode("utf-8")


def test_an_output_that_knows_few_characters(monkeypatch):
    """As of Windows and of batch systems without a locale: what they lack is a question mark, and in JSON escaped."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", out)
    print_table("", ["µm"], ["n"], [["Größe", "–"]])
    with command("fake", as_json=True) as result:
        result["name"] = "µm"
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert "Gr??e" in text
    assert json.loads(text[text.index("{") :])["name"] == "µm"


def test_halves_of_characters_do_not_stop_a_write(tmp_path):
    """As they stand in names in damaged files."""
    write_csv(pd.DataFrame({"a": pd.Series(["x\udcff"], dtype=object)}), tmp_path / "t.csv")
    write_text("x\udcff", tmp_path / "t.html")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "a\nx\\udcff\n"
    assert (tmp_path / "t.html").read_text(encoding="utf-8") == "x\\udcff"


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

"""The notebooks of tutorials/ as they are committed; tutorials/test_notebooks.py runs them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
# what belongs to one machine or one run: folders, addresses, escape codes of terminals
PRIVATE = re.compile(r"/home/|/root/|/tmp/|/work/|[A-Z]:\\\\|site-packages|object at 0x|\x1b\[")


def _cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def _text(output: dict) -> str:
    """What an output shows, but for pictures."""
    data = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    return "".join("".join(text) for text in [output.get("text", ""), *data.values()])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_clean(path):
    cells = _cells(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", _text(output)
        assert not PRIVATE.search(_text(output)), _text(output)
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_begins_with_a_question_and_ends_with_the_answer(path):
    pages = ["".join(cell["source"]) for cell in _cells(path, "markdown")]
    assert pages[0].startswith("# ")
    assert re.search(r"\*\*[^*]+\?\*\*", pages[0]), "the question stands in bold in the first cell"
    assert any(page.startswith("## The answer\n") for page in pages[-2:])
    assert re.search(r"\*\*The data are (simulated|real)\b", pages[0]), "the first cell says what the data are"


def test_printed_commands_are_the_next_cells():
    """Each `Next: stmsi ...` that a cell of the shell prints stands in a later cell, options may be added to it.

    But for the last: it predicts the training sections, and the notebook says why it predicts a new one instead.
    """
    path = next(path for path in NOTEBOOKS if path.stem == "command_line")
    cells = ["".join(cell["source"]) for cell in _cells(path, "code")]
    printed = [
        (number, match[1])
        for number, cell in enumerate(_cells(path, "code"))
        for output in cell["outputs"]
        for match in re.finditer(r"^Next: stmsi (.+)$", _text(output), re.MULTILINE)
    ]
    assert len(printed) == 4
    later = [(command, "\n".join(cells[number + 1 :])) for number, command in printed[:-1]]
    assert [command for command, cells in later if f"stmsi --quiet {command}" not in cells] == []


def test_every_notebook_has_a_card():
    index = ROOT / "docs" / "tutorials" / "index.md"
    if not index.exists():
        pytest.skip("no documentation here")
    text = index.read_text(encoding="utf-8")
    assert [path.stem for path in NOTEBOOKS if f":link: {path.stem}\n" not in text] == []

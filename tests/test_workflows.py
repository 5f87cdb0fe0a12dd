"""The Snakemake pipeline: its rules call the command line as it is, and cover every step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from stmsi.cli import app
from stmsi.cli._cohort import STEPS

SNAKEFILE = Path(__file__).parents[1] / "workflows" / "Snakefile"
pytestmark = pytest.mark.skipif(not SNAKEFILE.is_file(), reason="workflows are not part of the source distribution")
_SHELL = re.compile(r"^rule (\w+):.*?^    shell: \"([^\"\n]+)\"$", re.MULTILINE | re.DOTALL)
_FILLED_IN = {"{COHORT:q}": "cohort.yaml", "{wildcards.section}": "P1S1", "{threads}": "2"}


def lines():
    """Shell line of each rule, with values for what Snakemake fills in."""
    found = dict(_SHELL.findall(SNAKEFILE.read_text(encoding="utf-8").replace("rule all:", "all:")))
    for place, value in _FILLED_IN.items():
        found = {rule: line.replace(place, value) for rule, line in found.items()}
    return found


def parse(line):
    """What the parser of the command line makes of a line; nothing is run."""
    program, name, *words = shlex.split(line)
    assert program == "stmsi"
    command = get_command(app).commands[name]
    return command.make_context(name, words).params


def test_every_step_is_a_rule():
    assert list(lines()) == list(STEPS)


@pytest.mark.parametrize("rule", STEPS)
def test_the_line_of_a_rule_is_a_call_of_its_step(rule):
    line = lines()[rule]
    assert "{" not in line
    params = parse(line)
    assert params["step"] == rule
    assert params["config"] == Path("cohort.yaml")
    alone = rule in ("train", "validate", "report")
    assert params["section"] == (None if alone else "P1S1")
    output = re.search(rf"^rule {rule}:.*?^    output: f\"(.+?)\"$", SNAKEFILE.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert output == f"{{RECORDS}}/{rule}.json" if alone else f"{{RECORDS}}/{rule}/{{{{section}}}}.json"


def test_files_that_jobs_wait_for(tmp_path):
    """The functions of the pipeline, which are plain Python, on a table as a spreadsheet writes it."""
    (tmp_path / "s.csv").write_text("name;st;msi;via\nP1S1;a.h5ad;a.imzML;v.csv\nP2S1;b.h5ad;;\n", encoding="utf-8-sig")
    (tmp_path / "c.yaml").write_text("out: o\nsections: s.csv\ncombine: {mz: ions.csv}\nalign: {landmarks: l.csv}\n")
    names = {"config": {"cohort": str(tmp_path / "c.yaml")}}
    exec(SNAKEFILE.read_text(encoding="utf-8").split("localrules")[0], names)
    section = SimpleNamespace(section="P1S1")
    assert [p.name for p in names["files_of"](section)] == ["a.h5ad", "a.imzML", "ions.csv"]
    assert [p.name for p in names["landmarks_of"](section)] == ["l.csv", "v.csv"]
    assert names["MEASURED"] == ["P1S1"]
    assert names["RECORDS"] == f"{tmp_path / 'o'}/records"


def test_a_wrong_line_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse("stmsi cohort cohort.yaml --stepp train")

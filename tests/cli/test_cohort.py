"""``stmsi cohort``: the whole of it on simulated sections, what a second run does, and what fails."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import stmsi.cli._cohort_steps as steps_of
from stmsi.cli import app
from stmsi.cli._cohort_example import EXAMPLE, simulate_files, write_files

GENES, IONS = 40, 4


def run(*args, code=0):
    """Run the command; its JSON, and what it said with collapsed whitespace."""
    result = CliRunner().invoke(app, ["cohort", *map(str, args), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert found["ok"] is (code == 0)
    return found, re.sub(r"\s+", " ", result.stderr)


def times(folder):
    """When each file of a cohort was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def files(_toy, tmp_path_factory):
    """The files of the example, with few genes and ions."""
    from spatialdata import SpatialData

    folder = tmp_path_factory.mktemp("cohort")
    st, msi = _toy.tables["st"][:, :GENES].copy(), _toy.tables["msi"][:, :IONS].copy()
    small = SpatialData(tables={"st": st, "msi": msi}, points=_toy.points, shapes=_toy.shapes)
    (folder / "cohort_data").mkdir()
    write_files(small, folder / "cohort_data")
    return folder


@pytest.fixture(scope="module")
def config(files):
    """The example without figures, which take time."""
    path = files / "cohort.yaml"
    path.write_text(EXAMPLE.replace("figures: true", "figures: false"))
    return path


@pytest.fixture(scope="module")
def first(config):
    """A run in which the third section is damaged: it fails, and the others go on."""
    imzml = config.parent / "cohort_data" / "P3S1.imzML"
    whole = imzml.read_bytes()
    imzml.write_bytes(whole[:400])
    found, said = run(config, code=1)
    imzml.write_bytes(whole)
    return found, said


@pytest.fixture(scope="module")
def second(config, first):
    """The same command once the section was mended."""
    before = times(config.parent / "cohort")
    found, _ = run(config)
    return before, found


def test_a_section_that_fails_is_named_and_the_others_go_on(first):
    found, said = first
    (failed,) = found["failed"]
    assert (failed["section"], failed["step"]) == ("P3S1", "combine")
    assert "P3S1.imzML" in failed["message"]
    assert [row["state"] for row in found["sections"]] == ["predicted", "predicted", "failed"]
    assert found["steps"] == {"done": 13, "kept": 0, "failed": 1, "blocked": 4}
    assert "P3S1: combine FAILED" in said
    assert "The rest went on" in said
    assert {row["patient"] for row in found["scores"]} == {"P1", "P2"}


def test_the_next_run_does_what_is_missing(config, second):
    before, found = second
    out = config.parent / "cohort"
    after = times(out)
    again = {p.relative_to(out).parts[1] for p in before if "sections" in p.parts and after.get(p) != before[p]}
    assert found["failed"] == []
    assert found["steps"]["kept"] >= 4
    kept = [p for p in before if {"combined.zarr", "aligned.zarr"} & set(p.parts)]
    assert kept
    assert all(before[p] == after[p] for p in kept)
    assert again <= {"P1S1", "P2S1"}, "predicted anew by the model of three sections"
    assert [row["state"] for row in found["sections"]] == ["predicted"] * 3


def test_what_was_done_is_not_done_again(config, second):
    before = times(config.parent / "cohort")
    found, _ = run(config)
    assert found["steps"] == {"done": 0, "kept": 18, "failed": 0, "blocked": 0}
    assert times(config.parent / "cohort") == before


def test_scores_and_tiers_are_those_of_the_functions(config, second):
    import anndata as ad

    out, (_, found) = config.parent / "cohort", second
    scores = pd.read_csv(out / "validation" / "scores.csv")
    assert set(scores["model"]) == {"ridge", "mean"}
    assert set(scores["trained_on"]) == {"no"}
    own = scores[scores["model"] == "ridge"].groupby("patient")["pearson"].median()
    np.testing.assert_allclose([row["pearson"] for row in found["scores"]], own.to_numpy())
    assert sum(found["tiers"].values()) == IONS
    tables = [ad.read_zarr(out / "sections" / name / "mapped.zarr" / "tables" / "st") for name in ("P1S1", "P3S1")]
    scale = {str(t.uns["msi"]["params"]["normalize_msi"]["target"]) for t in tables}
    assert len(scale) == 1, "all sections are on one scale"
    predicted = ad.read_zarr(out / "sections" / "P3S1" / "predicted.zarr")
    expected = stmsi_predict(out, tables[1])
    np.testing.assert_allclose(predicted.to_df(), expected, rtol=1e-5)


def stmsi_predict(out, table):
    import stmsi

    return stmsi.model.load(out / "model").predict(table)


def test_the_reports_tell_it(config, second):
    out = config.parent / "cohort"
    page = (out / "report.html").read_text()
    for text in (
        "SIMULATED",
        "Scores by patient",
        "How far metabolites can be trusted",
        "P3S1",
        "3, of which 0 failed",
    ):
        assert text in page
    section = (out / "sections" / "P2S1" / "report.html").read_text()
    assert "affine" in section
    assert "P1S1" not in section


def test_another_option_changes_what_follows_from_it(config, second, monkeypatch):
    text = config.read_text()
    config.write_text(text.replace("folds: 10", "folds: 2").replace("coverage: 0.9", "coverage: 0.8"))
    found, _ = run(config)
    config.write_text(text)
    # validation, three predictions and the report
    assert found["steps"] == {"done": 5, "kept": 13, "failed": 0, "blocked": 0}


def test_a_killed_run_goes_on(config, second, monkeypatch):
    out = config.parent / "cohort"
    (out / "records" / "align" / "P1S1.json").unlink()
    (out / "records" / "map" / "P3S1.json").unlink()
    write = steps_of.map_file

    def killed(data, *, out, **options):
        write(data, out=out, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(steps_of, "map_file", killed)
    before = times(out)
    result = CliRunner().invoke(app, ["cohort", str(config)])
    assert result.exit_code == 130
    mapped = {p for p in times(out) if "mapped.zarr" in p.parts}
    assert mapped == {p for p in before if "mapped.zarr" in p.parts}, "nothing half-written"
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    monkeypatch.undo()
    # alignment has the same hash, so that nothing after it is done again
    assert run(config)[0]["steps"] == {"done": 1, "kept": 17, "failed": 0, "blocked": 0}


def test_one_step_alone(config, second):
    found, _ = run(config, "--step", "align", "--section", "P1S1")
    assert found["steps"] == {"done": 0, "kept": 1, "failed": 0, "blocked": 0}
    assert found["report"] is None
    record = config.parent / "cohort" / "records" / "map" / "P2S1.json"
    kept = record.read_bytes()
    record.unlink()
    found, said = run(config, "--step", "section_report", "--section", "P2S1", code=1)
    assert "needs P2S1: map first" in found["error"]["message"]
    assert "P4S1" in run(config, "--step", "map", "--section", "P4S1", code=1)[0]["error"]["message"]
    assert "--section goes with --step" in run(config, "--section", "P1S1", code=1)[0]["error"]["message"]
    record.write_bytes(kept)


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    other = config.parent / "other.yaml"
    other.write_text(config.read_text().replace("out: cohort ", f"out: {tmp_path / 'mine'} #"))
    assert "not written by stmsi cohort" in run(other, code=1)[0]["error"]["message"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_full_disk_ends_the_run(config, second, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(steps_of, "map_file", full)
    text = config.read_text()
    config.write_text(text.replace("min_coverage: 0.5", "min_coverage: 0.4"))
    found, _ = run(config, code=1)
    config.write_text(text)
    assert "The disk is full" in found["error"]["message"]


def test_the_example_names_the_files_that_are_simulated(_toy, tmp_path, monkeypatch):
    monkeypatch.setattr("stmsi.datasets.toy", lambda: _toy)
    simulate_files(tmp_path / "cohort_data")
    (tmp_path / "cohort.yaml").write_text(EXAMPLE)
    assert CliRunner().invoke(app, ["cohort", "--example"]).stdout == EXAMPLE
    result = CliRunner().invoke(app, ["cohort", str(tmp_path / "cohort.yaml"), "--check"])
    assert result.exit_code == 0, result.output
    assert "is fine: 3 sections" in result.stderr
    assert not (tmp_path / "cohort").exists()
    entries = yaml.safe_load(EXAMPLE)
    assert Path(entries["sections"]["P1S1"]["st"]).parent.name == entries["simulate"]

"""``stmsi cohort``: the whole of it on simulated sections, what a second run does, and what fails."""

import errno
import json
import pickle
import re
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import stmsi
import stmsi.cli._cohort_steps as steps_of
from stmsi._cohort import Record
from stmsi.cli import app
from stmsi.cli._cohort import _claim, _read
from stmsi.cli._cohort_example import EXAMPLE, simulate_files, write_files
from stmsi.cli._cohort_steps import CohortSteps

GENES, IONS = 40, 4
pytestmark = pytest.mark.once


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
    """The example without figures, which take time, and with a section that is damaged."""
    path = files / "cohort.yaml"
    path.write_text(EXAMPLE.replace("figures: true", "figures: false"))
    imzml = files / "cohort_data" / "P2S1.imzML"
    imzml.write_bytes(imzml.read_bytes()[:400])
    return path


@pytest.fixture(scope="module", autouse=True)
def _quick_stores():
    """What is combined and aligned is kept as bytes: stores of their own take most of the time, and others test them."""

    def write(content, out):
        out.write_bytes(pickle.dumps(content))

    def read(path):
        return pickle.loads(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        for module in ("_combine", "_align"):
            patch.setattr(f"stmsi.cli.{module}.write_data", write)
        for module in ("_align", "_map"):
            patch.setattr(f"stmsi.cli.{module}.read_data", read)
        yield


@pytest.fixture(scope="module")
def first(config):
    """The first run: the second section fails, and the others go on."""
    return run(config, code=1)


def test_a_section_that_fails_is_named_and_the_others_go_on(first):
    found, said = first
    (failed,) = found["failed"]
    assert (failed["section"], failed["step"]) == ("P2S1", "combine")
    assert "P2S1.imzML" in failed["message"]
    assert [row["state"] for row in found["sections"]] == ["predicted", "failed", "predicted"]
    assert found["steps"] == {"done": 13, "kept": 0, "failed": 1, "blocked": 4}
    assert "P2S1: combine FAILED" in said
    assert "The rest went on" in said
    assert [row["patient"] for row in found["scores"]] == ["P1", "P3"]


def test_what_was_done_is_not_done_again(config, first):
    before = times(config.parent / "cohort")
    found, _ = run(config, code=1)
    assert found["steps"] == {"done": 0, "kept": 13, "failed": 1, "blocked": 4}
    again = times(config.parent / "cohort")
    assert {p.name for p in again if again[p] != before.get(p)} == {"P2S1.json"}, "it was tried again"


def test_scores_and_tiers_are_those_of_the_functions(config, first):
    out, (found, _) = config.parent / "cohort", first
    scores = pd.read_csv(out / "validation" / "scores.csv")
    assert set(scores["model"]) == {"ridge", "mean"}
    assert set(scores["trained_on"]) == {"no"}
    own = scores[scores["model"] == "ridge"].groupby("patient")["pearson"].median()
    np.testing.assert_allclose([row["pearson"] for row in found["scores"]], own.to_numpy())
    assert sum(found["tiers"].values()) == IONS
    tables = [ad.read_zarr(out / "sections" / name / "mapped.zarr" / "tables" / "st") for name in ("P1S1", "P3S1")]
    scale = {float(t.uns["msi"]["params"]["normalize_msi"]["target"]) for t in tables}
    assert len(scale) == 1, "all sections are on one scale"
    predicted = ad.read_zarr(out / "sections" / "P3S1" / "predicted.zarr")
    expected = stmsi.model.load(out / "model").predict(tables[1])
    np.testing.assert_allclose(predicted.to_df(), expected, rtol=1e-5)


def test_the_reports_tell_it(config, first):
    out = config.parent / "cohort"
    page = (out / "report.html").read_text()
    for text in (
        "SIMULATED",
        "Scores by patient",
        "How far metabolites can be trusted",
        "P3S1",
        "3, of which 1 failed",
    ):
        assert text in page
    section = (out / "sections" / "P3S1" / "report.html").read_text()
    assert "similarity" in section
    assert "P1S1" not in section


def test_another_option_changes_what_follows_from_it(config, first):
    """By the hashes, without the work."""
    text = config.read_text()

    def fresh(old, new):
        other = config.with_name("changed.yaml")
        other.write_text(text.replace(old, new))
        steps = CohortSteps(_read(other))
        return {step.name for step in steps.all_but_report() if step.fresh(steps.records)}

    everything = {"combine", "align", "map", "section_report", "train", "validate", "predict"}
    assert fresh("folds: 10", "folds: 10") == everything
    assert fresh("folds: 10", "folds: 2") == everything - {"validate"}
    assert fresh("coverage: 0.9", "coverage: 0.8") == everything - {"predict"}
    assert fresh("model: ridge", "model: linear") == everything - {"train", "validate", "predict"}
    assert fresh("patient: P3", "patient: P4") == everything - {"train", "validate", "predict"}
    assert fresh("model: similarity", "model: affine") == {"combine"}


def test_a_section_that_was_mended_joins_the_training(config, first):
    steps = CohortSteps(_read(config))
    before, step = steps.train().key, steps.map("P2S1")
    step.output.mkdir(parents=True)
    steps.records.write(Record(step.key), "map", "P2S1")
    steps.settle()
    assert [s.section for s in steps.ready()] == ["P1S1", "P2S1", "P3S1"]
    assert steps.train().key != before
    steps.records.forget("map", "P2S1")


def test_a_killed_run_goes_on(config, first, monkeypatch, tmp_path):
    out = config.parent / "cohort"
    (out / "records" / "map" / "P3S1.json").unlink()
    mapped = out / "sections" / "P3S1" / "mapped.zarr"
    copy = shutil.copytree(mapped, tmp_path / "mapped.zarr")

    def kept(data, *, out, **options):
        shutil.copytree(copy, out)
        return {"sections": [{"sample": "P3S1", "spots": 115, "covered": 106}]}

    def killed(data, *, out, **options):
        out.mkdir()
        (out / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(steps_of, "map_file", killed)
    result = CliRunner().invoke(app, ["cohort", str(config)])
    assert result.exit_code == 130
    assert not [p for p in out.rglob("*") if p.name == "half" or p.name.endswith(".part")], "nothing half-written"
    monkeypatch.setattr(steps_of, "map_file", kept)
    # the mapping has the same hash as before, so that nothing after it is done again
    assert run(config, code=1)[0]["steps"] == {"done": 1, "kept": 12, "failed": 1, "blocked": 4}


def test_one_step_alone(config, first):
    found, _ = run(config, "--step", "align", "--section", "P1S1")
    assert found["steps"] == {"done": 0, "kept": 1, "failed": 0, "blocked": 0}
    assert found["report"] is None
    assert "needs P2S1: map first" in failure(config, "--step", "section_report", "--section", "P2S1")
    assert "P4S1" in failure(config, "--step", "map", "--section", "P4S1")
    assert "--section goes with --step" in failure(config, "--section", "P1S1")
    assert "step='alling' is not known" in failure(config, "--step", "alling")
    assert run(config, "--step", "combine", "--section", "P2S1", code=1)[0]["failed"][0]["section"] == "P2S1"


def failure(*args):
    return run(*args, code=1)[0]["error"]["message"]


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    other = config.parent / "other.yaml"
    other.write_text(config.read_text().replace("out: cohort ", f"out: {tmp_path / 'mine'} #"))
    assert "not written by stmsi cohort" in failure(other)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "mine" / "thesis.txt").unlink()
    (tmp_path / "mine" / "records").mkdir()  # as Snakemake does
    _claim(tmp_path / "mine")
    assert (tmp_path / "mine" / ".stmsi-cohort").exists()


def test_a_full_disk_ends_the_run(config, first, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(steps_of, "map_file", full)
    text = config.read_text()
    config.write_text(text.replace("min_coverage: 0.5", "min_coverage: 0.4"))
    said = failure(config)
    config.write_text(text)
    assert "The disk is full" in said


def test_the_example_names_the_files_that_are_simulated(_toy, tmp_path, monkeypatch):  # noqa: PT019
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

"""``stmsi cohort``: the whole of it on simulated sections, what a second run does, and what fails."""

import errno
import json
import os
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
import stmsi.cli._cohort as command
import stmsi.cli._cohort_steps as steps_of
from stmsi._cohort import Record
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi.cli import app
from stmsi.cli._cohort import _claim, _read
from stmsi.cli._cohort_example import EXAMPLE, simulate_files, write_files
from stmsi.cli._cohort_result import _table
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
    own = constant_counts_as_zero(scores[scores["model"] == "ridge"]).groupby("patient")["pearson"].median()
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
    assert "Interrupted; what was finished stays." in result.stderr
    assert not [p for p in out.rglob("*") if p.name == "half" or p.name.endswith(".part")], "nothing half-written"
    monkeypatch.setattr(steps_of, "map_file", kept)
    # the mapping has the same hash as before, so that nothing after it is done again
    assert run(config, code=1)[0]["steps"] == {"done": 1, "kept": 12, "failed": 1, "blocked": 4}


def test_one_step_alone(config, first):
    found, _ = run(config, "--step", "align", "--section", "P1S1")
    assert found["steps"] == {"done": 0, "kept": 1, "failed": 0, "blocked": 0}
    assert found["report"] is None
    for more in ([], ["--section", "P2S1"]):
        assert "needs P2S1: map first" in failure(config, "--step", "section_report", *more)
    assert "--step train is of the whole cohort" in failure(config, "--step", "train", "--section", "P1S1")
    assert "P4S1" in failure(config, "--step", "map", "--section", "P4S1")
    assert "--section goes with --step" in failure(config, "--section", "P1S1")
    assert "step='alling' is not known" in failure(config, "--step", "alling")
    assert run(config, "--step", "combine", "--section", "P2S1", code=1)[0]["failed"][0]["section"] == "P2S1"


def failure(*args):
    return run(*args, code=1)[0]["error"]["message"]


def test_a_job_of_one_section_looks_at_its_own_files(config, first, monkeypatch):
    """Hundreds of jobs that look at the files of hundreds of sections would take the file system down."""
    seen = []
    monkeypatch.setattr(steps_of, "files_of", lambda path: seen.append(path.name) or [])
    run(config, "--step", "combine", "--section", "P2S1", code=1)
    assert set(seen) == {"P2S1.h5ad", "P2S1.imzML", "ions.csv"}


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


def test_two_jobs_may_claim_a_folder_at_once(tmp_path, monkeypatch):
    def meanwhile(folder, _):
        (folder / ".stmsi-cohort").touch()
        return iter([folder / ".stmsi-cohort"])

    monkeypatch.setattr(Path, "rglob", meanwhile)
    _claim(tmp_path)


def test_from_another_folder_all_is_as_it_was(config, first, monkeypatch):
    keys = [step.key for step in CohortSteps(_read(config)).all_but_report()]
    monkeypatch.chdir(config.parent)
    assert [step.key for step in CohortSteps(_read(Path(config.name))).all_but_report()] == keys


def test_a_report_that_fails_is_a_failure(config, first, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no picture")

    record = config.parent / "cohort" / "records" / "report.json"
    kept = record.read_text()
    record.unlink()
    monkeypatch.setattr("stmsi._report.cohort_report", broken)
    found, _ = run(config, code=1)
    record.write_text(kept)
    assert [(one["section"], one["step"]) for one in found["failed"]] == [("P2S1", "combine"), (None, "report")]
    assert found["report"] is None


def test_stores_that_were_removed_come_back_on_another_scale(config, first, monkeypatch):
    """The scale is known once all sections are combined, and only then whether a section must be mapped again."""
    steps = CohortSteps(_read(config))
    other, record = steps.combine("P3S1"), steps.records.read("combine", "P3S1")
    for step in steps.alone("P1S1"):
        step.output.rename(step.output.with_suffix(".away"))
    done = []

    def each(steps, which, names, *, again):
        if which == "alone" and not done:  # as a new section would
            levels = {name: 100 * level for name, level in record.result["levels"].items()}
            steps.records.write(Record(other.key, result=record.result | {"levels": levels}), "combine", "P3S1")
        done.append((which, names))
        return iter(())

    monkeypatch.setattr(command, "_each", each)
    monkeypatch.setattr(command, "_do", lambda *_, **__: None)
    assert steps.removed() == []
    list(command._all(steps, again=False))
    steps.records.write(record, "combine", "P3S1")
    for step in steps.alone("P1S1"):
        step.output.with_suffix(".away").rename(step.output)
    assert done[1] == ("alone", ["P1S1"])


def test_patients_may_stand_in_the_data(config):
    steps = CohortSteps(_read(config))
    obs = pd.DataFrame({"sample": list("aabbc"), "patient": [1, 1, 2, 2, 2]}, index=list("vwxyz"))
    spots = ad.AnnData(obs=obs)
    assert steps_of._patient_of(spots) == {"a": "1", "b": "2", "c": "2"}
    assert steps._splitter(spots, 3).key == "patient"
    spots.obs["patient"] = spots.obs["patient"].where(spots.obs["sample"] != "c")
    assert steps._splitter(spots, 3).key == "sample", "the patient of a section is not known"


def test_no_resume_repeats_the_folds_as_well(config, monkeypatch, tmp_path):
    def seen(*args):
        raise ValueError(args[-1])

    monkeypatch.setattr("stmsi.cli._cohort_steps.open_cohort", seen)
    for resume in (True, False):
        with pytest.raises(ValueError, match="folds" if resume else "None"):
            CohortSteps(_read(config), resume=resume).validate().work(tmp_path / str(resume))


def test_a_section_may_be_called_na(tmp_path):
    table = pd.DataFrame({"sample": ["NA", "null"], "patient": ["nan", np.nan], "pearson": [0.5, np.nan]})
    table.to_csv(tmp_path / "scores.csv", index=False)
    pd.testing.assert_frame_equal(_table(tmp_path, "scores.csv"), table, check_dtype=False)


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


# --------------------------------------------------------------------------------------------- on a cluster

_VERSION = """
import importlib.metadata as package
package.own = getattr(package, "own", package.version)
told = {told!r}

def version(name):
    if name != "stmsi" or told == "own":
        return package.own(name)
    if told is None:
        raise package.PackageNotFoundError(name)
    return told

package.version = version
"""
"""What a worker does where it is to tell another version of stmsi, or none."""


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_folds_on_a_cluster_are_those_of_one_process(config, first, cluster, monkeypatch):
    out = config.parent / "cohort"
    alone = pd.read_csv(out / "validation" / "scores.csv")
    shutil.rmtree(out / "folds")
    (out / "records" / "validate.json").unlink()
    monkeypatch.chdir(config.parent)
    monkeypatch.setattr("stmsi.tl._cross_validate._train_and_score", None)  # here, and not on the workers
    with cluster.get_client() as client:
        client.run(os.chdir, "/")  # as on other machines
    found, _ = run(config.name, "--step", "validate", "--scheduler", cluster.scheduler_address)
    assert found["steps"] == {"done": 1, "kept": 0, "failed": 0, "blocked": 0}
    scores = pd.read_csv(out / "validation" / "scores.csv")
    assert len(scores) > 0
    pd.testing.assert_frame_equal(scores.drop(columns="seconds"), alone.drop(columns="seconds"), check_exact=True)
    assert not list(Path("/folds").glob("*")), "nothing is written where the workers are"
    monkeypatch.undo()
    assert {p.suffix for p in (out / "folds").iterdir()} >= {".parquet"}
    assert run(config, code=1)[0]["steps"]["done"] == 0, "a run without the cluster takes it up"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("told", "error"),
    [(None, "have no stmsi. Install the same version there"), ("0.0.1", "have stmsi '0.0.1', here it is")],
)
def test_workers_that_cannot_do_it_are_told_before_anything_is_done(config, cluster, tmp_path, told, error):
    other = _elsewhere(config, tmp_path)
    with cluster.get_client() as client:
        client.run(exec, _VERSION.format(told=told), {})
        said = failure(other, "--scheduler", cluster.scheduler_address)
        client.run(exec, _VERSION.format(told="own"), {})
    assert error in said
    assert not (tmp_path / "new").exists()


def test_a_scheduler_that_is_not_there_is_told_before_anything_is_done(config, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("stmsi.tl._cluster._TIMEOUT", 0.3)
    other = _elsewhere(config, tmp_path)
    for more in ([], ["--check"], ["--step", "validate"]):
        assert "No dask scheduler answers at 'tcp://127.0.0.1:1'" in failure(
            other, "--scheduler", "tcp://127.0.0.1:1", *more
        )
    said = failure(other, "--scheduler", "tcp://127.0.0.1:1", "--step", "align")
    assert "--scheduler is for training and cross-validation" in said
    assert not (tmp_path / "new").exists()


def _elsewhere(config, tmp_path):
    """The same cohort with another folder for its results."""
    other = config.parent / f"{tmp_path.name}.yaml"
    other.write_text(config.read_text().replace("out: cohort ", f"out: {tmp_path / 'new'} #"))
    return other


# ------------------------------------------------------------------------------------ columns of obs by section


def test_columns_by_section_join_the_training(config, first, tmp_path):
    table = tmp_path / "sections.csv"
    text = re.sub(r" +patient: .*", "", config.read_text())
    other = config.parent / "with_obs.yaml"
    other.write_text(text.replace("model: ridge ", f"obs: {table}\n  covariate_key: [batch]\n  model: ridge "))
    assert f"train: {table}" in failure(other)
    table.write_text("section,patient,batch\nP1S1,007,a\nP3S1,8,b\n")
    assert f"{table} has no row for section 'P2S1'; its rows are 'P1S1', 'P3S1'" in failure(other, "--check")
    table.write_text("section,patient,batch\nP1S1,007,a\nP2S1,x,b\nP3S1,8,b\n")
    before = {name: CohortSteps(_read(path)).train().key for name, path in (("own", config), ("obs", other))}
    assert before["own"] != before["obs"]
    steps = CohortSteps(_read(other))
    data = steps._data(steps.ready(), ["ridge"])
    assert steps_of._patient_of(data.spots) == {"P1S1": "007", "P3S1": "8"}
    assert data.setup["covariate_keys"] == ["batch"]
    model = data.train("ridge")
    model.save(tmp_path / "model")
    assert "batch" in str(model.card["setup"])
    steps.train = lambda: steps_of.Step("train", tmp_path / "model", "k", None)
    steps.predict("P3S1").work(tmp_path / "p.zarr")
    assert set(ad.read_zarr(tmp_path / "p.zarr").obs["batch"]) == {"b"}
    table.write_text("section,patient,batch\nP1S1,007,a\nP2S1,x,b\nP3S1,8,c\n")
    assert CohortSteps(_read(other)).train().key != before["obs"]
    other.write_text(config.read_text().replace("model: ridge ", f"obs: {table}\n  model: ridge "))
    assert "has a column 'patient', and so have the sections" in failure(other, "--check")

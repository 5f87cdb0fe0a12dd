"""What programs and people get from a command: JSON, one line for an error, exit codes, completion."""

import errno
import json
import re
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import stmsi
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._settings import logger
from stmsi.cli import app
from stmsi.cli._app import command, explain, plain


def run(*args, code=0):
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == code, result.output
    return result.stdout, re.sub(r"\s+", " ", result.stderr)


def read_json(text):
    """Exactly one object, in which what does not exist is null."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


# ------------------------------------------------------------------------------------------------------------- JSON


def test_predict(folder, tmp_path):
    out = tmp_path / "p.h5ad"
    stdout, stderr = run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", out, "--json")
    result = read_json(stdout)
    assert {k: result[k] for k in ("command", "ok", "out", "key", "spots", "metabolites", "model")} == {
        "command": "predict", "ok": True, "out": str(out), "key": "msi_pred", "spots": 344, "metabolites": 12,
        "model": "HurdleLinear",
    }  # fmt: skip
    assert result["missing_genes"] == 0.0
    assert [row["trained_on"] for row in result["training_spots"]] == ["partly", "partly", "no"]
    assert result["warnings"] == []
    assert "P1S1 (partly trained on), P2S1 (partly trained on)" in stderr
    assert 0 <= result["share_unusual"] < 0.5
    assert "Predicted 12 metabolites" in stderr


def test_evaluate(predicted):
    stdout, stderr = run("evaluate", predicted, "--json")
    result = read_json(stdout)
    scores = stmsi.tl.evaluate(ad.read_h5ad(predicted))
    assert [row["sample"] for row in result["medians"]] == ["P1S1", "P2S1", "P3S1"]
    wanted = scores[scores["sample"] == "P2S1"]["auroc"].median()
    assert result["medians"][1]["auroc"] == pytest.approx(wanted)
    assert result["all_sections"]["pearson"] == pytest.approx(constant_counts_as_zero(scores)["pearson"].median())
    assert result["all_sections"].keys() >= {"pearson_between", "pearson_pooled"}
    assert [row["trained_on"] for row in result["medians"]] == ["yes", "yes", "no"]
    assert result["trained_on"] == "partly"
    (said,) = result["warnings"]
    assert "in 2 of 3 sections ('P1S1', 'P2S1')" in said
    assert "not evidence. Held out: P3S1." in stderr
    assert "prevalence" not in stderr, "the table is for people"


def test_align(toy, tmp_path):
    toy.write(tmp_path / "raw.zarr")
    stdout, _ = run("align", tmp_path / "raw.zarr", "--out", tmp_path / "a.zarr", "--json")
    sections = read_json(stdout)["sections"]
    assert [s["mirrored"] for s in sections] == [False, True, False]
    assert all(s["tre_um"] > 0 for s in sections)


def test_version():
    result = read_json(run("version", "--json")[0])
    assert result["version"] == stmsi.__version__
    assert {"python", "numpy", "torch", "anndata"} <= set(result["versions"])


def test_an_error_is_json_too(tmp_path):
    stdout, stderr = run("evaluate", tmp_path / "no.h5ad", "--json", code=1)
    result = read_json(stdout)
    assert (result["command"], result["ok"], result["error"]["type"]) == ("evaluate", False, "FileNotFoundError")
    assert "No such file" in result["error"]["message"]
    assert "Error: No such file" in stderr
    assert result["warnings"] == []


@pytest.mark.filterwarnings("default:another package")
def test_warnings_are_in_the_result_also_of_a_failure(tmp_path):
    """Each once, from the package and from others."""

    def fake(end):
        with command("fake", as_json=True) as result:
            for name in ("a", "b", "a"):
                logger.warning("Section %r has something that is worth a line of its own.", name)
                warnings.warn("another package\nhas a word", stacklevel=1)
            result["done"] = True
            if end is not None:
                raise end

    def main(fail: str) -> None:
        fake(ValueError("planted") if fail == "yes" else None)

    own = typer.Typer()
    own.command()(main)
    said = [
        "Section 'a' has something that is worth a line of its own.",
        "another package has a word",
        "The warning that begins \"Section 'a' has something that is worth a line of its own.\" also holds for: b.",
    ]
    fine, failed = (read_json(CliRunner().invoke(own, [fail]).stdout) for fail in ("no", "yes"))
    assert fine == {"command": "fake", "ok": True, "done": True, "warnings": said}
    assert failed["warnings"] == said
    assert not failed["ok"]


def test_what_other_packages_print_does_not_reach_the_result(folder, tmp_path, monkeypatch):
    original = stmsi.tl.predict_metabolites

    def noisy(*args, **kwargs):
        sys.stdout.write("chatter\n")
        return original(*args, **kwargs)

    monkeypatch.setattr(stmsi.tl, "predict_metabolites", noisy)
    args = ["predict", folder / "st.h5ad", "--model", folder / "model", "--out", tmp_path / "p.h5ad"]
    stdout, stderr = run(*args, "--json")
    assert read_json(stdout)["ok"]
    assert "chatter" in stderr


def test_plain_values():
    value = {"a": np.float32(0.5), "b": [np.nan, float("inf"), np.int64(3)], 1: (Path("x"), None, np.bool_(True))}
    assert plain(value) == {"a": 0.5, "b": [None, None, 3], "1": ["x", None, True]}


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("obsm has no 'x'"), "obsm has no 'x'"),
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "Take fewer sections"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), "name another path"),
        (
            ZeroDivisionError("division by zero"),
            "ZeroDivisionError: division by zero. This looks like a fault of stmsi",
        ),
        (ValueError(), "ValueError"),
    ],
)
def test_one_line_for_each_error(error, expected):
    text = explain(error)
    assert expected in text
    assert "\n" not in text


@pytest.fixture
def broken(monkeypatch):
    """A fault inside stmsi."""

    def fail(*args, **kwargs):
        msg = "planted"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(stmsi.tl, "predict_metabolites", fail)


def test_no_traceback_unless_asked_for(folder, tmp_path, broken):
    args = ["predict", folder / "st.h5ad", "--model", "ridge", "--out", tmp_path / "p.h5ad"]
    stdout, stderr = run(*args, code=1)
    assert "Error: ZeroDivisionError: planted. This looks like a fault of stmsi" in stderr
    assert "Traceback" not in stdout + stderr
    for option in ("--debug", "--verbose", "-v"):
        assert "Traceback (most recent call last)" in run(option, *args, code=1)[1]
    assert not list(tmp_path.iterdir())


def test_an_interrupt_writes_nothing(folder, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stmsi.tl, "predict_metabolites", interrupt)
    args = ["predict", folder / "st.h5ad", "--model", "ridge", "--out", tmp_path / "p.h5ad"]
    assert "Interrupted; no output was written" in run(*args, code=130)[1]
    assert not list(tmp_path.iterdir())


def test_quiet_and_debug_exclude_each_other():
    assert "exclude each other" in run("--quiet", "--debug", "version", code=2)[1]


def test_warnings_are_one_line(folder, tmp_path, monkeypatch):
    def warn(*args, **kwargs):
        warnings.simplefilter("always")  # not the errors that tests make of them
        warnings.warn("mind [this]", UserWarning, stacklevel=2)
        msg = "stop"
        raise ValueError(msg)

    monkeypatch.setattr(stmsi.tl, "predict_metabolites", warn)
    args = ["predict", folder / "st.h5ad", "--model", "ridge", "--out", tmp_path / "p.h5ad"]
    stderr = run(*args, code=1)[1]
    assert "Warning: mind [this] Error: stop" in stderr


# ------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stmsi pre", ["predict"]),
        ("stmsi align x.zarr --method a", ["auto"]),
        ("stmsi align x.zarr --model thin", ["thin_plate"]),
        ("stmsi predict x.h5ad --model kernel", ["kernel_ridge"]),
    ],
)
def test_completion(words, expected):
    env = {"_STMSI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(app, [], env=env, prog_name="stmsi")
    assert result.stdout.split() == expected


def test_saved_models_are_completed(folder):
    words = f"stmsi predict x.h5ad --model {folder}/mo"
    env = {"_STMSI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    result = CliRunner().invoke(app, [], env=env, prog_name="stmsi")
    assert result.stdout.split() == [f"{folder}/model"]

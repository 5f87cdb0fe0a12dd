"""The command line, in this process."""

import html
import logging
import re
import shlex
import shutil
import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata
from rich.console import Console
from typer.testing import CliRunner

import stmsi
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._report import Figure
from stmsi.cli import _app, app


def run(*args, code=0):
    """Run a command; its whole output, whitespace collapsed and colours gone."""
    # no table is broken; lines of text are whole in any terminal
    result = CliRunner().invoke(app, ["--quiet", *map(str, args)], env={"COLUMNS": "1000"})
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, text
    return text


def alone(st):
    """The table without its regions and the simulated truth, which takes less time to write."""
    st = st.copy()
    del st.uns["spatialdata_attrs"]
    for key in [k for k in st.obsm if k.startswith("truth")]:
        del st.obsm[key]
    return st


def read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else spatialdata.read_zarr(path).tables["st"]


# ------------------------------------------------------------------------------------------------- align


@pytest.fixture(scope="module")
def unaligned(_toy, tmp_path_factory) -> Path:
    """The sections before alignment, as a store."""
    path = tmp_path_factory.mktemp("align") / "raw.zarr"
    spatialdata.deepcopy(_toy).write(path)
    return path


def test_align_by_points_in_the_store(unaligned, tmp_path):
    out, table = tmp_path / "aligned.zarr", tmp_path / "report.csv"
    text = run("align", unaligned, "--out", out, "--model", "thin_plate", "--report", table)
    assert re.search(r"P2S1 thin_plate yes \d+ \d+ 0\.\d\d", text), "error, mask, mirrored"
    assert "P1S1: supports" in text
    report = pd.read_csv(table, index_col="sample")
    assert report["mirrored"].tolist() == [False, True, False]
    sdata = spatialdata.read_zarr(out)
    assert set(sdata.tables["msi"].uns["alignment"]) == {"P1S1", "P2S1", "P3S1"}
    assert "P1S1_pixels_warped" in sdata.shapes


def test_align_by_a_file(toy, unaligned, tmp_path):
    msi, st = (toy.points[f"P1S1_landmarks_{m}"][["x", "y"]].compute().to_numpy().copy() for m in ("msi", "st"))
    st[3] += [600, 100]
    path = tmp_path / "landmarks.csv"
    pd.DataFrame(np.hstack([msi, st]), columns=["x_msi", "y_msi", "x_st", "y_st"]).to_csv(path, index=False)
    text = run(
        "align", unaligned, "--out", tmp_path / "a.zarr", "--landmarks", path, "--sample", "P1S1", "--robust", "lmeds"
    )
    assert "landmarks left out: 3" in text
    assert "P2S1" not in text


def test_align_says_what_is_wrong(unaligned, folder, tmp_path):
    text = run("align", unaligned, "--out", tmp_path / "a.zarr", "--landmarks", tmp_path / "none.csv", code=1)
    assert "Error: There is no file" in text
    text = run("align", unaligned, "--out", tmp_path / "a.zarr", "--model", "elastic", code=1)
    assert "model='elastic' is not known" in text
    text = run("align", folder / "st.h5ad", "--out", tmp_path / "a.h5ad", code=1)
    assert "Expected a SpatialData" in text
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- predict, evaluate


def test_predict_several_files_of_which_one_is_bad(folder, tmp_path):
    st, paths = read(folder / "st.h5ad"), []
    for name in ("P1S1", "P2S1"):
        paths.append(tmp_path / f"{name}.h5ad")
        alone(st[(st.obs["sample"] == name).to_numpy()]).write_h5ad(paths[-1])
    paths.append(tmp_path / "bad.h5ad")
    paths[-1].write_bytes(b"nothing")
    text = run("predict", *paths, "--model", folder / "model", "--out", tmp_path / "out", code=1)
    assert re.search(r"Predicted \d+ spots of 2 of 3 files", text)
    assert re.search(r"Failed: \S*bad\.h5ad: ", text)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["P1S1.zarr", "P2S1.zarr"]
    text = run("predict", *paths[:2], "--model", folder / "model", "--out", tmp_path / "out")
    assert re.search(r"spots of 2 of 2 files, 2 of them by an earlier run \(--overwrite: again\)", text)
    other = ["--model", folder / "model", "--out", tmp_path / "out", "--coverage", "0.8"]
    assert "was made from other options" in run("predict", *paths[:2], *other, code=1)
    assert "earlier run" not in run("predict", *paths[:2], *other, "--overwrite")
    text = fails("predict", paths[0], "--model", folder / "model", "--out", tmp_path / "p.h5ad", "--overwrite")
    assert "--overwrite is for predictions of several files" in text
    text = fails(
        "predict", paths[0], "--model", folder / "model", "--out", tmp_path / "p.h5ad", "--scheduler", "tcp://x:1"
    )
    assert "is the only one" in text
    assert not (tmp_path / "p.h5ad").exists()


@pytest.mark.parametrize("name", ["st.h5ad", "s.zarr"])
def test_predict_then_evaluate(folder, tmp_path, name):
    out = tmp_path / "new" / f"pred{Path(name).suffix}"
    text = run("predict", folder / name, "--model", folder / "model", "--out", out)
    assert "Predicted 12 metabolites in 344 spots" in text
    exec(re.search(r"in Python: (import .*?\)) (?:Next|$)", text)[1], {})
    st = read(out)
    expected = stmsi.model.load(folder / "model").predict(read(folder / name))
    np.testing.assert_allclose(st.obsm["msi_pred"], expected, rtol=1e-5)
    assert [p.name for p in out.parent.iterdir()] == [out.name]

    table = tmp_path / "scores" / "scores.csv"
    text = run("evaluate", out, "--out", table)
    scores = pd.read_csv(table)
    wanted = stmsi.tl.evaluate(st)
    assert list(scores) == list(wanted)
    assert len(scores) == len(wanted) == 3 * 12 * 2
    np.testing.assert_allclose(scores["pearson"], wanted["pearson"], rtol=1e-6)
    assert [p.name for p in table.parent.iterdir()] == ["scores.csv"]
    # what is printed are the medians, in which a constant prediction counts as 0
    wanted = constant_counts_as_zero(wanted)
    median = wanted[wanted["sample"] == "P3S1"]["pearson"].median()
    assert re.search(rf"P3S1 .*{median:.3f}", text)
    between = wanted.drop_duplicates(["stage", "metabolite"])["pearson_between"].median()
    r2 = wanted["r2"].median()
    assert re.search(rf"all sections .*{r2:.3f} {wanted['pearson'].median():.3f} {between:.3f}", text)
    assert "not evidence" in text


def test_the_input_is_not_changed(folder, tmp_path):
    before = (folder / "st.h5ad").read_bytes()
    run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", tmp_path / "p.h5ad")
    assert (folder / "st.h5ad").read_bytes() == before


def test_a_family_is_trained_on_the_spot(folder, tmp_path):
    run("predict", folder / "st.h5ad", "--model", "mean", "--out", tmp_path / "p.h5ad")
    assert read(tmp_path / "p.h5ad").uns["msi_pred"]["params"]["model"] == "mean"


def test_options_are_passed_on(folder, tmp_path):
    out = tmp_path / "p.h5ad"
    options = ["--key-added", "lipids", "--coverage", "0.5", "--min-genes", "0.9"]
    run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", out, *options)
    st = read(out)
    assert "lipids" in st.obsm
    assert "msi_pred" not in st.obsm
    assert {k: float(st.uns["lipids"]["params"][k]) for k in ("coverage", "min_genes")} == {
        "coverage": 0.5,
        "min_genes": 0.9,
    }
    run("evaluate", out, "--pred-key", "lipids")
    text = run("evaluate", out, code=1)
    assert "obsm has no 'msi_pred'" in text


def test_layer_kind_and_outputs_are_passed_on(folder, tmp_path):
    st = read(folder / "st.h5ad")
    st.layers["umis"], st.X = st.X.copy(), np.full(st.shape, -0.5, np.float32)
    st.write_h5ad(tmp_path / "layer.h5ad")
    out = tmp_path / "p.h5ad"
    options = ["--layer", "umis", "--input", "counts", "--how", "mask", "--how", "expected"]
    run("predict", tmp_path / "layer.h5ad", "--model", folder / "model", "--out", out, *options)
    expected = stmsi.model.load(folder / "model").predict(read(folder / "st.h5ad"), how=["expected", "mask"])
    predicted = read(out)
    np.testing.assert_allclose(predicted.obsm["msi_pred"], expected["mask"], rtol=1e-5)
    np.testing.assert_allclose(predicted.obsm["msi_pred_expected"], expected["expected"], rtol=1e-5)
    assert list(predicted.uns["msi_pred"]["params"]["how"]) == ["mask", "expected"]
    # X alone would be refused, and an earlier prediction can be replaced after a way through a file
    assert "negative numbers" in run(
        "predict",
        tmp_path / "layer.h5ad",
        "--model",
        folder / "model",
        "--out",
        tmp_path / "x.h5ad",
        "--input",
        "log",
        code=1,
    )
    run("predict", out, "--model", folder / "model", "--layer", "umis", "--out", tmp_path / "again.h5ad")
    assert "msi_pred_expected" not in read(tmp_path / "again.h5ad").obsm


# ------------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize("name", ["st.h5ad", "s.zarr"])
def test_train_then_predict(folder, tmp_path, name):
    out = tmp_path / "models" / "lipids"
    text = run("train", folder / name, "--out", out)
    assert "Trained" in text
    assert "on 340 spots of 3 section(s): 12 metabolites" in re.sub(r"on \d+ spots", "on 340 spots", text)
    suffix = Path(name).suffix
    assert (
        f"Next: stmsi predict {folder / name} --model {out} --out {folder / Path(name).stem}_predicted{suffix}" in text
    )
    model = stmsi.model.load(out)
    assert model.state.setup.presence_key == "msi_presence"
    assert model.state.setup.input == "counts"
    run("predict", folder / "st.h5ad", "--model", out, "--out", tmp_path / "p.h5ad")
    assert read(tmp_path / "p.h5ad").obsm["msi_pred"].shape == (344, 12)


def test_train_passes_the_setup_on(folder, tmp_path):
    st = read(folder / "st.h5ad")
    st.layers["log"] = np.log1p(st.X.toarray()) - 1
    st.obs["slide"] = st.obs.pop("sample")
    st.obs["age"] = np.arange(st.n_obs) % 7
    st.obsm["image"] = np.random.default_rng(0).normal(size=(st.n_obs, 2))
    st.write_h5ad(tmp_path / "st.h5ad")
    options = ["--model", "mean", "--layer", "log", "--input", "log", "--sample-key", "slide", "--covariate-key", "age"]
    options += ["--feature-key", "image", "--graph-key", "spatial_connectivities"]
    run("train", tmp_path / "st.h5ad", "--out", tmp_path / "m", *options)
    setup = stmsi.model.load(tmp_path / "m").state.setup
    assert (setup.layer, setup.input, setup.sample_key) == ("log", "log", "slide")
    assert (setup.covariate_keys, setup.feature_key, setup.graph_key) == (
        ("age",),
        ("image",),
        "spatial_connectivities",
    )


def test_train_on_several_stores(folder, tmp_path):
    st = read(folder / "st.h5ad")
    paths = []
    for name in ("P1S1", "P2S1"):
        paths.append(tmp_path / f"{name}.h5ad")
        st[(st.obs["sample"] == name).to_numpy()].write_h5ad(paths[-1])
    options = ["--model", "linear", "--cache-dir", tmp_path / "sums"]
    run("train", *paths, "--out", tmp_path / "m", *options)
    assert stmsi.model.load(tmp_path / "m").state.training["samples"] == ["P1S1", "P2S1"]
    assert stmsi.model.load(tmp_path / "m").state.setup.presence_key == "msi_presence"
    (tmp_path / "bad.h5ad").write_bytes(b"nothing")
    text = fails("train", *paths, tmp_path / "bad.h5ad", "--out", tmp_path / "n", *options)
    assert "1 of 3 stores cannot be used" in text
    assert not (tmp_path / "n").exists()
    st[:, :50][(st.obs["sample"] == "P3S1").to_numpy()].copy().write_h5ad(tmp_path / "few.h5ad")
    text = fails("train", *paths, tmp_path / "few.h5ad", "--out", tmp_path / "n", *options)
    assert "it lacks 70 of the 120 genes" in text
    assert "(--genes shared)" in text
    run("train", *paths, tmp_path / "few.h5ad", "--out", tmp_path / "few", "--genes", "shared", *options)
    assert stmsi.model.load(tmp_path / "few").card["training"]["n_genes"] == 50
    assert "--genes='all' is not known" in fails("train", *paths, "--out", tmp_path / "n", "--genes", "all")
    text = run("train", *paths, tmp_path / "bad.h5ad", "--out", tmp_path / "n", "--skip-bad", *options, code=1)
    assert "bad.h5ad is left out" in text
    assert stmsi.model.load(tmp_path / "n").state.training["samples"] == ["P1S1", "P2S1"]


def test_columns_by_section_in_training_and_prediction(folder, tmp_path):
    st = read(folder / "st.h5ad")
    names = list(st.obs["sample"].unique())
    paths = []
    for name in names[:2]:
        paths.append(tmp_path / f"{name}.h5ad")
        st[(st.obs["sample"] == name).to_numpy()].write_h5ad(paths[-1])
    table = tmp_path / "sections.csv"
    table.write_text("section,age\n" + "".join(f"{name},{50 + k}\n" for k, name in enumerate(names)))
    options = ["--covariate-key", "age", "--obs", table]
    run("train", *paths, "--out", tmp_path / "m", "--model", "mean", *options)
    run("predict", *paths, "--model", tmp_path / "m", "--out", tmp_path / "out", "--obs", table)
    assert set(ad.read_zarr(tmp_path / "out" / f"{names[1]}.zarr").obs["age"]) == {51}
    run("predict", paths[0], "--model", tmp_path / "m", "--out", tmp_path / "one.h5ad", "--obs", table)
    assert set(read(tmp_path / "one.h5ad").obs["age"]) == {50}
    assert "age" in fails("predict", paths[0], "--model", tmp_path / "m", "--out", tmp_path / "none.h5ad")
    assert "is the only one" in fails(
        "train", paths[0], "--out", tmp_path / "n", "--model", "mean", "--scheduler", "tcp://127.0.0.1:1"
    )


def test_a_narrow_terminal_leaves_paths_of_warnings_whole(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_app.console, "width", 20)
    path = tmp_path / "a_long_name_of_a_store_that_cannot_be_read.h5ad"
    handler = _app.WholeLines(console=_app.console)
    handler.handle(
        logging.makeLogRecord(
            {"levelno": 30, "levelname": "WARNING", "msg": "%s is left out: [a] :x:", "args": (path,)}
        )
    )
    assert capsys.readouterr().err == f"WARNING  {path} is left out: [a] :x:\n"


def test_train_says_what_is_wrong(folder, tmp_path):
    assert "model='rigde' is not known" in fails(
        "train", folder / "st.h5ad", "--out", tmp_path / "m", "--model", "rigde"
    )
    (tmp_path / "mine").write_text("x")
    assert "exists already" in fails("train", folder / "st.h5ad", "--out", tmp_path / "mine")
    text = fails("train", folder / "st.h5ad", "--out", tmp_path / "m", "--layer", "counts")
    assert "No layer 'counts'; layers: none" in text
    assert "input='raw' is not known" in fails("train", folder / "st.h5ad", "--out", tmp_path / "m", "--input", "raw")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_table_of_another_name(st, folder, tmp_path):
    spatialdata.SpatialData(tables={"visium": alone(st)}).write(tmp_path / "v.zarr")
    out = tmp_path / "p.zarr"
    run("predict", tmp_path / "v.zarr", "--model", folder / "model", "--out", out, "--table-key", "visium")
    assert "msi_pred" in spatialdata.read_zarr(out).tables["visium"].obsm
    assert "no table 'st'" in run("evaluate", out, code=1)
    run("evaluate", out, "--table-key", "visium")


# ------------------------------------------------------------------------------------------------------------ errors


def fails(*args):
    text = run(*args, code=1)
    assert "Error:" in text
    assert "Traceback" not in text
    return text


def predict_fails(folder, tmp_path, data, *, model="model", out="p.h5ad"):
    out = tmp_path / "out" / out
    text = fails("predict", data, "--model", folder / model if model == "model" else model, "--out", out)
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir()), "nothing half-written"
    return text


def test_a_missing_file(folder, tmp_path):
    text = predict_fails(folder, tmp_path, tmp_path / "no.h5ad")
    assert "No such file or folder" in text
    assert "no.h5ad" in text


def test_names_with_brackets_are_shown_as_they_are(folder, tmp_path):
    text = predict_fails(folder, tmp_path, tmp_path / "slide[old][/b].h5ad")
    assert "slide[old][/b].h5ad" in text
    # and a command that succeeds says where it wrote
    out = tmp_path / "out[red].h5ad"
    assert "out[red].h5ad" in run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", out)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("fake.h5ad", "cannot be read as an h5ad file"),
        ("fake.zarr", "is not a zarr store: it has no zarr.json"),
        ("file.zarr", "Expected a SpatialData store (.zarr) or an AnnData file (.h5ad), found 'file.zarr'"),
        ("table.csv", "Expected a SpatialData store (.zarr) or an AnnData file (.h5ad), found 'table.csv'"),
    ],
)
def test_a_file_that_is_not_what_it_claims(folder, tmp_path, name, match):
    path = tmp_path / name
    if name == "fake.zarr":
        path.mkdir()
    else:
        path.write_text("a,b\n1,2\n")
    assert match in predict_fails(folder, tmp_path, path, out=f"p{path.suffix}")
    assert match in fails("evaluate", path)


def test_an_h5_file_of_something_else(folder, tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["numbers"] = [1, 2, 3]
    text = predict_fails(folder, tmp_path, tmp_path / "x.h5ad")
    assert "x.h5ad is an HDF5 file but not an AnnData: it has no 'obs' and 'var'; found 'numbers'" in text


def test_an_unknown_model(folder, tmp_path):
    text = predict_fails(folder, tmp_path, folder / "st.h5ad", model="rigde")
    assert "model='rigde' is neither a folder nor a family; families: auto, mean, linear" in text


def test_a_folder_that_is_no_model(folder, tmp_path):
    text = predict_fails(folder, tmp_path, folder / "st.h5ad", model=folder / "s.zarr")
    assert "is not a saved stmsi model: it has no stmsi.json" in text


def test_genes_that_share_nothing(folder, tmp_path):
    st = read(folder / "st.h5ad")
    st.var_names = [f"Mus{i}" for i in range(st.n_vars)]
    del st.var["gene_ids"]
    st.write_h5ad(tmp_path / "mouse.h5ad")
    assert "share no gene with the training panel" in predict_fails(folder, tmp_path, tmp_path / "mouse.h5ad")


def test_outputs_are_never_overwritten(folder, tmp_path):
    out = tmp_path / "p.h5ad"
    out.write_text("mine")
    text = fails("predict", folder / "st.h5ad", "--model", folder / "model", "--out", out)
    assert "exists already; name another output" in text
    assert out.read_text() == "mine"


def test_the_kind_of_the_output_is_checked_first(folder, tmp_path):
    text = predict_fails(folder, tmp_path, folder / "st.h5ad", model="no such model", out="p.zarr")
    assert "The output must be of the same kind as the input (.h5ad), found 'p.zarr'" in text


@pytest.mark.parametrize("name", ["st.h5ad", "s.zarr"])
def test_a_write_that_fails_leaves_nothing(folder, tmp_path, monkeypatch, name):
    def broken(content, path, *args, **kwargs):
        Path(path).mkdir() if Path(path).suffix == ".zarr" else Path(path).write_text("half")
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr("stmsi.cli._files.write_h5ad", broken)
    monkeypatch.setattr(spatialdata.SpatialData, "write", broken)
    assert "disk full" in predict_fails(folder, tmp_path, folder / name, out=f"p{Path(name).suffix}")


def test_a_table_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch):
    run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", tmp_path / "p.h5ad")

    def broken(self, path, *args, **kwargs):
        Path(path).write_text("half")
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    assert "disk full" in fails("evaluate", tmp_path / "p.h5ad", "--out", tmp_path / "new" / "s.csv")
    assert not list((tmp_path / "new").iterdir())


def test_evaluate_without_predictions_names_the_call(folder):
    assert "stmsi.tl.predict_metabolites writes it" in fails("evaluate", folder / "st.h5ad")


# -------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            [],
            [
                "demo",
                "combine",
                "align",
                "map",
                "predict",
                "evaluate",
                "version",
                "--quiet",
                "--version",
                "Exit codes",
                "completion",
            ],
        ),
        (["demo"], ["--out", "--seed", "--small", "held-out section"]),
        (["predict"], ["--model", "--out", "--key-added", "--coverage", "--min-genes", ".h5ad"]),
        (["evaluate"], ["--out", "--pred-key", "--table-key", "per section and metabolite"]),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command, expected, flag):
    text = run(*command, flag)
    for part in expected:
        assert part in text


def test_no_command_shows_the_help():
    result = CliRunner().invoke(app, [])
    assert "predict" in result.output
    assert result.exit_code in (0, 2)  # click changed its mind


def test_the_help_tells_the_commands_in_the_order_of_the_work():
    names = ("demo", "combine", "align", "map", "train", "predict", "evaluate", "version")
    assert tuple(re.findall(rf"\W ({'|'.join(names)}) [A-Z]", run("--help"))) == names


@pytest.mark.parametrize("args", [["version"], ["--version"]])
def test_version(args):
    assert run(*args).strip() == stmsi.__version__


@pytest.mark.parametrize(
    "args",
    [
        ["predict"],
        ["predict", "x.h5ad", "--model", "mean"],
        ["predikt"],
        ["demo", "--seed", "x"],
        ["--debug", "version"],
    ],
)
def test_wrong_usage_has_code_2(args):
    run(*args, code=2)


def test_options_before_the_command_set_the_settings(monkeypatch):
    monkeypatch.setattr(_app, "console", Console(stderr=True, highlight=False, force_terminal=True))
    for option, bar, level in (([], True, "INFO"), (["-q"], False, "WARNING"), (["--debug"], True, "DEBUG")):
        CliRunner().invoke(app, [*option, "version"])
        assert stmsi.settings.progress_bar is bar
        assert stmsi.settings.verbosity == getattr(logging, level)


def test_no_bars_where_nobody_looks():
    CliRunner().invoke(app, ["version"])
    assert not stmsi.settings.progress_bar


# -------------------------------------------------------------------------------------------------------------- demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    log = logging.getLogger("stmsi")
    handlers, level, bar = log.handlers, log.level, stmsi.settings.progress_bar
    result = CliRunner().invoke(app, ["--quiet", "demo", "--small", "--out", str(folder)], env={"COLUMNS": "1000"})
    log.handlers, stmsi.settings.progress_bar = handlers, bar
    log.setLevel(level)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder, result


@pytest.mark.slow
def test_the_demo_writes_its_folder(demo):
    folder, result = demo
    assert [p.name for p in folder.parent.iterdir()] == ["out"], "no scratch folder is left"
    names = {p.name for p in folder.iterdir()}
    assert {"report.html", "demo.zarr", "model", "scores.csv", "alignment.csv"} <= names
    for name in ("compare", "presence", "alignment", "coverage", "performance", "performance_presence"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "ridge" in result.output
    assert f"in a browser:      {folder}/report.html" in result.output
    page = (folder / "report.html").read_text()
    assert "SIMULATED." in page
    assert page.count("data:image/png;base64,") == 6
    assert "mean (baseline)" in page
    assert "Scores on the held-out section P3S1" in page
    assert "reach a mean Pearson correlation of 0." in page
    assert "stmsi demo --seed 0 --small --out" in page
    assert '<td class="name">HurdleLinear</td>' in page, "the model card"
    assert re.search(
        r"simPC\([0-9:]+\) \[M\+H\]\+ \(m/z\s[0-9.]+\)</th><td class=\"name\">(medium|low|none)</td>", page
    )


@pytest.mark.slow
def test_the_demo_scores_baselines_beside_models(demo):
    scores = pd.read_csv(demo[0] / "scores.csv")
    columns = {"model", "sample", "metabolite", "stage", "n", "auroc", "auprc", "prevalence", "f1", "pearson", "r2"}
    assert columns | {"kind", "predictable"} <= set(scores)
    assert set(scores["model"]) == {"mean", "ridge", "mlp"}
    assert set(scores["sample"]) == {"P3S1"}, "only the held-out section"
    assert set(scores["trained_on"]) == {"no"}
    intensity = scores[(scores["stage"] == "intensity") & scores["predictable"]].groupby("model")["pearson"].mean()
    assert intensity["ridge"] > 0.3
    presence = scores[(scores["stage"] == "presence") & scores["predictable"]].groupby("model")["auroc"].mean()
    assert presence["mean"] == pytest.approx(0.5)
    assert min(presence["ridge"], presence["mlp"]) > 0.6


@pytest.mark.slow
def test_what_the_demo_wrote_can_be_used(demo, tmp_path):
    sdata = spatialdata.read_zarr(demo[0] / "demo.zarr")
    assert "msi_pred" in sdata.tables["st"].obsm
    model = stmsi.model.load(demo[0] / "model")
    assert model.state.training["samples"] == ["P1S1", "P2S1"], "the held-out section was never trained on"
    np.testing.assert_allclose(
        model.predict(sdata.tables["st"]), sdata.tables["st"].obsm["msi_pred"], rtol=1e-4, atol=1e-5
    )
    assert sdata.tables["st"].uns["msi_pred"]["training_spots"]["trained_on"].tolist()[-1] == "no"
    text = run("evaluate", demo[0] / "demo.zarr")
    assert re.search(r"P1S1\* \d+ .*P3S1 \d+ ", re.sub(r"\s+", " ", text))
    assert "Held out: P3S1." in text


@pytest.mark.once
@pytest.mark.slow
def test_all_that_the_demo_says_can_be_typed(demo, monkeypatch):
    """Lines of its report and of its last words, from the folder where it ran."""
    folder, result = demo
    monkeypatch.chdir(folder.parent)
    page = (folder / "report.html").read_text()
    again, python, shell = (
        html.unescape(lines) for lines in re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)
    )
    assert again == f"stmsi demo --seed 0 --small --out {folder}"
    space: dict = {}
    exec(compile(python, "report.html", "exec"), space)
    assert space["model"].state.training["samples"] == ["P1S1", "P2S1"]
    plt.close("all")
    printed = [line.partition(":")[2].strip() for line in result.output.splitlines() if line.startswith("  the ")]
    assert Path(printed[0]).is_file()
    exec(printed[1], space)
    lines = shell.splitlines()
    assert printed[2] == lines[0]
    for line in lines:
        assert line.startswith("stmsi ")
        run(*shlex.split(line)[1:])
    scores = (folder.parent / "out_scores.html").read_text()
    assert "<strong>Alignment.</strong>" in scores
    (line,) = (html.unescape(lines) for lines in re.findall(r"<pre[^>]*><code>(.*?)</code>", scores, re.DOTALL))
    monkeypatch.setattr(Figure, "drawn", lambda *args: None)  # drawing again takes most of the time
    run(*shlex.split(line)[1:])
    for path in folder.parent.glob("out_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
def test_a_demo_folder_may_be_replaced_after_a_failure_it_stays(demo, monkeypatch):
    """A run that fails leaves the earlier demo as it was."""
    before = (demo[0] / "scores.csv").read_bytes()

    def broken(*args, **kwargs):
        msg = "planted"
        raise ValueError(msg)

    monkeypatch.setattr(stmsi.datasets, "toy", broken)
    assert "planted" in fails("demo", "--small", "--out", demo[0])
    assert (demo[0] / "scores.csv").read_bytes() == before
    assert [p.name for p in demo[0].parent.iterdir()] == ["out"]


def test_the_demo_refuses_foreign_folders(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    text = fails("demo", "--small", "--out", tmp_path / "thesis")
    assert "was not written by the demo; pass another --out" in text
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "words"
    (tmp_path / "file").write_text("words")
    assert "was not written by the demo" in fails("demo", "--small", "--out", tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis"]


def test_scores_never_replace_the_data(folder, tmp_path):
    out = tmp_path / "p.h5ad"
    run("predict", folder / "st.h5ad", "--model", folder / "model", "--out", out)
    before = out.read_bytes()
    assert "must end in .csv" in fails("evaluate", out, "--out", out)
    (tmp_path / "old.csv").write_text("mine")
    assert "exists already" in fails("evaluate", out, "--out", tmp_path / "old.csv")
    assert (out.read_bytes(), (tmp_path / "old.csv").read_text()) == (before, "mine")


def test_no_output_inside_the_input(folder):
    inner = folder / "s.zarr" / "inner.zarr"
    assert "lies inside the input" in fails("predict", folder / "s.zarr", "--model", "mean", "--out", inner)
    assert not inner.exists()


def test_zarr_stores_of_something_else(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata on the zarr version that it writes
        ad.read_h5ad(folder / "st.h5ad").write_zarr(tmp_path / "ann.zarr")
    text = predict_fails(folder, tmp_path, tmp_path / "ann.zarr", out="p.zarr")
    assert "ann.zarr is an AnnData, not a SpatialData; write it as .h5ad" in text
    import zarr

    zarr.open_group(tmp_path / "other.zarr", mode="w").create_group("numbers")
    assert "is not a SpatialData store; it holds numbers" in predict_fails(
        folder, tmp_path, tmp_path / "other.zarr", out="p.zarr"
    )

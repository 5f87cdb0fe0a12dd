"""The whole road on files: from raw sections to scores, by the lines that each command prints."""

import json
import re
import shlex
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata
from typer.testing import CliRunner

import stmsi
import stmsi.tl._models
from stmsi.cli import app
from stmsi.cli._align import units_of
from stmsi.cli._next_step import new_path
from stmsi.cli._sections import default_name, named_path

UM_PER_PX, GENES, IONS = 0.5, 40, 2


def run(*args, code=0):
    """Run a command; standard error with collapsed whitespace, and the command that it names as the next."""
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == code, result.output
    following = re.findall(r"^Next: stmsi (.*)$", result.stderr, re.MULTILINE)
    return re.sub(r"\s+", " ", result.stderr), following


@pytest.fixture(scope="module")
def files(_toy, tmp_path_factory):
    """A section as store with landmarks, and as h5ad and landmarks in pixels, both with imzML; another one as two stores."""
    folder = tmp_path_factory.mktemp("my files")
    st, msi = _toy.tables["st"], _toy.tables["msi"][:, :IONS]
    first = st[st.obs["sample"] == "P1S1", :GENES]

    def bare(table, xy, **uns):
        """Counts and places alone, which take less time to write."""
        return ad.AnnData(table.X, table.obs[[]], table.var[[]], uns=uns, obsm={"spatial": xy})

    scale = {"lib": {"scalefactors": {"spot_diameter_fullres": 65 / UM_PER_PX}}}
    bare(first, first.obsm["spatial"] / UM_PER_PX, spatial=scale).write_h5ad(folder / "P1S1.h5ad")
    spots = stmsi.pp.combine({"P1S1": bare(first, first.obsm["spatial"])})
    marks = []
    for side in ("msi", "st"):
        spots.points[f"P1S1_landmarks_{side}"] = _toy.points[f"P1S1_landmarks_{side}"]
        marks.append(_toy.points[f"P1S1_landmarks_{side}"].compute()[["x", "y"]].to_numpy())
    spots.write(folder / "st1.zarr")
    columns = ["x_msi", "y_msi", "x_st", "y_st"]
    pd.DataFrame(np.hstack([marks[0], marks[1] / UM_PER_PX]), columns=columns).to_csv(folder / "marks.csv", index=False)
    stmsi.io.write_imzml(msi.copy(), folder / "raw.imzML", sample="P1S1")
    second = st[st.obs["sample"] == "P2S1", :GENES]
    pixels = msi[msi.obs["sample"] == "P2S1"].copy()
    pixels.var = pixels.var[["mz", "name"]]
    both = stmsi.pp.combine({"P2S1": bare(second, second.obsm["spatial"])}, pixels)
    for kind, element in (("st", "P2S1_spots"), ("msi", "P2S1_pixels")):
        alone = spatialdata.SpatialData(shapes={element: both.shapes[element]}, tables={kind: both.tables[kind]})
        alone.write(folder / f"{kind}2.zarr")
    msi.var[["mz", "name"]].iloc[:1].to_csv(folder / "ions.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def pair(files, tmp_path_factory):
    """The first section from the h5ad in pixels, combined; what was told, and the next line."""
    out = tmp_path_factory.mktemp("pixels") / "my pair.zarr"
    words = ["--st", files / "P1S1.h5ad", "--msi", files / "raw.imzML", "--mz", files / "ions.csv", "--out", out]
    return out, *run("combine", *words)


@pytest.mark.once
def test_the_printed_lines_are_the_road(files, tmp_path, monkeypatch):
    """Every line as it is printed; a quick model stands in for the usual one, and figures are not drawn."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **kwargs: file.write(b"\x89PNG"))
    train_model = stmsi.tl._models.train_model
    monkeypatch.setattr("stmsi.tl._models.train_model", lambda st, model, *a, **k: train_model(st, "ridge", *a, **k))
    out = tmp_path / "my pair.zarr"
    told, following = run("combine", "--st", files / "st1.zarr", "--msi", files / "raw.imzML", "--out", out)
    assert re.search(r"P1S1: \d+ spots, \d+ pixels Combined 1 section\(s\), 40 genes, 2 ions", told)
    done = ["combine"]
    while following:
        words = shlex.split(following[0])
        _, following = run(*words)
        done.append(words[0])
    assert done == ["combine", "align", "map", "train", "predict", "evaluate"]
    made = {"my pair.zarr", "my pair_aligned.zarr", "my pair_mapped.zarr", "my pair_model", "my pair_predicted.zarr"}
    assert {path.name for path in tmp_path.iterdir()} == made | {"my pair_scores.html"}
    st = spatialdata.read_zarr(tmp_path / "my pair_predicted.zarr").tables["st"]
    assert st.obsm["msi_pred"].shape == (st.n_obs, IONS)
    assert np.isfinite(st.obsm["msi_pred"].to_numpy()).all()


@pytest.mark.once
def test_landmarks_in_pixels(pair, files, tmp_path):
    told, _ = run("align", pair[0], "--landmarks", files / "marks.csv", "--out", tmp_path / "a.zarr")
    assert "one unit is 0.5 um" in pair[1]
    assert "were converted" in told
    msi = spatialdata.read_zarr(tmp_path / "a.zarr").tables["msi"]
    assert msi.var["name"].tolist() == pd.read_csv(files / "ions.csv")["name"].tolist(), "the ions that were named"
    matrix = msi.uns["alignment"]["P1S1"]["matrix"]
    assert np.sqrt(abs(np.linalg.det(matrix[:2, :2]))) == pytest.approx(1, abs=0.05)


@pytest.mark.once
def test_several_sections_keep_their_names(files, tmp_path):
    out = tmp_path / "new" / "all.zarr"
    words = ["--st", f"A={files / 'P1S1.h5ad'}", "--st", files / "st2.zarr"]
    words += ["--msi", f"A={files / 'raw.imzML'}", "--msi", files / "msi2.zarr", "--mz-tolerance", 5, "--out", out]
    told, _ = run("combine", *words, "--mz", files / "ions.csv", code=1)
    assert "--mz and --pick-peaks go with imzML; msi2.zarr brings its own ions" in told
    assert not out.parent.exists()
    result = CliRunner().invoke(app, ["combine", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(s["sample"], s["pixels"] > 0) for s in found["sections"]] == [("A", True), ("P2S1", True)]
    assert (found["genes"], found["metabolites"]) == (GENES, IONS)
    assert [p.name for p in out.parent.iterdir()] == ["all.zarr"]
    assert set(spatialdata.read_zarr(out).tables["st"].uns["st_units"]) == {"A"}


def test_a_folder_of_space_ranger_and_a_table(tmp_path, space_ranger):
    space_ranger(tmp_path / "S3" / "outs")
    y, x = (a.ravel() for a in np.indices((12, 12)))
    pd.DataFrame({"x": 100 * x, "y": 100 * y, "104.107": 1.0 + x}).to_csv(tmp_path / "maldi.csv", index=False)
    out = tmp_path / "pair.zarr"
    told, following = run("combine", "--st", tmp_path / "S3" / "outs", "--msi", tmp_path / "maldi.csv", "--out", out)
    assert "S3: 72 spots, 144 pixels" in told
    assert following == [f"align {out} --out {tmp_path / 'pair_aligned.zarr'}"]
    assert sorted(spatialdata.read_zarr(out).shapes) == ["S3_pixels", "S3_spots"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--st", "no.h5ad"], "No such file or folder: no.h5ad"),
        (["--st", "P1S1.h5ad", "--msi", "x=raw.imzML"], "MSI sections without an ST section of the same name: 'x'"),
        (["--st", "P1S1.h5ad", "--msi", "marks.csv", "--mz", "ions.csv"], "go with imzML"),
        (["--st", "P1S1.h5ad", "--msi", "raw.ibd"], "Expected MSI as imzML, a table .* found 'raw.ibd'"),
        (["--st", "P1S1.h5ad", "--msi", "raw.imzML", "--mz", "marks.csv"], "has the columns 'x_msi'.*expected 'mz'"),
        (["--st", "P1S1.h5ad", "--out", "x.h5ad"], "must end in .zarr"),
        (["--st", "marks.csv"], "Expected a SpatialData store"),
    ],
)
def test_combine_says_what_is_wrong_and_leaves_nothing(files, monkeypatch, args, message):
    monkeypatch.chdir(files)
    before = sorted(p.name for p in files.iterdir())
    told, _ = run("combine", *args, *([] if "--out" in args else ["--out", "x.zarr"]), code=1)
    assert re.search(f"Error: .*{message}", told)
    assert sorted(p.name for p in files.iterdir()) == before


def test_map_says_what_is_wrong(pair, files, tmp_path):
    told, _ = run("map", pair[0], "--out", tmp_path / "m.zarr", code=1)
    assert "stmsi.pp.align" in told
    told, _ = run("map", files / "P1S1.h5ad", "--out", tmp_path / "m.h5ad", code=1)
    assert "Expected a SpatialData" in told
    told, _ = run("map", pair[0], "--normalize", "quantile", "--out", tmp_path / "m.zarr", code=1)
    assert "method='quantile' is not known" in told
    assert list(tmp_path.iterdir()) == []


def test_without_msi_no_line_is_printed_that_cannot_run(files, tmp_path):
    told, following = run("combine", "--st", files / "st2.zarr", "--out", tmp_path / "st.zarr")
    assert "There is no MSI" in told
    assert following == []


def test_names_of_sections_and_outputs(tmp_path):
    assert named_path("s1=a b/x.zarr") == ("s1", Path("a b/x.zarr"))
    assert named_path("a b/x.zarr") == (None, Path("a b/x.zarr"))
    (tmp_path / "a=b.csv").touch()
    assert named_path(str(tmp_path / "a=b.csv"))[0] is None
    assert [default_name(Path(p)) for p in ("x/my slide/outs", "a.imzML.gz", "b.v2.zarr")] == ["my_slide", "a", "b.v2"]
    assert new_path(tmp_path / "pair_aligned.zarr", "mapped", ".zarr") == tmp_path / "pair_mapped.zarr"
    (tmp_path / "pair_mapped.zarr").mkdir()
    assert new_path(tmp_path / "pair_aligned.zarr", "mapped", ".zarr").name == "pair_mapped_2.zarr"
    assert new_path(tmp_path / "pair_mapped_2.zarr", "model").name == "pair_model"
    assert units_of("file,0.5") == ("file", 0.5)
    assert units_of("pixels") == "pixels"

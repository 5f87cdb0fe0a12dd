"""Columns of obs by section from a file, for training and prediction."""

import anndata as ad
import pytest
from typer.testing import CliRunner

import stmsi
from stmsi.cli import app
from stmsi.cli._obs_file import read_obs


def run(*args, code=0):
    """Run a command; what it said, with collapsed whitespace."""
    result = CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "1000"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def fails(*args):
    return run(*args, code=1)


@pytest.fixture(scope="module")
def sections(folder, tmp_path_factory):
    """Two sections as files, without patients."""
    out, st, paths = tmp_path_factory.mktemp("sections"), ad.read_h5ad(folder / "st.h5ad"), []
    for name in ("P1S1", "P2S1"):
        own = st[(st.obs["sample"] == name).to_numpy()].copy()
        del own.obs["patient"]
        paths.append(out / f"{name}.h5ad")
        own.write_h5ad(paths[-1])
    return paths


def written(folder, text, name="sections.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_columns_are_trained_with(sections, tmp_path):
    table = written(tmp_path, "section;patient;batch;purity\nP2S1;NA;b;0,5\nP1S1;007;a;0,25\nelsewhere;x;;\n")
    options = ["--model", "linear", "--covariate-key", "batch", "--covariate-key", "purity"]
    run("train", *sections, "--obs", table, "--out", tmp_path / "m", *options)
    model = stmsi.model.load(tmp_path / "m")
    assert model.card["training"]["n_patients"] == 2
    assert list(model.state.features.categories["batch"]) == ["a", "b"]
    mean, _ = model.state.features.categories["purity"]
    assert 0.25 < mean < 0.5
    assert "batch" not in ad.read_h5ad(sections[0]).obs, "the file is not changed"


def test_one_file_alone_is_trained_alike(sections, tmp_path):
    table = written(tmp_path, "section\tbatch\nP1S1\ta\nP2S1\tb\n", "sections.tsv")
    run("train", sections[0], "--obs", table, "--out", tmp_path / "m", "--model", "mean", "--covariate-key", "batch")
    assert stmsi.model.load(tmp_path / "m").state.setup.covariate_keys == ("batch",)


def test_rows_of_other_sections_are_told(sections, tmp_path):
    table = written(tmp_path, "section,batch\nP1S1,a\nP2S1,b\nP2S2,b\n")
    said = run("train", *sections, "--obs", table, "--out", tmp_path / "m", "--model", "mean")
    assert "sections.csv has rows of sections that were not read: 'P2S2'." in said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("section,batch\nP1S1,a\n", "obs= has no row for section 'P2S1'; its rows are 'P1S1'"),
        ("section,batch\nP1S1,a\nP2S1,b\nP1S1,c\n", "has several rows for section 'P1S1'"),
        ("section\nP1S1\nP2S1\n", "has the column 'section' alone"),
        ("section,batch,batch\nP1S1,a,b\nP2S1,a,b\n", "has columns of one name: 'batch'"),
        (
            "batch,sample\na,P1S1\nb,P2S1\n",
            "'sample', which names the section, must be the first column; found 'batch'",
        ),
        ("section,batch\nP1S1,a\n,b\n", "row 3 has no section in the column 'section'"),
        ("section,slide\nP1S1,a\nP2S1,b\n", "it lacks obs['batch'], which the setup names"),
        ("section,batch\nP1S1,a\nP2S1,\n", "Covariate obs['batch'] has missing values"),
        ("", "sections.csv is empty"),
    ],
)
def test_tables_that_cannot_be_used_are_told(sections, tmp_path, text, error):
    table = written(tmp_path, text)
    said = fails(
        "train", *sections, "--obs", table, "--out", tmp_path / "m", "--model", "linear", "--covariate-key", "batch"
    )
    assert error in said
    assert not (tmp_path / "m").exists()


def test_a_table_that_is_not_there(sections, tmp_path):
    assert "There is no file" in fails("train", *sections, "--obs", tmp_path / "none.csv", "--out", tmp_path / "m")


def test_names_stay_as_they_are_written(tmp_path):
    table = read_obs(written(tmp_path, "s,patient,batch\n01,007,1\n1,NA,2\n"), "sample", ["batch"])
    assert list(table.index) == ["01", "1"]
    assert list(table["patient"]) == ["007", "NA"]
    assert list(table["batch"]) == [1, 2]

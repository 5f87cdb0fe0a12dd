"""The accuracy run on the sections of a deposit on the user's disk."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

RUN = Path(__file__).parents[2] / "benchmarks" / "accuracy" / "run.py"


def _run(*args, cwd):
    return subprocess.run([sys.executable, RUN, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def deposit(tmp_path):
    """Three sections in the layout of DESIUM; the first ion follows the first gene."""
    row, col = (a.ravel() for a in np.indices((10, 12)))
    for seed, name in enumerate(["BC_1_Section_1", "BC_2_Section_1", "BC_3_Section_1"]):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(5, (len(row), 40)).astype(np.float32)
        counts[:, 0] = rng.poisson(np.where(col > 5, 30, 3))
        adata = AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=[f"b{i}" for i in range(len(row))]))
        adata.var_names = [f"GENE{i}" for i in range(40)]
        adata.obsm["spatial"] = np.column_stack([col, row]) * 250.0
        ions = rng.gamma(20, 1, (len(row), 3))
        ions[:, 0] *= 1 + counts[:, 0]
        adata.uns["msi"], adata.uns["mz_features"] = ions, np.array([255.2330, 281.2486, 885.5499])
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


def _files(folder):
    """Files by number: one that is written again is another; one that is used again has another time only."""
    return {f: f.stat().st_ino for f in folder.rglob("*") if f.is_file()}


@pytest.mark.once
def test_a_deposit_is_scored_and_a_second_run_takes_the_finished_folds(deposit):
    args = ("--data", f"desium={deposit}", "--models", "mean", "ridge", "--n-jobs", "1", "--cache", "folds")
    first = _run(*args, cwd=deposit)
    assert first.returncode == 0, first.stderr
    table = pd.read_csv(deposit / "accuracy" / "summary.csv").set_index("model")
    assert set(table["what"]) == {"measured metabolites"}
    assert set(table["folds"]) == {3}
    assert table.loc["ridge", "pearson"] > 0.1
    written = _files(deposit / "folds")
    assert len(written) >= 6
    assert _run(*args, cwd=deposit).returncode == 0
    assert _files(deposit / "folds") == written
    again = pd.read_csv(deposit / "accuracy" / "summary.csv").set_index("model")
    assert again.loc["ridge", "pearson"] == table.loc["ridge", "pearson"]


@pytest.mark.parametrize(("data", "said"), [("other=x", "one of sma, desium"), ("sma=nowhere", "nothing at nowhere")])
def test_what_is_not_there_is_said_at_once(tmp_path, monkeypatch, capsys, data, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(RUN.parent))
    monkeypatch.setattr(sys, "argv", [str(RUN), "--data", data])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(RUN), run_name="__main__")
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

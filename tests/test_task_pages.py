"""The pages of docs/tasks: short, and their code runs as printed, on files that are written from a simulation."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData

import stmsi

FOLDER = Path(__file__).parents[1] / "docs" / "tasks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the documentation is not part of the source distribution")
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
NAMES = {"P1S1": "s1", "P2S1": "s2", "P3S1": "s3"}


def write_section(write_space_ranger: Callable, folder: Path, st: AnnData) -> None:
    """A Space Ranger folder with the spots and counts of a section."""
    rows, cols = int(st.obs["array_row"].max()) + 1, int(st.obs["array_col"].max()) // 2 + 1
    write_space_ranger(folder, rows=rows, cols=cols)  # scale factors and a picture; counts and positions are replaced
    barcodes = [f"AAAC{i:05d}-1" for i in range(st.n_obs)]
    xy = st.obsm["spatial"] / 0.5  # um per pixel, as in the scale factors
    positions = {"in": 1, "r": st.obs["array_row"].to_numpy(), "c": st.obs["array_col"].to_numpy()}
    table = pd.DataFrame({"b": barcodes, **positions, "y": xy[:, 1], "x": xy[:, 0]})
    table.to_csv(folder / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    counts = st.X.tocsr()
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"] = counts.data.astype(np.int32), counts.indices
        matrix["indptr"], matrix["shape"] = counts.indptr, counts.shape[::-1]
        for key, value in {"id": None, "name": None, "feature_type": "Gene Expression", "genome": "sim"}.items():
            matrix[f"features/{key}"] = np.array([value or gene for gene in st.var_names], dtype="S")


@pytest.fixture(scope="module")
def folder(_toy: SpatialData, space_ranger: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name: sections `s1` to `s3` with imzML and landmarks, and `new`; what the first page saves for the others."""
    path = tmp_path_factory.mktemp("tasks")
    st = _toy.tables["st"]
    landmarks = []
    for given, name in NAMES.items():
        write_section(space_ranger, path / name / "outs", st[st.obs["sample"] == given])
        stmsi.io.write_imzml(_toy, path / f"{name}.imzML", table_key="msi", sample=given, polarity="positive")
        pair = [
            _toy.points[f"{given}_landmarks_{side}"].compute()[["x", "y"]].add_suffix(f"_{side}")
            for side in ("msi", "st")
        ]
        landmarks.append(pd.concat(pair, axis=1).assign(sample=name))
    write_section(space_ranger, path / "new" / "outs", st[st.obs["sample"] == "P3S1"])
    pd.concat(landmarks).to_csv(path / "landmarks.csv", index=False)
    space = run(FOLDER / "train_on_pairs.md", path)
    assert (stmsi.pp.alignment_report(space["sdata"])["tre_um"] < 55).all()
    return path


def run(page: Path, folder: Path) -> dict:
    """Run all Python of a page in the folder, from top to bottom; returns its variables."""
    space: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hundred spots a section: alignments are ambiguous, scanpy has much to say
        for block in blocks:
            exec(compile(block, page.name, "exec"), space)
    plt.close("all")
    return space


@pytest.mark.once
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "train_on_pairs"], ids=lambda page: page.stem)
def test_the_code_runs_as_printed(page, folder):
    space = run(page, folder)
    if page.stem == "predict_visium":
        assert space["best"]["held_out_pearson"].iloc[0] > 0.5
    if page.stem == "share_a_model":
        assert space["card"]["contains_training_profiles"] is False
    if page.stem in ("predict_visium", "share_a_model"):
        assert space["sdata"].tables["st"].obsm["msi_pred"].notna().all(axis=None)


@pytest.mark.once
def test_the_readme_runs_as_printed(tmp_path):
    space = run(FOLDER.parents[1] / "README.md", tmp_path)
    assert "msi_pred" in space["sdata"].tables["st"].obsm
    jobs = re.findall(r"^\./run (\w+)", (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    script = (FOLDER.parents[1] / "run").read_text(encoding="utf-8")
    assert jobs
    assert [job for job in jobs if f"\n  {job})\n" not in script] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_says_what_it_needs(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.split()) <= 300
    assert "**You need**" in text
    assert "**Next:**" in text


def test_every_page_has_a_card():
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert [page.stem for page in PAGES if f":link: {page.stem}\n" not in index] == []

"""The calls of the page "Coming from ...", on files of the form that its lines in R write."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyimzml.ImzMLWriter import ImzMLWriter
from scipy.io import mmwrite

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "coming_from.md"
MZ = [104.107, 760.5851]
ROWS, COLS = 3, 4


def _raster(step=1.0, start=1.0):
    y, x = (a.ravel() * step + start for a in np.indices((ROWS, COLS)))
    return x, y, np.random.default_rng(0).gamma(2, 10, (ROWS * COLS, len(MZ))).round(3)


@pytest.fixture
def files(tmp_path):
    """What the lines in R write; returns the intensities."""
    x, y, values = _raster()
    with ImzMLWriter(str(tmp_path / "section.imzML"), mode="continuous") as writer:
        for place, spectrum in zip(zip(x.astype(int), y.astype(int), strict=True), values, strict=True):
            writer.addSpectrum(MZ, spectrum, (int(place[0]), int(place[1])))
    # write.csv: row names in a column without a name, text in quotes; format() pads numbers to one width
    rows = ['"","x","y"," 104.1070","760.5851"']
    rows += [f'"{i}",{a:.0f},{b:.0f},{v[0]},{v[1]}' for i, (a, b, v) in enumerate(zip(x, y, values, strict=True), 1)]
    (tmp_path / "section_cardinal.csv").write_text("\n".join(rows) + "\n")
    for name, columns in (("spamtp", ["x", "y"]), ("spata", ["x_orig", "y_orig"])):
        table = pd.DataFrame(np.column_stack([x, y, values]), columns=[*columns, *(f"mz-{mz}" for mz in MZ)])
        table.to_csv(tmp_path / f"section_{name}.csv", index=False)
    row, col = (a.ravel() for a in np.indices((4, 4)))
    spots = pd.DataFrame({"imagerow": 173.2 * row, "imagecol": 200.0 * col + 100 * (row % 2)})
    spots.index = [f"AAAC{i:04d}-1" for i in range(len(spots))]
    spots.to_csv(tmp_path / "spots.csv")
    counts = np.random.default_rng(1).poisson(2, (5, len(spots)))
    mmwrite(tmp_path / "counts.mtx", sp.coo_matrix(counts))
    pd.DataFrame({"gene": [f"Gene{i}" for i in range(5)]}).to_csv(tmp_path / "genes.csv", index=False)
    on_spots = pd.DataFrame(np.arange(2.0 * len(spots)).reshape(-1, 2), index=spots.index, columns=MZ)
    on_spots.iloc[1:].to_csv(tmp_path / "metabolites.csv")
    return values, counts


@pytest.mark.filterwarnings("ignore:The default value for `spmatrix`:DeprecationWarning")
@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of the source distribution")
def test_the_calls_of_the_page(files, tmp_path, monkeypatch):
    values, counts = files
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    space: dict = {}
    read = 0
    for block in blocks:
        if "read_spata" in block:  # tests/io/test_read_spata.py
            continue
        exec(block, space)
        if "msi = stmsi.io" in block:
            read += 1
            table = space["msi"].tables["msi"]
            np.testing.assert_allclose(table.X.toarray(), values, rtol=1e-5)
            np.testing.assert_allclose(table.var["mz"], MZ, rtol=1e-6)
            assert table.obs["row"].max() + 1 == ROWS
            assert table.obs["col"].max() + 1 == COLS
    assert read == 4
    sdata, st = space["sdata"], space["st"]
    np.testing.assert_array_equal(sdata.tables["st"].X.toarray(), counts.T)
    assert sorted(sdata.shapes) == ["s1_pixels", "s1_spots"]
    # 200 pixels of half a micrometre between neighbours
    assert np.diff(sdata.tables["st"].obsm["spatial"][:2, 0]) == pytest.approx(100)
    assert st.obsm["msi"].columns.tolist() == ["104.107", "760.5851"]
    assert st.uns["msi"]["features"]["mz"].tolist() == MZ
    assert st.obsm["msi"].isna().all(axis=1).tolist() == [True] + [False] * 15

"""The calls of the page "I have only AnnData", on files of the forms that it names."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData, read_h5ad
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Scale

import stmsi

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "only_anndata.md"
UM_PER_PX = 0.5


@pytest.fixture
def files(tmp_path):
    """Spots in pixels, pixels on a raster, matched metabolites, and cells as spatialdata-io stores them."""
    toy = stmsi.datasets.toy()
    table = toy.tables["st"]
    table = table[table.obs["sample"] == "P1S1"]
    factors = {"spot_diameter_fullres": 65 / UM_PER_PX, "tissue_hires_scalef": 0.1}

    def visium(name):
        st = AnnData(table.X.copy(), obs=table.obs[["array_row", "array_col"]].copy(), var=table.var.copy())
        st.obs_names = [f"AAAC{i:04d}-1" for i in range(st.n_obs)]
        st.obsm["spatial"] = table.obsm["spatial"] / UM_PER_PX
        st.uns["spatial"] = {name: {"scalefactors": dict(factors), "images": {}}}
        return st

    visium("lib").write_h5ad(tmp_path / "visium.h5ad")
    parts = {name: visium(name) for name in ("a", "b")}
    parts["b"].obsm["spatial"] *= UM_PER_PX / 0.25
    parts["b"].uns["spatial"]["b"]["scalefactors"]["spot_diameter_fullres"] = 65 / 0.25
    both = AnnData(
        np.vstack([p.X.toarray() for p in parts.values()]),
        obs=pd.concat([p.obs.assign(library_id=n) for n, p in parts.items()]).set_axis(
            [f"spot{i}" for i in range(2 * table.n_obs)]
        ),
        var=table.var.copy(),
        obsm={"spatial": np.vstack([p.obsm["spatial"] for p in parts.values()])},
        uns={"spatial": {n: p.uns["spatial"][n] for n, p in parts.items()}},
    )
    both.write_h5ad(tmp_path / "two_sections.h5ad")
    rng = np.random.default_rng(0)
    names = ["18:1/16:0", "PC(34:1)", "PE 36:2"]
    spots = visium("lib").obs_names[3:]
    lipids = pd.DataFrame(rng.gamma(1, 5, (len(spots), 3)), index=spots, columns=names)
    lipids.where(lipids > 2, 0).sample(frac=1, random_state=0).to_csv(tmp_path / "lipids.csv")
    pd.DataFrame({"mz": [522.2, 760.585]}, index=names[:2]).to_csv(tmp_path / "masses.csv")
    pixels = toy.tables["msi"][toy.tables["msi"].obs["sample"] == "P1S1"]
    for mode in ("positive", "negative"):
        AnnData(pixels.X.copy(), obs=pixels.obs[["row", "col"]].copy(), var=pixels.var[["mz"]].copy()).write_h5ad(
            tmp_path / f"{mode}.h5ad"
        )
    xy, cells = rng.uniform(0, 300, (20, 2)), [f"cell-{i}" for i in range(20)]
    frames = {"global": Scale([4.7, 4.7], axes=("x", "y"))}
    outlines = GeoDataFrame(geometry=shapely.box(*(xy - 4).T, *(xy + 4).T), index=pd.Index(cells))
    counts = AnnData(rng.poisson(2, (20, 3)).astype(np.float32), obs=pd.DataFrame({"cell_id": cells}, index=cells))
    counts.obs["region"] = pd.Categorical(["cell_circles"] * 20)
    SpatialData(
        shapes={
            "cell_circles": ShapesModel.parse(
                xy, geometry=0, radius=np.full(20, 5.0), index=pd.Index(cells), transformations=frames
            ),
            "cell_boundaries": ShapesModel.parse(outlines, transformations=frames),
        },
        tables={"table": TableModel.parse(counts, region="cell_circles", region_key="region", instance_key="cell_id")},
        attrs={"spatialdata_io_reader": "xenium"},
    ).write(tmp_path / "xenium.zarr")
    return table.obsm["spatial"], lipids, xy


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.filterwarnings("ignore:The object has been:UserWarning")
@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of the source distribution")
def test_the_calls_of_the_page(files, tmp_path, monkeypatch):
    um, lipids, cells = files
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, space)
        if block is blocks[0]:
            np.testing.assert_allclose(space["sdata"].tables["st"].obsm["spatial"], um, rtol=1e-6)
        elif block is blocks[1]:
            np.testing.assert_allclose(space["sdata"].tables["st"].obsm["spatial"], np.vstack([um, um]), rtol=1e-6)
    st = read_h5ad("predicted.h5ad")
    assert st.obsm["msi_pred"].columns.tolist() == ["18_1_16_0", "PC_34_1", "PE_36_2"]
    assert st.obsm["msi"].notna().all(axis=1).tolist() == [False] * 3 + [True] * len(lipids)
    both = space["mapped"]["positive"].tables["st"].obsm["msi"]
    assert both.shape[1] == 24
    np.testing.assert_array_equal(both.iloc[:, :12], both.iloc[:, 12:])
    np.testing.assert_allclose(space["sdata"].tables["st"].obsm["spatial"], cells)
    assert np.allclose(space["sdata"].shapes["s1_spots"].area, 64)

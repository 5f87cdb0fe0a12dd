import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi.datasets import read_desium
from stmsi.datasets._read_desium import counts_of_log1p

MZ = np.array([255.2330, 281.2486, 885.5499])
ROWS, COLS, GENES = 5, 6, 7


def _section(seed=0, *, x="counts", array=True):
    """A section as in the deposit: places in pixels of a slide that lies askew, MSI of every spot in uns."""
    rng = np.random.default_rng(seed)
    row, col = (a.ravel() for a in np.indices((ROWS, COLS)))
    col = 2 * col + row % 2
    um = np.column_stack([50.0 * col, 50 * np.sqrt(3) * row])
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    counts = rng.poisson(3, (len(um), GENES)).astype(np.float32)
    counts[:, 0] = 1
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    values = {"counts": counts, "log1p": log}[x]
    adata = AnnData(sp.csr_matrix(values), obs=pd.DataFrame(index=[f"b{i}" for i in range(len(um))]))
    adata.var_names = [f"GENE{i}" for i in range(GENES)]
    adata.layers["log1p"] = sp.csr_matrix(log)
    adata.obsm["spatial"] = um @ turn / 0.4 + 2000
    if array:
        adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns["msi"] = rng.gamma(2, 10, (len(um), len(MZ)))
    adata.uns["mz_features"] = MZ
    return adata, counts


def test_a_section_maps_to_its_own_values(tmp_path, through_zarr):
    adata, counts = _section()
    adata.uns["msi"][3] = np.nan  # a spot without MSI
    adata.write_h5ad(tmp_path / "LC_091.h5ad")
    sdata = read_desium(tmp_path / "LC_091.h5ad")
    st = sdata.tables["st"]
    np.testing.assert_array_equal(st.X.toarray(), counts)
    assert set(st.obs["patient"]) == {"LC_091"}
    # neighbours lie 100 um apart
    assert np.linalg.norm(np.diff(st.obsm["spatial"][:2], axis=0)) == pytest.approx(100)
    assert sdata.tables["msi"].n_obs == ROWS * COLS - 1
    assert stmsi.pp.alignment_report(sdata).loc["LC_091", "aligned"]
    stmsi.pp.map_to_spots(sdata)
    np.testing.assert_allclose(st.obsm["msi"].to_numpy(), adata.uns["msi"], rtol=1e-5)
    assert st.obs["msi_coverage"].drop("b3").to_numpy() == pytest.approx(1)
    assert st.obs["msi_coverage"]["b3"] == 0
    assert sdata.tables["msi"].var["mz"].tolist() == MZ.tolist()
    again = through_zarr(sdata)
    np.testing.assert_allclose(again.tables["st"].obsm["msi"].to_numpy(), adata.uns["msi"], rtol=1e-5)


def test_sections_of_a_folder_and_their_patients(tmp_path):
    for seed, name in enumerate(["BC_515_Section_1", "BC_515_Section_2", "LC_276"]):
        _section(seed, array=seed != 1)[0].write_h5ad(tmp_path / f"{name}.h5ad")
    sdata = read_desium(tmp_path)
    st = sdata.tables["st"]
    pairs = dict(st.obs[["sample", "patient"]].drop_duplicates().to_numpy())
    assert pairs == {"BC_515_Section_1": "BC_515", "BC_515_Section_2": "BC_515", "LC_276": "LC_276"}
    assert sdata.tables["msi"].n_vars == len(MZ)
    some = read_desium(
        [tmp_path / "LC_276.h5ad", tmp_path / "BC_515_Section_1.h5ad"], sample="LC_276", patient={"LC_276": "p1"}
    )
    assert set(some.tables["st"].obs["patient"]) == {"p1"}
    with pytest.raises(KeyError, match=r"No section 'LC_277'.*Did you mean 'LC_276'"):
        read_desium(tmp_path, sample="LC_277")


def test_counts_are_recovered_from_log1p(tmp_path):
    adata, counts = _section(x="log1p")
    adata.write_h5ad(tmp_path / "a.h5ad")
    sdata = read_desium(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(sdata.tables["st"].X.toarray(), counts)
    assert "recovered" in sdata.tables["msi"].uns["msi"]["attrs"]["a"]["counts"]
    # values that are no counts of any scale
    adata.X.data += np.random.default_rng(0).random(adata.X.nnz)
    adata.layers["log1p"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "b.h5ad")
    with pytest.warns(UserWarning, match="counts cannot be recovered"):
        sdata = read_desium(tmp_path / "b.h5ad")
    np.testing.assert_allclose(sdata.tables["st"].X.toarray(), np.expm1(adata.X.toarray()), rtol=1e-5)
    del adata.layers["log1p"]
    adata.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(ValueError, match="holds no counts"):
        read_desium(tmp_path / "c.h5ad")


def test_recovered_counts_have_empty_rows():
    counts = sp.csr_matrix(np.array([[0, 0, 0], [1, 7, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32))
    np.testing.assert_array_equal(counts_of_log1p((counts * 0.37).log1p()).toarray(), counts.toarray())
    assert counts_of_log1p(sp.csr_matrix(np.array([[1.0, 1.3]]))) is None


def test_scale_of_the_places(tmp_path):
    adata, _ = _section()
    adata.write_h5ad(tmp_path / "a.h5ad")
    st = read_desium(tmp_path / "a.h5ad", um_per_unit=0.5).tables["st"]
    assert np.linalg.norm(np.diff(st.obsm["spatial"][:2], axis=0)) == pytest.approx(125)
    alone = adata[:1].copy()
    alone.uns["msi"] = adata.uns["msi"][:1]
    alone.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match="do not tell their scale; pass um_per_unit="):
        read_desium(tmp_path / "b.h5ad")


def _without(key):
    def change(adata):
        del adata.uns[key]

    return change


def _set(**uns):
    return lambda adata: adata.uns.update(uns)


BAD = {
    "no MSI": (_without("msi"), KeyError, r"uns has no 'msi'; found 'mz_features'"),
    "no m/z": (_without("mz_features"), KeyError, r"uns has no 'mz_features'; found 'msi'"),
    "too few m/z": (_set(mz_features=MZ[:2]), ValueError, r"shape \(30, 3\); expected \(30, 2\)"),
    "m/z of text": (
        _set(mz_features=np.array(["a", "281.2", "mz-885.5"])),
        ValueError,
        "must hold m/z in Da, found 'a'",
    ),
    "negative": (_set(msi=np.full((30, 3), -1.0)), ValueError, "90 intensities are negative"),
    "partly NaN": (_set(msi=np.where(np.eye(30, 3) > 0, np.nan, 1.0)), ValueError, "3 intensities are NaN"),
    "no places": (lambda adata: adata.obsm.pop("spatial"), KeyError, r"no obsm\['spatial'\]"),
    "places of one column": (lambda adata: adata.obsm.update(spatial=np.ones((30, 1))), ValueError, "finite x and y"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_raise(tmp_path, case):
    change, error, message = BAD[case]
    adata, _ = _section()
    change(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(error, match=message):
        read_desium(tmp_path / "a.h5ad")


def test_files_that_are_no_h5ad_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_desium(tmp_path / "a.h5ad")
    with pytest.raises(FileNotFoundError, match=r"holds no .h5ad; found none"):
        read_desium(tmp_path)
    (tmp_path / "a.h5ad").write_text("text")
    with pytest.raises(ValueError, match="cannot be read as an h5ad file"):
        read_desium(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "b.h5ad", "w") as file:
        file.create_group("matrix")
    with pytest.raises(ValueError, match="not an AnnData"):
        read_desium(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match="Every section needs one file"):
        read_desium([tmp_path / "b.h5ad", tmp_path / "b.h5ad"])

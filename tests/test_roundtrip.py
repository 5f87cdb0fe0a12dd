"""What preprocessing writes survives every storage format unchanged."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import deepcopy, read_zarr
from spatialdata.transformations import get_transformation

import stmsi

LIPIDS = ["PC(34:1)", "18:1/16:0", "PC 34:1", "Cer d18:1/24:0", "lactate"]


@pytest.fixture(scope="module")
def processed():
    """Three sections, the last without MSI, with lipid names, after the whole chain; not to be changed."""
    toy = stmsi.datasets.toy()
    st, msi = toy.tables["st"].copy(), toy.tables["msi"]
    for key in ("truth_intensity", "truth_presence"):  # each column takes its time to write
        del st.obsm[key]
    msi = msi[(msi.obs["sample"] != "P3S1").to_numpy(), : len(LIPIDS)].copy()
    msi.var["name"] = LIPIDS
    msi.var_names = LIPIDS
    sdata = stmsi.pp.combine(st, msi, pixel_size=50)
    truth = st.uns["truth"]["transformation"]
    stmsi.pp.filter_metabolites(sdata, min_prevalence=0.01)
    stmsi.pp.normalize_msi(sdata, winsorize=0.99)
    stmsi.pp.align(sdata, transformation={"P1S1": truth["P1S1"]})
    points = {s: np.array([[0.0, 0], [500, 0], [0, 500], [400, 600]]) for s in ["P2S1"]}
    moved = points["P2S1"] @ truth["P2S1"][:2, :2].T + truth["P2S1"][:2, 2]
    stmsi.pp.align(sdata, landmarks={"P2S1": (points["P2S1"], moved)})
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5, method="nearest", replicates=True)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.spatial_graph(sdata)
    sdata.tables["st"].obs["cluster"] = sdata.tables["st"].obs["domain"].astype(str) + "/x"
    stmsi.pp.gene_signatures(sdata, n_genes=10)
    stmsi.pp.knowledge_prior(sdata, {"PC 34:1": st.var_names[:3].tolist(), "lactic acid": [st.var_names[7]]}, ppm=5)
    return sdata


def _same(found, expected, where=""):
    """Equal after a round trip; text and its containers may change their type, numbers may not."""
    if isinstance(expected, dict) or (hasattr(expected, "keys") and not isinstance(expected, pd.DataFrame)):
        expected = {k: v for k, v in expected.items() if k is not None}  # anndata lists X among the layers
        assert set(found.keys()) - {None} == set(expected), where
        for key, value in expected.items():
            _same(found[key], value, f"{where}/{key}")
    elif isinstance(expected, pd.DataFrame):
        assert isinstance(found, pd.DataFrame), where
        assert found.columns.tolist() == expected.columns.tolist(), where
        assert found.index.tolist() == expected.index.tolist(), where
        for column in expected:
            a, b = found[column], expected[column]
            if pd.api.types.is_numeric_dtype(b) or b.dtype == bool:
                assert a.dtype == b.dtype, f"{where}[{column}]"
                np.testing.assert_array_equal(a, b, err_msg=f"{where}[{column}]")
            else:
                assert isinstance(a.dtype, pd.CategoricalDtype) or not isinstance(b.dtype, pd.CategoricalDtype)
                assert a.astype(object).tolist() == b.astype(object).tolist(), f"{where}[{column}]"
    elif sp.issparse(expected):
        assert found.format == expected.format, where
        assert found.dtype == expected.dtype, where
        assert (found != expected).nnz == 0, where
    elif isinstance(expected, np.ndarray) and expected.dtype.kind in "fiub":
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        a, b = (v.tolist() if hasattr(v, "tolist") else v for v in (found, expected))
        assert a == b, where


def _same_table(found, expected):
    for part in ("X", "obs", "var", "obsm", "varm", "obsp", "layers", "uns"):
        _same(getattr(found, part), getattr(expected, part), part)


def test_the_fixture_holds_what_must_survive(processed):
    st, msi = processed.tables["st"], processed.tables["msi"]
    assert msi.var_names.tolist() == ["PC_34_1", "18_1_16_0", "PC_34_1_2", "Cer_d18_1_24_0", "lactate"]
    assert msi.var["name"].tolist() == LIPIDS
    frame = st.obsm["msi"]
    third = (st.obs["sample"] == "P3S1").to_numpy()
    assert frame[third].isna().all(axis=None)
    assert frame[~third].isna().any(axis=None)
    assert (frame == 0).any(axis=None)
    assert st.uns["msi"]["features"]["name"].tolist() == LIPIDS
    assert st.uns["msi"]["detection_limit"].columns.tolist() == ["P1S1", "P2S1", "P3S1"]
    assert {"params", "presence"} <= set(st.uns["msi"])
    assert list(msi.uns["alignment"]) == ["P1S1", "P2S1"]


@pytest.mark.parametrize("table", ["st", "msi"])
def test_h5ad(processed, table, tmp_path):
    expected = processed.tables[table]
    expected.copy().write_h5ad(tmp_path / "a.h5ad")
    _same_table(ad.read_h5ad(tmp_path / "a.h5ad"), expected)


# anndata < 0.13 announces that it will write another version of zarr
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("table", ["st", "msi"])
def test_zarr_table(processed, table, tmp_path):
    expected = processed.tables[table]
    expected.copy().write_zarr(tmp_path / "a.zarr")
    _same_table(ad.read_zarr(tmp_path / "a.zarr"), expected)


def test_spatialdata(processed, tmp_path):
    sdata = deepcopy(processed)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    for table in ("st", "msi"):
        _same_table(back.tables[table], processed.tables[table])
    assert set(back.shapes) == set(processed.shapes)
    for name, shapes in processed.shapes.items():
        assert back.shapes[name].geometry.geom_equals_exact(shapes.geometry, 0).all()
        frames, found = (get_transformation(s, get_all=True) for s in (shapes, back.shapes[name]))
        assert set(found) == set(frames)
        for frame, transformation in frames.items():
            a, b = (t.to_affine_matrix(("x", "y"), ("x", "y")) for t in (found[frame], transformation))
            np.testing.assert_array_equal(a, b)
    # and work goes on with what was read
    before = back.tables["st"].obsm["msi"].copy()
    stmsi.pp.map_to_spots(back, min_coverage=0.5, method="nearest", replicates=True)
    pd.testing.assert_frame_equal(back.tables["st"].obsm["msi"], before)
    stmsi.pp.call_presence(back)
    pd.testing.assert_frame_equal(back.tables["st"].obsm["msi_presence"], processed.tables["st"].obsm["msi_presence"])
    report = stmsi.pp.alignment_report(back)
    pd.testing.assert_frame_equal(report, stmsi.pp.alignment_report(processed), check_dtype=False)


def test_what_cleaning_writes(processed, tmp_path):
    sdata = deepcopy(processed)
    sdata.tables["msi"].obs["mine"] = sdata.tables["msi"].obs["col"] > 3
    stmsi.pp.normalize_msi(sdata, tissue="mine")
    sdata.tables["msi"].var["mz"] = [760.5851, 203.0526, 132.0768, 400.0, np.nan]
    stmsi.pp.annotate_mz(sdata, polarity="positive", matrix="DHB")
    stmsi.pp.select_spatially_variable(sdata, n_top=3, tissue_key="on_tissue")
    stmsi.pp.impute_dropout(sdata)
    stmsi.pp.correct_batch(sdata, method="quantile")
    assert len(sdata.tables["msi"].uns["annotation"]["candidates"]) >= 3
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    for table in ("st", "msi"):
        _same_table(back.tables[table], sdata.tables[table])
    stmsi.pp.annotate_mz(back, polarity="positive", matrix="DHB")
    assert back.tables["msi"].var["name"].tolist() == sdata.tables["msi"].var["name"].tolist()
    stmsi.pp.correct_batch(back, method="none")
    stmsi.pp.impute_dropout(back)


def test_the_comparison_sees_a_difference(processed):
    for change in (
        lambda t: t.obsm["msi"].iloc.__setitem__((0, 0), 17),
        lambda t: t.uns["msi"]["detection_limit"].iloc.__setitem__((0, 0), -1.0),
        lambda t: t.uns["msi"]["params"].__setitem__("min_coverage", 0.4),
        lambda t: t.varm["signature"].iloc.__setitem__((0, 0), not t.varm["signature"].iloc[0, 0]),
    ):
        table = AnnData.copy(processed.tables["st"])
        change(table)
        with pytest.raises(AssertionError):
            _same_table(table, processed.tables["st"])

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import stmsi


@pytest.fixture
def panels(st):
    """Two sections with different lists of ions, measured and named apart: four ions are in both."""
    out = []
    for section, columns, shift in (("P1S1", slice(0, 8), 0.0), ("P2S1", slice(4, 12), 2e-6)):
        own = st[st.obs["sample"] == section].copy()
        for key in ("msi", "msi_presence"):
            own.obsm[key] = own.obsm[key].iloc[:, columns]
        features = own.uns["msi"]["features"].iloc[columns].copy()
        features["mz"] *= 1 + shift
        own.uns["msi"] = {"features": features, "params": own.uns["msi"]["params"]}
        if shift:
            new = {m: f"ion_{features.loc[m, 'mz']:.3f}" for m in features.index}
            own.obsm["msi"], own.obsm["msi_presence"] = (
                own.obsm[k].rename(columns=new) for k in ("msi", "msi_presence")
            )
            own.uns["msi"]["features"] = features.rename(index=new).assign(name=list(new.values()))
        out.append(own)
    return out


def test_all_tables_have_the_same_metabolites(panels, st):
    before = [p.obsm["msi"].copy() for p in panels]
    assert stmsi.pp.match_metabolites(panels, mz_tolerance=5) is None
    one, two = panels
    columns = list(one.obsm["msi"].columns)
    assert len(columns) == 12
    assert columns[:8] == list(before[0].columns), "named after the first table that has them"
    assert all(list(p.obsm[k].columns) == columns for p in panels for k in ("msi", "msi_presence"))
    assert_frame_equal(one.obsm["msi"].iloc[:, :8], before[0])
    assert one.obsm["msi"].iloc[:, 8:].isna().all(axis=None)
    assert two.obsm["msi"].iloc[:, :4].isna().all(axis=None)
    np.testing.assert_array_equal(two.obsm["msi"].iloc[:, 4:], before[1])
    assert (two.obsm["msi"].dtypes == np.float32).all()


def test_the_feature_table_tells_the_mass_in_each_section(panels):
    masses = [p.uns["msi"]["features"]["mz"].to_numpy() for p in panels]
    stmsi.pp.match_metabolites(panels, mz_tolerance=5)
    for p in panels:
        features, section_mz = p.uns["msi"]["features"], p.uns["msi"]["section_mz"]
        assert list(features.index) == list(section_mz.index) == list(p.obsm["msi"].columns)
        np.testing.assert_array_equal(features["mz"][:8], masses[0])
        np.testing.assert_array_equal(section_mz["P2S1"][4:], masses[1])
        assert section_mz.isna().sum().to_dict() == {"P1S1": 4, "P2S1": 4}


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_concatenation_keeps_what_is_unknown(panels, join, tmp_path):
    stmsi.pp.match_metabolites(panels, mz_tolerance=5)
    both = ad.concat(panels, join=join, merge="first", uns_merge="first")
    measured = both.obsm["msi"].notna().groupby(both.obs["sample"], observed=True).any()
    assert measured.sum(axis=1).to_dict() == {"P1S1": 8, "P2S1": 8}
    assert stmsi.get.feature_table(both).shape[0] == 12
    both.write_h5ad(tmp_path / "a.h5ad")
    assert_frame_equal(ad.read_h5ad(tmp_path / "a.h5ad").obsm["msi"], both.obsm["msi"])


def test_copies(panels):
    before = [p.obsm["msi"].copy() for p in panels]
    out = stmsi.pp.match_metabolites(panels, mz_tolerance=5, copy=True)
    for p, b, o in zip(panels, before, out, strict=True):
        assert_frame_equal(p.obsm["msi"], b)
        assert o.obsm["msi"].shape[1] == 12
    again = stmsi.pp.match_metabolites(out, mz_tolerance=5, copy=True)
    for a, o in zip(again, out, strict=True):
        assert_frame_equal(a.obsm["msi"], o.obsm["msi"])
        assert_frame_equal(a.uns["msi"]["section_mz"], o.uns["msi"]["section_mz"])


def test_limits_of_detection_stay_side_by_side(panels):
    for p in panels:
        stmsi.pp.call_presence(p)
    limits = [p.uns["msi"]["detection_limit"].to_numpy().ravel() for p in panels]
    stmsi.pp.match_metabolites(panels, mz_tolerance=5)
    united = panels[0].uns["msi"]["detection_limit"]
    assert list(united.columns) == ["P1S1", "P2S1"]
    np.testing.assert_array_equal(united["P2S1"][4:], limits[1])
    assert united["P2S1"][:4].isna().all()


def test_bad_input(panels):
    one, two = panels
    with pytest.raises(ValueError, match="at least two tables, found 1"):
        stmsi.pp.match_metabolites([one])
    with pytest.raises(ValueError, match="Sections must be unique; repeated: 'P1S1'"):
        stmsi.pp.match_metabolites([one, one.copy()])
    with pytest.raises(ValueError, match="mz_tolerance must be a positive number, found -1"):
        stmsi.pp.match_metabolites(panels, mz_tolerance=-1)
    with pytest.raises(TypeError, match="Expected an AnnData"):
        stmsi.pp.match_metabolites([one, "two.h5ad"])
    with pytest.raises(ValueError, match="is a view"):
        stmsi.pp.match_metabolites([one, two[:5]])
    other = two.copy()
    other.uns["msi"]["params"] = {"normalize_msi": {"method": "rms"}}
    with pytest.raises(ValueError, match=r"normalised differently \(P1S1: .*'tic'.*; P2S1: .*'rms'"):
        stmsi.pp.match_metabolites([one, other])
    other = two.copy()
    other.uns["msi"]["features"] = other.uns["msi"]["features"].drop(columns="mz")
    with pytest.raises(KeyError, match=r"has no table with the m/z of the metabolites in column 'mz'"):
        stmsi.pp.match_metabolites([one, other])
    other.uns["msi"]["features"] = two.uns["msi"]["features"].iloc[1:]
    with pytest.raises(KeyError, match=r"lacks metabolites of obsm\['msi'\]: 'ion_"):
        stmsi.pp.match_metabolites([one, other])
    del other.obsm["msi"]
    with pytest.raises(KeyError, match=r"obsm has no 'msi'.*map_to_spots writes it"):
        stmsi.pp.match_metabolites([one, other])
    other = two.copy()
    features = other.uns["msi"]["features"]
    mz = one.uns["msi"]["features"]["mz"].iloc[0]
    other.uns["msi"]["features"] = features.assign(mz=[mz - 1e-3, mz + 1e-3, *features["mz"][2:]])
    with pytest.raises(ValueError, match=r"Ion 'simPC\(28:0\)' of P1S1 .* is as near to 'ion_.* of P2S1"):
        stmsi.pp.match_metabolites([one, other])
    assert one.obsm["msi"].shape[1] == 8, "nothing changes where matching fails"
    pd.testing.assert_index_equal(two.obsm["msi"].columns, two.uns["msi"]["features"].index, check_names=False)


def test_all_layers_of_the_metabolites_are_renamed(toy):
    stmsi.pp.align(toy)
    stmsi.pp.map_to_spots(toy, replicates=True)
    stmsi.pp.call_presence(toy)
    stmsi.pp.impute_dropout(toy)
    st = toy.tables["st"]
    first, second = (st[st.obs["sample"] == name].copy() for name in ("P1S1", "P2S1"))
    names = [f"q_{m}" for m in second.obsm["msi"].columns]
    for key in [k for k in second.obsm if k.startswith("msi")]:
        second.obsm[key] = second.obsm[key].set_axis(names, axis=1)
    second.uns["msi"] = dict(second.uns["msi"]) | {"features": second.uns["msi"]["features"].set_axis(names)}
    stmsi.pp.match_metabolites([first, second])
    for table in (first, second):
        for key in ("msi", "msi_presence", "msi_variance", "msi_half_1", "msi_half_2", "msi_observed"):
            assert list(table.obsm[key]) == list(first.obsm["msi"]), key
        assert all(dtype.kind == "b" for dtype in table.obsm["msi_observed"].dtypes)
    stmsi.tl.noise_ceiling(second)

import logging

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation

import stmsi
from stmsi._data.sections import msi_section, st_section
from stmsi._data.tables import as_csr, layer_names

XY = np.array([[0.0, 0.0], [100.0, 0.0], [50.0, 86.6]])
CONTAINERS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dask": lambda x: da.from_array(x, chunks=(2, -1)),
    "dask of csr": lambda x: da.from_array(x, chunks=(2, -1)).map_blocks(sp.csr_matrix),
}


def _st(genes=("g1", "g2", "g3"), **obs):
    counts = np.arange(3 * len(genes), dtype=np.float32).reshape(3, -1)
    return AnnData(
        counts,
        obs=pd.DataFrame(obs, index=["s1", "s2", "s3"]),
        var=pd.DataFrame(index=list(genes)),
        obsm={"spatial": XY.copy()},
    )


def _msi(ions=("PC(34:1)", "18:1/16:0"), mz=(760.585, 522.2), **obs):
    obs = {"row": [0, 0, 1, 1], "col": [0, 1, 0, 1], **obs}
    values = np.arange(4.0 * len(ions)).reshape(4, -1)
    var = pd.DataFrame({"mz": mz}, index=list(ions))
    return AnnData(values, obs=pd.DataFrame(obs, index=list("abcd")), var=var)


def _combine(st=None, msi=None, **kwargs):
    st, msi = _st() if st is None else st, _msi() if msi is None else msi
    return stmsi.pp.combine({"A": st}, {"A": msi}, **{"pixel_size": 50, **kwargs})


def test_one_section():
    sdata = _combine(msi=_msi(note=list("wxyz")))
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    assert sorted(sdata.shapes) == ["A_pixels", "A_spots"]
    assert sorted(sdata.coordinate_systems) == ["A", "A_msi"]
    np.testing.assert_array_equal(st.X.toarray(), _st().X)
    np.testing.assert_array_equal(st.obsm["spatial"], XY)
    np.testing.assert_array_equal(sdata.shapes["A_spots"].geometry.x, XY[:, 0])
    assert (sdata.shapes["A_spots"]["radius"] == 27.5).all()
    assert sp.isspmatrix_csr(st.X)
    assert sp.isspmatrix_csr(msi.X)
    assert msi.X.dtype == np.float32
    assert msi.var_names.tolist() == ["PC_34_1", "18_1_16_0"]
    assert msi.var["name"].tolist() == ["PC(34:1)", "18:1/16:0"]
    assert msi.var["mz"].tolist() == [760.585, 522.2]
    assert msi.obs["note"].tolist() == list("wxyz")
    assert msi.obs_names.tolist() == ["A_0_0", "A_0_1", "A_1_0", "A_1_1"]
    assert msi.varm["measured"]["A"].tolist() == [True, True]
    for table in (st, msi):
        TableModel.validate(table)
        assert table.obs["sample"].tolist() == ["A"] * table.n_obs


def test_pixels_are_squares_at_their_row_and_column():
    shapes = _combine(pixel_size=(40, 20)).shapes["A_pixels"]
    np.testing.assert_array_equal(shapes.bounds, [[0, 0, 40, 20], [40, 0, 80, 20], [0, 20, 40, 40], [40, 20, 80, 40]])
    table = _combine(pixel_size=(40, 20)).tables["msi"]
    np.testing.assert_array_equal(table.obsm["spatial"], [[20, 10], [60, 10], [20, 30], [60, 30]])


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_containers(container):
    st, msi = _st(), _msi()
    st.X, msi.X = container(st.X), container(msi.X)
    sdata = _combine(st, msi)
    np.testing.assert_array_equal(sdata.tables["st"].X.toarray(), _st().X)
    np.testing.assert_array_equal(sdata.tables["msi"].X.toarray(), _msi().X)


def test_several_sections_three_ways():
    mapping = stmsi.pp.combine({"A": _st(), "B": _st()}, {"B": _msi()}, pixel_size=50)
    listed = stmsi.pp.combine([_st(sample="A"), _st(sample="B")], [_msi(sample="B")], pixel_size=50)
    both = ad.concat([_st(sample="A"), _st(sample="B")], index_unique="-")
    together = stmsi.pp.combine(both, _msi(sample="B"), pixel_size=50)
    for sdata in (mapping, listed, together):
        assert sdata.tables["st"].obs["sample"].tolist() == ["A"] * 3 + ["B"] * 3
        assert sorted(sdata.shapes) == ["A_spots", "B_pixels", "B_spots"]
        assert sdata.tables["st"].obs_names.is_unique
        assert sdata.tables["msi"].obs["sample"].tolist() == ["B"] * 4
    assert mapping.tables["st"].obs_names[:2].tolist() == ["A_s1", "A_s2"], "barcodes repeat from section to section"
    own = _st(section="A")
    assert stmsi.pp.combine(own, sample_key="section").tables["st"].obs["sample"].tolist() == ["A"] * 3


def test_without_msi():
    sdata = stmsi.pp.combine({"A": _st()})
    assert sorted(sdata.tables) == ["st"]


def test_spatialdata_sections():
    st = st_section(_st(), XY, sample="A", spot_diameter=55)
    msi = msi_section(_msi().X, _msi().var, [0, 0, 1, 1], [0, 1, 0, 1], sample="A", pixel_size=50)
    sdata = stmsi.pp.combine({"A": st, "B": _st()}, {"A": msi})
    assert sdata.tables["st"].obs["sample"].tolist() == ["A"] * 3 + ["B"] * 3
    assert sdata.tables["msi"].uns["msi"]["attrs"]["A"]["pixel_size"].tolist() == [50, 50]
    # aligning the whole leaves the part alone
    stmsi.pp.align(sdata, transformation={"A": np.eye(3)})
    assert list(get_transformation(msi.shapes["A_pixels"], get_all=True)) == ["A_msi"]
    with pytest.raises(ValueError, match="given as 'X' holds the sections 'A'; read it with sample='X'"):
        stmsi.pp.combine({"X": st})
    with pytest.raises(
        ValueError, match=r"expected a table 'msi' and shapes '<sample>_pixels'.*Make it with a reader of stmsi.io"
    ):
        stmsi.pp.combine(st, st)


@pytest.mark.parametrize(("join", "genes"), [("inner", ["g2", "g3"]), ("outer", ["g1", "g2", "g3", "g4"])])
def test_genes_are_joined(join, genes):
    sdata = stmsi.pp.combine({"A": _st(), "B": _st(("g2", "g3", "g4"))}, join=join)
    st = sdata.tables["st"]
    assert sorted(st.var_names) == genes
    assert st[:3, "g3"].X.toarray().ravel().tolist() == [2, 5, 8]
    assert st[3:, "g3"].X.toarray().ravel().tolist() == [1, 4, 7]
    if join == "outer":
        assert st[3:, "g1"].X.toarray().sum() == 0


def test_ions_of_every_section_are_kept_and_who_measured_them():
    first, second = _msi(("a", "b"), (100.0, 200.0)), _msi(("b", "c"), (200.0005, 300.0))
    second.var["good"], second.var["formula"] = True, ["C", "H"]
    sdata = stmsi.pp.combine({"A": _st(), "B": _st()}, {"A": first, "B": second}, pixel_size=50)
    msi = sdata.tables["msi"]
    assert msi.var_names.tolist() == ["a", "b", "c"]
    assert msi.varm["measured"]["A"].tolist() == [True, True, False]
    assert msi.varm["measured"]["B"].tolist() == [False, True, True]
    np.testing.assert_array_equal(msi.X.toarray()[:4, :2], first.X)
    np.testing.assert_array_equal(msi.X.toarray()[4:, 1:], second.X)
    assert msi.X[:4, 2].nnz == 0
    assert msi.var["mz"].tolist() == [100, 200, 300]
    assert msi.var["formula"].tolist() == ["", "C", "H"]


def test_columns_that_only_some_sections_have_can_be_written(tmp_path):
    second = _msi(("b", "c"), (200.0, 300.0))
    second.var["good"] = True
    sdata = stmsi.pp.combine(
        {"A": _st(), "B": _st()}, {"A": _msi(("a", "b"), (1.0, 200.0)), "B": second}, pixel_size=50
    )
    sdata.tables["msi"].write_h5ad(tmp_path / "a.h5ad")
    sdata.write(tmp_path / "a.zarr")
    assert read_zarr(tmp_path / "a.zarr").tables["msi"].var["good"].tolist() == ["", "True", "True"]


def test_inputs_stay_untouched():
    st, msi = _st(), _msi()
    before = st.copy(), msi.copy()
    _combine(st[:, :2], msi[:, :1])
    _combine(st, msi)
    for now, then in zip((st, msi), before, strict=True):
        np.testing.assert_array_equal(now.X, then.X)
        pd.testing.assert_frame_equal(now.obs, then.obs)
        pd.testing.assert_frame_equal(now.var, then.var)
        assert not now.uns
    assert st.obsm["spatial"] is not _combine(st, msi).tables["st"].obsm["spatial"]


def test_units_of_array_positions():
    st = _st()
    st.obsm["spatial"] = XY / 100
    with pytest.raises(ValueError, match=r"'A': neighbouring spots are 1 um apart but 55 um wide.*um_per_unit="):
        _combine(st)
    np.testing.assert_allclose(_combine(st, um_per_unit=100).tables["st"].obsm["spatial"], XY)
    assert (_combine(st, spot_diameter=0.5).shapes["A_spots"]["radius"] == 0.25).all()


def test_positions_far_apart_are_warned_of(caplog):
    st = _st()
    st.obsm["spatial"] = XY * 20
    with caplog.at_level(logging.WARNING, "stmsi"):
        _combine(st)
    assert "check um_per_unit" in caplog.text


def _with(adata, **changes):
    for name, value in changes.items():
        if name in ("X", "obs_names", "var_names"):
            setattr(adata, name, value)
        elif name == "spatial":
            adata.obsm["spatial"] = value
        else:
            adata.obs[name] = value
    return adata


@pytest.mark.parametrize(
    ("st", "message"),
    [
        (_with(_st(), spatial=np.array([[0, 0], [np.nan, 0], [1, 1]])), "Spot positions of section 'A' must be finite"),
        (
            _with(_st(), var_names=["a", "a", "b"]),
            "Gene names must be unique; repeated: 'a'. Call .var_names_make_unique",
        ),
        (_st()[:0].copy(), r"table is empty \(0 observations x 3 variables\)"),
        (_st()[:, :0].copy(), "table is empty"),
        (_st(sample=["A", "A", "B"]), r"'A' holds several sections in obs\['sample'\] \('A', 'B'\); pass it unnamed"),
    ],
    ids=["nan position", "duplicate genes", "no spots", "no genes", "several sections under one name"],
)
def test_bad_st(st, message):
    with pytest.raises(ValueError, match=message):
        _combine(st)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_duplicate_spot_names():
    with pytest.raises(
        ValueError, match=r"Spot names of section 'A' must be unique; repeated: 's1'. Call .obs_names_make_unique"
    ):
        _combine(_with(_st(), obs_names=["s1", "s1", "s3"]))


@pytest.mark.parametrize(
    ("msi", "message"),
    [
        (_with(_msi(), X=np.full((4, 2), -1.0)), "MSI intensities of section 'A' contain 8 negative values"),
        (_with(_msi(), X=np.full((4, 2), np.inf)), "contain 8 infinite values; remove or cap them"),
        (_with(_msi(), X=np.full((4, 2), np.nan)), "contain 8 NaN; fill or drop them"),
        (_with(_msi(), var_names=["a", "a"]), "Metabolite names must be unique; repeated: 'a'"),
        (_with(_msi(), row=[0, 0, 0, 0], col=[0, 0, 1, 1]), r"share a position \(row, col\): '\(0, 0\)', '\(0, 1\)'"),
        (
            _with(_msi(), row=[0.5, 0, 1, 1]),
            "need integer row and col; divide coordinates in micrometres by pixel_size",
        ),
        (_with(_msi(), col=[np.nan, 0, 1, 1]), "need integer row and col"),
        (_with(_msi(), col=["x", "0", "1", "1"]), "need integer row and col"),
        (_msi()[:0].copy(), "table is empty"),
    ],
    ids=[
        "negative",
        "infinite",
        "nan",
        "duplicate ions",
        "same place",
        "fractions",
        "nan place",
        "text place",
        "empty",
    ],
)
def test_bad_msi(msi, message):
    with pytest.raises(ValueError, match=message):
        _combine(msi=msi)


def test_wrong_keys():
    no_position = _st()
    del no_position.obsm["spatial"]
    with pytest.raises(KeyError, match=r"Section .*A.* has no obsm.*spatial.*found none"):
        _combine(no_position)
    no_row = _msi()
    del no_row.obs["row"]
    with pytest.raises(KeyError, match=r"no column 'row'; found 'col'. MSI pixels need their integer raster position"):
        _combine(msi=no_row)
    with pytest.raises(KeyError, match=r"pass a mapping \{name: section\} or add obs\['sample'\]"):
        stmsi.pp.combine([_st(), _st()])
    with pytest.raises(ValueError, match=r"obs\['sample'\] has 1 missing values"):
        stmsi.pp.combine(_st(sample=["A", None, "A"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _combine(join="left"), "join='left' is not known"),
        (lambda: _combine(pixel_size=None), r"needs pixel_size= \(micrometres\)"),
        (lambda: _combine(pixel_size=0), "pixel_size must be a positive number of micrometres, found 0"),
        (lambda: _combine(pixel_size=(50, np.nan)), "pixel_size must be a positive number"),
        (lambda: stmsi.pp.combine([]), "No ST section was given"),
        (lambda: stmsi.pp.combine({"A 1": _st()}), r"'A 1' has characters that SpatialData refuses; .*\('A_1'\)"),
        (
            lambda: stmsi.pp.combine({"A": _st()}, {"B": _msi()}, pixel_size=50),
            "without an ST section of the same name: 'B'",
        ),
        (lambda: stmsi.pp.combine([_st(sample="A"), _st(sample="A")]), "names of table 'st' repeat.*its own name"),
        (
            lambda: stmsi.pp.combine({"A": _st(), "B": _st(("x", "y"))}),
            "share no gene.*'g1', 'g2', 'g3'; 'x', 'y'.*one kind of id",
        ),
        (
            lambda: stmsi.pp.combine(
                {"A": _st(), "B": _st()}, {"A": _msi(("a",), (100.0,)), "B": _msi(("a",), (101.0,))}, pixel_size=50
            ),
            "same name have different m/z in different sections: 'a'",
        ),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("thing", ["a.h5ad", [np.ones((3, 2))]])
def test_other_things_are_refused(thing):
    with pytest.raises(TypeError, match=r"A section is an AnnData or a SpatialData, found .*Read files with stmsi.io"):
        stmsi.pp.combine(thing)


# ------------------------------------------------------------------------------------- what the user had is not lost


def test_layers_and_notes_of_ions_are_kept():
    msi = _msi()
    msi.layers["counts"] = sp.csr_matrix(msi.X * 2)
    msi.obsm["embedding"] = np.arange(8.0).reshape(4, 2)
    msi.varm["loadings"] = np.ones((2, 3))
    msi.uns["instrument"] = {"matrix": "DHB"}
    table = _combine(msi=msi).tables["msi"]
    np.testing.assert_array_equal(table.layers["counts"].toarray(), msi.layers["counts"].toarray())
    np.testing.assert_array_equal(table.obsm["embedding"], msi.obsm["embedding"])
    np.testing.assert_array_equal(table.varm["loadings"], np.ones((2, 3)))
    assert table.uns["instrument"] == {"matrix": "DHB"}


def test_x_is_no_layer_of_its_own():
    """anndata 0.13 lists X among the layers, as None."""
    msi = {"A": _msi(), "B": _msi()}
    for table in msi.values():
        table.layers["counts"] = np.asarray(table.X) * 2
    msi["B"].layers["more"] = np.asarray(table.X)
    sdata = stmsi.pp.combine({"A": _st(), "B": _st()}, msi, pixel_size=50)
    for table in sdata.tables.values():
        assert sp.isspmatrix_csr(table.X)
        assert layer_names(table) == (["counts"] if table is sdata.tables["msi"] else [])
    table = sdata.tables["msi"]
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.layers["counts"].toarray(), 2 * table.X.toarray())
    # and a table of layers alone has no X to put together
    bare = AnnData(None, obs=_msi().obs, var=_msi().var, layers={"counts": np.ones((4, 2))})
    with pytest.raises(ValueError, match="MSI section 'A' has no X; put the intensities there"):
        _combine(msi=bare)


def test_layers_of_some_sections_only_are_named(caplog):
    msi = {"A": _msi(), "B": _msi()}
    msi["A"].layers["counts"] = msi["A"].X.copy()
    sdata = stmsi.pp.combine({"A": _st(), "B": _st()}, msi, pixel_size=50)
    assert "counts" not in sdata.tables["msi"].layers
    assert "What only some MSI sections have, or have differently, is left out: layers['counts']." in caplog.text


def _paired(name, ions=("PC(34:1)", "18:1/16:0"), mz=(760.585, 522.2)):
    sdata = stmsi.pp.combine({name: _st()}, {name: _msi(ions, mz)}, pixel_size=50)
    stmsi.pp.align(sdata, transformation={name: np.diag([1.0, 1.0, 1.0])})
    return sdata


def test_objects_that_hold_both_modalities():
    a, b = _paired("A"), _paired("B", ions=("PC(34:1)",), mz=(760.585,))
    for sdata in (stmsi.pp.combine([a, b]), stmsi.pp.combine([a, b], [a, b])):
        assert sorted(sdata.shapes) == ["A_pixels", "A_spots", "B_pixels", "B_spots"]
        assert sdata.tables["msi"].obs["sample"].tolist() == ["A"] * 4 + ["B"] * 4
        assert stmsi.pp.alignment_report(sdata)["aligned"].tolist() == [True, True]
        stmsi.pp.map_to_spots(sdata)
    # a combination of combinations still knows who measured what
    again = stmsi.pp.combine([stmsi.pp.combine([a, b]), _paired("C")])
    assert again.tables["msi"].varm["measured"].loc["18:1_16:0".replace(":", "_")].tolist() == [True, False, True]
    same = stmsi.pp.combine(a, a)
    assert same.tables["msi"].n_obs == 4


def test_sections_on_different_scales_are_refused():
    a, b = _paired("A"), _paired("B")
    stmsi.pp.normalize_msi(a)
    with pytest.raises(ValueError, match=r"normalised differently \(A: \{.*; B: as measured\).*as measured"):
        stmsi.pp.combine([a, b])


def test_a_table_that_names_its_instances_otherwise():
    a = _paired("A")
    for table in a.tables.values():
        table.obs["spot_id"] = table.obs.pop("instance_id").to_numpy()
        table.uns["spatialdata_attrs"]["instance_key"] = "spot_id"
    stmsi.pp.map_to_spots(a)
    sdata = stmsi.pp.combine(a)
    stmsi.pp.map_to_spots(sdata)
    np.testing.assert_array_equal(sdata.tables["st"].obsm["msi"], a.tables["st"].obsm["msi"])


def test_two_lipids_with_one_safe_id_stay_two(tmp_path):
    """Ids are made section by section; what an ion is, its readable name says."""
    a, b = ("PC 18:1/16:0", "PC 18:1_16:0"), ("PC 18:1_16:0", "PC 18:1/16:0")
    msi = {"A": _msi(a, (700.0, 700.0)), "B": _msi(b, (700.0, 700.0))}
    msi["A"].X[:], msi["B"].X[:] = [10, 1], [1, 10]
    table = stmsi.pp.combine({"A": _st(), "B": _st()}, msi, pixel_size=50).tables["msi"]
    assert table.var["name"].tolist() == list(a)
    np.testing.assert_array_equal(table.X.toarray(), np.tile([10, 1], (8, 1)))
    # each in one section only: two ions, each measured in its own
    msi = {"A": _msi(a[:1], (700.0,)), "B": _msi(b[:1], (700.0,))}
    table = stmsi.pp.combine({"A": _st(), "B": _st()}, msi, pixel_size=50).tables["msi"]
    assert table.var["name"].tolist() == list(a)
    assert table.var_names.is_unique
    np.testing.assert_array_equal(table.varm["measured"], [[True, False], [False, True]])


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        ({}, {"um_per_unit": -1}, "um_per_unit must be a positive number, found -1"),
        ({}, {"spot_diameter": 0}, "spot_diameter must be a positive number, found 0"),
        ({}, {"pixel_size": (1, 2, 3)}, r"pixel_size is one number of micrometres or a pair \(x, y\)"),
        ({"X": np.full((3, 3), -1.0)}, {}, "Gene counts of section 'A' contain 9 negative values"),
        ({"X": np.full((3, 3), np.nan)}, {}, "Gene counts of section 'A' contain 9 NaN"),
        ({"X": None}, {}, "Section 'A' has no X; put the raw gene counts there"),
    ],
)
def test_numbers_that_cannot_be(change, options, match):
    st = _st()
    for key, value in change.items():
        setattr(st, key, value)
    with pytest.raises(ValueError, match=match):
        stmsi.pp.combine({"A": st}, {"A": _msi()}, **{"pixel_size": 50, **options})


# ----------------------------------------------------------------------------------------------- several lists of m/z


def _two_panels(first=None, second=None, **kwargs):
    first = _msi(("PC", "ion_522"), (760.5850, 522.2000)) if first is None else first
    second = _msi(("ion_522.2012", "ion_300"), (522.2012, 300.0)) if second is None else second
    return stmsi.pp.combine({"A": _st(), "B": _st()}, {"A": first, "B": second}, pixel_size=50, **kwargs)


def test_ions_are_matched_by_mass(tmp_path):
    assert _two_panels().tables["msi"].n_vars == 4, "by name they are all different"
    sdata = _two_panels(mz_tolerance=5)
    msi = sdata.tables["msi"]
    assert msi.var_names.tolist() == ["PC", "ion_522", "ion_300"]
    assert msi.var["mz"].tolist() == [760.585, 522.2, 300]
    assert msi.varm["measured"].to_numpy().tolist() == [[True, False], [True, True], [False, True]]
    np.testing.assert_array_equal(msi.varm["section_mz"], [[760.585, np.nan], [522.2, 522.2012], [np.nan, 300]])
    np.testing.assert_array_equal(msi.X.toarray()[:, 1], [1, 3, 5, 7, 0, 2, 4, 6])
    sdata.write(tmp_path / "a.zarr")
    found = read_zarr(tmp_path / "a.zarr").tables["msi"]
    pd.testing.assert_frame_equal(found.varm["section_mz"], msi.varm["section_mz"], check_names=False)


def test_what_a_section_did_not_measure_is_unknown_and_not_absent():
    sdata = _two_panels(mz_tolerance=5)
    stmsi.pp.align(sdata, transformation={"A": np.eye(3), "B": np.eye(3)})
    stmsi.pp.map_to_spots(sdata)
    st = sdata.tables["st"]
    in_a, in_b = (st.obsm["msi"][(st.obs["sample"] == s).to_numpy()] for s in "AB")
    covered = in_a["ion_522"].notna().to_numpy()
    assert covered.any()
    assert in_a["ion_300"].isna().all()
    assert in_b["PC"].isna().all()
    assert in_b["ion_300"].notna().to_numpy().tolist() == covered.tolist()
    pd.testing.assert_frame_equal(st.uns["msi"]["section_mz"], sdata.tables["msi"].varm["section_mz"])
    stmsi.pp.call_presence(sdata)
    assert st.obsm["msi_presence"].isna().equals(st.obsm["msi"].isna())
    assert list(st.uns["msi"]["detection_limit"].columns) == ["A", "B"]


def test_prevalence_is_of_the_sections_that_measured_the_ion():
    sdata = _two_panels(mz_tolerance=5)
    stmsi.pp.filter_metabolites(sdata, min_prevalence=0)
    assert sdata.tables["msi"].var["prevalence"].to_dict() == {"PC": 0.75, "ion_522": 0.875, "ion_300": 1.0}


def test_united_sections_can_be_united_again():
    third = stmsi.pp.combine({"C": _st()}, {"C": _msi(("x", "y"), (300.0006, 522.1995))}, pixel_size=50)
    msi = stmsi.pp.combine([_two_panels(mz_tolerance=5), third], mz_tolerance=5).tables["msi"]
    assert msi.var_names.tolist() == ["PC", "ion_522", "ion_300"]
    assert msi.varm["measured"]["B"].tolist() == [False, True, True]
    np.testing.assert_array_equal(msi.varm["section_mz"]["B"], [np.nan, 522.2012, 300])
    np.testing.assert_array_equal(msi.varm["section_mz"]["C"], [np.nan, 522.1995, 300.0006])


@pytest.mark.parametrize("column", ["adduct", "formula"])
def test_ions_that_are_known_to_differ_stay_two(column):
    first, second = _msi(("a",), (100.0,)), _msi(("b",), (100.0,))
    first.var[column], second.var[column] = "x", "y"
    assert _two_panels(first, second, mz_tolerance=5).tables["msi"].n_vars == 2
    second.var[column] = ""
    assert _two_panels(first, second, mz_tolerance=5).tables["msi"].n_vars == 1


def test_polarities_are_not_mixed():
    def section(name, polarity):
        own = _msi(("a",), (100.0,))
        attrs = {"polarity": polarity}
        return msi_section(own.X, own.var, own.obs["row"], own.obs["col"], sample=name, pixel_size=50, attrs=attrs)

    for polarity, n in (("negative", 2), ("positive", 1), ("unknown", 1)):
        msi = {"A": section("A", "positive"), "B": section("B", polarity)}
        sdata = stmsi.pp.combine({"A": _st(), "B": _st()}, msi, mz_tolerance=5)
        assert sdata.tables["msi"].n_vars == n
        assert sdata.tables["msi"].var_names.is_unique


@pytest.mark.parametrize(
    ("second", "tolerance", "message"),
    [
        (
            _msi(("b", "c"), (522.1990, 522.2010)),
            5,
            r"Ion 'ion_522' of A \(m/z 522\.20000\) is as near to '[bc]' .* of B, within 5 ppm \(1 such cases\)\. Lower",
        ),
        (_msi(("PC", "c"), (760.6, 100.0)), 5, "same name have m/z that differ by more than 5 ppm: 'PC'. Raise"),
        (_msi(("b", "c"), (100.0, 200.0)), 0, "mz_tolerance must be a positive number, found 0"),
    ],
)
def test_masses_that_cannot_be_matched(second, tolerance, message):
    with pytest.raises(ValueError, match=message):
        _two_panels(second=second, mz_tolerance=tolerance)


def test_sections_that_were_mapped_already_are_combined_again(mapped, tmp_path):
    """Two objects whose lists of ions differ: everything that belongs to the metabolites is made anew."""
    parts = []
    for name, columns, ppm in (("P1S1", slice(0, 8), 0.0), ("P2S1", slice(4, 12), 2.0)):
        own = mapped.filter_by_coordinate_system([name, f"{name}_msi"])
        table = own.tables["msi"][:, columns].copy()
        table.var["mz"] *= 1 + ppm * 1e-6
        if ppm:
            table.var["name"] = table.var_names = [f"ion_{mz:.3f}" for mz in table.var["mz"]]
        own.tables["msi"] = table
        stmsi.pp.map_to_spots(own)
        parts.append(own)
    before = [part.tables["st"].obsm["msi"].copy() for part in parts]
    sdata = stmsi.pp.combine(parts, mz_tolerance=5)
    assert stmsi.pp.alignment_report(sdata)["aligned"].tolist() == [True, True]
    stmsi.pp.map_to_spots(sdata, replicates=True)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.impute_dropout(sdata)
    st = sdata.tables["st"]
    ids = list(st.obsm["msi"].columns)
    assert ids[:8] == list(before[0].columns), "named after the first section that has them"
    assert stmsi.get.feature_table(sdata).shape[0] == len(ids) == 12
    for key in ("msi", "msi_presence", "msi_variance", "msi_half_1", "msi_half_2", "msi_observed"):
        assert list(st.obsm[key]) == ids, key
    assert all(dtype.kind == "b" for dtype in st.obsm["msi_observed"].dtypes)
    assert (st.obsm["msi"].dtypes == np.float32).all()
    observed = st.obsm["msi"].where(st.obsm["msi_observed"])
    for name, old, own in zip(("P1S1", "P2S1"), before, (ids[:8], ids[4:]), strict=True):
        rows = (st.obs["sample"] == name).to_numpy()
        assert st.obsm["msi"].loc[rows, [m for m in ids if m not in own]].isna().all(axis=None)
        np.testing.assert_array_equal(
            observed.loc[rows, own].fillna(-1), old.where(observed.loc[rows, own].notna().to_numpy()).fillna(-1)
        )
    stmsi.tl.noise_ceiling(st)
    st.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "a.h5ad").obsm["msi"], st.obsm["msi"])


def test_msi_on_disk_stays_there():
    """Of stores that are read lazily, no block is computed until it is asked for."""
    read = []

    def block(values):
        read.append(len(values))
        return sp.csr_matrix(values, dtype=np.float32)

    sections, whole = [], []
    for name, ions in (("A", ("i1", "i2")), ("B", ("i2", "i3"))):
        st, mz = _st(), [100.0 * int(i[1]) for i in ions]
        section = stmsi.pp.combine({name: st}, {name: _msi(ions, mz)}, pixel_size=50)
        whole.append(section)
        table = section.tables["msi"].copy()
        meta = sp.csr_matrix((0, 0), dtype=np.float32)
        table.X = da.from_array(table.X.toarray(), chunks=(2, -1)).map_blocks(block, dtype=np.float32, meta=meta)
        sections.append(SpatialData(shapes=section.shapes, tables={"st": section.tables["st"], "msi": table}))
    lazy, expected = stmsi.pp.combine(sections), stmsi.pp.combine(whole)
    assert read == []
    assert hasattr(lazy.tables["msi"].X, "dask")
    pd.testing.assert_frame_equal(lazy.tables["msi"].varm["measured"], expected.tables["msi"].varm["measured"])
    found = lazy.tables["msi"].X.compute()
    assert max(read) <= 2
    np.testing.assert_array_equal(as_csr(found).toarray(), expected.tables["msi"].X.toarray())
    mixed = stmsi.pp.combine([sections[0], whole[1]])
    assert sp.issparse(mixed.tables["msi"].X)
    np.testing.assert_array_equal(mixed.tables["msi"].X.toarray(), expected.tables["msi"].X.toarray())

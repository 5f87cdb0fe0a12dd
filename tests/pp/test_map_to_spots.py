import logging

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

import stmsi

SECTIONS = ["P1S1", "P2S1", "P3S1"]
CONTAINERS = {
    "dense": lambda x: x.toarray(),
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "float64": lambda x: x.astype(np.float64),
    "dask": lambda x: da.from_array(x.toarray(), chunks=(100, -1)),
    "dask of csr": lambda x: da.from_array(x.toarray(), chunks=(100, -1)).map_blocks(sp.csr_matrix),
    "dask of tiles": lambda x: da.from_array(x.toarray(), chunks=(90, 5)),
}


@pytest.fixture
def aligned(toy):
    stmsi.pp.align(toy, transformation=toy.tables["st"].uns["truth"]["transformation"])
    return toy


def _state(sdata):
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    return sorted(st.obsm), sorted(st.uns), sorted(st.obs), sorted(msi.obs), sorted(msi.uns)


def _section(sdata, sample):
    own = (sdata.tables["st"].obs["sample"] == sample).to_numpy()
    return sdata.tables["st"].obsm["msi"][own], sdata.tables["st"].obs["msi_coverage"][own]


@pytest.mark.parametrize("fine", [False, True], ids=["64-gon", "4096-gon"])
@pytest.mark.parametrize("sample", SECTIONS)
def test_agrees_with_spatialdata_aggregate(aligned, sample, fine):
    # an ion that is 1 in every pixel: its summed fractions are the covered area, in pixels
    table = aligned.tables["msi"]
    X = sp.hstack([table.X, np.ones((table.n_obs, 1), np.float32)], format="csr")
    var = pd.DataFrame(index=[*table.var_names, "one"])
    del aligned.tables["msi"]
    aligned.tables["msi"] = AnnData(
        X, obs=table.obs, var=var, uns={TableModel.ATTRS_KEY: table.uns[TableModel.ATTRS_KEY]}
    )
    stmsi.pp.map_to_spots(aligned)
    ours, coverage = _section(aligned, sample)
    by = f"{sample}_spots"
    if fine:
        spots = aligned.shapes[by]
        circles = gpd.GeoDataFrame(
            geometry=shapely.buffer(spots.geometry.to_numpy(), 27.5, quad_segs=1024), index=spots.index
        )
        by = ShapesModel.parse(circles, transformations={sample: Identity()})
    summed = aligned.aggregate(
        values=f"{sample}_pixels", by=by, value_key=var.index.tolist(), table_name="msi", fractions=True, agg_func="sum",
        target_coordinate_system=sample,
    )  # fmt: skip
    theirs = summed.tables["msi"].to_df()
    np.testing.assert_allclose(coverage, theirs["one"] * 50**2 / (np.pi * 27.5**2), rtol=2e-3, atol=1e-3)
    covered = theirs["one"].to_numpy() > 0.01
    assert covered.sum() > 60
    expected = theirs.to_numpy()[covered] / theirs[["one"]].to_numpy()[covered]
    # a 64-gon misses slivers of pixels, which a value may consist of: its 0.2 % are those of the ion's range
    atol = 1e-5 if fine else 2e-3 * expected.max(axis=0)
    assert (np.abs(ours.to_numpy()[covered] - expected) <= atol + 2e-3 * expected).all()


def test_is_exact_against_the_same_64_gon(aligned):
    circles = aligned.shapes["P1S1_spots"]
    polygons = gpd.GeoDataFrame(
        geometry=shapely.buffer(circles.geometry.to_numpy(), 27.5, quad_segs=16), index=circles.index
    )
    table = aligned.tables["msi"]
    X = sp.hstack([table.X[:, :3], np.ones((table.n_obs, 1), np.float32)], format="csr")
    ions = AnnData(X, obs=table.obs, var=pd.DataFrame(index=["a", "b", "c", "one"]), uns=table.uns)
    del aligned.tables["msi"]
    aligned.tables["msi"] = ions
    theirs = aligned.aggregate(
        values="P1S1_pixels", by="P1S1_spots", value_key=["a", "b", "c", "one"], table_name="msi", fractions=True,
        agg_func="sum", target_coordinate_system="P1S1",
    ).tables["msi"].to_df().to_numpy()  # fmt: skip
    aligned.shapes["P1S1_spots"] = ShapesModel.parse(polygons, transformations={"P1S1": Identity()})
    stmsi.pp.map_to_spots(aligned)
    ours, coverage = _section(aligned, "P1S1")
    covered = theirs[:, 3] > 1e-9
    np.testing.assert_allclose(ours.to_numpy()[covered], theirs[covered] / theirs[covered, 3:], rtol=2e-6)
    np.testing.assert_allclose(coverage, theirs[:, 3] * 2500 / polygons.area, rtol=1e-6)
    stmsi.pp.map_to_spots(aligned, agg="sum")
    ours, _ = _section(aligned, "P1S1")
    np.testing.assert_allclose(ours.to_numpy()[covered], theirs[covered], rtol=2e-6)


def test_what_is_written(aligned):
    stmsi.pp.normalize_msi(aligned, method="rms")
    stmsi.pp.map_to_spots(aligned, min_coverage=0.5)
    st, msi = aligned.tables["st"], aligned.tables["msi"]
    frame = st.obsm["msi"]
    assert frame.index.equals(st.obs_names)
    assert frame.columns.tolist() == msi.var_names.tolist()
    assert (frame.dtypes == np.float32).all()
    coverage = st.obs["msi_coverage"]
    assert coverage.between(0, 1).all()
    np.testing.assert_array_equal(frame.isna().all(axis=1), coverage < 0.5)
    np.testing.assert_array_equal(frame.isna().any(axis=1), coverage < 0.5)
    assert 0 < (coverage < 0.5).mean() < 0.5
    assert (frame == 0).any(axis=None), "covered and absent is 0, not NaN"
    params = st.uns["msi"]["params"]
    assert {k: params[k] for k in ("min_coverage", "layer", "method")} == {
        "min_coverage": 0.5,
        "layer": "X",
        "method": "area",
    }
    assert params["normalize_msi"]["method"] == "rms"
    pd.testing.assert_frame_equal(st.uns["msi"]["features"], msi.var)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("layer", [None, "other"])
def test_containers_and_layers(aligned, container, layer):
    stmsi.pp.map_to_spots(aligned)
    expected = aligned.tables["st"].obsm["msi"].copy()
    msi = aligned.tables["msi"]
    if layer:
        msi.layers[layer] = container(msi.X)
        msi.X = msi.X * 0
    else:
        msi.X = container(msi.X)
    stmsi.pp.map_to_spots(aligned, layer=layer, key_added="again")
    pd.testing.assert_frame_equal(aligned.tables["st"].obsm["again"], expected, rtol=1e-5)
    assert aligned.tables["st"].uns["again"]["params"]["layer"] == (layer or "X")


def test_rows_may_be_in_any_order(aligned):
    stmsi.pp.map_to_spots(aligned)
    expected = aligned.tables["st"].obsm["msi"].copy()
    rng = np.random.default_rng(0)
    for name in ("st", "msi"):
        table = aligned.tables[name]
        shuffled = table[rng.permutation(table.n_obs)].copy()
        del aligned.tables[name]
        aligned.tables[name] = shuffled
    stmsi.pp.map_to_spots(aligned)
    found = aligned.tables["st"].obsm["msi"].loc[expected.index]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


def test_coordinates_far_off_cost_no_precision(aligned):
    stmsi.pp.map_to_spots(aligned)
    before, coverage = (v.copy() for v in _section(aligned, "P1S1"))
    far = np.eye(3)
    far[:2, 2] = 1e7
    for name in ("P1S1_spots", "P1S1_pixels"):
        element = aligned.shapes[name]
        old = get_transformation(element, to_coordinate_system="P1S1")
        moved = Sequence([old, Affine(far, ("x", "y"), ("x", "y"))])
        set_transformation(element, moved, to_coordinate_system="P1S1")
    stmsi.pp.map_to_spots(aligned)
    after, coverage_after = _section(aligned, "P1S1")
    np.testing.assert_allclose(coverage_after, coverage, atol=1e-6)
    pd.testing.assert_frame_equal(after, before, rtol=1e-3, atol=1e-2)


def test_spots_in_pixels_of_an_image_are_scaled(aligned):
    stmsi.pp.map_to_spots(aligned)
    before = aligned.tables["st"].obsm["msi"].copy()
    spots = aligned.shapes["P1S1_spots"]
    small = gpd.GeoDataFrame(
        {"radius": spots["radius"] / 4}, geometry=gpd.points_from_xy(spots.geometry.x / 4, spots.geometry.y / 4)
    )
    aligned.shapes["P1S1_spots"] = ShapesModel.parse(
        small, transformations={"P1S1": Scale([4.0, 4.0], axes=("x", "y"))}
    )
    stmsi.pp.map_to_spots(aligned)
    pd.testing.assert_frame_equal(aligned.tables["st"].obsm["msi"], before, rtol=1e-4)


def test_polygon_spots(aligned):
    stmsi.pp.map_to_spots(aligned)
    circles, coverage = (v.copy() for v in _section(aligned, "P2S1"))
    spots = aligned.shapes["P2S1_spots"]
    polygons = shapely.buffer(spots.geometry.to_numpy(), 27.5, quad_segs=64)
    aligned.shapes["P2S1_spots"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=polygons, index=spots.index), transformations={"P2S1": Identity()}
    )
    stmsi.pp.map_to_spots(aligned)
    found, found_coverage = _section(aligned, "P2S1")
    np.testing.assert_allclose(found_coverage, coverage, rtol=2e-3, atol=1e-3)
    inside = coverage > 0.05
    scale = circles.to_numpy()[inside].max()
    np.testing.assert_allclose(found[inside], circles[inside], rtol=5e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("spots", ["circles", "polygons"])
def test_pixels_of_any_shape(spots):
    # a triangle, a square and a hexagon side by side, mirrored by the alignment
    sdata = _tiny(values=[[1.0], [2.0], [4.0]])
    angle = np.linspace(0, 2 * np.pi, 7)[:-1]
    hexagon = shapely.Polygon(np.c_[-250 + 40 * np.cos(angle), 40 * np.sin(angle)])
    shapes = [shapely.Polygon([(-40, -40), (40, -40), (0, 40)]), shapely.box(-160, -60, -60, 40), hexagon]
    sdata.shapes["A_pixels"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=shapes), transformations={"A_msi": Identity()}
    )
    if spots == "polygons":
        circles = shapely.buffer(sdata.shapes["A_spots"].geometry.to_numpy(), 27.5, quad_segs=256)
        sdata.shapes["A_spots"] = ShapesModel.parse(
            gpd.GeoDataFrame(geometry=circles), transformations={"A": Identity()}
        )
    stmsi.pp.align(sdata, transformation=np.diag([-1.0, 1, 1]))
    stmsi.pp.map_to_spots(sdata)
    circles = shapely.buffer(shapely.points([[0, 0], [100, 0], [200, 0]]), 27.5, quad_segs=256)
    mirrored = [shapely.affinity.scale(s, -1, origin=(0, 0)) for s in shapes]
    areas = np.array([[c.intersection(m).area for m in mirrored] for c in circles])
    area = np.pi * 27.5**2
    np.testing.assert_allclose(sdata.tables["st"].obs["msi_coverage"], areas.sum(axis=1) / area, rtol=1e-3)
    np.testing.assert_allclose(
        sdata.tables["st"].obsm["msi"].to_numpy().ravel(), areas @ [1, 2, 4] / areas.sum(axis=1), rtol=1e-3
    )


def _tiny(values, xy=((0.0, 0.0), (100.0, 0.0), (200.0, 0.0)), **kwargs):
    """Spots 100 um apart, pixels of 50 um in a row."""
    xy, values = np.asarray(xy), np.asarray(values, dtype=np.float32)
    st = AnnData(np.ones((len(xy), 2), np.float32), obsm={"spatial": xy})
    obs = pd.DataFrame({"row": 0, "col": range(len(values))}, index=[str(i) for i in range(len(values))])
    msi = AnnData(values, obs=obs)
    return stmsi.pp.combine({"A": st}, {"A": msi}, pixel_size=50)


def test_by_hand():
    # the first spot lies half on the second pixel and half on the third, the second spot on none
    sdata = _tiny([[1.0, 0], [2, 0], [4, 8], [9, 9]], xy=[[100.0, 25.0], [1000.0, 25.0], [75.0, 425.0]])
    stmsi.pp.align(sdata, transformation=np.eye(3))
    stmsi.pp.map_to_spots(sdata)
    st = sdata.tables["st"]
    np.testing.assert_allclose(st.obsm["msi"].to_numpy(), [[3, 4], [np.nan] * 2, [np.nan] * 2])
    # the circle's caps beyond the pixels, 2.5 um high, above and below
    r, h = 27.5, 25.0
    cap = r**2 * np.arccos(h / r) - h * np.sqrt(r**2 - h**2)
    np.testing.assert_allclose(st.obs["msi_coverage"], [1 - 2 * cap / (np.pi * r**2), 0, 0])


def test_a_section_without_msi_is_nan(aligned):
    msi = aligned.tables["msi"]
    st = aligned.tables["st"].copy()
    part = stmsi.pp.combine(st, msi[msi.obs["sample"] == "P2S1"].copy(), pixel_size=50)
    stmsi.pp.align(part, transformation={"P2S1": st.uns["truth"]["transformation"]["P2S1"]})
    stmsi.pp.map_to_spots(part)
    for sample in SECTIONS:
        frame, coverage = _section(part, sample)
        assert frame.notna().any(axis=None) == (sample == "P2S1")
        assert (coverage > 0).any() == (sample == "P2S1")


def test_an_ion_that_a_section_did_not_measure_is_nan():
    def msi(ions):
        obs = pd.DataFrame({"row": [0, 0], "col": [0, 1]}, index=["a", "b"])
        return AnnData(np.ones((2, 2), np.float32), obs=obs, var=pd.DataFrame(index=ions))

    st = AnnData(np.ones((2, 2), np.float32), obsm={"spatial": np.array([[25.0, 25], [225, 25]])})
    sdata = stmsi.pp.combine({"A": st, "B": st}, {"A": msi(["x", "y"]), "B": msi(["y", "z"])}, pixel_size=50)
    stmsi.pp.align(sdata, transformation={"A": np.eye(3), "B": np.eye(3)})
    stmsi.pp.map_to_spots(sdata)
    frame = sdata.tables["st"].obsm["msi"]
    assert frame.isna().to_numpy().tolist() == [
        [False, False, True],
        [True, True, True],
        [True, False, False],
        [True, True, True],
    ]


def test_msi_without_spots_is_left_out(aligned, caplog):
    st = aligned.tables["st"]
    kept = st[st.obs["sample"] != "P3S1"].copy()
    kept.obs["region"] = kept.obs["region"].cat.remove_unused_categories()
    kept.uns[TableModel.ATTRS_KEY] = st.uns[TableModel.ATTRS_KEY] | {"region": ["P1S1_spots", "P2S1_spots"]}
    del aligned.tables["st"]
    aligned.tables["st"] = kept
    with caplog.at_level(logging.WARNING, "stmsi"):
        stmsi.pp.map_to_spots(aligned)
    assert "Section 'P3S1' has MSI but no spots" in caplog.text
    assert kept.obsm["msi"].shape == (kept.n_obs, 12)


def _set_x(value):
    def change(sdata):
        X = sdata.tables["msi"].X.toarray()
        X[5, 3] = value
        sdata.tables["msi"].X = X

    return change


def _drop_shapes(sdata):
    del sdata.shapes["P2S1_spots"]


def _unalign(sdata):
    pixels = sdata.shapes["P2S1_pixels"]
    pixels.attrs["transform"] = {"P2S1_msi": Identity()}


def _overlapping(sdata):
    pixels = sdata.shapes["P2S1_pixels"]
    grown = gpd.GeoDataFrame(geometry=shapely.buffer(pixels.geometry.to_numpy(), 20, join_style="mitre"))
    sdata.shapes["P2S1_pixels"] = ShapesModel.parse(grown, transformations=get_transformation(pixels, get_all=True))


def _far_away(sdata):
    _move_away(sdata, SECTIONS)


def _move_away(sdata, samples):
    # align refuses this; the transformation of an element can still be set to anything
    for sample in samples:
        far = Affine([[1, 0, 1e6], [0, 1, 1e6], [0, 0, 1]], ("x", "y"), ("x", "y"))
        set_transformation(sdata.shapes[f"{sample}_pixels"], far, to_coordinate_system=sample)


def _lost_spots(sdata):
    sdata.tables["st"].obs["instance_id"] += 1000


def _no_common_section(sdata):
    st = sdata.tables["st"]
    st.obs["sample"] = "other"


def _other_units(sdata):
    sdata.shapes["P2S1_spots"]["radius"] *= 1e4


def _no_radius(sdata):
    sdata.shapes["P2S1_spots"].loc[3:5, "radius"] = [0, -1, np.nan]


def _points(sdata):
    pixels = sdata.shapes["P2S1_pixels"]
    circles = gpd.GeoDataFrame({"radius": np.full(len(pixels), 25.0)}, geometry=pixels.geometry.centroid)
    sdata.shapes["P2S1_pixels"] = ShapesModel.parse(circles, transformations=get_transformation(pixels, get_all=True))


def _spots_elsewhere(sdata):
    sdata.shapes["P2S1_spots"].attrs["transform"] = {"global": Identity()}


def _lost_element(sdata):
    sdata.tables["msi"].uns["alignment"]["P2S1"]["element"] = "P2S1_warped"


def _perturbed(shape):
    def change(sdata):
        sdata.tables["msi"].uns["alignment"]["P2S1"]["perturbations"] = np.zeros(shape)

    return change


def _without(column):
    def change(sdata):
        del sdata.tables["msi"].obs[column]

    return change


def _repeated(table):
    def change(sdata):
        names = sdata.tables[table].obs_names.to_numpy(copy=True)
        names[1] = names[0]
        sdata.tables[table].obs_names = names

    return change


def _silent_tic(sdata):
    sdata.tables["msi"].obs["tic"] = -1.0


BAD = {
    "method": (None, {"method": "areas"}, ValueError, "method='areas' is not known.*Did you mean 'area'"),
    "agg": (None, {"agg": "max"}, ValueError, "agg='max' is not known; choose one of 'mean', 'sum', 'median', 'tic'"),
    "max_distance without nearest": (None, {"max_distance": 50}, ValueError, "max_distance goes with method='nearest'"),
    "max_distance": (None, {"method": "nearest", "max_distance": -1}, ValueError, "a positive number of micrometres"),
    "tic_key without tic": (None, {"tic_key": "tic"}, ValueError, "tic_key goes with agg='tic', found agg='mean'"),
    "tic_key": (None, {"agg": "tic", "tic_key": "ticc"}, KeyError, "no column 'ticc'.*Did you mean 'tic'"),
    "tic values": (_silent_tic, {"agg": "tic", "tic_key": "tic"}, ValueError, "finite total ion currents"),
    "pixel names": (_repeated("msi"), {}, ValueError, "Pixel names must be unique; repeated: .*obs_names_make_unique"),
    "spot names": (_repeated("st"), {"method": "nearest"}, ValueError, "Spot names must be unique"),
    "no raster": (_without("row"), {"replicates": True}, KeyError, "no column 'row'.*pixels of even and odd row"),
    "no perturbations": (None, {"spread": True}, ValueError, "two perturbed alignments or more.*n_perturb="),
    "one perturbation": (_perturbed((1, 3, 3)), {"spread": True}, ValueError, "two perturbed alignments or more"),
    "wrong perturbations": (
        _perturbed((4, 2, 3)),
        {"spread": True},
        ValueError,
        r"shape \(n, 3, 3\).*found shape \(4, 2, 3",
    ),
    "no common section": (
        _no_common_section,
        {},
        ValueError,
        "No section has both spots and MSI: the ST table has 'other'",
    ),
    "other units": (
        _other_units,
        {},
        ValueError,
        "Section 'P2S1': spots are about 4.87e\\+05 um wide and pixels 50 um",
    ),
    "no radius": (_no_radius, {}, ValueError, "Section 'P2S1': 3 spots have no area"),
    "pixels are circles": (_points, {}, ValueError, "pixels are polygons .*found geometries of type id \\[0\\]"),
    "spots elsewhere": (_spots_elsewhere, {}, ValueError, "shapes 'P2S1_spots' have no place in 'P2S1'"),
    "lost element": (_lost_element, {}, KeyError, "No shapes 'P2S1_warped'"),
    "negative, median": (_set_x(-1), {"agg": "median"}, ValueError, "MSI intensities contain 1 negative values"),
    "negative": (_set_x(-1), {}, ValueError, "MSI intensities contain 1 negative values"),
    "infinite": (_set_x(np.inf), {}, ValueError, "1 infinite values; remove or cap"),
    "nan": (_set_x(np.nan), {}, ValueError, "1 NaN; fill or drop"),
    "layer": (None, {"layer": "raw"}, KeyError, "The MSI table has no layer 'raw'; layers: none"),
    "table": (None, {"table_key": "sta"}, KeyError, "no table 'sta'.*Did you mean 'st'"),
    "msi table": (None, {"msi_table_key": "ms"}, KeyError, "no table 'ms'.*Did you mean 'msi'"),
    "sample_key": (None, {"sample_key": "patients"}, KeyError, "no column 'patients'.*Did you mean 'patient'"),
    "min_coverage": (None, {"min_coverage": 50}, ValueError, "min_coverage is a share between 0 and 1, found 50"),
    "min_coverage nan": (None, {"min_coverage": np.nan}, ValueError, "min_coverage is a share"),
    "not aligned": (_unalign, {}, ValueError, "Section 'P2S1' is not aligned.*Call stmsi.pp.align first"),
    "no shapes": (_drop_shapes, {}, KeyError, "No shapes 'P2S1_spots'; shapes elements"),
    "overlapping pixels": (_overlapping, {}, ValueError, "Section 'P2S1': pixels overlap each other"),
    "nothing covered": (
        _far_away,
        {},
        ValueError,
        r"No spot is covered by any pixel. Check the alignment.*'P1S1': spots x .* to .*; pixels x 1e\+06 to",
    ),
    "spots lost": (_lost_spots, {}, ValueError, "observations of section 'P1S1' annotate nothing"),
}


@pytest.mark.filterwarnings("ignore:The table is annotating", "ignore:Observation names are not unique")
@pytest.mark.parametrize(("change", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_errors_name_the_remedy_and_change_nothing(aligned, change, kwargs, error, message):
    if change is not None:
        change(aligned)
    before = _state(aligned)
    with pytest.raises(error, match=message):
        stmsi.pp.map_to_spots(aligned, **kwargs)
    assert _state(aligned) == before


def test_a_coverage_that_nothing_reaches():
    sdata = _tiny([[1.0]], xy=[[25.0, 25.0], [125.0, 25.0]])
    stmsi.pp.align(sdata, transformation=np.eye(3))
    with pytest.raises(ValueError, match=r"min_coverage=0.99; the largest coverage is 0.9"):
        stmsi.pp.map_to_spots(sdata, min_coverage=0.99)


def test_not_aligned(toy):
    with pytest.raises(ValueError, match="'P1S1' is not aligned"):
        stmsi.pp.map_to_spots(toy)


def test_a_table_is_not_enough(toy):
    with pytest.raises(TypeError, match="Expected a SpatialData, found AnnData"):
        stmsi.pp.map_to_spots(toy.tables["st"])


def test_no_msi_at_all(toy):
    sdata = stmsi.pp.combine(toy.tables["st"])
    with pytest.raises(KeyError, match=r"has no table 'msi'.*make it with stmsi.pp.combine"):
        stmsi.pp.map_to_spots(sdata)


def test_a_view_is_copied_with_a_notice(aligned, caplog):
    view = aligned.tables["st"][::2]
    del aligned.tables["st"]
    aligned.tables["st"] = view
    stmsi.pp.map_to_spots(aligned)
    assert "msi" in aligned.tables["st"].obsm
    assert "was a view of another one" in caplog.text


def test_presence_of_an_earlier_mapping_goes(aligned, caplog):
    stmsi.pp.map_to_spots(aligned)
    stmsi.pp.call_presence(aligned)
    with caplog.at_level(logging.INFO, "stmsi"):
        stmsi.pp.map_to_spots(aligned, min_coverage=0.5)
    st = aligned.tables["st"]
    assert "msi_presence" not in st.obsm
    assert "call stmsi.pp.call_presence again" in caplog.text
    assert set(st.uns["msi"]) == {"features", "params", "section_mz"}


def test_two_mappings_side_by_side(aligned):
    stmsi.pp.map_to_spots(aligned)
    stmsi.pp.call_presence(aligned)
    st = aligned.tables["st"]
    limits = st.uns["msi"]["detection_limit"].copy()
    stmsi.pp.filter_metabolites(aligned, min_prevalence=0.5)
    stmsi.pp.map_to_spots(aligned, key_added="common")
    stmsi.pp.call_presence(aligned, metabolite_key="common", key_added="common_presence")
    n = st.obsm["common"].shape[1]
    assert 0 < n < st.obsm["msi"].shape[1] == 12
    assert len(stmsi.get.feature_table(aligned, metabolite_key="msi")) == 12
    assert len(stmsi.get.feature_table(aligned, metabolite_key="common")) == n
    assert stmsi.get.as_table(aligned, metabolite_key="common").n_vars == n
    pd.testing.assert_frame_equal(st.uns["msi"]["detection_limit"], limits)
    assert len(st.uns["common"]["detection_limit"]) == n
    assert "msi_presence" in st.obsm
    shared = st.obsm["common"].columns
    pd.testing.assert_frame_equal(st.obsm["common_presence"], st.obsm["msi_presence"][shared])


def test_a_section_that_lost_all_its_msi_is_named(aligned, caplog):
    _move_away(aligned, ["P1S1"])
    stmsi.pp.map_to_spots(aligned)
    assert "Section 'P1S1' has MSI, but no spot of it is covered" in caplog.text
    assert "'P2S1'" not in caplog.text


@pytest.mark.parametrize("key", ["", "a/b", "a b"])
def test_keys_that_no_file_can_hold(aligned, key):
    with pytest.raises(ValueError, match=f"key_added='{key}' cannot be stored: use letters, digits"):
        stmsi.pp.map_to_spots(aligned, key_added=key)

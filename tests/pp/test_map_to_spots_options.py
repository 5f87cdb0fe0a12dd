"""Finer bins, cells, other aggregations, the nearest spot, replicates and the spread of the alignment."""

import logging

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata import deepcopy
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, Identity, get_transformation, set_transformation

import stmsi

ANGLE = 0.3
TURN = np.array([[-np.cos(ANGLE), -np.sin(ANGLE), 900.0], [-np.sin(ANGLE), np.cos(ANGLE), 150.0], [0, 0, 1]])


def _section(outlines=None, n=12, pixel_size=50.0, ions=4, side=4, pitch=100.0, turn=TURN):
    """One section: spots on a square lattice (or outlines of cells), pixels turned and mirrored."""
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((n, n)))
    X = (rng.lognormal(2, 1, (n * n, ions)) * (rng.random((n * n, ions)) < 0.7)).astype(np.float32)
    obs = pd.DataFrame({"row": row, "col": col, "tic": X.sum(axis=1) + rng.uniform(5, 9, n * n)})
    msi = AnnData(X, obs=obs.set_index(np.array([f"p{i}" for i in range(n * n)])))
    y, x = (v.ravel() for v in np.indices((side, side)))
    xy = (
        np.column_stack([x, y]) * pitch + [375.0, 200.0]
        if outlines is None
        else shapely.get_coordinates(shapely.centroid(outlines))
    )
    st = AnnData(np.ones((len(xy), 2), np.float32), obs=pd.DataFrame(index=[f"s{i}" for i in range(len(xy))]))
    st.obsm["spatial"] = xy
    sdata = stmsi.pp.combine(
        {"A": st}, {"A": msi}, pixel_size=pixel_size, spot_diameter=55.0 if outlines is None else 1.0
    )
    if outlines is not None:
        element = ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines), transformations={"A": Identity()})
        sdata.shapes["A_spots"] = element
    stmsi.pp.align(sdata, transformation=turn)
    return sdata


def _areas(sdata):
    """By shapely, pair by pair; circles as polygons of 4,096 sides."""
    pixels, spots = sdata.shapes["A_pixels"], sdata.shapes["A_spots"]
    matrix = get_transformation(pixels, "A").to_affine_matrix(("x", "y"), ("x", "y"))
    outline = shapely.transform(pixels.geometry.to_numpy(), lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2])
    spot = spots.geometry.to_numpy()
    if "radius" in spots:
        spot = shapely.buffer(spot, spots["radius"].to_numpy(), quad_segs=1024)
    return shapely.area(shapely.intersection(spot[:, None], outline[None, :]))


def _bins(side=8.0, n=40):
    row, col = (v.ravel() for v in np.indices((n, n)))
    return shapely.box(col * side + 330, row * side + 330, (col + 1) * side + 330, (row + 1) * side + 330)


def test_bins_finer_than_pixels(caplog):
    sdata = _section(_bins())
    with caplog.at_level(logging.INFO, "stmsi"):
        stmsi.pp.map_to_spots(sdata)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    areas = _areas(sdata)
    covered = areas.sum(axis=1) > 1e-9
    assert covered.mean() > 0.5
    expected = areas[covered] @ msi.X.toarray() / areas[covered].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(st.obsm["msi"].to_numpy()[covered], expected, rtol=1e-5)
    np.testing.assert_allclose(st.obs["msi_coverage"], areas.sum(axis=1) / 64, atol=1e-9)
    # who shares a measurement with whom
    alone = (areas > 1e-9).sum(axis=1) == 1
    assert 0.5 < alone.mean() < 1
    own = st.obs["msi_pixel"].astype(str).to_numpy()
    np.testing.assert_array_equal(own[covered], msi.obs_names[areas.argmax(axis=1)][covered])
    assert st.obs["msi_pixel"].isna().to_numpy().tolist() == (~covered).tolist()
    np.testing.assert_allclose(st.obs["msi_pixel_share"][alone], 1)
    np.testing.assert_allclose(st.obs["msi_n_effective"][alone], 1)
    assert (st.obs["msi_n_pixels"] == (areas > 1e-9).sum(axis=1)).all()
    for pixel, bins in st.obsm["msi"][alone].groupby(own[alone]):
        np.testing.assert_allclose(bins, np.broadcast_to(msi[pixel].X.toarray(), bins.shape), rtol=1e-6)
    groups = st.obs["msi_pixel"].nunique()
    assert f"{covered.sum()} spots share {groups} measurements" in caplog.text


def test_coarse_spots_are_not_told_off(caplog):
    with caplog.at_level(logging.INFO, "stmsi"):
        stmsi.pp.map_to_spots(_section(pixel_size=20.0, n=30))
    assert "finer" not in caplog.text


def test_cells_of_any_outline():
    rng = np.random.default_rng(2)
    discs = shapely.buffer(shapely.points(rng.uniform([400, 220], [650, 480], (30, 2))), rng.uniform(4, 60, 30))
    rings = shapely.difference(discs, shapely.buffer(shapely.centroid(discs), 3))
    rings[0] = shapely.union(rings[0], shapely.box(400, 400, 420, 430))
    bow_tie = shapely.Polygon([(400, 400), (480, 480), (480, 400), (400, 480)])
    sdata = _section(np.append(rings, shapely.make_valid(bow_tie)))
    expected = _areas(sdata)
    sdata.shapes["A_spots"].loc[30, "geometry"] = bow_tie
    stmsi.pp.map_to_spots(sdata)
    st = sdata.tables["st"]
    values = expected @ sdata.tables["msi"].X.toarray() / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(st.obsm["msi"], values, rtol=1e-5)
    assert (st.obs["msi_n_pixels"] == (expected > 1e-9).sum(axis=1)).all()


def test_bins_are_as_their_circles_where_both_lie_in_one_pixel():
    sdata = _section(turn=np.array([[1, 0, 325.0], [0, 1, 150.0]]), pixel_size=100.0)
    stmsi.pp.map_to_spots(sdata)
    circles = sdata.tables["st"].obsm["msi"].copy()
    square = shapely.box(*(sdata.tables["st"].obsm["spatial"] - 20).T, *(sdata.tables["st"].obsm["spatial"] + 20).T)
    sdata.shapes["A_spots"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=square), transformations={"A": Identity()})
    stmsi.pp.map_to_spots(sdata)
    pd.testing.assert_frame_equal(sdata.tables["st"].obsm["msi"], circles)
    assert (sdata.tables["st"].obs["msi_n_pixels"] == 1).all()


def test_a_circle_that_its_frame_stretches_is_an_ellipse():
    sdata = _section()
    spots = sdata.shapes["A_spots"]
    stretch = np.diag([1.0, 0.5, 1.0])
    squeezed = gpd.GeoDataFrame(
        {"radius": spots["radius"]}, geometry=gpd.points_from_xy(spots.geometry.x, spots.geometry.y * 2)
    )
    sdata.shapes["A_spots"] = ShapesModel.parse(
        squeezed, transformations={"A": Affine(stretch, ("x", "y"), ("x", "y"))}
    )
    stmsi.pp.map_to_spots(sdata)
    ellipse = shapely.transform(
        shapely.buffer(squeezed.geometry.to_numpy(), 27.5, quad_segs=1024), lambda xy: xy * [1, 0.5]
    )
    sdata.shapes["A_spots"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=ellipse), transformations={"A": Identity()})
    areas = _areas(sdata)
    values = areas @ sdata.tables["msi"].X.toarray() / areas.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sdata.tables["st"].obsm["msi"], values, rtol=1e-4, atol=1e-5)


def test_full_coverage_can_be_asked_for():
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, min_coverage=1)
    assert sdata.tables["st"].obsm["msi"].notna().all(axis=1).sum() > 10


@pytest.mark.parametrize("format", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_aggregations(format):
    sdata = _section()
    msi = sdata.tables["msi"]
    areas, X, tic = _areas(sdata), msi.X.toarray().astype(float), msi.obs["tic"].to_numpy()
    msi.X = format(msi.X.toarray())

    def mapped(**kwargs):
        stmsi.pp.map_to_spots(sdata, **kwargs)
        return sdata.tables["st"].obsm["msi"].to_numpy()

    rtol = 1e-4  # of the polygons in the place of circles
    np.testing.assert_allclose(mapped(agg="sum"), areas / 2500 @ X, rtol=rtol)
    np.testing.assert_allclose(mapped(agg="tic"), areas @ X / (areas @ X).sum(axis=1, keepdims=True), rtol=rtol)
    np.testing.assert_allclose(mapped(agg="tic", tic_key="tic"), areas @ X / (areas @ tic)[:, None], rtol=rtol)
    assert sdata.tables["st"].uns["msi"]["params"]["tic_key"] == "tic"
    median = mapped(agg="median")
    for i, w in enumerate(areas):
        for m in range(X.shape[1]):
            order = np.argsort(X[:, m])
            assert median[i, m] == pytest.approx(X[order, m][np.searchsorted(np.cumsum(w[order]), w.sum() / 2)])
    assert sdata.tables["st"].uns["msi"]["params"]["agg"] == "median"


def test_pixels_without_any_signal_have_a_share_of_0():
    sdata = _section()
    sdata.tables["msi"].X = np.zeros((144, 4), np.float32)
    stmsi.pp.map_to_spots(sdata, agg="tic")
    assert (sdata.tables["st"].obsm["msi"] == 0).all(axis=None)


def _nearest(sdata, limit):
    pixels = shapely.get_coordinates(shapely.centroid(sdata.shapes["A_pixels"].geometry.to_numpy()))
    placed = pixels @ TURN[:2, :2].T + TURN[:2, 2]
    spots = shapely.get_coordinates(sdata.shapes["A_spots"].geometry.to_numpy())
    distance = np.hypot(*(placed[:, None] - spots[None]).transpose(2, 0, 1))
    return np.where(distance.min(axis=1) <= limit, distance.argmin(axis=1), -1)


@pytest.mark.parametrize("max_distance", [None, 30.0])
def test_nearest(max_distance):
    sdata = _section(side=6)
    expected = _nearest(sdata, max_distance or 50.0)
    stmsi.pp.map_to_spots(sdata, method="nearest", max_distance=max_distance)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    X = msi.X.toarray()
    for i in range(st.n_obs):
        own = expected == i
        assert st.obs["msi_n_pixels"].iloc[i] == own.sum()
        if own.any():
            np.testing.assert_allclose(st.obsm["msi"].iloc[i], X[own].mean(axis=0), rtol=1e-6)
        else:
            assert st.obsm["msi"].iloc[i].isna().all()
    pair = msi.obs["msi_spot"].astype(object)
    names = [st.obs_names[e] if e >= 0 else None for e in expected]
    assert [None if pd.isna(p) else p for p in pair] == names
    params = st.uns["msi"]["params"]
    assert params["method"] == "nearest"
    assert params["max_distance"]["A"] == pytest.approx(max_distance or 50.0)
    # the pairing goes with the mapping
    stmsi.pp.map_to_spots(sdata, key_added="other", method="nearest", agg="sum")
    np.testing.assert_allclose(
        sdata.tables["st"].obsm["other"].to_numpy()[3], X[_nearest(sdata, 50.0) == 3].sum(axis=0), rtol=1e-6
    )
    assert {"msi_spot", "other_spot"} <= set(msi.obs)
    stmsi.pp.map_to_spots(sdata)
    assert "msi_spot" not in msi.obs
    assert "other_spot" in msi.obs


def test_pixels_nearest_to_a_spot_beyond_the_tissue_are_nobodys():
    sdata = _section(side=6)
    everyone = _nearest(sdata, 50.0)
    keep = np.random.default_rng(0).random(36) < 0.5
    st = sdata.tables["st"][keep].copy()
    del sdata.tables["st"]
    sdata.tables["st"] = st
    stmsi.pp.map_to_spots(sdata, method="nearest", max_distance=90.0)
    pair = sdata.tables["msi"].obs["msi_spot"].astype(object)
    assert not pair.isna().all()
    assert set(pair.dropna()) <= set(st.obs_names)
    inside = everyone >= 0
    expected = np.array([f"s{i}" if i >= 0 and keep[i] else None for i in everyone], dtype=object)
    found = pair.where(pair.notna(), None).to_numpy(dtype=object)
    assert (found[inside] == expected[inside]).all()
    # the pitch is that of all spots
    stmsi.pp.map_to_spots(sdata, method="nearest")
    assert sdata.tables["st"].uns["msi"]["params"]["max_distance"]["A"] == pytest.approx(50)


def test_one_spot_has_no_pitch():
    sdata = _section(side=1)
    with pytest.raises(ValueError, match=r"the pitch of 1 spot\(s\) is unknown or 0; pass max_distance="):
        stmsi.pp.map_to_spots(sdata, method="nearest")
    stmsi.pp.map_to_spots(sdata, method="nearest", max_distance=60)
    assert sdata.tables["st"].obs["msi_n_pixels"].iloc[0] > 1


@pytest.mark.parametrize("agg", ["mean", "median"])
def test_replicates(agg):
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, replicates=True, agg=agg)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    areas, X = _areas(sdata), msi.X.toarray().astype(float)
    odd = ((msi.obs["row"] + msi.obs["col"]) % 2).to_numpy()
    share = areas / areas.sum(axis=1, keepdims=True)
    mean = share @ X
    variance = np.stack([s @ (X - m) ** 2 / (1 - (s**2).sum()) for s, m in zip(share, mean, strict=True)])
    np.testing.assert_allclose(st.obsm["msi_variance"], variance, rtol=1e-3)
    np.testing.assert_allclose(st.obs["msi_n_effective"], 1 / (share**2).sum(axis=1), rtol=1e-4)
    if agg == "mean":
        for half in (0, 1):
            own = areas * (odd == half)
            np.testing.assert_allclose(
                st.obsm[f"msi_half_{half + 1}"], own @ X / own.sum(axis=1, keepdims=True), rtol=1e-4
            )
    else:
        assert not np.allclose(st.obsm["msi_half_1"], st.obsm["msi_half_2"])
    # gone with the next mapping that does not write them
    stmsi.pp.map_to_spots(sdata)
    assert sorted(k for k in st.obsm if k.startswith("msi")) == ["msi"]


def test_halves_show_the_noise_ceiling():
    """Split halves, stepped up by Spearman-Brown, meet the correlation of the mean with the truth."""
    sdata = _section(n=64, pixel_size=20.0, ions=40, side=12, pitch=70.0, turn=np.array([[1, 0, 200.0], [0, 1, 100.0]]))
    msi, rng = sdata.tables["msi"], np.random.default_rng(1)
    row, col = msi.obs["row"].to_numpy(), msi.obs["col"].to_numpy()
    truth = 10 + np.sin(row / 6) + np.cos(col / 9)
    for noise in (0.5, 3.0):
        msi.X = (truth[:, None] + noise * rng.standard_normal((len(truth), 40))).clip(0).astype(np.float32)
        stmsi.pp.map_to_spots(sdata, replicates=True)
        st = sdata.tables["st"]
        one, two, whole = (st.obsm[k].to_numpy() for k in ("msi_half_1", "msi_half_2", "msi"))
        msi.layers["truth"] = np.repeat(truth[:, None], 40, axis=1).astype(np.float32)
        stmsi.pp.map_to_spots(sdata, layer="truth", key_added="truth")
        true = st.obsm["truth"].to_numpy()[:, 0]
        r = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, two.T, strict=True)])
        reliability = 2 * r / (1 + r)
        reached = np.mean([np.corrcoef(v, true)[0, 1] for v in whole.T])
        assert np.sqrt(reliability) == pytest.approx(reached, abs=0.02)
        error = ((whole - true[:, None]) ** 2).mean()
        expected = (st.obsm["msi_variance"].to_numpy() / st.obs[["msi_n_effective"]].to_numpy()).mean()
        # the variance between pixels also holds the gradient of the truth within a spot
        assert expected == pytest.approx(error, rel=0.25 if noise > 1 else 1)


def _draws(n=5):
    rng = np.random.default_rng(3)
    draws = np.tile(np.eye(3), (n, 1, 1))
    draws[:, :2, 2] = rng.normal(0, 15, (n, 2))
    draws[:, :2, :2] += rng.normal(0, 0.005, (n, 2, 2))
    return draws


@pytest.mark.parametrize(("method", "agg"), [("area", "mean"), ("area", "median"), ("nearest", "mean")])
def test_spread(method, agg):
    sdata = _section()
    draws = _draws()
    sdata.tables["msi"].uns["alignment"]["A"]["perturbations"] = draws
    stmsi.pp.map_to_spots(sdata, spread=True, method=method, agg=agg, min_coverage=0.2)
    st = sdata.tables["st"]
    assert st.uns["msi"]["params"]["n_perturb"] == 5
    stack = []
    for draw in draws:
        again = deepcopy(sdata)
        stmsi.pp.align(again, transformation=draw @ TURN, max_scale=3)
        stmsi.pp.map_to_spots(again, method=method, agg=agg, min_coverage=0.2)
        stack.append(again.tables["st"].obsm["msi"].to_numpy())
    enough = np.isfinite(stack).sum(axis=0) >= 2
    expected = np.where(enough, np.nanstd(np.where(enough, stack, 0), axis=0, ddof=1), np.nan)
    expected[st.obsm["msi"].isna().to_numpy()] = np.nan
    np.testing.assert_allclose(st.obsm["msi_spread"], expected, rtol=1e-2, atol=1e-3)
    assert (st.obsm["msi_spread"] > 0).to_numpy().mean() > 0.5


def test_no_error_of_the_alignment_no_spread():
    sdata = _section()
    sdata.tables["msi"].uns["alignment"]["A"]["perturbations"] = np.tile(np.eye(3), (3, 1, 1))
    stmsi.pp.map_to_spots(sdata, spread=True)
    np.testing.assert_allclose(sdata.tables["st"].obsm["msi_spread"], 0, atol=1e-5)


def test_sections_without_perturbations_are_named(toy, caplog):
    stmsi.pp.align(toy)
    toy.tables["msi"].uns["alignment"]["P1S1"]["perturbations"] = _draws()
    stmsi.pp.map_to_spots(toy, spread=True)
    st = toy.tables["st"]
    first = (st.obs["sample"] == "P1S1").to_numpy()
    assert "Sections 'P2S1', 'P3S1' have no perturbed alignments; their spread is NaN" in caplog.text
    assert st.obsm["msi_spread"][first].notna().any(axis=None)
    assert st.obsm["msi_spread"][~first].isna().all(axis=None)


def test_pixels_of_a_non_rigid_alignment():
    sdata = _section()
    pixels = sdata.shapes["A_pixels"]
    warped = shapely.transform(
        pixels.geometry.to_numpy(), lambda xy: xy @ TURN[:2, :2].T + TURN[:2, 2] + 8 * np.sin(xy[:, ::-1] / 60)
    )
    sdata.shapes["A_pixels_warped"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=warped, index=pixels.index), transformations={"A": Identity()}
    )
    stmsi.pp.map_to_spots(sdata)
    before = sdata.tables["st"].obsm["msi"].copy()
    sdata.tables["msi"].uns["alignment"]["A"]["element"] = "A_pixels_warped"
    stmsi.pp.map_to_spots(sdata)
    circles = shapely.buffer(sdata.shapes["A_spots"].geometry.to_numpy(), 27.5, quad_segs=1024)
    areas = shapely.area(shapely.intersection(circles[:, None], warped[None]))
    expected = areas @ sdata.tables["msi"].X.toarray() / areas.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sdata.tables["st"].obsm["msi"], expected, rtol=1e-4)
    assert not np.allclose(before, expected, rtol=1e-2)


@pytest.mark.parametrize("agg", ["mean", "median"])
def test_chunks_of_a_dask_array_are_read_in_turn(agg):
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, agg=agg)
    expected = sdata.tables["st"].obsm["msi"].copy()
    msi, read = sdata.tables["msi"], []

    def load(block, block_info=None):
        if block_info:
            read.append(len(block))
        return block

    msi.X = da.from_array(msi.X.toarray(), chunks=(12, -1)).map_blocks(
        load, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    stmsi.pp.map_to_spots(sdata, agg=agg)
    pd.testing.assert_frame_equal(sdata.tables["st"].obsm["msi"], expected, rtol=1e-5)
    assert max(read) == 12
    if agg == "mean":
        assert len(read) == 12, "each chunk is read once"


@pytest.mark.parametrize("format", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_backed_tables(format, tmp_path):
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, replicates=True)
    expected = sdata.tables["st"].obsm["msi_variance"].copy()
    msi = sdata.tables["msi"].copy()
    msi.X = format(msi.X.toarray())
    msi.write_h5ad(tmp_path / "msi.h5ad")
    del sdata.tables["msi"]
    backed = ad.read_h5ad(tmp_path / "msi.h5ad", backed="r")
    backed.uns["spatialdata_attrs"]["region"] = ["A_pixels"]  # h5ad has made an array of it, which spatialdata refuses
    sdata.tables["msi"] = backed
    stmsi.pp.map_to_spots(sdata, replicates=True)
    assert sdata.tables["msi"].isbacked
    pd.testing.assert_frame_equal(sdata.tables["st"].obsm["msi_variance"], expected, rtol=1e-5)
    sdata.tables["msi"].file.close()


@pytest.mark.parametrize("method", ["area", "nearest"])
def test_all_of_it_survives_files(method, tmp_path):
    sdata = _section()
    sdata.tables["msi"].uns["alignment"]["A"]["perturbations"] = _draws()
    stmsi.pp.map_to_spots(sdata, method=method, replicates=True, spread=True, min_coverage=0.5)
    for name in ("st", "msi"):
        table = sdata.tables[name]
        table.copy().write_h5ad(tmp_path / f"{name}.h5ad")
        back = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        pd.testing.assert_frame_equal(back.obs, table.obs, check_index_type=False, check_categorical=False)
        for key in (k for k in table.obsm if k.startswith("msi")):
            pd.testing.assert_frame_equal(
                back.obsm[key], table.obsm[key], check_index_type=False, check_column_type=False
            )
    found, expected = back.uns, sdata.tables["msi"].uns
    np.testing.assert_array_equal(found["alignment"]["A"]["perturbations"], expected["alignment"]["A"]["perturbations"])
    back = ad.read_h5ad(tmp_path / "st.h5ad")
    params, before = back.uns["msi"]["params"], sdata.tables["st"].uns["msi"]["params"]
    assert set(params) == set(before)
    assert params["n_perturb"] == 5
    assert bool(params["replicates"])


def test_limits_of_detection_do_not_mix_scales():
    """Sums and shares are on another scale than pixels, whose quantiles would be no limits for them."""
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, agg="tic")
    stmsi.pp.call_presence(sdata)
    st = sdata.tables["st"]
    limits = st.uns["msi"]["detection_limit"]["A"]
    assert (limits < 1).all()
    assert (st.obsm["msi_presence"] == 1).any(axis=None)


def test_perturbed_alignment_moves_within_the_st_frame():
    sdata = _section()
    shift = np.eye(3)
    shift[0, 2] = 100.0  # one spot to the right
    sdata.tables["msi"].uns["alignment"]["A"]["perturbations"] = np.stack([np.eye(3), shift])
    stmsi.pp.map_to_spots(sdata, spread=True)
    here = sdata.tables["st"].obsm["msi"].to_numpy().reshape(4, 4, -1)
    spread = sdata.tables["st"].obsm["msi_spread"].to_numpy().reshape(4, 4, -1)
    np.testing.assert_allclose(spread[:, 1:], np.abs(here[:, 1:] - here[:, :-1]) / np.sqrt(2), rtol=1e-3, atol=1e-3)


def test_a_section_far_off_in_pixels_of_an_image():
    sdata = _section()
    stmsi.pp.map_to_spots(sdata, method="nearest")
    before = sdata.tables["st"].obsm["msi"].copy()
    spots = sdata.shapes["A_spots"]
    scaled = gpd.GeoDataFrame(
        {"radius": spots["radius"] / 4}, geometry=gpd.points_from_xy(spots.geometry.x / 4, spots.geometry.y / 4)
    )
    sdata.shapes["A_spots"] = ShapesModel.parse(scaled, transformations={"A": Identity()})
    set_transformation(sdata.shapes["A_spots"], Affine(np.diag([4.0, 4, 1]), ("x", "y"), ("x", "y")), "A")
    stmsi.pp.map_to_spots(sdata, method="nearest")
    pd.testing.assert_frame_equal(sdata.tables["st"].obsm["msi"], before)
    assert sdata.tables["st"].uns["msi"]["params"]["max_distance"]["A"] == pytest.approx(50)


@pytest.mark.realdata
def test_published_alignment_of_a_real_section(data_dir):
    """Positions as ions: what a bin or spot receives is where it lies."""
    folder = data_dir / "registration" / "jsrs_cs12"
    before, after, bins = (
        pd.read_csv(folder / f"{name}_cs12_3.csv") for name in ("msi_coords_before", "msi_coords_aligned", "rna_coords")
    )
    raster, placed = before[["x", "y"]].to_numpy(), after[["x", "y"]].to_numpy()
    fit = np.linalg.lstsq(np.column_stack([raster, np.ones(len(raster))]), placed, rcond=None)[0].T
    assert np.abs(raster @ fit[:, :2].T + fit[:, 2] - placed).max() < 1e-3, "the published alignment is affine"
    side = np.sqrt(abs(np.linalg.det(fit[:, :2])))
    low = placed.min(axis=0) - 100
    msi = AnnData(
        (placed - low).astype(np.float32),
        obs=pd.DataFrame({"row": raster[:, 1], "col": raster[:, 0]}, index=[f"p{i}" for i in range(len(raster))]),
    )
    xy = bins[["x", "y"]].to_numpy(float)
    st = AnnData(np.ones((len(xy), 1), np.float32), obs=pd.DataFrame(index=[f"b{i}" for i in range(len(xy))]))
    st.obsm["spatial"] = xy
    sdata = stmsi.pp.combine({"A": st}, {"A": msi}, pixel_size=side, spot_diameter=30.0)
    linear = fit[:, :2] / side
    stmsi.pp.align(sdata, transformation=np.column_stack([linear, fit[:, 2] - linear @ np.full(2, side / 2)]))
    st = sdata.tables["st"]
    off = {}
    for outline in ("circles", "bins"):
        if outline == "bins":
            square = shapely.box(*(xy - 15).T, *(xy + 15).T)
            element = ShapesModel.parse(gpd.GeoDataFrame(geometry=square), transformations={"A": Identity()})
            sdata.shapes["A_spots"] = element
        stmsi.pp.map_to_spots(sdata, min_coverage=1)
        covered = st.obsm["msi"].notna().all(axis=1).to_numpy()
        assert covered.mean() > 0.9
        off[outline] = np.hypot(*(st.obsm["msi"].to_numpy() + low - xy)[covered].T)
        assert off[outline].max() < side / np.sqrt(2)
        np.testing.assert_allclose(st.obs["msi_coverage"][covered], 1, atol=1e-9)
    # larger outlines lie on more pixels, whose mean is nearer to their own middle
    assert np.median(off["bins"]) < np.median(off["circles"])
    stmsi.pp.map_to_spots(sdata, method="nearest", max_distance=side)
    expected = _all_nearest(placed, xy, side)
    found = sdata.tables["msi"].obs["msi_spot"].astype(object)
    assert [None if pd.isna(f) else f for f in found] == [f"b{i}" if i >= 0 else None for i in expected]


def _all_nearest(pixels, spots, limit):
    """In pieces: all pairs at once would take a gigabyte."""
    found = []
    for part in np.array_split(pixels, 50):
        distance = np.hypot(*(part[:, None] - spots[None]).transpose(2, 0, 1))
        found += np.where(distance.min(axis=1) <= limit, distance.argmin(axis=1), -1).tolist()
    return found

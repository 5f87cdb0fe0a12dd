import pickle

import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata import SpatialData, deepcopy

import stmsi
from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.tables import as_csr
from stmsi.pp._alignment.automatic import AutomaticFit, _fixed, automatic_input
from stmsi.pp._alignment.section_geometry import pixels_on_tissue

pytestmark = pytest.mark.once  # searches of masks, on arrays; every other test aligns without landmarks as well

PITCH = 100.0


def align_automatically(sdata, name, *, n_perturb=12, **options):
    return automatic_input(sdata, name, **options).fit(np.random.default_rng(0), n_perturb)


@pytest.fixture(scope="module")
def shared_sections():
    return stmsi.datasets.simulate(n_patients=2, sections_per_patient=1, n_genes=100, n_metabolites=20, size=2000)


@pytest.fixture
def sections(shared_sections):
    return deepcopy(shared_sections)


@pytest.fixture(scope="module")
def fit(shared_sections):
    return align_automatically(shared_sections, "P2S1", n_perturb=4)


def _error(sdata, name, matrix):
    truth = sdata.tables["st"].uns["truth"]["transformation"][name]
    msi = sdata.tables["msi"]
    xy = msi.obsm["spatial"][(msi.obs["sample"] == name).to_numpy()]
    return float(np.median(np.hypot(*(apply_affine(matrix, xy) - apply_affine(truth, xy)).T)))


def test_a_mirrored_section_is_found_within_half_a_spot(shared_sections, fit):
    assert fit.mirrored
    assert not fit.ambiguous
    assert fit.decided_by == "intensities"
    assert fit.refined
    assert _error(shared_sections, "P2S1", fit.matrix) <= PITCH / 2
    assert fit.landmark is None
    assert 0.85 < fit.iou <= 1
    assert 0.9 < fit.scale < 1.1
    stmsi.pp.align(shared_sections, transformation={"P2S1": fit.matrix})
    assert stmsi.pp.alignment_report(shared_sections).loc["P2S1", "rotation_deg"] == pytest.approx(
        fit.rotation_deg, abs=1
    )


def test_the_candidates(fit):
    table = fit.candidates
    assert list(table) == [
        "mirrored", "rotation_deg", "scale", "mask_score", "mask_share", "intensity_score", "intensity_z", "chosen", "possible",
    ]  # fmt: skip
    assert table["chosen"].sum() == 1
    assert table["possible"].sum() == 1
    assert table["mask_score"].is_monotonic_decreasing
    chosen = table[table["chosen"]].iloc[0]
    assert chosen["mirrored"] == fit.mirrored
    assert chosen["intensity_z"] == table["intensity_z"].max() > 4
    assert (table["mask_score"] >= 0.8 * table["mask_score"].max()).all()


def test_the_resolution_and_the_refits(shared_sections, fit):
    r = fit.resolution
    assert 0 < r["median_um"] <= r["p90_um"] < PITCH
    assert 0 < r["same_spot"] <= r["one_ring"] <= r["two_rings"] <= 1
    assert fit.perturbed.shape == (4, 3, 3)
    assert all(_error(shared_sections, "P2S1", m) < PITCH for m in fit.perturbed)


def test_it_can_be_sent_and_repeated(sections, fit):
    copy = pickle.loads(pickle.dumps(fit))
    assert isinstance(copy, AutomaticFit)
    np.testing.assert_array_equal(copy.matrix, fit.matrix)
    again = align_automatically(sections, "P2S1", n_perturb=4)
    np.testing.assert_allclose(again.matrix, fit.matrix)
    pd.testing.assert_frame_equal(again.candidates, fit.candidates)


def test_nothing_is_written(sections):
    before = {key: sections.tables[key].copy() for key in ("st", "msi")}
    align_automatically(sections, "P1S1", intensities=False, n_perturb=0)
    for key, table in before.items():
        assert set(sections.tables[key].uns) == set(table.uns)
        pd.testing.assert_frame_equal(sections.tables[key].obs, table.obs)


def _disc(sdata, name, radius=850.0):
    """Spots and pixels of a disc, which outlines cannot turn."""
    st, msi = (t[t.obs["sample"] == name] for t in (sdata.tables["st"], sdata.tables["msi"]))
    truth = sdata.tables["st"].uns["truth"]["transformation"][name]
    middle = st.obsm["spatial"].mean(axis=0)
    spots, pixels = (
        np.hypot(*(xy - middle).T) < radius for xy in (st.obsm["spatial"], apply_affine(truth, msi.obsm["spatial"]))
    )
    return stmsi.pp.combine(
        {name: AnnData(st.X, obsm={"spatial": st.obsm["spatial"]}, var=st.var)[spots].copy()},
        {name: AnnData(msi.X, obs=msi.obs[["row", "col"]], var=msi.var[[]])[pixels].copy()},
        pixel_size=50.0,
    )


def test_outlines_that_tell_are_not_doubted(sections):
    fit = align_automatically(sections, "P2S1", intensities=False, n_perturb=2)
    right = _error(sections, "P2S1", fit.matrix) <= PITCH
    assert right or fit.ambiguous
    assert fit.candidates["mask_share"].sum() == pytest.approx(1)
    assert fit.confidence == fit.candidates.loc[fit.candidates["chosen"], "mask_share"].item()
    assert fit.ambiguous == (fit.confidence < 0.95)


def test_without_intensities_it_says_that_it_cannot_tell(sections):
    fit = align_automatically(_disc(sections, "P2S1"), "P2S1", intensities=False, n_perturb=2)
    assert fit.ambiguous
    assert fit.confidence < 0.95
    assert fit.candidates["possible"].sum() > 1
    assert fit.candidates["intensity_z"].isna().all()
    assert f"({fit.landmark['msi'][0]:.0f}, {fit.landmark['msi'][1]:.0f}) um in the MSI frame" in fit.message
    assert np.hypot(*(fit.landmark["st"] - fit.landmark["st_rival"])) > 3 * PITCH
    assert np.abs(apply_affine(fit.matrix, fit.landmark["msi"][None])[0] - fit.landmark["st"]).max() < 1e-6


def test_the_pixel_size_may_be_a_placeholder(sections):
    from spatialdata.transformations import Scale, set_transformation

    # one micrometre instead of fifty
    set_transformation(sections.shapes["P2S1_pixels"], Scale([0.02, 0.02], axes=("x", "y")), "P2S1_msi")
    fit = align_automatically(sections, "P2S1", scale="free", n_perturb=0)
    assert fit.scale == pytest.approx(50, rel=0.05)
    assert _error(sections, "P2S1", fit.matrix @ np.diag([0.02, 0.02, 1])) <= PITCH
    assert not fit.ambiguous


def test_pixels_off_the_tissue_are_left_out(sections):
    """The whole raster was measured; the background holds little."""
    name = "P2S1"
    msi, st = (t[t.obs["sample"] == name] for t in (sections.tables["msi"], sections.tables["st"]))
    row, col = msi.obs["row"].to_numpy(), msi.obs["col"].to_numpy()
    full = np.stack(np.meshgrid(np.arange(-8, row.max() + 9), np.arange(-8, col.max() + 9), indexing="ij"), -1)
    full = full.reshape(-1, 2)
    X = np.random.default_rng(0).random((len(full), msi.n_vars)) * (
        np.random.default_rng(1).random((len(full), 1)) < 0.03
    )
    position = {(r, c): k for k, (r, c) in enumerate(full)}
    X[[position[p] for p in zip(row, col, strict=True)]] = msi.X.toarray()
    whole = AnnData(X, obs=pd.DataFrame(full + 8, columns=["row", "col"]).set_index(np.arange(len(full)).astype(str)))
    whole.var_names = msi.var_names
    sdata = stmsi.pp.combine(
        {name: AnnData(st.X, obsm={"spatial": st.obsm["spatial"]}, var=st.var)}, {name: whole}, pixel_size=50.0
    )
    fit = align_automatically(sdata, name, n_perturb=0)
    shift = np.array([[1, 0, 400], [0, 1, 400], [0, 0, 1]], float)
    assert _error(sections, name, fit.matrix @ shift) <= PITCH
    assert not fit.ambiguous


def test_a_background_seen_in_single_ions_alone():
    """As many peaks and as much current beside the tissue: other ions."""
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.indices((40, 40)))
    inside = np.hypot(row - 19, col - 21) < 14 + 2 * np.sin(3 * np.arctan2(row - 19, col - 21))
    level = np.where(inside[:, None], [[8, 8, 8, 1, 1, 1]], [[1, 1, 1, 8, 8, 8]])
    table = AnnData(
        (level * rng.gamma(9, 1 / 9, level.shape) * 10).astype(np.float32),
        obs=pd.DataFrame({"row": row, "col": col}, index=[f"p{i}" for i in range(len(row))]),
    )
    found = pixels_on_tissue(table, as_csr(table.X))
    assert (found == inside).mean() > 0.97
    # regions of a tissue that fills the raster, and that reach its edge, are no background
    stripes = np.where((col < 20)[:, None], [[8, 8, 8, 1, 1, 1]], [[1, 1, 1, 8, 8, 8]]) * rng.gamma(
        9, 1 / 9, level.shape
    )
    assert pixels_on_tissue(table, as_csr(stripes)).all()
    # a raster of the shape of the tissue has no background
    assert pixels_on_tissue(table[inside].copy(), as_csr(table.X[inside])).all()


@pytest.mark.once
def test_part_of_a_section_is_called_partial(sections):
    """Half of the pixels: found by intensities, and told where masks are all there is."""
    name = "P2S1"
    msi, st = (t[t.obs["sample"] == name] for t in (sections.tables["msi"], sections.tables["st"]))
    half = msi[(msi.obs["row"] < np.median(msi.obs["row"])).to_numpy()]
    sdata = stmsi.pp.combine(
        {name: AnnData(st.X, obsm={"spatial": st.obsm["spatial"]}, var=st.var)},
        {name: AnnData(half.X, obs=half.obs[["row", "col"]], var=half.var[[]])},
        pixel_size=50.0,
    )
    masks = align_automatically(sdata, name, intensities=False, n_perturb=0)
    assert masks.partial
    assert masks.ambiguous
    assert "The MSI is partial: it covers" in masks.message
    assert "One landmark would tell" in masks.message
    fit = align_automatically(sdata, name, n_perturb=0)
    assert fit.partial
    assert fit.ambiguous or _error(sections, name, fit.matrix) <= PITCH


def test_spots_off_the_tissue_are_the_frame(sections):
    st = sections.tables["st"]
    xy = st.obsm["spatial"][(st.obs["sample"] == "P1S1").to_numpy()]
    marked = xy[:, 0] > 700
    seen = _fixed(xy, marked, "auto")
    assert (seen.tissue == (seen.xy[:, 0] > 700)).all()
    assert len(seen.xy) == len(xy), "nothing is known beyond the spots that were measured"
    around = _fixed(xy, np.ones(len(xy), bool), "auto")
    assert (~around.tissue).sum() > 50
    assert (~_fixed(xy, marked, "crop").tissue).sum() < (~around.tissue).sum()


def test_the_frame_can_be_given(sections):
    st = sections.tables["st"]
    xy = st.obsm["spatial"][(st.obs["sample"] == "P2S1").to_numpy()]
    x, y = np.meshgrid(np.arange(-500, 2600, 100.0), np.arange(-500, 2600, 100.0))
    fit = align_automatically(
        sections, "P2S1", frame=np.vstack([xy, np.column_stack([x.ravel(), y.ravel()])]), n_perturb=0
    )
    assert _error(sections, "P2S1", fit.matrix) <= PITCH
    with pytest.raises(ValueError, match="frame is 'auto', 'crop' or finite positions"):
        align_automatically(sections, "P2S1", frame=np.ones(5))


def test_a_serial_section_may_be_stretched(sections):
    from spatialdata.transformations import Scale, set_transformation

    set_transformation(sections.shapes["P2S1_pixels"], Scale([1.08, 0.97], axes=("x", "y")), "P2S1_msi")
    fit = align_automatically(sections, "P2S1", serial=True, n_perturb=2)
    assert not fit.refined
    assert not fit.ambiguous
    assert _error(sections, "P2S1", fit.matrix @ np.diag([1.08, 0.97, 1])) <= 1.5 * PITCH


def test_too_little_to_align(sections):
    msi, st = (t[t.obs["sample"] == "P1S1"] for t in (sections.tables["msi"], sections.tables["st"]))
    few = AnnData(msi.X[:12], obs=msi.obs[["row", "col"]].iloc[:12])
    spots = AnnData(st.X, obsm={"spatial": st.obsm["spatial"]})
    sdata = stmsi.pp.combine({"P1S1": spots}, {"P1S1": few}, pixel_size=50.0)
    with pytest.raises(ValueError, match=r"12 MSI pixels on tissue.*at least 20"):
        align_automatically(sdata, "P1S1")
    sections.tables["st"].obs["in_tissue"] = 0
    with pytest.raises(ValueError, match=r"0 spots on tissue.*obs\['in_tissue'\]"):
        align_automatically(sections, "P1S1")


def test_mixed_up_units(sections):
    from spatialdata.transformations import Scale, set_transformation

    set_transformation(sections.shapes["P1S1_spots"], Scale([100, 100], axes=("x", "y")), "P1S1")
    with pytest.raises(ValueError, match=r"ST tissue is .* times as wide as the MSI tissue.*auto={'scale': 'free'}"):
        align_automatically(sections, "P1S1")


def test_masks_that_cannot_overlap(sections):
    st = sections.tables["st"]
    own = (st.obs["sample"] == "P1S1").to_numpy()
    x, y = st.obsm["spatial"].T
    # two far-off slivers, between which everything was seen to be empty
    st.obs["in_tissue"] = np.where(own & (np.abs(x - 1000) < 600), 0, 1)
    sections.tables["st"].obs["in_tissue"] = np.where(own & (np.abs(y - 1000) > 150), 0, st.obs["in_tissue"])
    with pytest.raises(ValueError, match="do not overlap in any position"):
        align_automatically(sections, "P1S1", intensities=False, n_perturb=0)


def test_nan_coordinates(sections):
    spots = sections.shapes["P1S1_spots"]
    geometry = spots.geometry.to_numpy().copy()
    geometry[3] = shapely.Point(np.nan, np.nan)
    spots["geometry"] = geometry
    with pytest.raises(ValueError, match="1 spots have NaN coordinates"):
        align_automatically(sections, "P1S1")


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"name": "P9"}, KeyError, "no section 'P9'"),
        ({"scale": "any"}, ValueError, "scale='any' is not known"),
        ({"model": "rigid"}, ValueError, "model='rigid' is not known"),
        ({"frame": "hull"}, ValueError, "frame='hull' is not known"),
        ({"frame": "crop", "scale": "free"}, ValueError, "does not tell the size of a pixel"),
        ({"layer": "raw2"}, KeyError, "ST table has no layer 'raw2'"),
        ({"msi_table_key": "ion"}, KeyError, "no table 'ion'"),
    ],
)
def test_wrong_arguments(shared_sections, kwargs, error, match):
    with pytest.raises(error, match=match):
        align_automatically(shared_sections, **{"name": "P1S1", **kwargs})


# ---------------------------------------------------------------------------------------------------------- pp.align


@pytest.fixture
def without_landmarks(sections):
    for name in ("P1S1", "P2S1"):
        for side in ("msi", "st"):
            del sections.points[f"{name}_landmarks_{side}"]
    return sections


@pytest.mark.once
def test_align_needs_no_landmarks(without_landmarks, tmp_path, caplog):
    sdata = without_landmarks
    stmsi.pp.align(sdata, n_perturb=3)
    record = sdata.tables["msi"].uns["alignment"]["P2S1"]
    assert record["method"] == "auto"
    assert record["model"] == "affine"
    assert not record["ambiguous"]
    assert _error(sdata, "P2S1", record["matrix"]) <= PITCH / 2
    assert record["perturbations"].shape == (3, 3, 3)
    # refits lie near the alignment: they displace within the ST frame
    xy = sdata.tables["st"].obsm["spatial"]
    moved = np.array([np.median(np.hypot(*(apply_affine(m, xy) - xy).T)) for m in record["perturbations"]])
    assert (moved < PITCH).all()
    report = stmsi.pp.alignment_report(sdata).loc["P2S1"]
    assert report["method"] == "auto"
    assert "refits move pixels by" in report["resolution"]
    assert report["mask_iou"] > 0.8
    stmsi.pp.map_to_spots(sdata, spread=True)
    assert np.isfinite(sdata.tables["st"].obsm["msi_spread"].to_numpy()).any()
    sdata.write(tmp_path / "aligned.zarr")
    again = stmsi.pp.alignment_report(SpatialData.read(tmp_path / "aligned.zarr"))
    assert again.loc["P2S1", "resolution"] == report["resolution"]


def test_sections_with_landmarks_use_them_and_the_others_do_not(without_landmarks, shared_sections):
    for side in ("msi", "st"):
        element = f"P1S1_landmarks_{side}"
        without_landmarks.points[element] = shared_sections.points[element]
    stmsi.pp.align(without_landmarks, auto={"intensities": False})
    record = without_landmarks.tables["msi"].uns["alignment"]
    assert {name: record[name]["method"] for name in record} == {"P1S1": "landmarks", "P2S1": "auto"}


def test_landmarks_are_left_alone_where_auto_is_asked_for(shared_sections, sections, caplog):
    stmsi.pp.align(sections, method="auto", sample="P1S1", model="similarity", auto={"intensities": False})
    record = sections.tables["msi"].uns["alignment"]["P1S1"]
    assert record["method"] == "auto"
    assert record["model"] == "similarity"
    if record["ambiguous"]:
        assert "Section 'P1S1': the alignment is ambiguous" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto": {"speed": 1}}, "unknown options 'speed'; known: 'scale', 'serial'"),
        ({"model": "thin_plate"}, "'thin_plate' needs landmarks; .*refine='intensity' goes on from there"),
        ({"landmarks": {}}, 'method="auto" takes no landmarks='),
        ({"transformation": np.eye(3)}, 'method="auto" takes no landmarks='),
        ({"auto": {"scale": "big"}}, "scale='big' is not known; choose one of 'known', 'free'"),
    ],
)
def test_what_auto_refuses(sections, options, message):
    before = dict(sections.tables["msi"].uns)
    with pytest.raises(ValueError, match=message):
        stmsi.pp.align(sections, method="auto", sample="P1S1", **options)
    assert sections.tables["msi"].uns.keys() == before.keys()

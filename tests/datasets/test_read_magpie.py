import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

import stmsi
from stmsi._core.registration.landmarks import apply_affine
from stmsi.datasets import read_magpie

UM_PER_PX, HIRES = 0.5, 0.2
"""Of the Space Ranger folders that the fixture writes."""
ROWS, COLS, SIZE = 6, 7, 100.0
TRUTH = np.array([[0.0, 1.0, 480.0], [1.0, 0.0, 520.0], [0.0, 0.0, 1.0]])
"""From the frame of the MSI to that of Visium, in micrometres: mirrored."""


def _msi(seed=0):
    y, x = (a.ravel() + 3 for a in np.indices((ROWS, COLS)))
    ids = [f"pixel_{i}" for i in range(len(x))]
    places = pd.DataFrame({"spot_id": ids, "x": x, "y": y, "Treatment": ["vehicle", "drug"] * (len(x) // 2)})
    values = np.random.default_rng(seed).gamma(2, 10, (len(x), 3))
    ions = pd.DataFrame(values, columns=["mz-101.2345", "mz-102.85754", "mz-303.35855"])
    return places, pd.concat([places[["spot_id"]], ions], axis=1)


def _landmarks():
    """Landmarks in the raster indices of the MSI and in pixels of the hires image."""
    index = np.array([[3.0, 3.0], [9.0, 3.5], [4.0, 8.0], [8.5, 7.5]])
    um = (index - 3 + 0.5) * SIZE
    return index, (um @ TRUTH[:2, :2].T + TRUTH[:2, 2]) / UM_PER_PX * HIRES


def _pairs(left, right):
    return pd.DataFrame(np.hstack([left, right]), columns=["X_left", "Y_left", "X_right", "Y_right"])


@pytest.fixture
def sample(tmp_path, space_ranger):
    """Writes a sample of MAGPIE's input folder."""

    def write(name, landmarks=True, seed=0):
        folder = tmp_path / "input" / name
        space_ranger(folder / "visium", seed=seed)
        (folder / "msi").mkdir()
        places, values = _msi(seed)
        places.to_csv(folder / "msi" / "MSI_metadata.csv", index=False)
        values.sample(frac=1, random_state=1).to_csv(folder / "msi" / "MSI_intensities.csv", index=False)
        if landmarks:
            _pairs(*_landmarks()).to_csv(folder / "landmarks_noHE.csv")  # with the index, as the app writes it
        return folder

    return write


def test_samples_align_by_their_landmarks(sample, through_zarr):
    root = sample("s1").parent
    sample("s2", seed=1)
    sdata = read_magpie(root, pixel_size=SIZE)
    stmsi.pp.align(sdata)
    report = stmsi.pp.alignment_report(sdata)
    assert report["mirrored"].tolist() == [True, True]
    assert report["rmse_um"].max() < 1e-6
    for name in ("s1", "s2"):
        np.testing.assert_allclose(sdata.tables["msi"].uns["alignment"][name]["matrix"], TRUTH, atol=1e-6)
    stmsi.pp.map_to_spots(sdata)
    assert (sdata.tables["st"].obs["msi_coverage"] > 0.99).any()
    table = sdata.tables["msi"]
    places, values = _msi(0)
    own = table[(table.obs["sample"] == "s1").to_numpy()]
    np.testing.assert_allclose(own.X.toarray(), values.iloc[:, 1:], rtol=1e-6)
    assert own.obs["spot_id"].tolist() == places["spot_id"].tolist()
    assert own.obs["Treatment"].tolist() == places["Treatment"].tolist()
    assert table.var["mz"].tolist() == [101.2345, 102.85754, 303.35855]
    assert table.uns["msi"]["attrs"]["s1"]["landmarks"] == "landmarks_noHE.csv"
    again = through_zarr(sdata)
    assert set(again.points) == {f"{s}_landmarks_{m}" for s in ("s1", "s2") for m in ("msi", "st")}
    stmsi.pp.align(again, model="affine")


def test_the_affine_transformation_puts_pixels_where_magpie_does(sample, through_zarr):
    """Its steps, by scikit-image as in MAGPIE: clicks are off by some pixels, so that an affine map is no similarity."""
    from skimage.transform import estimate_transform

    folder = sample("s1")
    index, hires = _landmarks()
    off = np.array([[3.0, -2.0], [-4.0, 1.0], [2.0, 5.0], [-1.0, -3.0]])
    _pairs(index, hires + off).to_csv(folder / "landmarks_noHE.csv", index=False)
    places, _ = _msi()
    theirs = estimate_transform("affine", index, hires + off)
    expected = theirs(places[["x", "y"]].to_numpy()) / HIRES * UM_PER_PX
    sdata = read_magpie(folder, pixel_size=SIZE)
    attrs = through_zarr(sdata).tables["msi"].uns["msi"]["attrs"]["s1"]
    centres = (places[["x", "y"]].to_numpy() - 3 + 0.5) * SIZE
    np.testing.assert_allclose(apply_affine(np.asarray(attrs["affine"]), centres), expected, atol=1e-6)
    stmsi.pp.align(sdata, transformation={"s1": attrs["affine"]})
    spots = sdata.tables["st"].obsm["spatial"]
    moved = sdata.tables["msi"].uns["alignment"]["s1"]["matrix"]
    reach = cKDTree(spots).query(spots, k=2)[0][:, 1].min() / 2  # MAGPIE: half the smallest distance of spots
    tree = cKDTree(spots)
    ours, published = (tree.query_ball_point(xy, reach) for xy in (apply_affine(moved, centres), expected))
    assert sum(map(len, published)) > 5
    assert ours.tolist() == published.tolist()


def test_spots_off_the_tissue_are_kept(sample):
    folder = sample("s1")
    file = folder / "visium" / "spatial" / "tissue_positions_list.csv"
    positions = pd.read_csv(file, header=None)
    positions[1] = (positions.index > 20).astype(int)
    positions.to_csv(file, index=False, header=False)
    everything, tissue = (read_magpie(folder, pixel_size=SIZE, keep_off_tissue=keep) for keep in (True, False))
    assert (tissue.tables["st"].obs["in_tissue"] == 1).all()
    assert everything.tables["st"].n_obs == len(positions)
    assert tissue.tables["st"].n_obs == len(positions) - 21
    assert (everything.tables["st"].obs["in_tissue"] == 0).sum() == 21


def test_landmarks_over_the_histology_of_the_msi(sample):
    folder = sample("s1", landmarks=False)
    index, hires = _landmarks()
    to_image = np.array([[12.0, 1.0, 40.0], [-2.0, 11.0, 90.0], [0, 0, 1]])  # any affine image of the MSI section
    image = index @ to_image[:2, :2].T + to_image[:2, 2]
    step = np.array([[10.0, 10.0], [90.0, 20.0], [20.0, 80.0], [70.0, 70.0]])
    back = np.linalg.inv(to_image)
    raster = step @ back[:2, :2].T + back[:2, 2]
    um = (raster - 3 + 0.5) * SIZE
    _pairs(index, image).to_csv(folder / "landmarks_MSI2HE.csv", index=False)
    with pytest.raises(ValueError, match=r"one of landmarks_MSI2HE.csv and landmarks_HE2HE.csv"):
        read_magpie(folder, pixel_size=SIZE)
    _pairs(step, (um @ TRUTH[:2, :2].T + TRUTH[:2, 2]) / UM_PER_PX * HIRES).to_csv(folder / "landmarks_HE2HE.csv")
    sdata = read_magpie(folder, pixel_size=SIZE, images=False)
    stmsi.pp.align(sdata)
    np.testing.assert_allclose(sdata.tables["msi"].uns["alignment"]["s1"]["matrix"], TRUTH, atol=1e-5)
    # the direct ones go first unless MAGPIE would take the two steps
    _pairs(index, hires + 1).to_csv(folder / "landmarks_noHE.csv")
    used = read_magpie(folder, pixel_size=SIZE).tables["msi"].uns["msi"]["attrs"]["s1"]["landmarks"]
    assert used == "landmarks_noHE.csv"
    (folder / "msi" / "MSI_HE.png").touch()
    used = read_magpie(folder, pixel_size=SIZE).tables["msi"].uns["msi"]["attrs"]["s1"]["landmarks"]
    assert used == "landmarks_MSI2HE.csv, landmarks_HE2HE.csv"


def test_turned_places_of_the_app_go_first(sample):
    folder = sample("s1")
    places, _ = _msi()
    places.assign(x=places["y"], y=places["x"]).to_csv(folder / "msi" / "MSI_metadata_modified.csv", index=False)
    table = read_magpie(folder, pixel_size=SIZE).tables["msi"]
    assert table.obs["row"].max() == COLS - 1


def test_which_samples_are_read(sample, caplog):
    root = sample("s1").parent
    sample("s2", landmarks=False)
    sample("s3")
    (root / "exclude.txt").write_text("s3\n")
    with caplog.at_level("WARNING", logger="stmsi"):
        sdata = read_magpie(root, pixel_size=SIZE, images=False)
    assert set(sdata.tables["st"].obs["sample"]) == {"s1", "s2"}
    assert set(sdata.points) == {"s1_landmarks_msi", "s1_landmarks_st"}
    assert "without landmarks: 's2'" in caplog.text
    assert not sdata.images
    with pytest.raises(KeyError, match=r"No section 's3'.*found 's1', 's2'"):
        read_magpie(root, sample="s3", pixel_size=SIZE)
    (root / "selected.txt").write_text("s3\n")
    with pytest.raises(ValueError, match="leave no sample"):
        read_magpie(root, pixel_size=SIZE)


def test_the_size_of_a_pixel(sample):
    folder = sample("s1")
    with pytest.raises(ValueError, match=r"raster indices.*pass pixel_size="):
        read_magpie(folder)
    places, _ = _msi()
    places.assign(x=places["x"] * 40.0, y=places["y"] * 40.0).to_csv(folder / "msi" / "MSI_metadata.csv", index=False)
    index, hires = _landmarks()
    _pairs(index * 40, hires).to_csv(folder / "landmarks_noHE.csv")
    sdata = read_magpie(folder)
    assert sdata.tables["msi"].uns["msi"]["attrs"]["s1"]["pixel_size"].tolist() == [40, 40]
    with pytest.raises(ValueError, match=r"scales by 2\.5"):  # 40 um are not what the landmarks say
        stmsi.pp.align(sdata)
    stmsi.pp.align(sdata, max_scale=3)
    assert stmsi.pp.alignment_report(sdata).loc["s1", "scale"] == pytest.approx(SIZE / 40)


def _edit(name, change):
    def edit(folder):
        file = folder / name
        change(pd.read_csv(file)).to_csv(file, index=False)

    return edit


BAD = {
    "other pixels": (
        _edit("msi/MSI_metadata.csv", lambda t: t.assign(spot_id=["pixel_x", *t["spot_id"][1:]])),
        r"different pixels: 1 without intensities \('pixel_x'\), 1 without a place \('pixel_0'\)",
    ),
    "pixels twice": (
        _edit("msi/MSI_metadata.csv", lambda t: t.assign(spot_id=["pixel_1", *t["spot_id"][1:]])),
        "repeats spot_id: 'pixel_1'",
    ),
    "no spot_id": (_edit("msi/MSI_intensities.csv", lambda t: t.drop(columns="spot_id")), "no column 'spot_id'"),
    "no x": (_edit("msi/MSI_metadata.csv", lambda t: t.drop(columns="x")), "no column 'x'"),
    "text": (
        _edit("msi/MSI_intensities.csv", lambda t: t.assign(**{"mz-101.2345": "high"})),
        "'mz-101.2345' must hold numbers",
    ),
    "landmarks without names": (
        _edit("landmarks_noHE.csv", lambda t: t.rename(columns={"X_left": "a"})),
        "no column 'X_left'; found .*Landmarks of MAGPIE have these four columns",
    ),
    "landmarks without partner": (
        _edit("landmarks_noHE.csv", lambda t: t.assign(X_right=t["X_right"].where(t.index < 3))),
        "4 landmarks on the left and 3 on the right",
    ),
    "two landmarks": (_edit("landmarks_noHE.csv", lambda t: t.iloc[:2]), "has 2 landmarks; at least 3"),
    "landmarks of text": (_edit("landmarks_noHE.csv", lambda t: t.assign(X_left="1,5")), "has decimal commas"),
    "empty file": (lambda folder: (folder / "msi" / "MSI_metadata.csv").write_text(""), "0 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_raise(sample, case):
    change, message = BAD[case]
    folder = sample("s1")
    change(folder)
    with pytest.raises(ValueError, match=message):
        read_magpie(folder, pixel_size=SIZE)


def test_what_is_missing_is_named(sample, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_magpie(tmp_path / "input")
    with pytest.raises(FileNotFoundError, match="is no input of MAGPIE: expected folders"):
        read_magpie(tmp_path)
    folder = sample("s1")
    (folder / "msi" / "MSI_intensities.csv").rename(folder / "msi" / "MSI_intensity.csv")
    with pytest.raises(FileNotFoundError, match=r"MSI_intensities.csv.*Did you mean 'MSI_intensity.csv'"):
        read_magpie(folder, pixel_size=SIZE)
    (folder / "msi" / "MSI_intensity.csv").rename(folder / "msi" / "MSI_intensities.csv")
    (folder / "visium" / "spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scalefactors_json.json"):
        read_magpie(folder, pixel_size=SIZE)

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import PointsModel, TableModel
from spatialdata.transformations import Scale

from stmsi._core.chemistry.adducts import parse_adduct
from stmsi._core.chemistry.formulas import monoisotopic_mass
from stmsi.io import read_metaspace

WIDTH, HEIGHT = 4, 3
HEADER = (
    "# Generated at 2024-07-17 13:17:15. For help see https://bit.ly/3Bzs6Z4\n# URL: https://metaspace2020.eu/dataset\n"
)
IONS = pd.DataFrame(
    {
        "formula": ["C6H12O6", "C41H78NO8P", "C5H5N5", "C10H12N5O"],
        "adduct": ["M+Na", "M+H", "M+H", "M+H"],
        "ion": ["C6H12O6+Na+", "C41H78NO8P+H+", "C5H5N5+H+", "C10H12N5O+H+"],
        "mz": [203.05260999999997, 744.5537610000001, 136.06177, 219.11144],
        "fdr": [0.05, 0.1, 0.2, 0.5],
        "moleculeNames": ["Glucose, Fructose", "PE(18:1/18:0), PC 33:1", "Adenine", "Odd #7"],
        "moleculeIds": ["HMDB0000122, HMDB0000660", "HMDB1, HMDB2", "HMDB0000034", "HMDB9"],
        "isomers": [2, 2, 1, 1],
        "offSample": [False, False, True, False],
    }
)


def _images(seed=0):
    images = np.random.default_rng(seed).gamma(2, 10, (len(IONS), HEIGHT, WIDTH))
    images[:, 0, 0] = 0  # not measured
    return images


def _annotations(path, ions=IONS, **extra):
    table = ions.assign(datasetName="liver 1", datasetId="2024-07-17_1", **extra)
    path.write_text(HEADER + table.to_csv(index=False, quoting=1))
    return path


def _intensities(path, order=(2, 0, 3, 1), prefix="", ions=IONS):
    """As the web site writes them: another order, the formula of the whole ion, no charge, pixels column by column."""
    ions, images = ions.iloc[list(order)], _images()[list(order)]
    table = pd.DataFrame(
        {
            "mol_formula": ions["formula"] + ions["adduct"].str[2:],
            "adduct": ions["adduct"].str[1:],
            "mz": ions["mz"],
            "moleculeNames": ions["moleculeNames"].str.replace(", ", ","),
            "moleculeIds": ions["moleculeIds"].str.replace(", ", ","),
        }
    ).reset_index(drop=True)
    pixels = {f"{prefix}x{x}_y{y}": images[:, y, x] for x in range(WIDTH) for y in range(HEIGHT)}
    pd.concat([table, pd.DataFrame(pixels)], axis=1).to_csv(path, index=False)
    return path


def _values(table):
    """Images (ions, y, x) of a table, 0 where there is no pixel."""
    out = np.zeros((table.n_vars, HEIGHT, WIDTH))
    out[:, table.obs["row"], table.obs["col"]] = table.X.toarray().T
    return out


@pytest.fixture
def exports(tmp_path):
    return _annotations(tmp_path / "annotations.csv"), _intensities(tmp_path / "pixel_intensities.csv")


def test_annotations_and_intensities(exports, through_zarr):
    sdata = read_metaspace(*exports, pixel_size=(20, 25))
    table = sdata.tables["msi"]
    assert set(sdata.shapes) == {"liver_1_pixels"}
    assert table.n_obs == WIDTH * HEIGHT - 1
    np.testing.assert_allclose(_values(table), _images()[[2, 0, 3, 1]], rtol=1e-6)
    var = table.var.set_index("formula").loc[IONS["formula"]]
    assert var["adduct"].tolist() == ["[M+Na]+", "[M+H]+", "[M+H]+", "[M+H]+"]
    assert var["fdr"].tolist() == IONS["fdr"].tolist()
    np.testing.assert_allclose(var["mz"], IONS["mz"], rtol=1e-12)
    assert var["molecule_names"].tolist() == IONS["moleculeNames"].tolist()
    assert var["molecule_ids"].tolist() == IONS["moleculeIds"].tolist()
    assert var["n_isomers"].tolist() == [2, 2, 1, 1]
    # a molecule names an ion only where it is alone
    assert var["name"].tolist() == ["C6H12O6 [M+Na]+", "C41H78NO8P [M+H]+", "Adenine", "Odd #7"]
    assert var["off_sample"].tolist() == [False, False, True, False]
    attrs = table.uns["msi"]["attrs"]["liver_1"]
    assert (attrs["dataset"], attrs["polarity"]) == ("2024-07-17_1", "positive")
    assert attrs["pixel_size"].tolist() == [20, 25]
    pd.testing.assert_frame_equal(through_zarr(sdata).tables["msi"].var, table.var, check_dtype=False)


def test_false_discovery_rate_and_all_pixels(exports):
    table = read_metaspace(*exports, pixel_size=20, fdr=0.1, keep_empty=True).tables["msi"]
    assert table.shape == (WIDTH * HEIGHT, 2)
    assert sorted(table.var["fdr"]) == [0.05, 0.1]
    with pytest.raises(ValueError, match=r"up to 0.01; the lowest is 0.05"):
        read_metaspace(*exports, pixel_size=20, fdr=0.01)
    with pytest.raises(ValueError, match="fdr is a rate between 0 and 1"):
        read_metaspace(*exports, pixel_size=20, fdr=10)


def test_intensities_alone_tell_no_rate(exports):
    table = read_metaspace(exports[1], pixel_size=20, sample="s").tables["msi"]
    assert table.var["fdr"].isna().all()
    assert table.var["molecule_ids"].iloc[1] == "HMDB0000122,HMDB0000660"
    assert table.var["n_isomers"].tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="tells no false-discovery rate; pass the annotations too"):
        read_metaspace(exports[1], pixel_size=20, fdr=0.1)


def test_intensities_of_regions(exports):
    _intensities(exports[1], prefix="tumour_2_")
    table = read_metaspace(*exports, pixel_size=20).tables["msi"]
    assert set(table.obs["roi"]) == {"tumour_2"}
    np.testing.assert_allclose(_values(table), _images()[[2, 0, 3, 1]], rtol=1e-6)


def test_pixels_of_overlapping_regions_are_kept_once(exports):
    frame = pd.read_csv(_intensities(exports[1], prefix="a_"))
    both = frame.assign(**{f"b_{name[2:]}": frame[name] for name in frame.columns[-2:]})
    both.to_csv(exports[1], index=False)
    table = read_metaspace(*exports, pixel_size=20).tables["msi"]
    assert set(table.obs["roi"]) == {"a"}
    np.testing.assert_allclose(_values(table), _images()[[2, 0, 3, 1]], rtol=1e-6)


@pytest.mark.parametrize("form", ["gzip", "semicolons", "annotations last"])
def test_other_forms_of_the_intensities(exports, form):
    frame = pd.read_csv(exports[1])
    file = exports[1].with_name("p.csv.gz" if form == "gzip" else "p.csv")
    if form == "annotations last":  # not as METASPACE writes it: read column by column
        frame = frame[[*frame.columns[5:], *frame.columns[:5]]]
    frame.to_csv(file, index=False, sep=";" if form == "semicolons" else ",")
    table = read_metaspace(exports[0], file, pixel_size=20).tables["msi"]
    np.testing.assert_allclose(_values(table), _images()[[2, 0, 3, 1]], rtol=1e-6)


def test_images_as_a_mapping(exports):
    by_key = {(f, a): image for f, a, image in zip(IONS["formula"], IONS["adduct"].str[1:], _images(), strict=True)}
    table = read_metaspace(exports[0], by_key, pixel_size=20).tables["msi"]
    np.testing.assert_allclose(_values(table), _images(), rtol=1e-6)
    by_ion = dict(zip(IONS["ion"], _images(), strict=True))
    np.testing.assert_array_equal(
        read_metaspace(exports[0], by_ion, pixel_size=20).tables["msi"].X.toarray(), table.X.toarray()
    )
    with pytest.raises(ValueError, match=r"no image of 'C5H5N5\+H\+'"):
        read_metaspace(exports[0], {k: v for k, v in by_ion.items() if not k.startswith("C5H5N5")}, pixel_size=20)
    by_ion["C5H5N5+H+"] = np.ones((2, 2))
    with pytest.raises(ValueError, match="one shape"):
        read_metaspace(exports[0], by_ion, pixel_size=20)


def test_isobaric_ions_are_told_apart_by_their_molecules(tmp_path):
    ions = IONS.assign(mz=[300.1, 300.1, 136.06, 219.11], adduct="M+H")
    annotations = _annotations(tmp_path / "a.csv", ions)
    table = read_metaspace(annotations, _intensities(tmp_path / "p.csv", ions=ions), pixel_size=20).tables["msi"]
    assert table.var["formula"].tolist() == IONS["formula"].iloc[[2, 0, 3, 1]].tolist()
    ions = ions.assign(moleculeIds="HMDB1")
    _annotations(annotations, ions)
    with pytest.raises(ValueError, match=r"several annotations of a.csv go with the image"):
        read_metaspace(annotations, _intensities(tmp_path / "p.csv", ions=ions), pixel_size=20)


def test_images_without_annotation_are_kept(tmp_path, caplog):
    annotations = _annotations(tmp_path / "a.csv", IONS.iloc[:3])
    with caplog.at_level("WARNING", logger="stmsi"):
        table = read_metaspace(annotations, _intensities(tmp_path / "p.csv"), pixel_size=20).tables["msi"]
    assert table.var["fdr"].isna().tolist() == [False, False, True, False]
    assert "1 of 4 images have no annotation" in caplog.text
    _annotations(tmp_path / "a.csv", IONS.assign(mz=IONS["mz"] + 1))
    with pytest.raises(ValueError, match=r"No image .* belongs to an annotation"):
        read_metaspace(annotations, tmp_path / "p.csv", pixel_size=20)


@pytest.fixture
def converted():
    """What metaspace-converter makes of the same dataset."""
    y, x = (a.ravel() for a in np.indices((HEIGHT, WIDTH)))
    obs = pd.DataFrame({"ion_image_pixel_x": x, "ion_image_pixel_y": y}, index=pd.RangeIndex(len(x)).astype(str))
    obs["ion_image_shape_y"], obs["ion_image_shape_x"] = HEIGHT, WIDTH
    var = IONS.assign(
        adduct=IONS["adduct"].str[1:], chemMod="", neutralLoss="",
        **{key: IONS[key].str.split(", ").map(json.dumps) for key in ("moleculeNames", "moleculeIds")},
    ).drop(columns=["isomers"])  # fmt: skip
    var.index = pd.Index(var["formula"] + var["adduct"], name="formula_adduct")
    adata = AnnData(_images().reshape(len(IONS), -1).T, obs=obs, var=var)
    adata.obsm["spatial"] = obs[["ion_image_pixel_x", "ion_image_pixel_y"]].to_numpy()
    adata.uns["metaspace"] = {
        "id": "2024-07-17_1",
        "name": "liver 1",
        "polarity": "POSITIVE",
        "metadata": {"MS_Analysis": {"Pixel_Size": {"Xaxis": 20, "Yaxis": 25}}},
    }
    return adata


def test_what_metaspace_converter_makes(converted, tmp_path):
    converted.write_h5ad(tmp_path / "liver.h5ad")
    table = read_metaspace(tmp_path / "liver.h5ad").tables["msi"]
    np.testing.assert_allclose(_values(table), _images(), rtol=1e-6)
    assert table.var["molecule_names"].tolist() == IONS["moleculeNames"].tolist()
    assert table.var["n_isomers"].tolist() == [2, 2, 1, 1]
    assert table.var["adduct"].tolist() == ["[M+Na]+", "[M+H]+", "[M+H]+", "[M+H]+"]
    assert table.var["fdr"].tolist() == IONS["fdr"].tolist()
    attrs = table.uns["msi"]["attrs"]["liver_1"]
    assert attrs["pixel_size"].tolist() == [20, 25]
    assert attrs["polarity"] == "positive"
    same = read_metaspace(converted, fdr=0.2).tables["msi"]
    assert same.n_vars == 3
    with pytest.raises(ValueError, match="holds its ion images"):
        read_metaspace(tmp_path / "liver.h5ad", tmp_path / "p.csv")


def test_a_store_of_metaspace_converter(converted, tmp_path):
    del converted.uns["metaspace"]["metadata"]  # then the transformation of the points tells the size
    points = PointsModel.parse(
        converted.obsm["spatial"].astype(float), transformations={"global": Scale([20, 25], axes=("x", "y"))}
    )
    converted.obs["instance_id"] = np.arange(converted.n_obs)
    converted.obs["region"] = pd.Categorical(["maldi_points"] * converted.n_obs)
    keys = {"region": ["maldi_points"], "region_key": "region", "instance_key": "instance_id"}
    sdata = SpatialData(points={"maldi_points": points}, tables={"table": TableModel.parse(converted, **keys)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "liver.zarr")
    table = read_metaspace(tmp_path / "liver.zarr", sample="s1").tables["msi"]
    np.testing.assert_allclose(_values(table), _images(), rtol=1e-6)
    assert table.uns["msi"]["attrs"]["s1"]["pixel_size"].tolist() == [20, 25]
    del converted.obs["ion_image_pixel_x"]
    with pytest.raises(ValueError, match=r"is not of metaspace-converter: it lacks 'ion_image_pixel_x'"):
        read_metaspace(converted)


def test_what_is_missing_or_wrong_is_named(exports, tmp_path):
    annotations, intensities = exports
    with pytest.raises(FileNotFoundError, match=r"There is no file .*annotation.csv.*Did you mean 'annotations.csv'"):
        read_metaspace(tmp_path / "annotation.csv", intensities, pixel_size=20)
    with pytest.raises(ValueError, match="holds annotations without images; pass intensities="):
        read_metaspace(annotations, pixel_size=20)
    with pytest.raises(ValueError, match="holds pixel intensities; pass the annotations first"):
        read_metaspace(intensities, annotations, pixel_size=20)
    with pytest.raises(ValueError, match="does not tell the size of a pixel; pass pixel_size="):
        read_metaspace(annotations, intensities)
    both = pd.concat([IONS.assign(datasetId="a"), IONS.assign(datasetId="b")])
    (tmp_path / "two.csv").write_text(both.to_csv(index=False))
    with pytest.raises(ValueError, match=r"several values of datasetId: 'a', 'b'. Export one dataset"):
        read_metaspace(tmp_path / "two.csv", intensities, pixel_size=20)
    frame = pd.read_csv(intensities)
    for change, message in (
        (frame.drop(columns="mz"), "no column 'mz'"),
        (frame[["mol_formula", "adduct", "mz"]], "has no pixels: expected columns x0_y0"),
        (frame.assign(x1_y1="1,5"), "column 'x1_y1' has decimal commas"),
        (frame.assign(x1_y1="none given"), "column 'x1_y1' must hold numbers.*'none given'"),
        (frame.assign(mz="heavy"), "column 'mz' must hold numbers"),
        (frame.assign(x1_y1=-1.0), "4 intensities are negative"),
        (frame.iloc[:0], "header but no rows"),
    ):
        change.to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(ValueError, match=message):
            read_metaspace(annotations, tmp_path / "bad.csv", pixel_size=20)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="0 bytes"):
        read_metaspace(tmp_path / "empty.csv", intensities, pixel_size=20)
    with pytest.raises(TypeError, match="Expected a path, an AnnData or a SpatialData, found int"):
        read_metaspace(3)


@pytest.mark.realdata
def test_annotations_of_a_real_dataset(data_dir):
    path = data_dir / "annotation" / "metaspace_annotations_HMDB.csv"
    source = pd.read_csv(path, comment="#")
    images = {ion: np.full((2, 3), 1.0 + i) for i, ion in enumerate(source["ion"])}
    table = read_metaspace(path, images, pixel_size=50, sample="lung").tables["msi"]
    assert table.n_vars == len(source) == 2069
    assert table.var["n_isomers"].tolist() == source["isomers"].tolist()
    assert table.var["molecule_ids"].tolist() == source["moleculeIds"].tolist()
    np.testing.assert_allclose(table.X.toarray()[0], np.arange(1, 2070))
    assert set(table.var["adduct"]) == {"[M+H]+", "[M+Na]+", "[M+K]+"}
    confident = read_metaspace(path, images, pixel_size=50, fdr=0.1).tables["msi"]
    assert confident.n_vars == (source["fdr"] <= 0.1).sum() == 100


MODIFIED = pd.DataFrame(
    {
        "formula": ["C6H12O6"] * 3,
        "adduct": ["M+H"] * 3,
        "chemMod": ["", "", "-H+C"],
        "neutralLoss": ["", "-H2O", ""],
        "ion": ["C6H12O6+H+", "C6H12O6-H2O+H+", "C6H12O6-H+C+H+"],
        "mz": [181.070665, 163.060101, 192.062840],
        "fdr": [0.05, 0.1, 0.2],
        "moleculeNames": ["Hexose"] * 3,
        "moleculeIds": ["X1"] * 3,
        "isomers": [1] * 3,
    }
)
PLAIN, LOSS, MOD = (np.full((2, 2), value) for value in (1.0, 2.0, 3.0))


def test_losses_and_modifications_have_their_own_images(tmp_path):
    path = _annotations(tmp_path / "a.csv", MODIFIED)
    own = {"C6H12O6-H2O+H+": LOSS, ("C6H12O6", "[M-H+C+H]+"): MOD}
    table = read_metaspace(path, {("C6H12O6", "M+H"): PLAIN, **own}, pixel_size=20).tables["msi"]
    assert table.X.toarray().tolist() == [[1, 2, 3]] * 4
    assert table.var["adduct"].tolist() == ["[M+H]+", "[M-H2O+H]+", "[M-H+C+H]+"]
    assert {"modified", "exported_adduct"}.isdisjoint(table.var)
    # the ion goes before the pair, which others share
    both = {("C6H12O6", "+H"): MOD, "C6H12O6+H+": PLAIN, **own}
    assert read_metaspace(path, both, pixel_size=20).tables["msi"].X.toarray()[0].tolist() == [1, 2, 3]
    for kept in ([0, 1], [1]):  # also where the ion without the loss is not annotated
        _annotations(path, MODIFIED.iloc[kept])
        with pytest.raises(ValueError, match=r"no image of 'C6H12O6-H2O\+H\+'.*give its image by the ion"):
            read_metaspace(path, {("C6H12O6", "M+H"): PLAIN}, pixel_size=20)


def test_an_ion_text_without_the_loss_tells_no_image(tmp_path):
    path = _annotations(tmp_path / "a.csv", MODIFIED.assign(ion="C6H12O6+H+").iloc[:2])
    with pytest.raises(ValueError, match="give its image by the ion"):
        read_metaspace(path, {"C6H12O6+H+": PLAIN}, pixel_size=20)


def test_one_ion_of_several_databases_has_one_image(tmp_path):
    twice = pd.concat([MODIFIED.iloc[[1]], MODIFIED.iloc[[1]].assign(moleculeIds="Y1")])
    path = _annotations(tmp_path / "a.csv", twice)
    table = read_metaspace(path, {"C6H12O6-H2O+H+": LOSS}, pixel_size=20).tables["msi"]
    assert table.X.toarray().tolist() == [[2, 2]] * 4


def test_intensities_of_losses_are_annotated(tmp_path):
    path = _annotations(tmp_path / "a.csv", MODIFIED)
    pixels = pd.DataFrame(
        {
            "mol_formula": ["C6H11O5", "C6H13O6", "C7H12O6"], "adduct": "+H", "mz": MODIFIED["mz"].iloc[[1, 0, 2]].to_numpy(),
            "moleculeNames": "Hexose", "moleculeIds": "X1", "x0_y0": [2.0, 1.0, 3.0], "x1_y0": [2.0, 1.0, 3.0],
        }
    )  # fmt: skip
    pixels.to_csv(tmp_path / "p.csv", index=False)
    table = read_metaspace(path, tmp_path / "p.csv", pixel_size=20).tables["msi"]
    assert table.var["adduct"].tolist() == ["[M-H2O+H]+", "[M+H]+", "[M-H+C+H]+"]
    assert table.var["fdr"].tolist() == [0.1, 0.05, 0.2]
    assert table.X.toarray()[0].tolist() == [2, 1, 3]


NEGATIVE = [
    "-H",
    "+Cl",
    "+Br",
    "+F",
    "+I",
    "+HCOO",
    "+CHO2",
    "+CH3COO",
    "+C2H3O2",
    "+C2F3O2",
    "+NO3",
    "-2H+Na",
    "+Na-2H",
    "-2H+K",
    "+HSO4",
    "-H-H2O",
    "-",
]
POSITIVE = ["+H", "+Na", "+K", "+NH4", "+Li", "-H+2Na", "+H-H2O", "+Ag", "+"]


@pytest.mark.parametrize(("adduct", "sign"), [(a, "-") for a in NEGATIVE] + [(a, "+") for a in POSITIVE])
@pytest.mark.parametrize("told", ["ion", "mass", "whole", "parts"])
def test_signs_of_adducts(tmp_path, adduct, sign, told):
    body = "" if adduct in ("+", "-") else adduct
    exact = parse_adduct(f"[M{body}]{sign}").mz(np.array([monoisotopic_mass("C6H12O6")]))[0]
    row = {"formula": "C6H12O6", "adduct": f"M{adduct}", "mz": exact if told != "parts" else 500.0, "moleculeIds": "X"}
    if told == "ion":
        row["ion"] = f"C6H12O6{body}{sign}"
    if told == "whole":
        row["adduct"] = f"[M{body}]{sign}"
    path = tmp_path / "a.csv"
    pd.DataFrame([row]).to_csv(path, index=False)
    table = read_metaspace(path, {("C6H12O6", row["adduct"]): PLAIN}, pixel_size=20, sample="s").tables["msi"]
    assert table.var["adduct"].tolist() == [f"[M{body}]{sign}"]
    assert table.uns["msi"]["attrs"]["s"]["polarity"] == {"+": "positive", "-": "negative"}[sign]


def test_the_mass_tells_the_sign_of_adducts_that_nobody_lists(tmp_path):
    for sign in "+-":
        mz = parse_adduct(f"[M+C20H14N]{sign}").mz(np.array([monoisotopic_mass("C6H12O6")]))[0]
        row = {"mol_formula": "C26H26NO6", "adduct": "+C20H14N", "mz": round(mz, 4), "x0_y0": 1.0, "x1_y0": 1.0}
        pd.DataFrame([row]).to_csv(tmp_path / "p.csv", index=False)
        table = read_metaspace(tmp_path / "p.csv", pixel_size=20).tables["msi"]
        assert table.var["adduct"].tolist() == [f"[M+C20H14N]{sign}"]


def test_the_polarity_of_the_dataset_tells_the_sign(converted):
    converted.var = converted.var.drop(columns="ion").assign(adduct="+C20H14N", neutralLoss="H2O")
    converted.uns["metaspace"]["polarity"] = "NEGATIVE"
    table = read_metaspace(converted).tables["msi"]
    assert set(table.var["adduct"]) == {"[M-H2O+C20H14N]-"}
    converted.var["adduct"] = "[M+H]+"  # a loss is not lost where the adduct is whole
    assert set(read_metaspace(converted).tables["msi"].var["adduct"]) == {"[M-H2O+H]+"}

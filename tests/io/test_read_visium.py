import gzip
import json
import shutil
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite
from scipy.spatial import cKDTree
from spatialdata.transformations import get_transformation

from stmsi.io import read_visium

UM_PER_PX = 0.4
GENES = ["Actb", "Gapdh", "Actb", "Sox17"]


def _mtx(folder, counts, barcodes):
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T))
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
    (folder / "matrix.mtx").unlink()
    features = "".join(f"ENS{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(GENES))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{b}\n" for b in barcodes).encode()))


def _h5(file, counts, barcodes):
    X = sp.csr_matrix(counts)
    with h5py.File(file, "w") as f:
        matrix = f.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = X.data, X.indices, X.indptr
        matrix["shape"] = X.shape[::-1]
        matrix["features/id"] = np.array([f"ENS{i}" for i in range(len(GENES))], dtype="S")
        matrix["features/name"] = np.array(GENES, dtype="S")
        matrix["features/feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")
        matrix["features/genome"] = np.array(["mm10"] * len(GENES), dtype="S")


class Folder:
    """A Space Ranger folder of 6 x 7 spots on a slide that lies rotated by 20 degrees; every fifth is off the tissue."""

    def __init__(self, path, counts="mtx", positions="tissue_positions.csv", images=("hires", "lowres"), diameter=65.0):
        self.path = path
        (path / "spatial").mkdir(parents=True)
        row, col = (a.ravel() for a in np.indices((6, 7)))
        col = 2 * col + row % 2
        angle = np.deg2rad(20)
        um = np.column_stack([50.0 * col, 50 * np.sqrt(3) * row])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self.px = um @ turn / UM_PER_PX + 900
        self.in_tissue = (np.arange(42) % 5 != 0).astype(int)
        self.barcodes = np.array([f"AAAC{i:04d}-1" for i in range(42)])
        self.counts = np.random.default_rng(0).poisson(2, (42, len(GENES))) + 1
        table = pd.DataFrame(
            {
                "barcode": self.barcodes,
                "in_tissue": self.in_tissue,
                "array_row": row,
                "array_col": col,
                "pxl_row_in_fullres": self.px[:, 1],
                "pxl_col_in_fullres": self.px[:, 0],
            }
        ).sample(frac=1, random_state=1)
        table.to_csv(path / "spatial" / positions, index=False, header="list" not in positions)
        inside = self.in_tissue == 1
        for kind, keep in (("raw", np.full(42, True)), ("filtered", inside)):
            write, suffix = (_mtx, "") if counts == "mtx" else (_h5, ".h5")
            write(path / f"{kind}_feature_bc_matrix{suffix}", self.counts[keep], self.barcodes[keep])
        scale = {
            "spot_diameter_fullres": diameter / UM_PER_PX,
            "fiducial_diameter_fullres": 300.0,
            "tissue_hires_scalef": 0.5,
            "tissue_lowres_scalef": 0.1,
        }
        (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(scale))
        from skimage.io import imsave

        for kind, side in (("hires", 60), ("lowres", 12)):
            if kind in images:
                image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
                imsave(path / "spatial" / f"tissue_{kind}_image.png", image, check_contrast=False)


@pytest.mark.parametrize("counts", ["mtx", "h5"])
@pytest.mark.parametrize("positions", ["tissue_positions.csv", "tissue_positions_list.csv"])
def test_spots_counts_and_positions(tmp_path, counts, positions):
    folder = Folder(tmp_path / "s1", counts, positions)
    sdata = read_visium(folder.path)
    table, inside = sdata.tables["st"], folder.in_tissue == 1
    assert table.obs_names.tolist() == folder.barcodes[inside].tolist()
    assert sp.issparse(table.X)
    assert table.X.format == "csr"
    np.testing.assert_array_equal(table.X.toarray(), folder.counts[inside])
    assert table.var_names.tolist() == ["Actb", "Gapdh", "Actb-1", "Sox17"]
    assert table.var["gene_ids"].tolist() == ["ENS0", "ENS1", "ENS2", "ENS3"]
    assert (table.obs["sample"] == "s1").all()
    assert (table.obs["in_tissue"] == 1).all()
    np.testing.assert_allclose(table.obsm["spatial"], folder.px[inside] * UM_PER_PX, rtol=1e-6)
    assert table.uns["st_units"]["s1"] == {
        "um_per_unit": pytest.approx(UM_PER_PX), "source": "array_row and array_col",
    }  # fmt: skip
    shapes = sdata.shapes["s1_spots"]
    np.testing.assert_allclose(shapes["radius"], 27.5)
    np.testing.assert_allclose(np.column_stack([shapes.geometry.x, shapes.geometry.y]), table.obsm["spatial"])
    assert list(get_transformation(shapes, get_all=True)) == ["s1"]


def test_off_tissue_spots_come_from_the_raw_matrix(tmp_path):
    folder = Folder(tmp_path / "s1")
    table = read_visium(folder.path, keep_off_tissue=True, images=False).tables["st"]
    np.testing.assert_array_equal(table.X.toarray(), folder.counts)
    assert table.obs["in_tissue"].tolist() == folder.in_tissue.tolist()
    raw = read_visium(folder.path, counts_file="raw_feature_bc_matrix", images=False).tables["st"]
    assert raw.n_obs == folder.in_tissue.sum()


@pytest.mark.parametrize(("images", "factor"), [(("hires", "lowres"), 0.5), (("lowres",), 0.1)])
def test_image_lies_under_the_spots(tmp_path, images, factor):
    folder = Folder(tmp_path / "outs", images=images)
    sdata = read_visium(folder.path, sample="s1")
    transformations = get_transformation(sdata.images["s1_he"], get_all=True)
    assert list(transformations) == ["s1"]
    matrix = transformations["s1"].to_affine_matrix(("x", "y"), ("x", "y"))
    pixel = np.column_stack([folder.px * factor, np.ones(42)])[folder.in_tissue == 1]  # where Space Ranger says it is
    np.testing.assert_allclose((pixel @ matrix.T)[:, :2], sdata.tables["st"].obsm["spatial"], rtol=1e-6)
    assert len(read_visium(folder.path, images=False).images) == 0


def test_no_image_is_fine(tmp_path):
    assert len(read_visium(Folder(tmp_path / "s1", images=()).path).images) == 0


def test_name_of_the_section(tmp_path):
    folder = Folder(tmp_path / "section 1" / "outs", images=())
    assert list(read_visium(folder.path).shapes) == ["section_1_spots"]
    assert list(read_visium(folder.path, sample="b").shapes) == ["b_spots"]
    with pytest.raises(ValueError, match="has characters that SpatialData refuses"):
        read_visium(folder.path, sample="section 1")


def test_prefixed_h5(tmp_path):
    folder = Folder(tmp_path / "s1", counts="h5", images=())
    file = folder.path / "filtered_feature_bc_matrix.h5"
    shutil.move(file, folder.path / "V1_Brain_filtered_feature_bc_matrix.h5")
    assert read_visium(folder.path).tables["st"].n_obs == folder.in_tissue.sum()
    shutil.copy(folder.path / "V1_Brain_filtered_feature_bc_matrix.h5", folder.path / "b_filtered_feature_bc_matrix.h5")
    with pytest.raises(ValueError, match=r"several count matrices: 'V1_Brain_filtered.*counts_file="):
        read_visium(folder.path)


@pytest.mark.parametrize("diameter", [65.0 * 1.5, 65.0 / 1.5])
def test_pitch_and_scale_factor_that_disagree_warn_and_the_pitch_wins(tmp_path, diameter):
    folder = Folder(tmp_path / "s1", diameter=diameter, images=())
    with pytest.warns(UserWarning, match="array pitch gives 0.4 um per pixel, spot_diameter_fullres"):
        table = read_visium(folder.path).tables["st"]
    np.testing.assert_allclose(table.obsm["spatial"], folder.px[folder.in_tissue == 1] * UM_PER_PX, rtol=1e-6)


def test_too_few_spots_for_a_pitch(tmp_path):
    folder = Folder(tmp_path / "s1", images=())
    shutil.rmtree(folder.path / "filtered_feature_bc_matrix")
    _mtx(folder.path / "filtered_feature_bc_matrix", folder.counts[1:3], folder.barcodes[1:3])
    with pytest.warns(UserWarning, match="too few spots to measure the pitch"):
        table = read_visium(folder.path).tables["st"]
    np.testing.assert_allclose(table.obsm["spatial"], folder.px[1:3] * UM_PER_PX)


def test_bad_folders_raise(tmp_path):
    folder = Folder(tmp_path / "s1" / "outs", images=())
    spatial, counts = folder.path / "spatial", folder.path / "filtered_feature_bc_matrix"

    def fails(message, error, path=folder.path, **options):
        with pytest.raises(error, match=message):
            read_visium(path, **options)

    fails("There is no folder", FileNotFoundError, tmp_path / "none")
    fails("is a file", ValueError, spatial / "tissue_positions.csv")
    fails("no folder 'spatial'; found 'outs'. Try .*outs", FileNotFoundError, tmp_path / "s1")
    fails("has no counts mine.h5; found 'filtered_feature_bc_matrix'", FileNotFoundError, counts_file="mine.h5")
    scale = spatial / "scalefactors_json.json"
    text = scale.read_text()
    scale.write_text("{")
    fails("cannot be read as the scale factors", ValueError)
    scale.write_text("{}")
    fails("lacks 'spot_diameter_fullres'", ValueError)
    scale.unlink()
    fails("There is no .*scalefactors_json.json", FileNotFoundError)
    scale.write_text(text)
    (counts / "matrix.mtx.gz").write_bytes(b"not compressed")
    fails("cannot be read", ValueError)
    h5 = folder.path / "other.h5"
    with h5py.File(h5, "w") as file:
        file["numbers"] = [1, 2]
    fails("other.h5 cannot be read as counts of Space Ranger", ValueError, counts_file="other.h5")
    shutil.rmtree(counts)
    fails("has no counts filtered_feature_bc_matrix.h5", FileNotFoundError)
    (spatial / "tissue_positions.csv").rename(spatial / "tissue_positions.parquet")
    fails("none of 'tissue_positions.csv'.*Visium HD", FileNotFoundError)


def test_barcodes_without_a_position_and_no_tissue(tmp_path):
    folder = Folder(tmp_path / "s1", images=())
    file = folder.path / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(file)
    table[~table["barcode"].isin(folder.barcodes[1:3])].to_csv(file, index=False)
    with pytest.raises(ValueError, match="2 barcodes have no tissue position: 'AAAC0001-1', 'AAAC0002-1'"):
        read_visium(folder.path)
    table.assign(in_tissue=0).to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"No spot of .* lies in the tissue; pass keep_off_tissue=True"):
        read_visium(folder.path)


def test_result_survives_a_zarr_store(tmp_path):
    import spatialdata

    sdata = read_visium(Folder(tmp_path / "s1").path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr announces defaults of its next release
        sdata.write(tmp_path / "a.zarr")
        again = spatialdata.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.tables["st"].X.toarray(), sdata.tables["st"].X.toarray())
    assert again.tables["st"].obs["array_row"].tolist() == sdata.tables["st"].obs["array_row"].tolist()
    assert set(again.images) == {"s1_he"}


@pytest.mark.realdata
def test_placenta(data_dir):
    path = data_dir / "spaceranger_placenta"
    sdata = read_visium(path, sample="placenta")
    table = sdata.tables["st"]
    assert table.shape == (2898, 19465)
    assert table.X.sum() == int(table.X.sum())
    assert table.var_names.is_unique
    nearest = cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=2)[0][:, 1]
    assert np.median(nearest) == pytest.approx(100, rel=0.01)
    assert sdata.images["placenta_he"].shape == (3, 600, 600)
    scale = json.loads((path / "spatial" / "scalefactors_json.json").read_text())
    matrix = get_transformation(sdata.images["placenta_he"], "placenta").to_affine_matrix(("x", "y"), ("x", "y"))
    position = pd.read_csv(path / "spatial" / "tissue_positions.csv", index_col=0).loc[table.obs_names]
    pixel = position[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy() * scale["tissue_lowres_scalef"]
    np.testing.assert_allclose(pixel * np.diag(matrix)[:2], table.obsm["spatial"], rtol=1e-6)

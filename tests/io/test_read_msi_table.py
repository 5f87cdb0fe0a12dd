import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stmsi.io import read_msi_table

ROWS, COLS = 4, 5
IONS = ["104.107", "mz-426.9288", "lactate"]


@pytest.fixture
def frame():
    """A raster with a hole, its rows in no particular order, 50 um in x and 40 in y, away from the origin."""
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.indices((ROWS, COLS)))
    table = pd.DataFrame({"x": 1000.0 + 50 * col, "y": 300.0 + 40 * row})
    for ion in IONS:
        table[ion] = rng.poisson(3, len(table)).astype(float)
    return table.drop(index=7).sample(frac=1, random_state=0).reset_index(drop=True)


def _write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.parquet"])
@pytest.mark.filterwarnings("ignore:a.*most columns are m/z")
def test_wide_tables_give_the_values_the_raster_and_the_size(frame, tmp_path, name):
    table = read_msi_table(_write(frame, tmp_path / name)).tables["msi"]
    np.testing.assert_array_equal(table.X.toarray(), frame[IONS].to_numpy(np.float32))
    np.testing.assert_array_equal(table.obs["row"], (frame["y"] - 300) / 40)
    np.testing.assert_array_equal(table.obs["col"], (frame["x"] - 1000) / 50)
    assert table.var["mz"].tolist()[:2] == [104.107, 426.9288]
    assert np.isnan(table.var["mz"]["lactate"])
    attrs = table.uns["msi"]["attrs"]["a"]
    assert attrs["pixel_size"].tolist() == [50, 40]
    assert attrs["origin"].tolist() == [1000, 300]
    assert (table.obs["sample"] == "a").all()


def test_result_survives_a_zarr_store(frame, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    import warnings

    sdata = read_msi_table(_write(frame[["x", "y", *IONS[:2]]], tmp_path / "a.csv"), sample="s1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr announces defaults of its next release
        sdata.write(tmp_path / "a.zarr")
        again = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert set(again.shapes) == {"s1_pixels"}
    np.testing.assert_array_equal(again.tables["msi"].X.toarray(), sdata.tables["msi"].X.toarray())
    assert again.tables["msi"].uns["msi"]["attrs"]["s1"]["pixel_size"].tolist() == [50, 40]


def test_columns_that_are_no_ions(frame, tmp_path):
    frame = frame[["x", "y", *IONS[:2]]].assign(region="tumour")
    path = _write(frame, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"column 'region' must hold numbers.*'tumour'.*obs_keys="):
        read_msi_table(path)
    with pytest.raises(ValueError, match="obs_keys names 'region', which stmsi writes itself"):
        read_msi_table(path, obs_keys=["region"])
    path = _write(frame.rename(columns={"region": "part"}), tmp_path / "b.csv")
    assert (read_msi_table(path, obs_keys=["part"]).tables["msi"].obs["part"] == "tumour").all()


def test_a_numeric_column_among_mz_warns(frame, tmp_path):
    path = _write(frame.assign(**{"300.5": 1.0}), tmp_path / "a.csv")
    with pytest.warns(UserWarning, match="'lactate' are not; they are read as ions"):
        read_msi_table(path)


def test_the_nameless_index_column_is_dropped(frame, tmp_path):
    frame[["x", "y", *IONS[:2]]].to_csv(tmp_path / "a.csv")
    assert read_msi_table(tmp_path / "a.csv").tables["msi"].n_vars == 2


def test_indices_need_a_pixel_size(frame, tmp_path):
    frame = frame[["x", "y", *IONS[:2]]].assign(x=(frame["x"] - 1000) / 50, y=(frame["y"] - 300) / 40)
    path = _write(frame, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"raster indices.*pass pixel_size="):
        read_msi_table(path)
    sdata = read_msi_table(path, pixel_size=(100, 50))
    bounds = sdata.shapes["a_pixels"].total_bounds
    assert bounds.tolist() == [0, 0, 100 * COLS, 50 * ROWS]


def test_rounded_coordinates_do_not_drift(tmp_path):
    col = np.arange(600)
    table = pd.DataFrame({"x": np.round(col * (100 / 3), 1), "y": 5.0, "100.5": 1.0})
    out = read_msi_table(_write(table, tmp_path / "a.csv")).tables["msi"]
    assert out.obs["col"].tolist() == col.tolist()
    assert out.uns["msi"]["attrs"]["a"]["pixel_size"] == pytest.approx([100 / 3] * 2, rel=1e-4)


@pytest.mark.parametrize("jitter", ["rotated", "noisy"])
def test_coordinates_off_the_raster_raise(frame, tmp_path, jitter):
    rng = np.random.default_rng(0)
    frame = pd.concat([frame.assign(x=frame["x"] + 1000 * i) for i in range(20)], ignore_index=True)
    if jitter == "rotated":
        angle = np.deg2rad(7)
        x, y = frame["x"], frame["y"]
        frame = frame.assign(x=np.cos(angle) * x - np.sin(angle) * y, y=np.sin(angle) * x + np.cos(angle) * y)
    else:
        frame = frame.assign(x=np.round(frame["x"] + rng.normal(0, 8, len(frame)), 2))
    with pytest.raises(ValueError, match="not on a raster"):
        read_msi_table(_write(frame[["x", "y", "104.107"]], tmp_path / "a.csv"))


BAD_TEXT = {
    "semicolons": ("x;y;100.5\n1;2;3\n", r"only one column.*separator=';'"),
    "more fields than names": ("x,y,100.5\n0,1,2,3\n1,5,6,7\n", "rows of unequal length.*every column has a name"),
    "decimal commas between commas": ("x,y,100.5\n0,5,1,5,2,5\n1,5,1,5,2,5\n", "rows of unequal length.*decimal=','"),
    "unequal rows": ("x,y,100.5\n1,2,3\n1,2,3,4,5\n", "rows of unequal length"),
    "no x": ("px,y,100.5\n1,2,3\n", r"no column 'x'; found 'px', 'y', '100.5'.*x_key="),
    "twice the same ion": ("x,y,100.5,100.5\n1,2,3,4\n", "repeats columns: '100.5'"),
    "text": ("x,y,100.5\n1,2,3\n2,2,high\n", r"column '100.5' must hold numbers; in 1 rows it holds text: 'high'"),
    "text in x": ("x,y,100.5\n1,2,3\nleft,2,4\n", "column 'x' must hold numbers.*'left'"),
    "NaN": ("x,y,100.5,200.5\n1,2,3,4\n2,2,,4\n", "1 intensities are NaN, in '100.5'; fill them with 0"),
    "negative": ("x,y,100.5,200.5\n1,2,3,4\n2,2,3,-4\n", "1 intensities are negative, in '200.5'"),
    "infinite": ("x,y,100.5\n1,2,inf\n2,2,3\n", "1 intensities are infinite, in '100.5'"),
    "twice the same place": ("x,y,100.5\n1,2,3\n2,2,3\n1,2,4\n", r"1 pixels share the position.*\(1.0, 2.0\)"),
    "missing place": ("x,y,100.5\n1,2,3\n,2,3\n", "x has 1 coordinates that are missing"),
    "header only": ("x,y,100.5\n", "header but no pixels"),
    "no ion": ("x,y\n1,2\n", "no ion"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_tables_raise_with_the_remedy(tmp_path, case):
    text, message = BAD_TEXT[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_msi_table(tmp_path / "a.csv", pixel_size=50)


def test_decimal_commas(tmp_path):
    (tmp_path / "a.csv").write_text("x;y;100,5\n0;0;1,25\n1;0;2,5\n")
    with pytest.raises(ValueError, match=r"decimal commas.*decimal=','"):
        read_msi_table(tmp_path / "a.csv", separator=";", pixel_size=50)
    table = read_msi_table(tmp_path / "a.csv", separator=";", decimal=",", pixel_size=50).tables["msi"]
    assert table.X.toarray().ravel().tolist() == [1.25, 2.5]


def test_bad_files_raise(frame, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_msi_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a directory"):
        read_msi_table(tmp_path)
    (tmp_path / "zero.csv").touch()
    with pytest.raises(ValueError, match="0 bytes"):
        read_msi_table(tmp_path / "zero.csv")
    for name in ("a.xlsx", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(ValueError, match="Cannot tell the format"):
            read_msi_table(tmp_path / name)
    for name, message in (
        ("a.h5ad", "cannot be read as an h5ad file"),
        ("a.parquet", "cannot be read as a parquet file"),
        ("a.csv.gz", "not compressed"),
    ):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(ValueError, match=message):
            read_msi_table(tmp_path / name)
    whole = gzip.compress(frame.to_csv(index=False).encode())
    (tmp_path / "b.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_msi_table(tmp_path / "b.csv.gz")
    with pytest.raises(ValueError, match=r"table_format='cvs' is not known.*Did you mean 'csv'"):
        read_msi_table(_write(frame, tmp_path / "c.csv"), table_format="cvs")


@pytest.fixture
def adata(frame):
    var = pd.DataFrame(
        {"raw_mz": [104.107, 426.9288, 89.02], "formula": ["C5", None, "C3"]}, index=["a", "b", "PC(34:1)"]
    )
    out = ad.AnnData(sp.csr_matrix(frame[IONS].to_numpy(np.float32)), var=var)
    out.obs["x_coord"], out.obs["y_coord"] = frame["x"].to_numpy(), frame["y"].to_numpy()
    return out


@pytest.mark.parametrize("where", ["obsm", "obs"])
def test_h5ad(adata, frame, tmp_path, where):
    keys = {"x_key": "x_coord", "y_key": "y_coord"} if where == "obs" else {}
    if where == "obsm":
        adata.obsm["spatial"] = frame[["x", "y"]].to_numpy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    table = read_msi_table(tmp_path / "a.h5ad", **keys).tables["msi"]
    np.testing.assert_array_equal(table.X.toarray(), frame[IONS].to_numpy(np.float32))
    np.testing.assert_array_equal(table.obs["col"], (frame["x"] - 1000) / 50)
    assert table.var["mz"].tolist() == [104.107, 426.9288, 89.02]
    assert table.var["name"].tolist() == ["a", "b", "PC(34:1)"]
    assert table.var["formula"].tolist() == ["C5", "", "C3"]


def test_h5ad_errors_and_options(adata, frame, tmp_path):
    path = tmp_path / "a.h5ad"
    adata.layers["raw"] = adata.X * 2
    adata.write_h5ad(path)
    with pytest.raises(ValueError, match=r"no positions.*'x_coord', 'y_coord'.*x_key="):
        read_msi_table(path)
    keys = {"x_key": "x_coord", "y_key": "y_coord"}
    with pytest.raises(ValueError, match="no column 'mass'; found 'raw_mz'"):
        read_msi_table(path, mz_key="mass", **keys)
    with pytest.raises(ValueError, match="no layer 'counts'; found 'raw'"):
        read_msi_table(path, layer="counts", **keys)
    doubled = read_msi_table(path, layer="raw", **keys).tables["msi"]
    np.testing.assert_array_equal(doubled.X.toarray(), 2 * frame[IONS].to_numpy(np.float32))
    adata.X.data[0] = -1
    adata.write_h5ad(path)
    with pytest.raises(ValueError, match="1 intensities are negative"):
        read_msi_table(path, **keys)


@pytest.mark.realdata
def test_bladder(data_dir):
    path = data_dir / "msi_bladder" / "bladder_msi.h5ad"
    with pytest.raises(ValueError, match="pass pixel_size="):
        read_msi_table(path)
    source = ad.read_h5ad(path)
    sdata = read_msi_table(path, pixel_size=10)
    table = sdata.tables["msi"]
    assert table.shape == (34840, 79)
    assert (table.obs["row"].max() + 1, table.obs["col"].max() + 1) == (134, 260)
    np.testing.assert_array_equal(table.var["mz"], source.var["observed_mz"])
    np.testing.assert_array_equal(table.obs["col"].to_numpy() + 1, source.obs["x_coord"])
    assert (table.X != source.X).nnz == 0
    assert sdata.shapes["bladder_msi_pixels"].total_bounds.tolist() == [0, 0, 2600, 1340]


def test_other_hdf5_files_and_positions_of_one_column(adata, tmp_path):
    import h5py

    with h5py.File(tmp_path / "tenx.h5ad", "w") as file:
        file.create_group("matrix")
    with pytest.raises(ValueError, match=r"tenx\.h5ad is an HDF5 file but not an AnnData.*found 'matrix'"):
        read_msi_table(tmp_path / "tenx.h5ad", pixel_size=10)
    adata.obsm["spatial"] = np.ones((adata.n_obs, 1))
    adata.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] must have the columns x and y, found shape"):
        read_msi_table(tmp_path / "one.h5ad", pixel_size=10)


SCILS = "# Exported with SCiLS Lab Version 14.01.15378\n# Object type: Spectra\n#\n"


@pytest.fixture
def scils(tmp_path):
    """The two exports of SCiLS Lab: spots counted from 1 in the one and from 0 in the other, micrometres of the stage."""
    spectra = ["m/z;104.107;760.5851;", "Spot 1;1;0;", "Spot 2;2;5.5;", "Spot 3;0;7;", "Spot 4;4;8;"]
    spots = ["Spot index;x;y", "3;3478.25;9839.5", "0;3438.25;9799.5", "1;3478.25;9799.5", "2;3438.25;9839.5"]
    (tmp_path / "spectra.csv").write_text(SCILS + "\n".join(spectra) + "\n")
    (tmp_path / "spots.csv").write_text(SCILS + "\n" + "\n".join(spots) + "\n")
    return tmp_path


def test_spectra_of_scils_with_their_spots(scils):
    table = read_msi_table(scils / "spectra.csv", coordinates=scils / "spots.csv").tables["msi"]
    assert table.X.toarray().tolist() == [[1, 0], [2, 5.5], [0, 7], [4, 8]]
    assert table.obs[["row", "col"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert table.uns["msi"]["attrs"]["spectra"]["pixel_size"].tolist() == [40, 40]
    assert table.var["mz"].tolist() == [104.107, 760.5851]


def test_rows_of_scils_that_alone_end_with_a_separator(scils):
    text = (scils / "spectra.csv").read_text().replace("760.5851;", "760.5851")
    (scils / "spectra.csv").write_text(text)
    table = read_msi_table(scils / "spectra.csv", coordinates=scils / "spots.csv").tables["msi"]
    assert table.X.toarray().tolist() == [[1, 0], [2, 5.5], [0, 7], [4, 8]]


def test_exports_of_scils_that_cannot_be_read_say_what_is_missing(scils):
    with pytest.raises(ValueError, match=r"spectra of spots without their places; pass coordinates="):
        read_msi_table(scils / "spectra.csv")
    (scils / "spots.csv").write_text(SCILS + "Spot index;x;y\n0;1;1\n1;2;1\n2;1;2\n")
    with pytest.raises(ValueError, match=r"1 spots of spectra.csv have no place in spots.csv: 'Spot 4'"):
        read_msi_table(scils / "spectra.csv", coordinates=scils / "spots.csv")
    (scils / "spots.csv").write_text(SCILS + "index;x;y\n0;1;1\n")
    with pytest.raises(ValueError, match=r"no column 'Spot index'.*Export the region spots"):
        read_msi_table(scils / "spectra.csv", coordinates=scils / "spots.csv")
    features = "m/z;Interval Width (+/- Da);Color;Name;Peak area - liver\n260.186;0.4;#fff;a;12.5\n"
    (scils / "features.csv").write_text(SCILS + features)
    with pytest.raises(ValueError, match=r"'260.186': a list of features, one value per region"):
        read_msi_table(scils / "features.csv")


def test_comments_before_a_wide_table(tmp_path):
    (tmp_path / "a.csv").write_text(SCILS + "x;y;m/z 104.107;m/z 89.02\n0;0;1.5;2\n50;0;0;3\n")
    table = read_msi_table(tmp_path / "a.csv").tables["msi"]
    assert table.var["mz"].tolist() == [104.107, 89.02]
    assert table.X.toarray().tolist() == [[1.5, 2], [0, 3]]
    with pytest.raises(ValueError, match=r"coordinates= goes with an export of spectra of SCiLS Lab"):
        read_msi_table(tmp_path / "a.csv", coordinates=tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(SCILS)
    with pytest.raises(ValueError, match="holds no table"):
        read_msi_table(tmp_path / "b.csv")

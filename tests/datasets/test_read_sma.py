import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi.datasets import read_sma

MZ = ["104.10701", "760.58510", "281.24860"]
ROWS, COLS = 9, 11
DHB, FMP, NINE = (
    "V11L12-038_A1.Visium.DHB.220826",
    "V11L12-109_B1.Visium.FMP.220826",
    "V11L12-038_Mouse_D1.Visium.9aa.220826",
)


def _table(seed=0, ions=MZ):
    """A filled rectangle as in the deposit: x before y, zeros off the tissue."""
    x, y = (a.ravel() for a in np.indices((COLS, ROWS)))
    table = pd.DataFrame({"x": x, "y": y})
    values = np.random.default_rng(seed).gamma(2, 100, (len(x), len(ions)))
    values[(x == 0) | (y == ROWS - 1)] = 0
    return pd.concat([table, pd.DataFrame(values, columns=ions)], axis=1)


@pytest.fixture
def deposit(tmp_path, space_ranger):
    """Writes sections of the deposit, by the stems of their tables."""

    def write(*stems, visium=True):
        for seed, stem in enumerate(stems):
            section = stem.split(".")[0].replace("_Mouse", "")
            output = tmp_path / "sma" / section.split("_")[0] / section / "output_data"
            (output / f"{section}_MSI").mkdir(parents=True)
            _table(seed).to_csv(output / f"{section}_MSI" / f"{stem}_smamsi.csv", index=False)
            if visium:
                space_ranger(output / f"{section}_RNA" / "outs", seed=seed)
        return tmp_path / "sma"

    return write


def test_one_section_is_a_paired_object_ready_to_align(deposit, through_zarr):
    sdata = read_sma(deposit(FMP))
    sample = "V11L12-109_B1"
    assert {f"{sample}_spots", f"{sample}_pixels"} == set(sdata.shapes)
    assert list(sdata.images) == [f"{sample}_he"]
    table, source = sdata.tables["msi"], _table()
    filled = source[MZ].sum(axis=1) > 0
    np.testing.assert_array_equal(table.X.toarray(), source.loc[filled, MZ].to_numpy(np.float32))
    np.testing.assert_array_equal(table.obs["col"], source.loc[filled, "x"])
    np.testing.assert_array_equal(table.obs["row"], source.loc[filled, "y"])
    assert table.var["mz"].tolist() == [float(mz) for mz in MZ]
    attrs = table.uns["msi"]["attrs"][sample]
    assert (attrs["matrix"], attrs["polarity"], attrs["pixel_size"].tolist()) == ("FMP-10", "positive", [100, 100])
    # the raster keeps its indices where its first column is empty
    assert table.obs["col"].min() == 1
    with pytest.raises(ValueError, match="not aligned"):
        stmsi.pp.map_to_spots(sdata)
    stmsi.pp.align(sdata, transformation={sample: [[1, 0, 500], [0, 1, 500]]})
    stmsi.pp.map_to_spots(sdata)
    assert sdata.tables["st"].obsm["msi"].notna().all(axis=1).any()
    again = through_zarr(sdata)
    np.testing.assert_array_equal(again.tables["msi"].X.toarray(), table.X.toarray())
    assert again.tables["msi"].uns["msi"]["attrs"][sample]["matrix"] == "FMP-10"


def test_all_pixels_of_the_rectangle(deposit):
    table = read_sma(deposit(DHB), keep_empty=True, images=False).tables["msi"]
    assert table.n_obs == ROWS * COLS
    assert table.uns["msi"]["attrs"]["V11L12-038_A1"]["polarity"] == "unknown"  # DHB goes with both


def test_sections_of_one_matrix_go_together_and_of_several_do_not(deposit):
    root = deposit(DHB, NINE, DHB.replace("A1", "B1"))
    with pytest.raises(ValueError, match=r"several MALDI matrices, 'DHB', '9-AA'.*pass matrix="):
        read_sma(root)
    sdata = read_sma(root, matrix="DHB", images=False)
    assert sorted(sdata.tables["msi"].obs["sample"].unique()) == ["V11L12-038_A1", "V11L12-038_B1"]
    one = read_sma(root, sample="V11L12-038_D1", images=False).tables["msi"]
    assert one.uns["msi"]["attrs"]["V11L12-038_D1"]["polarity"] == "negative"
    with pytest.raises(KeyError, match=r"No section 'V11L12-038_C1'.*found 'V11L12-038_A1'"):
        read_sma(root, sample="V11L12-038_C1")
    with pytest.raises(ValueError, match=r"matrix='9AA' is not known.*Did you mean '9-AA'"):
        read_sma(root, matrix="9AA")


def test_the_table_beside_outs(tmp_path, space_ranger):
    space_ranger(tmp_path / "s1" / "outs")
    _table().to_csv(tmp_path / "s1" / "s1_smamsi.csv", index=False)
    (tmp_path / "s1" / "._s1_smamsi.csv").write_bytes(b"\0")  # macOS leaves them in archives
    sdata = read_sma(tmp_path, images=False, pixel_size=80)
    assert list(sdata.tables["msi"].obs["sample"].unique()) == ["s1"]
    assert sdata.tables["msi"].uns["msi"]["attrs"]["s1"]["matrix"] == "unknown"


def test_what_is_missing_is_named(deposit, tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_sma(tmp_path / "sma")
    root = deposit(DHB, visium=False)
    with pytest.raises(FileNotFoundError, match=r"No table of .* has a Space Ranger folder.*_RNA/outs"):
        read_sma(root)
    with pytest.raises(FileNotFoundError, match=r"Section 'V11L12-038_A1' of .* has no Space Ranger folder"):
        read_sma(root, sample="V11L12-038_A1")
    deposit(DHB.replace("A1", "B1"))
    with caplog.at_level("WARNING", logger="stmsi"):
        sdata = read_sma(root, images=False)
    assert list(sdata.tables["msi"].obs["sample"].unique()) == ["V11L12-038_B1"]
    assert "left out: 'V11L12-038_A1'" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"holds no table \*smamsi.csv; found 'filtered"):
        read_sma(root / "V11L12-038" / "V11L12-038_B1" / "output_data" / "V11L12-038_B1_RNA" / "outs")
    with pytest.raises(ValueError, match="is a file; pass the folder"):
        read_sma(next(root.rglob("*smamsi.csv")))


BAD = {
    "no place": (lambda t: t.rename(columns={"x": "px"}), "no column 'x'; found 'px'"),
    "text": (
        lambda t: t.astype({MZ[1]: object}).assign(**{MZ[1]: lambda u: u[MZ[1]].where(u.index != 3, "high")}),
        "must hold numbers; in 1 rows it holds text: 'high'",
    ),
    "half a pixel": (lambda t: t.assign(x=t["x"] + np.where(t.index == 5, 0.4, 0)), "not on a raster"),
    "negative": (lambda t: t.assign(**{MZ[0]: -1.0}), f"intensities are negative, in '{MZ[0]}'"),
    "decimal commas": (
        lambda t: t[MZ[0]].map("{:.2f}".format).str.replace(".", ",").pipe(lambda v: t.assign(**{MZ[0]: v})),
        "has decimal commas.*decimal points",
    ),
    "nothing": (lambda t: t.assign(**dict.fromkeys(MZ, 0.0)), "holds no intensity above 0"),
    "no pixels": (lambda t: t.iloc[:0], "header but no pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_raise(deposit, case):
    change, message = BAD[case]
    root = deposit(DHB)
    file = next(root.rglob("*smamsi.csv"))
    change(_table()).to_csv(file, index=False, sep=";" if case == "negative" else ",")
    with pytest.raises(ValueError, match=message):
        read_sma(root)


def test_two_tables_for_one_section_raise(deposit):
    root = deposit(DHB)
    file = next(root.rglob("*smamsi.csv"))
    file.with_name("V11L12-038_A1.Visium.DHB.again_smamsi.csv").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="several tables for one section"):
        read_sma(root)


@pytest.mark.realdata
def test_the_default_pixel_size_fits_the_area_of_a_real_section(data_dir, tmp_path, space_ranger):
    """Spots and pixels of the same tissue cover the same area; genes and ions of the section are not at hand."""
    folder = data_dir / "registration" / "sma_V11L12-109_B1"
    pixels = pd.read_csv(folder / "msi_pixels.csv")[["x", "y"]]
    n_spots = len(pd.read_csv(folder / "st_spots.csv"))
    side = np.sqrt(n_spots * 100 * 50 * np.sqrt(3) / len(pixels))
    assert 90 < side < 110
    space_ranger(tmp_path / "outs")
    pixels.assign(**{"104.107": 1.0}).to_csv(tmp_path / "V11L12-109_B1.Visium.FMP.220826_smamsi.csv", index=False)
    table = read_sma(tmp_path, images=False).tables["msi"]
    np.testing.assert_array_equal(table.obs[["col", "row"]], pixels)

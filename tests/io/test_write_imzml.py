import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from pyimzml.ImzMLParser import ImzMLParser
from pyimzml.ImzMLWriter import ImzMLWriter

from stmsi._data.sections import msi_section
from stmsi.get import feature_table
from stmsi.io import read_imzml, write_imzml


@pytest.fixture
def section():
    rng = np.random.default_rng(0)
    row, col = np.nonzero(rng.random((6, 5)) < 0.8)
    X = rng.poisson(1.0, (len(row), 4)) * np.array([1, 0.5, 3, 1])
    X[3] = 0
    var = pd.DataFrame({"mz": [300.1, 104.107, 760.5851, 200.25]}, index=["b", "a", "PC(34:1)", "c"])
    attrs = {"polarity": "negative", "origin": np.array([4, 9])}
    return msi_section(X, var, row - row.min(), col - col.min(), sample="s", pixel_size=(50, 25), attrs=attrs)


@pytest.mark.parametrize("mode", ["continuous", "processed"])
@pytest.mark.parametrize("as_table", [False, True])
def test_read_back_equal(tmp_path, section, mode, as_table):
    table = section.tables["msi"]
    write_imzml(table if as_table else section, tmp_path / "s.imzML", mode=mode)
    again = read_imzml(tmp_path / "s.imzML", mz=table.var["mz"]).tables["msi"]
    np.testing.assert_array_equal(again.X.toarray(), table.X.toarray())
    np.testing.assert_array_equal(again.obs[["row", "col"]], table.obs[["row", "col"]])
    attrs = again.uns["msi"]["attrs"]["s"]
    assert attrs["pixel_size"].tolist() == [50, 25]
    assert attrs["origin"].tolist() == [4, 9]
    assert (attrs["polarity"], attrs["mode"], attrs["spectrum_type"]) == ("negative", mode, "centroid")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.ibd", "s.imzML"]


def test_others_can_read_it(tmp_path, section):
    write_imzml(section, tmp_path / "R&D <1>.imzML")
    with ImzMLParser(str(tmp_path / "R&D <1>.imzML")) as parser:
        assert parser.imzmldict["pixel size x"] == 50
        mz, intensity = parser.getspectrum(2)
        np.testing.assert_array_equal(mz, [104.107, 200.25, 300.1, 760.5851])
        np.testing.assert_array_equal(intensity, section.tables["msi"].X.toarray()[2, [1, 3, 0, 2]])


def test_layers(tmp_path, section):
    table = section.tables["msi"]
    table.layers["double"] = sp.csr_matrix(table.X * 2)
    write_imzml(section, tmp_path / "s.imzML", layer="double")
    again = read_imzml(tmp_path / "s.imzML", mz=table.var["mz"]).tables["msi"]
    np.testing.assert_array_equal(again.X.toarray(), 2 * table.X.toarray())
    with pytest.raises(KeyError, match="no layer 'raw'; layers: 'double'"):
        write_imzml(section, tmp_path / "t.imzML", layer="raw")


def test_predictions_on_a_lattice(tmp_path, st):
    name = str(st.obs["sample"].iloc[-1])
    own = (st.obs["sample"] == name).to_numpy()
    mz = feature_table(st)["mz"]
    covered = st.obsm["msi"][own].notna().any(axis=1).to_numpy()
    write_imzml(st, tmp_path / "p.imzML", metabolite_key="msi", sample=name)
    again = read_imzml(tmp_path / "p.imzML", mz=mz, tolerance=0.01).tables["msi"]
    np.testing.assert_allclose(again.X.toarray(), st.obsm["msi"][own][covered], rtol=1e-6)
    place = st.obs[["array_row", "array_col"]][own].to_numpy()
    found = again.obs[["row", "col"]].to_numpy()
    np.testing.assert_array_equal(found - found[0], (place - place[0])[covered])
    size = again.uns["msi"]["attrs"]["p"]["pixel_size"]
    np.testing.assert_allclose(size, [50, 100 * np.sqrt(3) / 2], rtol=0.01)


@pytest.mark.parametrize("mode", ["continuous", "processed"])
def test_names_polarity_and_origin_come_back(tmp_path, section, mode):
    table = section.tables["msi"]
    # nasty on purpose: letters that Latin-1 lacks, quotes, the sign that begins a command of the writer's template
    table.var["name"] = ['\N{GREEK SMALL LETTER ALPHA}-d <&">', "a@b", "PC(34:1)", "50% 'x'"]
    table.var["formula"], table.var["adduct"] = ["", "C5H14NO", "C42H82NO8P", None], "[M-H]-"
    table.uns["msi"]["attrs"]["s"] |= {"file": "raw.imzML", "uuid": "1234"}
    write_imzml(section, tmp_path / "s.imzML", mode=mode)
    again = read_imzml(tmp_path / "s.imzML").tables["msi"]
    own = table.var.loc[again.var_names]
    assert again.var["mz"].tolist() == sorted(table.var["mz"])
    assert again.var["name"].tolist() == own["name"].tolist()
    assert again.var["formula"].tolist() == own["formula"].fillna("").tolist()
    np.testing.assert_array_equal(again.X.toarray(), table[:, again.var_names].X.toarray())
    attrs = again.uns["msi"]["attrs"]["s"]
    assert attrs["polarity"] == "negative"
    origin = attrs["provenance"]
    assert {k: origin[k] for k in ("values", "section", "layer", "source file", "source identifier")} == {
        "values": "measured", "section": "s", "layer": "X", "source file": "raw.imzML", "source identifier": "1234",
    }  # fmt: skip
    with ImzMLParser(str(tmp_path / "s.imzML")) as parser:  # others pass over it
        assert len(parser.coordinates) == table.n_obs


def test_predictions_say_what_they_are(tmp_path, section, caplog):
    obs = pd.DataFrame({"sample": "s", "array_row": 0, "array_col": range(3)}, index=list("abc"))
    st = AnnData(np.ones((3, 1), np.float32), obs=obs)
    st.obsm["spatial"] = np.column_stack([np.arange(3) * 100.0, np.zeros(3)])
    st.obsm["msi_pred"] = pd.DataFrame({"x": np.arange(3.0), "y": 1.0}, index=obs.index)
    features = pd.DataFrame({"mz": [200.0, 100.0], "name": ["one", "two"]}, index=["x", "y"])
    st.uns["msi_pred"] = {"features": features, "model": {"class": "HurdleLinear", "stmsi": "0.1"}}
    given = {
        "unknown": ({}, {}), "positive": ({"adduct": ["[M+H]+", "[M+Na]+"]}, {}), "negative": ({}, {"polarity": "negative"}),
    }  # fmt: skip
    for polarity, (columns, options) in given.items():
        st.uns["msi_pred"]["features"] = features.assign(**columns)
        write_imzml(st, tmp_path / f"{polarity}.imzML", metabolite_key="msi_pred", **options)
        again = read_imzml(tmp_path / f"{polarity}.imzML").tables["msi"]
        attrs = again.uns["msi"]["attrs"][polarity]
        assert attrs["polarity"] == polarity
        assert again.var["name"].tolist() == ["two", "one"]
    assert attrs["provenance"]["values"] == "predicted"
    assert attrs["provenance"]["model"] == "HurdleLinear (stmsi 0.1)"
    assert "holds predicted intensities" in caplog.text
    # written once more, it stays a prediction
    write_imzml(again, tmp_path / "more.imzML")
    more = read_imzml(tmp_path / "more.imzML").tables["msi"].uns["msi"]["attrs"]["more"]["provenance"]
    assert (more["values"], more["model"]) == ("predicted", "HurdleLinear (stmsi 0.1)")
    # the polarity of the MSI beside the spots counts
    section.tables["st"] = st
    st.uns["msi_pred"]["features"] = features
    write_imzml(section, tmp_path / "beside.imzML", metabolite_key="msi_pred")
    assert read_imzml(tmp_path / "beside.imzML").tables["msi"].uns["msi"]["attrs"]["beside"]["polarity"] == "negative"
    with pytest.raises(ValueError, match="polarity='both' is not known"):
        write_imzml(st, tmp_path / "n.imzML", metabolite_key="msi_pred", polarity="both")


def test_spots_without_a_lattice(tmp_path, section):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"sample": "s"}, index=list("abcdef"))
    st = AnnData(np.ones((6, 1), np.float32), obs=obs)
    st.obsm["msi_pred"] = pd.DataFrame({"x": np.arange(6.0), "y": 1.0}, index=obs.index)
    st.uns["msi_pred"] = {"features": pd.DataFrame({"mz": [100.0, 200.0]}, index=["x", "y"])}
    grid = np.array([(x * 10.0, y * 10.0) for y in range(2) for x in range(3)])
    for xy, options in ((grid, {}), (grid + rng.uniform(-2, 2, grid.shape), {"pixel_size": 10})):
        st.obsm["spatial"] = xy
        target = tmp_path / f"{len(options)}.imzML"
        write_imzml(st, target, metabolite_key="msi_pred", **options)
        table = read_imzml(target).tables["msi"]
        assert table.X.toarray()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert table.obs["col"].tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"not on a raster; pass pixel_size="):
        write_imzml(st, tmp_path / "n.imzML", metabolite_key="msi_pred")
    with pytest.raises(ValueError, match=r"fall into a pixel with another spot; pass a smaller pixel_size="):
        write_imzml(st, tmp_path / "n.imzML", metabolite_key="msi_pred", pixel_size=100)
    with pytest.raises(KeyError, match="obsm has no 'msi'"):
        write_imzml(st, tmp_path / "n.imzML", metabolite_key="msi")


def test_missing_values(tmp_path, section):
    table = section.tables["msi"]
    X = table.X.toarray()
    X[1], X[:, 2] = np.nan, np.nan
    table.X = X
    write_imzml(section, tmp_path / "s.imzML")
    again = read_imzml(tmp_path / "s.imzML").tables["msi"]
    assert again.shape == (table.n_obs - 1, 3)
    X[4, 0] = np.nan
    table.X = X
    with pytest.raises(ValueError, match="1 values of section 's' are NaN in pixels that have others"):
        write_imzml(section, tmp_path / "t.imzML")
    table.X = np.full_like(X, np.nan)
    with pytest.raises(ValueError, match="has only NaN there"):
        write_imzml(section, tmp_path / "t.imzML")


def test_what_cannot_be_written(tmp_path, section, toy):
    table = section.tables["msi"]
    for change, error, message in (
        ({"mz": [1.0, np.nan, 2.0, 3.0]}, ValueError, "1 of 4 ions have no m/z in var: 'a'"),
        ({"mz": [5.0, 5.0, 2.0, 3.0]}, ValueError, "Several ions have one m/z"),
    ):
        other = table.copy()
        other.var = other.var.assign(**change)
        with pytest.raises(error, match=message):
            write_imzml(other, tmp_path / "s.imzML")
    bare = table.copy()
    del bare.var["mz"]
    with pytest.raises(KeyError, match="var has no column 'mz'"):
        write_imzml(bare, tmp_path / "s.imzML")
    negative = table.copy()
    negative.X = negative.X - sp.csr_matrix(np.eye(*table.shape))
    with pytest.raises(ValueError, match="negative values"):
        write_imzml(negative, tmp_path / "s.imzML")
    with pytest.raises(ValueError, match=r"holds 3 sections; pass sample=, one of 'P1S1'"):
        write_imzml(toy, tmp_path / "s.imzML")
    with pytest.raises(KeyError, match="No section 'P9'"):
        write_imzml(toy, tmp_path / "s.imzML", sample="P9")
    with pytest.raises(ValueError, match=r"must end with .imzML"):
        write_imzml(section, tmp_path / "s.txt")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write_imzml(section, tmp_path / "none" / "s.imzML")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.ibd").write_text("mine")
    with pytest.raises(FileExistsError, match=r"s.ibd exists"):
        write_imzml(section, tmp_path / "s.imzML")


def test_a_failure_leaves_nothing(tmp_path, section, monkeypatch):
    def fails(*_):
        raise OSError

    monkeypatch.setattr(ImzMLWriter, "finish", fails)
    with pytest.raises(OSError):
        write_imzml(section, tmp_path / "s.imzML")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
def test_bladder(tmp_path, data_dir):
    import anndata as ad

    bladder = ad.read_h5ad(data_dir / "msi_bladder" / "bladder_msi.h5ad")
    var = pd.DataFrame({"mz": bladder.var["raw_mz"].astype(float).to_numpy()}, index=bladder.var_names)
    row, col = (bladder.obs[c].astype(int).to_numpy() for c in ("y_coord", "x_coord"))
    sdata = msi_section(bladder.X, var, row - row.min(), col - col.min(), sample="bladder", pixel_size=10)
    write_imzml(sdata, tmp_path / "bladder.imzML")
    again = read_imzml(tmp_path / "bladder.imzML", mz=sdata.tables["msi"].var["mz"], tolerance=0.01).tables["msi"]
    assert again.shape == (34_840, 79)
    assert abs(again.X - sdata.tables["msi"].X).max() == 0
    np.testing.assert_array_equal(again.obs[["row", "col"]], sdata.tables["msi"].obs[["row", "col"]])

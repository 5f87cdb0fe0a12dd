"""Objects of SPATA2, written here in the format of R and in the layout of its published classes."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stmsi

pytest.importorskip("rdata")

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "coming_from.md"
NAMES = [f"Gene{i}" for i in range(5)]
MZ = ["mz-104.107", "mz-760.5851", "unknown"]


# --------------------------------------------------------------------------------- the format of R: serialize(), XDR, 2


def _int(*values):
    return struct.pack(f">{len(values)}i", *values)


def _char(text):
    return _int(9 | 64 << 12, len(text)) + text.encode()


def _attributes(attrs):
    parts = [_int(2 | 0x400, 1) + _char(name) + _r(value) for name, value in attrs.items()]
    return b"".join(parts) + _int(254) if parts else b""


def _vector(kind, body, attrs, flags=0):
    return _int(kind | flags | (0x200 if attrs else 0)) + body + _attributes(attrs)


class S4(dict):
    """Slots of an S4 object and its class."""

    def __init__(self, kind, /, **slots):
        super().__init__(slots)
        self.kind = kind


def _r(value, attrs=None):
    """A value as R writes it: text and numbers are vectors, a dict is a named list, a DataFrame a data.frame."""
    attrs = dict(attrs or {})
    if value is None:
        return _int(254)
    if isinstance(value, S4):
        slots = {**value, "class": ([value.kind], {"package": ["SPATA2"]})}
        return _int(25 | 0x100 | 0x200 | 0x10000) + _attributes(slots)
    if isinstance(value, tuple):
        return _r(*value)
    if isinstance(value, pd.DataFrame):
        columns = {"names": list(value), "row.names": np.array([-(2**31), -len(value)], np.int32)}
        columns["class"] = ["tbl_df", "tbl", "data.frame"]
        items = [_r(c.to_numpy() if c.dtype.kind in "if" else c.tolist()) for _, c in value.items()]
        return _vector(19, _int(len(items)) + b"".join(items), columns, 0x100)
    if isinstance(value, dict):
        items = [_r(v) for v in value.values()]
        return _vector(19, _int(len(items)) + b"".join(items), attrs | {"names": list(value)})
    if isinstance(value, list) and (not value or isinstance(value[0], str)):
        return _vector(16, _int(len(value)) + b"".join(map(_char, value)), attrs)
    if isinstance(value, list):
        return _vector(19, _int(len(value)) + b"".join(map(_r, value)), attrs)
    value = np.asarray(value)
    if value.dtype.kind == "i":
        return _vector(13, _int(value.size) + value.ravel("F").astype(">i4").tobytes(), attrs)
    return _vector(14, _int(value.size) + value.ravel("F").astype(">f8").tobytes(), attrs)


def _save(path, value):
    path.write_bytes(gzip.compress(b"X\n" + _int(2, 0x00040300, 0x00020300) + _r(value)))


def _dgc(matrix, names):
    import scipy.sparse as sp

    m = sp.csc_matrix(matrix)
    shape = np.array(m.shape, np.int32)
    return S4("dgCMatrix", i=m.indices, p=m.indptr, Dim=shape, Dimnames=list(names), x=m.data.astype(float), factors=[])


# ------------------------------------------------------------------------------------------------------------- objects


def visium():
    """Counts (genes x spots), places of the spots in pixels of half a micrometre, in another order than the counts."""
    row, col = (a.ravel() for a in np.indices((4, 5)))
    col = 2 * col + row % 2
    barcodes = [f"AAAC{i:03d}-1" for i in range(len(row))]
    places = pd.DataFrame({"barcodes": barcodes, "x_orig": 100.0 * col, "y_orig": 100 * np.sqrt(3) * row})
    places["row"], places["col"] = row.astype(np.int32), col.astype(np.int32)
    return np.random.default_rng(0).poisson(2, (5, len(row))), barcodes, places


def new_object(path, *, array=True, method="VisiumSmall", omics=("transcriptomics",), **spoil):
    counts, barcodes, places = visium()
    places = places if array else places.drop(columns=["row", "col"])
    x, y = (a.ravel() for a in np.indices((4, 3)))
    assays = {}
    for omic in omics:
        matrix, names, own = counts, NAMES, barcodes
        if omic == "metabolomics":
            matrix, names, own = np.arange(36.0).reshape(3, 12), MZ, [f"px{i}" for i in range(12)]
        empty = {"mtr_proc": {}, "molecules": pd.DataFrame({"molecule": names}), "signatures": {}, "analysis": {}}
        assays[omic] = S4("MolecularAssay", mtr_counts=_dgc(matrix, (names, own)), omic=[omic], **empty)
    if omics == ("metabolomics",):
        places = pd.DataFrame({"barcodes": own, "x_orig": x + 1.0, "y_orig": y + 1.0})
    places = spoil.get("places", lambda p: p)(places.sample(frac=1, random_state=0))
    slots = {
        "assays": assays,
        "meta_obs": pd.DataFrame({"barcodes": places["barcodes"], "cluster": ["a"] * len(places)}),
        "method": S4("SpatialMethod", name=[method], unit=["mm"]),
        "sample": ["UKF 269"],
        "spatial": S4("SpatialData", coordinates=places, images={}, sample=["UKF 269"]),
    }
    for slot in spoil.get("without", ()):
        del slots[slot]
    _save(path, S4("SPATA2", **slots))
    return counts


def old_object(path):
    counts, barcodes, places = visium()
    places = places.rename(columns={"x_orig": "x", "y_orig": "y"}).assign(sample="T269")
    data = {"T269": {"counts": _dgc(counts, (NAMES, barcodes)), "scaled": _dgc(counts, (NAMES, barcodes))}}
    facts = {"T269": pd.DataFrame({"barcodes": barcodes, "sample": ["T269"] * 20, "seurat_clusters": ["0"] * 20})}
    _save(path, S4("spata2", data=data, coordinates={"T269": places}, fdata=facts, samples=["T269"], images={}))
    return counts


@pytest.mark.parametrize(("array", "method"), [(True, "Undefined"), (False, "VisiumSmall")])
def test_spots_of_version_3(tmp_path, array, method):
    counts = new_object(tmp_path / "o.rds", array=array, method=method, omics=("transcriptomics", "metabolomics"))
    sdata = stmsi.io.read_spata(tmp_path / "o.rds")
    st = sdata.tables["st"]
    np.testing.assert_array_equal(st.X.toarray(), counts.T)
    assert st.var_names.tolist() == NAMES
    places = visium()[2]
    np.testing.assert_allclose(st.obsm["spatial"], places[["x_orig", "y_orig"]] / 2, rtol=1e-6)
    assert list(sdata.shapes) == ["UKF_269_spots"]
    assert st.uns["st_units"]["UKF_269"]["um_per_unit"] == pytest.approx(0.5)
    assert (st.obs["cluster"] == "a").all()
    if array:
        assert st.obs["array_col"].tolist() == places["col"].tolist()


def test_spots_of_version_2(tmp_path):
    counts = old_object(tmp_path / "o.RDS")
    st = stmsi.io.read_spata(tmp_path / "o.RDS", sample="s1").tables["st"]
    np.testing.assert_array_equal(st.X.toarray(), counts.T)
    np.testing.assert_allclose(st.obsm["spatial"], visium()[2][["x_orig", "y_orig"]] / 2, rtol=1e-6)
    assert st.obs["seurat_clusters"].tolist() == ["0"] * 20
    assert st.obs["sample"].unique().tolist() == ["s1"]


def test_pixels_go_onto_their_raster(tmp_path, through_zarr):
    new_object(tmp_path / "m.rds", omics=("metabolomics",), method="MALDI")
    new_object(tmp_path / "s.rds")
    msi = stmsi.io.read_spata(tmp_path / "m.rds", sample="s1", pixel_size=50)
    table = msi.tables["msi"]
    np.testing.assert_allclose(table.var["mz"], [104.107, 760.5851, np.nan])
    np.testing.assert_array_equal(table.X.toarray(), np.arange(36.0).reshape(3, 12).T)
    assert table.obs["col"].tolist() == np.repeat(np.arange(4), 3).tolist()
    both = stmsi.pp.combine(stmsi.io.read_spata(tmp_path / "s.rds", sample="s1"), msi)
    assert sorted(through_zarr(both).shapes) == ["s1_pixels", "s1_spots"]


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of the source distribution")
def test_the_lines_of_the_page(tmp_path, monkeypatch):
    new_object(tmp_path / "visium.rds")
    new_object(tmp_path / "maldi.rds", omics=("metabolomics",))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n([^`]*read_spata.*?)```", PAGE.read_text(), re.DOTALL)
    space = {"stmsi": stmsi}
    exec(block, space)
    assert sorted(space["sdata"].shapes) == ["s1_pixels", "s1_spots"]


BAD = {
    "several": ({"omics": ("proteomics", "metabolomics")}, {}, ValueError, "has 2 assays .*'proteomics'.*assay="),
    "unknown": ({}, {"assay": "lipids"}, KeyError, "has no assay 'lipids'; assays: 'transcriptomics'"),
    "slots": ({"without": ("spatial",)}, {}, ValueError, "lacks the slots 'spatial'"),
    "lost": ({"places": lambda p: p.iloc[3:]}, {}, ValueError, "3 of 20 observations have no coordinates"),
    "columns": ({"places": lambda p: p.drop(columns="x_orig")}, {}, ValueError, "coordinates have the columns .*'x_orig'"),
    "modality": ({}, {"modality": "rna"}, ValueError, "modality='rna' is not known"),
    "registered": (
        {"omics": ("metabolomics",), "places": lambda p: p.assign(x_orig=p["x_orig"] + 0.37 * p["y_orig"] ** 1.5)},
        {"pixel_size": 50}, ValueError, "raster",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named(tmp_path, spoil, options, error, message):
    new_object(tmp_path / "o.rds", **spoil)
    with pytest.raises(error, match=message):
        stmsi.io.read_spata(tmp_path / "o.rds", **options)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: _save(p, S4("Seurat", assays={})), "object of the class 'Seurat'; expected 'SPATA2' or 'spata2'"),
        (lambda p: _save(p, S4("spata", data={})), "updateSpataObject"),
        (lambda p: _save(p, ["text"]), "expected 'SPATA2'"),
        (lambda p: p.write_bytes(b"no R file at all"), "cannot be read as an object of R"),
        (lambda p: p.write_bytes(gzip.compress(b"X\n" + _int(2))), "cannot be read as an object of R"),
        (lambda p: None, "There is no file"),
    ],
)
def test_other_files_are_refused(tmp_path, write, message):
    write(tmp_path / "o.rds")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stmsi.io.read_spata(Path(tmp_path / "o.rds"))


def test_without_rdata_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("stmsi.io._r_objects.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"stmsi\[spata\]"):
        stmsi.io.read_spata(tmp_path / "o.rds")

"""A model trained on stores is the one trained on all of them in memory, and bad stores are told."""

import os
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import stmsi
from stmsi._core import arrays_on_disk
from stmsi._core.learning.expression_space import log_normalize
from stmsi._core.metrics import columns
from stmsi.model import HurdleLinear
from stmsi.model.shared import _streamed_parts
from stmsi.model.shared._streamed_parts import StreamedParts
from stmsi.tl import _cross_validate, _joined_stores, _stored_sections
from stmsi.tl._stored_models import fields_of_stores

FEW = {"model": "ridge", "n_top_genes": 40, "n_components": 8}
GRAPH = {"presence_key": "msi_presence", "graph_key": "spatial_connectivities"}
KEYS = ("presence", "intensity", "expected", "lower", "upper")


@pytest.fixture(scope="module")
def table(_mapped):
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][["simPC_28_0", "simPC_31_3", "simPC_36_0"]]
    return st


@pytest.fixture(scope="module")
def sections(table):
    return [table[table.obs["sample"] == name].copy() for name in table.obs["sample"].unique()]


def write(adata, path):
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:  # the table of a SpatialData
        group = zarr.open_group(str(path), mode="w", zarr_format=3)
        ad.io.write_elem(group.create_group("tables"), "st", adata)
    return path


@pytest.fixture(scope="module")
def stores(sections, tmp_path_factory):
    """An h5ad with its genes in another order, an h5ad, and a SpatialData."""
    folder = tmp_path_factory.mktemp("stores")
    first = sections[0][:, ::-1].copy()
    return [
        write(s, folder / f"S{k}{end}")
        for k, (s, end) in enumerate(zip([first, *sections[1:]], (".h5ad", ".h5ad", ".zarr"), strict=True))
    ]


def train(data, model=FEW, **options):
    return stmsi.tl.train(data, model, show_progress_bar=False, **options)


def assert_same(a, b, query, tolerance=1e-6):
    a, b = a._predict_all(query.copy()), b._predict_all(query.copy())
    for key in KEYS:
        one, other = getattr(a, key)[getattr(b, key).columns].to_numpy(), getattr(b, key).to_numpy()
        allowed = (10 if key in ("lower", "upper") else 1) * tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=allowed, err_msg=key)
    np.testing.assert_allclose(a.ood, b.ood, rtol=1e-5)


@pytest.mark.parametrize("fields", [None, GRAPH], ids=["own", "graph"])
def test_the_model_is_that_of_one_table_in_memory(table, stores, fields, monkeypatch):
    monkeypatch.setattr(StreamedParts, "some_values", None)  # nothing is read as a whole
    model = train(stores, setup=fields)
    alone = train(table[:, ::-1].copy(), setup=fields or {"presence_key": "msi_presence"})
    # with neighbours, correlated features amplify the last digits of the components
    assert_same(model, alone, table, 1e-6 if fields is None else 5e-5)
    a, b = model.state, alone.state
    assert model.card["training"] | {"date": ""} == alone.card["training"] | {"date": ""}
    np.testing.assert_allclose(a.panel.mean_log, b.panel.mean_log, rtol=1e-12)
    np.testing.assert_allclose(a.panel.mean_share, b.panel.mean_share, rtol=1e-12)
    for one, other in zip(a.seen.profiles, b.seen.profiles, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="loaded without data"):
        model.predict()


@pytest.mark.parametrize(
    "model",
    [{"model": "linear"}, {"model": "mean"}, {"model": "pls", "presence": "svm"}],
    ids=["linear", "mean", "svm"],
)
def test_families_fitted_metabolite_by_metabolite_are_those_in_memory(table, stores, model, monkeypatch):
    monkeypatch.setattr(StreamedParts, "some_values", None)  # nothing is read as a whole
    model = model | {"n_components": 6}
    found = train(stores, model)
    assert found.held_out_ is None, "it stays on disk"
    assert_same(found, train(table, model, setup={"presence_key": "msi_presence"}), table, 3e-6)


def test_logarithms_and_layers(sections, table, tmp_path, monkeypatch):
    paths = []
    for k, one in enumerate(sections):
        one = one.copy()
        one.layers["log"] = log_normalize(one.X.astype(np.float32))
        paths.append(write(one, tmp_path / f"S{k}.h5ad"))
    whole = table.copy()
    whole.layers["log"] = log_normalize(whole.X.astype(np.float32))
    model = train(paths, layer="log")
    assert model.state.setup.input == "log"
    alone = train(whole, layer="log", setup={"presence_key": "msi_presence"})
    assert model.state.panel.target_sum == pytest.approx(alone.state.panel.target_sum, rel=1e-6)
    assert_same(model, alone, whole)

    # a model that names the layer of all is served from the stores, too
    reads = []

    def stop(*_, read, **__):
        reads.append(read)
        raise RuntimeError("enough")

    monkeypatch.setattr(_cross_validate, "train_on", stop)
    with pytest.raises(RuntimeError, match="enough"):
        stmsi.tl.cross_validate(
            paths, {"m": {"model": "mean", "setup": {"layer": "log"}}}, layer="log", on_leakage="ignore",
            show_progress_bar=False,
        )  # fmt: skip
    assert reads[0] is not None


def test_few_spots_are_read_as_a_whole(table, sections, tmp_path):
    few = [one[::4].copy() for one in sections]
    paths = [write(one, tmp_path / f"S{k}.h5ad") for k, one in enumerate(few)]
    model = {"model": "ridge", "n_components": 6}  # more genes than spots
    whole = train(ad.concat(few, merge="same", uns_merge="first"), model, setup={"presence_key": "msi_presence"})
    assert_same(train(paths, model), whole, table)


def test_sums_of_a_section_are_taken_up(table, stores, sections, tmp_path, monkeypatch):
    made = []
    products = StreamedParts._products
    monkeypatch.setattr(StreamedParts, "_products", lambda *args: made.append(1) or products(*args))
    first = train(stores, cache_dir=tmp_path / "kept")
    assert len(made) == 3
    again = train(stores, cache_dir=tmp_path / "kept")
    assert len(made) == 3
    assert_same(again, first, table, 0)
    assert not list((tmp_path / "kept").glob(".*")), "the temporary folder is gone"
    stat = stores[0].stat()
    os.utime(stores[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    train(stores, cache_dir=tmp_path / "kept")
    assert len(made) == 4
    # a run that was killed while it wrote, or a damaged file
    next(p for p in (tmp_path / "kept").glob("*.npy") if p.stat().st_size > 5000).write_bytes(b"")
    next((tmp_path / "kept").glob("*.json")).write_bytes(b"")
    assert_same(train(stores, cache_dir=tmp_path / "kept"), first, table, 0)


def test_bad_stores_are_all_named(sections, stores, tmp_path, caplog):
    (tmp_path / "damaged.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))
    lacking = sections[0][:, 5:].copy()
    unmeasured = sections[0].copy()
    unmeasured.obsm["msi"][:] = np.nan
    unmapped = sections[0].copy()
    del unmapped.obsm["msi"]
    made = {"lacking": lacking, "unmeasured": unmeasured, "unmapped": unmapped}
    bad = [
        tmp_path / "none.h5ad",
        tmp_path / "damaged.h5ad",
        *(write(a, tmp_path / f"{n}.h5ad") for n, a in made.items()),
    ]
    with pytest.raises(ValueError, match="5 of 8 stores cannot be used") as error:
        train([*bad, *stores])
    for word in (
        "no file",
        "cannot be read as an h5ad",
        "lacks 5 of the 120 genes",
        "no spot has MSI",
        "obsm has no 'msi'",
        "on_error='warn'",
    ):
        assert word in str(error.value)
    model = train([*bad, *stores], on_error="warn")
    for path in bad:
        assert f"{path} is left out" in caplog.text or "also holds for" in caplog.text
    assert model.card["training"]["samples"] == sorted(s.obs["sample"].iloc[0] for s in sections)
    with pytest.raises(ValueError, match="2 of 2 stores cannot be used"):
        train(bad[:2], on_error="warn")


def test_genes_and_metabolites_that_some_stores_lack(sections, stores, tmp_path, caplog):
    other = sections[0][:, 20:].copy()
    other.obsm["msi"] = other.obsm["msi"].iloc[:, :2]
    other.obsm["msi_presence"] = other.obsm["msi_presence"].iloc[:, :2]
    del other.obsp["spatial_connectivities"]
    other.uns["msi"] = other.uns["msi"] | {"params": {"how": "otherwise"}}
    path = write(other, tmp_path / "other.h5ad")
    model = train([path, *stores[1:]], genes="shared")
    assert "obsp['spatial_connectivities'] is in 2 of 3 stores only" in caplog.text
    assert "obsm['msi'] of the stores may not go together: it was made with different parameters" in caplog.text
    assert model.card["training"]["n_genes"] == 100
    assert len(model.metabolites) == 3
    n = model.state.feature_table["n_spots"]
    assert n.iloc[2] < n.iloc[0]


def test_panels_that_share_little_are_told(sections, stores, tmp_path, caplog):
    few = sections[0][:, :50].copy()
    path = write(few, tmp_path / "few.h5ad")
    assert train([path, *stores[1:]], "mean", genes="shared").card["training"]["n_genes"] == 50
    assert f"The stores share 50 genes, and {stores[1]} has 120: {path} has only 50." in caplog.text
    assert "share no metabolite" not in caplog.text
    other = sections[0].copy()
    for key in ("msi", "msi_presence"):
        other.obsm[key] = other.obsm[key].add_suffix("_other")
    model = train([write(other, tmp_path / "other.h5ad"), stores[1]], "mean")
    assert len(model.metabolites) == 2 * sections[0].obsm["msi"].shape[1]
    assert "The 2 stores share no metabolite: each is trained on one store." in caplog.text


def test_one_store_without_a_section_name_and_a_section_of_one_spot(sections, stores, tmp_path):
    nameless, single = (
        sections[0].copy(),
        sections[0][sections[0].obsm["msi"].notna().all(axis=1).to_numpy()][:1].copy(),
    )
    del nameless.obs["sample"]
    single.obs["sample"] = "single"
    paths = [write(nameless, tmp_path / "nameless.h5ad"), write(single, tmp_path / "single.h5ad")]
    model = train([*paths, *stores[1:]])
    per_sample = model.card["training"]["spots_per_sample"]
    assert per_sample["single"] == 1
    assert "nameless" in per_sample
    assert np.isfinite(model.predict(sections[1].copy()).to_numpy()).all()


def test_what_cannot_be_trained_on_stores(stores, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="No store was given"):
        train([])
    with pytest.raises(ValueError, match="given more than once"):
        train([stores[0], *stores])
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(stores[1].read_bytes())
    with pytest.raises(ValueError, match="is in several stores"):
        train([*stores, copy])
    with pytest.raises(TypeError, match="ControlLinear reads the table itself"):
        train(stores, "shuffled_genes")
    for own in ({"feature_key": "uni"}, {"input": "log"}, {"metabolite_key": "other"}):
        with pytest.raises(ValueError, match=f"Stores are read once.*name {next(iter(own))}="):
            train(stores, FEW | {"setup": own})
    with pytest.raises(ValueError, match=r"it lacks obsm\['uni'\], which the setup names"):
        train(stores, setup={"feature_key": "uni"})
    with pytest.raises(ValueError, match="Signatures are not read from several stores"):
        train(stores, setup={"signature_key": "signature", "cluster_key": "domain"})
    monkeypatch.setattr(_streamed_parts, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"reads the whole expression of 3.. spots"):
        train(stores, "gene_ridge")


def test_indices_of_a_damaged_matrix_are_not_followed(stores, tmp_path):
    path = tmp_path / "S0.h5ad"
    path.write_bytes(stores[0].read_bytes())
    with h5py.File(path, "r+") as file:
        file["X/indices"][int(file["X/indptr"][1]) - 1] = 10**6
    with pytest.raises(ValueError, match=r"S0.h5ad cannot be read as an h5ad file"):
        train([path, *stores[1:]])


def test_a_setup_without_presence_is_one_without():
    assert fields_of_stores(None, None, None) == {}
    assert fields_of_stores({"graph_key": "g"}, None, None) == {"presence_key": None, "graph_key": "g"}
    assert fields_of_stores({"presence_key": "p"}, "X", "log") == {"presence_key": "p", "input": "log"}


def test_stores_know_the_genes_of_their_own_metabolites():
    def one(name, known):
        spots, genes = [f"{name}{i}" for i in range(2)], ["a", "b", "c"]
        adata = ad.AnnData(obs=pd.DataFrame({"sample": name}, spots), var=pd.DataFrame(index=genes))
        adata.obsm["msi"] = pd.DataFrame(1.0, spots, [name])
        adata.varm["msi_prior"] = pd.DataFrame({name: known}, genes)
        return adata

    together = _joined_stores.joined_tables(
        [one("S", [True, False, False]), one("T", [False, True, True])], pd.Index(["a", "b", "c"]), {}, None
    )
    assert together.varm["msi_prior"].to_dict("list") == {"S": [True, False, False], "T": [False, True, True]}
    with pytest.raises(ValueError, match=r"obsm\['uni'\] has '2', '3' columns in different stores"):
        _joined_stores._stacked("uni", [np.ones((1, 3)), np.ones((1, 2))], pd.Index(["a", "b"]), any_column=False)


def test_one_path_or_a_table_in_memory(table, stores):
    one = train(stores[1])
    assert one.card["training"]["samples"] == list(ad.read_h5ad(stores[1]).obs["sample"].unique())
    before = table.copy()
    whole = train(table)
    assert whole.adata is not None
    assert set(table.uns) == set(before.uns), "the data keep no trace of it"


def written(folder, n_spots, n_metabolites=60, n_sections=3):
    """Sections on disk whose genes and metabolites share programmes."""
    shared, paths = np.random.default_rng(0), []
    genes, metabolites = shared.gamma(0.5, size=(4, 50)), shared.gamma(0.5, size=(4, n_metabolites))
    for k in range(n_sections):
        rng, names = np.random.default_rng(k + 1), [f"spot{i}" for i in range(n_spots)]
        activity = rng.gamma(1, size=(n_spots, 4))
        counts = sp.csr_matrix(rng.poisson(activity @ genes).astype(np.float32))
        level = np.maximum(activity @ metabolites - rng.gamma(4, 0.2, (n_spots, n_metabolites)), 0)
        adata = ad.AnnData(counts, obs=pd.DataFrame({"sample": f"S{k}"}, names))
        adata.obsm["msi"] = pd.DataFrame(level.astype(np.float32), names, [f"m{m}" for m in range(n_metabolites)])
        adata.obsm["spatial"] = np.column_stack([np.arange(n_spots) % 25, np.arange(n_spots) // 25]).astype(float)
        paths.append(write(adata, folder / f"S{k}_{n_spots}.h5ad"))
    return paths


@pytest.mark.parametrize("from_disk", [True, False])
def test_memory_hardly_grows_with_the_spots(tmp_path, monkeypatch, from_disk):
    if not from_disk:  # what the targets and held-out predictions take when they are in memory
        monkeypatch.setattr(HurdleLinear, "_fits_from_disk", False)
    for module in (arrays_on_disk, columns):
        monkeypatch.setattr(module, "_AT_ONCE", 2**14)
    monkeypatch.setattr(_stored_sections, "_AT_ONCE", 256)

    def peak(n_spots):
        paths = written(tmp_path, n_spots)
        tracemalloc.start()
        try:
            train(paths, FEW)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(150)  # what is imported once
    per_spot = (peak(1000) - peak(500)) / 1500
    # the measured intensities of 60 metabolites are 240 bytes; names, places and hashes are a few hundred
    assert (per_spot < 1500) == from_disk


def test_patients_may_be_given_by_section(table, sections, stores, tmp_path):
    names = [str(s.obs["sample"].iloc[0]) for s in sections]
    given = {"patient": dict(zip(names, ["A", "B", "A"], strict=True)) | {"elsewhere": "C"}}
    with pytest.raises(ValueError, match=rf"S2.zarr: obs= has no row for section .{names[2]}"):
        train(stores, obs={"patient": dict.fromkeys(names[:2], "A")})
    with pytest.raises(TypeError, match="obs= takes a DataFrame"):
        train(stores, obs={"patient": "A"})
    with pytest.raises(ValueError, match="obs= is for stores"):
        train(table, obs=given)
    assert train(stores, obs=given).card["training"]["n_patients"] == 2
    splitter = stmsi.model_selection.LeaveOnePatientOut()
    frame = pd.DataFrame(given).rename_axis("section")
    scores = stmsi.tl.cross_validate(
        stores, "mean", obs=frame, splitter=splitter, on_leakage="ignore", show_progress_bar=False
    )
    assert scores.groupby("fold")["sample"].unique().map(sorted).tolist() == [[names[0], names[2]], [names[1]]]

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from spatialdata import deepcopy, read_zarr
from spatialdata.transformations import get_transformation

import stmsi
from stmsi._core.learning.expression_space import log_normalize
from stmsi._core.registration.landmarks import apply_affine

SMALL = {"n_patients": 2, "sections_per_patient": 1, "size": 900, "n_genes": 80, "n_metabolites": 10}


@pytest.fixture(scope="module")
def simulated():
    """Two patients with two sections each, large enough for statistics; not to be changed."""
    return stmsi.datasets.simulate(size=1800, n_genes=200, n_metabolites=25)


@pytest.fixture(scope="module")
def at_spots(simulated):
    """The same with the true transformation, mapped."""
    sdata = deepcopy(simulated)
    stmsi.pp.align(sdata, transformation=sdata.tables["st"].uns["truth"]["transformation"])
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    return sdata


def _bytes(sdata):
    """Everything that a simulation made, as bytes."""
    out = {}
    for key, table in sdata.tables.items():
        out |= {f"{key}/{part}": getattr(table.X, part).tobytes() for part in ("data", "indices", "indptr")}
        for name, frame in {"obs": table.obs, "var": table.var, **dict(table.obsm)}.items():
            frame = frame if isinstance(frame, pd.DataFrame) else pd.DataFrame(frame)
            out[f"{key}/{name}"] = frame.to_csv().encode()
    for name, shapes in sdata.shapes.items():
        out[name] = shapes.to_wkb().to_csv().encode()
    for name, points in sdata.points.items():
        out[name] = points.compute().to_csv().encode()
    truth = sdata.tables["st"].uns["truth"]
    out["drivers"] = truth["drivers"].to_csv().encode()
    out["transformation"] = np.stack(list(truth["transformation"].values())).tobytes()
    out["batch_scale"] = np.array(list(truth["batch_scale"].values())).tobytes()
    return out


@pytest.mark.once
def test_the_same_seed_gives_the_same_bytes():
    first = _bytes(stmsi.datasets.simulate(**SMALL, rng=3))
    np.random.seed(5)  # noqa: NPY002  the global generator must not matter
    assert _bytes(stmsi.datasets.simulate(**SMALL, rng=3)) == first
    assert _bytes(stmsi.datasets.simulate(**SMALL, rng=np.random.default_rng(3))) == first
    other = _bytes(stmsi.datasets.simulate(**SMALL, rng=4))
    assert all(
        other[k] != first[k]
        for k in ("st/data", "msi/data", "P1S1_pixels", "drivers", "transformation", "st/truth_intensity")
    )


@pytest.mark.once
def test_without_dense_metabolites_nothing_is_drawn_for_them():
    """Values of the version before the option."""
    sdata = stmsi.datasets.simulate(**SMALL, rng=3)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    assert (int(st.X.sum()), st.X.nnz, msi.X.nnz) == (854400, 10704, 2315)
    assert float(msi.X.sum()) == pytest.approx(192479.34, rel=1e-6)
    drivers = st.uns["truth"]["drivers"]
    assert len(drivers) == 30
    assert drivers["gene"].iloc[[0, -1]].tolist() == ["SIMG0053", "SIMG0035"]
    assert drivers["weight"].iloc[[0, -1]].tolist() == pytest.approx([0.9143763551641672, 0.8121241521344237])
    assert not msi.var["dense"].any()


@pytest.mark.once
def test_dense_metabolites_follow_many_genes():
    options = {"n_patients": 1, "sections_per_patient": 1, "size": 1800, "n_genes": 200, "n_metabolites": 15}
    sdata = stmsi.datasets.simulate(**options, dense=2 / 3)
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    assert (msi.var["predictable"].sum(), msi.var["dense"].sum()) == (12, 8)
    assert msi.var.loc[msi.var["dense"], "predictable"].all()
    assert (msi.var.loc[msi.var["dense"], "kind"] == "linear").all()
    drivers = st.uns["truth"]["drivers"]
    n = drivers.groupby("metabolite")["gene"].nunique().reindex(msi.var_names, fill_value=0)
    assert n[msi.var["dense"]].eq(50).all()
    assert n[~msi.var["dense"]].le(6).all()
    assert (drivers.groupby("metabolite")["weight"].min()[msi.var_names[msi.var["dense"]]] < 0).all()
    # no gene alone tells what all together do
    expression = pd.DataFrame.sparse.from_spmatrix(log_normalize(st.X), columns=st.var_names).sparse.to_dense()
    for m in msi.var_names[msi.var["dense"] & ~msi.var["diffused"]]:
        own = drivers[drivers["metabolite"] == m]
        truth = np.log(st.obsm["truth_intensity"][m].to_numpy())
        genes = expression[own["gene"]].to_numpy()
        alone = [abs(np.corrcoef(g, truth)[0, 1]) for g in genes.T]
        together = np.corrcoef(genes @ own["weight"].to_numpy(), truth)[0, 1]
        assert together > 0.5
        assert together > np.max(alone)
    assert st.uns["truth"]["params"]["dense"] == 2 / 3
    fewer = stmsi.datasets.simulate(**SMALL, dense=1, n_dense_genes=10).tables["st"].uns["truth"]["drivers"]
    assert fewer.groupby("metabolite")["gene"].nunique().eq(10).all()


def test_toy_is_a_simulation_of_the_documented_size(toy):
    assert _bytes(stmsi.datasets.toy()) == _bytes(toy)
    assert _bytes(stmsi.datasets.toy(rng=1))["st/data"] != _bytes(toy)["st/data"]
    st, msi = toy.tables["st"], toy.tables["msi"]
    assert (st.n_vars, msi.n_vars) == (120, 12)
    assert st.obs["sample"].value_counts().between(80, 150).all()


def test_the_data_model(simulated):
    st, msi = simulated.tables["st"], simulated.tables["msi"]
    sections = ["P1S1", "P1S2", "P2S1", "P2S2"]
    assert st.obs["sample"].cat.categories.tolist() == sections
    assert (st.obs["patient"].astype(str) == st.obs["sample"].str[:2]).all()
    assert sorted(simulated.coordinate_systems) == sorted([*sections, *(f"{s}_msi" for s in sections)])
    for s in sections:
        assert list(get_transformation(simulated.shapes[f"{s}_pixels"], get_all=True)) == [f"{s}_msi"], (
            "not aligned yet"
        )
        assert len(simulated.points[f"{s}_landmarks_st"]) == len(simulated.points[f"{s}_landmarks_msi"]) == 8
    X = st.X.toarray()
    assert (np.round(X) == X).all()
    assert X.min() == 0
    assert X.sum(axis=1).min() > 500
    assert X.sum(axis=1).std() / X.sum(axis=1).mean() > 0.2
    xy = st.obsm["spatial"][(st.obs["sample"] == "P1S1").to_numpy()]
    np.testing.assert_allclose(np.median(cKDTree(xy).query(xy, k=7)[0][:, 1:]), 100)
    assert (simulated.shapes["P1S1_spots"]["radius"] == 27.5).all()
    assert msi.var["name"].tolist()[0] == "simPC(28:0)"
    assert msi.var_names[0] == "simPC_28_0"
    assert msi.var["mz"].is_monotonic_increasing


def test_prevalence_spans_five_to_hundred_percent(simulated):
    X = simulated.tables["msi"].X
    prevalence = np.sort(np.asarray((X > 0).mean(axis=0)).ravel())
    assert prevalence[0] == pytest.approx(0.05, abs=0.005)
    assert prevalence[-1] == pytest.approx(1)
    assert np.diff(prevalence).max() < 0.1


def test_intensities_lie_above_the_detection_limit(simulated):
    msi = simulated.tables["msi"]
    scale = simulated.tables["st"].uns["truth"]["batch_scale"]
    for sample, factor in scale.items():
        X = msi.X[(msi.obs["sample"] == sample).to_numpy()].toarray() / factor
        limit = np.broadcast_to(msi.var["lod"].to_numpy(), X.shape)
        assert (X[X > 0] >= limit[X > 0] * (1 - 1e-5)).all()


def test_every_second_section_is_mirrored(simulated):
    def mirrored(sdata):
        return [np.linalg.det(m[:2, :2]) < 0 for m in sdata.tables["st"].uns["truth"]["transformation"].values()]

    assert mirrored(simulated) == [False, True, False, True]
    for matrix in simulated.tables["st"].uns["truth"]["transformation"].values():
        np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-12)
    assert not any(mirrored(stmsi.datasets.simulate(**SMALL, mirror=False)))


def test_landmarks_show_the_same_places(simulated):
    truth = simulated.tables["st"].uns["truth"]["transformation"]
    for sample, matrix in truth.items():
        msi, st = (simulated.points[f"{sample}_landmarks_{m}"][["x", "y"]].compute().to_numpy() for m in ("msi", "st"))
        distance = np.linalg.norm(apply_affine(matrix, msi) - st, axis=1)
        assert distance.max() < 60
        assert distance.mean() > 5


def _where_present(sdata, sample):
    """Correlation with the truth of each metabolite, in the spots where it is present; NaN with few of them."""
    st = sdata.tables["st"]
    own = (st.obs["sample"] == sample).to_numpy()
    mapped, truth, present = (
        st.obsm[k].to_numpy(dtype=float)[own] for k in ("msi", "truth_intensity", "truth_presence")
    )
    out = []
    for y, t, p in zip(mapped.T, truth.T, present.T, strict=True):
        kept = (p > 0) & np.isfinite(y)
        out.append(np.corrcoef(y[kept], t[kept])[0, 1] if kept.sum() >= 20 and np.ptp(y[kept]) > 0 else np.nan)
    return np.array(out), present.mean(axis=0)


@pytest.mark.parametrize("sample", ["P1S1", "P1S2", "P2S1", "P2S2"])
def test_the_true_transformation_brings_pixels_and_truth_together(at_spots, simulated, sample):
    correlation, prevalence = _where_present(at_spots, sample)
    assert np.nanmedian(correlation) > 0.8
    # ions near their detection limit, or flat in a section, are mostly noise
    assert np.nanquantile(correlation[prevalence > 0.7], 0.2) > 0.8
    wrong = deepcopy(simulated)
    matrix = wrong.tables["st"].uns["truth"]["transformation"][sample]
    centre = np.append(wrong.tables["st"].obsm["spatial"].mean(axis=0), 1)
    flip = np.diag([-1.0, 1, 1])
    flip[0, 2] = 2 * centre[0]
    stmsi.pp.align(
        wrong, transformation=dict.fromkeys(wrong.tables["st"].uns["truth"]["transformation"], flip @ matrix)
    )
    stmsi.pp.map_to_spots(wrong, min_coverage=0.5)
    assert np.nanmedian(_where_present(wrong, sample)[0]) < 0.5


def test_presence_and_intensity_agree(at_spots):
    st, lod = at_spots.tables["st"], at_spots.tables["msi"].var["lod"]
    truth, presence = st.obsm["truth_intensity"], st.obsm["truth_presence"]
    np.testing.assert_array_equal(presence.columns, lod.index)
    close = np.abs(np.log(truth / lod.replace(0, 1e-12))) < 1e-5
    assert ((truth > lod) == (presence == 1))[~close].all(axis=None) or ((truth > lod) == (presence == 1)).mean(
        axis=None
    ) > 0.999
    covered = st.obsm["msi"].notna().all(axis=1)
    found = (st.obsm["msi"] > 0)[covered]
    assert (found == (presence == 1)[covered]).mean(axis=None) > 0.75


def test_batch_scale_is_the_ratio_to_the_truth(at_spots):
    st = at_spots.tables["st"]
    everywhere = (at_spots.tables["msi"].var["lod"] == 0).to_numpy()
    for sample, factor in st.uns["truth"]["batch_scale"].items():
        own = (st.obs["sample"] == sample).to_numpy()
        ratio = (
            st.obsm["msi"].to_numpy()[own][:, everywhere] / st.obsm["truth_intensity"].to_numpy()[own][:, everywhere]
        )
        assert np.nanmedian(ratio) == pytest.approx(factor, rel=0.15)


def _gene_correlations(sdata):
    """Correlation of each metabolite's log truth with each gene, averaged over sections."""
    st = sdata.tables["st"]
    X = st.X.toarray()
    X = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    y = np.log(st.obsm["truth_intensity"].to_numpy(dtype=float))
    out = []
    for sample in st.obs["sample"].cat.categories:
        own = (st.obs["sample"] == sample).to_numpy()
        z = [(v[own] - v[own].mean(axis=0)) / v[own].std(axis=0) for v in (y, X)]
        out.append(z[0].T @ z[1] / own.sum())
    return pd.DataFrame(np.mean(out, axis=0), index=st.obsm["truth_intensity"].columns, columns=st.var_names)


@pytest.mark.once
def test_no_gene_knows_of_unpredictable_metabolites(simulated):
    correlation, var = _gene_correlations(simulated), simulated.tables["msi"].var
    predictable = var["predictable"].to_numpy()
    assert predictable.mean() == pytest.approx(0.8)
    assert (var["kind"] == "unpredictable").to_numpy().tolist() == (~predictable).tolist()
    assert abs(correlation[~predictable].to_numpy().mean()) < 0.05
    best = correlation.abs().max(axis=1)
    assert best[~predictable].max() < 0.45
    assert best[predictable].mean() > best[~predictable].mean() + 0.2


@pytest.mark.once
def test_drivers_exist_and_drive(simulated):
    st, var = simulated.tables["st"], simulated.tables["msi"].var
    drivers = st.uns["truth"]["drivers"]
    assert set(drivers["gene"]) <= set(st.var_names)
    count = drivers["metabolite"].value_counts().reindex(var.index, fill_value=0)
    expected = var["kind"].map({"linear": 3, "saturating": 3, "product": 6, "unpredictable": 0})
    assert count.tolist() == expected.tolist()
    correlation = _gene_correlations(simulated)
    for kind in ("linear", "saturating"):
        own = drivers[drivers["metabolite"].map(var["kind"]) == kind]
        signed = [
            correlation.loc[m, g] * np.sign(w)
            for m, g, w in zip(own["metabolite"], own["gene"], own["weight"], strict=True)
        ]
        assert np.mean(signed) > 0.35
        assert np.mean(np.array(signed) > 0) > 0.95
    assert (drivers["weight"] < 0).any()
    assert var["diffused"].any()
    assert not (var["diffused"] & ~var["predictable"]).any()


@pytest.mark.once
def test_diffused_metabolites_are_smooth(simulated):
    st, var = simulated.tables["st"], simulated.tables["msi"].var
    own = (st.obs["sample"] == "P1S1").to_numpy()
    y = np.log(st.obsm["truth_intensity"].to_numpy(dtype=float)[own])
    pairs = cKDTree(st.obsm["spatial"][own]).query_pairs(110, output_type="ndarray")
    rough = ((y[pairs[:, 0]] - y[pairs[:, 1]]) ** 2).mean(axis=0) / y.var(axis=0)
    linear = (var["kind"] == "linear").to_numpy()
    diffused = var["diffused"].to_numpy()
    assert rough[linear & diffused].mean() < 0.8 * rough[linear & ~diffused].mean()


@pytest.mark.once
def test_coverage_and_pixel_size_and_noise():
    whole = stmsi.datasets.simulate(**SMALL, coverage=1)
    half = stmsi.datasets.simulate(**SMALL, coverage=0.5)
    coarse = stmsi.datasets.simulate(**SMALL, pixel_size=100, coverage=1)
    assert half.tables["msi"].n_obs < 0.65 * whole.tables["msi"].n_obs
    assert coarse.tables["msi"].n_obs == pytest.approx(whole.tables["msi"].n_obs / 4, rel=0.1)
    assert coarse.shapes["P1S1_pixels"].area.tolist() == pytest.approx([10_000.0] * len(coarse.shapes["P1S1_pixels"]))
    quiet = stmsi.datasets.simulate(**SMALL, coverage=1, noise=0)
    stmsi.pp.align(quiet, transformation=quiet.tables["st"].uns["truth"]["transformation"])
    stmsi.pp.map_to_spots(quiet, min_coverage=0.9)
    correlation, prevalence = _where_present(quiet, "P1S1")
    assert np.nanmin(correlation[prevalence > 0.7]) > 0.95


@pytest.mark.once
@settings(deadline=None, max_examples=6)
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(60, 90), st.integers(5, 9), st.floats(600, 900), st.floats(40, 120),
    st.floats(0.3, 1), st.integers(0, 99),
)  # fmt: skip
def test_any_size(n_patients, per_patient, n_genes, n_metabolites, size, pixel_size, coverage, seed):
    sdata = stmsi.datasets.simulate(
        n_patients=n_patients, sections_per_patient=per_patient, n_genes=n_genes, n_metabolites=n_metabolites, size=size,
        pixel_size=pixel_size, coverage=coverage, rng=seed,
    )  # fmt: skip
    st, msi = sdata.tables["st"], sdata.tables["msi"]
    assert (st.n_vars, msi.n_vars) == (n_genes, n_metabolites)
    assert st.obs["sample"].nunique() == n_patients * per_patient == msi.obs["sample"].nunique()
    assert np.isfinite(msi.X.data).all()
    assert np.isfinite(st.obsm["truth_intensity"].to_numpy()).all()


def test_round_trip(tmp_path):
    sdata = stmsi.datasets.simulate(**SMALL)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["st"].X != sdata.tables["st"].X).nnz == 0
    truth, found = sdata.tables["st"].uns["truth"], back.tables["st"].uns["truth"]
    for sample, matrix in truth["transformation"].items():
        np.testing.assert_array_equal(found["transformation"][sample], matrix)
    assert dict(found["batch_scale"]) == truth["batch_scale"]
    pd.testing.assert_frame_equal(found["drivers"], truth["drivers"], check_dtype=False)
    assert dict(found["params"]) == truth["params"]
    for key in ("truth_intensity", "truth_presence"):
        pd.testing.assert_frame_equal(back.tables["st"].obsm[key], sdata.tables["st"].obsm[key])
    assert back.tables["msi"].var["predictable"].tolist() == sdata.tables["msi"].var["predictable"].tolist()
    stmsi.pp.align(back)
    stmsi.pp.map_to_spots(back)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_patients": 0}, "n_patients must be at least 1"),
        ({"sections_per_patient": 0}, "sections_per_patient must be at least 1"),
        ({"n_genes": 59}, "n_genes must be at least 60"),
        ({"n_metabolites": 4}, "n_metabolites must be at least 5"),
        ({"size": 100}, "size must be at least 600 um"),
        ({"pixel_size": 1}, "pixel_size must lie between 5 and 500 um"),
        ({"noise": -0.1}, "noise must not be negative"),
        ({"coverage": 0}, r"coverage must lie in \(0, 1\]"),
        ({"coverage": 93}, r"coverage must lie in \(0, 1\]"),
        ({"dispersion": 0}, "dispersion must be positive"),
        ({"library_size": 0}, "library_size must be positive"),
        ({"dense": 1.1}, "dense must lie between 0 and 1"),
        ({"n_genes": 60, "n_dense_genes": 61}, "n_dense_genes must lie between 1 and n_genes"),
    ],
)
def test_parameters_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        stmsi.datasets.simulate(**kwargs)


@pytest.mark.once
def test_a_serial_section_is_deformed_as_told():
    sdata = stmsi.datasets.simulate(**SMALL, deformation=150, n_landmarks=20)
    msi = sdata.tables["msi"]
    for sample, matrix in sdata.tables["st"].uns["truth"]["transformation"].items():
        own = (msi.obs["sample"] == sample).to_numpy()
        moved = msi.obsm["truth_spatial"][own] - apply_affine(matrix, msi.obsm["spatial"][own])
        largest = np.hypot(*moved.T).max()
        assert 90 < largest < 165, "the largest displacement on the tissue is 150 um; MSI sees most of the tissue"
        # the landmarks show the deformed places
        a, b = (sdata.points[f"{sample}_landmarks_{m}"][["x", "y"]].compute().to_numpy() for m in ("msi", "st"))
        assert len(a) == 20
        nearest = np.argmin(np.linalg.norm(msi.obsm["spatial"][own][None] - a[:, None], axis=2), axis=1)
        off = np.linalg.norm(msi.obsm["truth_spatial"][own][nearest] - b, axis=1)
        assert np.median(off) < 60, "a pixel of 50 um and a click of 10"


def test_without_deformation_pixels_lie_where_the_transformation_puts_them(simulated):
    msi = simulated.tables["msi"]
    for sample, matrix in simulated.tables["st"].uns["truth"]["transformation"].items():
        own = (msi.obs["sample"] == sample).to_numpy()
        expected = apply_affine(matrix, msi.obsm["spatial"][own])
        np.testing.assert_allclose(msi.obsm["truth_spatial"][own], expected)


def test_deformation_is_bounded():
    with pytest.raises(ValueError, match="deformation must lie between 0 and a quarter"):
        stmsi.datasets.simulate(**SMALL, deformation=5000)
    with pytest.raises(ValueError, match="n_landmarks must be at least 3"):
        stmsi.datasets.simulate(**SMALL, n_landmarks=2)

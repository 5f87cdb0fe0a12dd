"""What every model answers, whichever family it is of: one test, all models."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleEnsemble, HurdleKernel, HurdleLinear, HurdleNet, HurdleScreened
from stmsi.model.shared._spot_reader import SpotReader

METABOLITES = ["simPC_28_0", "simPC_31_3", "simPC_34_2", "simPC_36_0"]
FIELDS = {"presence_key": "msi_presence"}
SIGNATURE = {**FIELDS, "signature_key": "signature", "cluster_key": "domain"}
CALLS = ("predict_presence", "predict_intensity", "predict", "predict_interval", "sample")


@dataclass
class Case:
    """A kind of model, small enough for tests."""

    cls: type
    params: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)

    def fit(
        self, adata: AnnData, fields: dict[str, Any] | None = None, params: dict | None = None, **train: Any
    ) -> Any:
        self.cls.setup_anndata(adata, **(FIELDS if fields is None else fields))
        model = self.cls(adata, **{**self.params, **(params or {})})
        model.train(**{**self.train, **train})
        return model


CASES = {
    "linear": Case(HurdleLinear, {"n_components": 15, "n_folds": 3}),
    "kernel": Case(HurdleKernel, {"kernel": "genes", "n_landmarks": 100, "n_folds": 3}),
    "screened": Case(HurdleScreened, {"n_folds": 3}),
    "net": Case(
        HurdleNet, {"n_nets": 1, "encoder_kwargs": {"n_hidden": 32, "n_layers": 1}}, {"max_epochs": 2, "lr": 0.01}
    ),
    "ensemble": Case(
        HurdleEnsemble,
        {
            "members": {
                "prior": {"model": "mean", "n_components": 5, "n_folds": 2},
                "linear": {"model": "ridge", "n_components": 15, "n_folds": 2},
            },
            "n_folds": 2,
        },
    ),
}


READ_ALIKE = ("kernel", "screened")
"""Families that read and write data by the code of the linear one: on one of the two stacks they are enough."""
PARAMS = [pytest.param(name, marks=pytest.mark.once) if name in READ_ALIKE else name for name in CASES]


def case_of(model: Any) -> Case:
    """The case that a trained model is of."""
    return next(case for case in CASES.values() if type(model) is case.cls)


def few(adata: AnnData, metabolites: list[str] = METABOLITES) -> AnnData:
    """A copy with some of the metabolites."""
    adata = adata.copy()
    for key in ("msi", "msi_presence"):
        adata.obsm[key] = adata.obsm[key][metabolites]
    return adata


@pytest.fixture
def data(st) -> AnnData:
    return few(st)


@pytest.fixture(params=PARAMS)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module", params=PARAMS)
def trained(request, _mapped):
    """A model trained on the three sections: not to be trained again."""
    return CASES[request.param].fit(few(_mapped.tables["st"]))


@pytest.fixture
def query(st) -> AnnData:
    """The third section as a new one: genes and nothing else."""
    own = st[st.obs["sample"] == "P3S1"]
    return AnnData(own.X.copy(), obs=pd.DataFrame(index=own.obs_names), var=own.var.copy())


def both(model: Any, adata: AnnData | None = None, **kwargs: Any) -> list[pd.DataFrame]:
    return [model.predict_presence(adata, **kwargs), model.predict_intensity(adata, **kwargs)]


def assert_same(a: list[pd.DataFrame], b: list[pd.DataFrame], *, exact: bool = False) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.to_numpy().std() > 0, "frames without variation show nothing"
        if exact:
            assert_frame_equal(x, y, check_exact=True)
        else:
            assert_frame_equal(x, y, rtol=1e-4, atol=1e-5)


def repeat_names(adata: AnnData) -> None:
    """Call all spots the same, as concatenated sections may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        adata.obs_names = ["spot"] * adata.n_obs


def snapshot(adata: AnnData) -> dict[str, Any]:
    """Everything in an AnnData, copied."""
    copy = adata.copy()
    return {
        "X": sp.csr_matrix(copy.X).toarray(),
        "obs": copy.obs,
        "var": copy.var,
        "uns": copy.uns,
        **{f"obsm/{k}": pd.DataFrame(np.asarray(v)) for k, v in copy.obsm.items()},
        **{f"layers/{k}": sp.csr_matrix(v).toarray() for k, v in copy.layers.items()},
        **{f"obsp/{k}": sp.csr_matrix(v).toarray() for k, v in copy.obsp.items()},
        **{f"varm/{k}": np.asarray(v) for k, v in copy.varm.items()},
    }


def assert_unchanged(adata: AnnData, before: dict[str, Any], *, but: tuple[str, ...] = ()) -> None:
    now = snapshot(adata)
    assert now.keys() == before.keys()
    assert set(now["uns"]) - set(before["uns"]) <= set(but)
    assert set(before["uns"]) <= set(now["uns"])
    for key, old in before.items():
        if key in ("obs", "var"):
            assert_frame_equal(now[key].drop(columns=[*but], errors="ignore"), old, obj=key)
        elif key == "uns":
            assert all(str(now["uns"][k]) == str(old[k]) for k in old)
        elif isinstance(old, pd.DataFrame):
            assert_frame_equal(now[key], old, obj=key)
        else:
            np.testing.assert_array_equal(now[key], old, err_msg=key)


# ---------------------------------------------------------------------------------------------------- what comes back


def test_frames_have_one_form(trained, query):
    for adata, names in ((None, trained.adata.obs_names), (query, query.obs_names)):
        frames = [*both(trained, adata), trained.predict(adata), *trained.predict_interval(adata)]
        for frame in frames:
            assert isinstance(frame, pd.DataFrame)
            assert list(frame.index) == list(names)
            assert list(frame.columns) == METABOLITES == trained.metabolites
            assert (frame.dtypes == np.float32).all()
            assert np.isfinite(frame.to_numpy()).all()


def test_presence_is_a_probability_and_intensity_is_not_negative(trained):
    presence, intensity = both(trained)
    assert presence.to_numpy().min() >= 0
    assert presence.to_numpy().max() <= 1
    assert intensity.to_numpy().min() >= 0
    assert presence["simPC_34_2"].mean() < presence["simPC_31_3"].mean(), "prevalence is learnt"


def test_predict_is_exactly_0_where_absent_and_the_mean_elsewhere(trained):
    presence, intensity = both(trained)
    called = presence.to_numpy() >= trained.state.threshold
    assert 0.05 < called.mean() < 0.95
    expected, masked = trained.predict(), trained.predict(how="mask")
    np.testing.assert_array_equal(expected.to_numpy() == 0, ~called | (intensity.to_numpy() == 0))
    np.testing.assert_allclose(expected.to_numpy(), np.where(called, presence * intensity, 0), rtol=1e-6)
    np.testing.assert_array_equal(masked.to_numpy(), np.where(called, intensity, 0))
    several = trained.predict(how=("probability_weighted", "expected"))
    assert list(several) == ["probability_weighted", "expected"]
    assert_frame_equal(several["expected"], expected)
    np.testing.assert_allclose(several["probability_weighted"], presence * intensity, rtol=1e-6)
    assert (several["probability_weighted"].to_numpy() > 0).mean() > called.mean()


def test_unknown_how_is_refused(trained):
    with pytest.raises(
        ValueError, match=r"how='median' is not known; choose one of 'expected', 'probability_weighted', 'mask'"
    ):
        trained.predict(how="median")


def test_the_interval_holds_the_prediction(trained):
    prediction = trained.predict()
    lower, upper = trained.predict_interval()
    assert (lower.to_numpy() >= 0).all()
    assert (lower.to_numpy() <= prediction.to_numpy()).all()
    assert (prediction.to_numpy() <= upper.to_numpy()).all()
    assert (lower.to_numpy() < upper.to_numpy()).mean() > 0.5


def test_more_coverage_is_wider_and_covers_more(trained):
    measured = trained.adata.obsm["msi"].to_numpy()
    known = ~np.isnan(measured)
    width, share = [], []
    for coverage in (0.5, 0.9):
        lower, upper = (f.to_numpy() for f in trained.predict_interval(coverage=coverage))
        width.append((upper - lower).mean())
        share.append(((lower <= measured) & (measured <= upper))[known].mean())
    assert width[0] < width[1]
    assert share[1] > 0.8 > share[0]


@pytest.mark.parametrize("coverage", [0, 1, 90])
def test_impossible_coverage_is_refused(trained, coverage):
    with pytest.raises(ValueError, match=rf"coverage is a share between 0 and 1, found {coverage}"):
        trained.predict_interval(coverage=coverage)


def test_samples_have_one_form_and_follow_the_seed(trained, query):
    query = query[:6].copy()
    draws = trained.sample(query, n_samples=3, rng=7)
    assert draws.dims == ("draw", "spot", "metabolite")
    assert draws.shape == (3, 6, 4)
    assert draws.dtype == np.float32
    assert list(draws.coords["spot"].values) == list(query.obs_names)
    assert list(draws.coords["metabolite"].values) == METABOLITES
    np.testing.assert_array_equal(draws, trained.sample(query, n_samples=3, rng=np.random.default_rng(7)))
    assert (draws.values != trained.sample(query, n_samples=3, rng=8).values).any()
    assert (draws.values[0] != draws.values[1]).any()


def test_samples_are_0_as_often_as_the_model_says_and_have_its_mean(trained, query):
    n = 400
    query = query[::10].copy()
    draws = trained.sample(query, n_samples=n, rng=0).values
    assert draws.min() >= 0
    p = trained.predict_presence(query).to_numpy().astype(float)
    error = np.sqrt(np.maximum(p * (1 - p), 1 / n) / n)
    assert (abs((draws == 0).mean(axis=0) - (1 - p)) < 5 * error).all()
    # the truncated normal's mean is its parent's where the parent is far from 0
    mean, sd = trained.predict_intensity(query).to_numpy(), trained.state.spread
    far = (mean > 4 * sd) & (p > 0.3)
    assert far.any()
    drawn = np.where(draws > 0, draws, np.nan)
    drawn_mean = np.nansum(drawn, axis=0) / np.maximum((draws > 0).sum(axis=0), 1)
    tolerance = 5 * np.broadcast_to(sd, mean.shape) / np.sqrt(np.maximum(n * p, 1)) + 1e-3
    assert (abs(drawn_mean - mean) < tolerance)[far].all()


def test_samples_need_a_number(trained):
    with pytest.raises(ValueError, match="n_samples must be at least 1, found 0"):
        trained.sample(n_samples=0)


def test_the_feature_table_tells_the_evidence(trained):
    table = trained.state.feature_table
    assert list(table.index) == METABOLITES
    assert {"prevalence", "training_mean", "n_spots", "held_out_pearson", "held_out_auroc"} <= set(table)
    presence = trained.adata.obsm["msi_presence"]
    if not isinstance(trained, HurdleNet):  # the net's evidence is of the validation spots alone
        np.testing.assert_allclose(table["prevalence"], presence.mean(), rtol=1e-5)
        np.testing.assert_allclose(table["training_mean"], trained.adata.obsm["msi"].mean(), rtol=1e-5)
    assert table["prevalence"].between(0, 1).all()
    assert (table["n_spots"] > 50).all()


def test_repr_says_what_was_trained_on_what(trained, case, data):
    text = repr(trained)
    assert f"{trained.adata.n_obs - trained.adata.obsm['msi'].isna().all(axis=1).sum()} spots of 3 section(s)" in text
    assert "120 genes -> 4 metabolites" in text
    case.cls.setup_anndata(data)
    assert repr(case.cls(data)).endswith("not trained")


@pytest.mark.parametrize("call", [*CALLS, "save"])
def test_an_untrained_model_says_so(case, data, tmp_path, call):
    case.cls.setup_anndata(data)
    model = case.cls(data)
    with pytest.raises(RuntimeError, match=rf"The {case.cls.__name__} is not trained; call \.train\(\) first"):
        getattr(model, call)(*([tmp_path / "m"] if call == "save" else []))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- query data


def test_a_query_without_msi_gets_what_its_spots_got_in_training(trained, query):
    expected = [f.loc[query.obs_names] for f in both(trained)]
    assert_same(both(trained, query), expected)


def test_the_order_and_number_of_query_spots_does_not_matter(trained, query):
    whole = both(trained, query)
    part = query[::-3].copy()
    assert_same(both(trained, part), [f.loc[part.obs_names] for f in whole])


def test_reordered_genes_give_the_same(trained, query):
    other = query[:, np.random.default_rng(0).permutation(query.n_vars)].copy()
    assert_same(both(trained, other), both(trained, query))


def test_more_genes_give_the_same(trained, query):
    more = AnnData(sp.csr_matrix(np.full((query.n_obs, 3), 50, np.float32)), obs=query.obs)
    more.var_names = ["X1", "X2", "X3"]
    wide = ad.concat([more, query], axis=1)
    assert_same(both(trained, wide), both(trained, query))


@pytest.mark.parametrize("versioned", [False, True])
def test_ensembl_names_give_the_same(trained, query, versioned):
    other = query.copy()
    other.var_names = [f"{g}.{i}" if versioned else g for i, g in enumerate(query.var["gene_ids"])]
    other.var = other.var[[]]
    assert_same(both(trained, other), both(trained, query))


def test_a_model_trained_on_versioned_ids_takes_symbols(case, data, query):
    symbols = data.var_names
    data.var_names = [f"{g}.3" for g in data.var["gene_ids"]]
    data.var = pd.DataFrame({"gene_symbols": symbols}, index=data.var_names)
    model = case.fit(data)
    query.var = query.var[[]]
    assert_same(both(model, query), [f.loc[query.obs_names] for f in both(model)])


def test_missing_genes_are_imputed_and_reported(trained, query, caplog):
    drop = np.random.default_rng(0).permutation(120)[:18]
    fewer = query[:, np.setdiff1d(np.arange(120), drop)].copy()
    with caplog.at_level(logging.WARNING, "stmsi"):
        got = trained.predict_presence(fewer)
    share = trained._gene_weights()[drop].sum()
    assert f"{100 * share:.1f} % of the training genes are missing and were imputed" in caplog.text
    full = trained.predict_presence(query)
    assert np.corrcoef(got.to_numpy().ravel(), full.to_numpy().ravel())[0, 1] > 0.85
    assert (got != full).to_numpy().any()
    np.testing.assert_allclose(got.mean(), full.mean(), atol=0.15)
    assert trained._predict_all(fewer).missing_genes == pytest.approx(share)
    assert share == pytest.approx(0.15, abs=0.1)


@pytest.mark.parametrize("call", CALLS)
def test_too_few_genes_are_refused_below_the_floor(trained, query, call):
    fewer = query[:, :30].copy()
    with pytest.raises(
        ValueError, match=r"Only \d+\.\d% of the \d+ training genes.*at least 40% are needed \(min_genes="
    ):
        getattr(trained, call)(fewer)
    getattr(trained, call)(fewer, min_genes=0.05)


def test_no_gene_in_common_is_refused_whatever_the_floor(trained, query):
    query.var_names = [f"Mus{i}" for i in range(120)]
    query.var = query.var[[]]
    with pytest.raises(ValueError, match="share no gene with the training panel"):
        trained.predict(query, min_genes=0)


def test_a_view_can_be_predicted_and_stays_one(trained, query):
    view = query[10:30]
    assert_same(both(trained, view), both(trained, view.copy()))
    assert view.is_view


def formats() -> dict[str, Any]:
    import dask.array as da

    return {
        "csc": sp.csc_matrix,
        "csr_array": sp.csr_array,
        "dense": lambda X: X.toarray(),
        "float64": lambda X: X.astype(np.float64),
        "int64": lambda X: X.astype(np.int64),
        "dask": lambda X: da.from_array(X.toarray(), chunks=(50, 120)),
        "dask_sparse": lambda X: da.from_array(X, chunks=(50, 120), asarray=False),
    }


@pytest.mark.parametrize("name", formats())
def test_any_array_type_can_be_predicted(trained, query, name):
    expected = both(trained, query)
    query.X = formats()[name](query.X)
    assert_same(both(trained, query), expected)


def test_a_backed_query_can_be_predicted(trained, query, tmp_path):
    query.write_h5ad(tmp_path / "q.h5ad")
    backed = ad.read_h5ad(tmp_path / "q.h5ad", backed="r")
    try:
        assert_same(both(trained, backed), both(trained, query))
    finally:
        backed.file.close()


@pytest.mark.parametrize("name", ["csc", "dense", "dask", "dask_sparse"])
def test_any_array_type_can_be_trained_on(trained, data, query, name):
    data.X = formats()[name](data.X)
    net = isinstance(trained, HurdleNet)
    if net and name == "dask_sparse":
        with pytest.raises(ValueError, match=r"dask array of sparse.*\.X = adata\.X\.compute\(\)"):
            CASES["net"].fit(data)
        return
    slow = pytest.warns(UserWarning, match="faster when sparse matrix is formatted as CSR")
    with slow if net and name == "csc" else nullcontext():
        model = case_of(trained).fit(data)
    assert_same(both(model, query), both(trained, query))


def test_counts_can_be_in_a_layer(trained, data, query, caplog):
    case = case_of(trained)
    expected = both(trained, query)
    for adata in (data, query):
        adata.layers["counts"] = adata.X.copy()
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    model = case.fit(data, {**FIELDS, "layer": "counts"})
    assert_same(both(model, query), expected)
    query.layers["umis"] = query.layers.pop("counts")
    assert_same(both(model, query, layer="umis"), expected)
    query.X = query.layers["umis"].copy()
    caplog.clear()
    with caplog.at_level(logging.INFO, "stmsi"):
        assert_same(both(model, query), expected)
    assert "trained on layers['counts'], which the data lack: X is taken" in caplog.text
    with pytest.raises(KeyError, match=r"The expression is in layer 'spliced', which the data lack; layers: 'umis'"):
        model.predict(query, layer="spliced")


def test_a_layer_of_the_query_alone(trained, query):
    expected = both(trained, query)
    query.layers["counts"] = query.X.copy()
    query.X = sp.csr_matrix(query.shape, dtype=np.float32)
    assert_same(both(trained, query, layer="counts"), expected)
    query.layers["X"] = query.layers.pop("counts")
    assert_same(both(trained, query, layer="X"), expected)


def test_repeated_spot_names_can_be_predicted(trained, query):
    expected = both(trained, query)
    repeat_names(query)
    got = both(trained, query)
    assert set(got[0].index) == {"spot"}
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x.to_numpy(), y.to_numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "match"), [(-1, r"contain 1 negative"), (np.nan, r"contain 1 NaN"), (np.inf, r"contain 1 infinite")]
)
def test_impossible_counts_are_refused(trained, query, value, match):
    query.X[0, 0] = value
    with pytest.raises(ValueError, match=f"Gene counts {match}"):
        trained.predict(query)


def test_an_empty_query_is_refused(trained, query):
    with pytest.raises(ValueError, match=r"The table is empty \(0 spots"):
        trained.predict(query[:0].copy())


def test_a_spot_without_counts_gets_finite_predictions(trained, query):
    query = query[:5].copy()
    query.X = sp.vstack([sp.csr_matrix((1, query.n_vars), dtype=query.X.dtype), query.X[1:]], format="csr")
    assert np.isfinite(np.hstack(both(trained, query))).all()


# ------------------------------------------------------------------------------------------------ on disk and back


def test_save_and_load_give_the_same(trained, query, tmp_path):
    trained.save(tmp_path / "deep" / "model")
    loaded = stmsi.model.load(tmp_path / "deep" / "model")
    assert type(loaded) is type(trained)
    assert repr(loaded) == repr(trained)
    assert_same(both(loaded, query), both(trained, query), exact=True)
    assert_same(list(loaded.predict_interval(query)), list(trained.predict_interval(query)), exact=True)
    np.testing.assert_array_equal(loaded.sample(query, rng=1), trained.sample(query, rng=1))
    assert_frame_equal(loaded.state.feature_table, trained.state.feature_table)


def test_a_loaded_model_needs_data(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = stmsi.model.load(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="loaded without data; pass the AnnData to predict"):
        loaded.predict()
    with pytest.raises(ValueError, match="loaded without data and cannot be trained"):
        loaded.train()


def test_load_with_the_training_data(trained, data, tmp_path):
    trained.save(tmp_path / "model")
    loaded = stmsi.model.load(tmp_path / "model", data)
    assert_same(both(loaded), both(trained), exact=True)


def test_a_loaded_model_can_be_saved_again(trained, query, tmp_path):
    trained.save(tmp_path / "one")
    stmsi.model.load(tmp_path / "one").save(tmp_path / "two")
    assert_same(both(stmsi.model.load(tmp_path / "two"), query), both(trained, query), exact=True)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, _mapped):
    """Predictions of saved models (with signatures) by another process, and by this one."""
    folder = tmp_path_factory.mktemp("fresh")
    st = few(_mapped.tables["st"])
    query = AnnData(st.X[-40:].copy(), obs=pd.DataFrame(index=st.obs_names[-40:]), var=st.var.copy())
    query.write_h5ad(folder / "query.h5ad")
    here = {}
    for name, case in CASES.items():
        model = case.fit(few(st), SIGNATURE)
        model.save(folder / name)
        here[name] = both(model, query)
    code = """
import sys, anndata, stmsi
query = anndata.read_h5ad(f"{sys.argv[1]}/query.h5ad")
for name in sys.argv[2:]:
    model = stmsi.model.load(f"{sys.argv[1]}/{name}")
    model.predict_presence(query).to_pickle(f"{sys.argv[1]}/{name}_0.pkl")
    model.predict_intensity(query).to_pickle(f"{sys.argv[1]}/{name}_1.pkl")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *CASES], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    there = {name: [pd.read_pickle(folder / f"{name}_{i}.pkl") for i in range(2)] for name in CASES}
    return here, there


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_another_process_predicts_the_same(fresh, name):
    here, there = fresh
    assert_same(there[name], here[name], exact=True)


def test_a_folder_is_not_overwritten_unasked(trained, query, tmp_path):
    target = tmp_path / "model"
    trained.save(target)
    with pytest.raises(FileExistsError, match=r"model exists already; pass overwrite=True"):
        trained.save(target)
    trained.save(target, overwrite=True)
    assert_same(both(stmsi.model.load(target), query), both(trained, query), exact=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_foreign_folders_are_never_overwritten(trained, tmp_path):
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter1.tex").write_text("words")
    with pytest.raises(FileExistsError, match=r"not a folder that stmsi wrote \(no stmsi\.json\)"):
        trained.save(target, overwrite=True)
    assert (target / "chapter1.tex").read_text() == "words"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_a_save_that_fails_leaves_what_was_there(trained, query, tmp_path, monkeypatch):
    def broken(directory):
        (directory / "half").write_text("half")
        msg = "disk full"
        raise OSError(msg)

    target = tmp_path / "model"
    monkeypatch.setattr(trained, "_write", broken)
    with pytest.raises(OSError, match="disk full"):
        trained.save(target)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    trained.save(target)
    monkeypatch.setattr(trained, "_write", broken)
    with pytest.raises(OSError, match="disk full"):
        trained.save(target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same(both(stmsi.model.load(target), query), both(trained, query), exact=True)


def test_a_saved_folder_has_the_usual_permissions(trained, tmp_path):
    trained.save(tmp_path / "model")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.once
def test_same_seed_same_bits(trained, data):
    case = case_of(trained)
    np.random.default_rng().random()
    again = case.fit(data)
    assert_same(both(again), both(trained), exact=True)
    np.testing.assert_array_equal(again.state.threshold, trained.state.threshold)
    assert_same(list(again.predict_interval()), list(trained.predict_interval()), exact=True)


@pytest.mark.once
def test_training_twice_is_training_once(case, data):
    model = case.fit(data)
    first = both(model)
    model.train(**case.train)
    assert_same(both(model), first, exact=True)


def test_results_do_not_depend_on_the_number_of_processes(data):
    case = CASES["linear"]
    one, two = (case.fit(data.copy(), SIGNATURE, {"n_jobs": n}) for n in (1, 2))
    assert_same(both(one), both(two), exact=True)


def test_train_idx_as_positions_or_mask(case, data):
    mask = (data.obs["sample"] != "P3S1").to_numpy()
    by_mask = case.fit(data.copy(), train_idx=mask)
    by_position = case.fit(data.copy(), train_idx=np.flatnonzero(mask))
    assert by_mask.state.training["samples"] == ["P1S1", "P2S1"]
    assert_same(both(by_mask), both(by_position), exact=True)


@pytest.mark.once
def test_spots_outside_train_idx_have_no_say(case, data):
    """Other values of the measured intensities there change nothing."""
    mask = (data.obs["sample"] != "P3S1").to_numpy()
    other = data.copy()
    for key in ("msi", "msi_presence"):
        frame = other.obsm[key].copy()
        frame.loc[~mask] = frame.loc[~mask].to_numpy()[::-1, ::-1]
        other.obsm[key] = frame
    a, b = (case.fit(d, train_idx=mask) for d in (data, other))
    assert_same(both(a), both(b), exact=True)
    assert_frame_equal(a.predict(), b.predict(), check_exact=True)


@pytest.mark.once
def test_genes_outside_train_idx_have_no_say(case, data):
    mask = (data.obs["sample"] != "P3S1").to_numpy()
    other = data.copy()
    X = other.X.toarray()
    X[~mask] = X[~mask][:, ::-1]
    other.X = sp.csr_matrix(X)
    a, b = (case.fit(d, train_idx=mask) for d in (data, other))
    assert_same([f[mask] for f in both(a)], [f[mask] for f in both(b)], exact=True)


def test_validation_idx_sets_thresholds_and_intervals(case, data):
    sample = data.obs["sample"].to_numpy()
    mask = sample == "P3S1"
    model = case.fit(data.copy(), validation_idx=mask)
    assert model.state.training["samples"] == ["P1S1", "P2S1"]
    covered = ~data.obsm["msi"].isna().all(axis=1).to_numpy()
    assert model.state.training["n_spots"] == (covered & ~mask).sum()
    np.testing.assert_array_equal(model.state.feature_table["n_spots"], (covered & mask).sum())
    np.testing.assert_allclose(
        model.state.feature_table["prevalence"], data.obsm["msi_presence"][mask].mean(), rtol=1e-5
    )
    other = case.fit(data.copy(), train_idx=sample == "P1S1", validation_idx=np.flatnonzero(mask))
    assert other.state.training["samples"] == ["P1S1"]


def test_overlapping_rows_are_refused(case, data):
    with pytest.raises(ValueError, match="10 spots are in train_idx and in validation_idx; split them"):
        case.fit(data, train_idx=np.arange(200), validation_idx=np.arange(190, 250))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.ones(10, bool), r"train_idx as a mask must have length 344, found \(10,\)"),
        ([0, 400], r"train_idx must be distinct positions from 0 to 343"),
        ([-1, 5], r"train_idx must be distinct positions"),
        ([5, 5], r"train_idx must be distinct positions"),
        ([], r"train_idx must be distinct positions.*at least one"),
        (np.zeros(344, bool), r"train_idx must be distinct positions.*at least one"),
    ],
)
def test_impossible_rows_are_refused(case, data, rows, match):
    with pytest.raises(ValueError, match=match):
        case.fit(data, train_idx=rows)


def test_a_section_without_msi_is_left_out(case, data):
    mask = (data.obs["sample"] == "P3S1").to_numpy()
    without = data.copy()
    for key in ("msi", "msi_presence"):
        frame = without.obsm[key].copy()
        frame.loc[mask] = np.nan
        without.obsm[key] = frame
    model = case.fit(without)
    assert model.state.training["samples"] == ["P1S1", "P2S1"]
    assert_same(both(model), both(case.fit(data.copy(), train_idx=~mask)), exact=True)


def test_no_msi_at_all_is_refused(case, data):
    for key in ("msi", "msi_presence"):
        data.obsm[key] = data.obsm[key] * np.nan
    with pytest.raises(ValueError, match=r"None of the training spots has MSI \(all intensities are NaN\).*alignment"):
        case.fit(data)


def test_validation_without_msi_is_refused(case, data):
    mask = (data.obs["sample"] == "P3S1").to_numpy()
    frame = data.obsm["msi"].copy()
    frame.loc[mask] = np.nan
    data.obsm["msi"] = frame
    with pytest.raises(ValueError, match="None of the validation spots has MSI"):
        case.fit(data, validation_idx=mask)


def test_a_metabolite_measured_nowhere_is_left_out_with_a_warning(case, data, caplog):
    for key in ("msi", "msi_presence"):
        data.obsm[key] = data.obsm[key].assign(simPC_31_3=np.float32(np.nan))
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = case.fit(data)
    assert "never measured in the training spots are left out: 'simPC_31_3'" in caplog.text
    rest = [m for m in METABOLITES if m != "simPC_31_3"]
    assert model.metabolites == rest
    frames = [*both(model), model.predict(), *model.predict_interval()]
    assert all(list(f.columns) == rest and np.isfinite(f.to_numpy()).all() for f in frames)
    assert model.sample(n_samples=1, rng=0).shape == (1, 344, 3)


def test_a_metabolite_measured_in_one_section_only(case, data):
    """Its rows elsewhere are NaN, and must not count as absent, not even where none of them validates."""
    for key in ("msi", "msi_presence"):
        frame = data.obsm[key].copy()
        frame.loc[(data.obs["sample"] != "P2S1").to_numpy(), "simPC_36_0"] = np.nan
        data.obsm[key] = frame
    model = case.fit(data, **({"max_epochs": 8} if case.cls is HurdleNet else {}))
    assert model.predict_presence()["simPC_36_0"].mean() > 0.6, "it is present wherever it was measured"
    assert (model.predict()["simPC_36_0"] > 0).mean() > 0.9


def test_absent_present_and_constant_metabolites(case, data, tmp_path):
    measured = data.obsm["msi"].notna().to_numpy()[:, 0]
    Y = data.obsm["msi"][METABOLITES[:1]].copy()
    Y["absent"] = np.where(measured, 0.0, np.nan).astype(np.float32)
    Y["constant"] = np.where(measured, 2.0, np.nan).astype(np.float32)
    Y["once"] = Y["absent"].mask(np.arange(len(Y)) == np.flatnonzero(measured)[0], 5.0).astype(np.float32)
    data.obsm["msi"] = Y
    model = case.fit(data, {})
    frames = [*both(model), model.predict(), *model.predict_interval()]
    assert all(np.isfinite(f.to_numpy()).all() for f in frames)
    assert np.isfinite(model.sample(rng=0).values).all()
    assert (model.predict()["absent"] == 0).all()
    assert (model.predict_presence()["absent"] < 0.2).all()
    assert (model.predict_presence()["constant"] > 0.8).all()
    model.save(tmp_path / "model")  # the card takes them too


def test_one_section_only(case, data):
    one = data[data.obs["sample"] == "P1S1"].copy()
    model = case.fit(one)
    assert model.state.training["samples"] == ["P1S1"]
    assert np.isfinite(np.hstack(both(model, data))).all()


@pytest.mark.parametrize("n_sections", [1, 2])
def test_few_sections_without_positions_have_random_folds_or_are_refused(case, data, n_sections, caplog):
    some = data[data.obs["sample"].isin(["P1S1", "P2S1"][:n_sections])].copy()
    del some.obsm["spatial"]
    if case.cls is HurdleNet:
        with pytest.raises(
            ValueError, match=rf"{n_sections} section\(s\).*spatial blocks.*positions in obsm\[\"spatial\"\]"
        ):
            case.fit(some)
        return
    with caplog.at_level(logging.INFO, "stmsi"):
        model = case.fit(some)
    assert "inner folds are random" in caplog.text
    assert all(np.isfinite(frame.to_numpy()).all() for frame in (*both(model), model.predict()))


def test_setup_without_presence_takes_intensities_above_0(case, data):
    model = case.fit(data.copy(), {})
    same = data.copy()
    same.obsm["zero"] = (data.obsm["msi"] > 0).astype(np.float32).where(data.obsm["msi"].notna())
    assert_same(both(model), both(case.fit(same, {"presence_key": "zero"})))


def test_names_of_fields_are_free(trained, data, query):
    case = case_of(trained)
    data.obsm["lipids"], data.obsm["there"] = data.obsm.pop("msi"), data.obsm.pop("msi_presence")
    data.obs = data.obs.rename(columns={"sample": "slide"})
    model = case.fit(data, {"metabolite_key": "lipids", "presence_key": "there", "sample_key": "slide"})
    assert_same(both(model, query), both(trained, query), exact=True)


def test_training_data_gain_what_is_documented_and_nothing_else(case, data):
    before = snapshot(data)
    model = case.fit(data)
    for call in CALLS:
        getattr(model, call)()
    allowed = ("_stmsi_setup", *(("_scvi_uuid", "_scvi_manager_uuid", "_indices") if case.cls is HurdleNet else ()))
    assert_unchanged(data, before, but=allowed)


def test_query_data_gain_nothing(trained, query):
    before = snapshot(query)
    for call in CALLS:
        getattr(trained, call)(query)
    assert_unchanged(query, before)


# --------------------------------------------------------------------------------- signatures, covariates, neighbours


def test_the_signature_is_an_input_of_the_presence_stage(case, data):
    model = case.fit(data.copy(), SIGNATURE)
    shuffled = data.copy()
    shuffled.obs["domain"] = shuffled.obs["domain"].to_numpy()[np.random.default_rng(0).permutation(344)]
    other = case.fit(shuffled, SIGNATURE)
    assert (model.predict_presence() != other.predict_presence()).to_numpy().any()


def test_clusters_of_a_query_are_not_read(case, data, query):
    """They come from another clustering; a spot belongs to the nearest training cluster."""
    model = case.fit(data, SIGNATURE)
    expected = both(model, query)
    query.obs["domain"] = "a name that training never saw"
    assert_same(both(model, query), expected, exact=True)


def test_most_spots_find_their_cluster_again(case, data):
    model = case.fit(data, SIGNATURE)
    features, spots = (
        model.state.features,
        SpotReader.open(data, model.state.setup, model.state.panel).read(),
    )
    spots = spots.take(np.arange(344))
    truth = features.clusters.labels[features.cluster_codes(spots)]
    assert (truth == data.obs["domain"].astype(str)).all(), "training spots keep their label"
    found = features.clusters.labels[
        features.clusters.assign(features._white(features.own.transform(spots.log_expression())), None)
    ]
    assert (found == truth).mean() > 0.6


def test_a_signature_without_labels_is_refused(case, data):
    data.varm["signature"] = np.asarray(data.varm["signature"])
    del data.uns["signature"]
    with pytest.raises(ValueError, match=r"varm\['signature'\] has no cluster labels.*gene_signatures"):
        case.fit(data, SIGNATURE)


@pytest.fixture
def with_covariates(data) -> AnnData:
    rng = np.random.default_rng(0)
    data.obs["batch"] = pd.Categorical(rng.choice(["a", "b"], 344))
    data.obs["age"] = rng.normal(50, 10, 344)
    return data


COVARIATES = {**FIELDS, "covariate_keys": ["batch", "age"]}


def test_covariates_are_inputs(case, with_covariates):
    data = with_covariates
    model = case.fit(data, COVARIATES)
    query = data.copy()
    base = both(model, query)
    assert_same(base, both(model))
    query.obs["batch"] = "b"
    assert (both(model, query)[1] != base[1]).to_numpy().any()
    query.obs["batch"], query.obs["age"] = data.obs["batch"].astype(str), data.obs["age"] + 30
    assert (both(model, query)[1] != base[1]).to_numpy().any()


def test_a_covariate_that_drives_a_metabolite_is_used(case, data):
    """Genes know nothing of it: the intensity is the covariate."""
    rng = np.random.default_rng(0)
    data.obs["dose"] = rng.normal(50, 10, 344)
    frame = data.obsm["msi"].copy()
    frame["simPC_36_0"] = np.float32(10) + data.obs["dose"].to_numpy(np.float32) / 10
    data.obsm["msi"] = frame
    model = case.fit(data, {"covariate_keys": ["dose"]}, **({"max_epochs": 8} if case.cls is HurdleNet else {}))
    r = np.corrcoef(model.predict_intensity()["simPC_36_0"], data.obs["dose"])[0, 1]
    assert r > (0.3 if case.cls is HurdleNet else 0.95)


def test_covariates_survive_save_and_load(case, with_covariates, tmp_path):
    model = case.fit(with_covariates, COVARIATES)
    model.save(tmp_path / "model")
    query = with_covariates[::5].copy()
    assert_same(both(stmsi.model.load(tmp_path / "model"), query), both(model, query), exact=True)


def test_covariates_of_the_query_are_checked(case, with_covariates):
    data = with_covariates
    model = case.fit(data, COVARIATES)
    query = data[:20].copy()
    query.obs["batch"] = "z"
    with pytest.raises(
        ValueError, match=r"Covariate 'batch' has categories that training did not: 'z'; known: 'a', 'b'"
    ):
        model.predict(query)
    del query.obs["batch"]
    with pytest.raises(KeyError, match=r"obs has no column 'batch'.*The model uses it as a covariate"):
        model.predict(query)
    query.obs["batch"] = "a"
    query.obs["age"] = np.nan
    with pytest.raises(ValueError, match=r"Covariate obs\['age'\] has missing values"):
        model.predict(query)


def test_a_covariate_with_one_category_per_section(case, data):
    """The usual case of a batch; inner validation on whole sections must not trip over it."""
    model = case.fit(data, {**FIELDS, "covariate_keys": ["patient"]})
    assert np.isfinite(np.hstack(both(model))).all()


def test_covariates_with_repeated_spot_names(case, with_covariates):
    model = case.fit(with_covariates, COVARIATES)
    query = with_covariates[:20].copy()
    expected = both(model, query)
    repeat_names(query)
    for x, y in zip(both(model, query), expected, strict=True):
        np.testing.assert_allclose(x.to_numpy(), y.to_numpy(), rtol=1e-4, atol=1e-5)


GRAPH = {**FIELDS, "graph_key": "spatial_connectivities"}


def test_neighbours_are_an_input_where_a_graph_is_named(data, query):
    model = CASES["linear"].fit(data, GRAPH)
    with pytest.raises(KeyError, match=r"uses the graph obsp\['spatial_connectivities'\].*none.*pp\.spatial_graph"):
        model.predict(query)
    rows = data.obs_names.get_indexer(query.obs_names)
    graph = data.obsp["spatial_connectivities"][rows][:, rows]
    query.obsp["spatial_connectivities"] = graph
    base = both(model, query)
    assert_same(base, [f.loc[query.obs_names] for f in both(model)])
    query.obsp["spatial_connectivities"] = sp.csr_matrix(graph.shape)
    assert (both(model, query)[1] != base[1]).to_numpy().any()


def test_an_encoder_without_neighbours_refuses_a_graph(data):
    HurdleNet.setup_anndata(data, **GRAPH)
    with pytest.raises(ValueError, match="encoder='mlp' reads no neighbourhood; set up without graph_key"):
        HurdleNet(data)


# ------------------------------------------------------------------------------------------------- further features


@pytest.fixture
def with_histology(data) -> AnnData:
    """A metabolite that genes know nothing of, and an image feature that tells it."""
    rng = np.random.default_rng(0)
    data.obsm["he"] = pd.DataFrame(
        {"gland": rng.normal(50, 10, 344), "noise": rng.normal(size=344), "flat": 1.0}, index=data.obs_names
    )
    frame = data.obsm["msi"].copy()
    frame["simPC_36_0"] = np.float32(10) + data.obsm["he"]["gland"].to_numpy(np.float32) / 10
    data.obsm["msi"] = frame
    return data


FEATURES = {"feature_key": "he"}


def test_features_are_inputs(with_histology):
    data = with_histology
    model = CASES["linear"].fit(data, FEATURES)
    assert np.corrcoef(model.predict_intensity()["simPC_36_0"], data.obsm["he"]["gland"])[0, 1] > 0.95
    without = CASES["linear"].fit(data.copy(), {})
    assert abs(np.corrcoef(without.predict_intensity()["simPC_36_0"], data.obsm["he"]["gland"])[0, 1]) < 0.5


def test_features_are_found_by_name_and_z_scored_on_training_spots(with_histology):
    data = with_histology
    train = np.flatnonzero(data.obs["sample"] != "P3S1")
    model = CASES["linear"].fit(data, FEATURES, train_idx=train)
    query = data.copy()
    query.obsm["he"] = query.obsm["he"].iloc[:, ::-1]
    assert_same(both(model, query), both(model), exact=True)
    alone = data[data.obs["sample"] == "P3S1"].copy()
    assert_same(both(model, alone), [f.loc[alone.obs_names] for f in both(model)])
    rescaled = data.copy()
    rescaled.obsm["he"] = rescaled.obsm["he"] * 1000 + 7
    assert_same(both(CASES["linear"].fit(rescaled, FEATURES, train_idx=train)), both(model))


@pytest.mark.parametrize("as_type", [np.asarray, sp.csr_matrix], ids=["array", "sparse"])
def test_features_of_any_kind(with_histology, as_type):
    expected = both(CASES["linear"].fit(with_histology.copy(), FEATURES))
    with_histology.obsm["he"] = as_type(with_histology.obsm["he"].to_numpy())
    assert_same(both(CASES["linear"].fit(with_histology, FEATURES)), expected, exact=True)


def test_several_features_and_save_and_load(with_histology, tmp_path):
    with_histology.obsm["deep"] = np.random.default_rng(1).normal(size=(344, 5))
    model = CASES["linear"].fit(with_histology, {"feature_key": ["he", "deep"]})
    model.save(tmp_path / "model")
    query = with_histology[::5].copy()
    assert_same(both(stmsi.model.load(tmp_path / "model"), query), both(model, query), exact=True)


def test_features_of_the_query_are_checked(with_histology):
    model = CASES["linear"].fit(with_histology, FEATURES)
    query = with_histology[:20].copy()
    query.obsm["he"] = query.obsm["he"].drop(columns="gland")
    with pytest.raises(ValueError, match=r"obsm\['he'\] had 3 columns in training, found 2; missing: 'gland'"):
        model.predict(query)
    query.obsm["he"] = with_histology.obsm["he"].iloc[:20].assign(gland=np.nan)
    with pytest.raises(ValueError, match=r"obsm\['he'\] are NaN or infinite in 20 spots"):
        model.predict(query)
    del query.obsm["he"]
    with pytest.raises(KeyError, match=r"uses the features obsm\['he'\], which the data lack; found .*'msi'"):
        model.predict(query)


def test_features_with_repeated_columns_are_refused(with_histology):
    with_histology.obsm["he"].columns = ["gland", "gland", "flat"]
    with pytest.raises(ValueError, match=r"Columns of obsm\['he'\] must be unique; repeated: 'gland'"):
        CASES["linear"].fit(with_histology, FEATURES)


# ------------------------------------------------------------------------------------------------ families of one class


@pytest.mark.parametrize("intensity", ["knn", "poisson", "negative_binomial"])
def test_every_family_answers_the_calls(data, query, tmp_path, intensity):
    data.obsm["msi"] = data.obsm["msi"].assign(
        absent=data.obsm["msi"].iloc[:, 0] * 0, constant=data.obsm["msi"].iloc[:, 0] * 0 + 2
    )
    model = CASES["linear"].fit(data, {}, {"intensity": intensity})
    frames = [*both(model, query), model.predict(query), *model.predict_interval(query)]
    assert all(np.isfinite(f.to_numpy()).all() and (f.to_numpy() >= 0).all() for f in frames)
    assert (model.predict(query)["absent"] == 0).all()
    np.testing.assert_allclose(model.predict_intensity(query)["constant"], 2, rtol=1e-5)
    shuffled = query[::-1].copy()
    assert_same([f.loc[query.obs_names] for f in both(model, shuffled)], both(model, query))
    again = CASES["linear"].fit(data.copy(), {}, {"intensity": intensity, "n_jobs": 2})
    assert_same(both(again, query), both(model, query), exact=True)
    model.save(tmp_path / "model")
    assert_same(both(stmsi.model.load(tmp_path / "model"), query), both(model, query), exact=True)

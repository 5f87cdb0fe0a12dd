"""What only the ensemble does; what it shares with every model is in test_contract.py."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet
from stmsi.model.ensemble import _hurdle_ensemble as _ensemble
from stmsi.model.ensemble import _members as _member
from stmsi.model_selection import LeaveOneSampleOut

METABOLITES = ["simPC_28_0", "simPC_31_3", "simPC_34_2", "simPC_36_0"]
PRIOR = {"model": "mean", "n_components": 5, "n_folds": 2}
RIDGE = {"model": "ridge", "n_components": 8, "n_folds": 2}
CHEAP = {"prior": PRIOR, "ridge": RIDGE}


@pytest.fixture
def data(st) -> AnnData:
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][METABOLITES]
    return st


def fit(
    adata: AnnData, members: Any = CHEAP, fields: dict[str, Any] | None = None, nested: bool = False, **train: Any
) -> HurdleEnsemble:
    HurdleEnsemble.setup_anndata(adata, **{"presence_key": "msi_presence", **(fields or {})})
    model = HurdleEnsemble(adata, members=members, n_folds=3, nested=nested)
    model.train(**train)
    return model


@pytest.fixture(scope="module")
def trained(_mapped) -> HurdleEnsemble:
    """Trained on two of the three sections: not to be trained again."""
    st = _mapped.tables["st"].copy()
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key][METABOLITES]
    return fit(st, train_idx=(st.obs["sample"] != "P3S1").to_numpy())


def weight(model: HurdleEnsemble, **where: str) -> pd.Series:
    table = model.weights
    for key, value in where.items():
        table = table[table[key] == value]
    return table["weight"]


# ----------------------------------------------------------------------------------------------------------- weights


def test_weights_are_a_tidy_table(trained):
    table = trained.weights
    assert list(table) == ["metabolite", "stage", "member", "weight"]
    assert len(table) == 4 * 2 * 2
    assert not table.duplicated(["metabolite", "stage", "member"]).any()
    assert set(table["member"]) == {"prior", "ridge"}
    assert set(table["stage"]) == {"presence", "intensity"}
    assert (table["weight"] >= 0).all()
    np.testing.assert_allclose(table.groupby(["metabolite", "stage"])["weight"].sum(), 1)


def test_an_untrained_ensemble_has_no_weights(data):
    HurdleEnsemble.setup_anndata(data)
    with pytest.raises(RuntimeError, match=r"The HurdleEnsemble is not trained; call \.train\(\) first"):
        HurdleEnsemble(data, members=CHEAP).weights  # noqa: B018


def test_the_prediction_is_the_weighted_mean_of_the_members(trained):
    members = [m.predict_presence(trained.adata).to_numpy() for m in trained.models_]
    w = np.stack([weight(trained, stage="presence", member=name).to_numpy() for name in CHEAP])
    expected = sum(p * v for p, v in zip(members, w, strict=True))
    np.testing.assert_allclose(trained.predict_presence(), expected, rtol=1e-5)


def test_a_member_that_knows_more_has_more_weight(trained):
    assert (weight(trained, member="ridge") > weight(trained, member="prior").to_numpy()).all()


def test_the_ensemble_is_no_worse_than_its_best_member_on_a_held_out_section(trained):
    st = trained.adata
    test = st[st.obs["sample"] == "P3S1"].copy()
    y, z = test.obsm["msi"].to_numpy(), test.obsm["msi_presence"].to_numpy()

    def errors(model: Any) -> np.ndarray:
        p, mean = model.predict_presence(test).to_numpy(), model.predict(test, how="probability_weighted").to_numpy()
        return np.array([np.nanmean((p - z) ** 2), np.nanmean((mean - y) ** 2 / np.nanvar(y, axis=0))])

    best = np.min([errors(m) for m in trained.models_], axis=0)
    worst = np.max([errors(m) for m in trained.models_], axis=0)
    assert (worst > 1.1 * best).all(), "members that are equally good show nothing"
    # the weights rest on 217 spots of two sections: a part of the way to the worse member is noise
    assert (errors(trained) < best + 0.3 * (worst - best)).all()


class _Noise(HurdleLinear):
    """Predictions that have nothing to do with the data."""

    def _stages(self, spots, at=None):
        rng = np.random.default_rng(len(spots))
        shape = (len(spots if at is None else at), len(self.state.metabolites))
        return rng.random(shape), np.abs(rng.normal(100, 50, shape))


def test_a_member_of_pure_noise_has_no_weight(data, monkeypatch):
    resolve = _member.resolve

    def with_noise(spec):
        cls, params, setup, train = resolve("mean" if spec == "noise" else spec)
        return (_Noise if spec == "noise" else cls), params, setup, train

    monkeypatch.setattr(_member, "resolve", with_noise)
    model = fit(data, {**CHEAP, "noise": "noise"})
    assert weight(model, member="noise", stage="intensity").mean() < 0.03
    assert (weight(model, member="noise", stage="intensity") < 0.1).all()
    # between 0 and 1, noise is not quite as wrong, and it averages some of the others' error out
    assert (weight(model, member="noise", stage="presence") < 0.15).all()


def test_equal_members_share_their_weight(data):
    model = fit(data, {"one": PRIOR, "two": PRIOR})
    np.testing.assert_allclose(weight(model, stage="presence"), 0.5, atol=1e-6)
    # of maps that are equal, any sum serves
    np.testing.assert_allclose(model.weights.groupby(["metabolite", "stage"])["weight"].sum(), 1)
    np.testing.assert_allclose(model.predict_presence(data), model.models_[0].predict_presence(data), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ held-out folds


@pytest.fixture
def spy(monkeypatch):
    """The held-out probabilities and maps that the weights are made of."""
    seen: list[dict[str, Any]] = []
    presence, maps = _ensemble.stacking_weights, _ensemble.selected_weights

    def record_presence(truth, predictions, groups, eligible):
        seen.append({"truth": truth, "predictions": predictions, "groups": groups})
        return presence(truth, predictions, groups, eligible)

    def record_maps(truth, predictions, eligible):
        seen.append({"truth": truth, "predictions": predictions, "groups": truth.groups})
        return maps(truth, predictions, eligible)

    monkeypatch.setattr(_ensemble, "stacking_weights", record_presence)
    monkeypatch.setattr(_ensemble, "selected_weights", record_maps)
    return seen


def test_groups_are_whole_patients(data, spy):
    model = fit(data)
    covered = data.obsm["msi"].notna().any(axis=1).to_numpy()
    patient = data.obs["patient"].to_numpy()[covered]
    assert model.state.training["n_spots"] == covered.sum()
    for seen in spy:
        pairs = pd.DataFrame({"patient": patient, "group": seen["groups"]}).drop_duplicates()
        assert len(pairs) == 3
        assert pairs["group"].nunique() == 3
    assert "3 groups of held-out patients" in model.state.training["chosen"]


def test_linear_members_stack_on_the_predictions_of_their_own_folds(data, spy):
    model = fit(data)
    for member, probability, made in zip(model.models_, *(seen["predictions"] for seen in spy), strict=True):
        np.testing.assert_array_equal(probability, member.held_out_[0])
        np.testing.assert_array_equal(made, member.held_out_[0] * member.held_out_[1])
    covered = data.obsm["msi"].notna().any(axis=1).to_numpy()
    sections = pd.factorize(data.obs["sample"].to_numpy()[covered])[0]
    units = spy[1]["truth"].of_unit.tocoo()
    assert len(set(zip(units.row, sections[units.col], strict=True))) == 3


@pytest.mark.once
def test_members_that_trained_on_part_of_the_spots_are_predicted_group_by_group(data, spy):
    part = {**RIDGE, "train": {"train_idx": list(range(200))}}
    fit(data, {"ridge": RIDGE, "part": part})
    made = spy[0]["predictions"]
    assert made.shape[0] == 2
    assert np.isfinite(made).all()


@pytest.mark.once
def test_labels_of_a_held_out_group_have_no_say_in_its_nested_predictions(data, spy):
    fit(data.copy(), nested=True)
    rows = (data.obs["sample"] == "P3S1").to_numpy()
    for key in ("msi", "msi_presence"):
        frame = data.obsm[key].copy()
        known = rows & frame.notna().all(axis=1).to_numpy()
        frame.loc[known] = frame.loc[known].to_numpy()[::-1]
        data.obsm[key] = frame
    fit(data, nested=True)
    first, second = spy[:2], spy[2:]
    covered = data.obsm["msi"].notna().any(axis=1).to_numpy()
    own = rows[covered]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["predictions"][:, own], b["predictions"][:, own])
        assert not np.array_equal(a["predictions"][:, ~own], b["predictions"][:, ~own], equal_nan=True)


def test_intervals_rest_on_every_section(data):
    model = fit(data)
    measured = data.obsm["msi"].notna().sum().to_numpy()
    np.testing.assert_array_equal(model.state.residuals.count.sum(axis=0), measured)
    np.testing.assert_array_equal(model.state.feature_table["n_spots"], measured)


@pytest.mark.once
def test_results_do_not_depend_on_the_number_of_processes(trained, data):
    HurdleEnsemble.setup_anndata(data, presence_key="msi_presence")
    model = HurdleEnsemble(data, members=CHEAP, n_folds=3, n_jobs=2)
    model.train(train_idx=(data.obs["sample"] != "P3S1").to_numpy())
    assert_frame_equal(model.weights, trained.weights, check_exact=True)
    assert_frame_equal(model.predict(), trained.predict(), check_exact=True)


# ----------------------------------------------------------------------------------------------------- unusual targets


def test_metabolites_that_say_little(data, caplog):
    measured = data.obsm["msi"].notna().to_numpy()[:, 0]
    one = (data.obs["sample"] == "P2S1").to_numpy()
    Y = data.obsm["msi"][METABOLITES[:2]].copy()
    Y["absent"] = np.where(measured, 0.0, np.nan).astype(np.float32)
    Y["constant"] = np.where(measured, 2.0, np.nan).astype(np.float32)
    Y["one"] = data.obsm["msi"]["simPC_36_0"].where(one)
    Y["nowhere"] = np.float32(np.nan)
    data.obsm["msi"] = Y
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit(data, fields={"presence_key": None})
    assert [r.getMessage() for r in caplog.records] == [
        "Metabolites never measured in the training spots are left out: 'nowhere'"
    ]
    assert model.metabolites == [*METABOLITES[:2], "absent", "constant", "one"]
    assert model.weights["weight"].notna().all()
    np.testing.assert_allclose(model.weights.groupby(["metabolite", "stage"])["weight"].sum(), 1)
    # nothing to choose by: the weights of all
    shared = [weight(model, metabolite=m, stage="presence").to_numpy() for m in ("absent", "constant")]
    np.testing.assert_allclose(*shared)
    frames = [model.predict_presence(), model.predict_intensity(), model.predict(), *model.predict_interval()]
    assert all(np.isfinite(f.to_numpy()).all() for f in frames)
    lower, upper = model.predict_interval()
    # no held-out spot of it: the interval is that of a member, made of its own folds inside the section
    assert (upper["one"] - lower["one"]).to_numpy()[one].min() > 0


def test_a_metabolite_that_a_member_leaves_out_is_predicted_by_the_others(data, monkeypatch):
    train = HurdleLinear._fit

    def train_without_one(self, *args, **kwargs):
        train(self, *args, **kwargs)
        if self.intensity == "ridge":  # as a network does that saw none of a metabolite but for validation
            self.classifiers_, self.regressions_ = self.classifiers_[1:], self.regressions_[1:]
            self.state.metabolites, self.held_out_ = self.state.metabolites[1:], self.held_out_[:, :, 1:]

    monkeypatch.setattr(HurdleLinear, "_fit", train_without_one)
    model = fit(data)
    assert model.metabolites == METABOLITES
    assert (weight(model, metabolite=METABOLITES[0], member="prior") == 1).all()
    assert (weight(model, metabolite=METABOLITES[1], member="ridge") > 0).all()
    assert np.isfinite(model.predict().to_numpy()).all()


def test_a_metabolite_that_no_member_predicts_is_left_out_with_a_warning(data, monkeypatch, caplog):
    train = HurdleLinear._fit

    def train_without_one(self, *args, **kwargs):
        train(self, *args, **kwargs)
        self.classifiers_, self.regressions_ = self.classifiers_[1:], self.regressions_[1:]
        self.state.metabolites, self.held_out_ = self.state.metabolites[1:], self.held_out_[:, :, 1:]

    monkeypatch.setattr(HurdleLinear, "_fit", train_without_one)
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit(data, [PRIOR])
    assert f"Metabolites that no member predicts are left out: '{METABOLITES[0]}'" in caplog.text
    assert model.metabolites == METABOLITES[1:] == list(model.state.feature_table.index)
    assert model.predict().shape == (344, 3)


def test_a_covariate_with_one_category_per_section(data):
    model = fit(data, {"ridge": RIDGE}, {"covariate_keys": ["patient"]})
    assert np.isfinite(model.predict().to_numpy()).all()


# ------------------------------------------------------------------------------------------------------------- members


def test_networks_and_linear_models_stack_without_a_trace_on_the_data(data, tmp_path):
    net = {
        "model": HurdleNet,
        "encoder_kwargs": {"n_hidden": 8, "n_layers": 1},
        "train": {"max_epochs": 1, "refit": False},
    }
    data.layers["counts"] = data.X.copy()
    # the network reads no neighbours, and is given none
    model = fit(data, {"prior": PRIOR, "net": net}, {"graph_key": "spatial_connectivities", "layer": "counts"})
    assert [type(m) for m in model.models_] == [HurdleLinear, HurdleNet]
    assert [m.state.setup.graph_key for m in model.models_] == ["spatial_connectivities", None]
    assert not [key for key in data.uns if "scvi" in key]
    model.save(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "stmsi.json").read_text())
    assert card["class"] == "HurdleEnsemble"
    assert card["params"]["members"]["net"]["model"] == "HurdleNet"
    assert {"members/0/stmsi.json", "members/1/model.npz"} <= set(card["files"])
    loaded = stmsi.model.load(tmp_path / "model", data)
    assert_frame_equal(loaded.predict(), model.predict(), check_exact=True)
    assert_frame_equal(loaded.weights, model.weights, check_exact=True)
    (tmp_path / "model" / "members" / "1" / "model.npz").unlink()
    with pytest.raises(ValueError, match=r"model is damaged: members/1/model\.npz has 0 of \d+ bytes"):
        stmsi.model.load(tmp_path / "model")


def test_the_card_warns_of_training_profiles_in_a_member(data, tmp_path):
    kernel = {"model": "kernel_ridge", "presence": "prior", "n_components": 5}
    fit(data, {"prior": PRIOR, "kernel": kernel}).save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "stmsi.json").read_text())["contains_training_profiles"]


@pytest.fixture
def ready(data) -> AnnData:
    HurdleEnsemble.setup_anndata(data, presence_key="msi_presence", covariate_keys=["patient"])
    return data


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ("ridge", ["ridge"]),
        (PRIOR, ["mean"]),
        (("ridge", "mean"), ["ridge", "mean"]),
        (["mlp", {"model": "mlp", "rng": 1}, {"model": HurdleNet}], ["mlp", "mlp_2", "HurdleNet"]),
        ({"a": HurdleLinear, "b": "ridge"}, ["a", "b"]),
    ],
)
def test_members_have_names(ready, members, names):
    model = HurdleEnsemble(ready, members=members)
    assert list(model.members) == names
    assert repr(model).endswith("not trained")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([], "needs at least one member"),
        (["rigde"], r"model='rigde' is not known; choose one of .*Did you mean 'ridge'"),
        (["ensemble"], r"Member 'ensemble' is an ensemble itself; list its members instead"),
        (["ridge", "auto"], r"Member 'auto' is an ensemble itself; list its members instead"),
        (
            [{"model": "mlp", "train": {"callbacks": [object()]}}],
            "must be plain values, so that the model can be saved",
        ),
        ([{"model": "ridge", "setup": {"graph_key": "knn"}}], r"has setup graph_key='knn', which is not part of the"),
        ([{"model": "ridge", "setup": {"covariate_keys": "age"}}], r"has setup covariate_keys='age'"),
        ([{"model": "ridge", "setup": {"colour": "red"}}], r"Member 'ridge' .*setup_anndata has no argument 'colour'"),
        (
            {"mine": {"model": "ridge", "n_component": 3}},
            r"Member 'mine' cannot be made: .* no hyper-parameter 'n_comp",
        ),
    ],
)
def test_impossible_members_are_refused(ready, members, match):
    with pytest.raises(ValueError, match=match):
        HurdleEnsemble(ready, members=members)


def test_too_few_folds_are_refused(ready):
    with pytest.raises(ValueError, match="n_folds must be at least 2, found 1"):
        HurdleEnsemble(ready, n_folds=1)


def test_members_can_switch_inputs_off(ready):
    model = HurdleEnsemble(
        ready, members={"with": PRIOR, "without": {**PRIOR, "setup": {"covariate_keys": None}}}, n_folds=2
    )
    model.train()
    assert [m.state.setup.covariate_keys for m in model.models_] == [("patient",), ()]


def test_a_member_that_fails_is_named(ready):
    model = HurdleEnsemble(ready, members={"first": {"model": "mean", "train": {"train_idx": [0, 900]}}})
    with pytest.raises(ValueError, match=r"Member 'first' failed on \d+ training spots: train_idx must be distinct"):
        model.train()


class OddError(Exception):
    """An error that takes more than a text."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


@pytest.mark.once
@pytest.mark.parametrize(
    ("where", "error", "kind"),
    [
        ("_fit", MemoryError("full"), MemoryError),
        ("_fit", TypeError("what"), TypeError),
        ("_fit", AssertionError(), AssertionError),
        ("_fit", OSError(28, "disk"), OSError),
        ("_fit", OddError(1, 2), RuntimeError),
        ("_fit", np.linalg.LinAlgError("singular"), np.linalg.LinAlgError),
        ("_stages", TypeError("what"), TypeError),  # the same handler
        ("_stages", OddError(1, 2), RuntimeError),
    ],
    ids=lambda e: type(e).__name__ if isinstance(e, Exception) else e if isinstance(e, str) else "",
)
def test_a_member_that_fails_is_named_whatever_the_error(ready, monkeypatch, error, kind, where):
    """While it is trained, while held-out spots are predicted, and later in any prediction."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    def model() -> HurdleEnsemble:
        return HurdleEnsemble(ready, members={"first": PRIOR}, n_folds=2, nested=True)

    if where == "_stages":
        trained = model()
        trained.train()
    with monkeypatch.context() as patch:
        patch.setattr(HurdleLinear, where, fail)
        with pytest.raises(kind, match=r"Member 'first' failed (on|to predict)"):
            model().train()
        if where == "_stages":
            with pytest.raises(kind, match=r"Member 'first' failed to predict"):
                trained.predict()


def test_an_interrupt_is_not_put_down_to_a_member(ready, monkeypatch):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HurdleLinear, "_fit", stop)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        HurdleEnsemble(ready, members={"first": PRIOR}, n_folds=2).train()


def test_a_member_that_lacks_what_it_reads_is_named(ready):
    del ready.obsm["spatial"]
    model = HurdleEnsemble(ready, members={"first": "coordinates"})
    with pytest.raises(KeyError, match=r"Member 'first' failed on \d+ training spots: The control reads positions"):
        model.train()


def test_members_take_the_seed_of_the_ensemble_unless_they_have_one(ready):
    model = HurdleEnsemble(ready, members={"a": PRIOR, "b": {**PRIOR, "rng": 3}}, n_folds=2, rng=7)
    model.train()
    assert [m.rng for m in model.models_] == [7, 3]


def test_cross_validation_takes_the_family(data, monkeypatch):
    monkeypatch.setattr(
        HurdleEnsemble.__init__, "__kwdefaults__", {**HurdleEnsemble.__init__.__kwdefaults__, "members": CHEAP}
    )
    one_fold = SimpleNamespace(split=lambda adata: list(LeaveOneSampleOut().split(adata))[:1])
    scores = stmsi.tl.cross_validate(
        data, ["mean", "ensemble"], splitter=one_fold, setup={"presence_key": "msi_presence"}
    )
    assert set(scores["model"]) == {"mean", "ensemble"}
    assert scores.query("model == 'ensemble' and stage == 'intensity'")["pearson"].median() > 0.2


def test_a_prediction_by_an_ensemble_can_be_written(trained, tmp_path):
    data = trained.adata.copy()
    stmsi.tl.predict_metabolites(data, trained)
    params = data.uns["msi_pred"]["model"]["params"]
    assert params["members"]["ridge"]["n_components"] == 8
    data.write_h5ad(tmp_path / "predicted.h5ad")

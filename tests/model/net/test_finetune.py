"""Training that goes on: on new sections, after an interrupt, from a checkpoint."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback

import stmsi
from stmsi.cli._signals import Stopped, termination_as_interrupt
from stmsi.model import HurdleNet
from stmsi.model import load as load_model
from stmsi.model.net._training_inputs import section_moments, target_moments

FIELDS = {"presence_key": "msi_presence"}
SMALL = {"encoder_kwargs": {"n_hidden": 16, "n_layers": 1}}


class Raise(Callback):
    """Raise at the start of an epoch, counted over all stages of a training."""

    def __init__(self, error, epoch):
        self.error, self.epoch = error, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if self.epoch == 0:
            raise self.error
        self.epoch -= 1


@pytest.fixture
def data(st):
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :5]
    return st


@pytest.fixture
def parts(data):
    """Two sections to train on, and one that comes later."""
    new = data.obs["sample"].to_numpy() == "P3S1"
    return data[~new].copy(), data[new].copy()


def make(adata, fields=FIELDS, **params):
    # without the ridge path, which training would have to beat before any epoch counts
    HurdleNet.setup_anndata(adata, **fields)
    return HurdleNet(adata, **SMALL, **{"residual": None, "n_nets": 1, **params})


def fit(adata, fields=FIELDS, params=None, **train):
    model = make(adata, fields, **(params or {}))
    model.train(**{"max_epochs": 2, "refit": False, **train})
    return model


def finite(model, query=None):
    frames = [model.predict_presence(query), model.predict_intensity(query), *model.predict_interval(query)]
    return all(np.isfinite(f.to_numpy()).all() for f in frames)


def losses(model):
    return np.asarray(model.history["validation_loss"], dtype=float).ravel()


# ------------------------------------------------------------------------------------------------------- fine-tuning


def test_a_model_learns_a_new_section(parts, tmp_path):
    old, new = parts
    model = fit(old, max_epochs=5)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    table, platt = model.state.feature_table.copy(), model.platt_.copy()
    # another level: the weights that it starts from are wrong by far
    new.obsm["msi"] = new.obsm["msi"] * 2
    seen = new.copy()
    tuned = model.fine_tune(new, lr=0.01, max_epochs=6, batch_size=16)
    truth = new.obsm["msi"].where(new.obsm["msi_presence"] > 0)
    error = [float(((m.predict_intensity(new) - truth) ** 2).mean().mean()) for m in (model, tuned)]
    assert error[1] < 0.9 * error[0]
    # the first model and the data are as they were
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    pd.testing.assert_frame_equal(model.state.feature_table, table)
    np.testing.assert_array_equal(model.platt_, platt)
    assert list(new.uns) == list(seen.uns)
    pd.testing.assert_frame_equal(new.obs, seen.obs)
    # what normalises is that of the first model
    for name in ("gene_index", "gene_mean", "gene_scale", "target_mean", "target_scale"):
        assert torch.equal(getattr(tuned.module, name), before[name]), name
    assert tuned.state.training["samples"] == ["P3S1"]
    assert tuned.state.training["fine_tuned_from"] == {
        "n_spots": model.state.training["n_spots"],
        "samples": ["P1S1", "P2S1"],
    }
    pd.testing.assert_frame_equal(tuned.predict(), tuned.predict(new), check_exact=True)
    tuned.save(tmp_path / "tuned")
    pd.testing.assert_frame_equal(load_model(tmp_path / "tuned").predict(new), tuned.predict(new), check_exact=True)


def test_metabolites_are_matched_by_id(parts, caplog):
    old, new = parts
    model = fit(old)
    names = list(old.obsm["msi"])
    for key in ("msi", "msi_presence"):
        new.obsm[key] = new.obsm[key][[names[3], names[0]]].assign(unknown=1.0)
    new = new[:, ::-1].copy()
    tuned = model.fine_tune(new, lr=0.01, max_epochs=2, refit=False)
    assert "does not know are left out: 'unknown'" in caplog.text
    assert tuned.metabolites == names
    assert finite(tuned)
    # of the others the calibration stays, and no gradient reached their outputs
    other = np.array([1, 2, 4])
    np.testing.assert_array_equal(tuned.state.threshold[other], model.state.threshold[other])
    np.testing.assert_array_equal(tuned.platt_[other], model.platt_[other])
    pd.testing.assert_frame_equal(
        tuned.state.feature_table.iloc[other], model.state.feature_table.iloc[other], check_dtype=False
    )
    assert (tuned.state.feature_table.iloc[[0, 3]]["n_spots"] < new.n_obs).all()
    new.obsm["msi"] = new.obsm["msi"][["unknown"]]
    new.obsm["msi_presence"] = new.obsm["msi_presence"][["unknown"]]
    with pytest.raises(ValueError, match=r"share no metabolite with the model.*obsm\['msi'\] has 'unknown'"):
        model.fine_tune(new)


@pytest.mark.once
def test_steps_that_make_it_worse_are_not_kept(parts):
    old, new = parts
    model = fit(old)
    tuned = model.fine_tune(new, lr=10.0, max_epochs=2)
    pd.testing.assert_frame_equal(tuned.predict_intensity(new), model.predict_intensity(new), check_exact=True)
    assert tuned.state.training["epochs"] == 0


def test_signatures_covariates_neighbours_and_features_go_along(parts):
    old, new = parts
    for adata in parts:
        adata.obs["dose"] = np.arange(adata.n_obs) * 1.0
        adata.obsm["he"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
        adata.layers["counts"] = adata.X.copy()
    fields = {
        "signature_key": "signature", "cluster_key": "domain", "graph_key": "spatial_connectivities",
        "covariate_keys": ["dose"], "feature_key": "he", "layer": "counts", **FIELDS,
    }  # fmt: skip
    HurdleNet.setup_anndata(old, **fields)
    model = HurdleNet(
        old, encoder="deepset", encoder_kwargs={"n_hidden": 8}, training="two_stage", standardise="sample"
    )
    model.train(max_epochs=1)
    del new.varm["signature"], new.obs["domain"]
    tuned = model.fine_tune(new, max_epochs=1, refit=False)
    assert finite(tuned)
    pd.testing.assert_frame_equal(tuned.predict(), tuned.predict(new), check_exact=True)
    del new.obsm["he"]
    with pytest.raises(KeyError, match=r"obsm\['he'\]"):
        model.fine_tune(new)


def test_what_fine_tuning_refuses(parts):
    old, new = parts
    model = make(old)
    with pytest.raises(RuntimeError, match="not trained"):
        model.fine_tune(new)
    model.train(max_epochs=1)
    few = new[:, :2].copy()
    with pytest.raises(ValueError, match=r"training genes are in the data .*at least 40%"):
        model.fine_tune(few)
    twice = new.copy()
    twice.obs_names = ["a"] * twice.n_obs
    with pytest.raises(ValueError, match=r"Names of spots must be unique; repeated: 'a'"):
        model.fine_tune(twice)
    del new.obsm["msi_presence"]
    with pytest.raises(KeyError, match="msi_presence"):
        model.fine_tune(new)


# -------------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.once
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("from a callback")], ids=["interrupt", "error"])
def test_a_training_that_ends_early_leaves_a_usable_model(data, tmp_path, error, caplog):
    handler = signal.getsignal(signal.SIGINT)
    model = make(data)
    with pytest.raises(type(error)):
        model.train(max_epochs=9, callbacks=[Raise(error, 2)], checkpoint_dir=tmp_path / "best")
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Training ended early; the model keeps the weights of epoch" in caplog.text
    assert model.is_trained
    assert finite(model)
    # what two epochs without a refit come to, down to the bits
    expected = fit(data.copy())
    pd.testing.assert_frame_equal(model.predict(), expected.predict(), check_exact=True)
    date = {"date": None}
    assert model.state.training | date == expected.state.training | date
    # the same stands on disk
    again = load_model(tmp_path / "best", data)
    assert again.is_trained
    pd.testing.assert_frame_equal(again.predict(), model.predict(), check_exact=True)
    # and from both training can go on
    for part in (model, again):
        part.train(max_epochs=1, warm_start=True)
        assert part.state.training["refit"]
        assert finite(part)
    pd.testing.assert_frame_equal(again.predict(), model.predict(), check_exact=True)


@pytest.mark.once
def test_interrupted_in_the_first_of_several_networks(data, tmp_path):
    model = make(data, n_nets="auto")
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=9, callbacks=[Raise(KeyboardInterrupt(), 2)], checkpoint_dir=tmp_path / "best")
    assert finite(model)
    again = load_model(tmp_path / "best", data)
    pd.testing.assert_frame_equal(again.predict(), model.predict(), check_exact=True)
    model.train(max_epochs=1)
    assert model.state.training["n_nets"] == 3


@pytest.mark.once
def test_interrupted_before_the_first_epoch(data, tmp_path):
    model = make(data)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, callbacks=[Raise(KeyboardInterrupt(), 0)], checkpoint_dir=tmp_path / "best")
    assert not model.is_trained
    assert not (tmp_path / "best").exists()
    with pytest.raises(RuntimeError, match="not trained"):
        model.predict()
    model.train(max_epochs=1)
    assert finite(model)


@pytest.mark.once
def test_terminated_as_interrupted(data):
    """SIGTERM inside a command, which Lightning takes note of and passes on."""

    class Terminate(Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    model, stopped = make(data), Stopped()
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt(stopped):
        model.train(max_epochs=4, callbacks=[Terminate()])
    assert stopped.terminated
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert finite(model)
    assert not model.state.training["refit"]


@pytest.mark.once
def test_interrupted_while_it_is_refitted(data):
    expected = fit(data.copy())
    model = make(data)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, callbacks=[Raise(KeyboardInterrupt(), 3)])
    pd.testing.assert_frame_equal(model.predict(), expected.predict(), check_exact=True)
    assert not model.state.training["refit"]
    assert len(losses(model)) == 2


@pytest.mark.once
def test_interrupted_in_the_second_stage(data):
    with pytest.raises(KeyboardInterrupt):
        make(data.copy(), training="two_stage").train(max_epochs=2, callbacks=[Raise(KeyboardInterrupt(), 2)])
    model = make(data, training="two_stage")
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, callbacks=[Raise(KeyboardInterrupt(), 3)])
    assert finite(model)


@pytest.mark.once
def test_the_checkpoint_is_the_best_so_far_and_changes_nothing(data, tmp_path):
    plain = fit(data.copy())
    model = fit(data, checkpoint_dir=tmp_path / "best")
    pd.testing.assert_frame_equal(model.predict(), plain.predict(), check_exact=True)
    pd.testing.assert_frame_equal(load_model(tmp_path / "best").predict(data), model.predict(), check_exact=True)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.once
def test_checkpoints_with_neighbours(data, tmp_path):
    """Calibration looks at other spots in between; the neighbourhoods of the training spots come back."""
    HurdleNet.setup_anndata(data, graph_key="spatial_connectivities")
    models = [HurdleNet(data, encoder="deepset", encoder_kwargs={"n_hidden": 8}) for _ in range(2)]
    for model, directory in zip(models, (None, tmp_path / "best"), strict=True):
        model.train(max_epochs=2, refit=False, checkpoint_dir=directory)
    np.testing.assert_array_equal(losses(models[0]), losses(models[1]))


def test_a_folder_with_something_else_is_refused(data, tmp_path):
    (tmp_path / "thesis").mkdir()
    model = make(data)
    with pytest.raises(FileExistsError, match=r"checkpoint_dir=.*thesis.*is not a model that stmsi wrote"):
        model.train(max_epochs=1, checkpoint_dir=tmp_path / "thesis")


def test_warm_start_needs_something_to_start_from(data):
    model = make(data)
    with pytest.raises(RuntimeError, match="not trained"):
        model.train(warm_start=True)
    model.train(max_epochs=1)
    with pytest.raises(ValueError, match=r"refitted on all its spots .*train\(refit=False\), or use fine_tune"):
        model.train(warm_start=True)


def test_weights_that_leave_all_bounds_are_no_model(data):
    frame = data.obsm["msi"].copy()
    model = make(data)
    with pytest.raises(RuntimeError, match="validation loss was never finite; lower lr"):
        model.train(max_epochs=1, plan_kwargs={"optimizer": "Custom", "optimizer_creator": _explode})
    assert not model.is_trained
    pd.testing.assert_frame_equal(data.obsm["msi"], frame)


def _explode(params):
    return torch.optim.SGD(params, lr=1e30)


# -------------------------------------------------------------------------------------- other ways to train, averages


@pytest.mark.once
@pytest.mark.parametrize(
    "params",
    [
        {"presence_loss": "focal", "intensity_loss": "pearson"},
        {"intensity_loss": "cosine", "standardise": "sample"},
        {"residual": "ridge", "intensity_loss": "huber", "training": "two_stage"},
    ],
    ids=str,
)
def test_odd_metabolites_never_leave_weights_that_are_no_number(data, params, tmp_path):
    frame = data.obsm["msi"]
    odd = {"absent": 0.0, "constant": 2.0, "rare": 0.0, "nowhere": np.nan}
    data.obsm["msi"] = frame.assign(**{k: frame.iloc[:, 0] * 0 + v for k, v in odd.items()})
    data.obsm["msi"].iloc[np.flatnonzero(frame.iloc[:, 0].notna())[:1], 7] = 1.0
    model = fit(data, {}, params, batch_size=64, refit=True)
    assert all(torch.isfinite(p).all() for p in model.module.parameters())
    assert finite(model)
    assert (model.predict()["absent"] == 0).all()
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    pd.testing.assert_frame_equal(again.predict(data), model.predict(), check_exact=True)
    assert again._params() == model._params()


@pytest.mark.once
def test_the_same_seed_gives_the_same_bits(data):
    params = {"residual": "ridge", "training": "two_stage", "standardise": "sample", "intensity_loss": "pearson"}
    a, b = (fit(data.copy(), FIELDS, params, weight_averaging=True, refit=True) for _ in range(2))
    pd.testing.assert_frame_equal(a.predict(), b.predict(), check_exact=True)


@pytest.mark.once
def test_two_stages_train_one_after_the_other(data):
    class Look(Callback):
        states: list[dict[str, torch.Tensor]] = []  # noqa: RUF012

        def on_train_start(self, trainer, pl_module):
            self.states.append({k: v.clone() for k, v in pl_module.module.state_dict().items()})

    model = fit(data, FIELDS, {"training": "two_stage"}, callbacks=[Look()])
    first, second = Look.states
    last = model.module.state_dict()
    presence = [k for k in last if k.startswith(("encoder", "presence_head")) and first[k].is_floating_point()]
    intensity = [k for k in last if k.startswith(("intensity_encoder", "intensity_head"))]
    assert all(torch.equal(second[k], last[k]) for k in presence)
    assert any(not torch.equal(first[k], second[k]) for k in presence)
    assert all(torch.equal(second[k], last[k.replace("intensity_", "")]) for k in intensity if "encoder" in k)
    assert all(not torch.equal(second[k], last[k]) for k in intensity)
    assert len(losses(model)) == 4
    assert all(p.requires_grad for p in model.module.parameters())


@pytest.mark.once
def test_a_correction_begins_at_the_ridge(data):
    rows = np.flatnonzero(data.obs["sample"] == "P2S1")
    model = fit(data, FIELDS, {"residual": "ridge"}, lr=1e3, max_epochs=1, validation_idx=rows)
    assert model.state.training["epochs"] == 0, "steps this large only make it worse"
    linear = stmsi.model.HurdleLinear
    linear.setup_anndata(data, **FIELDS)
    ridge = linear(data, n_folds=5)
    ridge.train(validation_idx=rows)
    found, expected = (m.predict_intensity().iloc[rows] for m in (model, ridge))
    # the network's ridges choose a penalty each, those of HurdleLinear share one
    assert found.corrwith(expected).median() > 0.98
    assert model.predict_presence().iloc[rows].corrwith(ridge.predict_presence().iloc[rows]).median() > 0.8


@pytest.mark.once
def test_averaged_weights_are_what_is_validated_and_kept(data):
    from stmsi.model.net._callbacks import AverageWeights

    class Plan:
        module = torch.nn.Linear(1, 1, bias=False)

    average, plan, weight = AverageWeights(0.5), Plan(), Plan.module.weight
    seen = []
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            weight.fill_(value)
        average.on_train_batch_end(None, plan, None, None, 0)
        average.on_validation_epoch_start(None, plan)
        seen.append(weight.item())
        average.on_validation_epoch_end(None, plan)
        assert weight.item() == value
    d = [min(0.5, (1 + n) / (10 + n)) for n in range(3)]
    second = d[1] * 1 + (1 - d[1]) * 2
    np.testing.assert_allclose(seen, [1, second, d[2] * second + (1 - d[2]) * 4], rtol=1e-6)
    average.on_train_end(None, plan)
    assert weight.item() == pytest.approx(seen[-1])

    rows = np.flatnonzero(data.obs["sample"] == "P2S1")
    plain, averaged = (fit(data, validation_idx=rows, weight_averaging=w) for w in (False, True))
    assert (losses(plain) != losses(averaged)).all()
    model = averaged
    loader = model._make_data_loader(
        adata=model.adata, indices=np.intersect1d(rows, model.validation_indices), batch_size=999
    )
    with torch.inference_mode():
        assert float(next(model.module(t)[2].loss for t in loader)) == pytest.approx(losses(model).min(), rel=1e-3)


@pytest.mark.once
def test_targets_standardised_in_each_section(data):
    """Levels of sections that genes know nothing of are not learnt; predictions stand on the mean level."""
    section = data.obs["sample"].to_numpy()
    shift = pd.Series(section).map({"P1S1": 0.0, "P2S1": 10.0, "P3S1": 20.0}).to_numpy()
    frame = data.obsm["msi"]
    data.obsm["msi"] = (frame + np.where(frame > 0, shift[:, None], 0)).astype(np.float32)
    model = fit(data, {}, {"standardise": "sample"}, max_epochs=6, refit=True)
    per_section = model.predict_intensity().groupby(section).mean()
    assert (per_section.max() - per_section.min()).max() < 4
    present = data.obsm["msi"].where(data.obsm["msi"] > 0)
    expected = present.groupby(section).mean().mean()
    np.testing.assert_allclose(model.module.target_mean, expected, rtol=1e-4)


def test_moments_of_sections():
    present = np.array([[1.0, 1], [2, np.nan], [3, np.nan], [10, 5], [20, 6], [30, 7], [7, 8], [8, 8], [9, 8]])
    sample, rows, held_out = np.repeat(["a", "b", "c"], 3), np.arange(6), np.arange(6, 9)
    code, mean, scale, trained = section_moments(present, sample, rows, held_out)
    np.testing.assert_array_equal(code, np.repeat([0, 1, 2], 3))
    np.testing.assert_array_equal(trained, [True, True, False])
    everywhere = target_moments(present[rows])
    np.testing.assert_allclose(mean[:, 0], [2, 20, 8])
    np.testing.assert_allclose(scale[:, 0], present.reshape(3, 3, 2)[:, :, 0].std(axis=1))
    # one spot in a; constant in c
    np.testing.assert_allclose(mean[:, 1], [everywhere[0][1], 6, everywhere[0][1]])
    np.testing.assert_allclose(scale[:, 1], [everywhere[1][1], np.std([5, 6, 7]), everywhere[1][1]])


@pytest.mark.parametrize(
    ("option", "value"),
    [("presence_loss", "hinge"), ("intensity_loss", "poisson"), ("standardise", "spot"), ("training", "once"), ("residual", "lasso")],
)  # fmt: skip
def test_unknown_options(data, option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        make(data, **{option: value})


@pytest.mark.once
@pytest.mark.slow
def test_half_precision_and_a_compiled_module(data):
    exact = fit(data.copy())
    half = fit(data.copy(), precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in half.module.parameters())
    assert (half.predict_intensity() != exact.predict_intensity()).to_numpy().any()
    np.testing.assert_allclose(losses(half), losses(exact), rtol=0.05)
    compiled = fit(data, compile=True, plan_kwargs={"compile_kwargs": {"backend": "eager"}})
    np.testing.assert_allclose(compiled.predict_intensity(), exact.predict_intensity(), rtol=1e-3, atol=1e-3)
    assert isinstance(compiled.module, type(exact.module))


# --------------------------------------------------------------------------------------------------------- features


@pytest.fixture
def with_histology(data):
    """A metabolite that genes know nothing of, and an image feature that tells it."""
    rng = np.random.default_rng(0)
    data.obsm["he"] = pd.DataFrame(
        {"gland": rng.normal(50, 10, data.n_obs), "noise": rng.normal(size=data.n_obs), "flat": 1.0},
        index=data.obs_names,
    )
    data.obsm["msi"] = data.obsm["msi"].assign(told=10 + data.obsm["he"]["gland"].to_numpy(np.float32) / 10)
    return data


def test_the_network_reads_features(with_histology, tmp_path):
    data = with_histology
    model = fit(data, {"feature_key": "he"}, max_epochs=10, lr=0.01)
    assert np.corrcoef(model.predict_intensity()["told"], data.obsm["he"]["gland"])[0, 1] > 0.4
    query = data[::3].copy()
    expected = model.predict().loc[query.obs_names]
    pd.testing.assert_frame_equal(model.predict(query), expected, rtol=1e-4)
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(load_model(tmp_path / "model").predict(query), model.predict(query), check_exact=True)
    query.obsm["he"] = query.obsm["he"].iloc[:, ::-1]  # found by name
    pd.testing.assert_frame_equal(model.predict(query), expected, rtol=1e-4)
    query.obsm["he"] = query.obsm["he"].drop(columns="gland")
    with pytest.raises(ValueError, match=r"obsm\['he'\] had 3 columns in training, found 2; missing: 'gland'"):
        model.predict(query)
    del query.obsm["he"]
    with pytest.raises(KeyError, match=r"uses the features obsm\['he'\], which the data lack"):
        model.predict(query)


def test_features_of_any_kind_and_several_of_them(with_histology):
    data = with_histology
    data.obsm["deep"] = np.random.default_rng(1).normal(size=(data.n_obs, 4))
    predictions = []
    for as_type in (pd.DataFrame, np.asarray, sp.csr_matrix):
        one = data.copy()
        if as_type is not pd.DataFrame:
            one.obsm["he"] = as_type(one.obsm["he"].to_numpy())
        model = fit(one, {"feature_key": ["he", "deep"]}, max_epochs=1, refit=False)
        assert model.module.feature_mean.shape == (7,)
        predictions.append(model.predict(one[::3].copy()))
    for other in predictions[1:]:
        pd.testing.assert_frame_equal(other, predictions[0], check_exact=True)


def test_features_are_z_scored_on_training_spots(with_histology):
    data = with_histology
    train = np.flatnonzero(data.obs["sample"] != "P3S1")
    model = fit(
        data, {"feature_key": "he"}, max_epochs=1, refit=False, train_idx=train[:150], validation_idx=train[150:]
    )
    values = data.obsm["he"].to_numpy()[train[:150]]
    values = values[data.obsm["msi"].iloc[train[:150]].notna().any(axis=1)]
    np.testing.assert_allclose(model.module.feature_mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.module.feature_scale[:2], values.std(axis=0)[:2], rtol=1e-5)
    assert torch.isinf(model.module.feature_scale[2]), "columns that do not vary become 0"


# --------------------------------------------------------------------------------------- one network per metabolite


@pytest.mark.once
def test_networks_of_their_own_share_nothing(data):
    model = make(data)  # its registry
    from stmsi.model.net.encoders import MLPEncoder, Sizes

    torch.manual_seed(0)
    encoder = MLPEncoder(Sizes(7, 2, n_metabolites=3), n_hidden=4, n_layers=2, per_metabolite=True).eval()
    x = torch.randn(6, 7)
    out = encoder(x, torch.randn(6, 2))
    assert out.shape == (6, encoder.n_output) == (6, 12)
    out.unflatten(1, (3, 4))[:, 1].sum().backward()
    first = encoder.layers[0].weight.grad.abs().unflatten(0, (3, 4)).sum(dim=(1, 2))
    assert first[1] > 0
    assert (first[[0, 2]] == 0).all()

    model = HurdleNet(data, residual=None, encoder_kwargs={"per_metabolite": True, "n_hidden": 4})
    model.train(max_epochs=2, refit=False)
    assert finite(model)
    last = losses(model)
    assert last[-1] < last[0]
    module = model.module
    logits = module.generative(**module.inference(torch.tensor(data.X[:5].toarray())))
    module.zero_grad()
    logits["mean"][:, 2].sum().backward()
    gradient = module.encoder.layers[0].weight.grad.abs().unflatten(0, (5, 4)).sum(dim=(1, 2))
    assert (gradient > 0).tolist() == [False, False, True, False, False]


@pytest.mark.once
def test_networks_of_their_own_see_the_signature(data):
    fields = {"signature_key": "signature", "cluster_key": "domain", **FIELDS}
    HurdleNet.setup_anndata(data, **fields)
    model = HurdleNet(data, encoder_kwargs={"per_metabolite": True, "n_hidden": 4})
    model.train(max_epochs=1)
    assert model.module.presence_head.shared is not None
    assert finite(model)


def test_a_model_with_a_prior_needs_none_in_new_sections(parts):
    old, new = parts
    drivers = old.uns["truth"]["drivers"]
    stmsi.pp.knowledge_prior(old, drivers[drivers["metabolite"].isin(old.obsm["msi"].columns)])
    HurdleNet.setup_anndata(old, **FIELDS, prior_key="msi_prior")
    model = HurdleNet(old, encoder="transformer", encoder_kwargs={"n_hidden": 16}, n_nets=2)
    model.train(max_epochs=1, refit=False)
    assert "msi_prior" not in new.varm
    tuned = model.fine_tune(new, max_epochs=1)
    assert torch.equal(tuned.module.encoder.prior > 0, model.module.encoder.prior > 0)
    assert finite(tuned, new)

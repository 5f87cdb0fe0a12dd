"""What is the net's own: scvi-tools, Lightning, torch."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.special import expit
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.model.base import BaseModelClass

from stmsi._core.learning.expression_space import log_normalize
from stmsi.model import HurdleNet
from stmsi.model.net._callbacks import KeepBestWeights
from stmsi.model.net._scvi_fields import OptionalObsmField
from stmsi.model.net.encoders import MLPEncoder, Sizes
from stmsi.model.net.modules import HurdleModule
from stmsi.model.net.modules._losses import intensity_loss, presence_loss
from stmsi.model.shared._targets import drop_unmeasured, read_targets

FIELDS = {"presence_key": "msi_presence"}
SMALL = {"encoder_kwargs": {"n_hidden": 16, "n_layers": 1}, "n_nets": 1}


def fit(adata, fields=FIELDS, params=SMALL, **train):
    HurdleNet.setup_anndata(adata, **fields)
    model = HurdleNet(adata, **params)
    model.train(**{"max_epochs": 3, **train})
    return model


@pytest.fixture(scope="module")
def trained(_mapped):
    return fit(_mapped.tables["st"].copy(), max_epochs=5)


# ------------------------------------------------------------------------------------------------------- scvi-tools


def test_it_is_a_model_of_scvi_tools(trained):
    assert isinstance(trained, BaseModelClass)
    assert isinstance(trained.adata_manager, AnnDataManager)
    assert dict(trained.adata_manager.data_registry["metabolites"]) == {"attr_name": "obsm", "attr_key": "msi"}
    assert trained.is_trained
    assert isinstance(trained.module, HurdleModule)
    assert trained.summary_stats["n_metabolites"] == 12
    assert not trained.module.training, "dropout is off after training"


def test_the_history_holds_both_losses(trained):
    history = trained.history
    for key in ("validation_loss", "presence_loss_validation", "intensity_loss_validation"):
        values = np.asarray(history[key], dtype=float).ravel()
        assert len(values) == 5, key
        assert np.isfinite(values).all(), key
    total = np.asarray(history["presence_loss_validation"]) + np.asarray(history["intensity_loss_validation"])
    np.testing.assert_allclose(np.asarray(history["validation_loss"], float), total.astype(float), rtol=1e-3)
    losses = np.asarray(history["train_loss"], dtype=float).ravel()
    assert losses[-2:].mean() < losses[:2].mean()


@pytest.mark.once
def test_the_intensity_weight_weighs(st):
    model = fit(st, params={**SMALL, "intensity_weight": 0.25}, max_epochs=1)
    h = {k: float(np.asarray(v)[0, 0]) for k, v in model.history.items()}
    expected = h["presence_loss_validation"] + 0.25 * h["intensity_loss_validation"]
    assert h["validation_loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.once
def test_early_stopping_stops(st):
    # steps this large only make it worse after the first epochs
    model = fit(st, max_epochs=40, patience=2, lr=1.0, refit=False)
    losses = np.asarray(model.history["validation_loss"], dtype=float).ravel()
    assert len(losses) < 40
    assert len(losses) == losses.argmin() + 1 + 2


@pytest.mark.once
def test_without_early_stopping_all_epochs_are_run(st):
    model = fit(st, max_epochs=6, patience=1, lr=1.0, early_stopping=False, refit=False)
    assert len(model.history["validation_loss"]) == 6


def validation_loss(model, rows):
    """The loss on some spots with the weights as they are."""
    model.module.eval()
    loader = model._make_data_loader(adata=model.adata, indices=rows, batch_size=1000)
    with torch.inference_mode():
        return float(next(model.module(t)[2].loss for t in loader))


@pytest.mark.once
def test_the_best_weights_are_kept(st):
    rows = np.flatnonzero((st.obs["sample"] == "P1S1") & st.obsm["msi"].notna().all(axis=1))

    from lightning.pytorch.callbacks import Callback

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                pl_module.module.intensity_head.bias.data += 100

    model = fit(st, max_epochs=7, validation_idx=rows, callbacks=[Spoil()])
    losses = np.asarray(model.history["validation_loss"], dtype=float).ravel()
    assert losses.argmin() == 3
    assert losses[-1] > 10 * losses[3]
    assert validation_loss(model, rows) == pytest.approx(losses.min(), rel=1e-3)
    assert model.state.training["epochs"] == losses.argmin() + 1


def test_the_callback_restores_however_training_ends():
    class Plan:
        module = torch.nn.Linear(1, 1)

    class Trainer:
        current_epoch = 0
        sanity_checking = False
        callback_metrics: dict[str, torch.Tensor] = {}  # noqa: RUF012

    keep, plan, trainer = KeepBestWeights(), Plan(), Trainer()
    best = None
    for epoch, loss in enumerate([3.0, 1.0, float("nan"), 2.0]):
        with torch.no_grad():
            plan.module.weight.fill_(epoch)
        trainer.current_epoch, trainer.callback_metrics = epoch, {"validation_loss": torch.tensor(loss)}
        keep.on_validation_epoch_end(trainer, plan)
        best = 1.0 if epoch >= 1 else best
    keep.on_exception(trainer, plan, KeyboardInterrupt())
    assert plan.module.weight.item() == best
    assert (keep.best, keep.best_epoch) == (1.0, 1)


@pytest.mark.once
def test_refit_uses_all_spots(st):
    covered = int(st.obsm["msi"].notna().any(axis=1).sum())
    refitted, held = fit(st.copy(), refit=True), fit(st.copy(), refit=False)
    assert refitted.state.training["n_spots"] == covered
    assert refitted.state.training["samples"] == ["P1S1", "P2S1", "P3S1"]
    assert held.state.training["n_spots"] < covered
    assert len(held.state.training["samples"]) == 2
    # the evidence stays that of held-out spots, and the weights differ
    pd.testing.assert_frame_equal(refitted.state.feature_table, held.state.feature_table)
    np.testing.assert_array_equal(refitted.state.threshold, held.state.threshold)
    np.testing.assert_array_equal(refitted.platt_, held.platt_)
    assert (refitted.predict_intensity() != held.predict_intensity()).to_numpy().any()
    assert len(refitted.history["validation_loss"]) == len(held.history["validation_loss"])


@pytest.mark.once
def test_validation_spots_that_are_given_are_never_trained_on(st):
    rows = np.flatnonzero(st.obs["sample"] == "P3S1")
    other = st.copy()
    frame = other.obsm["msi"].copy()
    frame.iloc[rows] = frame.iloc[rows].to_numpy()[:, ::-1]
    other.obsm["msi"] = frame
    # one epoch, and no ridge path to go back to: which epoch is best cannot differ
    alone = {**SMALL, "residual": None}
    a, b = (fit(d, {}, alone, validation_idx=rows, max_epochs=1) for d in (st, other))
    pd.testing.assert_frame_equal(a.predict_intensity(), b.predict_intensity(), check_exact=True)
    a, b = (fit(d, {}, validation_idx=rows, max_epochs=1).module.linear_path for d in (st, other))
    torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=0)
    torch.testing.assert_close(a.bias, b.bias, rtol=0, atol=0)


def test_a_callback_and_trainer_options_are_passed_on(st):
    from lightning.pytorch.callbacks import Callback

    class Count(Callback):
        epochs = 0

        def on_train_epoch_end(self, *_):
            self.epochs += 1

    count = Count()
    fit(st, max_epochs=2, refit=False, callbacks=[count], accelerator="cpu", gradient_clip_val=1.0)
    assert count.epochs == 2


# ------------------------------------------------------------------------------------------------------ side effects


def test_values_without_msi_never_count(st):
    """Presence values under NaN intensities change nothing, down to the bits."""
    frame = st.obsm["msi"].copy()
    frame.iloc[::7] = np.nan
    frame.iloc[3::5, 2] = np.nan
    st.obsm["msi"] = frame
    other = st.copy()
    presence = other.obsm["msi_presence"].copy()
    presence[frame.isna()] = 1.0
    other.obsm["msi_presence"] = presence
    assert not presence.equals(st.obsm["msi_presence"])
    a, b = fit(st), fit(other)
    np.testing.assert_array_equal(a.history["train_loss"], b.history["train_loss"])
    np.testing.assert_array_equal(a.history["validation_loss"], b.history["validation_loss"])
    pd.testing.assert_frame_equal(a.predict_intensity(), b.predict_intensity(), check_exact=True)


def test_global_random_states_are_as_before(st):
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = fit(st, max_epochs=1)
    model.predict()
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.once
def test_the_global_seed_has_no_say(st):
    torch.manual_seed(1)
    a = fit(st.copy()).predict_intensity()
    torch.manual_seed(2)
    pd.testing.assert_frame_equal(fit(st.copy()).predict_intensity(), a, check_exact=True)


@pytest.mark.once
def test_another_seed_gives_other_weights(st):
    a, b = (fit(st.copy(), params={**SMALL, "rng": seed}).predict_intensity() for seed in (0, 1))
    assert (a != b).to_numpy().any()


def test_threads_are_as_before(st):
    before = torch.get_num_threads()
    seen = []

    from lightning.pytorch.callbacks import Callback

    class Look(Callback):
        def on_train_epoch_end(self, *_):
            seen.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        fit(st, max_epochs=1, refit=False, callbacks=[Look()])
        assert torch.get_num_threads() == 2
        assert seen == [1]
    finally:
        torch.set_num_threads(before)


def test_logs_of_scvi_and_lightning_are_as_before(st):
    import logging

    logs = [logging.getLogger(n) for n in ("scvi", "lightning.pytorch")]
    before = [log.level for log in logs]
    fit(st, max_epochs=1)
    assert [log.level for log in logs] == before


def test_nothing_is_printed(st, capfd):
    model = fit(st, max_epochs=2, show_progress_bar=False)
    model.predict()
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""


@pytest.mark.once
def test_odd_batches_do_not_break_training(st):
    """One spot left over for the last step, batches larger than the data, batches of one size."""
    rows = np.flatnonzero(st.obsm["msi"].notna().any(axis=1))[:129]
    for batch_size in (16, 64, 128, 1000):
        model = fit(st.copy(), train_idx=rows, batch_size=batch_size, max_epochs=1)
        assert np.isfinite(model.predict().to_numpy()).all()


# ----------------------------------------------------------------------------------------------------- optional field


@pytest.fixture
def registered():
    adata = AnnData(np.ones((4, 2), np.float32), obsm={"msi": pd.DataFrame(np.eye(4, 3), list("0123"), list("abc"))})
    manager = AnnDataManager(fields=[LayerField("X", None), OptionalObsmField("Y", "msi")], setup_method_args={})
    manager.register_fields(adata)
    return manager


def test_the_optional_field_is_registered_where_it_is(registered):
    assert registered.get_state_registry("Y")["column_names"] == ("a", "b", "c")
    assert registered.summary_stats["n_Y"] == 3


def test_the_optional_field_keeps_its_columns_where_it_is_not(registered):
    query = registered.transfer_fields(AnnData(np.ones((2, 2), np.float32)))
    assert list(query.get_state_registry("Y")["column_names"]) == ["a", "b", "c"]
    there = AnnData(np.ones((1, 2), np.float32), obsm={"msi": pd.DataFrame([[1.0, 2, 3]], ["0"], list("abc"))})
    assert list(registered.transfer_fields(there).get_state_registry("Y")["column_names"]) == ["a", "b", "c"]


def test_training_data_must_have_the_field():
    manager = AnnDataManager(fields=[OptionalObsmField("Y", "msi")], setup_method_args={})
    with pytest.raises(KeyError, match="msi"):
        manager.register_fields(AnnData(np.ones((2, 2), np.float32)))


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    present = rng.choice([0.0, 1.0, np.nan], (20, 5), p=[0.4, 0.4, 0.2])
    target = np.where(np.isnan(present), np.nan, rng.normal(size=(20, 5)))
    return rng.normal(size=(20, 5)), target, present


def tensors(*arrays):
    return [torch.tensor(a, dtype=torch.float64) for a in arrays]


def test_presence_loss_against_numpy(batch):
    logit, _, present = batch
    weight = np.array([1, 0.2, 5, 20, 0.05])
    p = expit(logit)
    entry = -np.where(present == 1, weight * np.log(p), np.log(1 - p)) * 2 / (1 + weight)
    expected = entry[~np.isnan(present)].mean()
    assert float(presence_loss(*tensors(logit, present, weight))) == pytest.approx(expected)


def test_presence_loss_weighs_both_classes_alike():
    """20 % present: with the weight 4, a constant logit of 0 is the best one."""
    present = np.repeat([1.0, 0.0], [20, 80])[:, None]
    logit = torch.zeros(100, 1, dtype=torch.float64, requires_grad=True)
    presence_loss(logit, *tensors(present, np.array([4.0]))).backward()
    assert float(logit.grad.sum()) == pytest.approx(0, abs=1e-12)


def test_intensity_loss_against_numpy(batch):
    mean, target, present = batch
    expected = ((mean - target)[present == 1] ** 2).mean()
    assert float(intensity_loss(*tensors(mean, target, present))) == pytest.approx(expected)


def test_entries_without_msi_have_no_gradient(batch):
    values, target, present = batch
    logit, mean = (torch.tensor(values, requires_grad=True) for _ in range(2))
    target, present = tensors(target, present)
    (presence_loss(logit, present, torch.ones(5)) + intensity_loss(mean, target, present)).backward()
    for grad in (logit.grad, mean.grad):
        assert torch.isfinite(grad).all()
        assert (grad[torch.isnan(present)] == 0).all()
    assert (logit.grad[~torch.isnan(present)] != 0).all()
    assert ((mean.grad != 0) == (present == 1)).all()


def test_a_batch_without_msi_has_loss_0():
    nothing, zero = torch.full((3, 2), float("nan")), torch.zeros(3, 2)
    assert float(presence_loss(zero, nothing, torch.ones(2))) == 0
    assert float(intensity_loss(zero, nothing, nothing)) == 0


# ------------------------------------------------------------------------------------------------------------ module


def test_the_buffers_are_those_of_the_training_spots(st):
    model = fit(st, refit=False, max_epochs=1, train_idx=np.arange(150), validation_idx=np.arange(150, 344))
    targets = drop_unmeasured(read_targets(st, model._setup), np.arange(150))
    present = targets.where_present()
    np.testing.assert_allclose(model.module.target_mean, np.nanmean(present, axis=0), rtol=1e-4)
    np.testing.assert_allclose(model.module.target_scale, np.nanstd(present, axis=0), rtol=1e-3)
    ratio = (targets.presence == 0).sum(axis=0) / np.maximum((targets.presence == 1).sum(axis=0), 1)
    one_class = ~((targets.presence == 0).any(axis=0) & (targets.presence == 1).any(axis=0))
    expected = np.where(one_class, 1, np.clip(ratio, 0.05, 20))
    np.testing.assert_allclose(model.module.positive_weight, expected, rtol=1e-5)


def test_the_module_sees_what_the_expression_space_computes(trained):
    """Normalisation in torch is the same as the one in numpy; then every gene counts alike, within bounds."""
    space, X = trained.state.features.own, trained.adata.X.copy()
    X[0, 0] = 1e6
    seen = []
    hook = trained.module.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        trained.module.inference(torch.tensor(X.toarray()))
    finally:
        hook.remove()
    expected = np.clip(space.centred(log_normalize(X)) / space.scale, -10, 10)
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-3, atol=1e-3)
    assert abs(seen[0]).max() == 10


def test_fewer_variable_genes_than_slots(st):
    X = st.X.toarray()
    X[:, 10:] = 0
    st.X = X
    model = fit(st, max_epochs=1)
    assert len(model.state.features.own.selected) < model.module.gene_index.numel()
    assert np.isfinite(model.predict().to_numpy()).all()


def test_signature_rows_follow_the_registered_clusters(st):
    model = fit(st, {**FIELDS, "signature_key": "signature", "cluster_key": "domain"}, max_epochs=1)
    signature = pd.DataFrame(
        np.asarray(st.varm["signature"]), columns=[str(c) for c in st.uns["signature"]["clusters"]]
    )
    selected = model.module.gene_index.numpy()
    for row, cluster in zip(model.module.signature.numpy(), model._cluster_categories(), strict=True):
        np.testing.assert_array_equal(row, signature[cluster].to_numpy()[selected])


def test_input_dropout_only_while_training():
    encoder = MLPEncoder(Sizes(7, 0), dropout=0.0, input_dropout=0.5)
    x, none = torch.ones(50, 7), torch.empty(50, 0)
    assert encoder.train()(x, none).std(dim=0).max() > 1e-4
    assert encoder.eval()(x, none).std(dim=0).max() < 1e-6

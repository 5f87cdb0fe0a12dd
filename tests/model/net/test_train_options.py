"""What training hands on to Lightning and scvi-tools, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from stmsi.model import HurdleNet
from stmsi.model.net._train_options import _LOADER, _NOT_LOADER, _NOT_PLAN, _NOT_TRAINER, _PLAN, _TRAINER

SMALL = {"n_nets": 1, "residual": None, "encoder_kwargs": {"n_hidden": 8, "n_layers": 1}}


@pytest.fixture
def net(make_sections):
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    return HurdleNet(adata, **SMALL)


def n_epochs(model: HurdleNet) -> int:
    return len(model.history["validation_loss"])


class Count(Callback):
    epochs = 0

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs += 1


# ----------------------------------------------------------------------------------------------------------- honoured


def test_a_logger_gets_the_losses_and_the_history_stays(net, tmp_path):
    net.train(max_epochs=3, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    assert net.is_trained
    assert n_epochs(net) == 3
    logged = pd.read_csv(tmp_path / "metrics.csv")["validation_loss"].dropna()
    np.testing.assert_allclose(logged, np.ravel(net.history["validation_loss"]).astype(float), rtol=1e-5)


def test_several_loggers_and_none(net, tmp_path):
    net.train(max_epochs=1, logger=[CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")])
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}
    net.train(max_epochs=2, logger=False)
    assert n_epochs(net) == 2


def test_a_logger_changes_nothing(net, make_sections, tmp_path):
    net.train(max_epochs=2, logger=CSVLogger(tmp_path))
    other = make_sections()
    HurdleNet.setup_anndata(other)
    plain = HurdleNet(other, **SMALL)
    plain.train(max_epochs=2)
    pd.testing.assert_frame_equal(net.predict(), plain.predict(), check_exact=True)


def test_the_history_holds_losses_and_no_lower_bound(net):
    net.train(max_epochs=1)
    parts = ("loss", "presence_loss", "intensity_loss")
    expected = {"validation_loss", "train_loss"} | {f"{p}_{m}" for p in parts[1:] for m in ("train", "validation")}
    assert set(net.history) - {"train_loss_step", "train_loss_epoch"} == expected
    assert not [name for name in net.history if "elbo" in name or "kl" in name or "reconstruction" in name]


def test_early_stopping_by_the_names_of_scvi_tools(net):
    net.train(max_epochs=30, early_stopping_patience=1, early_stopping_min_delta=1e6, refit=False)
    assert n_epochs(net) == 2, "no epoch is better by so much"
    net.train(max_epochs=4, early_stopping=False, early_stopping_patience=1, early_stopping_min_delta=1e6, refit=False)
    assert n_epochs(net) == 4


def test_callbacks_see_the_refit_unless_they_follow_the_validation(net):
    count, own = Count(), EarlyStopping("validation_loss", patience=1, min_delta=1e6)
    net.train(max_epochs=30, early_stopping=False, callbacks=[count, own])
    assert n_epochs(net) == 2
    assert count.epochs == 2 + net.state.training["epochs"]
    single = Count()
    net.train(max_epochs=1, refit=False, callbacks=single)
    assert single.epochs == 1


def test_an_early_stopping_of_the_user_begins_anew_in_each_stage(make_sections):
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    net = HurdleNet(adata, **SMALL, training="two_stage")
    own = EarlyStopping("validation_loss", patience=3, min_delta=1e6)
    net.train(max_epochs=30, early_stopping=False, callbacks=[own], refit=False)
    assert n_epochs(net) == 2 * 4


def test_batches_are_loaded_as_asked(net, make_sections):
    net.train(max_epochs=2, datasplitter_kwargs={"pin_memory": False, "num_workers": 0})
    before = net.predict()
    net.train(max_epochs=2, batch_size=16, datasplitter_kwargs={"drop_last": True})
    assert net.is_trained
    assert (net.predict() != before).to_numpy().any()


def test_the_learning_rate_falls_on_a_plateau_of_the_validation_loss(net):
    plan = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e6, "lr_factor": 0.5}
    with pytest.raises(ValueError, match=r"reduce_lr_on_plateau follows a loss of held-out spots.*pass refit=False"):
        net.train(plan_kwargs=plan)
    net.train(max_epochs=5, refit=False, plan_kwargs=plan, callbacks=[LearningRateMonitor()])
    rates = np.ravel(net.history["lr-AdamW"]).astype(float)
    assert rates[-1] < rates[0] / 4
    with pytest.raises(ValueError, match=r"lr_scheduler_metric='elbo_validation' is not logged; choose one of 'valid"):
        net.train(refit=False, plan_kwargs=plan | {"lr_scheduler_metric": "elbo_validation"})


def test_options_of_the_trainer_are_handed_on(net):
    net.train(max_epochs=50, max_steps=3, refit=False, batch_size=1000, gradient_clip_val=1.0, deterministic=False)
    assert n_epochs(net) == 3


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("name", _NOT_TRAINER)
def test_options_without_effect_are_refused_with_the_remedy(net, name):
    with pytest.raises(ValueError, match=rf"train\(\) takes no option '{name}': .{{10,}}\.$"):
        net.train(**{name: 0.8})
    assert not net.is_trained


def test_the_split_of_scvi_tools_is_refused_with_the_way_to_hold_out_sections(net):
    with pytest.raises(ValueError, match="pass the held-out spots as validation_idx"):
        net.train(train_size=0.9)
    with pytest.raises(ValueError, match="datasplitter_kwargs takes no 'train_size': pass the held-out spots as"):
        net.train(datasplitter_kwargs={"train_size": 0.9})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_epoch": 3}, r"no option 'max_epoch'; further options are accumulate.*Did you mean 'max_epochs'"),
        ({"datasplitter_kwargs": {"n_workers": 1}}, r"takes no 'n_workers'; .*Did you mean 'num_workers'"),
        ({"datasplitter_kwargs": 3}, "datasplitter_kwargs is a mapping .*found int"),
        ({"datasplitter_kwargs": {"num_workers": -1}}, "num_workers must be at least 0"),
        ({"plan_kwargs": {"optimiser": "Adam"}}, r"takes no 'optimiser'; .*Did you mean 'optimizer'"),
        ({"plan_kwargs": {"n_epochs_kl_warmup": 3}}, "no Kullback-Leibler term"),
        ({"plan_kwargs": {"lr": float("nan")}}, "lr must be a positive number, found nan"),
        ({"plan_kwargs": {"weight_decay": -1}}, "weight_decay must be a finite number of at least 0, found -1"),
        ({"logger": True}, r"logger=True leaves open where to"),
        ({"logger": "csv"}, "logger takes Loggers of Lightning"),
        ({"callbacks": [object()]}, "callbacks takes Callbacks of Lightning .*found object"),
        ({"callbacks": [ModelCheckpoint()]}, "callbacks holds a ModelCheckpoint; pass checkpoint_dir="),
        ({"callbacks": StochasticWeightAveraging(0.1)}, "holds a StochasticWeightAveraging; pass weight_averaging=True"),
        ({"accelerator": "gpuu"}, r"Lightning refuses accelerator='gpuu', devices='auto'"),
        ({"precision": "17-mixed"}, r"Lightning refuses .*precision='17-mixed'"),
        ({"devices": "lots"}, r"Lightning refuses .*devices='lots'"),
    ],
)  # fmt: skip
def test_options_that_are_wrong_are_refused_before_anything_is_read(net, options, match, monkeypatch):
    monkeypatch.setattr("stmsi.model.net._training.SpotReader", None)
    with pytest.raises(ValueError, match=match):
        net.train(**options)
    assert not net.is_trained


def test_every_argument_of_scvi_tools_is_taken_or_refused():
    """Those of its mixin, trainer, plan and splitter: none is without a decision, whichever version is installed."""
    import inspect

    from lightning.pytorch import Trainer as LightningTrainer
    from scvi.dataloaders import DataSplitter
    from scvi.model.base import UnsupervisedTrainingMixin
    from scvi.train import Trainer, TrainingPlan

    def names(function: Any) -> set[str]:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {n for n, p in inspect.signature(function).parameters.items() if n != "self" and p.kind not in kinds}

    own = names(HurdleNet.train) | {"early_stopping_patience", "early_stopping_min_delta"}
    # of tests, predictions, and the registries of Lightning's clouds
    elsewhere = {
        "limit_test_batches", "limit_predict_batches", "inference_mode", "model_registry", "enable_autolog_hparams",
        "reload_dataloaders_every_n_epochs",
    }  # fmt: skip
    known = own | _TRAINER | set(_NOT_TRAINER)
    assert names(UnsupervisedTrainingMixin.train) - {"trainer_kwargs"} <= known
    assert names(Trainer.__init__) <= known
    assert names(LightningTrainer.__init__) <= known | elsewhere
    assert names(TrainingPlan.__init__) - {"module"} <= _PLAN | set(_NOT_PLAN)
    assert names(DataSplitter.__init__) - {"adata_manager"} <= _LOADER | set(_NOT_LOADER) | {"validation_size"}
    assert not _TRAINER & set(_NOT_TRAINER)
    assert not _TRAINER & own

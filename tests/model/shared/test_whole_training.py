"""Training leaves a model whole or as it was, whatever class it is of and wherever training ends."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from pandas.testing import assert_frame_equal

from stmsi.model import HurdleEnsemble, HurdleKernel, HurdleLinear, HurdleNet, HurdleScreened
from stmsi.model.linear._negative_controls import ControlLinear, CoordinatesOnly
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._spot_features import SpotFeatures

LINEAR = {"n_components": 5, "n_folds": 2}
CLASSES: dict[str, tuple[type[Any], dict[str, Any], dict[str, Any]]] = {
    "linear": (HurdleLinear, LINEAR, {}),
    "kernel": (HurdleKernel, {"kernel": "genes", "n_folds": 2}, {}),
    "screened": (HurdleScreened, {"n_folds": 2}, {}),
    "control": (ControlLinear, LINEAR, {}),
    "coordinates": (CoordinatesOnly, {"n_folds": 2}, {}),
    "net": (HurdleNet, {"encoder_kwargs": {"n_hidden": 8}}, {"max_epochs": 1}),
    "two stages": (HurdleNet, {"encoder_kwargs": {"n_hidden": 8}, "training": "two_stage"}, {"max_epochs": 1}),
    "ensemble": (HurdleEnsemble, {"members": {"prior": {"model": "mean", **LINEAR}}, "n_folds": 2}, {}),
}
WHERE = {
    "features": (SpotFeatures, "fit"),
    "before calibration": (HurdleModel, "_calibrate"),
}


@pytest.fixture(params=CLASSES)
def ready(request, make_sections):
    cls, params, train = CLASSES[request.param]
    adata = make_sections()
    cls.setup_anndata(adata)
    return cls(adata, **params), train


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", WHERE)
def test_a_first_training_that_is_interrupted_leaves_an_untrained_model(ready, where, monkeypatch):
    model, train = ready
    with monkeypatch.context() as patch:
        patch.setattr(*WHERE[where], stop)
        with pytest.raises(KeyboardInterrupt):
            model.train(**train)
    assert not model.is_trained
    assert repr(model).endswith("not trained")
    with pytest.raises(RuntimeError, match=r"is not trained; call \.train\(\) first"):
        model.predict()
    model.train(**train)
    assert model.is_trained


@pytest.mark.once
@pytest.mark.parametrize("where", WHERE)
def test_a_later_training_that_is_interrupted_leaves_the_model_before(ready, where, monkeypatch, caplog, tmp_path):
    model, train = ready
    model.train(**train)
    before, state = model.predict(), model.state
    with monkeypatch.context() as patch:
        patch.setattr(*WHERE[where], stop)
        with pytest.raises(KeyboardInterrupt):
            model.train(train_idx=range(60), **train)
    assert caplog.text.count("Training did not end; the model is the one before it") == 1
    assert model.state is state
    assert_frame_equal(model.predict(), before, check_exact=True)
    model.save(tmp_path / "model")
    assert_frame_equal(type(model).load(tmp_path / "model").predict(model.adata), before, rtol=1e-5)


def test_a_training_that_is_refused_leaves_the_model_before(ready):
    model, train = ready
    model.train(**train)
    before = model.predict()
    with pytest.raises(ValueError, match="train_idx must be distinct positions"):
        model.train(train_idx=[0, 900], **train)
    assert_frame_equal(model.predict(), before, check_exact=True)


class Stop(Callback):
    """Raise an error at the start of an epoch."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        self.epoch, self.error = epoch, error

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise self.error


@pytest.mark.once
@pytest.mark.parametrize(  # every pair of the three
    ("residual", "warm_start", "error"),
    [
        ("ridge", False, KeyboardInterrupt()),
        ("ridge", True, MemoryError("full")),
        (None, False, MemoryError("full")),
        (None, True, KeyboardInterrupt()),
    ],
    ids=["ridge", "ridge, warm", "none", "none, warm"],
)
def test_a_network_interrupted_in_its_first_epoch_is_the_one_before(make_sections, residual, warm_start, error):
    """Also where the ridge regressions that it corrects were validated before the first step."""
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    model = HurdleNet(adata, residual=residual, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=2, refit=False, lr=0.05)
    before, history = model.predict(), model.history
    with pytest.raises(type(error)):
        model.train(max_epochs=2, refit=False, warm_start=warm_start, callbacks=[Stop(0, error)])
    assert_frame_equal(model.predict(), before, check_exact=True)
    assert model.history is history
    assert model.is_trained


@pytest.mark.once
def test_a_network_interrupted_while_it_calibrates_is_the_one_before(make_sections, monkeypatch):
    """The weights are new then, and what they are calibrated with is not."""
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    model = HurdleNet(adata, residual=None, n_nets=1, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=2, refit=False)
    before = model.predict()
    with monkeypatch.context() as patch:
        patch.setattr(HurdleNet, "_fit_calibration", stop)
        for warm_start in (False, True):
            with pytest.raises(KeyboardInterrupt):
                model.train(max_epochs=2, warm_start=warm_start)
            assert_frame_equal(model.predict(), before, check_exact=True)


@pytest.mark.once
def test_weights_without_bounds_leave_the_network_before(make_sections):
    import torch

    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    model = HurdleNet(adata, residual=None, n_nets=1, encoder_kwargs={"n_hidden": 8})
    model.train(max_epochs=1)
    before = model.predict()
    explode = {"optimizer": "Custom", "optimizer_creator": lambda params: torch.optim.SGD(params, lr=1e30)}
    with pytest.raises(RuntimeError, match="never finite"):
        model.train(max_epochs=1, plan_kwargs=explode)
    assert_frame_equal(model.predict(), before, check_exact=True)

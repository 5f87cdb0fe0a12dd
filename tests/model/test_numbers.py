"""Numbers that no model can work with are refused by name, before anything is read or trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stmsi
from stmsi.model import HurdleEnsemble, HurdleKernel, HurdleLinear, HurdleNet, HurdleScreened
from stmsi.model.linear._negative_controls import CoordinatesOnly

NAN = float("nan")
COUNTS = (0, -3, 2.5, NAN, "5", True, None)
GIVEN_COUNTS = COUNTS[:-1]
SEEDS = (-1, 1.5, None, NAN, 2**32, "0")
WEIGHTS = (-0.1, NAN, np.inf, "1", None)
BAD: list[tuple[type[Any], str, tuple[Any, ...]]] = [
    (HurdleLinear, "n_top_genes", COUNTS),
    (HurdleLinear, "n_components", COUNTS),
    (HurdleLinear, "n_folds", (1, 2.5)),
    (HurdleLinear, "n_jobs", (0, 1.5)),
    (HurdleLinear, "rng", SEEDS),
    (HurdleKernel, "n_components", COUNTS),
    (HurdleKernel, "n_landmarks", COUNTS),
    (HurdleKernel, "n_folds", (1,)),
    (HurdleKernel, "rng", SEEDS),
    (HurdleScreened, "n_folds", (1, NAN)),
    (HurdleScreened, "rng", SEEDS),
    (CoordinatesOnly, "rng", SEEDS),
    (HurdleEnsemble, "n_folds", (1, 2.5)),
    (HurdleEnsemble, "n_jobs", (0, 1.5)),
    (HurdleEnsemble, "rng", SEEDS),
    (HurdleNet, "n_top_genes", COUNTS),
    (HurdleNet, "intensity_weight", WEIGHTS),
    (HurdleNet, "rng", SEEDS),
]
ENCODER: list[tuple[str, str, tuple[Any, ...]]] = [
    ("mlp", "n_hidden", (0, 2.5, "64")),
    ("mlp", "dropout", (-0.1, 1.0, NAN)),
    ("mlp", "per_metabolite", (1, "yes")),
    ("crossmodal", "contrastive_weight", (-1.0, NAN)),
    ("crossmodal", "temperature", (0.0, NAN)),
]
TRAIN: list[tuple[str, tuple[Any, ...]]] = [
    ("max_epochs", GIVEN_COUNTS),  # None is the encoder's own
    ("batch_size", GIVEN_COUNTS),
    ("n_threads", (0, 1.5)),
    ("patience", (-1, 2.5, NAN)),
    ("early_stopping_patience", (-1, 2.5)),
    ("early_stopping_min_delta", (-1.0, NAN)),
    ("lr", (0, -1.0, NAN, np.inf, "0.1")),
    ("weight_decay", WEIGHTS),
    ("gradient_clip_val", (0, -1.0, NAN)),
    ("accumulate_grad_batches", (0, 1.5)),
]


def each(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(*names, value, id="-".join([getattr(n, "__name__", n) for n in names] + [repr(value)]))
        for *names, values in cases
        for value in values
    ]


@pytest.fixture(scope="module")
def adata(make_sections):
    adata = make_sections()
    HurdleNet.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def net(adata):
    return HurdleNet(adata)


@pytest.mark.parametrize(("cls", "name", "value"), each(BAD))
def test_hyper_parameters(adata, cls, name, value):
    if value is None and name == "n_jobs":
        return
    with pytest.raises(ValueError, match=rf"^{name} (must be|is a seed).*found {value!r}"):
        cls(adata, **{name: value})


@pytest.mark.parametrize(("encoder", "name", "value"), each(ENCODER))
def test_options_of_encoders(adata, encoder, name, value):
    with pytest.raises(ValueError, match=rf"encoder_kwargs\['{name}'\] .*found {value!r}"):
        HurdleNet(adata, encoder=encoder, encoder_kwargs={name: value})


@pytest.mark.parametrize(("name", "value"), each(TRAIN))
def test_arguments_of_training_a_network(net, name, value):
    shown = "patience" if name == "early_stopping_patience" else name
    with pytest.raises(ValueError, match=rf"^{shown} must be .*found {value!r}"):
        net.train(**{name: value})
    assert not net.is_trained


def test_numbers_of_numpy_are_numbers(adata, tmp_path):
    model = HurdleNet(adata, n_top_genes=np.int64(5), intensity_weight=np.float32(0.5), rng=np.uint32(3))
    model.train(max_epochs=np.int32(1), lr=np.float64(0.01), batch_size=np.int64(16), patience=np.int8(3))
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(stmsi.model.load(tmp_path / "model").predict(adata), model.predict())


def test_arguments_of_predictions(make_sections):
    adata = make_sections()
    HurdleLinear.setup_anndata(adata)
    model = HurdleLinear(adata, presence="prior", intensity="mean")
    model.train()
    for name, value in {"batch_size": 0, "min_genes": NAN, "min_genes ": "half"}.items():
        with pytest.raises(ValueError, match=rf"^{name.strip()} .*found {value!r}"):
            model.predict(**{name.strip(): value})
    for value in (0, 1, NAN, "0.9"):
        with pytest.raises(ValueError, match=rf"coverage is a share between 0 and 1, found {value!r}"):
            model.predict_interval(coverage=value)
    with pytest.raises(ValueError, match=r"n_samples must be an integer of at least 1, found 1\.5"):
        model.sample(n_samples=1.5)
    with pytest.raises(ValueError, match="rng must be at least 0, found -1"):
        model.sample(rng=-1)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"model": "ridge", "n_top_genes": 0}, "n_top_genes must be at least 1, found 0"),
        ({"model": "ridge", "n_component": 5}, r"HurdleLinear has no hyper-parameter 'n_component'; it has .*n_components"),
        ({"model": "ridge", "train": {"max_epochs": 5}}, r"HurdleLinear.train has no argument 'max_epochs'; it has train_idx"),
        ({"model": "ridge", "setup": {"graph": None}}, r"setup_anndata has no argument 'graph'; .*Did you mean 'graph_key'"),
        ({"model": "mlp", "rng": -1}, "rng is a seed"),
        ({"model": "mlp", "train": {"max_epochs": 2.5}}, "max_epochs must be an integer of at least 1, found 2.5"),
        ({"model": "mlp", "train": {"max_epoch": 2}}, r"no option 'max_epoch'.*Did you mean 'max_epochs'"),
        ({"model": "mlp", "encoder_kwargs": {"n_hiden": 3}}, r"does not take 'n_hiden'; .*Did you mean 'n_hidden'"),
        ({"model": "ensemble", "members": [{"model": "ridge", "rng": -1}]}, r"Member 'ridge' failed on .*rng is a seed"),
    ],
)  # fmt: skip
def test_models_by_name_refuse_them_too(make_sections, spec, match):
    adata = make_sections()
    with pytest.raises(ValueError, match=match):
        stmsi.tl.predict_metabolites(adata, spec, setup={})
    # hyper-parameters are checked in the fold, which is named
    with pytest.raises((ValueError, RuntimeError), match=match):
        stmsi.tl.cross_validate(adata, {"mine": spec}, setup={}, show_progress_bar=False)


@pytest.mark.parametrize("coverage", [0, 1, NAN])
def test_an_impossible_coverage_is_refused_before_training(make_sections, coverage, monkeypatch):
    monkeypatch.setattr(HurdleLinear, "_fit", None)
    with pytest.raises(ValueError, match="coverage is a share between 0 and 1"):
        stmsi.tl.predict_metabolites(make_sections(), "ridge", coverage=coverage)


def test_positions_that_are_no_integers_are_refused(adata):
    for rows in ([0.5, 1.5], [1.0, 2.0], np.array([0.0, np.nan]), ["a", "b"]):
        with pytest.raises(ValueError, match=r"train_idx must be positions \(integers\) or a mask"):
            HurdleLinear(adata).train(train_idx=rows)


def test_a_field_that_is_misspelt_is_not_passed_over(make_sections):
    with pytest.raises(TypeError, match=r"setup_anndata has no argument 'presense_key'\. Did you mean 'presence_key'"):
        HurdleNet.setup_anndata(make_sections(), presense_key="msi_presence")

"""What ``HurdleNet.train`` hands on to Lightning and scvi-tools, and what it refuses by name, with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from scvi.model._utils import parse_device_args
from scvi.train import Trainer

from stmsi._data.checks import check_count, check_positive, check_weight, listing, suggest
from stmsi.model.net._surroundings import quiet

if TYPE_CHECKING:
    from collections.abc import Iterable

_HELD_OUT = (
    "pass the held-out spots as validation_idx (positions or a mask), such as those of whole sections: spots drawn at random "
    "have neighbours among the training spots"
)
_EVERY_EPOCH = "every epoch is validated on all held-out spots, so that the best weights are found"
_CHECKPOINT = "pass checkpoint_dir=: it is written whenever the validation loss has fallen"
_ONE_PROCESS = "training runs in one process, on the device that accelerator= and devices= name"
_NO_ELBO = "the loss is no evidence lower bound and has no Kullback-Leibler term"

_TRAINER = frozenset({
    "accumulate_grad_batches", "benchmark", "default_root_dir", "detect_anomaly", "deterministic", "enable_model_summary",
    "gradient_clip_algorithm", "gradient_clip_val", "learning_rate_monitor", "limit_train_batches", "log_every_n_steps",
    "max_steps", "max_time", "min_epochs", "min_steps", "plugins", "profiler", "progress_bar_refresh_rate",
    "simple_progress_bar",
})  # fmt: skip
"""Options of :class:`scvi.train.Trainer` and Lightning's that are handed on."""
_NOT_TRAINER = {
    "train_size": _HELD_OUT,
    "validation_size": _HELD_OUT,
    "shuffle_set_split": _HELD_OUT,
    "external_indexing": "pass train_idx and validation_idx",
    "datamodule": "a network trains on the AnnData that it was made with",
    "load_sparse_tensor": "batches are dense: the encoders read them so",
    "plan_config": "pass the options of the plan as plan_kwargs",
    "trainer_config": "pass the options of the trainer one by one",
    "early_stopping_monitor": (
        "early stopping follows the validation loss, as the weights do that are kept; to stop by another one, pass "
        "early_stopping=False and callbacks=[lightning.pytorch.callbacks.EarlyStopping(monitor=...)]"
    ),
    "early_stopping_mode": "the validation loss is to fall",
    "early_stopping_warmup_epochs": "pass a larger patience",
    "enable_checkpointing": _CHECKPOINT,
    "checkpointing_monitor": _CHECKPOINT,
    "ckpt_path": "pass warm_start=True to go on from the weights of the model",
    "check_val_every_n_epoch": _EVERY_EPOCH,
    "val_check_interval": _EVERY_EPOCH,
    "limit_val_batches": _EVERY_EPOCH,
    "num_sanity_val_steps": _EVERY_EPOCH,
    "fast_dev_run": "pass max_epochs=1 and a small train_idx",
    "overfit_batches": "pass a small train_idx",
    "barebones": "it would leave no validation loss by which to keep weights",
    "enable_progress_bar": "pass show_progress_bar",
    "log_save_dir": "pass logger=lightning.pytorch.loggers.CSVLogger(folder); model.history holds the losses anyway",
    "strategy": _ONE_PROCESS,
    "num_nodes": _ONE_PROCESS,
    "sync_batchnorm": _ONE_PROCESS,
    "use_distributed_sampler": _ONE_PROCESS,
}  # fmt: skip

_LOADER = frozenset({
    "drop_last", "multiprocessing_context", "num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "timeout",
})  # fmt: skip
"""Options of :class:`scvi.dataloaders.DataSplitter` that are handed on."""
_NOT_LOADER = {
    **{
        name: _NOT_TRAINER[name] for name in ("train_size", "validation_size", "shuffle_set_split", "external_indexing")
    },
    "load_sparse_tensor": _NOT_TRAINER["load_sparse_tensor"],
    "batch_size": "it is an argument of train itself",
    "shuffle": "training spots are shuffled anyway",
}

_PLAN = frozenset({
    "compile", "compile_kwargs", "eps", "fused_optimizer", "lr", "lr_factor", "lr_min", "lr_patience", "lr_scheduler_metric",
    "lr_threshold", "optimizer", "optimizer_creator", "reduce_lr_on_plateau", "weight_decay",
})  # fmt: skip
"""Options of :class:`scvi.train.TrainingPlan` that are handed on."""
_NOT_PLAN = {
    **dict.fromkeys(("n_epochs_kl_warmup", "n_steps_kl_warmup", "max_kl_weight", "min_kl_weight"), _NO_ELBO),
    "update_only_decoder": "there is no decoder; to train one stage after the other, pass training='two_stage' to the model",
    "on_step": "losses are logged once an epoch",
    "on_epoch": "losses are logged once an epoch",
}
_LOSSES = ("validation_loss", "presence_loss_validation", "intensity_loss_validation")
_WEIGHTS_OF_THEIR_OWN = {
    ModelCheckpoint: _CHECKPOINT,
    StochasticWeightAveraging: "pass weight_averaging=True, which also validates the average",
}
"""Callbacks that keep other weights than those that are best."""


def check_trainer_options(given: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Options for the trainer, of those that ``train`` has no argument for; `own` are the arguments it has.

    Raises
    ------
    ValueError
        An option that is unknown, that makes no sense here, or whose value Lightning would refuse.
    """
    _refuse(given, _TRAINER, _NOT_TRAINER, "train() takes no option", own)
    for name in ("accumulate_grad_batches", "log_every_n_steps", "min_epochs", "min_steps"):
        if isinstance(given.get(name), int | float):
            check_count(given[name], name)
    check_positive(given.get("gradient_clip_val"), "gradient_clip_val")
    return dict(given)


def check_loader_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options for the loader of batches; errors as for :func:`check_trainer_options`."""
    options = _mapping(given, "datasplitter_kwargs")
    _refuse(options, _LOADER, _NOT_LOADER, "datasplitter_kwargs takes no")
    if "num_workers" in options:
        check_count(options["num_workers"], "num_workers", 0)
    return options


def check_plan_options(given: Mapping[str, Any] | None, *, has_validation: bool) -> dict[str, Any]:
    """Options for the optimizer and its learning rate; errors as for :func:`check_trainer_options`.

    `has_validation` says whether every pass has held-out spots.
    """
    options = _mapping(given, "plan_kwargs")
    _refuse(options, _PLAN, _NOT_PLAN, "plan_kwargs takes no")
    for name in ("lr", "eps", "lr_factor"):
        check_positive(options.get(name, 1.0), name, optional=False)
    for name in ("weight_decay", "lr_threshold", "lr_min"):
        check_weight(options.get(name, 0), name)
    check_count(options.get("lr_patience", 0), "lr_patience", 0)
    if options.get("reduce_lr_on_plateau"):
        if not has_validation:
            msg = (
                "reduce_lr_on_plateau follows a loss of held-out spots, which the training on all spots at the end has not; "
                "pass refit=False or validation_idx."
            )
            raise ValueError(msg)
        if options.setdefault("lr_scheduler_metric", _LOSSES[0]) not in _LOSSES:
            msg = f"lr_scheduler_metric={options['lr_scheduler_metric']!r} is not logged; choose one of {listing(_LOSSES)}."
            raise ValueError(msg)
    return options


def check_callbacks(given: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Callbacks as a list.

    Raises
    ------
    ValueError
        Something that is no callback, or one that keeps weights of its own.
    """
    callbacks = _as_list(given, Callback, "callbacks")
    for one in callbacks:
        for kind, remedy in _WEIGHTS_OF_THEIR_OWN.items():
            if isinstance(one, kind):
                msg = f"callbacks holds a {type(one).__name__}; {remedy}."
                raise ValueError(msg)
    return callbacks


def check_loggers(given: Logger | Sequence[Logger] | bool | None) -> list[Logger]:
    """Loggers as a list, which is empty for `None` and `False`; errors as for :func:`check_callbacks`."""
    if given is True:
        msg = "logger=True leaves open where to; pass a logger, such as lightning.pytorch.loggers.CSVLogger(folder)."
        raise ValueError(msg)
    return _as_list(given or None, Logger, "logger")


def in_this_pass(callbacks: Iterable[Callback], *, validated: bool) -> list[Callback]:
    """Callbacks for one pass over the epochs.

    Those that follow a loss of the validation are left out where there is none; early stopping begins anew.
    """
    kept = [c for c in callbacks if validated or "valid" not in str(getattr(c, "monitor", ""))]
    return [copy(c) if isinstance(c, EarlyStopping) else c for c in kept]


def probe_trainer(accelerator: str, devices: int | list[int] | str, **options: Any) -> None:
    """Make a trainer and throw it away: what Lightning refuses is told before anything is prepared.

    Raises
    ------
    ValueError
        An accelerator, device, precision or other value that Lightning refuses.
    """
    try:
        with quiet():
            found, number, _ = parse_device_args(accelerator=accelerator, devices=devices, return_device="torch")
            Trainer(accelerator=found, devices=number, enable_progress_bar=False, **options)
    except Exception as error:
        # Lightning raises classes of its own, many of them without a family
        msg = f"Lightning refuses accelerator={accelerator!r}, devices={devices!r}, {_shown(options)}: {error}"
        raise ValueError(msg) from error


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _refuse(
    given: Mapping[str, Any], taken: frozenset[str], remedies: Mapping[str, str], what: str, own: Iterable[str] = ()
) -> None:
    for name in given:
        if name in remedies:
            msg = f"{what} {name!r}: {remedies[name]}."
            raise ValueError(msg)
        if name not in taken:
            msg = f"{what} {name!r}; further options are {', '.join(sorted(taken))}.{suggest(name, [*taken, *own])}"
            raise ValueError(msg)


def _mapping(given: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        msg = f"{name} is a mapping from the name of an option to its value, found {type(given).__name__}."
        raise ValueError(msg)
    return dict(given or {})


def _as_list(given: Any, kind: type[Any], name: str) -> list[Any]:
    """One or several objects of a kind of Lightning as a list."""
    several = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
    for one in several:
        if not isinstance(one, kind):
            msg = f"{name} takes {kind.__name__}s of Lightning (lightning.pytorch), found {type(one).__name__}."
            raise ValueError(msg)
    return several

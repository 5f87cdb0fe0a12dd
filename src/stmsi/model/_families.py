"""Models by name, for functions that take a model or the name of a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_args

from stmsi._data.checks import check_choice, suggest
from stmsi.model.linear._intensity import IntensityFamily

ModelSpec = str | Mapping[str, Any]
"""A family's name, or ``{"model": class name or family, "setup": {...}, "train": {...}, **hyper-parameters}``."""

_LINEAR = {
    name: {"model": "HurdleLinear", "presence": "prior" if name == "mean" else "logistic", "intensity": name}
    for name in get_args(IntensityFamily)
    if name != "mlp"
}
# named without an import of torch
_ENCODERS = ("mlp", "transformer", "graph", "deepset", "niche", "section", "crossmodal")
AUTO = "auto"
"""The family that is trained where none is named."""
# averaging components over neighbours is a fraction of the cost of pooling counts, and no worse
_LINEAR["ridge"]["context"] = "diffused"
FAMILIES: dict[str, dict[str, Any]] = {
    AUTO: {"model": "HurdleEnsemble"},
    **_LINEAR,
    "gene_ridge": {"model": "HurdleKernel", "kernel": "genes"},
    "kernel_ridge": {"model": "HurdleKernel", "kernel": "components"},
    "screened_ridge": {"model": "HurdleScreened", "genes": "screened"},
    "prior_ridge": {"model": "HurdleScreened", "genes": "prior"},
    **{name: {"model": "HurdleNet", "encoder": name} for name in _ENCODERS},
    "ensemble": {"model": "HurdleEnsemble"},
    "coordinates": {"model": "CoordinatesOnly"},
    "shuffled_genes": {"model": "ControlLinear", "control": "shuffled_genes"},
    "toroidal_shift": {"model": "ControlLinear", "control": "toroidal_shift"},
}
"""Name of a family -> class and hyper-parameters. The last three, and ``"mean"``, are negative controls."""
CLASSES = {
    "HurdleLinear": "stmsi.model.linear._hurdle_linear",
    "HurdleNet": "stmsi.model.net._hurdle_net",
    "HurdleEnsemble": "stmsi.model.ensemble._hurdle_ensemble",
    "HurdleKernel": "stmsi.model.linear._hurdle_kernel",
    "HurdleScreened": "stmsi.model.linear._hurdle_screened",
    "CoordinatesOnly": "stmsi.model.linear._negative_controls",
    "ControlLinear": "stmsi.model.linear._negative_controls",
}


def resolve(spec: ModelSpec) -> tuple[type[Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Class, hyper-parameters, setup arguments and training arguments of a model given by name or mapping."""
    if not isinstance(spec, str | type | Mapping):
        msg = (
            f"A model is a family's name ({', '.join(FAMILIES)}), a model class or a mapping with the entry 'model'; "
            f"found {type(spec).__name__}."
        )
        raise TypeError(msg)
    params: dict[str, Any] = {"model": spec} if isinstance(spec, str | type) else dict(spec)
    if "model" not in params:
        msg = f"A model given as a mapping needs the entry 'model', found {sorted(params)}."
        raise ValueError(msg)
    name = params.pop("model")
    if isinstance(name, type):
        name = name.__name__
    check_choice(name, [*FAMILIES, *CLASSES], "model")
    setup, train = dict(params.pop("setup", {})), dict(params.pop("train", {}))
    if name in FAMILIES:
        params = FAMILIES[name] | params
        name = params.pop("model")
    cls = getattr(import_module(CLASSES[name]), name)
    _check_names(cls, params, f"{name} has no hyper-parameter")
    _check_names(cls.setup_anndata, setup, f"{name}.setup_anndata has no argument")
    _check_names(cls.train, train, f"{name}.train has no argument")
    return cls, params, setup, train


def _check_names(function: Any, given: Mapping[str, Any], what: str) -> None:
    """Refuse arguments that a function does not take; one that hands others on names them itself."""
    parameters = signature(function).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    taken = [n for n in parameters if n not in ("self", "adata", "registry", "show_progress_bar")]
    for name in given:
        if name not in taken:
            msg = f"{what} {name!r}; it has {', '.join(taken)}.{suggest(name, taken)}"
            raise ValueError(msg)


def named_models(models: ModelSpec | Sequence[str] | Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Models as a mapping from the name shown in score tables."""
    if isinstance(models, str):
        return {models: models}
    if isinstance(models, Mapping):
        return {str(k): v if isinstance(v, str | Mapping) else {"model": v} for k, v in models.items()}
    return {str(m): m for m in models}

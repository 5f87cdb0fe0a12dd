"""Tools: predict metabolites, denoise measured ones, score the predictions, draw synthetic sections, and show what drives them."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.tl._attention import attention
    from stmsi.tl._attribute import attribute
    from stmsi.tl._compare_models import compare_models
    from stmsi.tl._cross_validate import cross_validate
    from stmsi.tl._denoise import denoise
    from stmsi.tl._evaluate import evaluate
    from stmsi.tl._noise_ceiling import noise_ceiling
    from stmsi.tl._predict_metabolites import predict_metabolites
    from stmsi.tl._reliability import reliability
    from stmsi.tl._sample_metabolites import sample_metabolites
    from stmsi.tl._train import train

__all__ = [
    "attention",
    "attribute",
    "compare_models",
    "cross_validate",
    "denoise",
    "evaluate",
    "noise_ceiling",
    "predict_metabolites",
    "reliability",
    "sample_metabolites",
    "train",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

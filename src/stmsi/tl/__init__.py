"""Tools: predict metabolites, score the predictions honestly, and tell what drives them."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.tl._abstention import abstention
    from stmsi.tl._attention import attention
    from stmsi.tl._attribute import attribute
    from stmsi.tl._attribution_checks import attribution_checks
    from stmsi.tl._compare_models import compare_models
    from stmsi.tl._cross_validate import cross_validate
    from stmsi.tl._evaluate import evaluate
    from stmsi.tl._oversample import oversample
    from stmsi.tl._predict_metabolites import predict_metabolites

__all__ = [
    "abstention",
    "attention",
    "attribute",
    "attribution_checks",
    "compare_models",
    "cross_validate",
    "evaluate",
    "oversample",
    "predict_metabolites",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:
    return _getattr(name)

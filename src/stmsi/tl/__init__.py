"""Tools: predict metabolites, score the predictions honestly, draw synthetic sections, and tell what drives them."""

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
    from stmsi.tl._learnability import learnability
    from stmsi.tl._noise_ceiling import noise_ceiling
    from stmsi.tl._oversample import oversample
    from stmsi.tl._predict_metabolites import predict_metabolites
    from stmsi.tl._realism import realism
    from stmsi.tl._reliability import reliability
    from stmsi.tl._sample_metabolites import sample_metabolites
    from stmsi.tl._share_of_ceiling import share_of_ceiling

__all__ = [
    "abstention",
    "attention",
    "attribute",
    "attribution_checks",
    "compare_models",
    "cross_validate",
    "evaluate",
    "learnability",
    "noise_ceiling",
    "oversample",
    "predict_metabolites",
    "realism",
    "reliability",
    "sample_metabolites",
    "share_of_ceiling",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:
    return _getattr(name)

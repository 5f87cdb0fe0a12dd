"""Offered and measured, but not recommended or not settled: names here may change without notice."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.experimental._abstention import abstention
    from stmsi.experimental._attribution_checks import attribution_checks
    from stmsi.experimental._oversample import oversample
    from stmsi.experimental._plot_abstention import plot_abstention
    from stmsi.experimental._plot_realism import plot_realism
    from stmsi.experimental._predict_unseen import predict_unseen
    from stmsi.experimental._realism import realism

__all__ = [
    "abstention",
    "attribution_checks",
    "oversample",
    "plot_abstention",
    "plot_realism",
    "predict_unseen",
    "realism",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

"""Models that predict metabolites from genes in two stages: presence, then intensity."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.model._load import load
    from stmsi.model.ensemble._hurdle_ensemble import HurdleEnsemble
    from stmsi.model.linear._hurdle_kernel import HurdleKernel
    from stmsi.model.linear._hurdle_linear import HurdleLinear
    from stmsi.model.linear._hurdle_screened import HurdleScreened
    from stmsi.model.net._hurdle_net import HurdleNet

__all__ = [
    "HurdleEnsemble",
    "HurdleKernel",
    "HurdleLinear",
    "HurdleNet",
    "HurdleScreened",
    "load",
]

_getattr, __dir__ = lazy_attributes(
    __name__,
    names={
        "HurdleEnsemble": "ensemble._hurdle_ensemble",
        "HurdleKernel": "linear._hurdle_kernel",
        "HurdleLinear": "linear._hurdle_linear",
        "HurdleNet": "net._hurdle_net",
        "HurdleScreened": "linear._hurdle_screened",
        "load": "_load",
    },
)


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

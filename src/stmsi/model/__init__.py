"""Models that predict metabolites from genes in two stages: presence, then intensity."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.model._ensemble import HurdleEnsemble
    from stmsi.model._linear import HurdleLinear
    from stmsi.model._net import HurdleNet
    from stmsi.model._persist import load

__all__ = ["HurdleEnsemble", "HurdleLinear", "HurdleNet", "load"]

_getattr, __dir__ = lazy_attributes(
    __name__,
    names={"HurdleEnsemble": "_ensemble", "HurdleLinear": "_linear", "HurdleNet": "_net", "load": "_persist"},
)


def __getattr__(name: str) -> Any:
    return _getattr(name)

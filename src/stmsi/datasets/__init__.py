"""Data to try stmsi on: simulated sections with known truth."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.datasets._simulate import simulate, toy

__all__ = ["simulate", "toy"]

_getattr, __dir__ = lazy_attributes(__name__, names=dict.fromkeys(__all__, "_simulate"))


def __getattr__(name: str) -> Any:
    return _getattr(name)

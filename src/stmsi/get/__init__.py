"""Getters: what stmsi wrote, in the form other tools read."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.get._as_table import as_table
    from stmsi.get._feature_table import feature_table
    from stmsi.get._to_mudata import to_mudata

__all__ = ["as_table", "feature_table", "to_mudata"]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:
    return _getattr(name)

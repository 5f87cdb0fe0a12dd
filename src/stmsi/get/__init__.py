"""Getters: what stmsi wrote, in the form that other tools read."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi._data.feature_table import feature_table
    from stmsi.get._as_table import as_table
    from stmsi.get._to_mudata import to_mudata

__all__ = ["as_table", "feature_table", "to_mudata"]

_getattr, __dir__ = lazy_attributes(
    __name__, names={"as_table": "_as_table", "feature_table": "stmsi._data.feature_table", "to_mudata": "_to_mudata"}
)


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

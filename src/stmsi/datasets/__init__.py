"""Data to try stmsi on: simulated with known truth, or published deposits; and the table of core metabolites."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi._core.chemistry.core_metabolites import core_metabolites
    from stmsi.datasets._fetch_desium import fetch_desium
    from stmsi.datasets._fetch_sma import fetch_sma
    from stmsi.datasets._read_desium import read_desium
    from stmsi.datasets._read_magpie import read_magpie
    from stmsi.datasets._read_sma import read_sma
    from stmsi.datasets._simulate import simulate, toy

__all__ = ["core_metabolites", "fetch_desium", "fetch_sma", "read_desium", "read_magpie", "read_sma", "simulate", "toy"]

_elsewhere = {"core_metabolites": "stmsi._core.chemistry.core_metabolites", "toy": "_simulate"}
_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__} | _elsewhere)


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

"""Data to try stmsi on, simulated with known truth or published, and what is known of metabolites."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.datasets._core_metabolites import core_metabolites
    from stmsi.datasets._fetch_desium import fetch_desium
    from stmsi.datasets._fetch_sma import fetch_sma
    from stmsi.datasets._simulate import simulate, toy

__all__ = ["core_metabolites", "fetch_desium", "fetch_sma", "simulate", "toy"]

_getattr, __dir__ = lazy_attributes(
    __name__,
    names={
        "core_metabolites": "_core_metabolites",
        "fetch_desium": "_fetch_desium",
        "fetch_sma": "_fetch_sma",
        "simulate": "_simulate",
        "toy": "_simulate",
    },
)


def __getattr__(name: str) -> Any:
    return _getattr(name)

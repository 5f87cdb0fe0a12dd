"""Readers and a writer: files of the instruments and of public deposits become SpatialData objects."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.io._read_desium import read_desium
    from stmsi.io._read_imzml import read_imzml
    from stmsi.io._read_magpie import read_magpie
    from stmsi.io._read_metaspace import read_metaspace
    from stmsi.io._read_msi_table import read_msi_table
    from stmsi.io._read_sma import read_sma
    from stmsi.io._read_thyra import read_thyra
    from stmsi.io._read_visium import read_visium
    from stmsi.io._write_imzml import write_imzml

__all__ = [
    "read_desium",
    "read_imzml",
    "read_magpie",
    "read_metaspace",
    "read_msi_table",
    "read_sma",
    "read_thyra",
    "read_visium",
    "write_imzml",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

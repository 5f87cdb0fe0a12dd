"""Formats: one reader a file, and the writer of imzML. Readers return a SpatialData in the data model."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.io._read_imzml import read_imzml
    from stmsi.io._read_metaspace import read_metaspace
    from stmsi.io._read_msi_table import read_msi_table
    from stmsi.io._read_spata import read_spata
    from stmsi.io._read_thyra import read_thyra
    from stmsi.io._read_visium import read_visium
    from stmsi.io._write_imzml import write_imzml

__all__ = ["read_imzml", "read_metaspace", "read_msi_table", "read_spata", "read_thyra", "read_visium", "write_imzml"]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

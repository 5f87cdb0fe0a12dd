"""Plots: spots and pixels true to size in micrometres, spectra, predictions beside measurements, scores of models."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.pl._alignment import alignment
    from stmsi.pl._attention_heatmap import attention_heatmap
    from stmsi.pl._attention_spatial import attention_spatial
    from stmsi.pl._calibration import calibration
    from stmsi.pl._compare import compare
    from stmsi.pl._composite import composite
    from stmsi.pl._history import history
    from stmsi.pl._performance import performance
    from stmsi.pl._presence_curves import presence_curves
    from stmsi.pl._regions import regions
    from stmsi.pl._reliability import reliability
    from stmsi.pl._spatial import spatial
    from stmsi.pl._spectrum import spectrum

__all__ = [
    "alignment",
    "attention_heatmap",
    "attention_spatial",
    "calibration",
    "compare",
    "composite",
    "history",
    "performance",
    "presence_curves",
    "regions",
    "reliability",
    "spatial",
    "spectrum",
]

_getattr, __dir__ = lazy_attributes(__name__, names={name: f"_{name}" for name in __all__})


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

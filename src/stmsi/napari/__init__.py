"""Measured and predicted metabolites in napari: layers without Qt, a viewer with a docked widget, landmarks by clicks."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.napari._add_layers import add_layers
    from stmsi.napari._landmarks import landmark_layers, landmarks
    from stmsi.napari._metabolite_layers import metabolite_layers
    from stmsi.napari._overlay import overlay

__all__ = ["add_layers", "landmark_layers", "landmarks", "metabolite_layers", "overlay"]

_getattr, __dir__ = lazy_attributes(__name__, names={n: f"_{n}" for n in __all__} | {"landmark_layers": "_landmarks"})


def __getattr__(name: str) -> Any:
    return _getattr(name)

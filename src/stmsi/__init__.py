"""Predict spatial metabolomics from spatial transcriptomics.

Submodules are imported when they are first used, so that ``import stmsi`` stays fast: none of torch, scvi-tools,
squidpy, matplotlib or napari is loaded until a function needs it.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes
from stmsi._settings import settings

if TYPE_CHECKING:
    from stmsi import datasets, experimental, get, io, metrics, model, model_selection, napari, pl, pp, tl

__all__ = [
    "datasets",
    "experimental",
    "get",
    "io",
    "metrics",
    "model",
    "model_selection",
    "napari",
    "pl",
    "pp",
    "settings",
    "tl",
]
__version__ = version("stmsi")

_getattr, __dir__ = lazy_attributes(__name__, submodules=[name for name in __all__ if name != "settings"])


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

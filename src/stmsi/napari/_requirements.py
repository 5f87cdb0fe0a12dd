"""What napari needs: packages and a display."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from stmsi._lazy import missing_extra

EXTRA = "napari"
_WITHOUT_SCREEN = ("offscreen", "minimal", "vnc")


def require_napari(*packages: str) -> None:
    """Raise where napari, or another package of its extra, is not installed."""
    for package in ("napari", *packages):
        if find_spec(package) is None:
            raise missing_extra(package, EXTRA)


def require_window() -> None:
    """Raise where no window can be opened, before Qt ends the process."""
    require_napari("napari_spatialdata", "qtpy")
    if not any(find_spec(binding) for binding in ("PyQt6", "PySide6", "PyQt5", "PySide2")):
        raise missing_extra("PyQt6", EXTRA)
    platform = os.environ.get("QT_QPA_PLATFORM", "").split(":")[0]
    if not sys.platform.startswith("linux") or platform in _WITHOUT_SCREEN:
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        msg = (
            "No display to open napari on (neither DISPLAY nor WAYLAND_DISPLAY is set). On a machine without a screen, run "
            "the program under a virtual one: xvfb-run -a python script.py. QT_QPA_PLATFORM=offscreen starts Qt too, but "
            "without OpenGL nothing is drawn. Without any window: stmsi.napari.metabolite_layers with napari's ViewerModel, "
            "or stmsi.pl.compare."
        )
        raise RuntimeError(msg)

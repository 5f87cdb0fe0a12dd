"""What the widgets share: they find a SpatialData in the viewer, or open one from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

if TYPE_CHECKING:
    from spatialdata import SpatialData

WIDTH = 300
"""Smallest width of a widget, in pixels: the rest is for the canvas."""


class DataWidget(QWidget):
    """A widget over a SpatialData. Without one it says so and offers to open one; then its controls appear."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.notice = text_label("")
        self.open_button, self.retry = QPushButton("Open SpatialData (.zarr) ..."), QPushButton("Look for data again")
        self.open_button.clicked.connect(self._on_open)
        self.retry.clicked.connect(self.find_data)
        self.controls = QWidget()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        for part in (self.notice, self.open_button, self.retry, self.controls):
            layout.addWidget(part)
        self.setMinimumWidth(WIDTH)

    def use(self, sdata: SpatialData) -> None:
        """Take a SpatialData and show the controls; raises KeyError or ValueError where it lacks what the widget shows."""
        raise NotImplementedError

    def event(self, event: QEvent) -> bool:
        """Qt's own; napari takes a widget out of its dock when the dock is closed."""
        out = bool(super().event(event))
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.closed()
        return out

    def closed(self) -> None:
        """What follows when the dock is closed."""

    def find_data(self) -> None:
        """Take the first SpatialData in the viewer that has what the widget shows."""
        found = find_spatialdata(self.viewer)
        if not found:
            self.say("No SpatialData in this viewer. Open one here, or with stmsi.napari.overlay(sdata) in Python.")
        for sdata in found:
            if self._try(sdata):
                break

    def open_data(self, path: str | Path) -> None:
        """Read a SpatialData from disk and take it."""
        from spatialdata import read_zarr

        try:
            sdata = read_zarr(path)
        except Exception as error:  # noqa: BLE001  whatever a folder that is no such store makes zarr raise
            self.say(f"{path} could not be read as a SpatialData: {error}")
            return
        self._try(sdata)

    def say(self, text: str) -> None:
        """Show why there is nothing to see."""
        self.notice.setText(text)
        self.show_controls(False)

    def show_controls(self, there: bool) -> None:
        """The controls, or the notice with its buttons."""
        self.controls.setVisible(there)
        for part in (self.notice, self.open_button, self.retry):
            part.setVisible(not there)

    def _try(self, sdata: SpatialData) -> bool:
        try:
            self.use(sdata)
        except (KeyError, ValueError) as error:  # the tables may lack metabolites, or sections
            self.say(str(error.args[0]))
            return False
        return True

    def _on_open(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "SpatialData, a folder with the ending .zarr")
        if path:
            self.open_data(path)


def find_spatialdata(viewer: Any) -> list[SpatialData]:
    """SpatialData that layers of a viewer show, or that a docked widget (ours, or napari-spatialdata's) holds."""
    found = [layer.metadata["sdata"] for layer in viewer.layers if layer.metadata.get("sdata") is not None]
    docks = getattr(getattr(viewer, "window", None), "dock_widgets", {})
    for widget in dict(docks).values():
        held = getattr(widget, "_sdata", None)
        found += [held] if hasattr(held, "tables") else [s for s in held or () if hasattr(s, "tables")]
    return list({id(sdata): sdata for sdata in found}.values())


@contextmanager
def silent(*widgets: Any) -> Iterator[None]:
    """Block the signals of widgets while their values are set."""
    before = [w.blockSignals(True) for w in widgets]
    try:
        yield
    finally:
        for widget, was in zip(widgets, before, strict=True):
            widget.blockSignals(was)


def with_ending(path: str | Path, ending: str) -> Path:
    """A path as it was typed, with an ending added where it is missing; ``.107`` in ``104.107`` is no ending."""
    path = Path(path)
    return path if path.suffix == ending else path.with_name(path.name + ending)


def text_label(text: str) -> QLabel:
    """A label with line breaks."""
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def in_row(*parts: QWidget) -> QWidget:
    """Widgets beside each other."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        layout.addWidget(part)
    return row

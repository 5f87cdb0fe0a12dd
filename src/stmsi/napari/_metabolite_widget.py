"""The docked widget: controls over a :class:`~stmsi.napari._metabolite_view.MetaboliteView`, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QStringListModel, Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListView,
    QPushButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from stmsi.napari._metabolite_maps import MODES, PPM, MetaboliteMaps
from stmsi.napari._metabolite_view import STYLES, MetaboliteView, show_scale_bar

if TYPE_CHECKING:
    from stmsi.napari._spot_description import Spot

_STEPS = 100
_COLOUR_OF_TIER = {"high": "#4dac26", "medium": "#b8a100", "low": "#e08214", "none": "#d7301f"}


class MetaboliteWidget(QWidget):
    """Choose section and metabolite, compare, and ask spots.

    napari fills in `napari_viewer` when the widget is opened from its menu; without a `view` the widget looks for a
    SpatialData in the layers of napari-spatialdata. `on_section` is called with the section that was chosen.
    """

    def __init__(
        self, napari_viewer: Any, *, view: MetaboliteView | None = None, on_section: Callable[[str], None] | None = None
    ) -> None:
        super().__init__()
        self.viewer, self.view, self.on_section = napari_viewer, view, on_section
        self.elements: Any = None  # what napari-spatialdata docked beside it
        self._build()
        if view is None:
            self.find_data()
        else:
            self._fill()

    # -- Layout ---------------------------------------------------------------

    def _build(self) -> None:
        self.notice = _text("")
        self.retry = QPushButton("Look for data again")
        self.retry.clicked.connect(self.find_data)
        self.section, self.mode, self.style_of_mix = QComboBox(), QComboBox(), QComboBox()
        self.search = QLineEdit(placeholderText="name or m/z")
        self.ppm = QDoubleSpinBox(minimum=0.1, maximum=1000.0, value=PPM, decimals=1, suffix=" ppm")
        self.ppm.setToolTip("How far an ion may lie from the m/z that is searched for")
        self.list = QListView(editTriggers=QAbstractItemView.EditTrigger.NoEditTriggers)
        self.list.setUniformItemSizes(True)  # thousands of rows
        self.list.setMinimumHeight(90)
        self.names = QStringListModel()
        self.list.setModel(self.names)
        self.trust = _text("")
        self.mix, self.threshold = _slider(), _slider()
        self.mix.setToolTip("Left: measured. Right: predicted.")
        self.threshold.setToolTip("Spots whose P(present) is lower count as absent: they are predicted as 0.")
        self.threshold_label = QLabel("0.00")
        self.spot = _text("Click a spot for its values.")
        self.spot.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.save = QPushButton("Save view as PNG ...")

        above, below, self.controls = QFormLayout(), QFormLayout(), QWidget()
        above.addRow("Section", self.section)
        above.addRow("Search", _row(self.search, self.ppm))
        below.addRow("Trust", self.trust)
        below.addRow("Show", self.mode)
        below.addRow("Compare by", self.style_of_mix)
        below.addRow(_row(QLabel("measured"), self.mix, QLabel("predicted")))
        below.addRow("P(present) from", _row(self.threshold, self.threshold_label))
        inside = QVBoxLayout(self.controls)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.addLayout(above)
        inside.addWidget(self.list, stretch=1)
        inside.addLayout(below)
        inside.addWidget(self.spot)
        inside.addWidget(self.save)
        layout = QVBoxLayout(self)
        for part in (self.notice, self.retry, self.controls):
            layout.addWidget(part)
        self.setMinimumWidth(330)

        self.style_of_mix.addItems(STYLES)
        self.section.currentTextChanged.connect(self._on_section)
        self.search.textChanged.connect(self._on_search)
        self.ppm.valueChanged.connect(self._on_search)
        self.list.selectionModel().currentChanged.connect(self._on_metabolite)
        self.mode.currentIndexChanged.connect(self._on_mode)
        self.style_of_mix.currentTextChanged.connect(self._on_mix)
        self.mix.valueChanged.connect(self._on_mix)
        self.threshold.valueChanged.connect(self._on_threshold)
        self.save.clicked.connect(self._on_save)

    def _fill(self) -> None:
        """Put the state of the view into the controls."""
        view = self.view
        self.controls.setVisible(view is not None)
        self.retry.setVisible(view is None)
        self.notice.setVisible(view is None)
        if view is None:
            return
        view.on_pick.append(self._on_pick)
        with _silent(self.section, self.mode, self.mix, self.threshold, self.style_of_mix):
            self.section.clear()
            self.section.addItems(view.source.sections)
            self.section.setCurrentText(view.section.name)
            self.mode.clear()
            for mode in view.source.modes:
                self.mode.addItem(", ".join(MODES[mode]), mode)
            self.mode.setCurrentIndex(view.source.modes.index(view.mode))
            self.mix.setValue(round(view.mix * _STEPS))
            self.threshold.setValue(round(view.threshold * _STEPS))
        self._on_search()
        self._refresh()

    def find_data(self) -> None:
        """Take the SpatialData that layers of the viewer belong to."""
        found = next((layer.metadata["sdata"] for layer in self.viewer.layers if "sdata" in layer.metadata), None)
        if found is None:
            self.notice.setText(
                "No SpatialData in this viewer. Open one with stmsi.napari.overlay(sdata), or show one of its elements with "
                "napari-spatialdata, and look again."
            )
        else:
            try:
                self.view = MetaboliteView(self.viewer, MetaboliteMaps(found))
                show_scale_bar(self.viewer)
            except (KeyError, ValueError) as error:  # the table may lack metabolites, or sections
                self.notice.setText(str(error.args[0]))
        self._fill()

    # -- What the user does ---------------------------------------------------

    def _on_section(self, name: str) -> None:
        self.view.show_section(name)  # type: ignore[union-attr]
        if self.on_section is not None:
            self.on_section(name)
        self.viewer.reset_view()
        self._refresh()

    def _on_search(self) -> None:
        source = self.view.source  # type: ignore[union-attr]
        text = self.search.text()
        self.found = source.search(text, ppm=self.ppm.value())
        self.list.setToolTip("" if self.found else f"Nothing matches {text!r}")
        with _silent(self.list.selectionModel()):
            self.names.setStringList([source.describe(i) for i in self.found])
        self._select(self.view.metabolite)  # type: ignore[union-attr]

    def _select(self, metabolite: str) -> None:
        """Mark a metabolite in the list without choosing it again."""
        if metabolite in self.found:
            with _silent(self.list.selectionModel()):
                self.list.setCurrentIndex(self.names.index(self.found.index(metabolite), 0))
            self.list.viewport().update()

    def _on_metabolite(self, index: Any) -> None:
        if not index.isValid():
            return
        self.view.show_metabolite(self.found[index.row()])  # type: ignore[union-attr]
        self._refresh()

    def _on_mode(self) -> None:
        self.view.show_mode(self.mode.currentData())  # type: ignore[union-attr]
        self._refresh()

    def _on_mix(self) -> None:
        self.view.show_mix(self.mix.value() / _STEPS, self.style_of_mix.currentText())  # type: ignore[union-attr]

    def _on_threshold(self, value: int) -> None:
        self.threshold_label.setText(f"{value / _STEPS:.2f}")
        self.view.show_threshold(value / _STEPS)  # type: ignore[union-attr]

    def _on_pick(self, spot: Spot) -> None:
        rows = (f"<tr><td><i>{escape(k)}</i>&nbsp;</td><td>{escape(v)}</td></tr>" for k, v in spot.lines())
        self.spot.setText(f"<table>{''.join(rows)}</table>")

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the view", f"{self.view.metabolite}.png", "PNG (*.png)")  # type: ignore[union-attr]
        if path:
            self.export(path)

    def export(self, path: str | Path) -> None:
        """Write what the canvas shows as PNG, with title, colour bar and scale bar."""
        QApplication.processEvents()  # a canvas that was not drawn yet has no picture
        self.viewer.screenshot(str(Path(path).with_suffix(".png")), canvas_only=True, flash=False)

    def _refresh(self) -> None:
        """What follows from the state of the view."""
        view = self.view
        assert view is not None
        tier, reason = view.source.trust(view.metabolite)
        judged = f'<b style="color:{_COLOUR_OF_TIER.get(tier, "")}">{escape(tier)}</b> {escape(reason)}'
        self.trust.setText(judged if tier else "not judged (stmsi.tl.reliability)")
        for part in (self.mix, self.style_of_mix):
            part.setEnabled(view.can_mix)
        self.style_of_mix.setToolTip("" if view.can_swipe else "Outlines cannot be swiped, only blended")
        self.threshold.setEnabled("presence" in view.source.modes)
        if view.picked is not None:
            self._on_pick(view.describe(view.picked))
        else:
            self.spot.setText("Click a spot for its values.")


@contextmanager
def _silent(*widgets: Any) -> Iterator[None]:
    """Block the signals of widgets while their values are set."""
    before = [w.blockSignals(True) for w in widgets]
    yield
    for widget, was in zip(widgets, before, strict=True):
        widget.blockSignals(was)


def _text(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def _slider() -> QSlider:
    return QSlider(Qt.Orientation.Horizontal, minimum=0, maximum=_STEPS)


def _row(*parts: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        layout.addWidget(part)
    return row

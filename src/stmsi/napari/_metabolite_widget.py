"""The docked widget: controls over a :class:`~stmsi.napari._metabolite_view.MetaboliteView`, and nothing else."""

from __future__ import annotations

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
    QLabel,
    QLineEdit,
    QListView,
    QPushButton,
    QSlider,
    QVBoxLayout,
)

from stmsi.napari._canvas import fit_view, show_scale_bar
from stmsi.napari._data_widget import DataWidget, in_row, silent, text_label, with_ending
from stmsi.napari._elements import close_stale, show_elements
from stmsi.napari._metabolite_maps import MODES, PPM, MetaboliteMaps
from stmsi.napari._metabolite_view import BESIDE, STYLES, MetaboliteView

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget
    from spatialdata import SpatialData

    from stmsi.napari._spot_description import Spot

_STEPS = 100
_NO_SPOT = "Click a spot for its values."
_COLOUR_OF_TIER = {"high": "#4dac26", "medium": "#b8a100", "low": "#e08214", "none": "#d7301f"}
_MODE_NAMES = {
    "compare": "measured, predicted",
    "residual": "predicted - measured",
    "uncertainty": "interval width",
    "presence": "P(present)",
}


class MetaboliteWidget(DataWidget):
    """Choose section and metabolite, compare, and ask spots.

    napari fills in `napari_viewer` when the widget is opened from its menu; without a `view` the widget looks for a
    SpatialData in the viewer.
    """

    def __init__(self, napari_viewer: Any, *, view: MetaboliteView | None = None) -> None:
        super().__init__(napari_viewer)
        self.view = view
        self._build()
        if view is None:
            self.find_data()
        else:
            self._fill()
            self.show_controls(True)

    # -- Layout ---------------------------------------------------------------

    def _build(self) -> None:
        self.section, self.mode, self.style_of_mix = QComboBox(), QComboBox(), QComboBox()
        self.search = QLineEdit(placeholderText="name or m/z")
        self.search.setClearButtonEnabled(True)
        self.ppm = QDoubleSpinBox(minimum=0.1, maximum=1000.0, value=PPM, decimals=0, suffix=" ppm")
        self.ppm.setFixedWidth(110)
        self.ppm.setToolTip("How far an ion may lie from the m/z that is searched for")
        self.list = QListView(editTriggers=QAbstractItemView.EditTrigger.NoEditTriggers)
        self.list.setUniformItemSizes(True)  # thousands of rows
        self.list.setMinimumHeight(90)
        self.names = QStringListModel()
        self.list.setModel(self.names)
        self.answer = text_label("")
        self.trust = text_label("")
        self.mix, self.threshold = _slider(), _slider()
        self.mix.setToolTip("Left: measured. Right: predicted.")
        self.threshold.setToolTip("Spots whose P(present) is lower count as absent: they are predicted as 0.")
        self.threshold_label = QLabel("0.00")
        self.spot = text_label(_NO_SPOT)
        self.spot.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.save, self.elements = QPushButton("Save PNG ..."), QPushButton("Genes, elements ...")
        self.elements.setToolTip("Dock the widgets of napari-spatialdata: elements of the SpatialData, spots by genes")
        self.mix_row = in_row(QLabel("measured"), self.mix, QLabel("predicted"))

        above, self.form = QFormLayout(), QFormLayout()
        above.addRow("Section", self.section)
        above.addRow("Search", in_row(self.search, self.ppm))
        for label, part in (
            ("Trust", self.trust),
            ("Show", self.mode),
            ("Compare", self.style_of_mix),
            (None, self.mix_row),
            ("P(present) \u2265", in_row(self.threshold, self.threshold_label)),
        ):
            self.form.addRow(*([part] if label is None else [label, part]))
        inside = QVBoxLayout(self.controls)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(4)
        inside.addLayout(above)
        inside.addWidget(self.answer)
        inside.addWidget(self.list, stretch=1)
        inside.addLayout(self.form)
        inside.addWidget(self.spot)
        inside.addWidget(in_row(self.save, self.elements))

        self.style_of_mix.addItems(STYLES)
        self.section.currentTextChanged.connect(self._on_section)
        self.search.textChanged.connect(self._on_search)
        self.ppm.valueChanged.connect(self._on_search)
        self.list.selectionModel().currentChanged.connect(self._on_metabolite)
        self.mode.currentIndexChanged.connect(self._on_mode)
        self.style_of_mix.currentTextChanged.connect(self._on_style)
        self.mix.valueChanged.connect(self._on_mix)
        self.threshold.valueChanged.connect(self._on_threshold)
        self.save.clicked.connect(self._on_save)
        self.elements.clicked.connect(self.open_elements)

    def _fill(self) -> None:
        """Put the state of the view into the controls."""
        view = self.view
        assert view is not None
        view.on_pick.append(self._on_pick)
        with silent(self.section, self.mix, self.threshold, self.style_of_mix):
            self.section.clear()
            self.section.addItems(view.source.sections)
            self.section.setCurrentText(view.section.name)
            self.mix.setValue(round(view.mix * _STEPS))
            self.threshold.setValue(round(view.threshold * _STEPS))
        self._fill_modes()
        self._on_search()
        self._refresh()

    def _fill_modes(self) -> None:
        view = self.view
        assert view is not None
        with silent(self.mode):
            self.mode.clear()
            for mode in view.modes:
                both = mode != "compare" or set(MODES[mode]) <= set(view.layers)
                self.mode.addItem(_MODE_NAMES[mode] if both else next(r for r in MODES[mode] if r in view.layers), mode)
            self.mode.setCurrentIndex(view.modes.index(view.mode))

    @property
    def _sdata(self) -> Any:
        """What other widgets may take as well."""
        return None if self.view is None else self.view.source.data

    def use(self, sdata: SpatialData) -> None:
        """Show a SpatialData in the viewer."""
        source = MetaboliteMaps(sdata)
        if self.view is not None:
            self.view.close()
        close_stale(self.viewer, sdata)
        self.view = MetaboliteView(self.viewer, source, histology=True)
        show_scale_bar(self.viewer)
        fit_view(self.viewer)
        self._fill()
        self.show_controls(True)

    # -- What the user does ---------------------------------------------------

    def _on_section(self, name: str) -> None:
        view = self.view
        assert view is not None
        view.show_section(name)
        self._fill_modes()
        fit_view(self.viewer)
        self._refresh()

    def _on_search(self) -> None:
        source = self.view.source  # type: ignore[union-attr]
        text = self.search.text()
        self.found = source.search(text, ppm=self.ppm.value())
        answer = ""
        if not self.found:
            self.found = source.nearest(text)
            near = ", ".join(source.describe(i) for i in self.found[:3])
            answer = f"Nothing found for {text!r}." + (f" Nearest: {near}" if near else "")
        self.answer.setText(answer)
        self.answer.setVisible(bool(answer))
        with silent(self.list.selectionModel()):
            self.names.setStringList([source.describe(i) for i in self.found])
        self._select(self.view.metabolite)  # type: ignore[union-attr]

    def _select(self, metabolite: str) -> None:
        """Mark a metabolite in the list without choosing it again."""
        if metabolite in self.found:
            with silent(self.list.selectionModel()):
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

    def _on_style(self) -> None:
        was = self.view.style  # type: ignore[union-attr]
        self._on_mix()
        if BESIDE in (was, self.view.style):  # type: ignore[union-attr]
            fit_view(self.viewer)  # two boxes are narrower than one
        self._refresh()

    def _on_mix(self) -> None:
        self.view.show_mix(self.mix.value() / _STEPS, self.style_of_mix.currentText())  # type: ignore[union-attr]

    def _on_threshold(self, value: int) -> None:
        self.threshold_label.setText(f"{value / _STEPS:.2f}")
        self.view.show_threshold(value / _STEPS)  # type: ignore[union-attr]

    def _on_pick(self, spot: Spot | None) -> None:
        if spot is None:  # beside all spots
            self.spot.setText(_NO_SPOT)
            return
        rows = (f"<tr><td><i>{escape(k)}</i>&nbsp;</td><td>{escape(v)}</td></tr>" for k, v in spot.lines())
        self.spot.setText(f"<table>{''.join(rows)}</table>")

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the view", f"{self.view.metabolite}.png", "PNG (*.png)")  # type: ignore[union-attr]
        if path:
            self.export(path)

    def export(self, path: str | Path) -> None:
        """Write what the canvas shows as PNG, with title, colour bar and scale bar."""
        QApplication.processEvents()  # a canvas that was not drawn yet has no picture
        self.viewer.screenshot(str(with_ending(path, ".png")), canvas_only=True, flash=False)

    def open_elements(self) -> None:
        """Dock the widgets of napari-spatialdata."""
        view = self.view
        assert view is not None
        show_elements(self.viewer, view.source.data, view.section.name)

    def _refresh(self) -> None:
        """What follows from the state of the view."""
        view = self.view
        assert view is not None
        tier, reason = view.source.trust(view.metabolite)
        judged = f'<b style="color:{_COLOUR_OF_TIER.get(tier, "")}">{escape(tier)}</b> {escape(reason)}'
        self.trust.setText(judged if tier else "not judged (stmsi.tl.reliability)")
        self._show_row(self.style_of_mix, view.can_mix)
        self._show_row(self.mix_row, view.style not in ("", BESIDE))
        self.style_of_mix.setToolTip("" if view.can_swipe else "Outlines cannot be swiped: they are shown side by side")
        self.threshold.setEnabled("presence" in view.modes)
        self._on_pick(None if view.picked is None else view.describe(view.picked))

    def _show_row(self, part: QWidget, there: bool) -> None:
        part.setVisible(there)
        label = self.form.labelForField(part)
        if label is not None:
            label.setVisible(there)


def _slider() -> QSlider:
    return QSlider(Qt.Orientation.Horizontal, minimum=0, maximum=_STEPS)

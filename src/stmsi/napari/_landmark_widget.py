"""The docked widget for landmarks: controls over :class:`~stmsi.napari._landmark_pairs.LandmarkPairs`, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QCompleter, QFileDialog, QFormLayout, QPushButton, QVBoxLayout

from stmsi._core.registration.landmarks import MODELS
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.napari._data_widget import DataWidget, in_row, silent, text_label, with_ending
from stmsi.napari._landmark_pairs import SHOWN, LandmarkPairs
from stmsi.napari._metabolite_layers import OWN
from stmsi.pl._metabolite_layers import table_samples

if TYPE_CHECKING:
    from spatialdata import SpatialData

_TOTAL = "all (sum)"
_CLICKED: WeakKeyDictionary[SpatialData, dict[str, dict[str, Any]]] = WeakKeyDictionary()
"""Clicks of every section, kept as long as the data are: no click is lost when the dock is closed."""
_MODEL_NAMES = {model: model.replace("_", "-") for model in MODELS}


class LandmarkWidget(DataWidget):
    """Click landmarks in pairs, see how well they agree, and align. napari fills in `napari_viewer`."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._sdata: SpatialData | None = None
        self.pairs: LandmarkPairs | None = None
        self._clicked: dict[str, dict[str, Any]] = {}
        self._build()
        self.find_data()

    def _build(self) -> None:
        self.section, self.ion, self.gene, self.model, self.shown = (QComboBox() for _ in range(5))
        for box in (self.ion, self.gene):
            box.setEditable(True)  # thousands of names: part of one finds it
            box.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
            completer = box.completer() or QCompleter(box.model(), box)
            completer.setFilterMode(Qt.MatchFlag.MatchContains)
            completer.setCompletionMode(QCompleter.CompletionMode.PopupCompletion)
            box.setCompleter(completer)
        for model, name in _MODEL_NAMES.items():
            self.model.addItem(name, model)
        self.model.setCurrentIndex(MODELS.index("similarity"))
        self.shown.addItems(SHOWN)
        self.next, self.undo = QPushButton("Next pair"), QPushButton("Undo")
        self.align, self.save = QPushButton("Align"), QPushButton("Save as .zarr ...")
        self.next.setToolTip("Click a place in MSI on the left, then the same place in ST on the right, and so on")
        self.report, self.outcome = text_label(""), text_label("")
        form = QFormLayout()
        for label, part in (
            ("Section", self.section),
            ("Ion", self.ion),
            ("Gene", self.gene),
            ("Model", self.model),
            ("Show", self.shown),
        ):
            form.addRow(label, part)
        inside = QVBoxLayout(self.controls)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(4)
        inside.addLayout(form)
        for part in (in_row(self.next, self.undo), self.report, in_row(self.align, self.save), self.outcome):
            inside.addWidget(part)
        inside.addStretch(1)
        for box in (self.section, self.ion, self.gene):
            box.currentIndexChanged.connect(self._start)
        self.model.currentIndexChanged.connect(self._on_model)
        self.shown.currentTextChanged.connect(self._on_shown)
        self.next.clicked.connect(self._on_next)
        self.undo.clicked.connect(self._on_undo)
        self.align.clicked.connect(self._on_align)
        self.save.clicked.connect(self._on_save)

    def use(self, sdata: SpatialData) -> None:
        """Take a SpatialData with ST and MSI; raises KeyError where a table or all pixels are missing."""
        st, msi = get_table(sdata, Key.table.ST), get_table(sdata, Key.table.MSI)
        sections = [s for s in table_samples(st, Key.obs.SAMPLE, None) if Key.pixels(s) in sdata.shapes]
        if not sections:
            msg = "No section of this SpatialData has MSI pixels to click landmarks on."
            raise KeyError(msg)
        self._put_away()
        shown = [layer.metadata.get(OWN, {}).get("sample") for layer in self.viewer.layers if layer.visible]
        self._sdata, self.pairs, self._clicked = sdata, None, _CLICKED.setdefault(sdata, {})
        with silent(self.section, self.ion, self.gene):
            for box, names in ((self.section, sections), (self.ion, msi.var_names), (self.gene, st.var_names)):
                box.clear()
                box.addItems([*([] if box is self.section else [_TOTAL]), *map(str, names)])
            self.section.setCurrentText(next((s for s in shown if s in sections), sections[0]))
        self._start()
        self.show_controls(True)

    def _start(self) -> None:
        """Layers of the section, ion and gene that are chosen; the clicks of every section are kept."""
        if self._sdata is None:
            return
        sample = self.section.currentText()
        self._put_away()
        ion, gene = (None if b.currentIndex() <= 0 else b.itemText(b.currentIndex()) for b in (self.ion, self.gene))
        self.pairs = LandmarkPairs(
            self.viewer, self._sdata, sample, ion=ion, gene=gene, model=self.model.currentData()
        )  # fmt: skip
        for side, places in self._clicked.get(sample, {}).items():
            self.pairs.clicks[side].data = places
        self.pairs.on_change.append(self._tell)
        with silent(self.shown):
            self.shown.setCurrentText("landmarks")
        self._tell()

    def _put_away(self) -> None:
        """Remove the layers, and keep their clicks."""
        if self.pairs is not None:
            self._clicked[self.pairs.sample] = {side: layer.data.copy() for side, layer in self.pairs.clicks.items()}
            self.pairs.close()
            self.pairs = None

    def closed(self) -> None:
        """Show again what the window showed before; a new widget finds the clicks."""
        self._put_away()

    def _tell(self) -> None:
        self.report.setText("\n".join(self.pairs.report()))  # type: ignore[union-attr]
        with silent(self.shown):
            self.shown.setCurrentText(self.pairs.shown)  # type: ignore[union-attr]

    def _on_next(self) -> None:
        self.pairs.next_pair()  # type: ignore[union-attr]
        self._tell()

    def _on_undo(self) -> None:
        self.pairs.undo()  # type: ignore[union-attr]
        self._tell()

    def _on_model(self) -> None:
        if self.pairs is not None:
            self.pairs.model = self.model.currentData()
            self._tell()

    def _on_shown(self, what: str) -> None:
        self._attempt(lambda: self.pairs.show(what))  # type: ignore[union-attr]

    def _on_align(self) -> None:
        self.pairs.pause()  # type: ignore[union-attr]
        done = (
            f"Aligned {self.pairs.sample}; MSI is shown where it lies now. "  # type: ignore[union-attr]
            "Metabolites on the spots do not change: call stmsi.pp.map_to_spots (again)."
        )
        self._attempt(self.pairs.align, done)  # type: ignore[union-attr]

    def _attempt(self, do: Any, done: str = "") -> None:
        try:
            do()
        except (KeyError, ValueError) as error:
            done = str(error.args[0])
        self.outcome.setText(done)
        self._tell()

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the SpatialData", "aligned.zarr", "SpatialData (*.zarr)")
        if path:
            self.write(path)

    def write(self, path: str | Path) -> None:
        """Write the SpatialData with its alignment to a new store."""
        path = with_ending(path, ".zarr")
        try:
            self._sdata.write(path)  # type: ignore[union-attr]
        except (OSError, ValueError) as error:  # there is a store of this name, or the disk is full
            self.outcome.setText(f"{path} was not written: {error}")
        else:
            self.outcome.setText(f"Written to {path}.")

"""Landmarks clicked pair by pair in a viewer, and the alignment that they give; without Qt."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.registration.landmarks import MODELS, Fit, apply_affine, fit_landmarks
from stmsi._data.checks import check_choice, require_spatialdata
from stmsi._data.elements import matrix_to
from stmsi._data.keys import Key
from stmsi.napari._add_layers import add_layers
from stmsi.napari._canvas import (
    at_once,
    canvas_grid,
    canvas_overlay,
    fit_view,
    place_scale_bar,
    show_scale_bar,
    write_title,
)
from stmsi.napari._histology import histology_layer
from stmsi.napari._landmarks import landmark_layers, landmarks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.registration.landmarks import TransformModel

SIDES = ("msi", "st")
SHOWN = ("landmarks", "before", "after")
"""Both sides beside each other for clicking, or MSI laid over ST: as it was, and as the landmarks place it."""
LAID_OVER = "MSI over ST"
_HANDED = 3
"""Pairs that an alignment takes: two would fit a section and its mirror image alike."""


class LandmarkPairs:
    """The landmarks of one section in a viewer. A click in MSI waits for its click in ST, and so on in turn."""

    def __init__(
        self,
        viewer: Any,
        sdata: SpatialData,
        sample: str | None = None,
        *,
        ion: str | None = None,
        gene: str | None = None,
        model: TransformModel = "similarity",
    ) -> None:
        require_spatialdata(sdata)
        check_choice(model, MODELS, "model")
        data = landmark_layers(sdata, sample=sample, ion=ion, gene=gene)
        self.viewer, self.sdata, self.model = viewer, sdata, model
        self.sample = data[2][1]["metadata"]["stmsi"]["sample"]
        self.on_change: list[Callable[[], None]] = []
        self.shown = SHOWN[0]
        offset = np.asarray(data[1][1]["translate"], dtype=float)
        self._offset, self._before = offset[::-1], self._known_map(data)
        under = histology_layer(sdata, self.sample)
        if under is not None:
            image, options, kind = under
            moved = np.eye(3)
            moved[:2, 2] = offset
            data.insert(1, (image, {**options, "affine": moved @ options["affine"]}, kind))
            data[2] = (data[2][0], data[2][1] | {"opacity": 0.4}, data[2][2])
        self._hidden = [layer for layer in viewer.layers if layer.visible]
        self._earlier = (
            canvas_grid(viewer).enabled,
            canvas_overlay(viewer, "text").text,
            viewer.layers.selection.active,
        )
        canvas_grid(viewer).enabled = False
        for layer in self._hidden:
            layer.visible = False
        with at_once(viewer):
            self.layers = add_layers(viewer, data)
            over = {**data[0][1], "name": LAID_OVER, "visible": False, "opacity": 0.7, "metadata": {}}
            (self._over,) = add_layers(viewer, [(data[0][0], over, "points")])
        self.pixels = self.layers[0]
        self.clicks = dict(zip(SIDES, self.layers[-2:], strict=True))
        for layer in self.clicks.values():
            layer.events.data.connect(self._on_data)
        write_title(viewer, f"section {self.sample}: MSI on the left, ST on the right")
        show_scale_bar(viewer)
        place_scale_bar(viewer, beside=False)
        fit_view(viewer, bars=False)

    # -- Clicking -------------------------------------------------------------

    @property
    def counts(self) -> tuple[int, int]:
        """Landmarks in MSI and in ST."""
        return len(self.clicks["msi"].data), len(self.clicks["st"].data)

    @property
    def turn(self) -> str:
        """Side on which the next click belongs."""
        n_msi, n_st = self.counts
        return "st" if n_msi > n_st else "msi"

    def next_pair(self) -> None:
        """Take clicks: the layer whose turn it is becomes the one that points are added to."""
        self.show("landmarks")
        layer = self.clicks[self.turn]
        self.viewer.layers.selection.active = layer
        layer.mode = "add"

    def pause(self) -> None:
        """Take no clicks, and let the pointer move the canvas."""
        for layer in self.clicks.values():
            layer.mode = "pan_zoom"

    def undo(self) -> None:
        """Take the last click back."""
        n_msi, n_st = self.counts
        layer = self.clicks["msi" if n_msi > n_st else "st"]
        clicking = any(side.mode == "add" for side in self.clicks.values())
        if len(layer.data):
            layer.data = layer.data[:-1]
        if clicking:
            self.next_pair()

    # -- Fit and report -------------------------------------------------------

    @property
    def pairs(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Complete pairs: x and y (um) in the MSI and in the ST frame, shape (n, 2) each."""
        n = min(self.counts)
        msi, st = (np.asarray(self.clicks[side].data, dtype=float).reshape(-1, 2)[:n, ::-1] for side in SIDES)
        return msi, st

    def fit(self) -> Fit | None:
        """The alignment by the pairs so far, with their leave-one-out errors; `None` where there is none yet."""
        return self._fit()[0]

    def _fit(self) -> tuple[Fit | None, str]:
        """The fit, or why there is none."""
        msi, st = self.pairs
        if len(msi) < _HANDED:
            return None, "No alignment yet: it takes three pairs that are not on a line, and six are better."
        try:
            return fit_landmarks(msi, st, self.model), ""
        except ValueError as error:
            return None, f"No alignment yet: {error}"

    def report(self) -> list[str]:
        """Lines for the user: the next step, the leave-one-out errors, and warnings."""
        n_msi, n_st = self.counts
        n = min(n_msi, n_st)
        where = {"msi": "the MSI section, on the left", "st": "the same place in the ST section, on the right"}
        out = [f"{n} {'pair' if n == 1 else 'pairs'}. Next: click {where[self.turn]}."]
        if abs(n_msi - n_st) > 1:
            out.append(f"{n_msi} landmarks in MSI, {n_st} in ST: take back what has no partner.")
        fit, why = self._fit()
        if fit is None:
            return [*out, why]
        if np.isfinite(fit.tre).any():
            worst = int(np.nanargmax(fit.tre))
            out.append(
                f"Leave-one-out error: {np.sqrt(np.nanmean(fit.tre**2)):.0f} um (root mean square), "
                f"largest {fit.tre[worst]:.0f} um at pair {worst + 1}."
            )
        else:
            out.append("Leave-one-out errors need one more pair.")
        if fit.mirrored:
            out.append(
                "Warning: these landmarks say that MSI and ST are mirror images. If no section was turned over, left and "
                "right were confused: take the pairs back, and click them again."
            )
        return out

    # -- Before and after -----------------------------------------------------

    def show(self, what: str) -> None:
        """Show the sides beside each other, or MSI over ST before or after the alignment by the pairs so far."""
        check_choice(what, SHOWN, "what")
        fit, why = self._fit() if what == "after" else (None, "")
        if why:
            msg = f"Section {self.sample!r}: {why}"
            raise ValueError(msg)
        self.shown = what
        self._over.visible = what != "landmarks"
        self.pixels.visible = self.clicks["msi"].visible = what == "landmarks"
        if what != "landmarks":
            xy = np.asarray(self.pixels.data)[:, ::-1]
            moved = self._before(xy) if fit is None else fit.map(xy)
            self._over.data = (moved + self._offset)[:, ::-1]

    def align(self) -> None:
        """Write the alignment by the landmarks into the SpatialData, as :func:`stmsi.pp.align` does; raises as it does."""
        from stmsi.pp import align

        align(
            self.sdata,
            sample=self.sample,
            model=self.model,
            landmarks=landmarks(SimpleNamespace(layers=list(self.clicks.values())), sample=self.sample),
            show_progress_bar=False,
        )
        self.show("after")

    def close(self) -> None:
        """Remove the layers, and show again what lay in the window before."""
        beside, title, active = self._earlier
        write_title(self.viewer, title)
        with at_once(self.viewer):
            for layer in (*self.layers, self._over):
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)
        canvas_grid(self.viewer).enabled = beside
        back = [layer for layer in self._hidden if layer in self.viewer.layers]
        for layer in back:
            layer.visible = True
        if back:
            self.viewer.layers.selection.active = active if active in back else back[-1]
            place_scale_bar(self.viewer, beside=beside)
            fit_view(self.viewer)

    def _known_map(self, data: list[Any]) -> Callable[[Any], Any]:
        """From MSI to ST as it is: the alignment that the SpatialData holds, else centre on centre."""
        element = self.sdata.shapes[Key.pixels(self.sample)]
        to_msi = matrix_to(element, Key.msi_frame(self.sample))
        to_st = matrix_to(element, Key.st_frame(self.sample))
        if to_st is not None:
            matrix = to_st @ np.linalg.inv(np.eye(3) if to_msi is None else to_msi)
            return lambda xy: apply_affine(matrix, xy)
        st = np.concatenate([np.atleast_2d(places) for places in data[1][0]])
        shift = st.mean(axis=0)[::-1] - np.asarray(data[0][0]).mean(axis=0)[::-1]
        return lambda xy: xy + shift

    def _on_data(self, event: Any) -> None:
        # napari tells of a change when it begins ("adding") and when it is done ("added"); points may also be moved
        if event.source.mode == "add" and str(getattr(event, "action", "added")).lower().endswith("ed"):
            self.next_pair()
        if self.shown == "after":
            self.show("landmarks" if self.fit() is None else "after")
        for tell in self.on_change:
            tell()

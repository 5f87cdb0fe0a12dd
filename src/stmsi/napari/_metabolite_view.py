"""The state of the view, and how it reaches the layers of a viewer; without Qt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from stmsi._data.checks import check_choice, check_share
from stmsi._data.keys import TRAINED_ON
from stmsi._data.training_marks import SAID_OF
from stmsi.napari._add_layers import add_layers
from stmsi.napari._metabolite_layers import OWN, VALUE, Look, build_layers
from stmsi.napari._metabolite_maps import MEASURED, MODES, PREDICTED
from stmsi.napari._spot_description import Spot, describe_spot

if TYPE_CHECKING:
    from stmsi.napari._metabolite_maps import MetaboliteMaps

STYLES = ("blend", "swipe")
PICKED = "selected spot"
_CLICK = 5.0
"""Screen pixels by which the pointer may slip in a click."""


class MetaboliteView:
    """Layers of a metabolite in a viewer. Colours change in place: the spots of a section are drawn once."""

    def __init__(
        self,
        viewer: Any,
        source: MetaboliteMaps,
        metabolite: str | None = None,
        *,
        sample: str | None = None,
        mode: str = "compare",
        threshold: float = 0.0,
        spot_diameter: float | None = None,
        look: Look | None = None,
    ) -> None:
        self.viewer, self.source, self.look = viewer, source, look or Look()
        self.metabolite = str(source.features.index[0]) if metabolite is None else source.resolve(metabolite)
        source.check_mode(mode)
        check_share(threshold, "threshold")
        self.mode, self.threshold = mode, float(threshold)
        self.style, self.mix = "blend", 0.5
        self.picked: int | None = None
        self.ring: Any = None
        self.on_pick: list[Callable[[Spot], None]] = []
        self._spot_diameter = spot_diameter
        self.layers: dict[str, Any] = {}
        self.show_section(source.sections[0] if sample is None else sample)
        viewer.mouse_drag_callbacks.append(self._on_drag)

    # -- What is shown --------------------------------------------------------

    def show_section(self, sample: str) -> None:
        """Draw the spots of another section."""
        section = self.source.section(sample, spot_diameter=self._spot_diameter)
        data = build_layers(self.source, section, self.metabolite, self.look, mode=self.mode, threshold=self.threshold)
        self._remove()
        self.section, self._tree = section, cKDTree(section.xy)
        added = add_layers(self.viewer, data)
        self.layers = {layer.metadata[OWN]["role"]: layer for layer in added}
        self._stale: set[str] = set()
        for layer in added:
            layer.events.visible.connect(lambda event: self._refresh(event.source))
        top = [layer for layer in added if layer.visible]
        self.viewer.layers.selection.active = top[-1] if top else None
        self._mix()
        self._caption()

    def show_metabolite(self, metabolite: str) -> None:
        """Colour the spots by another metabolite."""
        self.metabolite = self.source.resolve(metabolite)
        self._recolour()
        self._caption()

    def show_mode(self, mode: str) -> None:
        """Show other layers."""
        self.source.check_mode(mode)
        self.mode = mode
        for role, layer in self.layers.items():
            layer.visible = role in MODES[mode]
        self._mix()
        self._caption()

    def show_threshold(self, threshold: float) -> None:
        """Count spots whose P(present) is lower as absent."""
        check_share(threshold, "threshold")
        self.threshold = float(threshold)
        self._recolour()

    def show_mix(self, mix: float, style: str | None = None) -> None:
        """Go from measured (0) to predicted (1): blended, or swiped from left to right."""
        check_share(mix, "mix")
        style = self.style if style is None else style
        check_choice(style, STYLES, "style")
        self.mix, self.style = float(mix), style
        self._mix()

    @property
    def can_mix(self) -> bool:
        """Whether there are two layers between which to go."""
        return self.mode == "compare" and {MEASURED, PREDICTED} <= set(self.layers)

    @property
    def can_swipe(self) -> bool:
        """Whether spots can be hidden one by one, which napari offers for points and not for outlines."""
        return all(hasattr(self.layers[role], "shown") for role in MODES["compare"] if role in self.layers)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Limits of the colours of the layers that are seen."""
        return {role: tuple(layer.face_contrast_limits) for role, layer in self.layers.items() if layer.visible}

    @property
    def title(self) -> str:
        """What is shown, for the canvas."""
        tier, _ = self.source.trust(self.metabolite)
        shown = " | ".join(r for r in self.layers if r in MODES[self.mode])
        label = self.source.label(MODES[self.mode][0])
        shown = shown if label == shown else f"{shown}: {label}"
        said = SAID_OF.get(next(iter(self.layers.values())).metadata[OWN][TRAINED_ON], "")
        section = f"section {self.section.name}" + (f" ({said})" if said else "")
        parts = [self.source.describe(self.metabolite), section, shown]
        return "\n".join([*parts, f"trust: {tier}"] if tier else parts)

    # -- Spots ----------------------------------------------------------------

    def spot_at(self, x: float, y: float) -> int | None:
        """Number in the section of the spot at a place (um); `None` beside all spots."""
        if self.section.outlines is None:
            distance, i = self._tree.query((x, y))
            return int(i) if distance <= self.section.radius[i] else None
        import shapely

        near = np.atleast_1d(self._tree.query((x, y), k=min(8, len(self.section.xy)))[1])
        place = shapely.Point(x, y)
        return next((int(i) for i in near if shapely.Polygon(self.section.outlines[i]).covers(place)), None)

    def pick(self, x: float, y: float) -> Spot | None:
        """The spot at a place (um), marked in the viewer; `None` and no mark beside all spots."""
        self.picked = self.spot_at(x, y)
        if self.picked is None:
            self._unpick()
            return None
        spot = self.describe(self.picked)
        self._mark(self.picked)
        for tell in self.on_pick:
            tell(spot)
        return spot

    def describe(self, number: int) -> Spot:
        """Values and genes of a spot of the section."""
        return describe_spot(self.source, self.metabolite, int(self.section.rows[number]), self.section.rows)

    def close(self) -> None:
        """Remove the layers and stop listening to clicks."""
        self._remove()
        self.layers = {}
        with suppress(ValueError):
            self.viewer.mouse_drag_callbacks.remove(self._on_drag)

    # -- Layers ---------------------------------------------------------------

    def _recolour(self) -> None:
        """New values for the layers that are seen; the others follow when they become visible."""
        maps, look = self.source.maps(self.metabolite, self.section.rows), self.look
        self._limits = self.source.limits(maps, look.vmin, look.vmax, look.percentiles)
        if self.threshold > 0:
            maps = self.source.maps(self.metabolite, self.section.rows, self.threshold)
        self._maps = maps
        self._stale = set(self.layers)
        for layer in self.layers.values():
            self._refresh(layer)

    def _refresh(self, layer: Any) -> None:
        """Give a layer its values, if it is seen and has old ones."""
        own, role = layer.metadata[OWN], layer.metadata[OWN]["role"]
        if not layer.visible or role not in self._stale:
            return
        self._stale.discard(role)
        own["metabolite"] = self.metabolite
        foreign = list(layer.features.columns) != [VALUE]
        if tuple(layer.face_contrast_limits or ()) != self._limits[role]:
            layer.face_contrast_limits = self._limits[role]
        with warnings.catch_warnings():
            # the View widget of napari-spatialdata may have coloured the layer by something else
            warnings.filterwarnings("ignore", "property used for face_color dropped", RuntimeWarning)
            layer.features = {VALUE: self._maps[role]}
            if foreign:
                layer.face_color = VALUE
                layer.face_color_mode = "colormap"

    def _mix(self) -> None:
        """Opacity and visible spots of measured and predicted."""
        if not {MEASURED, PREDICTED} <= set(self.layers):
            return
        measured, predicted, opacity = self.layers[MEASURED], self.layers[PREDICTED], self.look.opacity
        swipe = self.style == "swipe" and self.can_swipe
        # predicted lies on top of measured, so its opacity is its share
        measured.opacity, predicted.opacity = opacity, opacity if swipe else opacity * self.mix
        if self.can_swipe:
            left, _, right, _ = self.section.bounds
            # spots on the side of the prediction; all of them at 1
            beyond = self.section.xy[:, 0] >= right - self.mix * (right - left)
            everywhere = np.ones(len(beyond), bool)
            measured.shown, predicted.shown = (~beyond, beyond) if swipe else (everywhere, everywhere)

    def _caption(self) -> None:
        overlay = canvas_overlay(self.viewer, "text")
        overlay.text, overlay.position, overlay.visible = self.title, "top_left", True
        first = next((r for r in self.layers if r in MODES[self.mode]), None)
        for role, layer in self.layers.items():
            bar = getattr(layer, "face_colorbar", None)  # of points, from napari 0.9
            if bar is not None:
                bar.visible = role == first

    def _mark(self, number: int) -> None:
        self._unpick()
        ring = {
            "name": PICKED,
            "size": 2.6 * float(self.section.radius[number]),
            "face_color": "transparent",
            "border_color": "red",
            "border_width": 0.12,
            "metadata": {OWN: {"role": PICKED}},
        }
        active = self.viewer.layers.selection.active
        (self.ring,) = add_layers(self.viewer, [(self.section.xy[[number], ::-1], ring, "points")])
        self.viewer.layers.selection.active = active

    def _unpick(self) -> None:
        if self.ring is not None and self.ring in self.viewer.layers:  # the user may have removed it
            self.viewer.layers.remove(self.ring)
        self.ring = None

    def _remove(self) -> None:
        """Take all own layers from the viewer."""
        self._unpick()
        for layer in self.layers.values():
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)

    def _on_drag(self, viewer: Any, event: Any) -> Iterator[None]:
        """A press and a release at the same place is a click on a spot."""
        active = viewer.layers.selection.active
        if getattr(active, "mode", "pan_zoom") != "pan_zoom":  # landmarks are being clicked
            return
        start = np.asarray(event.pos, dtype=float)
        yield
        while event.type == "mouse_move":
            yield
        if np.abs(np.asarray(event.pos, dtype=float) - start).max() <= _CLICK:
            y, x = event.position[-2:]
            self.pick(float(x), float(y))


def canvas_overlay(viewer: Any, name: str) -> Any:
    """The scale bar or the text of a viewer; from napari 0.9 they belong to its canvas."""
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", None)
    if overlays is not None and hasattr(overlays, name):
        return getattr(overlays, name)
    return {"text": lambda: viewer.text_overlay, "scale_bar": lambda: viewer.scale_bar}[name]()


def show_scale_bar(viewer: Any) -> None:
    """A scale bar in micrometres."""
    bar = canvas_overlay(viewer, "scale_bar")
    bar.visible = True
    if not hasattr(getattr(viewer, "canvas", None), "overlays"):  # later, the units of the layers decide
        bar.unit = "um"

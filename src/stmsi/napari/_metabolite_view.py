"""The state of the view, and how it reaches the layers of a viewer; without Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from stmsi._data.checks import check_choice, check_share, listing
from stmsi._data.training_marks import SAID_OF
from stmsi.napari._add_layers import add_layers
from stmsi.napari._canvas import (
    arrange,
    at_once,
    canvas_grid,
    colour_bar,
    name_on_canvas,
    place_scale_bar,
    write_title,
)
from stmsi.napari._histology import HISTOLOGY, histology_layer
from stmsi.napari._metabolite_layers import INTENSITIES, OWN, Look, build_layer, build_layers, limits_of
from stmsi.napari._metabolite_maps import BLEND, MEASURED, MODES, PREDICTED, blend
from stmsi.napari._paint import colour_limits, paint, show_spots, tell_limits
from stmsi.napari._spot_description import Spot, describe_spot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.napari._metabolite_maps import MetaboliteMaps

BESIDE, SWIPE, BLENDED = "side by side", "swipe", "blend"
STYLES = (BESIDE, SWIPE, BLENDED)
"""How measured and predicted are compared; in none of them is one drawn over the other."""
PICKED = "selected spot"
DIVIDER = "divider"
_DIVIDING = "#ff4fd8"
"""Seen on the black of the canvas, the white around histology, and in no colour map of intensities."""
_PAIR = (MEASURED, PREDICTED)
_OF_PREDICTED = " (predicted)"
_CLICK = 5.0
"""Screen pixels by which the pointer may slip in a click."""
_TITLE = 72
"""Characters of a title line that fit over the canvas."""


class MetaboliteView:
    """Layers of a metabolite in a viewer. Colours change in place: the spots of a section are drawn once.

    `histology`: whether the image of the section lies under the spots, which are transparent where the metabolite is absent.
    """

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
        histology: bool = False,
    ) -> None:
        self.viewer, self.source, self.look, self.histology = viewer, source, look or Look(), histology
        self.metabolite = str(source.features.index[0]) if metabolite is None else source.resolve(metabolite)
        source.check_mode(mode)
        check_share(threshold, "threshold")
        self.mode, self.threshold = mode, float(threshold)
        self._style, self.mix = BESIDE, 0.5
        self.picked: int | None = None
        self.on_pick: list[Callable[[Spot | None], None]] = []
        self._spot_diameter = spot_diameter
        self.layers: dict[str, Any] = {}
        self._under: list[Any] = []
        self._rings: list[Any] = []
        self._divider: Any = None
        self._swiped = False
        self.show_section(source.sections[0] if sample is None else sample)
        viewer.mouse_drag_callbacks.append(self._on_drag)

    # -- What is shown --------------------------------------------------------

    def show_section(self, sample: str) -> None:
        """Draw the spots of another section. A section without MSI shows its prediction."""
        section = self.source.section(sample, spot_diameter=self._spot_diameter)
        under = histology_layer(self.source.data, section.name) if self.histology else None
        look = replace(self.look, transparent_zeros=under is not None or self.look.transparent_zeros)
        data = build_layers(self.source, section, self.metabolite, look, mode=self.mode, threshold=self.threshold)
        there = {options["name"] for _, options, _ in data}
        if not there & set(MODES[self.mode]):
            self.mode = "compare"
        named = [(d, o | {"name": self.source.label(o["name"])}, kind) for d, o, kind in data]
        copies = [HISTOLOGY, HISTOLOGY + _OF_PREDICTED][: 1 + (set(_PAIR) <= there)] if under is not None else []
        with at_once(self.viewer):
            self._remove()
            self.section, self._tree, self._drawn = section, cKDTree(section.xy), look
            self._said = SAID_OF.get(self.source.trained_on(section.rows), "")
            if under is not None:
                image, options, kind = under
                self._under = add_layers(self.viewer, [(image, {**options, "name": name}, kind) for name in copies])
            self.layers = {layer.metadata[OWN]["role"]: layer for layer in add_layers(self.viewer, named)}
            self._update_maps()
            self._stale: set[str] = set()
            self._arrange()
        for layer in self.layers.values():
            layer.events.visible.connect(lambda event: self._refresh(event.source))
        self._caption()

    def show_metabolite(self, metabolite: str) -> None:
        """Colour the spots by another metabolite."""
        self.metabolite = self.source.resolve(metabolite)
        self._recolour()
        self._caption()

    def show_mode(self, mode: str) -> None:
        """Show other layers."""
        self.source.check_mode(mode)
        if not set(MODES[mode]) & set(self.layers):
            msg = f"mode={mode!r} has no data in section {self.section.name!r}; available: {listing(self.modes)}."
            raise KeyError(msg)
        self.mode = mode
        self._compose()

    def show_threshold(self, threshold: float) -> None:
        """Count spots whose P(present) is lower as absent."""
        check_share(threshold, "threshold")
        self.threshold = float(threshold)
        self._recolour()

    def show_mix(self, mix: float, style: str | None = None) -> None:
        """Go from measured (0) to predicted (1): values blended, or swiped from left to right. Side by side has no between."""
        check_share(mix, "mix")
        style = self._style if style is None else style
        check_choice(style, STYLES, "style")
        changed, self.mix, self._style = style != self._style, float(mix), style
        if changed:
            self._compose()
        elif self.style == BLENDED:
            self._stale.add(BLEND)
            self._refresh(self.layers[BLEND])
            self._caption()
        elif self.style == SWIPE:
            self._swipe()

    @property
    def modes(self) -> list[str]:
        """Modes for which the section has data."""
        return [mode for mode in self.source.modes if set(MODES[mode]) & set(self.layers)]

    @property
    def style(self) -> str:
        """How measured and predicted are compared; empty where only one of them is shown."""
        if not self.can_mix:
            return ""
        return BESIDE if self._style == SWIPE and not self.can_swipe else self._style

    @property
    def can_mix(self) -> bool:
        """Whether there are two layers to compare."""
        return self.mode == "compare" and set(_PAIR) <= set(self.layers)

    @property
    def can_swipe(self) -> bool:
        """Whether spots can be hidden one by one, which napari offers for points and not for outlines."""
        return self.section.lattice is not None or all(
            hasattr(self.layers[r], "shown") for r in _PAIR if r in self.layers
        )

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Limits of the colours of the layers that are seen."""
        return {role: colour_limits(layer) for role, layer in self.layers.items() if layer.visible}

    @property
    def title(self) -> str:
        """What is shown, for the canvas."""
        tier, _ = self.source.trust(self.metabolite)
        section = f"section {self.section.name}" + (f" ({self._said})" if self._said else "")
        rest = [section, *([f"trust: {tier}"] if tier else [])]
        lines = [self.source.describe(self.metabolite), ", ".join(rest)]
        if self.style == BLENDED:
            lines.append(f"{1 - self.mix:.0%} measured, {self.mix:.0%} predicted")
        elif self.style == SWIPE:  # one colour bar for two layers, and so no name beside it
            lines.append(self.source.unit)
        return "\n".join(shorten(line, _TITLE, placeholder=" ...") for line in lines)

    @property
    def _seen(self) -> set[str]:
        """Layers that state and data ask for."""
        return {BLEND} if self.style == BLENDED else set(MODES[self.mode]) & set(self.layers)

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
        spot = None if self.picked is None else self.describe(self.picked)
        if self.picked is None:
            self._show_rings()
        else:
            self._mark(self.picked)
        for tell in self.on_pick:
            tell(spot)
        return spot

    def describe(self, number: int) -> Spot:
        """Values and genes of a spot of the section."""
        return describe_spot(self.source, self.metabolite, int(self.section.rows[number]), self.section.rows)

    def close(self) -> None:
        """Remove the layers and stop listening to clicks."""
        with at_once(self.viewer):
            self._remove()
        write_title(self.viewer, "")
        with suppress(ValueError):
            self.viewer.mouse_drag_callbacks.remove(self._on_drag)

    # -- Layers ---------------------------------------------------------------

    def _compose(self) -> None:
        """Show, arrange and name the layers that the state asks for."""
        self._arrange()
        self._caption()

    def _arrange(self) -> None:
        if self.style == BLENDED and BLEND not in self.layers:
            self._add_blend()
        seen = self._seen
        for role, layer in self.layers.items():
            layer.visible = role in seen
        if self.style == BLENDED:
            self._stale.add(BLEND)
            self._refresh(self.layers[BLEND])
        self._swipe()
        self._place()
        top = [layer for layer in self.layers.values() if layer.visible]
        self.viewer.layers.selection.active = top[-1] if top else None

    def _place(self) -> None:
        """Side by side, every second box of the grid holds what lies over and under one of the two."""
        beside = self.style == BESIDE
        place_scale_bar(self.viewer, beside=beside)
        for under in self._under[1:]:
            under.visible = beside
        self._show_rings()
        if beside:
            boxes = [
                [*self._under[i : i + 1], self.layers[role], *self._rings[i : i + 1]] for i, role in enumerate(_PAIR)
            ]
            rest = [layer for role, layer in self.layers.items() if role not in _PAIR]
        else:
            boxes = [
                self._under,
                list(self.layers.values()),
                [] if self._divider is None else [self._divider],
                self._rings,
            ]
            rest = []
        arrange(self.viewer, [*boxes, rest], beside=beside)

    def _add_blend(self) -> None:
        data, options, kind = build_layer(
            self.section, BLEND, self._maps[MEASURED], self._limits[BLEND], self._drawn
        )  # fmt: skip
        own = {OWN: {"role": BLEND, "sample": self.section.name, "metabolite": self.metabolite}}
        options |= {"name": self.source.label(BLEND), "visible": False, "metadata": own}
        (layer,) = add_layers(self.viewer, [(data, options, kind)])
        self.layers[BLEND] = layer
        layer.events.visible.connect(lambda event: self._refresh(event.source))

    def _update_maps(self) -> None:
        maps = self.source.maps(self.metabolite, self.section.rows)
        self._limits = limits_of(self.source, maps, self._drawn)
        if self.threshold > 0:
            maps = self.source.maps(self.metabolite, self.section.rows, self.threshold)
        self._maps = maps

    def _recolour(self) -> None:
        """New values for the layers that are seen; the others follow when they become visible."""
        self._update_maps()
        self._stale = set(self.layers)
        self._refresh(*self.layers.values())

    def _refresh(self, *layers: Any) -> None:
        """Give layers their values, where they are seen and have old ones."""
        old = [layer for layer in layers if layer.visible and layer.metadata[OWN]["role"] in self._stale]
        for layer in old:
            own = layer.metadata[OWN]
            role, own["metabolite"] = own["role"], self.metabolite
            self._stale.discard(role)
            maps = self._maps
            values = blend(maps[MEASURED], maps[PREDICTED], self.mix) if role == BLEND else maps[role]
            clear = self._drawn.transparent_zeros and role in INTENSITIES
            paint(layer, self.section, values, self._limits[role], clear=clear, shown=self._side(role))
        tell_limits(old)

    def _side(self, role: str) -> NDArray[np.bool_] | None:
        """Spots of a layer that a swipe leaves; `None`: all."""
        if self.style != SWIPE or role not in _PAIR:
            return None
        beyond = self.section.xy[:, 0] >= self._divided_at
        return beyond if role == PREDICTED else ~beyond

    @property
    def _divided_at(self) -> float:
        left, _, right, _ = self.section.bounds
        return float(right - self.mix * (right - left))

    def _swipe(self) -> None:
        """Leave measured on the left and predicted on the right of a divider; all spots of both without a swipe."""
        swiping = self.style == SWIPE
        for role in _PAIR:
            layer = self.layers.get(role)
            if layer is None or not (swiping or self._swiped):
                continue
            if self.section.lattice is None:
                show_spots(layer, self._side(role))
            else:
                self._stale.add(role)
                self._refresh(layer)
        self._swiped = swiping
        if swiping:
            self._move_divider()
        if self._divider is not None:
            self._divider.visible = swiping

    def _move_divider(self) -> None:
        left, top, right, bottom = self.section.bounds
        width, x = 0.004 * (right - left), self._divided_at
        above, below = top - 6 * width, bottom + 6 * width
        # the second line is short, and has the words below the first in its middle: above is the title
        words = below + 6 * width
        lines = [
            np.array([[above, x], [below, x]]),
            np.array([[words, x - width / 2], [words, x + width / 2]]),
        ]
        if self._divider is not None:
            self._divider.data = lines
            return
        options = {
            "name": DIVIDER,
            "shape_type": "line",
            "edge_color": _DIVIDING,
            "edge_width": width,
            "opacity": 1.0,
            "features": {"sides": ["", "measured  |  predicted"]},
            "text": {"string": "{sides}", "anchor": "center", "size": 12, "color": _DIVIDING},
            "metadata": {OWN: {"role": DIVIDER}},
        }
        (self._divider,) = add_layers(self.viewer, [(lines, options, "shapes")])

    def _caption(self) -> None:
        # text on the black canvas needs no ground, text over histology does
        box = bool(self._under)
        write_title(self.viewer, self.title, box=box)
        swiping = self.style == SWIPE
        for role, layer in self.layers.items():
            if layer.visible:
                # the name first: what comes first lies lowest, and under the section is room for it
                name_on_canvas(layer, visible=not swiping)
                colour_bar(layer, visible=not (swiping and role == PREDICTED), box=box)

    def _mark(self, number: int) -> None:
        """Ring a spot, in both boxes where there are two."""
        yx, size = self.section.xy[[number], ::-1], 2.6 * float(self.section.radius[number])
        if not self._rings or self._rings[0] not in self.viewer.layers:  # the user may have removed them
            ring = {
                "size": size,
                "face_color": "transparent",
                "border_color": "red",
                "border_width": 0.12,
                "metadata": {OWN: {"role": PICKED}},
            }
            active = self.viewer.layers.selection.active
            names = [PICKED, PICKED + _OF_PREDICTED][: 1 + (set(_PAIR) <= set(self.layers))]
            self._rings = add_layers(self.viewer, [(yx, {**ring, "name": name}, "points") for name in names])
            self.viewer.layers.selection.active = active
            self._place()
            return
        # removing a layer makes napari collect garbage, which takes longer than to move one
        for ring in self._rings:
            ring.data = yx
            ring.size = size
        self._show_rings()

    def _show_rings(self) -> None:
        for i, ring in enumerate(self._rings):
            ring.visible = self.picked is not None and (i == 0 or self.style == BESIDE)

    def _remove(self) -> None:
        """Take all own layers from the viewer."""
        own = [*self._under, *self.layers.values(), *self._rings, *([] if self._divider is None else [self._divider])]
        canvas_grid(self.viewer).enabled = False
        for layer in own:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        self.layers, self._under, self._rings, self._divider, self.picked = {}, [], [], None, None
        self._swiped = False

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

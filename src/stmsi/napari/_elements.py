"""napari-spatialdata's own widgets, docked when they are asked for: opened with the window, they leave the canvas no room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialdata import SpatialData

DOCKS = ("SpatialData", "View (napari-spatialdata)")


def close_stale(viewer: Any, sdata: SpatialData) -> None:
    """Remove these docks where they list the elements of another SpatialData."""
    docks = dict(getattr(getattr(viewer, "window", None), "dock_widgets", {}))
    if DOCKS[0] in docks and not any(held is sdata for held in getattr(docks[DOCKS[0]], "_sdata", ())):
        for name in DOCKS:
            if name in docks:
                viewer.window.remove_dock_widget(docks[name])


def show_elements(viewer: Any, sdata: SpatialData, sample: str) -> None:
    """Dock the list of elements, and *View*, which colours spots by genes and annotations; in the frame of a section."""
    close_stale(viewer, sdata)
    docks = dict(viewer.window.dock_widgets)
    if DOCKS[0] not in docks:
        from napari_spatialdata import Interactive

        Interactive(sdata, headless=True)  # takes the current viewer
        docks = dict(viewer.window.dock_widgets)

        def in_micrometres(event: Any) -> None:
            # coordinate systems of the data model are in micrometres, whatever element comes into the viewer
            if event.value.metadata.get("sdata") is sdata:
                event.value.units = "um"

        viewer.layers.events.inserted.connect(in_micrometres)
    for name in DOCKS:
        if name in docks:
            docks[name].parent().setVisible(True)
    systems = docks[DOCKS[0]].coordinate_system_widget
    names = [systems.item(i).text() for i in range(systems.count())]
    if sample in names:
        systems.setCurrentRow(names.index(sample))

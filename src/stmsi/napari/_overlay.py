"""A napari window with measured and predicted metabolites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stmsi._data.checks import require_spatialdata
from stmsi._data.keys import Key
from stmsi.napari._canvas import fit_view, show_scale_bar
from stmsi.napari._elements import close_stale
from stmsi.napari._metabolite_layers import Look
from stmsi.napari._metabolite_maps import MetaboliteMaps
from stmsi.napari._metabolite_view import MetaboliteView
from stmsi.napari._requirements import require_window
from stmsi.pl._metabolite_layers import one_section
from stmsi.pl._style import PERCENTILES

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

DOCK = "stmsi"
WINDOW = (1400, 900)
"""Smallest width and height of a new window, in pixels."""


def overlay(
    sdata: SpatialData,
    metabolite: str | None = None,
    *,
    sample: str | None = None,
    mode: str = "compare",
    threshold: float = 0.0,
    image: bool = True,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    vmin: float | None = None,
    vmax: float | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    cmap: str | Colormap | None = None,
    spot_diameter: float | None = None,
    opacity: float = 1.0,
    viewer: Any = None,
    run: bool = True,
) -> Any:
    """Open measured and predicted metabolites in napari, with a widget to choose and compare.

    Measured and predicted lie side by side under one camera, or as chosen in the widget; a section without MSI shows its
    prediction. The widgets of napari-spatialdata, which add elements and colour the spots by genes, are docked when the
    widget is asked for them. See the page on napari in the user guide.

    Parameters
    ----------
    sdata
        SpatialData with measured metabolites, predicted ones or both.
    metabolite, sample
        Id or readable name, and section; `None`: the first. The widget switches to others.
    mode
        ``"compare"``, ``"residual"``, ``"uncertainty"`` or ``"presence"``; see :func:`stmsi.napari.metabolite_layers`.
    threshold
        Spots whose predicted probability of presence is lower count as absent.
    image
        Whether to show the histology ``images["<sample>_he"]`` where there is one. Over it, spots without the metabolite are
        transparent.
    pred_key, metabolite_key
        Predicted and measured intensities in ``obsm``.
    table_key, sample_key
        The ST table, and the column of ``obs`` with the section.
    vmin, vmax, percentiles, cmap, spot_diameter, opacity
        As in :func:`stmsi.napari.metabolite_layers`.
    viewer
        An open ``napari.Viewer`` to use; `None`: a new window.
    run
        Whether to start napari's event loop, which returns when the window is closed. Pass ``run=False`` where a loop runs
        already (IPython with ``%gui qt``) or to continue by code.

    Returns
    -------
    The ``napari.Viewer``.

    Raises
    ------
    ImportError
        napari, napari-spatialdata or Qt is missing: install the extra ``napari``.
    RuntimeError
        There is no display; the message says how to run without one.
    KeyError, ValueError
        As in :func:`stmsi.napari.metabolite_layers`.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> viewer = stmsi.napari.overlay(sdata, "simPC(28:0)", sample="P1S1", run=False)  # doctest: +SKIP
    >>> viewer.screenshot("simPC.png")  # doctest: +SKIP
    """
    require_spatialdata(sdata)
    source = MetaboliteMaps(
        sdata, pred_key=pred_key, metabolite_key=metabolite_key, table_key=table_key, sample_key=sample_key
    )
    # everything that can be wrong with the input comes before a window opens
    metabolite = str(source.features.index[0]) if metabolite is None else source.resolve(metabolite)
    sample = source.sections[0] if sample is None else one_section(source.adata, sample_key, sample)
    source.check_mode(mode)
    require_window()

    import napari
    from qtpy.QtWidgets import QApplication

    from stmsi.napari._metabolite_widget import MetaboliteWidget

    if viewer is None:
        viewer = napari.Viewer(title=DOCK)
        *_, width, height = viewer.window.geometry()
        viewer.window.resize(max(width, WINDOW[0]), max(height, WINDOW[1]))
    earlier = dict(viewer.window.dock_widgets).get(DOCK)
    if earlier is not None:
        earlier.view.close()
        viewer.window.remove_dock_widget(earlier)
    close_stale(viewer, sdata)
    look = Look(vmin, vmax, percentiles, cmap, None, opacity)
    at = {"sample": sample, "mode": mode, "threshold": threshold, "spot_diameter": spot_diameter}
    view = MetaboliteView(viewer, source, metabolite, look=look, histology=image, **at)  # type: ignore[arg-type]
    show_scale_bar(viewer)
    viewer.window.add_dock_widget(MetaboliteWidget(viewer, view=view), name=DOCK, area="right", tabify=True)
    QApplication.processEvents()  # the dock makes the canvas narrower, which is known when it is drawn
    fit_view(viewer)
    if run:
        napari.run()
    return viewer

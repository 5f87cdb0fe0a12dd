"""Switching the metabolite in napari: 5,000 spots x 1,000 metabolites; the goal is 200 ms.

asv run --config benchmarks/asv.conf.json --python=same --quick --bench napari_view
python benchmarks/speed/napari_view.py                  # layers only, without a window
xvfb-run -a python benchmarks/speed/napari_view.py      # and with one, drawn in software
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from time import perf_counter, process_time

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.sections import VISIUM_PITCH
from stmsi.napari._metabolite_maps import MetaboliteMaps
from stmsi.napari._metabolite_view import MetaboliteView

N_ROW, N_COL, N_METABOLITES, N_GENES = 78, 64, 1000, 2000


def section() -> AnnData:
    """4,992 spots with measured and predicted metabolites, presence and bounds."""
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((N_ROW, N_COL)))
    n = len(row)
    st = AnnData(
        rng.poisson(0.5, (n, N_GENES)).astype(np.float32),
        obs=pd.DataFrame({"sample": "s"}, index=[f"spot{i}" for i in range(n)]),
        obsm={"spatial": VISIUM_PITCH * np.stack([col + row % 2 / 2, np.sqrt(0.75) * row], axis=1)},
    )
    columns = [f"m{j}" for j in range(N_METABOLITES)]
    values = rng.lognormal(0, 1, (n, N_METABOLITES)).astype(np.float32)
    layers = {
        "msi": values * (values > 1),
        "msi_pred": values,
        "msi_pred_lower": values / 2,
        "msi_pred_upper": values * 2,
    }
    layers["msi_pred_presence"] = rng.random(values.shape, np.float32)
    for key, array in layers.items():
        st.obsm[key] = pd.DataFrame(array, index=st.obs_names, columns=columns)
    return st


class Switching:
    """Colours of the visible layers, limits and title, without a window."""

    timeout = 300
    params = ("compare", "residual", "presence")
    param_names = ("mode",)

    def setup(self, mode: str) -> None:
        from napari.components import ViewerModel

        self.source = MetaboliteMaps(section())
        self.view = MetaboliteView(ViewerModel(), self.source, mode=mode)
        self.number = 0

    def time_switch(self, mode: str) -> None:  # noqa: ARG002
        self.switch()

    def time_threshold(self, mode: str) -> None:  # noqa: ARG002
        self.number += 1
        self.view.show_threshold(0.1 + 0.8 * (self.number % 2))

    def switch(self) -> None:
        self.number = (self.number + 1) % N_METABOLITES
        self.view.show_metabolite(f"m{self.number}")


def measure(what: str, function: Callable[[], None], repeats: int = 30) -> None:
    function()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = perf_counter(), process_time()
        function()
        wall.append(perf_counter() - start)
        cpu.append(process_time() - start_cpu)
    print(
        f"{what}: median {1e3 * np.median(wall):.0f} ms, slowest {1e3 * max(wall):.0f} ms; "
        f"{1e3 * np.median(cpu):.0f} ms of processor time"
    )


def with_window(source: MetaboliteMaps) -> None:
    """The same with everything that napari redraws."""
    import napari
    from qtpy.QtWidgets import QApplication

    from stmsi.napari._metabolite_widget import MetaboliteWidget

    viewer = napari.Viewer()
    view = MetaboliteView(viewer, source)
    viewer.window.add_dock_widget(MetaboliteWidget(viewer, view=view), name="stmsi")
    number = 0

    def switch() -> None:
        nonlocal number
        number += 1
        view.show_metabolite(f"m{number}")

    def switch_and_draw() -> None:
        switch()
        QApplication.processEvents()

    QApplication.processEvents()
    measure("  with a window, until the layers are up to date", switch, 20)
    measure("  with a window, until it is drawn", switch_and_draw, 20)
    viewer.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # napari's own
    for mode in Switching.params:
        bench = Switching()
        bench.setup(mode)
        measure(f"{mode}: switching the metabolite", bench.switch)
        measure(f"{mode}: moving the threshold", lambda bench=bench, mode=mode: bench.time_threshold(mode))
    if os.environ.get("DISPLAY"):
        with_window(bench.source)

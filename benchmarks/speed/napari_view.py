"""Another metabolite in napari, on spots and on bins; the aims are 250 ms and 500 ms until it is drawn, 10 s until a window is open.

asv run --config benchmarks/asv.conf.json --python=same --quick --bench napari_view
python benchmarks/speed/napari_view.py                  # layers only, without a window
xvfb-run -a python benchmarks/speed/napari_view.py      # in the window, drawn in software
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

import stmsi
from stmsi._data.sections import VISIUM_PITCH
from stmsi.napari._metabolite_maps import MetaboliteMaps
from stmsi.napari._metabolite_view import MetaboliteView

SECTIONS = {
    "spots": (78, 64, 1000),  # 4,992 spots of Visium
    "bins": (224, 224, 100),  # 50,176 bins of 16 um
}
"""Rows, columns and metabolites."""


def section(kind: str = "spots") -> SpatialData:
    """Spots or bins with measured and predicted metabolites, presence and bounds."""
    n_row, n_col, n_metabolites = SECTIONS[kind]
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((n_row, n_col)))
    n, bin_side = len(row), 16.0
    if kind == "spots":
        xy = VISIUM_PITCH * np.stack([col + row % 2 / 2, np.sqrt(0.75) * row], axis=1)
        shapes = ShapesModel.parse(xy, geometry=0, radius=27.5, transformations={"s": Identity()})
    else:
        xy = bin_side * np.stack([col + 0.5, row + 0.5], axis=1)
        x, y = xy.T
        boxes = shapely.box(x - bin_side / 2, y - bin_side / 2, x + bin_side / 2, y + bin_side / 2)
        shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations={"s": Identity()})
    st = AnnData(
        rng.poisson(0.5, (n, 200)).astype(np.float32),
        obs=pd.DataFrame(
            {"sample": "s", "region": pd.Categorical(["s_spots"] * n), "instance": np.arange(n)},
            index=[f"spot{i}" for i in range(n)],
        ),
        obsm={"spatial": xy},
    )
    columns = [f"m{j}" for j in range(n_metabolites)]
    values = rng.lognormal(0, 1, (n, n_metabolites)).astype(np.float32)
    layers = {
        "msi": values * (values > 1),
        "msi_pred": values,
        "msi_pred_lower": values / 2,
        "msi_pred_upper": values * 2,
    }
    layers["msi_pred_presence"] = rng.random(values.shape, np.float32)
    for key, array in layers.items():
        st.obsm[key] = pd.DataFrame(array, index=st.obs_names, columns=columns)
    table = TableModel.parse(st, region="s_spots", region_key="region", instance_key="instance")
    return SpatialData(shapes={"s_spots": shapes}, tables={"st": table})


class Switching:
    """Colours of the visible layers, limits and title, without a window."""

    timeout = 300
    params = (tuple(SECTIONS), ("compare", "residual", "presence"))
    param_names = ("section", "mode")

    def setup(self, kind: str, mode: str) -> None:
        from napari.components import ViewerModel

        self.view = MetaboliteView(ViewerModel(), MetaboliteMaps(section(kind)), mode=mode)
        self.number = 0

    def time_switch(self, kind: str, mode: str) -> None:  # noqa: ARG002
        self.switch()

    def time_threshold(self, kind: str, mode: str) -> None:  # noqa: ARG002
        self.number += 1
        self.view.show_threshold(0.1 + 0.8 * (self.number % 2))

    def switch(self) -> None:
        self.number += 1
        self.view.show_metabolite(f"m{self.number % 100}")


def measure(what: str, function: Callable[[], None], repeats: int = 20) -> None:
    function()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = perf_counter(), process_time()
        function()
        wall.append(perf_counter() - start)
        cpu.append(process_time() - start_cpu)
    print(
        f"{what}: median {1e3 * np.median(wall):.0f} ms, fastest {1e3 * min(wall):.0f} ms, slowest {1e3 * max(wall):.0f} ms; "
        f"{1e3 * np.median(cpu):.0f} ms of processor time"
    )


def with_window(kind: str, data: SpatialData) -> None:
    """The same in the window that users see, with everything that napari redraws; the first window is a cold one."""
    from qtpy.QtWidgets import QApplication

    start, start_cpu = perf_counter(), process_time()
    viewer: Any = stmsi.napari.overlay(data, run=False)
    QApplication.processEvents()
    print(f"{kind}: open in {perf_counter() - start:.1f} s, {process_time() - start_cpu:.1f} s of processor time")
    view = dict(viewer.window.dock_widgets)["stmsi"].view
    number = 0

    def switch() -> None:
        nonlocal number
        number += 1
        view.show_metabolite(f"m{number}")

    def switch_and_draw() -> None:
        switch()
        QApplication.processEvents()

    measure(f"{kind}: with a window, until it is drawn", switch_and_draw)
    viewer.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # napari's own
    if os.environ.get("DISPLAY"):
        for kind in SECTIONS:
            with_window(kind, section(kind))
    else:
        for kind in SECTIONS:
            bench = Switching()
            bench.setup(kind, "compare")
            measure(f"{kind}: switching the metabolite", bench.switch)
            measure(
                f"{kind}: moving the threshold", lambda bench=bench, kind=kind: bench.time_threshold(kind, "compare")
            )

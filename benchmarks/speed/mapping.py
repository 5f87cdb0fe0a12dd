"""Mapping pixels to spots: speed and memory as ratios to spatialdata's aggregation, measured in the same run.

asv run --config benchmarks/asv.conf.json --python=same --quick
python benchmarks/speed/mapping.py          # prints the same numbers, without the oracle on the large section
python benchmarks/speed/mapping.py --full   # with it: minutes and gigabytes
"""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, process_time
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import stmsi

ANGLE = 0.4


def paired_section(side: int, pixel: float, n_ions: int, spots: np.ndarray, density: float = 0.4):
    """A raster of random ions under given spot centres, turned and mirrored around their middle."""
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((side, side)))
    ions = sp.random(side * side, n_ions, density, "csr", np.float32, rng, lambda n: rng.lognormal(3, 1, n))
    ions = sp.csr_matrix(sp.hstack([ions[:, :-1], np.ones((side * side, 1), np.float32)]), dtype=np.float32)
    msi = AnnData(ions, obs=pd.DataFrame({"row": row, "col": col}, index=[str(i) for i in range(side * side)]))
    st = AnnData(np.ones((len(spots), 2), np.float32), obsm={"spatial": spots})
    sdata = stmsi.pp.combine({"s": st}, {"s": msi}, pixel_size=pixel)
    turn = np.array([[-np.cos(ANGLE), -np.sin(ANGLE)], [-np.sin(ANGLE), np.cos(ANGLE)]])
    middle = 0.5 * (spots.min(axis=0) + spots.max(axis=0))
    shift = middle - turn @ np.full(2, side * pixel / 2)
    stmsi.pp.align(sdata, transformation=np.column_stack([turn, shift]))
    return sdata


def hexagons(n_row: int, n_col: int) -> np.ndarray:
    row, col = (v.ravel() for v in np.indices((n_row, n_col)))
    return np.column_stack(
        [100.0 * col + 50 * (row % 2), 50 * np.sqrt(3) * row]
    )  # neighbours 100 um apart, as on Visium


def by_aggregate(sdata) -> np.ndarray:
    """The oracle: sums weighted by overlap fraction, divided by those of the last ion, which is 1 in every pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)  # one for each ion
        summed = sdata.aggregate(
            values="s_pixels", by="s_spots", value_key=list(sdata.tables["msi"].var_names), table_name="msi",
            fractions=True, agg_func="sum", target_coordinate_system="s",
        )  # fmt: skip
    table = summed.tables["msi"].to_df().to_numpy()
    with np.errstate(invalid="ignore"):
        return table / table[:, -1:]


class Run(NamedTuple):
    """What a call cost."""

    seconds: float
    cpu: float  # seconds of the processor, which other work on the machine disturbs less
    memory: float  # MiB beyond what was there before, at the peak, from samples of the resident size
    result: Any


def measured(function: Callable[[], Any]) -> Run:
    statm, done, peak = Path("/proc/self/statm"), Event(), [0]

    def resident() -> int:
        return int(statm.read_text().split()[1]) * 4096

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what earlier calls have freed hides what this one takes
    before = resident()
    thread = Thread(target=watch)
    thread.start()
    start, cpu = perf_counter(), process_time()
    try:
        result = function()
    finally:
        seconds, cpu = perf_counter() - start, process_time() - cpu
        done.set()
        thread.join()
    return Run(seconds, cpu, max(0.0, (max(peak[0], resident()) - before) / 2**20), result)


def own(bench: Any, **kwargs: Any) -> dict[str, float]:
    """Costs of our side alone: the median of three in time, the largest in memory."""
    stmsi.pp.map_to_spots(bench.sdata, **kwargs)
    runs = [measured(lambda: stmsi.pp.map_to_spots(bench.sdata, **kwargs)) for _ in range(3)]
    return {
        "seconds": float(np.median([r.seconds for r in runs])),
        "CPU seconds": float(np.median([r.cpu for r in runs])),
        "extra memory (MiB)": max(r.memory for r in runs),
    }


class Mapping:
    """400 spots on 8,100 pixels x 50 ions, against the oracle."""

    timeout = 300
    shape = (90, 40.0, 50)
    spots = (20, 20)

    def setup(self) -> None:
        self.sdata = paired_section(*self.shape, hexagons(*self.spots))

    def time_map_to_spots(self) -> None:
        stmsi.pp.map_to_spots(self.sdata)

    def compare(self) -> dict[str, float]:
        """Ratios to the oracle, which runs once."""
        ours = own(self)
        theirs = measured(lambda: by_aggregate(self.sdata))
        st = self.sdata.tables["st"]
        inside = (st.obs["msi_coverage"] > 0.999).to_numpy()
        mapped, oracle = st.obsm["msi"].to_numpy()[inside], theirs.result[inside]
        return ours | {
            "seconds of aggregate": theirs.seconds,
            "CPU seconds of aggregate": theirs.cpu,
            "speed-up": theirs.seconds / ours["seconds"],
            "speed-up in CPU seconds": theirs.cpu / ours["CPU seconds"],
            "extra memory of aggregate (MiB)": theirs.memory,
            "memory ratio": ours["extra memory (MiB)"] / theirs.memory if theirs.memory else np.nan,
            "largest difference, relative to an ion's largest value": float(
                (np.abs(mapped - oracle) / oracle.max(axis=0)).max()
            ),
        }

    def track_speedup_over_aggregate(self) -> float:
        return self.compare()["speed-up"]

    def track_largest_relative_difference(self) -> float:
        """Over covered spots and ions; spatialdata's circle is a 64-gon."""
        return self.compare()["largest difference, relative to an ion's largest value"]


class Visium(Mapping):
    """4,992 spots on 104,976 pixels x 1,000 ions."""

    timeout = 1800
    shape = (324, 30.0, 1000)
    spots = (78, 64)

    def track_memory_ratio(self) -> float:
        return self.compare()["memory ratio"]

    def as_stored(self, kind: str) -> None:
        """Put the ions into another container."""
        import dask.array as da

        table = self.sdata.tables["msi"]
        x = sp.csr_matrix(table.X)
        table.X = {
            "csr": lambda: x,
            "dense": x.toarray,
            "csc": x.tocsc,
            "dask": lambda: da.from_array(x.toarray(), chunks=(4000, -1)),
        }[kind]()


class Containers(Visium):
    """The same from other containers, and with other options."""

    params = ("csr", "dense", "csc", "dask")
    param_names = ("container",)

    def setup(self, kind: str) -> None:
        super().setup()
        self.as_stored(kind)

    def time_map_to_spots(self, kind: str) -> None:  # noqa: ARG002
        stmsi.pp.map_to_spots(self.sdata)

    track_speedup_over_aggregate = track_largest_relative_difference = track_memory_ratio = None


class Bins:
    """102,400 bins of 8 um on 4,900 pixels of 50 um x 200 ions."""

    timeout = 300

    def setup(self) -> None:
        row, col = (v.ravel() for v in np.indices((320, 320)))
        square = shapely.box(col * 8.0, row * 8.0, col * 8.0 + 8, row * 8.0 + 8)
        centre = np.column_stack([col, row]) * 8.0 + 4
        self.sdata = paired_section(70, 50.0, 200, centre / 8 * 60)  # spots must not overlap; replaced by the bins
        middle = np.full(2, 1280.0)
        turn = np.array([[-np.cos(ANGLE), -np.sin(ANGLE)], [-np.sin(ANGLE), np.cos(ANGLE)]])
        shift = middle - turn @ np.full(2, 70 * 25.0)
        stmsi.pp.align(self.sdata, transformation=np.column_stack([turn, shift]))
        element = ShapesModel.parse(gpd.GeoDataFrame(geometry=square), transformations={"s": Identity()})
        self.sdata.shapes["s_spots"] = element

    def time_map_to_spots(self) -> None:
        stmsi.pp.map_to_spots(self.sdata)


def report(title: str, numbers: dict[str, float]) -> None:
    print(title)
    for name, value in numbers.items():
        print(f"  {name}: {value:.3g}")


if __name__ == "__main__":
    small = Mapping()
    small.setup()
    report(Mapping.__doc__ or "", small.compare())
    large = Visium()
    large.setup()
    if "--full" in sys.argv:
        report(Visium.__doc__ or "", large.compare())
    for kind in ("csr", "dense", "csc", "dask"):
        large.as_stored(kind)
        report(f"{Visium.__doc__} As {kind}.", own(large))
    large.as_stored("csr")
    for options in ({"method": "nearest"}, {"agg": "tic"}, {"agg": "median"}, {"replicates": True}):
        report(f"{Visium.__doc__} With {options}.", own(large, **options))
    del large
    bins = Bins()
    bins.setup()
    report(Bins.__doc__ or "", own(bins))
    del bins.sdata

"""Mapping pixels to spots: speed as a ratio to spatialdata's aggregation, measured in the same run.

asv run --config benchmarks/asv.conf.json --python=same --quick
python benchmarks/speed/mapping.py          # prints the same numbers
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pandas as pd
from anndata import AnnData

import stmsi

SIDE, SPOTS, IONS, PIXEL = 90, 400, 50, 40.0


def paired_section():
    """A raster of random ions under a hexagon of spots, rotated and mirrored."""
    rng = np.random.default_rng(0)
    row, col = (v.ravel() for v in np.indices((SIDE, SIDE)))
    ions = rng.lognormal(3, 1, (SIDE * SIDE, IONS)).astype(np.float32) * (rng.random((SIDE * SIDE, IONS)) < 0.4)
    ions[:, -1] = 1
    msi = AnnData(
        ions,
        obs=pd.DataFrame({"row": row, "col": col}, index=[str(i) for i in range(SIDE * SIDE)]),
    )
    n = int(np.sqrt(SPOTS))
    r, c = (v.ravel() for v in np.indices((n, n)))
    xy = np.column_stack([c * 100.0 + (r % 2) * 50.0, r * 100.0 * np.sqrt(3) / 2]) + 700.0
    st = AnnData(np.ones((len(xy), 2), np.float32), obsm={"spatial": xy})
    sdata = stmsi.pp.combine({"s": st}, {"s": msi}, pixel_size=PIXEL)
    angle = 0.4
    matrix = np.array([[-np.cos(angle), -np.sin(angle), 4200.0], [-np.sin(angle), np.cos(angle), 600.0]])
    stmsi.pp.align(sdata, transformation=matrix)
    return sdata


def by_aggregate(sdata) -> np.ndarray:
    """The oracle: sums weighted by overlap fraction, divided by those of the last ion, which is 1 in every pixel."""
    summed = sdata.aggregate(
        values="s_pixels", by="s_spots", value_key=list(sdata.tables["msi"].var_names), table_name="msi",
        fractions=True, agg_func="sum", target_coordinate_system="s",
    )  # fmt: skip
    table = summed.tables["msi"].to_df().to_numpy()
    return table / table[:, -1:]


class Mapping:
    """400 spots on 8,100 pixels x 50 ions."""

    timeout = 300

    def setup(self) -> None:
        self.sdata = paired_section()

    def time_map_to_spots(self) -> None:
        stmsi.pp.map_to_spots(self.sdata)

    def track_speedup_over_aggregate(self) -> float:
        start = perf_counter()
        by_aggregate(self.sdata)
        theirs = perf_counter() - start
        stmsi.pp.map_to_spots(self.sdata)
        start = perf_counter()
        stmsi.pp.map_to_spots(self.sdata)
        return theirs / (perf_counter() - start)

    def track_largest_relative_difference(self) -> float:
        """Over covered spots and ions; spatialdata's circle is a 64-gon."""
        oracle = by_aggregate(self.sdata)
        stmsi.pp.map_to_spots(self.sdata)
        st = self.sdata.tables["st"]
        inside = (st.obs["msi_coverage"] > 0.999).to_numpy()
        ours, theirs = st.obsm["msi"].to_numpy()[inside], oracle[inside]
        return float((np.abs(ours - theirs) / theirs.max(axis=0)).max())


if __name__ == "__main__":
    bench = Mapping()
    bench.setup()
    print(f"speed-up over aggregate: {bench.track_speedup_over_aggregate():.0f}x")
    print(f"largest difference, relative to an ion's largest value: {bench.track_largest_relative_difference():.2e}")

"""Synthetic layers: seconds of 100 draws for 5,000 spots x 200 metabolites, with structure in space and between metabolites.

asv run --config benchmarks/asv.conf.json --python=same --quick
python benchmarks/speed/draws.py          # prints the same numbers
"""

from __future__ import annotations

from time import perf_counter, process_time

import numpy as np
from scipy.special import ndtr

from stmsi._core.spatial.random_fields import FieldSampler
from stmsi._core.spatial.simulated_tissue import visium_positions
from stmsi._core.uncertainty.copula import HurdleCopula

N_SPOTS, N_METABOLITES, N_DRAWS = 5000, 200, 100


class Draws:
    """What the draws of a trained model cost, its predictions being there: 5,000 spots x 200 metabolites of one section."""

    timeout = 600

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.xy = visium_positions(6600, 6600, 100.0)[0][:N_SPOTS]
        self.section = np.zeros(N_SPOTS, int)
        shape = (N_SPOTS, N_METABOLITES)
        self.probability, self.predicted = rng.uniform(0.05, 0.95, shape), rng.uniform(1, 3, shape)
        fields = FieldSampler.build(self.xy, self.section, 400.0)(rng.standard_normal((N_SPOTS, 5), dtype=np.float32))
        z = fields @ rng.normal(0, 0.3, (5, N_METABOLITES)) + 0.7 * rng.standard_normal(shape)
        u = ndtr(z / z.std(axis=0))
        present = u > 1 - self.probability
        measured = np.where(present, self.predicted + (u - 1 + self.probability) / self.probability, 0)
        self.copula = HurdleCopula.fit(
            np.array([f"m{i}" for i in range(N_METABOLITES)], object), measured, present.astype(float),
            self.probability, self.predicted, self.section, self.xy,
        )  # fmt: skip

    def time_draws(self) -> None:
        layers = self.copula.draw(
            self.probability, self.predicted, self.xy, self.section, N_DRAWS, np.random.default_rng(1)
        )
        for _ in layers:
            pass


if __name__ == "__main__":
    suite = Draws()
    suite.setup()
    start, cpu = perf_counter(), process_time()
    suite.time_draws()
    print(f"{N_DRAWS} draws: {perf_counter() - start:.1f} s, {process_time() - cpu:.1f} s of the processor")

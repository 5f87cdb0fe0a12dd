"""How the compiled reader of imzML moves bytes: its loop, which runs in vectors, beside an assignment to a slice, which numba copies byte by byte.

    python benchmarks/speed/copied_bytes.py

Processor time of one thread, the least of seven runs each, and the ratio.
"""

from __future__ import annotations

from time import thread_time

import numba
import numpy as np

from stmsi._core.spectra import spectra_kernel

_BYTES = 2**22


@numba.njit(nogil=True)
def by_slice(out: np.ndarray, values: np.ndarray) -> None:
    """Copy as numba does it."""
    out[: values.size] = values


def main() -> None:
    source, out = np.random.default_rng(0).integers(0, 255, _BYTES).astype(np.uint8), np.empty(_BYTES, np.uint8)
    source.flags.writeable = False  # as the mapped file
    least = {}
    for name, move in (("loop", spectra_kernel._copy), ("slice", by_slice)):
        move(out, source)  # compiles
        taken = []
        for _ in range(7):
            start = thread_time()
            move(out, source)
            taken.append(thread_time() - start)
        least[name] = min(taken)
        assert np.array_equal(out, source)
        out[:] = 0
    print(
        f"loop {1e3 * least['loop']:.2f} ms, slice {1e3 * least['slice']:.2f} ms: {least['slice'] / least['loop']:.1f} times as fast."
    )


if __name__ == "__main__":
    main()

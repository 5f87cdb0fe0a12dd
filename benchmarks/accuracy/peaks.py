"""Peaks, masses and annotations: what is found of what is known to be there.

    python benchmarks/accuracy/peaks.py --data ../shared/data --out benchmarks/accuracy/results/peaks.csv

`storage`: the two imzML.org reference files (the same spectra, stored as continuous and as processed), read at the ions
that are picked. `centroids`, `noise`: ten ions of resolving power 10,000 in 30 simulated profiles, by the width of a bin.
`calibrants`: the same with a planted mass error and drift. `lipids`: lipids of the core table at their exact m/z, picked on
20 ppm bins and annotated at 5 ppm. `annotation`: half of CoreMetabolome (METASPACE) is the database; the unknown ions are
molecules of the other half, as [M+H]+ or as [M+Na]+. Real spectra are the reference files alone; all others are simulated.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from pyimzml.ImzMLWriter import ImzMLWriter

import stmsi
from stmsi._core.chemistry.adducts import parse_adduct
from stmsi._core.chemistry.formulas import Formulas, monoisotopic_mass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

IONS = np.array([184.0733, 263.2369, 311.2217, 400.3421, 525.3, 616.1767, 703.5749, 760.5851, 782.5670, 798.5410])
RESOLVING_POWER = 10_000
N_SPECTRA = 30
HEIGHT = 200.0  # of the ions, over noise of 1
POSITIVE = ["[M+H]+", "[M+Na]+", "[M+K]+"]


def profile(axis: NDArray[np.float64], ions: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    """Gaussian peaks on an axis."""
    out = np.zeros(len(axis))
    for ion in ions:
        sigma = ion / RESOLVING_POWER / 2.3548
        near = slice(*np.searchsorted(axis, [ion - 8 * sigma, ion + 8 * sigma]))
        out[near] += height * np.exp(-0.5 * ((axis[near] - ion) / sigma) ** 2)
    return out


def write_profiles(
    path: Path,
    ions: NDArray[np.float64],
    step: float,
    *,
    shift: Callable[[float], float] = lambda _: 0.0,
    seed: int = 0,
) -> Path:
    """Profiles of `ions` with bins of `step` ppm and a mass error (ppm) that depends on the time, 0 to 1."""
    rng = np.random.default_rng(seed)
    axis = np.exp(np.arange(np.log(ions.min() - 30), np.log(ions.max() + 50), step * 1e-6))
    with ImzMLWriter(str(path), mode="continuous", spec_type="profile") as writer:
        for k in range(N_SPECTRA):
            moved = ions * (1 + shift(k / (N_SPECTRA - 1)) * 1e-6)
            noise = np.abs(rng.normal(0, 1, len(axis)))
            writer.addSpectrum(axis, (profile(axis, moved, HEIGHT) + noise).astype(np.float32), (k + 1, 1))
    return path


def errors_ppm(found: pd.Series, true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Error of the nearest ion that was found to each true one, in ppm."""
    mz = found.to_numpy()
    return (mz[np.abs(mz[:, None] - true).argmin(axis=0)] / true - 1) * 1e6


def storage(data: Path, folder: Path) -> Iterator[dict[str, Any]]:  # noqa: ARG001 (one form for all)
    """Ions of the reference pair, and what is read at them."""
    found = {}
    for mode in ("Continuous", "Processed"):
        path = data / "imzml" / "pyimzml_examples" / f"Example_{mode}.imzML"
        ions = found[mode] = stmsi.pp.pick_peaks(path)
        table = stmsi.io.read_imzml(path, mz=ions, pixel_size=100).tables["msi"]
        yield {"part": "storage", "case": f"{mode}, ions", "value": len(ions)}
        yield {"part": "storage", "case": f"{mode}, columns all zero", "value": int((table.X.sum(axis=0) == 0).sum())}
        yield {
            "part": "storage",
            "case": f"{mode}, share of TIC",
            "value": float(table.X.sum() / table.obs["tic"].sum()),
        }
    both = np.intersect1d(found["Continuous"].index, found["Processed"].index)
    yield {"part": "storage", "case": "ions of both", "value": len(both)}


def centroids(data: Path, folder: Path) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """Error of centroids, and ions that are noise at the default signal-to-noise ratio."""
    for step in (5, 10, 20, 40):
        ions = stmsi.pp.pick_peaks(write_profiles(folder / f"{step}.imzML", IONS, step))
        error = np.abs(errors_ppm(ions["mz"], IONS))
        yield {"part": "centroids", "case": f"{step} ppm bins, median error (ppm)", "value": float(np.median(error))}
        yield {"part": "centroids", "case": f"{step} ppm bins, largest error (ppm)", "value": float(error.max())}
        yield {"part": "noise", "case": f"{step} ppm bins, ions that are noise", "value": len(ions) - len(IONS)}


def calibrants(data: Path, folder: Path) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """Error that is left after recalibration, and drift."""
    for step in (3, 20):
        for planted in (0.0, 12.0):
            path = write_profiles(folder / f"c{step}-{planted}.imzML", IONS, step, shift=lambda _, p=planted: p)
            ions = stmsi.pp.pick_peaks(path, calibrants=IONS[[0, 4, 9]], recalibrate=True, search=40, tolerance=30)
            case = f"{step} ppm bins, {planted:g} ppm planted, median error after (ppm)"
            yield {"part": "calibrants", "case": case, "value": float(np.median(np.abs(errors_ppm(ions["mz"], IONS))))}
        path = write_profiles(folder / f"d{step}.imzML", IONS, step, shift=lambda t: 8 * t)
        drift = stmsi.pp.pick_peaks(path, calibrants=IONS, search=40).attrs["calibration"]["drift_ppm"]
        yield {"part": "calibrants", "case": f"{step} ppm bins, drift of 8 ppm found", "value": float(np.median(drift))}


def lipids(data: Path, folder: Path) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """Lipids of the core table that are among the candidates of the ion picked at their m/z, and those named best."""
    core = stmsi.datasets.core_metabolites()
    core = core[core["formula"].str.contains("N") & core["name"].str.contains(r"\d:\d")].drop_duplicates("formula")
    mass = Formulas(core["formula"].tolist())
    core = core.assign(ion=mass.masses + parse_adduct("[M+H]+").shift)[~mass.charged].sort_values("ion")
    chosen, last = [], 0.0
    for row in core.itertuples():
        if row.ion > last * (1 + 3 / RESOLVING_POWER) and row.ion > 400:
            chosen.append(row)
            last = row.ion
    chosen = chosen[:65]
    path = write_profiles(folder / "lipids.imzML", np.array([row.ion for row in chosen]), 20)
    ions = stmsi.pp.pick_peaks(path)
    table = ad.AnnData(np.ones((2, len(ions)), np.float32), var=ions[["mz"]])
    stmsi.pp.annotate_mz(table, polarity="positive", adducts=POSITIVE, ppm=5)
    candidates = table.uns["annotation"]["candidates"]
    own = candidates[candidates["adduct"] == "[M+H]+"]
    yield {"part": "lipids", "case": "lipids planted", "value": len(chosen)}
    for case, rows in (("among the candidates", own), ("named first", own[own["rank"] == 1])):
        value = sum(row.formula in set(rows["formula"]) for row in chosen)
        yield {"part": "lipids", "case": case, "value": value}


def annotation(data: Path, folder: Path) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """Share of false annotations at the stated rate, where the unknown ions are real molecules."""
    table = pd.read_csv(data / "annotation" / "CoreMetabolome-v3.csv")
    formulas = table["formula"][table["formula"].str.fullmatch(r"(?:(?:C|H|N|O|P|S)\d*)+")].drop_duplicates().to_numpy()
    mass = {f: monoisotopic_mass(f) for f in formulas}
    for n_true, n_unknown, ion in (
        (30, 300, "[M+H]+"),
        (150, 150, "[M+H]+"),
        (300, 30, "[M+H]+"),
        (30, 300, "[M+Na]+"),
    ):
        shift = np.repeat([parse_adduct("[M+H]+").shift, parse_adduct(ion).shift], [n_true, n_unknown])
        for limit in (0.05, 0.1, 0.2, 0.5):
            kept, false = [], []
            for seed in range(8):
                rng = np.random.default_rng(seed)
                order = rng.permutation(formulas)
                known, unknown = order[: len(order) // 2], order[len(order) // 2 :]
                ions = [*rng.choice(known, n_true, replace=False), *rng.choice(unknown, n_unknown, replace=False)]
                measured = (np.array([mass[f] for f in ions]) + shift) * (1 + rng.normal(0, 1, len(ions)) * 1e-6)
                msi = ad.AnnData(np.ones((2, len(ions)), np.float32), var=pd.DataFrame({"mz": measured}, index=[f"i{k}" for k in range(len(ions))]))  # fmt: skip
                stmsi.pp.annotate_mz(msi, pd.DataFrame({"name": known, "formula": known}), adducts=POSITIVE, ppm=5)
                good = msi.var["fdr"].to_numpy(float) <= limit
                kept.append(good.sum())
                false.append((msi.var["formula"].to_numpy()[good] != np.array(ions)[good]).sum())
            case = f"{n_true} known, {n_unknown} unknown {ion}, stated {limit:g}"
            yield {"part": "annotation", "case": f"{case}: annotated", "value": int(np.sum(kept))}
            yield {
                "part": "annotation",
                "case": f"{case}: realised",
                "value": float(np.sum(false) / max(np.sum(kept), 1)),
            }


PARTS = {f.__name__: f for f in (storage, centroids, calibrants, lipids, annotation)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stmsi.settings.progress_bar = False
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in args.parts:
            for row in PARTS[part](args.data, Path(folder)):
                print(f"{row['part']:12} {row['case']:60} {row['value']:.4g}", flush=True)
                rows.append(row)
    if args.out is not None:
        pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()

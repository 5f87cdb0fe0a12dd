"""Alignment, with and without landmarks: how far off, which way up, and whether it says so when it cannot tell.

    STMSI_DATA=... python benchmarks/accuracy/registration.py
    STMSI_DATA=... python benchmarks/accuracy/registration.py --tasks embryo brain --repeats 2

Tasks

``embryo``       real MSI pixels and RNA bins; the published alignment is the truth (masks only).
``brain``        real Visium + MALDI section, no truth: 20 random turns, shifts and mirrors of the ST frame; each result is
                 taken back and compared with the others (masks only).
``orientation``  real outlines with **simulated** intensities: the MSI outline is displaced by a smooth random field, the
                 section turned and mirrored at random. ``signal`` is the share of an ion's variance that genes share: 0 has
                 none, so that nothing but masks can be right.
``confidence``   masks only, real and symmetric outlines, displaced by up to 200 um: sure where right, and right where sure.
``turned``       outlines that the capture frame cuts, the slide turned by 0 to 90 degrees, spots on tissue only; masks only.
``partial``      half, three quarters or a torn piece of the pixels; **simulated** intensities, signal 0.3.
``refits``       error over the reported spread of refits, real outlines and deformed simulated sections.
``simulator``    ``stmsi.datasets.simulate``: turns, mirrors, part of the tissue not measured; truth known.
``deformation``  the same with smooth deformations of 200 and 400 um at most and 12 landmarks, by model; truth known.

Each task writes ``results/registration_<task>.csv`` and a line per setting to ``results/registration.csv``. Times are CPU
seconds of one thread.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import ndimage
from scipy.spatial import cKDTree

from stmsi._core.registration.automatic import Verdict, register_sections
from stmsi._core.registration.component_images import CrossModal
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import FREE, KNOWN, Placement, same_place
from stmsi._core.registration.spatial_components import spatial_components
from stmsi._core.registration.tissue_masks import TissuePoints, TissueRaster, frame_points, pixel_raster
from stmsi.pp._alignment.automatic import automatic_input, judged
from stmsi.pp._alignment.section_geometry import aligned

DATA = Path(os.environ.get("STMSI_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
RESULTS = Path(__file__).parent / "results"
EMBRYO, BRAIN = DATA / "registration" / "jsrs_cs12", DATA / "registration" / "sma_V11L12-109_B1"
FIELD = 25.0
"""Spacing of simulated fields in micrometres."""


def turn(rng: np.random.Generator, *, shift: float = 3000.0, mirror: bool | None = None) -> np.ndarray:
    """A random rigid motion, mirrored in half of the cases."""
    angle = rng.uniform(-np.pi, np.pi)
    hand = -1.0 if (rng.random() < 0.5 if mirror is None else mirror) else 1.0
    out = np.eye(3)
    out[:2, :2] = [[hand * np.cos(angle), -np.sin(angle)], [hand * np.sin(angle), np.cos(angle)]]
    out[:2, 2] = rng.uniform(-shift, shift, 2)
    return out


def distances(a: np.ndarray, b: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return np.hypot(*(apply_affine(a, xy) - apply_affine(b, xy)).T)


def masks_only(moving: TissueRaster, fixed: TissuePoints, seed: int = 0, n_perturb: int = 12, freedom=KNOWN) -> Verdict:
    return register_sections(moving, fixed, None, np.random.default_rng(seed), freedom, n_perturb=n_perturb)


# --- embryo


def embryo_points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MSI raster positions, where the published alignment puts them, RNA bins."""
    before = pd.read_csv(EMBRYO / "msi_coords_before_cs12_3.csv")[["x", "y"]].to_numpy(float)
    after = pd.read_csv(EMBRYO / "msi_coords_aligned_cs12_3.csv")[["x", "y"]].to_numpy(float)
    return before, after, pd.read_csv(EMBRYO / "rna_coords_cs12_3.csv")[["x", "y"]].to_numpy(float)


def embryo(_: argparse.Namespace) -> pd.DataFrame:
    before, after, rna = embryo_points()
    pixel = float(np.sqrt(abs(np.linalg.det(np.linalg.lstsq(np.c_[before, np.ones(len(before))], after)[0][:2]))))
    rows = []
    settings = {
        "RNA bins, a crop (crop=True)": (rna, {"crop": True}),
        "RNA bins, taken for all tissue": (rna, {}),
        "published MSI as bins": (after, {}),
    }
    for name, (points, options) in settings.items():
        start = process_time()
        moving, fixed = pixel_raster(before * 40.0, np.array([40.0, 40.0])), frame_points(points, **options)
        v = masks_only(moving, fixed)
        error = distances_to(after, v.matrix, moving.xy) / pixel
        rows.append(
            {
                "setting": name, "median_pixels": np.median(error), "p90_pixels": np.quantile(error, 0.9), "iou": v.iou,
                "rivals": len(v.rivals), "spread_p90_um": v.resolution.p90_um, "cpu_s": process_time() - start,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def distances_to(target: np.ndarray, matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return np.hypot(*(apply_affine(matrix, xy) - target).T)


# --- brain


def brain_points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MSI pixels, all spots of the frame, which of them are on tissue; micrometres."""
    spots = pd.read_csv(BRAIN / "tissue_positions_list.csv", header=None)
    um = 100 / np.median(np.diff(np.sort(spots.loc[spots[2] == 0, 5])))
    pixels = pd.read_csv(BRAIN / "msi_pixels.csv", index_col=0)[["x", "y"]].to_numpy(float) * 100
    return pixels, spots[[5, 4]].to_numpy(float) * um, spots[1].to_numpy() > 0


def brain(_: argparse.Namespace) -> pd.DataFrame:
    pixels, spots, on = brain_points()
    rng = np.random.default_rng(0)
    placed, seconds, rivals = {}, [], []
    for name, freedom, unit in (("pixel size known", KNOWN, 1.0), ("pixel size unknown", FREE, 0.01)):
        found, score = [], []
        for k in range(20):
            motion = turn(rng)
            start = process_time()
            moving = pixel_raster(pixels * unit, np.array([100.0, 100.0]) * unit)
            there = apply_affine(motion, spots)
            fixed = frame_points(there[on], there[~on])
            factor = np.sqrt(fixed.area / moving.area) if freedom is FREE else 1.0
            v = masks_only(moving.scaled(factor), fixed, k, freedom=freedom)
            seconds.append(process_time() - start)
            found.append(np.linalg.inv(motion) @ v.matrix @ np.diag([factor * unit, factor * unit, 1.0]))
            score.append(v.candidates[v.chosen].placement.score)
            rivals.append(len(v.rivals))
        placed[name] = found, score
    rows = []
    for (name, (found, score)), cpu in zip(placed.items(), np.split(np.array(seconds), 2), strict=True):
        middle = found[int(np.argmax(score))]
        apart = np.array([distances(m, middle, pixels) for m in found])
        rows.append(
            {
                "setting": name, "starts": len(found), "one_basin": int((np.median(apart, axis=1) < 100).sum()),
                "spread_median_um": np.median(apart), "spread_p90_um": np.quantile(apart, 0.9),
                "mirrored": int(np.linalg.det(middle[:2, :2]) < 0), "cpu_s_median": np.median(cpu), "cpu_s_max": cpu.max(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


# --- orientation


def outlines() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Real outlines: spots on tissue, spots off tissue, all in micrometres, tissue as MSI sees it, and the pixel size."""
    import anndata as ad

    result = {}
    _, spots, on = brain_points()
    result["brain"] = spots[on], spots[~on], spots[on], 100.0
    _, after, _ = embryo_points()
    grid = np.stack(np.meshgrid(*(np.arange(a, b, 100.0) for a, b in zip(after.min(0) - 300, after.max(0) + 300, strict=True))), -1).reshape(-1, 2)  # fmt: skip
    inside = cKDTree(after).query(grid)[0] < 45
    frame = grid[:, 1] > 800  # the frame cuts the lower end, as it does in many sections
    result["embryo"] = grid[inside & frame], grid[~inside & frame], grid[inside], 50.0
    placenta = pd.read_csv(DATA / "spaceranger_placenta" / "spatial" / "tissue_positions.csv")
    xy = np.column_stack([placenta["array_col"] * 50.0, placenta["array_row"] * 50.0 * np.sqrt(3)])
    on = placenta["in_tissue"].to_numpy() > 0
    result["placenta"] = xy[on], xy[~on], xy[on], 50.0
    her2 = ad.read_h5ad(DATA / "her2st" / "her2st_36_sections.h5ad", backed="r").obs
    lattice = np.stack(np.meshgrid(np.arange(1, 34), np.arange(1, 36)), -1).reshape(-1, 2) * 200.0
    for section in ("A1", "B1", "C1", "D1", "E1", "F1", "G1", "H1"):
        own = her2.loc[her2["section"] == section, ["array_x", "array_y"]].to_numpy(float) * 200.0
        off = lattice[cKDTree(own).query(lattice)[0] > 100]
        result[f"her2st {section}"] = own, off, own, 100.0
    return result


class Field:
    """Smooth random fields around a tissue, and what they are at any place."""

    def __init__(self, tissue: np.ndarray, rng: np.random.Generator):
        self.low, self.high = tissue.min(axis=0) - 1000, tissue.max(axis=0) + 1000
        self.shape = tuple(np.ceil((self.high - self.low) / FIELD).astype(int)[::-1] + 1)
        self.rng = rng

    def draw(self, n: int, length: float) -> np.ndarray:
        out = ndimage.gaussian_filter(
            self.rng.standard_normal((n, *self.shape)), (0, length / FIELD, length / FIELD), mode="wrap"
        )
        return out / out.std(axis=(1, 2), keepdims=True)

    def at(self, f: np.ndarray, xy: np.ndarray) -> np.ndarray:
        where = ((xy - self.low) / FIELD).T[::-1]
        return np.column_stack([ndimage.map_coordinates(v, where, order=1, mode="nearest") for v in f])


def displaced_pixels(outline, noise: float, field: Field):
    """MSI pixels of a tissue whose outline is displaced by a random field; in their frame, in the true place, the truth."""
    on, _, tissue, pixel = outline
    rng, low, high = field.rng, field.low, field.high
    pitch = float(np.median(cKDTree(on).query(on, k=2)[0][:, 1]))
    grid = np.stack(np.meshgrid(np.arange(field.shape[1]), np.arange(field.shape[0])), -1).reshape(-1, 2) * FIELD + low
    near = (cKDTree(tissue).query(grid)[0] < 0.75 * pitch).reshape(field.shape)
    solid = ndimage.gaussian_filter(near.astype(float), 0.3 * pitch / FIELD) > 0.5
    distance = (ndimage.distance_transform_edt(solid) - ndimage.distance_transform_edt(~solid)) * FIELD
    truth = turn(rng)
    corners = apply_affine(
        np.linalg.inv(truth), np.array([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])])
    )
    axes = [np.arange(a, b, pixel) for a, b in zip(corners.min(0), corners.max(0), strict=True)]
    raster = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    there = apply_affine(truth, raster)
    inside = ((there > low) & (there < high)).all(axis=1)
    seen = inside & (field.at(distance[None] + noise * field.draw(1, 400.0), there)[:, 0] > 0)
    return raster[seen], there[seen], truth


def simulated_section(outline, noise: float, signal: float, rng: np.random.Generator, kept=None):
    """Masks and components of one section, and the true placement.

    `kept` takes places of pixels in the ST frame and says which of them were measured; then the spots know nothing of it.
    """
    on, off, tissue, pixel = outline
    field = Field(tissue, rng)
    pixels, there, truth = displaced_pixels(outline, noise, field)
    if kept is not None:
        measured = kept(there)
        pixels, there = pixels[measured], there[measured]
    latent = np.concatenate([field.draw(4, 400.0), field.draw(4, 150.0)])
    n_genes, n_ions = 150, 40
    rate = 0.5 * field.at(latent, on) @ rng.normal(0, 1, (n_genes, 8)).T / np.sqrt(2) + rng.normal(0, 1, n_genes)
    counts = rng.poisson(rng.gamma(5.0, np.exp(rate) / 5.0))
    shared = field.at(latent, there) @ rng.normal(0, 1, (n_ions, 8)).T / np.sqrt(8)
    # what genes do not know has the same smoothness, and few patterns, as ions have
    hidden = np.concatenate([field.draw(4, 400.0), field.draw(4, 150.0)])
    own = field.at(hidden, there) @ rng.normal(0, 1, (n_ions, 8)).T / np.sqrt(8)
    ions = np.exp(np.sqrt(signal) * shared + np.sqrt(1 - signal) * own + rng.normal(0, 0.4, shared.shape))
    moving, fixed = pixel_raster(pixels, np.array([pixel, pixel])), frame_points(on, off)
    a = spatial_components(sp.csr_matrix(ions), pixels, 8, rng)[0]
    b = spatial_components(sp.csr_matrix(counts), on, 10, rng)[0]
    return moving, fixed, CrossModal.build(moving, fixed, a, b, rng), truth


def orientation_trial(name, outline, noise, signal, seed) -> dict:
    rng = np.random.default_rng([seed, int(noise), int(100 * signal), sum(map(ord, name))])
    moving, fixed, data, truth = simulated_section(outline, noise, signal, rng)
    target = Placement(truth, 1.0)
    row = {"outline": name, "noise_um": noise, "signal": signal, "seed": seed}
    for stage, given in (("masks", None), ("intensities", data)):
        start = process_time()
        v = register_sections(moving, fixed, given, np.random.default_rng(seed), n_perturb=0)
        row[f"{stage}_s"] = process_time() - start
        right = same_place(Placement(v.matrix, 1.0), target, moving.xy, fixed.pitch)
        row |= {f"{stage}_right": right, f"{stage}_flagged": bool(v.rivals), f"{stage}_by": v.decided_by}
        row[f"{stage}_error_um"] = float(np.median(distances(v.matrix, truth, moving.xy)))
        z = sorted((c.z for c in v.candidates), reverse=True)
        row |= {f"{stage}_z": v.candidates[v.chosen].z, f"{stage}_z2": z[1] if len(z) > 1 else np.nan}
        score = [c.placement.score for c in v.candidates]
        row |= {f"{stage}_score": score[0], f"{stage}_gap": 1 - score[1] / score[0] if len(score) > 1 else np.nan}
        row[f"{stage}_truth_listed"] = any(
            same_place(c.placement, target, moving.xy, fixed.pitch) for c in v.candidates
        )
    return row


def orientation(args: argparse.Namespace) -> pd.DataFrame:
    from joblib import Parallel, delayed

    known = outlines()
    jobs = [
        delayed(orientation_trial)(name, known[name], noise, signal, seed)
        for signal in (0.0, 0.1, 0.3, 0.6)
        for noise in (50.0, 100.0)
        for name in known
        for seed in range(args.repeats if signal else max(1, args.repeats // 2))
    ]
    table = pd.DataFrame(Parallel(n_jobs=args.jobs)(jobs))
    table.to_csv(RESULTS / "registration_orientation.csv", index=False, float_format="%.4g")
    rows = []
    for (signal, noise), part in table.groupby(["signal", "noise_um"]):
        for stage in ("masks", "intensities"):
            right, flagged = part[f"{stage}_right"], part[f"{stage}_flagged"]
            rows.append(
                {
                    "setting": f"{stage}, signal {signal:g}, outline noise {noise:g} um", "trials": len(part),
                    "right": right.mean(), "wrong_and_sure": int((~right & ~flagged).sum()),
                    "wrong": int((~right).sum()), "false_alarms": flagged[right].mean(),
                    "error_um_of_right": part.loc[right, f"{stage}_error_um"].median(),
                    "cpu_s_median": part[f"{stage}_s"].median(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


# --- confidence of masks


def symmetric_outlines() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Made-up outlines that fit several ways, or nearly."""
    grid = np.stack(np.meshgrid(np.arange(0, 6000, 100.0), np.arange(0, 6000, 100.0)), -1).reshape(-1, 2)
    xy = grid - 3000
    radius, angle = np.hypot(*xy.T), np.arctan2(xy[:, 1], xy[:, 0])
    inside = {f"oval {a:g}, {b:g}": radius < 2000 * (1 + a * np.cos(2 * angle) + b * np.cos(3 * angle + 0.5)) for a, b in ((0, 0), (0.15, 0), (0.15, 0.02), (0.15, 0.05))}  # fmt: skip
    inside |= {"square": (np.abs(xy) < 2000).all(axis=1), "rectangle": (np.abs(xy) < [2200, 1500]).all(axis=1)}
    return {name: (grid[on], grid[~on], grid[on], 50.0) for name, on in inside.items()}


def confidence(args: argparse.Namespace) -> pd.DataFrame:
    """Masks alone: whether they are right where they are sure, and sure where they are right."""
    rows = []
    for kind, known in (("real outlines", outlines()), ("symmetric outlines", symmetric_outlines())):
        for noise in (50.0, 100.0, 200.0):
            for name, outline in known.items():
                for seed in range(max(1, args.repeats // 4)):
                    rng = np.random.default_rng([seed, int(noise), sum(map(ord, name))])
                    pixels, _, truth = displaced_pixels(outline, noise, Field(outline[2], rng))
                    moving = pixel_raster(pixels, np.array([outline[3], outline[3]]))
                    fixed = frame_points(outline[0], outline[1])
                    v = masks_only(moving, fixed, seed, 0)
                    right = same_place(Placement(v.matrix, 1.0), Placement(truth, 1.0), moving.xy, fixed.pitch)
                    rows.append((f"{kind}, {noise:g} um", name, seed, right, bool(v.rivals), v.candidates[0].share))
    table = pd.DataFrame(rows, columns=["setting", "outline", "seed", "right", "ambiguous", "share"])
    table.to_csv(RESULTS / "registration_confidence.csv", index=False, float_format="%.4g")
    rows = []
    for setting, part in table.groupby("setting", sort=False):
        right, flagged = part["right"], part["ambiguous"]
        rows.append((setting, len(part), right.mean(), int((~right & ~flagged).sum()), flagged[right].mean()))
    return pd.DataFrame(rows, columns=["setting", "trials", "right", "wrong_and_sure", "false_alarms"])


# --- turned slides and pieces


def cut_outlines() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Real outlines that the capture frame cuts along one or two sides, on square and hexagonal lattices."""
    known = outlines()
    result = {name: known[name] for name in ("embryo", "placenta")}
    on, _, tissue, pixel = known["embryo"]
    for name, at in (("embryo, two sides", (0.35, 0.3)), ("embryo, a quarter", (0.5, 0.5))):
        low = np.quantile(on, at, axis=0)[[0, 1], [0, 1]]
        seen = (on > low).all(axis=1)
        result[name] = on[seen], on[:0], tissue, pixel
    x, y = np.indices((90, 100)).reshape(2, -1)
    lattice = np.column_stack([x * 100.0 + 50.0 * (y % 2), y * 50.0 * np.sqrt(3)]) + tissue.min(axis=0)
    seen = (cKDTree(tissue).query(lattice)[0] < 70) & (lattice > np.quantile(lattice, 0.3, axis=0)).all(axis=1)
    result["embryo, hexagonal"] = lattice[seen], lattice[:0], tissue, pixel
    return result


def turned(args: argparse.Namespace) -> pd.DataFrame:
    """Spots on tissue only, of a frame that lies turned and cuts the tissue; masks only."""
    rows = []
    for name, outline in cut_outlines().items():
        on, _, tissue, pixel = outline
        for seed in range(max(1, args.repeats // 2)):
            rng = np.random.default_rng([seed, sum(map(ord, name))])
            pixels, _, truth = displaced_pixels(outline, 50.0, Field(tissue, rng))
            moving = pixel_raster(pixels, np.array([pixel, pixel]))
            for degrees in (0.0, 1.5, 5.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0):
                a = np.radians(degrees)
                slide = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
                v = masks_only(moving, frame_points(apply_affine(slide, on)), seed, 0)
                error = np.median(distances(v.matrix, slide @ truth, moving.xy))
                rows.append((name, seed, degrees, error, len(v.rivals)))
    table = pd.DataFrame(rows, columns=["outline", "seed", "degrees", "error_um", "rivals"])
    table.to_csv(RESULTS / "registration_turned.csv", index=False, float_format="%.4g")
    summary = table.groupby("degrees")["error_um"].agg(["size", "median", "max"]).reset_index()
    summary["degrees"] = [f"turned by {d:g} degrees" for d in summary["degrees"]]
    return summary.set_axis(["setting", "trials", "error_median_um", "error_worst_um"], axis=1)


PIECES = {"half": (0.5, 0.0), "three quarters": (0.75, 0.0), "torn piece": (0.55, 500.0)}
"""Share of the tissue that a piece keeps, and how far its edge departs from a straight line (um)."""


def piece(kind: str, tissue: np.ndarray, rng: np.random.Generator):
    """Which places belong to a piece of the tissue, cut off in a random direction."""
    share, ragged = PIECES[kind]
    field, angle = Field(tissue, rng), rng.uniform(0, 2 * np.pi)
    edge = field.draw(1, 600.0) * ragged

    def depth(xy: np.ndarray) -> np.ndarray:
        return xy @ [np.cos(angle), np.sin(angle)] + field.at(edge, xy)[:, 0]

    limit = np.quantile(depth(tissue), share)
    return lambda xy: depth(xy) < limit


def partial_trial(name, outline, kind, signal, seed) -> list[dict]:
    rng = np.random.default_rng([seed, int(100 * signal), sum(map(ord, name + kind))])
    kept = piece(kind, outline[2], rng)
    moving, fixed, data, truth = simulated_section(outline, 50.0, signal, rng, kept)
    rows = []
    for stage in ("masks", "intensities"):
        start = process_time()
        given = data if stage == "intensities" else None
        verdict = register_sections(moving, fixed, given, np.random.default_rng(seed), n_perturb=4)
        fit = judged(verdict, moving, fixed, np.eye(3))
        error = float(np.median(distances(fit.matrix, truth, moving.xy)))
        right = same_place(Placement(fit.matrix, 1.0), Placement(truth, 1.0), moving.xy, fixed.pitch)
        rows.append(
            {
                "outline": name, "piece": kind, "signal": signal, "seed": seed, "stage": stage, "right": right,
                "ambiguous": fit.ambiguous, "partial": fit.partial, "error_um": error, "iou": fit.iou,
                "spread_um": fit.resolution["median_um"], "cpu_s": process_time() - start,
            }
        )  # fmt: skip
    return rows


def partial(args: argparse.Namespace) -> pd.DataFrame:
    """MSI of a part of the tissue, of which the spots know nothing."""
    known = outlines()
    jobs = [
        partial_trial(name, known[name], kind, signal, seed)
        for signal in (0.3,)
        for kind in PIECES
        for name in ("brain", "her2st A1", "her2st D1", "her2st G1")
        for seed in range(max(1, args.repeats // 4))
    ]
    table = pd.DataFrame([row for job in jobs for row in job])
    table.to_csv(RESULTS / "registration_partial.csv", index=False, float_format="%.4g")
    rows = []
    for (kind, stage), part in table.groupby(["piece", "stage"], sort=False):
        right, flagged = part["right"], part["ambiguous"]
        rows.append(
            {
                "setting": f"{kind}, {stage}", "trials": len(part), "right": right.mean(),
                "right_and_sure": (right & ~flagged).mean(), "wrong_and_sure": int((~right & ~flagged).sum()),
                "called_partial": part["partial"].mean(), "error_um_of_right": part.loc[right, "error_um"].median(),
                "cpu_s_median": part["cpu_s"].median(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


# --- refits


def refits(_: argparse.Namespace) -> pd.DataFrame:
    """Median error over the reported spread of refits; 1 is honest, above is too good."""
    import stmsi

    rows = []
    known = outlines()
    for noise in (50.0, 100.0):
        for name in ("brain", "embryo", "her2st A1", "her2st B1", "her2st D1", "her2st G1"):
            rng = np.random.default_rng([7, int(noise), sum(map(ord, name))])
            moving, fixed, data, truth = simulated_section(known[name], noise, 0.4, rng)
            for stage, given in (("masks", None), ("intensities", data)):
                v = register_sections(moving, fixed, given, np.random.default_rng(0), n_perturb=8)
                error = float(np.median(distances(v.matrix, truth, moving.xy)))
                rows.append((f"real outlines, {stage}", error, v.resolution.median_um))
    for size, seed in ((200, 0), (0, 3)):
        sdata = stmsi.datasets.simulate(deformation=size, n_genes=150, n_patients=1, rng=seed, size=3000)
        msi, names = sdata.tables["msi"], sdata.tables["st"].uns["truth"]["transformation"]
        for name in list(names)[:2]:
            fit = automatic_input(sdata, name).fit(np.random.default_rng(0), 8)
            own = (msi.obs["sample"] == name).to_numpy()
            xy = msi.obsm["spatial"][own]
            there = msi.obsm["truth_spatial"][own] if size else apply_affine(names[name], xy)
            error = float(np.median(distances_to(there, fit.matrix, xy)))
            rows.append((f"simulated, deformed by {size} um", error, fit.resolution["median_um"]))
    table = pd.DataFrame(rows, columns=["setting", "error_um", "spread_um"])
    table["error_over_spread"] = table["error_um"] / table["spread_um"]
    return table.groupby("setting", sort=False).median().reset_index()


# --- simulator


def simulator(args: argparse.Namespace) -> pd.DataFrame:
    import stmsi

    rows = []
    for coverage in (1.0, 0.93, 0.8):
        for seed in range(args.repeats):
            sdata = stmsi.datasets.simulate(coverage=coverage, rng=seed)
            truth = sdata.tables["st"].uns["truth"]["transformation"]
            for name, matrix in truth.items():
                start = process_time()
                fit = automatic_input(sdata, name).fit(np.random.default_rng(0), 12)
                seconds = process_time() - start
                xy = sdata.tables["msi"].obsm["spatial"][(sdata.tables["msi"].obs["sample"] == name).to_numpy()]
                error = distances(fit.matrix, matrix, xy)
                rows.append((coverage, seed, name, np.median(error), np.quantile(error, 0.9), fit.ambiguous, fit.resolution["median_um"], seconds))  # fmt: skip
    columns = ["coverage", "seed", "section", "tre_median_um", "tre_p90_um", "ambiguous", "spread_median_um", "cpu_s"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(RESULTS / "registration_simulator.csv", index=False, float_format="%.4g")
    summary = table.groupby("coverage").agg(
        sections=("section", "size"), tre_median_um=("tre_median_um", "median"), tre_worst_um=("tre_median_um", "max"),
        tre_p90_um=("tre_p90_um", "median"), ambiguous=("ambiguous", "sum"), cpu_s_median=("cpu_s", "median"),
    )  # fmt: skip
    return summary.reset_index().rename(columns={"coverage": "setting"})


def deformation(args: argparse.Namespace) -> pd.DataFrame:
    import stmsi

    variants = {model: {"model": model} for model in ("similarity", "affine", "thin_plate")}
    variants |= {f"{m}, refined": {"model": m, "refine": "intensity"} for m in ("affine", "thin_plate")}
    rows = []
    for size in (200, 400):
        # seeds 0 to 3 served to choose the spacing and stiffness of `refine`: others are used here
        for seed in range(10, 10 + args.repeats):
            sdata = stmsi.datasets.simulate(deformation=size, n_landmarks=12, n_genes=300, rng=seed, n_patients=1)
            msi = sdata.tables["msi"]
            for label, options in variants.items():
                stmsi.pp.align(sdata, method="landmarks", **options, show_progress_bar=False)
                for name, record in msi.uns["alignment"].items():
                    own = (msi.obs["sample"] == name).to_numpy()
                    offset = aligned(record, msi.obsm["spatial"][own]) - msi.obsm["truth_spatial"][own]
                    error = np.hypot(*offset.T)
                    rows.append((f"{size} um, {label}", np.median(error), np.quantile(error, 0.9)))
    table = pd.DataFrame(rows, columns=["setting", "median_um", "p90_um"])
    summary = table.groupby("setting", sort=False).agg(
        sections=("median_um", "size"), median_um=("median_um", "median"), worst_um=("median_um", "max"),
        p90_um=("p90_um", "median"),
    )  # fmt: skip
    return summary.reset_index()


TASKS = {
    "embryo": embryo, "brain": brain, "orientation": orientation, "confidence": confidence, "turned": turned, "partial": partial,
    "refits": refits,
    "simulator": simulator, "deformation": deformation,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "registration.csv"
    for task in args.tasks:
        table = TASKS[task](args)
        print(f"\n{task}\n{table.round(3).to_string(index=False)}", flush=True)
        # read late: tasks may run side by side
        known = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["task", "setting", "figure", "value"])
        long = table.melt(id_vars="setting", var_name="figure").assign(task=task)[
            ["task", "setting", "figure", "value"]
        ]
        known = pd.concat([known[known["task"] != task], long], ignore_index=True)
        known.to_csv(file, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()

"""Would another calibration of presence do better on new patients? Changes of the probabilities of one and the same model.

    python benchmarks/trust/presence_calibration.py --seeds 101 102 103           # to choose by
    python benchmarks/trust/presence_calibration.py --seeds 201 202 203           # fresh: to check what was chosen

Sections as in ``interval_coverage.py``, of other seeds than its tables. Each patient is predicted by a model of the others. Every change is
fitted on the model's own held-out probabilities of its training spots. Writes ``results/presence_calibration.csv``, one row per seed,
model and change: calibration error (mean over metabolites, over those that follow genes and those that do not), its floor and Brier score.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from interval_coverage import MODELS, RESULTS, SETUP, SPLITTER, sections
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import stmsi
from stmsi.tl._models import train_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "accuracy"))
from calibration import noise_floor

Values = NDArray[np.float64]
N_BINS = 10


def log_odds(p: Values) -> Values:
    """Of probabilities, finite."""
    return logit(np.clip(p, 1e-4, 1 - 1e-4))


@dataclass(frozen=True)
class Case:
    """One metabolite: held-out probabilities of training spots, what was measured there, their groups; and spots of a new patient."""

    p: Values
    present: Values
    group: NDArray[np.int64]
    new: Values
    section: NDArray[np.int64]  # of the new spots


def as_they_are(c: Case) -> Values:
    """Platt's sigmoid, as models have it."""
    return c.new


def isotonic(c: Case) -> Values:
    """A rising step function on top."""
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(c.p, c.present).predict(c.new)


def beta(c: Case) -> Values:
    """Beta calibration (Kull and others 2017): log p and log(1 - p) have a slope each."""

    def of(values: Values) -> Values:
        q = np.clip(values, 1e-4, 1 - 1e-4)
        return np.column_stack([np.log(q), -np.log1p(-q)])

    return LogisticRegression(C=1e3).fit(of(c.p), c.present).predict_proba(of(c.new))[:, 1]


def section_offsets(c: Case) -> Values:
    """A random offset of each held-out section, jointly with one sigmoid; a new section has the mean over all offsets."""
    x, units = log_odds(c.p), np.unique(c.group, return_inverse=True)[1]
    n, variance = units.max() + 1, 0.1
    line, offset = np.array([1.0, 0.0]), np.zeros(n)
    for _ in range(30):  # offsets and line given the variance, then the variance (Laplace)
        for _ in range(5):
            q = expit(line[0] * x + line[1] + offset[units])
            w = np.maximum(q * (1 - q), 1e-9)
            design = np.column_stack([x, np.ones_like(x), np.eye(n)[units]])
            gradient = design.T @ (c.present - q) - np.r_[0, 0, offset / variance]
            curvature = (design * w[:, None]).T @ design + np.diag(np.r_[1e-6, 1e-6, np.full(n, 1 / variance)])
            step = np.linalg.solve(curvature, gradient)
            line, offset = line + step[:2], offset + step[2:]
        own = np.diag(np.linalg.inv(curvature))[2:]
        variance = float(np.clip((offset**2 + own).mean(), 1e-4, 25))
    return expit((max(line[0], 0) * log_odds(c.new) + line[1]) / np.sqrt(1 + np.pi / 8 * variance))


def shrunken(c: Case) -> Values:
    """Towards the prevalence, by the share that helps a section most when the others set it."""
    total = 0.0, 0.0
    for g in np.unique(c.group):
        own = c.group == g
        base = c.present[~own].mean()
        d, e = c.p[own] - base, c.present[own] - base
        total = total[0] + (d * e).mean(), total[1] + (d * d).mean()
    share = float(np.clip(total[0] / max(total[1], 1e-12), 0, 1))
    return c.present.mean() + share * (c.new - c.present.mean())


def predicted_prevalence(c: Case) -> Values:
    """The prior of each new section is what the model itself finds there (Saerens and others 2002)."""
    out, prior = np.empty_like(c.new), float(np.clip(c.present.mean(), 1e-4, 1 - 1e-4))
    for s in np.unique(c.section):
        own, level = c.section == s, prior
        for _ in range(100):
            q = expit(log_odds(c.new[own]) + logit(level) - logit(prior))
            level = float(np.clip(q.mean(), 1e-4, 1 - 1e-4))
        out[own] = q
    return out


def level_of_sections(c: Case) -> Values:
    """The section's mean probability moved by the line that best ties it to the prevalence of held-out sections."""
    x = np.array([log_odds(np.array([c.p[c.group == g].mean()]))[0] for g in np.unique(c.group)])
    y = np.array([log_odds(np.array([c.present[c.group == g].mean()]))[0] for g in np.unique(c.group)])
    d, e = x - x.mean(), y - y.mean()
    # least squares, with one more observation that says that the model's own level is right
    slope, out = (d @ e + 1) / (d @ d + 1), np.empty_like(c.new)
    for s in np.unique(c.section):
        own = c.section == s
        level = log_odds(np.array([c.new[own].mean()]))[0]
        out[own] = expit(log_odds(c.new[own]) + (y.mean() + slope * (level - x.mean())) - level)
    return out


def training_share(c: Case) -> Values:
    """The share of the training spots, everywhere: what is left to say where no gene tells anything."""
    return np.full_like(c.new, c.present.mean())


def slope_inside(c: Case) -> Values:
    """The sigmoid's slope from inside the held-out sections, each with a level of its own; its offset from all."""
    x, units = log_odds(c.p), np.unique(c.group, return_inverse=True)[1]
    levels = np.eye(units.max() + 1)[units]
    fitted = LogisticRegression(C=1e2, fit_intercept=False).fit(np.column_stack([x, levels]), c.present)
    slope, offset = max(float(fitted.coef_[0, 0]), 0.0), 0.0
    for _ in range(50):
        q = expit(slope * x + offset)
        offset += float((c.present - q).sum() / np.maximum((q * (1 - q)).sum(), 1e-9))
    return expit(slope * log_odds(c.new) + offset)


def line_inside(c: Case) -> Values:
    """Towards the share of the training spots, by how far probabilities tell spots apart inside held-out sections."""
    units = np.unique(c.group, return_inverse=True)[1]
    n = np.bincount(units)
    d, e = (v - (np.bincount(units, v) / n)[units] for v in (c.p, c.present))
    share = float(np.clip((d * e).sum() / max((d * d).sum(), 1e-12), 0, 1))
    return np.clip(c.present.mean() + share * (c.new - c.p.mean()), 0, 1)


def beta_inside(c: Case) -> Values:
    """The last two in turn: the line, then beta calibration."""
    return beta(replace(c, p=line_inside(replace(c, new=c.p)), new=line_inside(c)))


CHANGES: Mapping[str, Callable[[Case], Values]] = {
    "as it is": as_they_are,
    "isotonic": isotonic,
    "beta": beta,
    "section offsets": section_offsets,
    "shrunken to prevalence": shrunken,
    "prior by EM": predicted_prevalence,
    "level of sections": level_of_sections,
    "slope inside sections": slope_inside,
    "line inside sections": line_inside,
    "line inside sections, beta": beta_inside,
    "training share": training_share,
}


def measure(seed: int, model: str) -> pd.DataFrame:
    """One row per change."""
    st = sections(seed)
    found: dict[str, list[Values]] = {name: [] for name in CHANGES}
    truth = []
    for train, test in SPLITTER.split(st):
        inside, outside = st[train].copy(), st[test].copy()
        fitted = train_model(inside, MODELS[model], SETUP, show_progress_bar=False)
        evidence = fitted._evidence
        ids = list(fitted.metabolites)
        new = fitted._predict_all(outside).presence[ids].to_numpy(np.float64)
        group = np.unique(np.asarray(evidence.sample, str), return_inverse=True)[1]
        section = np.unique(outside.obs["sample"].astype(str), return_inverse=True)[1]
        truth.append(outside.obsm["msi_presence"][ids].where(outside.obsm["msi"][ids].notna()).to_numpy(np.float64))
        for name, change in CHANGES.items():
            out = new.copy()
            for m in range(len(ids)):
                y, p = evidence.targets.presence[:, m], evidence.probability[:, m]
                known = ~np.isnan(y) & ~np.isnan(p)
                there = (y[known] > 0).astype(float)
                if 0 < there.sum() < len(there):
                    out[:, m] = change(Case(p[known], there, group[known], new[:, m], section))
            found[name].append(out)
    y = np.vstack(truth)
    follows = np.array([st.uns["kind"].get(m) != "unpredictable" for m in ids])
    rows = []
    for name, parts in found.items():
        p = np.vstack(parts)
        ece, brier = stmsi.metrics.ece(y, p, N_BINS), stmsi.metrics.brier(y, p)
        rows.append(
            {
                "seed": seed, "model": model, "change": name, "ece": np.nanmean(ece), "follow genes": np.nanmean(ece[follows]),
                "follow none": np.nanmean(ece[~follows]), "floor": np.nanmean(noise_floor(y, p)), "brier": np.nanmean(brier),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print means, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ridge"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    path, key = args.out / "presence_calibration.csv", ["seed", "model", "change"]
    for seed in args.seeds:
        for model in args.models:
            new = measure(seed, model).round(4)
            print(new.to_string(index=False), flush=True)
            old = pd.read_csv(path) if path.exists() else new[:0]
            kept = old[~old.set_index(key).index.isin(new.set_index(key).index)] if len(old) else old
            pd.concat([kept, new], ignore_index=True).to_csv(path, index=False)


if __name__ == "__main__":
    main()

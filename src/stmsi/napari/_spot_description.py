"""All that is known of one spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr, require_frame
from stmsi._data.training_marks import HELD_OUT, TRAINED_ON, mark
from stmsi.napari._metabolite_maps import CHANCE, MEASURED, PREDICTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.napari._metabolite_maps import MetaboliteMaps

N_GENES = 5
_TRAINED = {TRAINED_ON: "yes: this shows how well the model fits, not how well it predicts"}


@dataclass(frozen=True)
class Spot:
    """Values of a metabolite at a spot, and its genes."""

    name: str
    x: float
    y: float
    value: dict[str, float]  # by role, "lower" and "upper"; NaN where it is not known
    interval: float  # chance with which the interval holds the measurement
    ood: float
    trained_on: str  # whether the model has seen the spot; empty where it is no prediction of stmsi
    genes: tuple[tuple[str, float], ...]  # furthest above their mean in the section, with the spot's own value in X
    drivers: tuple[tuple[str, float], ...]  # what the prediction rests on, with its weight
    drivers_of: str  # where the weights come from

    def lines(self) -> list[tuple[str, str]]:
        """What to show: label and value."""
        out = [
            ("spot", f"{self.name}  (x {self.x:.0f}, y {self.y:.0f} um)"),
            ("measured", _number(self.value[MEASURED], "not measured")),
            ("predicted", _number(self.value[PREDICTED], "no prediction")),
        ]
        if self.trained_on not in ("", HELD_OUT):
            out.append(("trained on", _TRAINED.get(self.trained_on, "not known")))
        lower, upper, chance = self.value["lower"], self.value["upper"], self.value[CHANCE]
        if np.isfinite(lower) and np.isfinite(upper):
            share = "interval" if np.isnan(self.interval) else f"{self.interval:.0%} interval"
            out.append((share, f"{lower:.3g} to {upper:.3g}"))
        if np.isfinite(chance):
            out.append((CHANCE, f"{chance:.2f}"))
        if np.isfinite(self.ood):
            unusual = " (unlike the training spots)" if self.ood > 1 else ""
            out.append(("out of distribution", f"{self.ood:.2f}{unusual}"))
        if self.genes:
            out.append(("genes above the section's mean", ", ".join(f"{g} ({v:g})" for g, v in self.genes)))
        if self.drivers:
            out.append((self.drivers_of, ", ".join(f"{g} ({v:.2g})" for g, v in self.drivers)))
        return out


def describe_spot(source: MetaboliteMaps, metabolite: str, row: int, section_rows: NDArray[np.int64]) -> Spot:
    """Values and genes of a spot; its genes are compared to the mean of the section."""
    adata, at = source.adata, np.array([row])
    x, y = require_frame(adata, Key.obsm.SPATIAL).to_numpy(dtype=float)[row, :2]
    record = adata.uns.get(source.pred_key)
    params = record.get("params", {}) if isinstance(record, dict) else {}
    ood = Key.ood_of(source.pred_key)
    drivers, drivers_of = _drivers(source, metabolite, row)
    return Spot(
        name=str(adata.obs_names[row]),
        x=float(x),
        y=float(y),
        value={r: float(source.values(r, metabolite, at)[0]) for r in (MEASURED, PREDICTED, "lower", "upper", CHANCE)},
        interval=float(params.get("coverage", np.nan)),
        trained_on=mark(adata, source.pred_key, at),
        ood=float(adata.obs[ood].iloc[row]) if ood in adata.obs else np.nan,
        genes=_genes(source, row, section_rows),
        drivers=drivers,
        drivers_of=drivers_of,
    )


def _genes(source: MetaboliteMaps, row: int, section_rows: NDArray[np.int64]) -> tuple[tuple[str, float], ...]:
    """Genes of a spot that are furthest above their mean in its section, on the scale log1p(counts per 10,000)."""
    own = as_csr(source.adata.X[[row]], np.float64)
    if own.nnz == 0 or own.data.min() < 0:
        return ()
    mean = _section_mean(source, section_rows)
    scaled = np.log1p(own.data / own.data.sum() * 1e4)
    above = scaled - mean[own.indices]
    order = np.argsort(-above, kind="stable")[:N_GENES]
    names = source.adata.var_names
    return tuple((str(names[own.indices[i]]), float(own.data[i])) for i in order if above[i] > 0)


_MEANS: WeakKeyDictionary[MetaboliteMaps, dict[bytes, NDArray[np.float64]]] = WeakKeyDictionary()
"""Means of the sections that were clicked, kept as long as the data are shown."""


def _section_mean(source: MetaboliteMaps, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of every gene in a section, on the scale log1p(counts per 10,000); computed at the first click."""
    known, key = _MEANS.setdefault(source, {}), rows.tobytes()
    if key in known:
        return known[key]
    X = as_csr(source.adata.X[rows], np.float64).copy()
    total = np.asarray(X.sum(axis=1)).ravel()
    X.data = np.log1p(X.data * np.repeat(1e4 / np.where(total > 0, total, 1), np.diff(X.indptr)))
    known[key] = np.asarray(X.mean(axis=0)).ravel()
    return known[key]


def _drivers(source: MetaboliteMaps, metabolite: str, row: int) -> tuple[tuple[tuple[str, float], ...], str]:
    """What the prediction rests on: attention of the spot, of all spots, or attribution, whichever is stored."""
    adata, safe = source.adata, safe_ids([metabolite])[0]
    of_spot = Key.group_of(Key.varm.ATTENTION, safe)
    if of_spot in adata.obsm:
        return _largest(require_frame(adata, of_spot).iloc[row]), "attention of this spot"
    for key, name in ((Key.varm.ATTENTION, "attention, all spots"), (Key.varm.ATTRIBUTION, "attribution, all spots")):
        frame = adata.varm.get(key)
        if isinstance(frame, pd.DataFrame) and safe in frame:
            return _largest(frame[safe]), name
    return (), ""


def _largest(weights: pd.Series) -> tuple[tuple[str, float], ...]:
    best = weights[weights.abs().sort_values(ascending=False, kind="stable", na_position="last").index[:N_GENES]]
    return tuple((str(g), float(v)) for g, v in best.items() if v == v and v != 0)


def _number(value: float, missing: str) -> str:
    return missing if np.isnan(value) else f"{value:.3g}"

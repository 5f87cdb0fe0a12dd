"""Values of a metabolite at the spots of a section, and the limits of their colours."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, check_share, listing, require_rows
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import DESCRIBING, label
from stmsi._data.tables import get_table, require_frame, require_metabolites
from stmsi._data.training_marks import mark
from stmsi.pl._colour_limits import check_percentiles, diverging_norm, make_norm
from stmsi.pl._metabolite_layers import intensity_label, one_section, readable_names, table_samples, values_of
from stmsi.pl._sections import load_section
from stmsi.pl._style import PERCENTILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._data.checks import Data
    from stmsi.pl._sections import Section

    Maps = dict[str, NDArray[np.float64]]

MEASURED: Final = "measured"
PREDICTED: Final = "predicted"
RESIDUAL: Final = "predicted - measured"
WIDTH: Final = "interval width"
CHANCE: Final = "P(present)"
BLEND: Final = "blend"
"""Values between measured and predicted; shown in their place, never with them."""
ROLES: Final = (MEASURED, PREDICTED, RESIDUAL, WIDTH, CHANCE)
MODES: Final = {
    "compare": (MEASURED, PREDICTED),
    "residual": (RESIDUAL,),
    "uncertainty": (WIDTH,),
    "presence": (CHANCE,),
}
"""Layers that are visible in each mode."""
PPM: Final = 10.0
"""How far an ion may lie from the m/z that is searched for."""
_ALIKE = 0.4
"""Similarity of two names (difflib's ratio) from which one is offered for the other."""


class MetaboliteMaps:
    """The metabolites of a table, measured, predicted or both, one section at a time."""

    def __init__(
        self,
        data: Data,
        *,
        pred_key: str = Key.obsm.PRED,
        metabolite_key: str = Key.obsm.MSI,
        table_key: str = Key.table.ST,
        sample_key: str = Key.obs.SAMPLE,
    ) -> None:
        self.data, self.table_key = data, table_key
        self.pred_key, self.metabolite_key, self.sample_key = pred_key, metabolite_key, sample_key
        self.adata = get_table(data, table_key)
        require_rows(self.adata)
        self.sections = table_samples(self.adata, sample_key, None)
        keys = {MEASURED: metabolite_key, PREDICTED: pred_key, CHANCE: Key.presence_of(pred_key)}
        keys |= dict(zip(("lower", "upper"), Key.bounds_of(pred_key), strict=True))
        self.frames = {role: require_frame(self.adata, key) for role, key in keys.items() if key in self.adata.obsm}
        if not {MEASURED, PREDICTED} & set(self.frames):
            msg = (
                f"obsm has neither {metabolite_key!r} nor {pred_key!r}; found {listing(self.adata.obsm.keys())}. "
                "stmsi.pp.map_to_spots writes the measured metabolites, stmsi.tl.predict_metabolites the predicted ones."
            )
            raise KeyError(msg)
        self.features = self._features()

    def _features(self) -> pd.DataFrame:
        """Metabolites by id: name, m/z and, where known, the trust tier and what decided it."""
        keys = {PREDICTED: self.pred_key, MEASURED: self.metabolite_key}
        keys = {role: key for role, key in keys.items() if role in self.frames}
        ids = pd.Index([c for role in keys for c in self.frames[role].columns]).unique()
        names = readable_names(self.adata, next(iter(keys.values())), ids)
        out = pd.DataFrame({Key.var.NAME: names, Key.var.MZ: np.nan}, index=ids)
        for key in reversed(keys.values()):
            known = find_features(self.adata, key)
            for field in (*DESCRIBING, Key.var.TIER):
                if known is not None and field in known:
                    found = known[field].set_axis(known.index.astype(str)).reindex(ids)
                    out[field] = found if field not in out else found.where(found.notna(), out[field])
        record = self.adata.uns.get(self.pred_key)
        verdicts = record.get("reliability") if isinstance(record, dict) else None
        if isinstance(verdicts, pd.DataFrame) and "reason" in verdicts:
            out["reason"] = verdicts["reason"].set_axis(verdicts.index.astype(str)).reindex(ids)
        return out

    @property
    def modes(self) -> list[str]:
        """Modes for which there are data."""
        needs = {"residual": {MEASURED, PREDICTED}, "uncertainty": {"lower", "upper"}, "presence": {CHANCE}}
        return [mode for mode in MODES if needs.get(mode, set()) <= set(self.frames)]

    def roles(self, rows: NDArray[np.int64]) -> set[str]:
        """Layers that have a value in some spot: a section without MSI has predictions alone."""
        sides: set[str] = {r for r in (MEASURED, PREDICTED) if r in self.frames and _any_value(self.frames[r], rows)}
        # where nothing is known at all, what there would be is shown as not covered
        sides = sides or {r for r in (MEASURED, PREDICTED) if r in self.frames}
        out = set(sides)
        if {MEASURED, PREDICTED} <= sides:
            out.add(RESIDUAL)
        if PREDICTED in sides:
            out |= {role for mode, role in (("uncertainty", WIDTH), ("presence", CHANCE)) if mode in self.modes}
        return out

    def check_mode(self, mode: str) -> None:
        """Raise where a mode does not exist, or has no data."""
        check_choice(mode, MODES, "mode")
        if mode in self.modes:
            return
        if PREDICTED in self.frames and mode == "residual":
            msg = f"mode='residual' needs obsm[{self.metabolite_key!r}], what MSI measured: stmsi.pp.map_to_spots writes it."
        else:
            msg = (
                f"mode={mode!r} needs a prediction with {'bounds' if mode == 'uncertainty' else 'its presence'}, and there "
                f"is none under {self.pred_key!r}: stmsi.tl.predict_metabolites writes it. mode='compare' shows what is there."
            )
        raise KeyError(msg)

    def section(self, sample: str | None, *, spot_diameter: float | None = None) -> Section:
        """Spots, true to size, of the section asked for, or of the only one."""
        name = one_section(self.adata, self.sample_key, sample)
        return load_section(self.data, self.adata, name, sample_key=self.sample_key, spot_diameter=spot_diameter)

    def resolve(self, metabolite: str) -> str:
        """Id of a metabolite given by id or name; the error names the nearest ones."""
        return require_metabolites([metabolite], self.features.index, self.features[Key.var.NAME])[0]

    def values(self, role: str, metabolite: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """One metabolite of one layer; NaN where the layer does not know it."""
        return values_of(self.frames.get(role), metabolite, rows)

    def maps(self, metabolite: str, rows: NDArray[np.int64], threshold: float = 0.0) -> Maps:
        """Values of every layer. Spots whose P(present) is below `threshold` count as absent: 0."""
        check_share(threshold, "threshold")
        out = {role: self.values(role, metabolite, rows) for role in (MEASURED, PREDICTED, CHANCE)}
        out[PREDICTED] = np.where(out[CHANCE] < threshold, 0.0, out[PREDICTED])
        out[RESIDUAL] = out[PREDICTED] - out[MEASURED]
        out[WIDTH] = self.values("upper", metabolite, rows) - self.values("lower", metabolite, rows)
        return {role: out[role] for role in ROLES}

    def limits(
        self,
        maps: Maps,
        vmin: float | None = None,
        vmax: float | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
    ) -> dict[str, tuple[float, float]]:
        """Limits of the colours; measured and predicted share theirs."""
        percentiles = check_percentiles(percentiles)
        pair = np.concatenate([maps[MEASURED], maps[PREDICTED]])
        both = make_norm(pair, vmin=vmin, vmax=vmax, percentiles=percentiles)
        residual = diverging_norm(maps[RESIDUAL], percentiles[1])
        width = make_norm(maps[WIDTH], vmin=0.0, percentiles=percentiles)
        norms = {MEASURED: both, PREDICTED: both, RESIDUAL: residual, WIDTH: width}
        return {role: (float(n.vmin or 0.0), float(n.vmax or 0.0)) for role, n in norms.items()} | {CHANCE: (0.0, 1.0)}

    def search(self, text: str, *, ppm: float = PPM) -> list[str]:
        """Ids of metabolites by part of their name or id, or by m/z within `ppm`, the nearest first; all for no text."""
        text = text.strip().lower()
        ids = self.features.index
        if not text:
            return list(ids)
        names = self._lower_names
        found = list(ids[names.str.contains(text, regex=False) | ids.str.lower().str.contains(text, regex=False)])
        mass = _number(text)
        if mass is None:
            return found
        error = self.ppm_errors(mass)
        return list(dict.fromkeys([*error[error <= ppm].sort_values(kind="stable").index, *found]))

    def nearest(self, text: str, n: int = 5) -> list[str]:
        """Ids of the metabolites nearest to a text that :meth:`search` does not find: in m/z where it is one, else in name."""
        mass = _number(text.lower())
        if mass is not None:
            return list(self.ppm_errors(mass).dropna().sort_values(kind="stable").index[:n])
        names = self._lower_names
        text = text.strip().lower()
        close = get_close_matches(text, list(names), n=2 * n, cutoff=_ALIKE)
        # of names that are as much alike, those that begin like the text
        close.sort(key=lambda name: -_common(text, name))
        return list(dict.fromkeys(str(i) for c in close for i in self.features.index[names == c]))[:n]

    @property
    def _lower_names(self) -> pd.Series:
        return self.features[Key.var.NAME].astype(str).str.lower()

    def ppm_errors(self, mz: float) -> pd.Series:
        """Distance of each metabolite from an m/z, in ppm."""
        return (self.features[Key.var.MZ].astype(float) - mz).abs() / mz * 1e6

    def trust(self, metabolite: str) -> tuple[str, str]:
        """Trust tier of a predicted metabolite and what decided it; empty where :func:`stmsi.tl.reliability` has not run."""
        row = self.features.loc[metabolite]
        tier, reason = row.get(Key.var.TIER), row.get("reason")
        return ("" if pd.isna(tier) else str(tier)), ("" if pd.isna(reason) else str(reason))

    def trained_on(self, rows: NDArray[np.int64]) -> str:
        """Mark of training (:mod:`stmsi._data.training_marks`) of those of some spots that MSI measured, or of all where it measured none."""
        measured = self.frames.get(MEASURED)
        scored = rows if measured is None else rows[measured.notna().any(axis=1).to_numpy()[rows]]
        return mark(self.adata, self.pred_key, scored if len(scored) else rows)

    def label(self, role: str) -> str:
        """What a layer shows, with the unit of its colours."""
        if role == CHANCE:
            return CHANCE
        return f"{role}, {self.unit}"

    @property
    def unit(self) -> str:
        """Unit of measured and predicted, their difference and the width of the interval."""
        return intensity_label(self.adata, self.pred_key if PREDICTED in self.frames else self.metabolite_key)

    def describe(self, metabolite: str) -> str:
        """Name of a metabolite with its adduct and its m/z where known."""
        return str(label(self.features, metabolite))


def blend(measured: NDArray[np.float64], predicted: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Values between measured (0) and predicted (1); NaN where one that has a share is missing."""
    if share in (0.0, 1.0):
        return predicted if share else measured
    return (1 - share) * measured + share * predicted


def _any_value(frame: pd.DataFrame, rows: NDArray[np.int64]) -> bool:
    """Whether a layer knows any spot of a section; spots that MSI did not cover are NaN in all metabolites."""
    return any(frame.iloc[:, j].iloc[rows].notna().any() for j in range(frame.shape[1]))


def _common(one: str, other: str) -> int:
    """Characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _number(text: str) -> float | None:
    """An m/z typed into a search field."""
    text = text.removeprefix("m/z").strip().replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None

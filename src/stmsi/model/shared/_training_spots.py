"""Which spots a model was trained on, as hashes that find them again in any data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.learning.profile_hashes import place_hashes
from stmsi._data.training_marks import HELD_OUT, TRAINED_ON, UNKNOWN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

MOST = 2**15
"""Hashes of one kind that a model keeps, a quarter of a megabyte; there are five kinds."""
_SETS, _LARGEST, _SMALLEST = 4, 100, 25
"""Sets of genes, and the genes of each at most and at least."""
NOTHING, SAME, OTHER, CHANGED, PLACE = range(5)
"""What is known of a spot by itself; see :meth:`TrainingSpots.compare`."""
_MARKS = {NOTHING: UNKNOWN, SAME: TRAINED_ON, OTHER: HELD_OUT, CHANGED: UNKNOWN, PLACE: TRAINED_ON}


@dataclass(frozen=True)
class TrainingSpots:
    """Hashes of the spots that a model was trained, stopped or calibrated on, each kind sorted and without repeats.

    A spot is known by its expression, whatever it is called and among whatever others it stands. The genes found in most
    training spots make up four sets, from the most frequent down, and each set has a hash of its own: data that lack genes of one
    set (mitochondrial ones, say) are compared by the others. Of more than `MOST` spots those with the smallest hashes are kept.

    Attributes
    ----------
    genes
        Each set, as positions in the panel.
    profiles
        Of each set, the hashes of the expression.
    places
        Hashes of section, name and position, for data that lack genes of every set.
    """

    genes: list[NDArray[np.int64]]
    profiles: list[NDArray[np.uint64]]
    places: NDArray[np.uint64]

    @classmethod
    def of(cls, spots: Spots, rows: NDArray[np.int64] | None = None) -> TrainingSpots:
        """Of training spots: all of `spots`, or those in `rows`, without a copy of their expression."""
        return cls._over(_frequent_genes(spots), spots, rows)

    @classmethod
    def _over(cls, genes: list[NDArray[np.int64]], spots: Spots, rows: NDArray[np.int64] | None) -> TrainingSpots:
        own = np.ones(len(spots), bool) if rows is None else np.isin(np.arange(len(spots)), rows)
        profiles = [_kept(hashes[known & own]) for hashes, known in spots.profile_hashes(genes)]
        return cls(genes, profiles, _kept(place_hashes(spots.names, spots.sample, spots.xy)[own]))

    def with_others(self, spots: Spots, rows: NDArray[np.int64] | None = None) -> TrainingSpots:
        """Together with the spots of a training that went on."""
        more = TrainingSpots._over(self.genes, spots, rows)
        profiles = [
            _kept(np.concatenate([before, now])) for before, now in zip(self.profiles, more.profiles, strict=True)
        ]
        return TrainingSpots(self.genes, profiles, _kept(np.concatenate([self.places, more.places])))

    def compare(self, spots: Spots) -> NDArray[np.int8]:
        """What is known of each spot of a query over the panel, whatever others stand beside it, shape (spots,).

        - `SAME`: its expression is that of training spots, in half of the sets of genes at least;
        - `OTHER`: its expression is another one, and so are section, name or position;
        - `CHANGED`: its expression is another one, though section, name and position are those of a training spot;
        - `PLACE`: its expression cannot be compared; section, name and position are those of a training spot;
        - `NOTHING`: its expression cannot be compared; section, name or position are others.
        """
        there = np.ones(spots.counts.shape[1], bool) if spots.imputed is None else spots.imputed.present
        usable = [k for k, genes in enumerate(self.genes) if there[genes].all()]
        told, alike = np.zeros(len(spots), int), np.zeros(len(spots), int)
        for k, (hashes, known) in zip(usable, spots.profile_hashes([self.genes[k] for k in usable]), strict=True):
            kept = self.profiles[k]
            # of more spots than were kept, the largest hashes say nothing
            compared = known & (hashes <= kept[-1]) if len(kept) == MOST else known
            told += compared
            alike += compared & np.isin(hashes, kept)
        placed = np.isin(place_hashes(spots.names, spots.sample, spots.xy), self.places)
        by_expression = np.where(2 * alike >= told, SAME, np.where(placed, CHANGED, OTHER))
        return np.where(told > 0, by_expression, np.where(placed, PLACE, NOTHING)).astype(np.int8)


def marks_of(found: NDArray[np.int8], section: NDArray[Any] | None) -> NDArray[Any]:
    """Marks (:mod:`stmsi._data.training_marks`) of all spots of a query, shape (spots,), from what is known of each.

    Spots of which nothing is known, as they have hardly any expression, are taken for what the expression says of all others of
    their section, where that is one thing. So `found` holds whole sections: of some of their spots, marks may be others.

    Parameters
    ----------
    found
        As of :meth:`TrainingSpots.compare`.
    section
        Section of each spot; `None`: one.
    """
    marks = np.array([_MARKS[kind] for kind in range(len(_MARKS))], dtype=object)[found]
    untold = found == NOTHING
    if not untold.any():
        return marks
    code = (
        np.zeros(len(found), int) if section is None else pd.factorize(np.array([str(s) for s in section], object))[0]
    )
    told = np.isin(found, [SAME, OTHER, CHANGED])
    said = pd.Series(marks[told]).groupby(code[told]).agg(["first", "nunique"])
    rest = said.loc[said["nunique"] == 1, "first"].reindex(code[untold], fill_value=UNKNOWN)
    marks[untold] = rest.to_numpy(dtype=object)
    return marks


def _frequent_genes(spots: Spots) -> list[NDArray[np.int64]]:
    """Sets of the genes found in most spots, the most frequent first; each in the order of the panel."""
    seen = spots.genes_seen()
    n_genes = len(seen)
    order = np.argsort(-seen, kind="stable").astype(np.int64)
    size = min(max(n_genes // _SETS, _SMALLEST), _LARGEST, n_genes)
    n_sets = min(_SETS, n_genes // size)
    return [np.sort(order[k * size : (k + 1) * size]) for k in range(n_sets)]


def _kept(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(hashes)[:MOST]

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

    def marks(self, spots: Spots) -> NDArray[Any]:
        """What is known of each spot of a query over the panel, shape (spots,): see :mod:`stmsi._data.training_marks`.

        - *yes*: its expression is that of training spots, in half of the sets of genes at least; or it cannot be compared, and
          section, name and position are those of a training spot;
        - *no*: its expression is another one, and so are section, name or position;
        - *unknown*: it cannot be compared, or it differs though section, name and position are those of a training spot.
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
        trained, placed = (told > 0) & (2 * alike >= told), self._placed(spots)
        marks = np.full(len(spots), UNKNOWN, dtype=object)
        marks[(told > 0) & ~placed] = HELD_OUT
        marks[trained | (placed & (told == 0))] = TRAINED_ON
        _as_the_rest(marks, told > 0, (told == 0) & ~placed, spots.sample)
        return marks

    def _placed(self, spots: Spots) -> NDArray[np.bool_]:
        return np.asarray(np.isin(place_hashes(spots.names, spots.sample, spots.xy), self.places))


def _as_the_rest(
    marks: NDArray[Any], told: NDArray[np.bool_], untold: NDArray[np.bool_], section: NDArray[Any] | None
) -> None:
    """Take spots with hardly any expression for what all other spots of their section are, where these are one thing."""
    code = (
        np.zeros(len(marks), int) if section is None else pd.factorize(np.array([str(s) for s in section], object))[0]
    )
    for one in np.unique(code[untold]):
        own = code == one
        found = set(marks[own & told])
        if len(found) == 1:
            marks[own & untold] = found.pop()


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

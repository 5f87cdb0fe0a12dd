"""What the folds of a cross-validation read once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.learning.expression_parts import ExpressionParts
from stmsi._settings import logger
from stmsi.model._families import ModelSpec, resolve
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_model import SpotModel
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._streamed_parts import StreamedParts
from stmsi.tl._fold_cache import fingerprint
from stmsi.tl._kept_arrays import KeptOnDisk
from stmsi.tl._section_sums import genes_chosen, sum_up
from stmsi.tl._stored_models import is_network
from stmsi.tl._stored_sections import StoredSections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.net._stored_batches import StoredInput
    from stmsi.model.shared._setup import Setup
    from stmsi.tl._workers import Workers

_OF_PROCESS: dict[str, SharedFolds] = {}
"""In a process that fits some of the folds: those of the last cross-validation, so that its next fold finds what is made."""


class SharedFolds:
    """Spots as models read them, log expression, and sums over what folds have in common; each made when first needed.

    It lives as long as the cross-validation; in processes beside it until the next one, or until they end.

    Parameters
    ----------
    adata
        All spots.
    folds
        Training spots of every fit.
    """

    def __init__(self, adata: AnnData, folds: Sequence[NDArray[Any]]) -> None:
        self.adata = adata
        distinct = {rows.tobytes(): rows for rows in folds}
        self._folds = list(distinct.values())
        self._spots: dict[Setup, Spots] = {}
        self._expression: dict[tuple[Any, ...], ExpressionParts] = {}
        self._token = uuid4().hex

    def serves(self, spec: ModelSpec, fields: Mapping[str, Any]) -> bool:
        """Whether a model reads nothing but the spots, and all folds are told to read them alike."""
        cls, _, _, train = resolve(spec)
        return issubclass(cls, SpotModel) and not cls._reads_matrix and not train and fields.get("input") is not None

    def stored_input(self, rows: NDArray[Any]) -> StoredInput | None:
        """Where a network finds some spots that are on disk; `None`: they are in memory."""
        del rows
        return None

    def without_expression(self, rows: NDArray[Any], layer: str | None) -> AnnData:
        """Some spots, with all but the expression; the layer that a setup names is there and empty."""
        whole = self.adata
        named = {} if layer is None else {layer: sp.csr_matrix(whole.shape, dtype="float32")}
        parts = {name: dict(getattr(whole, name)) for name in ("obsm", "obsp", "varm")}
        empty = sp.csr_matrix(whole.shape, dtype="float32")
        return AnnData(empty, whole.obs, whole.var, uns=whole.uns, layers=named, **parts)[rows].copy()

    def spots(self, setup: Setup, rows: NDArray[Any]) -> Spots:
        """Some spots as a model with this setup reads them for training."""
        if setup not in self._spots:
            spots = self._read(setup)
            kind = setup.layer, setup.input, setup.sample_key
            if kind not in self._expression:
                self._expression[kind] = self._parts(spots, setup)
            everything = self._expression[kind].some(np.arange(len(spots)))
            self._spots[setup] = spots.with_counts(everything)
        return self._spots[setup].take(rows)

    def _read(self, setup: Setup) -> Spots:
        return SpotReader.open(self.adata, setup).read()

    def _parts(self, spots: Spots, setup: Setup) -> ExpressionParts:
        return ExpressionParts(spots.counts, setup.input == "log", self._folds)

    def prepare(self, specs: Sequence[ModelSpec], workers: Workers, show_progress_bar: bool | None) -> None:
        """Have workers make what all fits of some models need, before each of them would make it."""

    def query(self, setup: Setup, rows: NDArray[Any]) -> Spots:
        """Some spots as a trained model reads them: their clusters are those of no training."""
        return replace(self.spots(setup, rows), cluster=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_or_made, (self._token, type(self), self._given())

    def _given(self) -> dict[str, Any]:
        """What another process makes the same of."""
        return {"adata": self.adata, "folds": self._folds}


class StoredFolds(SharedFolds):
    """The same of sections in stores, whose expression stays on disk.

    Parameters
    ----------
    sections
        The stores.
    folds
        Training spots of every fit.
    directory
        Folder in which other workers, or other runs, find sums over sections; `None`: a temporary one of this process.
    by_section
        Whether sums are made of each store, as another run with other stores can use them, or of what folds have in common.
    """

    def __init__(
        self, sections: StoredSections, folds: Sequence[NDArray[Any]], directory: Path | None, *, by_section: bool
    ) -> None:
        super().__init__(sections.adata, folds)
        self.sections, self._directory, self._by_section = sections, directory, by_section
        self._made: StreamedParts | None = None

    def _read(self, setup: Setup) -> Spots:
        spots = super()._read(setup)
        return replace(spots, names=self.sections.names, target_sum=self.sections.target_sum)

    def _parts(self, spots: Spots, setup: Setup) -> ExpressionParts:  # noqa: ARG002
        return self.parts()  # all models read stores alike

    def parts(self) -> StreamedParts:
        """Sums over the sections, the same whoever makes them. Made once."""
        if self._made is None:
            sections, once = self.sections, len(self._folds) == 1
            apart = sections.store if once or self._by_section else None
            parts, folder = StreamedParts(sections, sections.input == "log", self._folds, apart), self._folder()
            parts.kept = KeptOnDisk(None if folder is None else self._keys(parts), folder, once=once)
            self._made = parts
        return self._made

    def _keys(self, parts: StreamedParts) -> list[str]:
        """What each part is made of."""
        sections, keys = self.sections, []
        genes = fingerprint(sections.adata.var_names)
        for p in range(len(parts.size)):
            own = np.flatnonzero(parts.part == p)
            numbers, of = np.unique(sections.store[own], return_inverse=True)
            stores = [sections.stores[k].key for k in numbers]
            keys.append(fingerprint(*stores, of, sections.row[own], genes, parts.logs))
        return keys

    def _folder(self) -> Path | None:
        if self._directory is not None and not self._directory.is_dir():  # of a worker on another machine
            logger.warning(
                "%s is not there on this machine: sums over sections are made again. Name a folder that all workers see.", self._directory
            )  # fmt: skip
            return None
        return self._directory

    def prepare(self, specs: Sequence[ModelSpec], workers: Workers, show_progress_bar: bool | None) -> None:
        """As of the base class: the sums over sections are tasks, too."""
        linear = [spec for spec in specs if not is_network(resolve(spec)[0])]
        if linear and workers.several and self._directory is not None:
            sum_up(self, {genes_chosen(spec) for spec in linear}, workers, show_progress_bar)

    def serves(self, spec: ModelSpec, fields: Mapping[str, Any]) -> bool:
        """As of the base class; networks read their batches from the stores."""
        return is_network(resolve(spec)[0]) or super().serves(spec, fields)

    def stored_input(self, rows: NDArray[Any]) -> StoredInput:
        """As of the base class."""
        from stmsi.model.net._stored_batches import StoredInput

        own = self.sections.some(rows).kept_open()
        every = np.arange(len(rows))

        def read(setup: Setup, folds: Sequence[NDArray[Any]]) -> Spots:
            folds_of = StoredFolds(own, [every, *folds], self._directory, by_section=self._by_section)
            return folds_of.spots(setup, every)

        return StoredInput(own, read, own.close)

    def _given(self) -> dict[str, Any]:
        kept = {"directory": self._directory, "by_section": self._by_section}
        return {"sections": self.sections, "folds": self._folds} | kept


def _found_or_made(token: str, cls: type[SharedFolds], given: Mapping[str, Any]) -> SharedFolds:
    """In a process that gets a fold to fit."""
    if token not in _OF_PROCESS:
        _OF_PROCESS.clear()
        _OF_PROCESS[token] = made = cls(**given)
        made._token = token
    return _OF_PROCESS[token]

"""Stored expression section by section, and how it becomes the one kind of numbers that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.learning.expression_space import TARGET_SUM, log_normalize
from stmsi._core.learning.stored_expression import N_STATISTICS, StoredKind, extremes_of, kinds_of, row_statistics
from stmsi._data.checks import check_choice, check_nonnegative, listing
from stmsi._data.tables import ONE_SECTION, as_csr, layer_names, some_rows
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Input: TypeAlias = Literal["counts", "log"]

_SAME_SCALE = 0.01
"""Target sums that differ by less are one scale."""


_AT_ONCE = 16_384
"""Spots that are looked at together; a matrix on disk with no more is read whole."""


def check_input(value: str | None) -> None:
    """Refuse what is no kind of input; `None` stands for looking."""
    if value is not None:
        check_choice(value, get_args(Input), "input")


@dataclass(frozen=True)
class StoredExpression:
    """Expression as an AnnData holds it, and what its numbers are in each section.

    Attributes
    ----------
    matrix
        Spots x genes: CSR in memory, or what stands for a large matrix on disk.
    where
        ``X`` or the layer, for messages.
    layers
        All layers of the data, for messages.
    names
        Sections.
    number
        Section of each spot, as a position in `names`.
    kinds
        What the numbers of each section are.
    extremes
        Least and largest number, or 0.
    n_entries
        Numbers other than 0.
    """

    matrix: Any
    where: str
    layers: tuple[str, ...]
    names: tuple[str, ...]
    number: NDArray[np.int64]
    kinds: tuple[StoredKind, ...]
    extremes: tuple[float, float] = (0.0, 0.0)
    n_entries: int = 0

    @classmethod
    def open(cls, adata: AnnData, layer: str | None, sample_key: str) -> StoredExpression:
        """From a dense, sparse, backed or dask-backed matrix; all spots are one section where `sample_key` is missing.

        A large matrix on disk is read through once, some spots at a time, and stays there.
        """
        layers = tuple(layer_names(adata))
        if layer is not None and layer not in layers:
            msg = f"The expression is in layer {layer!r}, which the data lack; layers: {listing(layers)}."
            raise KeyError(msg)
        matrix = adata.X if layer is None else adata.layers[layer]
        if matrix is None:
            msg = f"The AnnData has no X; put the expression there or name a layer (layer=); layers: {listing(layers)}."
            raise ValueError(msg)
        where = "X" if layer is None else f"layers[{layer!r}]"
        what = "Gene counts" if layer is None else f"Gene counts in {where}"
        n = int(matrix.shape[0])
        if n <= _AT_ONCE or isinstance(matrix, np.ndarray) or sp.issparse(matrix):
            matrix = _canonical(matrix)
        statistics, n_entries = np.empty((n, N_STATISTICS)), 0
        for start in range(0, n, _AT_ONCE):
            some = _canonical(matrix[start : start + _AT_ONCE])
            check_nonnegative(np.abs(some.data), what)  # NaN and infinite ones are refused
            statistics[start : start + _AT_ONCE] = row_statistics(some)
            n_entries += some.nnz
        label = adata.obs[sample_key] if sample_key in adata.obs else pd.Series(ONE_SECTION, index=adata.obs_names)
        number, names = pd.factorize(label.astype(object).where(label.notna(), "without a section").astype(str))
        number = number.astype(np.int64)
        kinds = kinds_of(statistics, number, len(names))
        return cls(
            matrix, where, layers, tuple(map(str, names)), number, tuple(kinds), extremes_of(statistics), n_entries
        )  # fmt: skip

    @cached_property
    def values(self) -> sp.csr_matrix:
        """Spots x genes, finite, CSR, float32."""
        return _canonical(self.matrix)

    def take(self, rows: NDArray[np.int64] | None) -> StoredExpression:
        """Some spots (their rows ascend), which are read; `None`: all."""
        if rows is None:
            return self
        return replace(self, matrix=some_rows(self.matrix, rows), number=self.number[rows])

    @property
    def target_sum(self) -> float | None:
        """What all spots add up to before the natural logarithm of 1 + x; `None` where that is not known for certain."""
        filled = [kind for kind in self.kinds if kind.kind != "empty"]
        totals = [kind.total for kind in filled if kind.kind == "log1p" and kind.total is not None]
        if not totals or len(totals) < len(filled) or max(totals) > (1 + _SAME_SCALE) * min(totals):
            return None
        return float(np.median(totals))

    def told(self) -> Input:
        """What all sections hold, said in the log where it is anything but raw counts.

        Raises
        ------
        ValueError
            Sections of kinds that cannot be brought together.
        """
        logs, certain = self._named(lambda k: k.is_log), self._named(lambda k: k.kind == "log1p")
        others = self._named(lambda k: not k.is_log and k.kind != "empty")
        if not logs or (len(certain) == len(logs) and (others or self.target_sum is None)):
            self._tell_counts()
            return "counts"  # logarithms among them are undone by `as_counts`
        if others or (certain and len(certain) < len(logs)):
            unlike = others or certain
            what = "counts" if others else "log-normalised counts"
            unknown = [name for name in logs if name not in certain]
            msg = (
                f"{self.where} holds {what} in section {listing(unlike)}, but in section {listing(unknown)} numbers that are "
                "not whole and look like logarithms on a scale that cannot be told. Models read one kind. "
                f"{self._remedy()} Or log-normalise all sections alike and pass input='log'."
            )
            raise ValueError(msg)
        scale = (
            "on a scale that cannot be told"
            if self.target_sum is None
            else f"log(1 + x) of counts that are normalised to {self.target_sum:,.0f} in each spot"
        )
        logger.info(
            "%s holds logarithms (numbers that are not whole, from %.3g to %.3g; %s), which are taken as they are "
            "(input='log'). To train on raw counts, name their layer (layer=); layers: %s.",
            self.where, *self.extremes, scale, listing(self.layers),
        )  # fmt: skip
        return "log"

    def tell(self, wanted: Input, asked: Input | None, target_sum: float | None) -> None:
        """Say how the numbers of all sections become counts (:meth:`as_counts`) or logarithms (:meth:`as_logs`).

        Raises
        ------
        ValueError
            They do not, as far as sections tell.
        """
        if wanted == "counts":
            self._tell_as_counts(asked)
        else:
            self._tell_as_logs(asked, target_sum)

    def as_counts(self, asked: Input | None) -> sp.csr_matrix:
        """Counts of all spots; sections that are log-normalised for certain are taken back to counts.

        Parameters
        ----------
        asked
            What the numbers are said to be: ``"log"`` undoes the natural logarithm of 1 + x everywhere, ``"counts"`` takes
            numbers that are not whole as counts; `None`: look.

        Raises
        ------
        ValueError
            Negative numbers.
        """
        if asked == "log":
            self._refuse_negative()
            return self._undone(np.ones(len(self.kinds), dtype=bool))
        check_nonnegative(self.values, self._what)
        logged = np.array([kind.kind == "log1p" for kind in self.kinds])
        return self._undone(logged) if logged.any() else self.values

    def _tell_as_counts(self, asked: Input | None) -> None:
        if asked == "log":
            return
        unknown = self._named(lambda k: k.kind == "log")
        if asked is None and unknown:
            msg = (
                f"The model reads counts, but {self.where} holds numbers in section {listing(unknown)} that are not whole "
                f"and look like logarithms on a scale that cannot be told. {self._remedy()} Or pass input='log' if they "
                "are natural logarithms of 1 + normalised counts, or input='counts' if they are counts."
            )
            raise ValueError(msg)
        if asked is None:
            self._tell_counts()
        logged = self._named(lambda k: k.kind == "log1p")
        if not logged:
            return
        sums = dict.fromkeys(f"{kind.total:,.0f}" for kind in self.kinds if kind.kind == "log1p")
        logger.warning(
            "%s is log-normalised in section %s: its numbers are not whole, and those of a spot add up to %s before the "
            "logarithm. They are taken back to counts of that sum and then normalised to 10,000 as all others. %s",
            self.where, listing(logged), " or ".join(sums), self._remedy(),
        )  # fmt: skip

    def as_logs(self, asked: Input | None, target_sum: float | None) -> sp.csr_matrix:
        """Logarithms of all spots.

        Parameters
        ----------
        asked
            What the numbers are said to be: ``"log"`` takes them as they are, ``"counts"`` log-normalises them; `None`: look.
        target_sum
            Sum of a training spot before the logarithm; `None`: not known.
        """
        if asked == "log" or (asked is None and target_sum is None):
            return self.values
        if asked == "counts":
            check_nonnegative(self.values, self._what)
            return log_normalize(self.values, target_sum or TARGET_SUM)
        scale = target_sum or TARGET_SUM
        certain = np.array([kind.kind == "log1p" for kind in self.kinds])
        change = np.array([not k.is_log or (k.kind == "log1p" and not _same_scale(k.total, scale)) for k in self.kinds])
        if not change.any():
            return self.values
        out = self.values.copy()
        out.data[self._entries(change)] = log_normalize(self._undone(certain & change)[change[self.number]], scale).data
        return out

    def _tell_as_logs(self, asked: Input | None, target_sum: float | None) -> None:
        if asked is not None:
            return
        counts = self._named(lambda k: not k.is_log and k.kind != "empty")
        if counts and target_sum is None:
            msg = (
                f"The model was trained on logarithms whose scale is not known, but {self.where} holds counts in section "
                f"{listing(counts)}: the scales differ. Log-normalise the data as the training data were (layers: "
                f"{listing(self.layers)}), or pass input='counts' to take log(1 + x) of counts normalised to "
                f"{TARGET_SUM:,.0f}."
            )
            raise ValueError(msg)
        if target_sum is None:
            return
        if counts:
            logger.info(
                "%s holds counts in section %s; they are log-normalised to a sum of %s, as the training data were.",
                self.where, listing(counts), f"{target_sum:,.0f}",
            )  # fmt: skip
        other = self._named(lambda k: k.kind == "log1p" and not _same_scale(k.total, target_sum))
        if other:
            logger.warning(
                "%s is log-normalised to another sum than the training data (%s) in section %s; it is brought to theirs.",
                self.where, f"{target_sum:,.0f}", listing(other),
            )  # fmt: skip

    @property
    def _what(self) -> str:
        return "Gene counts" if self.where == "X" else f"Gene counts in {self.where}"

    def _named(self, holds: Callable[[StoredKind], bool]) -> list[str]:
        return [name for name, kind in zip(self.names, self.kinds, strict=True) if holds(kind)]

    def _entries(self, sections: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the stored numbers belong to some sections."""
        return np.repeat(sections[self.number], np.diff(self.values.indptr))

    def _undone(self, sections: NDArray[np.bool_]) -> sp.csr_matrix:
        """The values with exp(x) - 1 in some sections."""
        out = self.values.copy()
        entries = self._entries(sections)
        out.data[entries] = np.expm1(out.data[entries])
        return out

    def _refuse_negative(self) -> None:
        least, _ = self.extremes
        if least < 0:
            msg = (
                f"The model reads counts. {self.where} holds negative numbers (least: {least:.3g}), so these are no "
                f"logarithms of 1 + counts, which could be undone. {self._remedy()}"
            )
            raise ValueError(msg)

    def _remedy(self) -> str:
        return f"Put raw counts of all sections into a layer and name it with layer= (layers: {listing(self.layers)})."

    def _tell_counts(self) -> None:
        corrected, normalised = (
            self._named(lambda k: k.kind == "corrected"),
            self._named(lambda k: k.kind == "normalised"),
        )
        if corrected:
            logger.warning(
                "%s holds numbers that are not whole in section %s. Their sums differ between spots, as those of counts "
                "corrected for ambient RNA do (SoupX, DecontX): they are taken as counts, and normalised. If they are "
                "logarithms, pass input='log'. %s",
                self.where, listing(corrected), self._remedy(),
            )  # fmt: skip
        if normalised:
            logger.info(
                "%s is normalised in section %s (one sum for all spots, no logarithm); it is taken as counts.",
                self.where, listing(normalised),
            )  # fmt: skip


def _canonical(matrix: Any) -> sp.csr_matrix:
    """CSR, float32, columns ascending and each once; not to be written into."""
    values = as_csr(matrix, np.float32)
    if not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    return values


def _same_scale(total: float | None, target_sum: float) -> bool:
    return total is not None and abs(total - target_sum) <= _SAME_SCALE * target_sum


def query_layer(adata: AnnData, layer: str | None, trained_on: str | None) -> str | None:
    """The layer of data to predict: the one named (``"X"``: ``X``), else that of the training where it is there, else ``X``."""
    layers: list[Any] = layer_names(adata)
    if layer is not None:
        return None if layer == "X" and "X" not in layers else layer
    if trained_on is None or trained_on in layers:
        return trained_on
    logger.info(
        "The model was trained on layers[%r], which the data lack: X is taken. Name another one with layer=; layers: %s.",
        trained_on, listing(layers),
    )  # fmt: skip
    return None

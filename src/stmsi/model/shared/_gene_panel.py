"""The genes that a model knows, and how to find them in other data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.learning.expression_space import TARGET_SUM
from stmsi._data.checks import listing, require_unique
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._stored_input import Input

_ALIASES = (
    Key.var.GENE_IDS, "gene_id", "ensembl_id", "ensembl", "feature_id",
    "gene_symbols", "gene_symbol", "gene_name", "gene_names", "feature_name", "symbol", "SYMBOL",
)  # fmt: skip
"""Columns of ``var`` in which readers leave the other kind of gene name."""
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def gene_names(var: pd.DataFrame) -> dict[str, pd.Index]:
    """All kinds of gene names that a ``var`` offers; Ensembl versions are cut off, missing names are empty."""
    kinds = {"var_names": var.index}
    kinds |= {a: pd.Index(var[a].astype(object).where(var[a].notna(), "")) for a in _ALIASES if a in var}
    return {k: pd.Index([_VERSION.sub(r"\1", str(n)) for n in names]) for k, names in kinds.items()}


@dataclass(frozen=True)
class GenePanel:
    """Genes of the training data, in order.

    Attributes
    ----------
    names
        Every kind of name, each in panel order.
    mean_log
        Mean log expression over the training spots: what a missing gene is imputed with.
    target_sum
        Sum of a training spot before the logarithm, where logarithms were given and it is known.
    """

    names: dict[str, pd.Index]
    mean_log: NDArray[np.float64]
    target_sum: float | None = None

    def __len__(self) -> int:
        return len(self.mean_log)

    def locate(self, var: pd.DataFrame) -> NDArray[np.int64]:
        """Column of each panel gene in other data, -1 where it is missing.

        Raises
        ------
        ValueError
            No gene is shared, or the names that match are not unique.
        """
        best, best_hits, best_kind = np.full(len(self), -1), 0, ""
        for kind, names in gene_names(var).items():
            for own in self.names.values():
                unique = names.drop_duplicates().difference([""])
                hits = int(own.isin(unique).sum())
                if hits > best_hits:
                    # columns of a repeated name: refused below, once it is clear that this kind is used
                    best_hits, best_kind = hits, kind
                    first = pd.Series(np.arange(len(names)), index=names)[~names.duplicated() & (names != "")]
                    best = first.reindex(own).fillna(-1).to_numpy().astype(np.int64)
        if best_hits == 0:
            msg = (
                f"The data share no gene with the training panel. The panel looks like {listing(self._examples())}, the "
                f"data like {listing(var.index[:3])}. Use the same species and the same kind of id, or put the other "
                f"kind into var[{Key.var.GENE_IDS!r}] or var['gene_symbols']."
            )
            raise ValueError(msg)
        used = gene_names(var)[best_kind]
        wanted = pd.Index(np.concatenate(list(self.names.values()))).difference([""])
        require_unique(used[used.isin(wanted)], "Gene names")
        return best

    def _examples(self) -> list[str]:
        return [str(v[0]) for v in self.names.values() if len(v)]

    def align(self, values: sp.csr_matrix, columns: NDArray[np.int64], input: Input = "counts") -> sp.csr_matrix:
        """Counts or logarithms in panel order, missing genes imputed.

        A missing gene gets its mean log expression over the training spots in every spot. Of counts, it gets the count
        that gives it this expression. The library size follows: with s the share of a library that the missing genes make
        up, it is the counted part divided by 1 - s.

        Parameters
        ----------
        values
            Spots x genes of the query.
        columns
            From :meth:`locate`.
        input
            What `values` are: ``"counts"`` or ``"log"``.

        Returns
        -------
        Spots x panel genes.
        """
        if np.array_equal(columns, np.arange(values.shape[1])):
            return sp.csr_matrix(values, dtype=np.float32)
        found = np.flatnonzero(columns >= 0)
        missing = np.flatnonzero(columns < 0)
        part = values[:, columns[found]]
        if len(missing) == 0:
            return sp.csr_matrix(part, dtype=np.float32)
        if input == "log":
            filled = sp.csr_matrix(np.tile(self.mean_log[missing].astype(np.float32), (part.shape[0], 1)))
        else:
            relative = np.expm1(self.mean_log[missing]) / TARGET_SUM
            share = min(float(relative.sum()), 0.99)
            library = np.asarray(part.sum(axis=1), dtype=np.float64).ravel() / (1 - share)
            filled = sp.csr_matrix(np.outer(library, relative).astype(np.float32))
        joined = sp.hstack([part, filled], format="csr", dtype=np.float32)
        order = np.empty(len(self), np.int64)
        order[np.concatenate([found, missing])] = np.arange(len(self))
        return sp.csr_matrix(joined[:, order])

"""The genes that a model knows, and how to find them in other data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from stmsi._core.learning.expression_space import TARGET_SUM
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._settings import logger
from stmsi.model.shared._gene_names import VAR_NAMES, Match, disagree, gene_names, match_genes, unlike_species

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from stmsi.model.shared._stored_input import Input


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

    def locate(self, var: pd.DataFrame, *, tell: bool = False) -> NDArray[np.int64]:
        """Column of each panel gene in other data, -1 where it is missing.

        Parameters
        ----------
        var
            Of the other data.
        tell
            Say by which names genes were found, and what is doubtful about them.

        Raises
        ------
        ValueError
            No gene is shared, the data are of another species, or the names that match are not unique.
        """
        match = match_genes(self.names, var)
        shared = int((match.columns >= 0).sum())
        unlike = unlike_species(self.names, gene_names(var))
        if shared == 0 or match.by_case:
            few = "no gene" if shared == 0 else f"only {shared} of {len(self):,} genes"
            other = " The data look like another species." if match.by_case else ""
            if unlike is not None:
                other = f" Another species: the panel looks like {unlike[0]}, the data like {unlike[1]}."
            case = (
                f" {match.by_case:,} names agree only when upper and lower case are ignored." if match.by_case else ""
            )
            msg = (
                f"The data share {few} with the training panel. The panel looks like {listing(self._examples())}, the "
                f"data like {listing(var.index[:3])}.{case}{other} Use the same species and the same kind of id, or put "
                f"the other kind into var[{Key.var.GENE_IDS!r}] or var['gene_symbols']. Of another species, rename the "
                "genes to their one-to-one orthologs first; equal names are no proof of it."
            )
            raise ValueError(msg)
        if tell:
            self._tell(match, unlike)
        return match.columns

    def _tell(self, match: Match, unlike: tuple[str, str] | None) -> None:
        if len(match.by) > 1 or VAR_NAMES not in match.by:
            found = ", ".join(f"{k if k == VAR_NAMES else f'var[{k!r}]'} ({n:,})" for k, n in match.by.items())
            logger.info("Genes of the model are found by %s.", found)
        if disagree(match):
            logger.warning(
                "Ids and symbols of genes disagree: for %.0f %% of the genes found by both, the id is in another column "
                "than the symbol. Ids are used; check that var was not put in another order.",
                100 * match.disagreeing,
            )
        if unlike is not None:
            logger.warning(
                "The genes of the model look like %s, those of the data like %s. They are matched by name, which is right "
                "only if they were renamed to their orthologs.",
                *unlike,
            )

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

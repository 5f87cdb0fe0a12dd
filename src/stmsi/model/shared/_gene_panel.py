"""The genes that a model knows, and how to find them in other data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._settings import logger
from stmsi.model.shared._gene_names import VAR_NAMES, Match, disagree, gene_names, match_genes, unlike_species
from stmsi.model.shared._imputation import Imputation

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
    mean_share
        Mean share of each gene in the counts of a training spot, where counts were given.
    """

    names: dict[str, pd.Index]
    mean_log: NDArray[np.float64]
    target_sum: float | None = None
    mean_share: NDArray[np.float64] | None = None

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

    def align(self, values: sp.csr_matrix, columns: NDArray[np.int64]) -> sp.csr_matrix:
        """Counts or logarithms in panel order; missing genes stay empty, and :meth:`imputation` says what stands in for them.

        Parameters
        ----------
        values
            Spots x genes of the query.
        columns
            From :meth:`locate`.

        Returns
        -------
        Spots x panel genes.
        """
        if np.array_equal(columns, np.arange(values.shape[1])):
            return sp.csr_matrix(values, dtype=np.float32)
        found = np.flatnonzero(columns >= 0)
        part = sp.csr_matrix(values[:, columns[found]], dtype=np.float32)
        if len(found) == len(self):
            return part
        return sp.csr_matrix((part.data, found[part.indices], part.indptr), shape=(part.shape[0], len(self)))

    def imputation(self, missing: NDArray[np.int64], input: Input = "counts") -> Imputation | None:
        """What stands in for missing genes (positions in the panel), of counts or logarithms; `None` where none is missing."""
        if len(missing) == 0:
            return None
        row = np.zeros(len(self), np.float32)
        row[missing] = self.mean_log[missing]
        share = None if self.mean_share is None else float(self.mean_share[missing].sum())
        return Imputation(np.asarray(missing, np.int64), row, input, share)

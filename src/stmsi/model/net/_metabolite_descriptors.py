"""What is known of metabolites beside their intensities: m/z and descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import listing, suggest
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._setup import Setup


@dataclass(frozen=True)
class Described:
    """Metabolites in numbers.

    Attributes
    ----------
    mz
        In Da, NaN where unknown, shape (metabolites,).
    descriptors
        Further columns of the feature table, NaN where unknown, shape (metabolites, columns).
    """

    mz: NDArray[np.float64]
    descriptors: NDArray[np.float64]

    @classmethod
    def read(cls, table: pd.DataFrame, columns: Sequence[str], name: str) -> Described:
        """The numbers in a feature table; `name` says in messages where it stands."""
        for column in columns:
            if column not in table:
                msg = f"{name} has no column {column!r} (descriptors=); found {listing(table.columns)}.{suggest(column, table.columns)}"
                raise KeyError(msg)
            if not pd.api.types.is_numeric_dtype(table[column]):
                msg = f"{name}[{column!r}] is not numeric ({table[column].dtype}); descriptors are numbers."
                raise ValueError(msg)
        mz = table[Key.var.MZ] if Key.var.MZ in table else pd.Series(np.nan, table.index)
        descriptors = table[list(columns)].to_numpy(dtype=np.float64).reshape(len(table), len(columns))
        return cls(pd.to_numeric(mz).to_numpy(dtype=np.float64), descriptors)


def training_metabolites(adata: AnnData, setup: Setup, columns: Sequence[str]) -> Described:
    """The feature table of the training data, in the order of its metabolites."""
    metabolites = pd.Index(adata.obsm[setup.metabolite_key].columns.astype(str))
    record = adata.uns.get(setup.metabolite_key)
    table = record.get("features") if isinstance(record, Mapping) else None
    table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(index=metabolites)
    return Described.read(table.reindex(metabolites), columns, f"uns[{setup.metabolite_key!r}]['features']")

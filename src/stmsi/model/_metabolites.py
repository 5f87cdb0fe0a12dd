"""What is known of metabolites beside their intensities: m/z, descriptors, genes that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._keys import Key
from stmsi._validate import listing, suggest

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model._setup import Setup


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


def gene_prior(adata: AnnData, setup: Setup, key: str) -> NDArray[np.float32]:
    """Weights of the genes known to belong to each metabolite, shape (metabolites, genes); 0 where nothing is known.

    Parameters
    ----------
    adata
        The training data.
    setup
        Names of its fields.
    key
        DataFrame genes x metabolites in ``varm``, boolean or weights.
    """
    if key not in adata.varm:
        msg = f"varm has no {key!r} (prior_key=); found {listing(adata.varm.keys())}.{suggest(key, adata.varm.keys())}"
        raise KeyError(msg)
    frame = adata.varm[key]
    metabolites = pd.Index(adata.obsm[setup.metabolite_key].columns.astype(str))
    if not isinstance(frame, pd.DataFrame):
        msg = f"varm[{key!r}] must be a DataFrame genes x metabolites, found {type(frame).__name__}."
        raise TypeError(msg)
    if not frame.columns.astype(str).isin(metabolites).any():
        msg = (
            f"varm[{key!r}] names no metabolite of obsm[{setup.metabolite_key!r}]; its columns are "
            f"{listing(frame.columns)}, the metabolites {listing(metabolites)}."
        )
        raise ValueError(msg)
    weight = frame.set_axis(frame.columns.astype(str), axis=1).astype(np.float32).reindex(columns=metabolites)
    values = weight.fillna(0).to_numpy().T
    if not np.isfinite(values).all() or (values < 0).any():
        msg = f"varm[{key!r}] must hold booleans or weights of at least 0."
        raise ValueError(msg)
    return values

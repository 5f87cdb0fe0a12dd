"""The fields of an AnnData that the network reads, as scvi-tools registers them, and how batches of them are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
)
from torch.utils.data import Subset

from stmsi._data.keys import Key
from stmsi.model.net.modules._hurdle import CLUSTER_KEY, FEATURES_KEY, METABOLITES_KEY, PRESENCE_KEY
from stmsi.model.shared._stored_input import StoredExpression

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from stmsi.model.shared._setup import Setup

ROW_KEY = "_indices"
"""Column of ``obs`` with the row of each spot, as scvi-tools calls it."""


class OrderedRows(AnnTorchDataset):
    """Spots of an AnnData by position, in the order asked for.

    Files are read in the order of their rows, in which scvi-tools hands them on. The order of a batch decides about
    dropout and rounding, so that training on a file would differ from training in memory.
    """

    def __getitem__(self, indexes: Any) -> dict[str, Any]:
        """Tensors of some spots by registry key."""
        tensors: dict[str, Any] = super().__getitem__(indexes)
        if not self.adata_manager.adata.isbacked or not isinstance(indexes, list | np.ndarray):
            return tensors
        place = np.argsort(np.argsort(indexes))
        # in the layout that they came in, on which rounding in sums depends
        return {k: np.array(v[place], order="C" if v.flags.c_contiguous else "F") for k, v in tensors.items()}


class NetDataManager(AnnDataManager):
    """The manager of scvi-tools, whose batches have the same order from a file as from memory."""

    stored_rows: Callable[..., OrderedRows] | None = None
    """Makes the data set where the expression is in stores, and not in the AnnData."""

    def create_torch_dataset(
        self, indices: Any = None, data_and_attributes: Any = None, load_sparse_tensor: bool = False
    ) -> Any:
        """Spots as torch reads them; arguments as in scvi-tools."""
        make = OrderedRows if self.stored_rows is None else self.stored_rows
        dataset = make(self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor)
        return dataset if indices is None else Subset(dataset, indices)


class OptionalObsmField(ObsmField):
    """A field of ``obsm`` that query data need not have.

    Training data register it as usual. When the setup is transferred to data without it, the column names of the
    training data are kept and nothing is read; data loaders must then not ask for the field.
    """

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Transfer the field where the target has it."""
        if self.attr_key in getattr(adata_target, self.attr_name):
            return super().transfer_field(state_registry, adata_target, **kwargs)
        return {self.COLUMN_NAMES_KEY: list(state_registry[self.COLUMN_NAMES_KEY])}


def scvi_fields(adata: AnnData, setup: Setup) -> list[Any]:
    """The fields of a setup."""
    layer = Key.layers.COUNTS if Key.layers.COUNTS in adata.layers else setup.layer
    fields: list[Any] = [
        LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
        OptionalObsmField(METABOLITES_KEY, setup.metabolite_key),
    ]
    if setup.presence_key is not None:
        fields.append(OptionalObsmField(PRESENCE_KEY, setup.presence_key))
    fields.append(NumericalObsField(REGISTRY_KEYS.INDICES_KEY, ROW_KEY))
    fields += [ObsmField(f"{FEATURES_KEY}_{i}", key) for i, key in enumerate(setup.feature_key)]
    if setup.cluster_key is not None:
        fields.append(CategoricalObsField(CLUSTER_KEY, setup.cluster_key))
    numeric = [k for k in setup.covariate_keys if _is_number(adata.obs[k])]
    categorical = [k for k in setup.covariate_keys if k not in numeric]
    if categorical:
        fields.append(CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical))
    if numeric:
        fields.append(NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, numeric))
    return fields


def keep_counts(adata: AnnData, setup: Setup) -> None:
    """Write counts of all spots into a layer where some sections are log-normalised: batches are read without a second look."""
    adata.layers.pop(Key.layers.COUNTS, None)
    if setup.input == "log":
        return
    stored = StoredExpression.open(adata, setup.layer, setup.sample_key)
    if any(kind.kind == "log1p" for kind in stored.kinds):
        adata.layers[Key.layers.COUNTS] = stored.as_counts("counts")  # training says so


def _is_number(column: pd.Series) -> bool:
    # whole numbers are the names of batches, not amounts
    of = pd.api.types
    return of.is_numeric_dtype(column) and not (of.is_bool_dtype(column) or of.is_integer_dtype(column))

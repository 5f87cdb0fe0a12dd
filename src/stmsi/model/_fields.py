"""AnnData fields that scvi-tools lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.data.fields import ObsmField

if TYPE_CHECKING:
    from anndata import AnnData


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

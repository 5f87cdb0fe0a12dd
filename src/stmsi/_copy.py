"""Copies of what users pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def copy_of(data: SpatialData | AnnData) -> SpatialData | AnnData:
    """A deep copy of either container."""
    from anndata import AnnData

    if isinstance(data, AnnData):
        return data.copy()
    from spatialdata import deepcopy

    return deepcopy(data)

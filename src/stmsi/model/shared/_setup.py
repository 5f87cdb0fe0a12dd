"""What a model reads from an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.checks import (
    check_nonnegative,
    listing,
    own_view,
    require_anndata,
    require_rows,
    require_unique,
    suggest,
)
from stmsi._data.keys import Key
from stmsi._data.stale import warn_if_stale
from stmsi._data.tables import require_frame, require_obs, sections_of
from stmsi.model.shared._stored_input import Input, StoredExpression, check_input

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Setup:
    """Names of the fields that a model uses; see ``setup_anndata`` of the models."""

    layer: str | None = None
    input: Input = "counts"
    metabolite_key: str = Key.obsm.MSI
    presence_key: str | None = None
    signature_key: str | None = None
    cluster_key: str | None = None
    sample_key: str = Key.obs.SAMPLE
    graph_key: str | None = None
    covariate_keys: tuple[str, ...] = ()
    feature_key: tuple[str, ...] = ()
    prior_key: str | None = None

    @classmethod
    def create(
        cls,
        adata: AnnData,
        *,
        input: Input | None = None,
        covariate_keys: Sequence[str] | None = None,
        feature_key: str | Sequence[str] | None = None,
        **fields: str | None,
    ) -> Setup:
        """Check the fields and write their names into ``uns``; without `input`, the numbers tell what they are."""
        require_anndata(adata)
        check_input(input)
        setup = cls(covariate_keys=_names(covariate_keys), feature_key=_names(feature_key), **fields)  # type: ignore[arg-type]
        own_view(adata)
        require_rows(adata)
        require_unique(adata.var_names, "Gene names")
        setup._check(adata)
        warn_if_stale(adata, setup.metabolite_key)
        kind = StoredExpression.open(adata, setup.layer, setup.sample_key).told() if input is None else input
        setup = replace(setup, input=kind)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setup).items()}
        adata.uns[Key.uns.SETUP] = {k: v for k, v in plain.items() if v is not None and v != []}
        return setup

    @classmethod
    def read(cls, adata: AnnData, model: str) -> Setup:
        """The fields that ``setup_anndata`` wrote."""
        require_anndata(adata)
        if Key.uns.SETUP not in adata.uns:
            msg = f"The AnnData is not set up; call {model}.setup_anndata(adata) first."
            raise ValueError(msg)
        fields = dict(adata.uns[Key.uns.SETUP])
        for name in ("covariate_keys", "feature_key"):
            fields[name] = tuple(str(k) for k in fields.get(name, ()))
        return cls(**fields)

    def _check(self, adata: AnnData) -> None:
        if self.layer is not None and self.layer not in adata.layers:
            msg = f"No layer {self.layer!r}; layers: {listing(adata.layers.keys())}."
            raise KeyError(msg)
        frame = require_frame(adata, self.metabolite_key, "stmsi.pp.map_to_spots writes it.")
        require_unique(frame.columns, "Metabolite names")
        if frame.shape[1] == 0:
            msg = f"obsm[{self.metabolite_key!r}] has no metabolites."
            raise ValueError(msg)
        check_nonnegative(frame.to_numpy(), f"obsm[{self.metabolite_key!r}]", allow_nan=True)
        sections_of(adata, self.sample_key)
        if self.presence_key is not None:
            presence = require_frame(adata, self.presence_key, "stmsi.pp.call_presence writes it.")
            if list(presence.columns) != list(frame.columns):
                apart = presence.columns.symmetric_difference(frame.columns)
                what = f"not in both: {listing(apart)}" if len(apart) else "they stand in another order"
                msg = (
                    f"obsm[{self.presence_key!r}] and obsm[{self.metabolite_key!r}] have different metabolites ({what}); "
                    "call stmsi.pp.call_presence again."
                )
                raise ValueError(msg)
            values = presence.to_numpy(dtype=np.float64)
            if not np.isin(values[~np.isnan(values)], (0, 1)).all():
                msg = f"obsm[{self.presence_key!r}] must hold 1 (present), 0 (absent) or NaN (not covered)."
                raise ValueError(msg)
        if (self.signature_key is None) != (self.cluster_key is None):
            msg = "signature_key and cluster_key go together: a spot's mask is its cluster's column of the signature."
            raise ValueError(msg)
        if self.signature_key is not None and self.cluster_key is not None:
            if require_obs(adata, self.cluster_key, "stmsi.pp.gene_signatures was called with it.").isna().any():
                msg = f"obs[{self.cluster_key!r}] has missing values; every spot needs a cluster."
                raise ValueError(msg)
            if self.signature_key not in adata.varm:
                msg = (
                    f"varm has no {self.signature_key!r}; found {listing(adata.varm.keys())}. "
                    "stmsi.pp.gene_signatures writes it."
                )
                raise KeyError(msg)
        if self.graph_key is not None and self.graph_key not in adata.obsp:
            msg = (
                f"obsp has no {self.graph_key!r}; found {listing(adata.obsp.keys())}. stmsi.pp.spatial_graph writes it."
            )
            raise KeyError(msg)
        if self.prior_key is not None:
            read_prior(adata, self.prior_key, frame.columns)
        for key in self.covariate_keys:
            if require_obs(adata, key).isna().any():
                msg = f"Covariate obs[{key!r}] has missing values; fill them first."
                raise ValueError(msg)
        for key in self.feature_key:
            if key in (self.metabolite_key, self.presence_key):
                msg = f"obsm[{key!r}] is what the model predicts; it cannot be a feature."
                raise ValueError(msg)
            if key not in adata.obsm:
                msg = f"obsm has no {key!r}; found {listing(adata.obsm.keys())}.{suggest(key, adata.obsm.keys())}"
                raise KeyError(msg)


def read_prior(adata: AnnData, key: str, metabolites: pd.Index) -> NDArray[np.bool_]:
    """Genes known to belong to each metabolite, shape (genes, metabolites); all false for those the prior lacks."""
    if key not in adata.varm:
        msg = (
            f"varm has no {key!r}; found {listing(adata.varm.keys())}. "
            f"stmsi.pp.knowledge_prior writes it.{suggest(key, adata.varm.keys())}"
        )
        raise KeyError(msg)
    prior = adata.varm[key]
    if not isinstance(prior, pd.DataFrame):
        msg = f"varm[{key!r}] must be a DataFrame genes x metabolites, found {type(prior).__name__}; call stmsi.pp.knowledge_prior."
        raise ValueError(msg)
    mask = prior.reindex(columns=metabolites, fill_value=False).to_numpy(dtype=bool)
    if not mask.any():
        msg = (
            f"varm[{key!r}] names no gene for any of the metabolites; it has columns for {listing(prior.columns)}, the "
            f"metabolites are {listing(metabolites)}. Call stmsi.pp.knowledge_prior on these data."
        )
        raise ValueError(msg)
    return mask


def _names(keys: str | Sequence[str] | None) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys or ())


def default_setup(adata: AnnData) -> dict[str, Any]:
    """Presence and signature from where :mod:`stmsi.pp` writes them, as far as they are there."""
    fields: dict[str, Any] = {}
    if Key.obsm.PRESENCE in adata.obsm:
        fields["presence_key"] = Key.obsm.PRESENCE
    record = adata.uns.get(Key.uns.SIGNATURE, {})
    cluster_key = record.get("params", {}).get("cluster_key")
    if Key.varm.SIGNATURE in adata.varm and cluster_key in adata.obs:
        fields |= {"signature_key": Key.varm.SIGNATURE, "cluster_key": str(cluster_key)}
    return fields


def graph_where_there(adata: AnnData) -> dict[str, Any]:
    """The neighbourhood graph, where :func:`stmsi.pp.spatial_graph` has written it."""
    return {"graph_key": Key.obsp.CONNECTIVITIES} if Key.obsp.CONNECTIVITIES in adata.obsp else {}


def prior_where_there(adata: AnnData) -> dict[str, Any]:
    """The knowledge prior, where :func:`stmsi.pp.knowledge_prior` has written it."""
    return {"prior_key": Key.varm.PRIOR} if Key.varm.PRIOR in adata.varm else {}

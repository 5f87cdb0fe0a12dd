"""What can be trained on stores, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmsi._data.keys import Key
from stmsi.model._families import ModelSpec, resolve
from stmsi.model.shared._spot_model import SpotModel
from stmsi.tl._joined_stores import as_keys
from stmsi.tl._stored_section import wanted_of_stores

if TYPE_CHECKING:
    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._stored_input import Input


def is_network(cls: type[HurdleModel]) -> bool:
    """Whether a model is trained in batches, which can be read from stores."""
    return hasattr(cls, "_train_on_stored")


def paths_of(data: Any) -> list[str | Path]:
    """Paths of stores, of which there may be one."""
    if isinstance(data, str | Path):
        return [data]
    paths = list(data) if isinstance(data, Sequence) else [data]
    other = [type(path).__name__ for path in paths if not isinstance(path, str | Path)]
    if other:
        msg = (
            f"Expected an AnnData, a SpatialData or paths of stores, found {other[0]}. Sections in memory go together in one table first "
            "(anndata.concat)."
        )
        raise TypeError(msg)
    return paths


def fields_of_stores(setup: Mapping[str, Any] | None, layer: str | None, input: Input | None) -> dict[str, Any]:
    """Fields for ``setup_anndata`` of stores, as far as they were named; a setup without presence is one without.

    Raises
    ------
    ValueError
        A signature, which belongs to the clusters of one table.
    """
    fields: dict[str, Any] = {} if setup is None else {"presence_key": None} | dict(setup)
    named = (("layer", None if layer == "X" else layer), ("input", input))
    fields |= {key: value for key, value in named if value is not None}
    if fields.get("signature_key") is not None:
        msg = (
            "Signatures are not read from several stores: clusters of one store are not those of another. Leave out signature_key "
            "and cluster_key, or train on one table in memory."
        )
        raise ValueError(msg)
    return fields


def check_stored_model(spec: ModelSpec, fields: Mapping[str, Any]) -> None:
    """Refuse a model that is not trained by what was read of the spots alone."""
    cls, _, own, train_args = resolve(spec)
    if not is_network(cls) and (not issubclass(cls, SpotModel) or cls._reads_matrix or train_args):
        msg = (
            f"{cls.__name__} reads the table itself and cannot be trained on stores. Take a linear family (such as 'ridge'), a network "
            "(such as 'mlp'), or read the sections into one table (anndata.concat)."
        )
        raise TypeError(msg)
    if own.get("layer", fields.get("layer")) != fields.get("layer"):
        msg = f"The expression of all stores is read from one place; name the layer {own['layer']!r} for all models (layer=)."
        raise ValueError(msg)
    usual = {"input": None, "sample_key": Key.obs.SAMPLE, "metabolite_key": Key.obsm.MSI} | dict(fields)
    apart = {key for key in ("input", "sample_key", "metabolite_key") if own.get(key, usual[key]) != usual[key]}
    read = wanted_of_stores(fields)
    places = {"presence_key": "obsm", "feature_key": "obsm", "graph_key": "obsp", "prior_key": "varm"}
    apart |= {key for key, place in places.items() if not set(as_keys(own.get(key))) <= set(read[place])}
    if apart:
        told = ", ".join(f"{key}={own[key]!r}" for key in sorted(apart))
        msg = f"Stores are read once, as all models need them; name {told} for all (setup=)."
        raise ValueError(msg)

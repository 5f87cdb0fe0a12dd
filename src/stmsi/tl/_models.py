"""Models as users pass them: trained, in a folder, or by the name of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.keys import Key
from stmsi._data.tables import require_metabolites
from stmsi.model._families import AUTO, FAMILIES, resolve
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._setup import default_setup
from stmsi.model.shared._spot_model import SpotModel
from stmsi.model.shared._training_data import TrainingData
from stmsi.tl._stored_models import is_network

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi.model.net._stored_batches import StoredInput
    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._stored_input import Input


def trained_model(model: HurdleModel | str | Path) -> HurdleModel:
    """The model itself or the one saved in a folder; it must be trained."""
    if isinstance(model, str | Path):
        from stmsi.model import load

        if not Path(model).exists():
            msg = f"model={str(model)!r} is not a folder; pass a trained model or the folder of a saved one."
            raise ValueError(msg)
        model = load(model)
    if not isinstance(model, HurdleModel):
        msg = f"Expected a trained model of stmsi.model or the folder of a saved one, found {type(model).__name__}."
        raise TypeError(msg)
    model.state  # noqa: B018  raises where it is not trained
    return model


def wanted_metabolites(model: HurdleModel, metabolites: str | Sequence[str] | None) -> list[str]:
    """Ids of the metabolites asked for."""
    if metabolites is None:
        return model.metabolites
    asked = [metabolites] if isinstance(metabolites, str) else list(metabolites)
    ids = require_metabolites(asked, model.state.metabolites, model.state.feature_table.get(Key.var.NAME))
    return list(dict.fromkeys(ids))


def train_model(
    adata: AnnData, spec: str | Mapping[str, Any], setup: Mapping[str, Any] | None, *, show_progress_bar: bool | None
) -> HurdleModel:
    """Set up and train a model given by name or mapping.

    Beside what `setup` says, models that read them get the neighbourhood graph and the knowledge prior of the data; None
    switches one off. The default stack looks up the prior by itself where the metabolites have names that are known.
    """
    return train_on(adata, spec, setup, show_progress_bar=show_progress_bar)[0]


def train_on(
    adata: AnnData,
    spec: str | Mapping[str, Any],
    setup: Mapping[str, Any] | None,
    *,
    show_progress_bar: bool | None,
    read: Callable[[Setup], Spots] | None = None,
    stored: StoredInput | None = None,
    marks: bool = True,
) -> tuple[HurdleModel, Spots | None]:
    """As :func:`train_model`; also what the model has read of all spots, where that can be told.

    `read` gives the spots of `adata` where these have been read before; then the AnnData need not hold the expression. A network finds
    it in `stored`. `marks` tells whether the model must know its training spots again.
    """
    cls, params, own_setup, train = resolve(spec)
    fields = {**(default_setup(adata) if setup is None else setup), **own_setup}
    if name_of_family(spec) == AUTO and "prior_key" not in fields and Key.varm.PRIOR not in adata.varm:
        _look_up_prior(adata, fields)
    fields = {**cls._default_fields(adata, params), **fields}
    cls.setup_anndata(adata, **fields)
    fitted = cls(adata, **params)
    if stored is not None and is_network(cls):
        fitted._train_on_stored(stored, show_progress_bar=show_progress_bar, **train)
        return fitted, None if read is None else read(fitted._setup)
    if train or not isinstance(fitted, SpotModel):
        fitted.train(show_progress_bar=show_progress_bar, **train)
        return fitted, None
    spots = None if read is None else read(fitted._setup)
    data = TrainingData.read(adata, fitted._setup, None, None, spots, from_disk=fitted._fits_from_disk)
    fitted._fit(replace(data, marks=marks), show_progress_bar)
    return fitted, data.spots


def name_of_family(spec: str | Mapping[str, Any]) -> object:
    """The family of a model given by name or mapping."""
    return spec.get("model") if isinstance(spec, Mapping) else spec


def _look_up_prior(adata: AnnData, fields: Mapping[str, Any]) -> None:
    """Mark the genes known of each metabolite, where any are; see :func:`stmsi.pp.knowledge_prior`."""
    from stmsi.pp import knowledge_prior

    # neither names nor genes need be known, and nobody asked: there is no error to tell
    with suppress(KeyError, ValueError):
        knowledge_prior(adata, metabolite_key=fields.get("metabolite_key", Key.obsm.MSI))


def is_named(model: object) -> bool:
    """Whether a model is given by the name of a family or a mapping, and is still to be trained."""
    return isinstance(model, Mapping) or (isinstance(model, str | Path) and str(model) in FAMILIES)


def setup_on(
    adata: AnnData, setup: Mapping[str, Any] | None, layer: str | None, input: Input | None
) -> Mapping[str, Any] | None:
    """Fields for ``setup_anndata`` with the layer and kind of the expression, where these were named."""
    named: dict[str, Any] = {key: value for key, value in (("layer", layer), ("input", input)) if value is not None}
    if not named:
        return setup
    if layer == "X" and "X" not in adata.layers:
        named["layer"] = None
    return {**(default_setup(adata) if setup is None else setup), **named}


def obtain_model(
    model: HurdleModel | str | Path | Mapping[str, Any],
    adata: AnnData,
    setup: Mapping[str, Any] | None,
    show_progress_bar: bool | None,
) -> HurdleModel:
    """The model itself, that of a folder, or the family named, trained on a copy so that the data keep no trace of it."""
    if isinstance(model, HurdleModel):
        return model
    if not is_named(model) and isinstance(model, str | Path):
        from stmsi.model import load

        if Path(model).exists():
            return load(model)
        msg = f"model={str(model)!r} is neither a folder nor a family; families: {', '.join(FAMILIES)}."
        raise ValueError(msg)
    on_disk = adata.isbacked or not isinstance(adata.obs, pd.DataFrame)
    own = adata.to_memory() if on_disk else adata.copy()
    return train_model(own, model, setup, show_progress_bar=show_progress_bar)  # type: ignore[arg-type]


def name_of(model: HurdleModel | str | Path) -> str:
    """What a user called a model: its folder, its family or its class."""
    return model.name if isinstance(model, Path) else model if isinstance(model, str) else type(model).__name__


def model_record(model: HurdleModel) -> dict[str, Any]:
    """Class, version and hyper-parameters of a model, as h5ad and zarr can hold them."""
    return {"class": type(model).__name__, "stmsi": version("stmsi"), "params": _plain(model._params())}


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values that h5ad and zarr can hold."""
    plain: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            if value:
                plain[key] = _plain(value)
        elif value is not None:
            plain[key] = list(value) if isinstance(value, tuple | list) else np.asarray(value).item()
    return plain

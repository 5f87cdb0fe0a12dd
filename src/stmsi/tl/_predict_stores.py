"""Predictions of many stores, each into a store of its own."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from anndata import AnnData

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.stores import opened_table, stored_matrix, table_without_matrix
from stmsi._data.unfinished import clear_leftovers
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.tl._cluster import connected, results
from stmsi.tl._made_from import MadeFrom, model_fingerprint, n_spots_of
from stmsi.tl._models import is_named, trained_model
from stmsi.tl._obs_by_section import ObsBySection, add_obs, name_section, obs_table
from stmsi.tl._stored_models import paths_of
from stmsi.tl._stored_sections import _distinct

if TYPE_CHECKING:
    from distributed import Client

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._setup import Setup


@dataclass(frozen=True)
class _Shared:
    """What the predictions of all stores share; the model may be the folder of one."""

    predict: Callable[..., None]
    model: HurdleModel | Path
    fingerprint: str
    table_key: str
    options: dict[str, Any]
    block_size: int
    overwrite: bool
    sample_key: str
    obs: pd.DataFrame | None


@dataclass(frozen=True)
class _Done:
    """What became of a store: its spots, whether it was predicted before, and why it could not be."""

    number: int
    n_spots: int = 0
    kept: bool = False
    error: str = ""


_NO_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def predict_stores(
    predict: Callable[..., None],
    data: Any,
    model: HurdleModel | str | Path | Mapping[str, Any],
    out: str | Path | None,
    options: Mapping[str, Any],
    *,
    block_size: int,
    table_key: str,
    on_error: Literal["raise", "warn"],
    overwrite: bool,
    obs: ObsBySection | None,
    client: Client | str | None,
    show_progress_bar: bool | None,
) -> pd.DataFrame:
    """Predict store after store, or on a cluster; those that cannot be predicted are named, and the others go on.

    What an earlier run predicted from the same is kept.

    Parameters
    ----------
    predict
        What predicts one table.
    data
        Paths of stores.
    model
        A trained one, or the folder of one; workers read it there.
    out
        Folder of the predictions; `None`: each lies beside its store.
    options
        Options of `predict` on which the prediction depends.
    block_size, table_key, on_error, overwrite, obs, client, show_progress_bar
        As of :func:`stmsi.tl.predict_metabolites`.

    Returns
    -------
    A row for each store, in order: ``store``, ``out``, ``n_spots``, ``kept`` and ``error``, empty where it is predicted.

    Raises
    ------
    ValueError
        A family by name, two stores of one output, or (with ``on_error="raise"``, after the others) stores that cannot be predicted.
    OSError
        The disk is full: no store would go on.
    """
    check_choice(on_error, ("raise", "warn"), "on_error")
    if is_named(model):
        msg = "Stores are predicted by a trained model; train it first: stmsi.tl.train(stores, 'ridge'), or pass the folder of a saved one."
        raise ValueError(msg)
    paths = _distinct(paths_of(data))
    targets = _targets(paths, out)
    assert not isinstance(model, Mapping)
    fitted = trained_model(model)
    if not isinstance(model, str | Path):
        fitted = copy(fitted)
        fitted._forget_data()  # which workers need not have
    shared = _Shared(
        predict, Path(model).resolve() if isinstance(model, str | Path) else fitted,
        model_fingerprint(Path(model) if isinstance(model, str | Path) else fitted), table_key, dict(options), block_size, overwrite,
        fitted.state.setup.sample_key, obs_table(obs),
    )  # fmt: skip
    # workers have other working directories
    calls = [(k, path.absolute(), out.absolute()) for k, (path, out) in enumerate(zip(paths, targets, strict=True))]
    rows: dict[int, _Done] = {}
    for one in track(_done(calls, shared, client), "predict", total=len(calls), show=show_progress_bar):
        rows[one.number] = one
        if one.error:
            logger.warning("%s is not predicted: %s", paths[one.number], one.error)
    if n_kept := sum(one.kept for one in rows.values()):
        logger.info(
            "%d of %d stores were predicted before, from the same; overwrite=True makes all again.", n_kept, len(rows)
        )
    table = pd.DataFrame(
        {
            "store": [str(path) for path in paths],
            "out": [str(path) for path in targets],
            "n_spots": [rows[k].n_spots for k in range(len(paths))],
            "kept": [rows[k].kept for k in range(len(paths))],
            "error": [rows[k].error for k in range(len(paths))],
        }
    )
    bad = table[table["error"] != ""]
    if len(bad) and on_error == "raise":
        told = "; ".join(
            f"{store}: {error.rstrip('.')}" for store, error in bad[["store", "error"]].head(10).itertuples(index=False)
        )
        msg = (
            f"{len(bad)} of {len(table)} stores cannot be predicted; the others are. {told}. Repair them and predict them alone; "
            "on_error='warn' returns the table instead."
        )
        raise ValueError(msg)
    return table


def _targets(paths: Sequence[Path], out: str | Path | None) -> list[Path]:
    """Where each prediction goes."""
    if out is None:
        return [path.with_name(f"{path.name.removesuffix(path.suffix)}_predicted.zarr") for path in paths]
    folder = Path(out)
    if folder.is_file() or folder.suffix == ".zarr":
        msg = f"Of several stores, out={str(out)!r} is the folder of the predictions, of which each is a store; name a folder."
        raise ValueError(msg)
    names = [f"{path.name.removesuffix(path.suffix)}.zarr" for path in paths]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        msg = f"Several stores would be written to {listing(twice)} in {folder}; leave out= out, so that each lies beside its store."
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    return [folder / name for name in names]


def _done(calls: Sequence[tuple[int, Path, Path]], shared: _Shared, client: Client | str | None) -> Iterator[_Done]:
    if client is None:
        shared = replace(shared, model=trained_model(shared.model))
        yield from (_predict(*call, shared) for call in calls)
        return
    with connected(client) as cluster:
        yield from results(cluster, _predict, calls, shared)


@lru_cache(maxsize=1)
def _loaded(folder: Path, fingerprint: str) -> HurdleModel:
    """The model in a folder; a worker that predicts many stores loads it once."""
    del fingerprint
    return trained_model(folder)


def _predict(number: int, path: Path, out: Path, shared: _Shared) -> _Done:
    """Predict one store, unless that was done before."""
    options = shared.options
    try:
        clear_leftovers(out.parent, out.name)  # which may put an earlier prediction back
        known = None if shared.obs is None else _known_of(path, shared.obs, shared.table_key, shared.sample_key)
        made_from = MadeFrom.of(
            shared.fingerprint, path, options | {"table_key": shared.table_key} | ({} if known is None else {"obs": known})
        )  # fmt: skip
        if made_from.is_there(out, overwrite=shared.overwrite):  # before anything is read
            return _Done(number, n_spots_of(out), kept=True)
        fitted = _loaded(shared.model, shared.fingerprint) if isinstance(shared.model, Path) else shared.model
        with _opened(path, fitted.state.setup, shared.table_key, options.get("layer")) as adata:
            add_obs(adata, known, shared.sample_key)
            shared.predict(
                adata, fitted, out=out, block_size=shared.block_size, made_from=made_from, overwrite=shared.overwrite,
                show_progress_bar=False, **options,
            )  # fmt: skip
            return _Done(number, adata.n_obs)
    except OSError as error:
        if error.errno in _NO_DISK:
            raise
        return _Done(number, error=str(error))
    except (ValueError, KeyError, TypeError) as error:
        return _Done(number, error=str(error.args[0] if isinstance(error, KeyError) and error.args else error))


def _known_of(path: Path, obs: pd.DataFrame, table_key: str, sample_key: str) -> pd.DataFrame:
    """The rows of the sections of a store: those of others do not matter for its prediction."""
    with opened_table(path, table_key) as group:
        table = table_without_matrix(group, path, {})
    name_section(table, path, sample_key)
    return obs[obs.index.isin(table.obs[sample_key].astype(str))]


@contextmanager
def _opened(path: Path, setup: Setup, table_key: str, layer: str | None) -> Iterator[AnnData]:
    """The table of a store with what a model reads of it, its expression on disk."""
    wanted = {
        "obsm": [Key.obsm.SPATIAL, *setup.feature_key],
        "obsp": [] if setup.graph_key is None else [setup.graph_key],
    }
    with opened_table(path, table_key) as group:
        table = table_without_matrix(group, path, wanted)
        layers = list(group["layers"]) if "layers" in group else []
        asked = setup.layer if layer is None and setup.layer in layers else layer
        asked = None if asked == "X" and "X" not in layers else asked
        matrix = stored_matrix(group, path, asked)
        if matrix.shape != table.shape:
            msg = f"the expression is of shape {matrix.shape}, the table of {table.shape}; write the store again"
            raise ValueError(msg)
        name_section(table, path, setup.sample_key)
        parts: dict[str, Any] = {"obsm": dict(table.obsm), "obsp": dict(table.obsp)}
        parts["layers"] = {} if asked is None else {asked: matrix}
        yield AnnData(matrix if asked is None else None, table.obs, table.var, **parts)

"""Predictions of many stores, each into a store of its own."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from anndata import AnnData

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.stores import opened_table, stored_matrix, table_without_matrix
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.io._files import check_new
from stmsi.tl._cluster import connected, results
from stmsi.tl._models import is_named, trained_model
from stmsi.tl._stored_models import paths_of
from stmsi.tl._stored_sections import _distinct

if TYPE_CHECKING:
    from distributed import Client

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._setup import Setup

_NO_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def predict_stores(
    predict: Callable[..., object],
    data: Any,
    model: HurdleModel | str | Path | Mapping[str, Any],
    out: str | Path | None,
    options: Mapping[str, Any],
    *,
    table_key: str,
    on_error: Literal["raise", "warn"],
    client: Client | str | None,
    show_progress_bar: bool | None,
) -> pd.DataFrame:
    """Predict store after store, or on a cluster; those that cannot be predicted are named, and the others go on.

    Parameters
    ----------
    predict
        What predicts one table: :func:`stmsi.tl.predict_metabolites`.
    data
        Paths of stores.
    model
        A trained one, or the folder of one; workers read it there.
    out
        Folder of the predictions; `None`: each lies beside its store.
    options
        Further options of `predict`.
    table_key, on_error, client, show_progress_bar
        As there.

    Returns
    -------
    A row for each store, in order: ``store``, ``out``, ``n_spots`` and ``error``, empty where it was predicted.

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
    shared: dict[str, Any] = {
        "model": str(Path(model).resolve()) if isinstance(model, str | Path) else fitted,
        "table_key": table_key,
    }
    shared |= {"predict": predict, "options": dict(options)}
    calls = list(zip(range(len(paths)), paths, targets, strict=True))
    rows: dict[int, tuple[int, str]] = {}
    for number, n_spots, error in track(
        _done(calls, shared, client), "predict", total=len(calls), show=show_progress_bar
    ):
        rows[number] = n_spots, error
        if error:
            logger.warning("%s is not predicted: %s", paths[number], error)
    table = pd.DataFrame(
        {
            "store": [str(path) for path in paths],
            "out": [str(path) for path in targets],
            "n_spots": [rows[k][0] for k in range(len(paths))],
            "error": [rows[k][1] for k in range(len(paths))],
        }
    )
    bad = table[table["error"] != ""]
    if len(bad) and on_error == "raise":
        told = "; ".join(
            f"{store}: {error}" for store, error in bad[["store", "error"]].head(10).itertuples(index=False)
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


def _done(
    calls: Sequence[tuple[int, Path, Path]], shared: dict[str, Any], client: Client | str | None
) -> Iterator[tuple[int, int, str]]:
    if client is None:
        shared = shared | {"model": trained_model(shared["model"])}
        yield from (_predict(*call, shared) for call in calls)
        return
    with connected(client) as cluster:
        yield from results(cluster, _predict, calls, shared)


def _predict(number: int, path: Path, out: Path, shared: dict[str, Any]) -> tuple[int, int, str]:
    """Predict one store: its number, its spots, and why it could not be."""
    options = shared["options"]
    try:
        check_new(out, "store")  # before anything is read
        fitted = trained_model(shared["model"])
        with _opened(path, fitted.state.setup, shared["table_key"], options.get("layer")) as adata:
            shared["predict"](adata, fitted, out=out, show_progress_bar=False, **options)
            return number, adata.n_obs, ""
    except OSError as error:
        if error.errno in _NO_DISK:
            raise
        return number, 0, str(error)
    except (ValueError, KeyError, TypeError) as error:
        return number, 0, str(error.args[0] if isinstance(error, KeyError) and error.args else error)


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
        if setup.sample_key not in table.obs:
            table.obs[setup.sample_key] = path.name.removesuffix(path.suffix)
        parts: dict[str, Any] = {"obsm": dict(table.obsm), "obsp": dict(table.obsp)}
        parts["layers"] = {} if asked is None else {asked: matrix}
        yield AnnData(matrix if asked is None else None, table.obs, table.var, **parts)

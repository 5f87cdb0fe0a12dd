"""Models on disk: a folder with a card that says what is inside."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._validate import listing

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi.model._base import HurdleModel

CARD = "stmsi.json"
FORMAT = 1
_CLASSES = {
    "HurdleLinear": "stmsi.model._linear",
    "HurdleNet": "stmsi.model._net",
    "HurdleEnsemble": "stmsi.model._ensemble",
}


def save_model(model: HurdleModel, dir_path: str | Path, *, overwrite: bool) -> None:
    """Write a trained model to a folder, whole or not at all."""
    target = Path(dir_path)
    card = model_card(model)
    if target.exists() and not overwrite:
        msg = f"{target} exists already; pass overwrite=True or another folder."
        raise FileExistsError(msg)
    if target.exists() and not (target / CARD).is_file():
        msg = f"{target} is not a folder that stmsi wrote (no {CARD}); it is not overwritten."
        raise FileExistsError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()  # with the permissions of any other folder, which mkdtemp's own has not
        model._write(new)
        files = [p for p in sorted(new.rglob("*")) if p.is_file()]  # members of an ensemble are folders inside
        card["files"] = {p.relative_to(new).as_posix(): p.stat().st_size for p in files}
        (new / CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        if target.exists():
            target.replace(old)
        try:
            new.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def model_card(model: HurdleModel) -> dict[str, Any]:
    """What a model is, what it was trained on and how well held-out training spots were predicted."""
    state = model.state
    table = state.feature_table

    def median(column: str) -> float | None:
        values = table[column].to_numpy(dtype=float)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    return {
        "format": FORMAT,
        "class": type(model).__name__,
        "stmsi": version("stmsi"),
        "params": model._params(),
        "setup": {k: v for k, v in vars(state.setup).items() if v not in (None, ())},
        "training": state.training,
        "metabolites": list(state.metabolites),
        "held_out": {"median_pearson": median("held_out_pearson"), "median_auroc": median("held_out_auroc")},
        "contains_training_profiles": model._contains_training_profiles(),
        "note": "Loading runs pickled code: load models only from sources you trust.",
    }


def load(dir_path: str | Path, adata: AnnData | None = None) -> HurdleModel:
    """Load a saved model.

    Loading unpickles Python objects: **load only files that you trust**.

    Parameters
    ----------
    dir_path
        Folder that ``model.save`` wrote.
    adata
        Training data to attach, so that ``model.predict()`` works without an argument; `None`: the model predicts
        data that are passed to it.

    Returns
    -------
    The model, of the class that was saved.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        Not a folder that stmsi wrote, one of a newer version, or a damaged one.

    Examples
    --------
    >>> import tempfile, stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.model.HurdleLinear.setup_anndata(sdata.tables["st"])
    >>> model = stmsi.model.HurdleLinear(sdata.tables["st"], presence="prior", intensity="mean")
    >>> model.train(show_progress_bar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model")
    ...     loaded = stmsi.model.load(f"{folder}/model")
    >>> len(loaded.metabolites)
    12
    """
    path = Path(dir_path)
    if not path.is_dir():
        msg = f"No folder {path}. Pass the folder that model.save(...) wrote."
        raise FileNotFoundError(msg)
    if not (path / CARD).is_file():
        found = listing(sorted(p.name for p in path.iterdir()))
        msg = f"{path} is not a saved stmsi model: it has no {CARD}; found {found}."
        raise ValueError(msg)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        name, file_format = card["class"], int(card["format"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        msg = f"{path / CARD} is damaged ({error}); save the model again."
        raise ValueError(msg) from error
    if file_format > FORMAT:
        msg = f"{path} was written by stmsi {card.get('stmsi')}, which is newer than {version('stmsi')}; upgrade stmsi."
        raise ValueError(msg)
    if name not in _CLASSES:
        msg = f"{path} holds a {name!r}, which this version does not know; known: {listing(_CLASSES)}."
        raise ValueError(msg)
    for file, size in card.get("files", {}).items():
        n_bytes = (path / file).stat().st_size if (path / file).is_file() else 0
        if n_bytes != size:
            msg = f"{path} is damaged: {file} has {n_bytes} of {size} bytes; copy it again or save the model again."
            raise ValueError(msg)
    return getattr(import_module(_CLASSES[name]), name)._read(path, adata)

"""Models on disk: a folder with a card that says what is inside."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi._data.containers import check_file, open_h5ad
from stmsi._data.h5ad_files import write_h5ad
from stmsi._data.keys import Key
from stmsi._data.small_files import read_json
from stmsi._data.unfinished import clear_leftovers, kept_by_killed_run, take_place, unfinished

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._fitted_state import FittedState

CARD = "stmsi.json"
DATA = "adata.h5ad"
"""Training data that were saved beside a model, where scvi-tools puts them."""
FORMAT = 6
"""To be raised when an older stmsi would misread what is written. Fields with a default can be added without."""
_REFUSED = {
    1: "whose pickled objects can run any code when they are read; they are not read any more",
    2: "whose classes have other names now",
    3: "whose kernels and stacks were made in another way",
    4: "whose held-out scores pooled sections and whose encoders were built in another way",
    5: "whose intervals know no distance from the training data",
}
"""Older formats, and why they are not read."""
PACKAGES = ("stmsi", "numpy", "scipy", "pandas", "scikit-learn", "torch", "scvi-tools")
"""What decides the numbers of a model, beside its data."""
_ENSEMBL = {
    "ENSG": "Homo sapiens", "ENSMUSG": "Mus musculus", "ENSRNOG": "Rattus norvegicus", "ENSDARG": "Danio rerio",
}  # fmt: skip
_DESCRIBING = (Key.var.NAME, Key.var.MZ, Key.var.FORMULA, Key.var.ADDUCT)
_EVIDENCE = (
    "n_spots", "prevalence", "training_mean", "held_out_pearson", "held_out_pearson_lower", "held_out_auroc", "held_out_auroc_lower",
    "held_out_coverage", "held_out_coverage_lowest",
    "held_out_units",
)  # fmt: skip


class StoredModel(Protocol):
    """What a model must offer to be written to a folder and read from it."""

    _about: Mapping[str, Any]
    adata: AnnData | None

    @property
    def state(self) -> FittedState: ...

    def _params(self) -> dict[str, Any]: ...

    def _contains_training_profiles(self) -> bool: ...

    def _used_genes(self) -> NDArray[np.int64]: ...

    def _fit_copula(self) -> Any: ...

    def _write(self, directory: Path) -> None: ...

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> Self: ...


Model = TypeVar("Model", bound=StoredModel)


def save_model(
    model: StoredModel,
    dir_path: str | Path,
    *,
    overwrite: bool,
    save_anndata: bool = False,
    license: str | None = None,
    card: str | Mapping[str, Any] | None = None,
) -> None:
    """Write a trained model to a folder, whole or not at all."""
    target = Path(dir_path)
    about = dict(model._about)
    if license is not None:
        about["license"] = license
    if card is not None:
        about["about"] = {"description": card} if isinstance(card, str) else dict(card)
    content = model_card(model) | about
    if save_anndata and model.adata is None:
        msg = "The model was loaded without data, so that save_anndata=True has none to save; pass adata to load."
        raise ValueError(msg)
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"license= and card= take text, numbers and mappings of them ({error})."
        raise TypeError(msg) from error
    clear_leftovers(target.absolute().parent, target.name)
    if target.exists() and not overwrite:
        msg = f"{target} exists already; pass overwrite=True or another folder."
        raise FileExistsError(msg)
    if target.exists() and not (target / CARD).is_file():
        msg = f"{target} is not a folder that stmsi wrote (no {CARD}); it is not overwritten."
        raise FileExistsError(msg)
    if target.exists():
        _refuse_foreign_files(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as scratch:
        new = scratch / "new"
        model._fit_copula()  # held-out residuals are not saved, what was learnt from them is
        new.mkdir()
        model._write(new)
        if save_anndata and model.adata is not None:
            # to write a backed AnnData elsewhere would move its file there
            write_h5ad(model.adata.to_memory() if model.adata.isbacked else model.adata, new / DATA)
            content["contains_training_profiles"] = True
        files = [p for p in sorted(new.rglob("*")) if p.is_file()]  # members of an ensemble are folders inside
        content["files"] = {p.relative_to(new).as_posix(): p.stat().st_size for p in files}
        (new / CARD).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        take_place(new, target, scratch)
    model._about = about


def _refuse_foreign_files(target: Path) -> None:
    """Raise where the folder of a saved model holds what saving it did not write, which overwriting would delete."""
    try:
        known = {CARD, *read_json(target / CARD, "the card of a model").get("files", ())}
    except (ValueError, TypeError) as error:
        msg = f"{target} is not overwritten, because its card does not tell which files are of the model ({error})."
        raise FileExistsError(msg) from error
    there = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_symlink() or not p.is_dir()}
    if foreign := sorted(there - known):
        msg = f"{target} holds files that are not of the model: {listing(foreign)}. Move them, or save into another folder."
        raise FileExistsError(msg)


def model_card(model: StoredModel) -> dict[str, Any]:
    """What a model is, what it was trained on and how well held-out training spots were predicted."""
    state = model.state
    card = {
        "format": FORMAT,
        "class": type(model).__name__,
        "stmsi": version("stmsi"),
        "params": model._params(),
        "setup": {k: v for k, v in vars(state.setup).items() if v not in (None, ())},
        "training": state.training,
        "genes": _genes(model),
        "metabolites": _metabolites(state),
        "held_out": {
            f"{how}_{score}": _summary(_held_out(state.feature_table, score), how)
            for score in ("pearson", "auroc")
            for how in ("mean", "median")
        },
        "contains_training_profiles": model._contains_training_profiles(),
        "note": (
            "Held-out scores are of training spots left out of the fit (inner folds or validation spots), inside sections "
            "(or blocks of one) and averaged over them, with the lower bound of that mean; they are not of new "
            "patients. Metabolites whose prediction is constant count as 0. The files hold numbers and text, no pickled objects."
        ),
        **model._about,
    }
    return _plain(card)


def training_record(adata: AnnData, metabolite_key: str) -> dict[str, Any]:
    """When and with what a model was trained, and what its intensities are."""
    record = adata.uns.get(metabolite_key)
    params = record.get("params") if isinstance(record, Mapping) else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {"python": platform.python_version()} | _versions(),
        "intensities": _plain(params) if isinstance(params, Mapping) else {},
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that models are made with; the files that say it are read once."""
    return {name: version(name) for name in PACKAGES}


def _genes(model: StoredModel) -> dict[str, Any]:
    """Number and kinds of the genes; the species where Ensembl ids tell it."""
    state = model.state
    species = {
        name
        for names in state.panel.names.values()
        for prefix, name in _ENSEMBL.items()
        if names.str.fullmatch(rf"{prefix}\d+").mean() > 0.5
    }
    return {
        "n": len(state.panel),
        "n_used": len(model._used_genes()),
        "ids": {kind: list(names[:5]) for kind, names in state.panel.names.items()},
        "species": species.pop() if len(species) == 1 else None,
    }


def _metabolites(state: FittedState) -> list[dict[str, Any]]:
    """Each metabolite with its mass and its evidence."""
    table = state.feature_table
    columns = [c for c in (*_DESCRIBING, *_EVIDENCE) if c in table]
    rows = table[columns].astype(object).to_dict("records")
    threshold = state.threshold if len(state.threshold) == len(rows) else [None] * len(rows)
    return [
        {"id": str(m)} | _plain(row) | {"threshold": _plain(t)}
        for m, row, t in zip(state.metabolites, rows, threshold, strict=True)
    ]


def _held_out(features: pd.DataFrame, score: str) -> pd.Series:
    """Evidence for means over metabolites: 0 where what was predicted for held-out spots is constant, and what was measured is not."""
    found = features[f"held_out_{score}"]
    if score != "pearson" or "held_out_coverage" not in features:
        return found
    predicted = features["held_out_coverage"].notna() & (features[Key.var.PREVALENCE] > 0)
    return found.mask(found.isna() & predicted, 0.0)


def _summary(scores: pd.Series, how: str) -> float | None:
    values = scores.to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    return float(getattr(np, how)(values)) if len(values) else None


def _plain(value: Any) -> Any:
    """Values as JSON knows them; what is NaN or infinite is unknown."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def load_as(cls: type[Model], path: Path, card: Mapping[str, Any], adata: AnnData | None) -> Model:
    """Load a model of class `cls`, whose card was read, from its folder."""
    name = card["class"]
    if name != cls.__name__:
        msg = f"{path} holds a {name}, not a {cls.__name__}; load it with stmsi.model.load or {name}.load."
        raise ValueError(msg)
    for file, size in card.get("files", {}).items():
        if (path / file).exists():
            check_file(path / file)
        n_bytes = (path / file).stat().st_size if (path / file).is_file() else 0
        if n_bytes != size:
            msg = f"{path} is damaged: {file} has {n_bytes} of {size} bytes; copy it again or save the model again."
            raise ValueError(msg)
    if adata is None and (path / DATA).is_file():
        adata = open_h5ad(path / DATA)
    model = cls._read(path, adata)
    model._about = {k: card[k] for k in ("license", "about") if k in card}
    return model


def read_card(path: Path) -> dict[str, Any]:
    """The card of a saved model that this version can read."""
    if not path.is_dir():
        kept = kept_by_killed_run(path)
        where = (
            ""
            if kept is None
            else f" A run was killed while it replaced it; the earlier model is {kept}: move it to {path}."
        )
        msg = f"No folder {path}. Pass the folder that model.save(...) wrote.{where}"
        raise FileNotFoundError(msg)
    if not (path / CARD).exists():
        found = sorted(p.name for p in path.iterdir())
        hint = " It looks like a model of scvi-tools; load it with the class that saved it." * ("model.pt" in found)
        msg = f"{path} is not a saved stmsi model: it has no {CARD}; found {listing(found)}.{hint}"
        raise ValueError(msg)
    card = read_json(path / CARD, "the card of a model", "copy it again or save the model again")
    try:
        name, file_format = card["class"], int(card["format"])
        damage = None if isinstance(name, str) and isinstance(card.get("files", {}), dict) else "no class or files"
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        damage = str(error)
    if damage is not None:
        msg = f"{path / CARD} is damaged ({damage}); save the model again."
        raise ValueError(msg)
    if file_format > FORMAT:
        msg = (
            f"{path} was written by stmsi {card.get('stmsi')} in format {file_format}; this version, {version('stmsi')}, "
            f"reads format {FORMAT}. Upgrade stmsi to {card.get('stmsi')} or newer."
        )
        raise ValueError(msg)
    if file_format < FORMAT:
        why = _REFUSED[max(file_format, min(_REFUSED))]
        msg = (
            f"{path} was written by stmsi {card.get('stmsi')} in format {file_format}, {why}. Train the model again, or "
            "predict with the version that saved it."
        )
        raise ValueError(msg)
    return card

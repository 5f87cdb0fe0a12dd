"""What a prediction in a store was made from, by which a later run tells whether it is to be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stmsi._data.containers import check_file
from stmsi._data.stores import file_times
from stmsi._settings import logger
from stmsi.model.shared._persistence import CARD, DATA
from stmsi.tl._fold_cache import fingerprint

if TYPE_CHECKING:
    from stmsi.model.shared._hurdle_model import HurdleModel

MADE_FROM = "made_from"
"""Entry of the record of a prediction."""
_CONTENT = "content"
"""What the entry also holds: how many files the store has beside records, and how many bytes."""
_WORDS = {
    "model": "another model",
    "input": "another input (its size or time of change differs)",
    "options": "other options",
    "version": "another version of stmsi",
}


@dataclass(frozen=True)
class MadeFrom:
    """Hashes of the model, of names, sizes and times of the files of the input, and of the options; the version of stmsi."""

    model: str
    input: str
    options: str
    version: str

    @classmethod
    def of(cls, model: str, path: Path, options: Mapping[str, Any]) -> MadeFrom:
        """What the prediction of a store by a model with this hash is made from.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no store.
        """
        if not path.is_dir():
            check_file(path)
        return cls(model, fingerprint(file_times(path)), fingerprint(dict(options)), version("stmsi"))

    def entry(self, store: Path) -> dict[str, Any]:
        """The entry of the record of a prediction, of which all else is written."""
        return asdict(self) | {_CONTENT: _size(store)}

    def is_there(self, out: Path, *, overwrite: bool) -> bool:
        """Whether `out` is a whole prediction that was made from the same, so that nothing is to be done.

        One that is not whole any more is said, and made again.

        Raises
        ------
        FileExistsError
            It is something else; with `overwrite`, only where it is no prediction at all.
        """
        if not (out.exists() or out.is_symlink()):
            return False
        record = _record(out)
        if record is None:
            msg = f"{out} exists and is no prediction that can be read; remove it or name another output."
            raise FileExistsError(msg)
        if overwrite:
            return False
        before = record.get(MADE_FROM)
        if not isinstance(before, Mapping):
            msg = (
                f"{out} exists and does not say what it was made from; pass overwrite=True (--overwrite) to make it again, or name another "
                "output."
            )
            raise FileExistsError(msg)
        other = [_WORDS[f.name] for f in fields(self) if str(before.get(f.name)) != getattr(self, f.name)]
        if other:
            msg = (
                f"{out} exists and was made from {', '.join(other)}; pass overwrite=True (--overwrite) to make it again, or name another "
                "output."
            )
            raise FileExistsError(msg)
        if list(before.get(_CONTENT, ())) == _size(out):
            return True
        logger.warning("%s is not whole any more; it is made again.", out)
        return False


def model_fingerprint(model: HurdleModel | Path) -> str:
    """Hash of a trained model, or of the folder of a saved one: the same for both, and wherever the folder lies."""
    if not isinstance(model, Path):
        with TemporaryDirectory() as folder:
            model.save(Path(folder) / "model")
            return model_fingerprint(Path(folder) / "model")
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(model.rglob("*")):
        # the card says when and by whom, and data beside a model do not change what it predicts
        if path.is_file() and path.name not in (CARD, DATA):
            digest.update(f"|{path.relative_to(model).as_posix()}|{path.stat().st_size}|".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def n_spots_of(out: Path) -> int:
    """Spots of a prediction in a store."""
    import zarr

    return int(zarr.open_array(str(out / "X"), mode="r").shape[0])


def _record(out: Path) -> dict[str, Any] | None:
    """The record of a prediction in a store, without its tables; `None` where it is none, or cannot be read."""
    import zarr
    from anndata.io import read_elem

    with suppress(Exception):  # zarr raises what it likes on damaged files
        group = zarr.open_group(str(out), mode="r", use_consolidated=False)
        for record in zarr.open_group(str(out / "uns"), mode="r", use_consolidated=False).group_values():
            if {"model", "params", "features"} <= set(record) and "X" in group and "layers" in group:
                return {key: dict(read_elem(record[key])) for key in (MADE_FROM,) if key in record}
    return None


def _size(store: Path) -> list[int]:
    """How many files the arrays of a store are in, and how many bytes these have, without those of its records."""
    records = store / "uns"
    files = [
        path for path in store.rglob("*") if path.name != "zarr.json" and records not in path.parents and path.is_file()
    ]
    return [len(files), sum(path.stat().st_size for path in files)]

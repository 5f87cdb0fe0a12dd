"""Files of the command line: read what was named, write whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def read_data(path: Path) -> SpatialData | AnnData:
    """A SpatialData or AnnData from disk, told by the suffix."""
    if not path.exists():
        msg = f"No such file or folder: {path}"
        raise FileNotFoundError(msg)
    if path.suffix == ".h5ad":
        import anndata

        from stmsi._data.checks import require_anndata_file

        try:
            require_anndata_file(path)
            return anndata.read_h5ad(path)
        except OSError as error:
            msg = f"{path} is not an h5ad file ({error})."
            raise ValueError(msg) from error
    if path.suffix == ".zarr" and path.is_dir():
        import spatialdata

        if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
            msg = f"{path} is not a zarr store: it has no zarr.json."
            raise ValueError(msg)
        _refuse_other_stores(path)
        return spatialdata.read_zarr(path)
    msg = f"Expected a SpatialData store (.zarr) or an AnnData file (.h5ad), found {path.name!r}."
    raise ValueError(msg)


def _refuse_other_stores(path: Path) -> None:
    """Tell what a zarr store holds that is no SpatialData."""
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
        attrs, members = dict(group.attrs), sorted(group.keys())
    except Exception as error:
        msg = f"{path} is not a readable zarr store ({error})."
        raise ValueError(msg) from error
    if attrs.get("encoding-type") == "anndata":
        msg = f"{path} is an AnnData, not a SpatialData; write it as .h5ad (adata.write_h5ad) and pass that."
        raise ValueError(msg)
    if "spatialdata_attrs" not in attrs and "tables" not in members:
        msg = f"{path} is not a SpatialData store; it holds {', '.join(members) or 'nothing'}."
        raise ValueError(msg)


def read_card(folder: Path) -> dict[str, Any]:
    """The model card of a saved model."""
    path = folder / "stmsi.json"
    if not path.is_file():
        msg = f"{folder} is not a saved stmsi model: it has no stmsi.json; pass the folder that model.save wrote."
        raise FileNotFoundError(msg)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not a model card ({error})."
        raise ValueError(msg) from error
    if not isinstance(card, dict):
        msg = f"{path} is not a model card: it holds no entries."
        raise ValueError(msg)
    return card


def check_output(out: Path, source: Path, suffix: str | None = None) -> None:
    """Refuse outputs that would overwrite something, before the work is done."""
    if suffix is None and out.suffix != source.suffix:
        msg = f"The output must be of the same kind as the input ({source.suffix}), found {out.name!r}."
        raise ValueError(msg)
    if suffix is not None and out.suffix != suffix:
        msg = f"The output must end in {suffix}, found {out.name!r}."
        raise ValueError(msg)
    check_new(out, source)


def check_new(out: Path, source: Path) -> None:
    """Refuse an output that exists, or lies inside the input."""
    if source.resolve() in out.resolve().parents:
        msg = f"{out} lies inside the input {source}; name an output elsewhere."
        raise ValueError(msg)
    if out.exists():
        msg = f"{out} exists already; name another output."
        raise FileExistsError(msg)


def write_data(content: Any, out: Path) -> None:
    """Write a SpatialData or AnnData, whole or not at all."""
    with _whole(out) as scratch:
        (content.write_h5ad if out.suffix == ".h5ad" else content.write)(scratch)


def write_csv(table: pd.DataFrame, out: Path) -> None:
    """Write a csv, whole or not at all."""
    with _whole(out) as scratch:
        table.to_csv(scratch, index=False)


def write_text(text: str, out: Path) -> None:
    """Write a text, whole or not at all."""
    with _whole(out) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """The same name in a folder beside the output; it takes the place of the output when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder / out.name
        (folder / out.name).replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

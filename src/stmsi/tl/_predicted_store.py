"""Predictions that go to a store on disk while they are made."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stmsi._data.keys import Key
from stmsi._data.training_marks import RECORD, by_section, write_marks
from stmsi._data.unfinished import unfinished
from stmsi._progress import track
from stmsi.io._files import check_new
from stmsi.model.shared._blocks import n_blocks
from stmsi.model.shared._training_spots import marks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._prediction import How
    from stmsi.model.shared._spot_reader import SpotReader

_CHUNK_VALUES = 2**20
"""Values in a chunk of the store at most: 4 MB of 32-bit numbers."""


def write_prediction(
    out: str | Path,
    model: HurdleModel,
    reader: SpotReader,
    *,
    obs: pd.DataFrame,
    sections: NDArray[Any],
    record: dict[str, Any],
    key: str,
    how: Sequence[How],
    coverage: float,
    block_size: int,
    show_progress_bar: bool | None,
) -> NDArray[np.float32]:
    """Predict some spots at a time into a new store of spots x metabolites, which is whole or not there.

    `record` goes into ``uns[key]``; its feature table becomes ``var``.

    Returns
    -------
    Out-of-distribution score of each spot.
    """
    import zarr
    from zarr.codecs import BloscCodec

    target = check_new(Path(out), "store")
    features: pd.DataFrame = record["features"]
    n, m, names = len(reader), len(features), ("X", "presence", "lower", "upper", *how[1:])
    ood, found = np.empty(n, np.float32), np.empty(n, np.int8)
    in_a_block = max(-(-block_size * m // _CHUNK_VALUES), 1)  # whole chunks, so that none is read and written again
    chunk = min(n, -(-block_size // in_a_block))
    with unfinished(target) as folder:
        fast = BloscCodec(
            cname="lz4", shuffle="shuffle"
        )  # of numbers with a fraction, smaller than zarr's default, too
        arrays = {
            name: zarr.create_array(
                str(folder / name), shape=(n, m), chunks=(chunk, m), dtype="float32", zarr_format=3, compressors=fast
            )
            for name in names
        }
        blocks = model._predict_blocks(reader, coverage, block_size, marked=True)
        total = n_blocks(reader, model._reach, block_size)
        for rows, part in track(blocks, "predict", total=total, show=show_progress_bar):
            layers = (part.output(how[0]), part.presence, part.lower, part.upper, *map(part.output, how[1:]))
            for name, layer in zip(names, layers, strict=True):
                _put(arrays[name], rows, layer.to_numpy(np.float32))
            ood[rows], found[rows] = part.ood, part.found  # type: ignore[assignment]  # asked for by marked=True
            del part, layers, layer  # before the next are made
        table = AnnData(obs=obs.assign(**{Key.ood_of(key): ood}), var=features, uns={key: record})
        marks = marks_of(found, reader.spots.sample)
        write_marks(table, key, marks)
        table.uns[key][RECORD] = by_section(marks, sections)
        if reader.spots.xy is not None:
            table.obsm[Key.obsm.SPATIAL] = reader.spots.xy
        _finish(folder, table, names)
        (folder / "store").rename(check_new(target, "store"))
    return ood


def _put(array: Any, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    if rows[-1] - rows[0] + 1 == len(rows):
        array[int(rows[0]) : int(rows[-1]) + 1] = values
    else:
        array.oindex[rows] = values


def _finish(folder: Path, table: AnnData, names: Sequence[str]) -> None:
    """Write the table without its matrices, and move the matrices in."""
    import zarr
    from anndata.io import write_elem

    store = folder / "store"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata|zarr v3 autosharding")  # of anndata
        # a group of one's own: what anndata makes depends on settings that differ between its versions
        write_elem(zarr.open_group(str(store), mode="w", zarr_format=3), "/", table)
        for name in names:
            place = store / "X" if name == "X" else store / "layers" / name
            if place.exists():
                shutil.rmtree(place)
            shutil.move(folder / name, place)
            zarr.open_array(str(place)).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        zarr.consolidate_metadata(str(store))

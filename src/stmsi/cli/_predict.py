"""``stmsi predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmsi.cli._app import SOME_FAILED, Json, command, say, step
from stmsi.cli._files import check_output, read_data, write_data
from stmsi.cli._next_step import new_path, say_next
from stmsi.cli._obs_file import OBS, add_known, read_obs
from stmsi.cli._train import INPUT

if TYPE_CHECKING:
    import pandas as pd

_LAYER = "Layer that holds the expression; default: that of the training where it is there, else X."
_HOW = "expected, probability_weighted or mask (may be repeated): how presence and intensity become one number."
_DATA = "ST section(s): SpatialData (.zarr) or AnnData (.h5ad). Several files are predicted one after the other and never whole in memory."
_OUT = "Where to write the same with predictions (.zarr or .h5ad); of several files, the folder of the predictions (<name>.zarr)."
_SCHEDULER = "Of several files: address of a dask scheduler, such as tcp://10.0.0.1:8786, whose workers predict them."
_OVERWRITE = "Of several files: predict all again, and replace predictions that are there."
_MODEL = "Folder of a saved model, or a family to train on spots with MSI."


def _models(incomplete: str) -> list[str]:
    """Completion of --model: families by name, and folders with a model card."""
    from stmsi.model._families import FAMILIES

    start = Path(incomplete)
    parent = start if incomplete.endswith("/") else start.parent
    saved = [str(card.parent) for card in sorted(parent.glob("*/stmsi.json"))]
    return [name for name in (*FAMILIES, *saved) if name.startswith(incomplete)]


def predict(
    *,
    data: Annotated[list[Path], typer.Argument(help=_DATA)],
    model: Annotated[str, typer.Option(help=_MODEL, autocompletion=_models)],
    out: Annotated[Path, typer.Option(help=_OUT)],
    layer: Annotated[str | None, typer.Option(help=_LAYER)] = None,
    input: Annotated[str | None, typer.Option(help=INPUT)] = None,
    how: Annotated[list[str] | None, typer.Option(help=_HOW)] = None,
    key_added: Annotated[str, typer.Option(help="Name of the prediction in obsm.")] = "msi_pred",
    table_key: Annotated[str, typer.Option(help="ST table of a SpatialData.")] = "st",
    coverage: Annotated[float, typer.Option(help="Coverage of the prediction interval.")] = 0.9,
    min_genes: Annotated[float, typer.Option(help="Share of the training genes that must be there.")] = 0.4,
    use_measured: Annotated[
        bool, typer.Option(help="Correct spots without MSI by measured spots of their section.")
    ] = False,
    obs: Annotated[Path | None, typer.Option(help=OBS)] = None,
    scheduler: Annotated[str | None, typer.Option(help=_SCHEDULER)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=_OVERWRITE)] = False,
    as_json: Json = False,
) -> None:
    """Predict metabolites for every spot of an ST file, or of several."""
    left = "no output was written" if len(data) == 1 else "what was predicted stays, and the same command does the rest"
    with command("predict", as_json=as_json, interrupted=left) as result:
        options: dict[str, Any] = {"key_added": key_added, "coverage": coverage, "min_genes": min_genes}
        options |= {"layer": layer, "input": input, "how": how or "expected", "use_measured": use_measured}
        known = None if obs is None else _known(obs, model)
        if len(data) > 1:
            options["obs"] = None if known is None else known[0]
            _predict_several(result, data, model, out, table_key, scheduler, options | {"overwrite": overwrite})
            return
        if scheduler is not None:
            msg = f"--scheduler shares several files out among workers; {data[0]} is the only one. Leave it out, or name more files."
            raise ValueError(msg)
        if overwrite:
            msg = f"--overwrite is for predictions of several files; {data[0]} is the only one. Leave it out, and name an output that is not there."
            raise ValueError(msg)
        _predict_one(result, data[0], model, out, table_key, options, known, obs)


def _known(obs: Path, model: str) -> tuple[pd.DataFrame, str]:
    """The columns by section, with numbers where the model reads numbers, and the column of the sections."""
    from stmsi.model import load

    setup = load(model).state.setup if Path(model).exists() else None  # a family reads no covariate
    sample_key = "sample" if setup is None else setup.sample_key
    return read_obs(obs, sample_key, () if setup is None else setup.covariate_keys), sample_key


def _predict_several(
    result: dict[str, Any],
    data: list[Path],
    model: str,
    out: Path,
    table_key: str,
    scheduler: str | None,
    options: dict[str, Any],
) -> None:
    """Predict each of several files into a store of its own; those that fail are named."""
    import stmsi

    with step(f"Predicting {len(data)} files with {model}"):
        table = stmsi.tl.predict_metabolites(
            data, model, out=out, table_key=table_key, on_error="warn", client=scheduler, **options
        )
    assert table is not None  # of several files
    bad = table["error"] != ""
    result |= {"out": str(out), "predicted": table.loc[~bad, ["store", "out", "n_spots", "kept"]].to_dict("records")}
    result[SOME_FAILED] = table.loc[bad, ["store", "error"]].to_dict("records")
    kept = f", {n} of them by an earlier run (--overwrite: again)" if (n := table["kept"].sum()) else ""
    say(f"Predicted {table['n_spots'].sum()} spots of {(~bad).sum()} of {len(table)} files{kept} -> {out}")
    for one in result[SOME_FAILED]:
        say(f"Failed: {one['store']}: {one['error']}")


def _predict_one(
    result: dict[str, Any],
    data: Path,
    model: str,
    out: Path,
    table_key: str,
    options: dict[str, Any],
    known: tuple[pd.DataFrame, str] | None,
    obs: Path | None,
) -> None:
    """Predict one file and write it again with the prediction."""
    import stmsi
    from stmsi._data.keys import TRAINED_ON, Key
    from stmsi._data.tables import get_table
    from stmsi._data.training_marks import RECORD, SAID_OF

    key_added = str(options["key_added"])
    check_output(out, data)
    with step(f"Reading {data}"):
        content = read_data(data)
        if known is not None and obs is not None:
            add_known(get_table(content, table_key), data, obs, *known)  # type: ignore[arg-type]
    with step(f"Predicting with {model}"):
        stmsi.tl.predict_metabolites(content, model, table_key=table_key, **options)
    st = content if data.suffix == ".h5ad" else content.tables[table_key]  # type: ignore[union-attr]
    frame, record = st.obsm[key_added], st.uns[key_added]
    result |= {
        "out": str(out),
        "key": key_added,
        "how": [str(one) for one in record["params"]["how"]],
        "spots": frame.shape[0],
        "metabolites": frame.shape[1],
        "model": record["model"]["class"],
        "missing_genes": record["missing_genes"],  # their share of the training genes
        "training_spots": record[RECORD].to_dict("records"),
        "share_unusual": float((st.obs[Key.ood_of(key_added)] > 1).mean()),
    }
    with step(f"Writing {out}"):
        write_data(content, out)
    say(f"Predicted {frame.shape[1]} metabolites in {frame.shape[0]} spots -> {out}")
    said = [(row["sample"], SAID_OF[row[TRAINED_ON]]) for row in result["training_spots"]]
    if marked := [f"{name} ({text})" for name, text in said if text]:
        say(f"No evidence of skill comes from {', '.join(marked)}.")
    say(f"To draw one, in Python: {_drawing(out, str(frame.columns[0]), key_added, table_key)}")
    if Key.obsm.MSI in st.obsm:
        keys = [("--pred-key", key_added, "msi_pred"), ("--table-key", table_key, "st")]
        other = [word for flag, value, usual in keys if value != usual for word in (flag, value)]
        say_next("evaluate", out, *other, "--report", new_path(out, "scores", ".html"))


def _drawing(out: Path, metabolite: str, key: str, table_key: str) -> str:
    """A line of Python that draws a predicted metabolite out of the file that was written."""
    from stmsi._data.keys import Key

    package, reader = ("anndata", "read_h5ad") if out.suffix == ".h5ad" else ("spatialdata", "read_zarr")
    table = "" if table_key == Key.table.ST else f", table_key={table_key!r}"
    call = f"stmsi.pl.spatial({package}.{reader}({str(out)!r}), {metabolite!r}, metabolite_key={key!r}{table})"
    return f"import {package}, stmsi; {call}"

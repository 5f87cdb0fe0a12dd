"""``stmsi train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stmsi.cli._app import SOME_FAILED, Json, command, one_of, say, step
from stmsi.cli._files import check_new, read_data
from stmsi.cli._next_step import new_path, say_next
from stmsi.cli._obs_file import OBS, add_known, read_obs, tell_others

DEFAULT_MODEL = "auto"
"""Family that is trained where none is named; the name, since models take seconds to import."""
_DATA = (
    "Section(s) with ST and mapped MSI: SpatialData (.zarr) or AnnData (.h5ad). Several are never in memory together."
)
_GENES = "Of several: same refuses files that lack genes which most of them have; shared uses the genes that all have."
_SKIP = "Of several: name those that cannot be used and go on without them (exit code 1)."
_SUMS = "Of several: folder that keeps the sums over each section for another run."
_SCHEDULER = (
    "Of several: address of a dask scheduler, such as tcp://10.0.0.1:8786, whose workers sum up a section at a time."
)
_LAYER = "Layer that holds the expression; default: X."
INPUT = "What the expression is: counts or log; default: told from the numbers, in each section."
_PRESENCE = "Presence in obsm; default: msi_presence where it is there, else an intensity above 0."


def _families(incomplete: str) -> list[str]:
    """Completion of --model."""
    from stmsi.model._families import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


def train(
    *,
    data: Annotated[list[Path], typer.Argument(help=_DATA)],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    model: Annotated[str, typer.Option(help="Family to train.", autocompletion=_families)] = DEFAULT_MODEL,
    layer: Annotated[str | None, typer.Option(help=_LAYER)] = None,
    input: Annotated[str | None, typer.Option(help=INPUT)] = None,
    metabolite_key: Annotated[str, typer.Option(help="Measured intensities in obsm.")] = "msi",
    presence_key: Annotated[str | None, typer.Option(help=_PRESENCE)] = None,
    sample_key: Annotated[str, typer.Option(help="Column of obs that names the section.")] = "sample",
    graph_key: Annotated[
        str | None, typer.Option(help="Neighbourhood graph in obsp, for models that read one.")
    ] = None,
    covariate_key: Annotated[list[str] | None, typer.Option(help="Covariate in obs (may be repeated).")] = None,
    feature_key: Annotated[list[str] | None, typer.Option(help="Further features in obsm (may be repeated).")] = None,
    prior_key: Annotated[str | None, typer.Option(help="Genes known of each metabolite, in varm.")] = None,
    obs: Annotated[Path | None, typer.Option(help=OBS)] = None,
    table_key: Annotated[str, typer.Option(help="ST table of a SpatialData.")] = "st",
    genes: Annotated[str, one_of(_GENES, "same", "shared")] = "same",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP)] = False,
    cache_dir: Annotated[Path | None, typer.Option(help=_SUMS)] = None,
    scheduler: Annotated[str | None, typer.Option(help=_SCHEDULER)] = None,
    as_json: Json = False,
) -> None:
    """Train a model on sections with mapped MSI, and save it."""
    with command("train", as_json=as_json) as result:
        from stmsi._data.checks import check_choice
        from stmsi._data.tables import get_table
        from stmsi.model._families import FAMILIES
        from stmsi.model.shared._setup import default_setup
        from stmsi.tl._models import train_model
        from stmsi.tl._train import train_on_stores

        check_choice(model, FAMILIES, "model")
        check_choice(genes, ("same", "shared"), "--genes")
        if scheduler is not None and len(data) == 1:
            msg = f"--scheduler shares several files out among workers; {data[0]} is the only one. Leave it out, or name more files."
            raise ValueError(msg)
        for path in data:
            check_new(out, path)
        asked: dict[str, Any] = {
            "layer": layer, "input": input, "metabolite_key": metabolite_key, "presence_key": presence_key,
            "sample_key": sample_key, "graph_key": graph_key, "covariate_keys": covariate_key, "feature_key": feature_key,
            "prior_key": prior_key,
        }  # fmt: skip
        named = {key: value for key, value in asked.items() if value is not None}
        by_section = None if obs is None else read_obs(obs, sample_key, covariate_key or ())
        if len(data) > 1:
            with step(f"Training {model} on {len(data)} stores"):
                fitted, left_out = train_on_stores(
                    data, model, named, table_key=table_key, genes=genes,  # type: ignore[arg-type]
                    on_error="warn" if skip_bad else "raise", cache_dir=cache_dir, obs=by_section, client=scheduler,
                    show_progress_bar=None,
                )  # fmt: skip
            result[SOME_FAILED] = [{"store": path, "error": why} for path, why in left_out.items()]
            if by_section is not None and obs is not None:
                tell_others(by_section, obs, fitted.card["training"]["samples"])
        else:
            with step(f"Reading {data[0]}"):
                st = get_table(read_data(data[0]), table_key)  # type: ignore[arg-type]
                if by_section is not None and obs is not None:
                    add_known(st, data[0], obs, by_section, sample_key)
            with step(f"Training {model}"):
                fitted = train_model(st, model, default_setup(st) | named, show_progress_bar=None)
        with step(f"Writing {out}"):
            fitted.save(out)
        card = fitted.card
        result |= {"out": str(out), "model": card["class"], "input": card["setup"]["input"]}
        result |= {"spots": card["training"]["n_spots"], "samples": card["training"]["samples"]}
        result |= {"metabolites": len(fitted.metabolites), "held_out": card["held_out"]}
        say(
            f"Trained {card['class']} on {result['spots']} spots of {len(result['samples'])} section(s): "
            f"{result['metabolites']} metabolites -> {out}"
        )
        say_next(
            "predict", data[0], "--model", out, "--out", new_path(data[0], "predicted", data[0].suffix),
            also="Other ST sections go in the same way, as .zarr or .h5ad: they need no MSI.",
        )  # fmt: skip

"""Command line: thin shells over the functions of the package."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

app = typer.Typer(
    name="stmsi",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)

_USER_ERRORS = (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError)


@app.callback()
def main(
    *, quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, warnings only.")] = False
) -> None:
    """Predict spatial metabolomics from spatial transcriptomics.

    Start with `stmsi demo`: it simulates paired sections, aligns them, trains, predicts a held-out section and scores it.
    """
    import stmsi

    logging.getLogger("stmsi").handlers = [RichHandler(console=console, show_time=False, show_path=False)]
    stmsi.settings.progress_bar = not quiet
    stmsi.settings.verbosity = "WARNING" if quiet else "INFO"
    # notes of other packages on their own future, of which a user of the command line can make nothing
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*autosharding.*")
    warnings.filterwarnings("ignore", category=SyntaxWarning, module="docrep")


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be one that the demo wrote.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of the models.")] = 0,
    small: Annotated[bool, typer.Option("--small", help="A toy data set: seconds instead of a minute.")] = False,
) -> None:
    """Run the whole way on simulated sections: align, train, predict a held-out section, score, draw."""
    from stmsi._demo import run_demo

    with _errors():
        run_demo(out, seed=seed, small=small, console=console)


@app.command()
def align(
    *,
    data: Annotated[
        Path, typer.Argument(help="ST and MSI together: SpatialData (.zarr), as stmsi.pp.combine makes it.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the same, aligned (.zarr).")],
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="csv with x_msi,y_msi,x_st,y_st (um) and, for several sections, sample; or MAGPIE's landmarks. "
            "Without: the points <sample>_landmarks_msi and <sample>_landmarks_st, and where there are none, masks and "
            "intensities decide."
        ),
    ] = None,
    via: Annotated[
        Path | None,
        typer.Option(help="csv of the second stage: from the histology of the MSI section to the ST frame."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="landmarks or auto (without any); default: landmarks where there are some.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="rigid, similarity, affine, projective or thin_plate; default: similarity, without landmarks affine."
        ),
    ] = None,
    robust: Annotated[
        str | None, typer.Option(help="ransac or lmeds: find wrong landmarks and leave them out.")
    ] = None,
    refine: Annotated[str | None, typer.Option(help="intensity: then look for a smooth displacement.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Section to align (may be repeated); default: all.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as csv.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn at random.")] = 0,
) -> None:
    """Align MSI to ST, by landmarks or without any, and report how well."""
    import stmsi

    with _errors():
        check_output(out, data)
        if report is not None:
            check_output(report, data, suffix=".csv")
        content = read_data(data)
        options: dict[str, Any] = {"method": method, "model": model, "robust": robust, "refine": refine}
        given = {k: str(v) for k, v in (("landmarks", landmarks), ("via", via)) if v is not None}
        stmsi.pp.align(content, **given, **options, sample=sample, rng=seed)  # type: ignore[arg-type]
        table = stmsi.pp.alignment_report(content)  # type: ignore[arg-type]
        write_data(content, out)
        if report is not None:
            write_csv(table.reset_index(), report)
        show_alignment(table)
        console.print(
            f"Written to {out}. Next: stmsi.pl.alignment(data) and stmsi.pp.map_to_spots(data) in Python.",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def predict(
    *,
    data: Annotated[Path, typer.Argument(help="ST section(s): SpatialData (.zarr) or AnnData (.h5ad).")],
    model: Annotated[str, typer.Option(help="Folder of a saved model, or a family to train on spots with MSI.")],
    out: Annotated[Path, typer.Option(help="Where to write the same with predictions (.zarr or .h5ad).")],
    key_added: Annotated[str, typer.Option(help="Name of the prediction in obsm.")] = "msi_pred",
    table_key: Annotated[str, typer.Option(help="ST table of a SpatialData.")] = "st",
    coverage: Annotated[float, typer.Option(help="Coverage of the prediction interval.")] = 0.9,
    min_genes: Annotated[float, typer.Option(help="Share of the training genes that must be there.")] = 0.5,
) -> None:
    """Predict metabolites for every spot of an ST file."""
    import stmsi

    with _errors():
        check_output(out, data)
        content = read_data(data)
        stmsi.tl.predict_metabolites(
            content, model, table_key=table_key, key_added=key_added, coverage=coverage, min_genes=min_genes
        )
        write_data(content, out)
        frame = (content if data.suffix == ".h5ad" else content.tables[table_key]).obsm[key_added]  # type: ignore[union-attr]
        console.print(
            f"Predicted {frame.shape[1]} metabolites in {frame.shape[0]} spots -> {out}", markup=False, soft_wrap=True
        )
        console.print(
            f"Next: stmsi evaluate {out}, or stmsi.pl.spatial(data, metabolite, key={key_added!r}) in Python.",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def evaluate(
    *,
    data: Annotated[Path, typer.Argument(help="Output of `stmsi predict` on sections with MSI (.zarr or .h5ad).")],
    out: Annotated[
        Path | None, typer.Option(help="Write the scores as csv: one row per section, metabolite, stage.")
    ] = None,
    pred_key: Annotated[str, typer.Option(help="Prediction in obsm.")] = "msi_pred",
    table_key: Annotated[str, typer.Option(help="ST table of a SpatialData.")] = "st",
) -> None:
    """Score predictions against measured metabolites, per section and metabolite."""
    import stmsi

    with _errors():
        if out is not None:
            check_output(out, data, suffix=".csv")
        scores = stmsi.tl.evaluate(read_data(data), pred_key=pred_key, table_key=table_key)
        if out is not None:
            write_csv(scores, out)
        show_scores(scores, ["sample"], title=f"obsm[{pred_key!r}], medians over metabolites")
        console.print("Scores of sections that the model was trained on are not evidence.")


@app.command()
def version() -> None:
    """Print the version."""
    import stmsi

    typer.echo(stmsi.__version__)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn errors of the input into one line and exit code 1."""
    try:
        yield
    except _USER_ERRORS as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        console.print(f"[bold red]Error:[/] {escape(str(text))}", soft_wrap=True)  # paths must stay whole
        raise typer.Exit(1) from error


def read_data(path: Path) -> SpatialData | AnnData:
    """A SpatialData or AnnData from disk, told by the suffix."""
    if not path.exists():
        msg = f"No such file or folder: {path}"
        raise FileNotFoundError(msg)
    if path.suffix == ".h5ad":
        import anndata

        from stmsi._validate import require_anndata_file

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


def check_output(out: Path, source: Path, suffix: str | None = None) -> None:
    """Refuse outputs that would overwrite something, before the work is done."""
    if suffix is None and out.suffix != source.suffix:
        msg = f"The output must be of the same kind as the input ({source.suffix}), found {out.name!r}."
        raise ValueError(msg)
    if suffix is not None and out.suffix != suffix:
        msg = f"The output must end in {suffix}, found {out.name!r}."
        raise ValueError(msg)
    if source.resolve() in out.resolve().parents:
        msg = f"{out} lies inside the input {source}; name an output elsewhere."
        raise ValueError(msg)
    if out.exists():
        msg = f"{out} exists already; name another output."
        raise FileExistsError(msg)


def write_data(content: Any, out: Path) -> None:
    """Write a SpatialData or AnnData, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if out.suffix == ".h5ad":
            content.write_h5ad(scratch / out.name)
        else:
            content.write(scratch / out.name)
        (scratch / out.name).replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_csv(table: pd.DataFrame, out: Path) -> None:
    """Write a csv, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.part")
    try:
        table.to_csv(scratch, index=False)
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)


def show_alignment(report: pd.DataFrame) -> None:
    """Print how well each section is aligned."""
    from rich import box
    from rich.table import Table

    columns = {
        "tre_um": ("TRE", ".0f"), "tre_max_um": ("max", ".0f"), "mask_iou": ("IoU", ".2f"),
        "spots_covered": ("covered", ".2f"), "information_before": ("info before", ".2f"), "information": ("after", ".2f"),
        "folds": ("folds", ".3f"),
    }  # fmt: skip
    table = Table(title="TRE in µm, information in nats", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("section", "model", "mirror", *(title for title, _ in columns.values())):
        table.add_column(name, justify="left" if name in ("section", "model") else "right", no_wrap=True)
    printer = Console()
    aligned = report[report["aligned"]]
    for section, row in aligned.iterrows():
        values = [
            format(row[c], form) if row.get(c, float("nan")) == row.get(c) else "–" for c, (_, form) in columns.items()
        ]
        table.add_row(str(section), str(row["model"]), "yes" if row["mirrored"] else "no", *values)
    printer.print(table)
    for section, row in aligned.iterrows():
        notes = [f"supports {row['resolution']}"]
        if row.get("outliers"):
            notes.append(f"landmarks left out: {row['outliers']}")
        if row.get("ambiguous") is True:
            notes.append(f"AMBIGUOUS: {row.get('message', '')}")
        printer.print(f"{section}: {'; '.join(notes)}", markup=False, soft_wrap=True)


def show_scores(scores: pd.DataFrame, by: list[str], title: str = "") -> None:
    """Print medians over metabolites of the main scores of both stages."""
    from rich import box
    from rich.table import Table

    shown = ["prevalence", "auroc", "auprc", "f1", "pearson", "r2"]  # what 80 columns hold; the csv has all
    medians = scores.groupby(by, sort=False)[shown].median(numeric_only=True)
    metabolites = scores.groupby(by, sort=False)["metabolite"].nunique()
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in by:
        table.add_column(name, no_wrap=True)
    for name in ["metabolites", *shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for key, row in medians.iterrows():
        labels = key if isinstance(key, tuple) else (key,)
        values = ["–" if v != v else f"{v:.3f}" for v in row]
        table.add_row(*map(str, labels), str(metabolites.loc[key]), *values)  # type: ignore[index,call-overload,unused-ignore]
    Console().print(table)


if __name__ == "__main__":
    app()

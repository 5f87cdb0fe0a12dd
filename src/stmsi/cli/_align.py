"""``stmsi align``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stmsi.cli._app import Json, command, one_of, say, step
from stmsi.cli._files import check_output, read_data, write_csv, write_data
from stmsi.cli._next_step import new_path, say_next

_LANDMARKS = (
    "csv with x_msi,y_msi,x_st,y_st (um) and, for several sections, sample; or MAGPIE's landmarks. Without: the points "
    "`<sample>_landmarks_msi` and `<sample>_landmarks_st`, and where there are none, masks and intensities decide."
)
_VIA = "csv of the second stage: from the histology of the MSI section to the ST frame."
_UNITS = (
    "Of a csv of landmarks, MSI,ST: micrometres per unit, or `file` (x and y of the MSI file) and `pixels` (of the ST image, as "
    "the spots came); `pixels` alone is `1,pixels`. Default: micrometres."
)
_METHOD = "landmarks or auto (without any); default: landmarks where there are some."
_MODELS = ("rigid", "similarity", "affine", "projective", "thin_plate")
_MODEL = "rigid, similarity, affine, projective or thin_plate; default: similarity, without landmarks affine."


def align(
    *,
    data: Annotated[Path, typer.Argument(help="Output of `stmsi combine` or stmsi.pp.combine (.zarr).")],
    out: Annotated[Path, typer.Option(help="Where to write the same, aligned (.zarr).")],
    landmarks: Annotated[Path | None, typer.Option(help=_LANDMARKS)] = None,
    via: Annotated[Path | None, typer.Option(help=_VIA)] = None,
    method: Annotated[str | None, one_of(_METHOD, "landmarks", "auto")] = None,
    model: Annotated[str | None, one_of(_MODEL, *_MODELS)] = None,
    robust: Annotated[
        str | None, one_of("ransac or lmeds: find wrong landmarks and leave them out.", "ransac", "lmeds")
    ] = None,
    refine: Annotated[str | None, one_of("intensity: then look for a smooth displacement.", "intensity")] = None,
    landmark_units: Annotated[str | None, typer.Option(help=_UNITS)] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Section to align (may be repeated); default: all.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as csv.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn at random.")] = 0,
    as_json: Json = False,
) -> None:
    """Align MSI to ST, by landmarks or without any, and report how well."""
    with command("align", as_json=as_json) as result:
        result |= align_file(
            data, out=out, landmarks=landmarks, via=via, method=method, model=model, robust=robust, refine=refine,
            landmark_units=landmark_units, sample=sample, report=report, seed=seed,
        )  # fmt: skip
        if not as_json:
            import pandas as pd

            from stmsi.cli._terminal_tables import show_alignment

            show_alignment(pd.DataFrame(result["sections"]).set_index("sample"))
        say(f"Written to {out}; stmsi.pl.alignment(data) shows it in Python.")
        say_next("map", out, "--out", new_path(out, "mapped", ".zarr"))


def align_file(
    data: Path,
    *,
    out: Path,
    landmarks: Path | None = None,
    via: Path | None = None,
    method: str | None = None,
    model: str | None = None,
    robust: str | None = None,
    refine: str | None = None,
    landmark_units: str | None = None,
    sample: list[str] | None = None,
    report: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Align the sections of a store and write them; the options are those of the command. Returns what it says as JSON."""
    import stmsi

    check_output(out, data)
    if report is not None:
        check_output(report, data, suffix=".csv")
    with step(f"Reading {data}"):
        content = read_data(data)
    options: dict[str, Any] = {"method": method, "model": model, "robust": robust, "refine": refine}
    if landmark_units is not None:
        options["landmark_units"] = units_of(landmark_units)
    given = {k: str(v) for k, v in (("landmarks", landmarks), ("via", via)) if v is not None}
    with step("Aligning"):
        stmsi.pp.align(content, **given, **options, sample=sample, rng=seed)  # type: ignore[arg-type]
        table = stmsi.pp.alignment_report(content).reset_index()  # type: ignore[arg-type]
    with step(f"Writing {out}"):
        write_data(content, out)
        if report is not None:
            write_csv(table, report)
    return {
        "out": str(out),
        "report": None if report is None else str(report),
        "sections": table.to_dict("records"),
    }


def units_of(text: str) -> Any:
    """Units of landmarks from the words of an option: ``1,0.5``, ``file,pixels`` or ``pixels``."""
    words = [word.strip() for word in text.split(",")]
    units = tuple(float(word) if word.replace(".", "", 1).isdigit() else word for word in words)
    return units[0] if len(units) == 1 else units

"""``stmsi evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stmsi.cli._app import Json, command, say, step
from stmsi.cli._files import check_output, read_card, read_data, write_csv, write_text

_MODEL = "Folder of the saved model: its card goes into the report, which then names trained sections."


def evaluate(
    *,
    data: Annotated[Path, typer.Argument(help="Output of `stmsi predict` on sections with MSI (.zarr or .h5ad).")],
    out: Annotated[Path | None, typer.Option(help="Write the scores as csv, by section, metabolite and stage.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report (.html) with scores and figures.")] = None,
    model: Annotated[Path | None, typer.Option(help=_MODEL)] = None,
    pred_key: Annotated[str, typer.Option(help="Prediction in obsm.")] = "msi_pred",
    table_key: Annotated[str, typer.Option(help="ST table of a SpatialData.")] = "st",
    as_json: Json = False,
) -> None:
    """Score predictions against measured metabolites, per section and metabolite."""
    with command("evaluate", as_json=as_json) as result:
        import stmsi
        from stmsi._data.keys import TRAINED_ON
        from stmsi._data.training_marks import HELD_OUT, of_scores, together
        from stmsi.cli._terminal_tables import all_sections, medians, show_scores

        for path, suffix in ((out, ".csv"), (report, ".html")):
            if path is not None:
                check_output(path, data, suffix=suffix)
        card = None if model is None else read_card(model)
        with step(f"Reading {data}"):
            content = read_data(data)
        with step("Scoring"):
            scores = stmsi.tl.evaluate(content, pred_key=pred_key, table_key=table_key)
        page = ""
        if report is not None:
            from stmsi._report import evaluation_report

            keys = {"pred_key": pred_key, "table_key": table_key}
            with step("Drawing the report"):
                page = evaluation_report(content, scores, source=data, card=card, **keys).html()
        result |= {"data": str(data), "key": pred_key}
        result |= {name: None if path is None else str(path) for name, path in (("out", out), ("report", report))}
        result["medians"] = medians(scores, ["sample"]).reset_index().to_dict("records")
        states = of_scores(scores)
        for row in result["medians"]:
            row[TRAINED_ON] = states[str(row["sample"])]
        result[TRAINED_ON] = together(states.values())
        result["all_sections"] = all_sections(scores)
        if out is not None:
            write_csv(scores, out)
        if report is not None:
            write_text(page, report)
        if not as_json:
            show_scores(scores, title=f"obsm[{pred_key!r}], medians over metabolites")
            say(
                "within, between: Pearson correlation within sections (pattern), and between the means of three sections or "
                "more (level). (base) is the prevalence, to which auprc compares. *: the model was trained on the spots, (*): on some, ?: not known."
            )
        for path in (out, report):
            if path is not None:
                say(f"Written to {path}.")
        held_out = [name for name, state in states.items() if state == HELD_OUT]
        say(
            "Scores of sections that the model was trained on are not evidence. Held out: "
            f"{', '.join(held_out) if held_out else 'none, as far as is known'}."
        )

"""``stmsi demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stmsi.cli._app import Json, command


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be one that the demo wrote.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of the models.")] = 0,
    small: Annotated[bool, typer.Option("--small", help="A toy data set: seconds instead of a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole way on simulated sections: align, train, predict a held-out section, score, draw, report."""
    with command("demo", as_json=as_json) as result:
        from stmsi.cli._run_demo import run_demo, say_next, summary
        from stmsi.cli._terminal_tables import show_demo

        scores = run_demo(out, seed=seed, small=small)
        rows = summary(scores)
        if not as_json:
            show_demo(rows)
        result |= {"out": str(out), "report": str(out / "report.html"), "simulated": True, "seed": seed}
        result |= {"held_out": str(scores["sample"].iloc[0]), "scores": rows.reset_index().to_dict("records")}
        say_next(out)

"""``stmsi version``."""

from __future__ import annotations

import typer

from stmsi.cli._app import Json, command


def version(*, as_json: Json = False) -> None:
    """Print the version; with --json also those of Python and of the packages that matter most."""
    with command("version", as_json=as_json) as result:
        import stmsi

        if as_json:
            from stmsi._report import versions

            result |= {"version": stmsi.__version__, "versions": versions()}
        else:
            typer.echo(stmsi.__version__)

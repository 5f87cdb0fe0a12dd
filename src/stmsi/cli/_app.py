"""What all commands share: options, progress, results as JSON, errors and exit codes."""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stmsi._messages import once_per_cause
from stmsi._progress import current_display, shared_display
from stmsi.cli._console import SafeConsole, WholeLines
from stmsi.cli._signals import Stopped, termination_as_interrupt

ISSUES = "https://github.com/stmsi/stmsi/issues"
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
SOME_FAILED = "failed"
"""Entry of a result that names what failed, where the rest went on."""
_A_DAY = 86_400.0
_ESCAPED = re.compile("[\x7f-\x9f\ud800-\udfff]")
"""What JSON may hold and a terminal or a strict encoding may not."""
_KNOWN = (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError, MemoryError)
"""Errors of the input or of the machine. Whatever else is raised is a fault of stmsi, and the message says so."""
_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or name an output elsewhere.",
    errno.EDQUOT: "Your share of the disk is full: free some space, or name an output elsewhere.",
    errno.EFBIG: "Files may not be that large there: name an output elsewhere, or raise the limit (ulimit -f).",
    errno.EACCES: "You may not write or read there: name another path, or ask its owner.",
    errno.EROFS: "The disk cannot be written to: name an output elsewhere.",
}

app = typer.Typer(
    name="stmsi",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="**Exit codes**: 0 done; 1 failed, with one line that says why; 2 wrong usage; 130 interrupted; 143 terminated. "
    "**Tab completion**: `stmsi --install-completion`.",
)
console = SafeConsole(stderr=True, highlight=False, emoji=False)

_DEBUG = "Log details; show the traceback of an error."
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout; all else goes to stderr.")]


def one_of(text: str, *values: str) -> Any:
    """An option with few values, which the shell completes."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return typer.Option(help=text, autocompletion=complete)


@dataclass
class Options:
    """The options before the command."""

    quiet: bool = False
    debug: bool = False


options = Options()


def _print_version(asked: bool) -> None:
    if asked:
        import stmsi

        typer.echo(stmsi.__version__)
        raise typer.Exit


@app.callback()
def main(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, warnings only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", "--verbose", "-v", help=_DEBUG)] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Predict spatial metabolomics from spatial transcriptomics.

    Look at the whole way first, on simulated sections: `stmsi demo` ends with a report to open in a browser. Then, with
    sections of your own:

    1. **combine** the files of both modalities;

    2. **align** MSI to ST;

    3. **map** the pixels to the spots;

    4. **train** a model;

    5. **predict** any ST section with it;

    6. **evaluate** the prediction where there is MSI that the model has not seen.

    Begin with `stmsi combine --st visium/outs --msi section.imzML --out pair.zarr`. Each command ends with the next one.
    """
    import stmsi

    if quiet and debug:
        msg = "--quiet and --debug exclude each other."
        raise typer.BadParameter(msg)
    options.quiet, options.debug = quiet, debug
    logging.getLogger("stmsi").handlers = [WholeLines(console=console)]
    # bars in a log file or a pipe are noise, and some packages write theirs to the standard output
    stmsi.settings.progress_bar = not quiet and console.is_terminal
    stmsi.settings.verbosity = "WARNING" if quiet else "DEBUG" if debug else "INFO"


def version(*, as_json: Json = False) -> None:
    """Print the version; with --json also those of Python and of the packages that matter most."""
    with command("version", as_json=as_json) as result:
        import stmsi

        if as_json:
            from stmsi._report import versions

            result |= {"version": stmsi.__version__, "versions": versions()}
        else:
            typer.echo(stmsi.__version__)


@contextmanager
def command(name: str, *, as_json: bool, interrupted: str = "no output was written") -> Iterator[dict[str, Any]]:
    """Run a command: fill the dictionary with its result.

    An error becomes one line on stderr and exit code 1. With `as_json` exactly one JSON object is written to the
    standard output, also in this case, with the warnings of the run; what other packages print there is led to stderr.
    A result with something in its entry ``"failed"`` was written in part: the exit code is 1, too. `interrupted` says what became of
    the output where the run is stopped.
    """
    result: dict[str, Any] = {}
    said: list[str] = []
    stopped = Stopped()
    try:
        with (
            termination_as_interrupt(stopped), _warnings_into(said), redirect_stdout(sys.stderr) if as_json else nullcontext(), _display()
        ):  # fmt: skip
            yield result
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        how = "Terminated" if stopped.terminated else "Interrupted"
        _fail(name, "KeyboardInterrupt", f"{how}; {interrupted}.", said, as_json=as_json)
        raise typer.Exit(TERMINATED if stopped.terminated else INTERRUPTED) from None
    except Exception as error:
        _fail(name, type(error).__name__, explain(error), said, as_json=as_json)
        if options.debug:
            console.print(traceback.format_exc(), markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from error
    failed = bool(result.get(SOME_FAILED))
    if as_json:
        _write_json({"command": name, "ok": not failed} | result | {"warnings": said})
    if failed:
        raise typer.Exit(FAILED)


def explain(error: Exception) -> str:
    """One line: what went wrong and what to do."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = " ".join(str(text).split("\n")).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        return f"Out of memory ({line}). Take fewer sections or metabolites at a time, or a machine with more memory."
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{line}. {_REMEDIES[error.errno]}"
    if not isinstance(error, _KNOWN):
        return (
            f"{type(error).__name__}: {line}. This looks like a fault of stmsi: run `stmsi --debug ...` again and report "
            f"what it prints at {ISSUES}."
        )
    return line


def _fail(name: str, kind: str, text: str, said: list[str], *, as_json: bool) -> None:
    console.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True)  # paths must stay whole
    if as_json:
        _write_json({"command": name, "ok": False, "error": {"type": kind, "message": text}, "warnings": said})


def _write_json(content: Mapping[str, Any]) -> None:
    narrow = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    text = json.dumps(plain(content), indent=2, ensure_ascii=narrow, allow_nan=False)
    typer.echo(_ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def plain(value: Any) -> Any:
    """Values that JSON knows: what does not exist is null, numbers are Python's, all else is text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing of the steps inside but warnings: the command around them has its own line for all of them."""
    import stmsi

    before = options.quiet, stmsi.settings.progress_bar, logging.root.manager.disable
    options.quiet, stmsi.settings.progress_bar = True, False
    if not options.debug:
        logging.disable(logging.INFO)  # of other packages, too
    try:
        yield
    finally:
        options.quiet, stmsi.settings.progress_bar, level = before
        logging.disable(level)


@contextmanager
def step(text: str) -> Iterator[None]:
    """One step of a long command: a line, a spinner while it runs, and the seconds that it took."""
    if options.quiet:
        yield
        return
    start = perf_counter()
    display = current_display()
    if display is None:
        console.print(f"{escape(text)} ...", soft_wrap=True)
        yield
        console.print(f"    [dim]{perf_counter() - start:.1f} s[/]")
        return
    task = display.add_task(text, total=None)
    try:
        yield
    finally:
        display.remove_task(task)
    console.print(f"{escape(text)} [dim]{perf_counter() - start:.1f} s[/]", soft_wrap=True)


class _TimeLeft(TimeRemainingColumn):
    """The time left, from the first step done on."""

    def render(self, task: Task) -> Text:
        return Text() if not task.completed or task.time_remaining is None else super().render(task).append(" left")


@contextmanager
def _display() -> Iterator[None]:
    """One display for all progress, where somebody looks at a terminal."""
    import stmsi

    if not stmsi.settings.progress_bar:
        yield
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), _TimeLeft(),
    )  # fmt: skip
    # steps may take minutes: what the time left is told from must not be forgotten before the next one
    with shared_display(Progress(*columns, console=console, transient=True, speed_estimate_period=_A_DAY)):
        yield


class _Keep(logging.Handler):
    """Keeps the warnings of the package's logger."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        self.into.append(record.getMessage())


@contextmanager
def _warnings_into(said: list[str]) -> Iterator[None]:
    """Say each warning once and as one line, and keep it; without those on the future of other packages, which do not help here."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.append(text)
            console.print(f"[yellow]Warning:[/] {escape(text)}", soft_wrap=True)

    log, keep = logging.getLogger("stmsi"), _Keep(said)
    log.addHandler(keep)
    try:
        with warnings.catch_warnings(), once_per_cause():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*autosharding.*")
            warnings.filterwarnings("ignore", category=SyntaxWarning, module="docrep")
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(keep)

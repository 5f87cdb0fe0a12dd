"""``stmsi cohort``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmsi.cli._app import SOME_FAILED, Json, command, explain, one_of, quietly, say

if TYPE_CHECKING:
    from stmsi._cohort import Outcome, Step
    from stmsi._report import Found
    from stmsi.cli._cohort_steps import CohortSteps

_CONFIG = "Configuration of the cohort (.yaml); `stmsi cohort --example > cohort.yaml` writes one to begin with."
_ONE_STEP = (
    "Do one step alone: combine, align, map, section_report, train, validate, predict or report. For workflow managers, "
    "which run many at a time."
)
STEPS = ("combine", "align", "map", "section_report", "train", "validate", "predict", "report")
"""All steps, in their order."""
_OF_ALL = ("train", "validate", "report")
"""Steps of the whole cohort."""
_RESUME = "Skip what was done from the same files and options; --no-resume does everything again."
_SCHEDULER = (
    "Address of a dask scheduler, such as tcp://10.0.0.1:8786: its workers sum up the sections for training, and fit the folds of the "
    "cross-validation."
)
_MARK = ".stmsi-cohort"
"""Marks the folder of a cohort, in which outputs may be replaced."""


def cohort(
    *,
    config: Annotated[Path | None, typer.Argument(help=_CONFIG)] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a configuration that runs on simulated files.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the configuration and its files, and stop.")] = False,
    resume: Annotated[bool, typer.Option(help=_RESUME)] = True,
    step: Annotated[str | None, one_of(_ONE_STEP, *STEPS)] = None,
    section: Annotated[str | None, typer.Option(help="With --step: of this section alone.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes: sections and folds at a time.", min=1)] = 1,
    scheduler: Annotated[str | None, typer.Option(help=_SCHEDULER)] = None,
    as_json: Json = False,
) -> None:
    """Run a cohort: combine, align and map each section, train, cross-validate, predict, and report."""
    if example:
        from stmsi.cli._cohort_example import EXAMPLE

        typer.echo(EXAMPLE, nl=False)
        return
    if config is None:
        msg = "Name a configuration, or ask for an example with --example."
        raise typer.BadParameter(msg)
    with command("cohort", as_json=as_json, interrupted="what was finished stays") as result:
        from stmsi._report import flags
        from stmsi.cli._cohort_steps import CohortSteps

        steps = CohortSteps(_read(config), jobs, scheduler, resume=resume)
        steps.check_obs()
        result |= {"config": str(config), "out": str(steps.cohort.out), "report": None}
        _check_step(steps, step, section)
        _check_scheduler(scheduler, step)
        if check:
            say(
                f"{config} is fine: {len(steps.cohort.sections)} sections, {len(steps.cohort.measured)} of them with MSI."
            )
            return
        _claim(steps.cohort.out)
        done = _Progress(_planned(steps, step, section))
        for outcome in done.shown(_selected(steps, step, section, again=not resume)):
            done.tell(outcome)
        failed, result["steps"] = done.failed, dict(done.count)
        if step in (None, *_OF_ALL):  # a job of one section does not look at all
            steps.settle()
            found = steps.found()
            if step is None:
                failed = [*map(dict, found.failed), *(one for one in failed if one["step"] == "report")]
            result["sections"] = [dict(row) for row in found.sections]
            result |= {"alignment": [{**row, "flags": flags(row)} for row in found.alignment], **_scores(found)}
        if step in (None, "report") and not any(one["step"] == "report" for one in failed):
            result["report"] = str(steps.report().output)
        result[SOME_FAILED] = [dict(one) for one in failed]
        _say_end(result, failed)


def _read(config: Path) -> Any:
    """The checked configuration; simulated files are written first, where it asks for them."""
    from stmsi._cohort import check_files, read_cohort
    from stmsi.cli._cohort_example import simulate_files
    from stmsi.cli._cohort_options import OF_SECTION, step_options

    cohort = read_cohort(config, step_options(), OF_SECTION)
    if cohort.simulate is not None and not cohort.simulate.exists():
        say(f"Simulating sections into {cohort.simulate} (simulate:).")
        with quietly():
            simulate_files(cohort.simulate)
    check_files(cohort)
    return cohort


def _check_step(steps: CohortSteps, step: str | None, section: str | None) -> None:
    """Raise where a step or a section is not there."""
    from stmsi._data.checks import check_choice, chosen

    if step is not None:
        check_choice(step, STEPS, "step")
        if section is not None and step in _OF_ALL:
            msg = f"--step {step} is of the whole cohort; leave out --section."
            raise ValueError(msg)
    elif section is not None:
        msg = f"--section goes with --step, which names what to do with {section!r}."
        raise ValueError(msg)
    chosen(list(steps.cohort.sections), section, f"the sections of {steps.cohort.source}")


def _check_scheduler(scheduler: str | None, step: str | None) -> None:
    """Raise where the scheduler cannot be used: hours of other steps may come before its own."""
    if scheduler is None:
        return
    if step not in (None, "train", "validate"):
        msg = f"--scheduler is for training and cross-validation; leave it out with --step {step}."
        raise ValueError(msg)
    from stmsi.tl._cluster import check_scheduler

    check_scheduler(scheduler)


def _claim(out: Path) -> None:
    """Make the folder, or raise where it holds something else; empty folders may be those of a workflow manager."""
    mark = out / _MARK
    taken = out.exists() and not mark.exists() and (not out.is_dir() or any(not p.is_dir() for p in out.rglob("*")))
    if taken and not mark.exists():  # which another job may have made meanwhile
        msg = f"{out} exists and was not written by stmsi cohort; name another folder as out: in the configuration."
        raise FileExistsError(msg)
    out.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        mark.touch()


def _planned(steps: CohortSteps, step: str | None, section: str | None) -> int:
    """How many steps there are to look at."""
    if step is not None:
        return len(steps.named(step, section))
    with_msi, every = len(steps.cohort.measured), len(steps.cohort.sections)
    return 3 * with_msi + 2 * every + 3


def _selected(steps: CohortSteps, step: str | None, section: str | None, *, again: bool) -> Iterator[Outcome]:
    """Outcomes of all steps in their order, or of those that were asked for."""
    if step is None:
        yield from _all(steps, again=again)
        return
    blocked = []
    for one in steps.named(step, section):
        outcome = _do(steps, one, again=again)
        blocked += [f"{one.title} {outcome.record.error}"] if outcome.state == "blocked" else []
        yield outcome
    if blocked:
        msg = f"{'; '.join(blocked)} first; stmsi cohort {steps.cohort.source} does all in order."
        raise ValueError(msg)


def _all(steps: CohortSteps, *, again: bool) -> Iterator[Outcome]:
    yield from _each(steps, "alone", list(steps.cohort.sections), again=again)
    steps.settle()
    yield from _each(steps, "alone", steps.removed(), again=False)
    yield from _each(steps, "together", steps.cohort.measured, again=again)
    steps.settle()
    for make in (steps.train, steps.validate):
        yield _do(steps, make(), again=again)
    yield from _each(steps, "predictions", list(steps.cohort.sections), again=again)
    yield _do(steps, steps.report(), again=again)


def _each(steps: CohortSteps, which: str, names: list[str], *, again: bool) -> Iterator[Outcome]:
    """Outcomes of the steps of many sections, several sections at a time."""
    import joblib

    of_one = _of_one if steps.n_jobs == 1 else _in_a_worker
    work = (joblib.delayed(of_one)(steps, which, name, again=again) for name in names)
    for outcomes in joblib.Parallel(n_jobs=steps.n_jobs, return_as="generator_unordered")(work):
        yield from outcomes


def _of_one(steps: CohortSteps, which: str, name: str, *, again: bool) -> list[Outcome]:
    """Steps of a section, each after the one before."""
    return [_do(steps, one, again=again) for one in getattr(steps, which)(name)]


def _in_a_worker(*args: Any, **kwargs: Any) -> list[Outcome]:
    """The same in another process, without what other packages warn of there; stmsi's own warnings come home in the records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _of_one(*args, **kwargs)


def _do(steps: CohortSteps, one: Step, *, again: bool) -> Outcome:
    from stmsi._cohort import carry_out

    with quietly():
        return carry_out(one, steps.records, explain, again=again)


class _Progress:
    """Counts steps, and says what each did and how long the rest may take."""

    def __init__(self, total: int) -> None:
        self.total, self.seen, self.worked = total, 0, 0
        self.count = {"done": 0, "kept": 0, "failed": 0, "blocked": 0}
        self.failed: list[dict[str, Any]] = []
        self.start = perf_counter()

    def shown(self, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
        """The same, with a bar where somebody looks."""
        from stmsi._progress import track

        return track(outcomes, "cohort", total=self.total)

    def tell(self, outcome: Outcome) -> None:
        """Count a step, say a line of what was done, and say again what it warned of."""
        from stmsi._settings import logger

        self.seen += 1
        self.total = max(self.total, self.seen)  # stores that were removed are made again
        self.count[outcome.state] += 1
        if outcome.state in ("kept", "blocked"):
            return
        self.worked += 1
        title = outcome.name if outcome.section is None else f"{outcome.section}: {outcome.name}"
        place = f"[{self.seen:>{len(str(self.total))}}/{self.total}]"
        if outcome.state == "failed":
            self.failed.append({"section": outcome.section, "step": outcome.name, "message": outcome.record.error})
            say(f"{place} {title} FAILED: {outcome.record.error}")
            return
        say(f"{place} {title} {outcome.record.seconds:.1f} s{self._left()}")
        for text in outcome.record.warnings:
            logger.warning("%r: %s", title, text)

    def _left(self) -> str:
        seconds = (perf_counter() - self.start) / self.worked * (self.total - self.seen)
        if seconds < 1:
            return ""
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"


def _scores(found: Found) -> dict[str, Any]:
    """Medians of the model over metabolites, by what was held out, and how many metabolites are in each tier."""
    out: dict[str, Any] = {"held_out_by": found.by, "scores": [], "tiers": {}}
    if found.scores is not None and found.by is not None:
        own = found.scores[found.scores["model"] == found.model]
        medians = own.groupby(found.by)[["auroc", "auprc", "prevalence", "pearson", "r2"]].median()
        out["scores"] = medians.reset_index().to_dict("records")
    if found.tiers is not None:
        out["tiers"] = found.tiers["tier"].value_counts().to_dict()
    return out


def _say_end(result: dict[str, Any], failed: Any) -> None:
    count = result["steps"]
    say(
        f"{count['done']} steps done, {count['kept']} kept from before, {count['failed']} failed, {count['blocked']} not reached."
    )
    for one in failed:
        say(f"Failed: {one['section'] or 'cohort'}: {one['step']}: {one['message']}")
    if failed:
        say("The rest went on. Mend what failed and run the same command: only what is missing is done.")
    if result["report"] is not None:
        say(f"Report: {result['report']}")

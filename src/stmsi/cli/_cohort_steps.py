"""The steps of a cohort: what each is made from, and which function does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._cohort import Cohort, Record, Records, Step, files_of
from stmsi.cli._align import align_file
from stmsi.cli._cohort_data import CohortData, open_cohort, table_of
from stmsi.cli._combine import combine_files, counts_of
from stmsi.cli._files import write_csv, write_text
from stmsi.cli._map import levels_of, map_file

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stmsi._report import Found
    from stmsi.model_selection._group_folds import GroupFolds

PER_SECTION = ("combine", "align", "map", "section_report")
_FOLDS = "folds"


class CohortSteps:
    """Makes the steps of a cohort.

    Parameters
    ----------
    cohort
        Its configuration.
    n_jobs
        Processes of the cross-validation.
    scheduler
        Address of a dask scheduler whose workers do it instead.
    resume
        Whether the cross-validation takes up folds that an earlier run has finished.
    """

    def __init__(self, cohort: Cohort, n_jobs: int = 1, scheduler: str | None = None, *, resume: bool = True) -> None:
        self.cohort, self.n_jobs, self.scheduler, self.resume = cohort, n_jobs, scheduler, resume
        self.records = Records(cohort.out / "records")
        self._versions = version("stmsi")
        self._files: dict[Path, str] = {}
        self._scale: float | None = None
        self._ready: list[str] | None = None  # looked up when asked for: a job of one section need not look at all
        self._train: Step | None = None
        self.settle()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_train": None}  # holds all sections; workers make it anew

    def settle(self) -> None:
        """Look which sections are combined and mapped now: what is made from all of them depends on that, and must not change meanwhile."""
        self._scale = self._common_level()
        self._ready = self._train = None

    def removed(self) -> list[str]:
        """Sections whose stores were removed once they were mapped, and that must be mapped again, as on another scale."""
        return [name for name in self.cohort.measured if any(map(self._was_removed, self.alone(name)))]

    def _was_removed(self, step: Step) -> bool:
        record = self._record(step)
        return record.key == step.key and not record.error and step.fresh(self.records) is None

    def predictions(self, name: str) -> list[Step]:
        """Steps of a section after training."""
        return [self.predict(name)]

    def of_section(self, name: str) -> list[Step]:
        """Steps before training: those that need no other section, and those that need the scale of all."""
        return [*self.alone(name), *self.together(name)]

    def alone(self, name: str) -> list[Step]:
        """Steps of a section that need no other."""
        return [self.combine(name), *([self.align(name)] if self._measured(name) else [])]

    def together(self, name: str) -> list[Step]:
        """Steps of a section that need the scale of all."""
        return [self.map(name), self.section_report(name)] if self._measured(name) else []

    def combine(self, name: str) -> Step:
        """Read a section and write it as one store."""
        section = self.cohort.sections[name]
        options = dict(section.options["combine"])
        spent = self._mapped(name) if self._measured(name) else None
        files = [self._stat(section.st), self._stat(section.msi), self._stat(options["mz"])]

        def work(out: Path) -> dict[str, Any]:
            from stmsi._data.keys import Key
            from stmsi._report import is_simulated

            content = combine_files(st=[f"{name}={section.st}"], msi=_named(name, section.msi), out=out, **options)
            found = counts_of(content)
            _check_name(name, [row["sample"] for row in found["sections"]], section.st)
            msi = content.tables.get(Key.table.MSI)
            found["levels"] = {} if msi is None else levels_of(msi)
            return found | {"simulated": self.cohort.simulate is not None or is_simulated(content)}

        return self._step("combine", name, "combined.zarr", work, _without_files(options), files, spent=spent)

    def align(self, name: str) -> Step:
        """Align the MSI of a section."""
        options, before = dict(self.cohort.sections[name].options["align"]), self.combine(name)
        files = [self._stat(options["landmarks"]), self._stat(options["via"])]

        def work(out: Path) -> dict[str, Any]:
            return {"sections": align_file(before.output, out=out, **options)["sections"]}

        return self._step(
            "align",
            name,
            "aligned.zarr",
            work,
            _without_files(options),
            files,
            needs=(before,),
            spent=self._mapped(name),
        )

    def map(self, name: str) -> Step:
        """Map the pixels of a section to its spots, on the scale of all sections."""
        options, before = dict(self.cohort.options["map"]), self.align(name)
        options["target"] = self._scale

        def work(out: Path) -> dict[str, Any]:
            found = map_file(before.output, out=out, **options)
            return {"sections": found["sections"], "target": options["target"]}

        return self._step("map", name, "mapped.zarr", work, options, needs=(before,))

    def section_report(self, name: str) -> Step:
        """The page of a section."""
        options, before, aligned = self.cohort.options["report"], self.map(name), self.align(name)

        def work(out: Path) -> dict[str, Any]:
            from stmsi._data.containers import open_store
            from stmsi._report import section_report

            rows = self._record(aligned).result.get("sections", [])
            warned = [text for one in (self.combine(name), aligned, before) for text in self._record(one).warnings]
            content = open_store(before.output)
            write_text(section_report(content, name, rows, warned, figures=options["figures"]).html(), out)
            return {}

        return self._step("section_report", name, "report.html", work, options, needs=(before,))

    def train(self) -> Step:
        """Train the model on all sections that are mapped; made once, as every prediction asks for it."""
        self._train = self._train or self._training()
        return self._train

    def _training(self) -> Step:
        options, ready = dict(self.cohort.options["train"]), self.ready()
        keys = {step.section: step.key for step in ready}

        def work(out: Path) -> dict[str, Any]:
            data = self._data(ready, [options["model"]])
            fitted = data.train(options["model"], client=self.scheduler)
            fitted.save(out)
            return {"model": options["model"], "spots": data.n_spots, "genes": data.spots.n_vars,
                    "metabolites": len(fitted.metabolites), "sections": list(keys)}  # fmt: skip

        known = self._patients(keys), self._stat(options["obs"])
        return self._step("train", None, "model", work, _without_files(options), keys, *known)

    def validate(self) -> Step:
        """Cross-validate by patient, or by section where none are named, and tell how far each metabolite can be trusted."""
        options, before, ready = dict(self.cohort.options["validate"]), self.train(), self.ready()
        named = dict.fromkeys([self.cohort.options["train"]["model"], *options["models"]])

        def work(out: Path) -> dict[str, Any]:
            from stmsi.model import load
            from stmsi.tl._kept_arrays import UsedFiles
            from stmsi.tl._reliability import verdicts

            used = UsedFiles(self._sums)
            data = self._data(ready, list(named))
            spots = data.spots
            splitter = self._splitter(spots, options["folds"])
            out.mkdir()
            scores = None
            if splitter is not None:
                scores = data.cross_validate(
                    list(named), splitter=splitter, client=self.scheduler,
                    n_jobs=self.n_jobs if self.scheduler is None else None,
                )  # fmt: skip
                scores["patient"] = scores["sample"].astype(str).map(_patient_of(spots))
                write_csv(scores, out / "scores.csv")
                used.remove_others()
            features = load(before.output).state.feature_table
            tiers = verdicts(spots, features, scores, model=None if scores is None else next(iter(named)))
            write_csv(tiers.rename_axis("metabolite").reset_index(), out / "tiers.csv")
            by = None if splitter is None else splitter.key
            return {"by": by, "tiers": tiers["tier"].value_counts().to_dict()}

        return self._step("validate", None, "validation", work, options, list(named), needs=(before,))

    def predict(self, name: str) -> Step:
        """Predict the metabolites of a section into a store of their own."""
        options, trained = dict(self.cohort.options["predict"]), self.train()
        trained_with = self.cohort.options["train"]
        before = self.map(name) if self._measured(name) else self.combine(name)

        def work(out: Path) -> dict[str, Any]:
            import stmsi
            from stmsi._data.keys import Key
            from stmsi.tl._obs_by_section import add_obs

            spots = table_of(before.output)
            if trained_with["obs"] is not None and name in (known := self._obs([name])).index:  # type: ignore[union-attr]
                add_obs(spots, known, Key.obs.SAMPLE)
            how = options["how"] or "expected"
            stmsi.tl.predict_metabolites(spots, str(trained.output), out=out, **options | {"how": how})
            return {"spots": spots.n_obs}

        return self._step("predict", name, "predicted.zarr", work, options, needs=(before, trained))

    def report(self) -> Step:
        """The page of the cohort, from the records of all steps."""
        found = [(step, self._record(step)) for step in self.all_but_report()]
        made_from = {step.title: (step.key, r.key, r.error, r.warnings) for step, r in found}

        def work(out: Path) -> dict[str, Any]:
            from stmsi._report import cohort_report

            write_text(cohort_report(self.found(), figures=self.cohort.options["report"]["figures"]).html(), out)
            return {}

        return self._step("report", None, "report.html", work, self.cohort.options["report"], made_from)

    def found(self) -> Found:
        """What all steps have left."""
        from stmsi.cli._cohort_result import gather

        return gather(self.cohort, self.all_but_report(), self.records)

    def all_but_report(self) -> Iterator[Step]:
        """Every step that the report tells of, in order."""
        for name in self.cohort.sections:
            yield from self.of_section(name)
        yield from (self.train(), self.validate())
        yield from map(self.predict, self.cohort.sections)

    def named(self, step: str, section: str | None) -> list[Step]:
        """The steps of a name: that of one section, or of all that have it."""
        make = getattr(self, step)
        if step not in (*PER_SECTION, "predict"):
            return [make()]
        everywhere = self.cohort.sections if step in ("combine", "predict") else self.cohort.measured
        return [make(name) for name in everywhere if section in (None, name)]

    def ready(self) -> list[Step]:
        """Mappings that are done, of the sections to train on."""
        if self._ready is None:
            self._ready = [name for name in self.cohort.measured if self.map(name).fresh(self.records)]
        return [self.map(name) for name in self._ready]

    def _step(
        self,
        name: str,
        section: str | None,
        output: str,
        work: Callable[[Path], dict[str, Any]],
        *inputs: Any,
        needs: Iterable[Step] = (),
        spent: Callable[[], bool] | None = None,
    ) -> Step:
        from stmsi.tl._fold_cache import fingerprint

        needs = tuple(needs)
        key = fingerprint(name, self._versions, list(inputs), [need.key for need in needs])
        folder = self.cohort.out if section is None else self.cohort.out / "sections" / section
        return Step(name, folder / output, key, work, section, needs, spent)

    def _mapped(self, name: str) -> Callable[[], bool]:
        return lambda: self.map(name).fresh(self.records) is not None

    def _measured(self, name: str) -> bool:
        return self.cohort.sections[name].msi is not None

    def _record(self, step: Step) -> Record:
        return self.records.read(step.name, step.section) or Record("")

    def _stat(self, path: Path | None) -> str:
        """Hash of names, sizes and times of files, which are looked up once a run."""
        from stmsi.tl._fold_cache import fingerprint

        if path is None:
            return ""
        if path not in self._files:
            self._files[path] = fingerprint(files_of(path))
        return self._files[path]

    def _common_level(self) -> float | None:
        """What pixels are scaled to: one number for all sections, or they could not be trained on together.

        The mean over sections of their median level, to one digit, so that another section hardly ever changes it.
        """
        options = self.cohort.options["map"]
        if options["target"] is not None:
            return float(options["target"])
        records = [self.records.read("combine", name) or Record("") for name in self.cohort.measured]
        found = [record.result.get("levels", {}).get(options["normalize"]) for record in records]
        levels = [level for level in found if level is not None]
        return float(f"{np.mean(levels):.0e}") if levels else None

    def _patients(self, names: Iterable[Any]) -> dict[str, str]:
        known = self.cohort.patients
        return {str(n): known[str(n)] for n in names if str(n) in known}

    @property
    def _sums(self) -> Path | None:
        """Folder that keeps folds and sums over sections."""
        return self.cohort.out / _FOLDS if self.resume else None

    def _data(self, ready: Iterable[Step], models: list[str]) -> CohortData:
        """Spots of all mapped sections, for some models."""
        stores = {str(step.section): step.output for step in ready}
        return open_cohort(stores, self._obs(stores), self.cohort.options["train"], models, self._sums)

    def _obs(self, names: Iterable[Any]) -> pd.DataFrame | None:
        """What the configuration says of sections, in the place of columns that their files have under these names.

        Raises
        ------
        ValueError
            The table of ``train: obs:`` is none, or names patients beside ``patient:`` of the sections.
        """
        import pandas as pd

        from stmsi._data.keys import Key
        from stmsi.cli._obs_file import read_obs

        wanted, options = [str(name) for name in names], self.cohort.options["train"]
        patients, path = self._patients(wanted), options["obs"]
        named = pd.DataFrame({Key.obs.PATIENT: patients}) if len(patients) == len(wanted) > 0 else None
        if path is None:
            return named
        table = read_obs(path, Key.obs.SAMPLE, options["covariate_key"] or ())
        if self.cohort.patients and Key.obs.PATIENT in table:
            msg = f"{path} has a column {Key.obs.PATIENT!r}, and so have the sections of {self.cohort.source}; name patients in one of them."
            raise ValueError(msg)
        return table if named is None else table.join(named)

    def check_obs(self) -> None:
        """Raise where the table of ``train: obs:`` cannot be used: hours of other steps come before it is read."""
        from stmsi._data.checks import listing

        table = self._obs(self.cohort.measured)
        if table is not None and (lacking := [name for name in self.cohort.measured if name not in table.index]):
            found = f"its rows are {listing(table.index)}"
            msg = (
                f"train: obs: {self.cohort.options['train']['obs']} has no row for section {listing(lacking)}; {found}."
            )
            raise ValueError(msg)

    def _splitter(self, spots: AnnData, folds: int) -> GroupFolds | None:
        """By patient where there are two, else by section where there are two, else none."""
        from stmsi._data.keys import Key
        from stmsi.model_selection._group_folds import GroupFolds

        for key in (Key.obs.PATIENT, Key.obs.SAMPLE):
            if key in spots.obs and spots.obs[key].notna().all() and spots.obs[key].nunique() > 1:
                return GroupFolds(key, folds)
        return None


def _patient_of(spots: AnnData) -> dict[str, str]:
    """Patient of each section, as the configuration or the data name them."""
    from stmsi._data.keys import Key

    if Key.obs.PATIENT not in spots.obs:
        return {}
    pairs = spots.obs[[Key.obs.SAMPLE, Key.obs.PATIENT]].dropna().astype(str).drop_duplicates()
    return dict(pairs.itertuples(index=False, name=None))


def _without_files(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a step but its files: those are told by their content, wherever they lie."""
    return {key: value for key, value in options.items() if not isinstance(value, Path)}


def _named(name: str, path: Path | None) -> list[str]:
    return [] if path is None else [f"{name}={path}"]


def _check_name(name: str, found: list[str], path: Path) -> None:
    if found != [name]:
        msg = f"{path} holds the section(s) {', '.join(found)}, and not {name!r} alone; write each section to a file of its own name."
        raise ValueError(msg)

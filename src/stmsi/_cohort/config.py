"""The configuration of a cohort, checked wholly before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from stmsi._cohort.yaml_file import read_yaml
from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing, suggest
from stmsi._data.small_files import read_list

_FILES = ("st", "msi")
_OF_ALIGNMENT = ("landmarks", "via")
"""Files that differ from section to section: they may stand among those of the section."""
_NAME = "name"
"""Column of a table of sections."""


@dataclass(frozen=True)
class Option:
    """An option of a step: its type, the value where none is given, and which there are (none: any)."""

    kind: type
    default: Any = None
    several: bool = False
    choices: tuple[str, ...] = ()
    least: float | None = None


Options = Mapping[str, Mapping[str, Option]]
"""Options of each step, by its name."""


@dataclass(frozen=True)
class Section:
    """One section: its files, and the options of its own steps."""

    name: str
    st: Path
    msi: Path | None
    patient: str | None
    options: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cohort:
    """A checked configuration."""

    source: Path
    out: Path
    simulate: Path | None
    sections: Mapping[str, Section]
    options: Mapping[str, Mapping[str, Any]]

    @property
    def measured(self) -> list[str]:
        """Sections with MSI."""
        return [name for name, section in self.sections.items() if section.msi is not None]

    @property
    def patients(self) -> dict[str, str]:
        """Patient of each section, or nothing where none are named."""
        return {name: s.patient for name, s in self.sections.items() if s.patient is not None}


def read_cohort(path: Path, options: Options, of_section: tuple[str, ...]) -> Cohort:
    """Read a configuration; paths are relative to its folder.

    Parameters
    ----------
    path
        The YAML file.
    options
        What each step takes.
    of_section
        Steps of which a section may have options of its own.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no YAML, or has unknown keys, values of a wrong type or names that clash: all of them are named together.
    """
    content = read_yaml(path)
    check = _Check(path, options)
    known = ("out", "simulate", "sections", *options)
    check.keys(content, known, "")
    folder = path.parent
    common = {step: check.options(step, content.get(step), {}, "") for step in options}
    sections: dict[str, Section] = {}
    for name, entry in check.sections(content.get("sections"), folder).items():
        where = f"sections: {name}: "
        if not check.mapping(entry, where):
            continue
        check.keys(entry, (*_FILES, "patient", *_OF_ALIGNMENT, *of_section), where)
        own = {step: {} if entry.get(step) is None else entry[step] for step in of_section}
        moved = {key: entry[key] for key in _OF_ALIGNMENT if entry.get(key) is not None}
        if moved and isinstance(own["align"], Mapping):
            check.once(moved, own["align"], where)
            own["align"] = {**own["align"], **moved}
        sections[name] = Section(
            name=name,
            st=folder / check.text(entry.get("st"), f"{where}st", needed=True),
            msi=None if entry.get("msi") is None else folder / check.text(entry["msi"], f"{where}msi"),
            patient=None if entry.get("patient") is None else check.name(entry["patient"], f"{where}patient"),
            options={step: check.options(step, own[step], common[step], where) for step in of_section},
        )
    check.people(sections)
    simulate = content.get("simulate")
    cohort = Cohort(
        source=path,
        out=folder / check.text(content.get("out"), "out", needed=True),
        simulate=None if simulate is None else folder / check.text(simulate, "simulate"),
        sections=sections,
        options=common,
    )
    check.done()
    return cohort


def check_files(cohort: Cohort) -> None:
    """Raise a `FileNotFoundError` that names all files which are not there."""
    own_steps = {step for section in cohort.sections.values() for step in section.options}
    common = {step: own for step, own in cohort.options.items() if step not in own_steps}
    missing = [
        f"{step}: {p}{suggest(p.name, _beside(p))}"
        for step, own in common.items()
        for p in own.values()
        if isinstance(p, Path) and not p.exists()
    ]
    for section in cohort.sections.values():
        paths: list[Any] = [section.st, section.msi, *(v for own in section.options.values() for v in own.values())]
        missing += [
            f"{section.name}: {p}{suggest(p.name, _beside(p))}" for p in paths if isinstance(p, Path) and not p.exists()
        ]
    if missing:
        shown = "; ".join(missing[:_MOST])
        more = f"; and {len(missing) - _MOST} more" if len(missing) > _MOST else ""
        msg = f"{cohort.source} names {len(missing)} file(s) that are not there: {shown}{more}. Paths are relative to its folder."
        raise FileNotFoundError(msg)


_MOST = 10
"""Problems that a message shows."""


def _beside(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _as_number(value: Any, kind: type) -> str:
    """How to write a number that YAML reads as text, such as ``1e4``."""
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            return f"; write {float(value)!r}" if isfinite(float(value)) else ""
    return ""


class _Check:
    """Collects what is wrong, so that one run tells all of it."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.known_options = path, options
        self.problems: list[str] = []

    def done(self) -> None:
        """Raise where anything was wrong."""
        if self.problems:
            more = f"; and {len(self.problems) - _MOST} more" if len(self.problems) > _MOST else ""
            msg = f"{self.path}: {'; '.join(self.problems[:_MOST])}{more}."
            raise ValueError(msg)

    def mapping(self, value: Any, where: str) -> bool:
        if isinstance(value, Mapping):
            return True
        self.problems.append(f"{where}expected entries with names, found {value!r}")
        return False

    def keys(self, entries: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in entries:
            if key not in known:
                near = suggest(key, known).strip().rstrip("?").replace("Did you mean", "did you mean")
                self.problems.append(f"{where}unknown key {key!r}, {near or f'known are {listing(known)}'}")

    def once(self, moved: Mapping[str, Any], align: Mapping[str, Any], where: str) -> None:
        """A file of the alignment stands among those of the section, or in its ``align``."""
        for key in (key for key in moved if key in align):
            self.problems.append(f"{where}{key} stands there and in align; remove one")

    def text(self, value: Any, where: str, *, needed: bool = False) -> str:
        """A path or name; an empty one, and a problem, where it is none."""
        if value is None and needed:
            self.problems.append(f"{where} is missing")
            return ""
        if not isinstance(value, str) or not value:
            self.problems.append(f"{where} must be text, found {value!r}; put it in quotes")
            return ""
        return value

    def name(self, value: Any, where: str) -> str:
        """A name; a number, as which YAML reads some, is taken as it would be written."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(value, where)

    def sections(self, given: Any, folder: Path) -> Mapping[str, Any]:
        """Entries of all sections, from the file itself or from a table."""
        if isinstance(given, str):
            given = self._table(folder / given)
        if not isinstance(given, Mapping) or not given:
            self.problems.append(
                f"sections: expected names with st: and msi:, or a table (sections.csv), found {given!r}"
            )
            return {}
        lower: dict[str, str] = {}
        for name in given:
            if safe_ids([name])[0] != name:
                self.problems.append(f"sections: {name!r} cannot be the name of files; use letters, digits, _ . -")
            if (other := lower.setdefault(name.casefold(), name)) != name:
                self.problems.append(f"sections: {other!r} and {name!r} differ in upper and lower case alone")
        return given

    def _table(self, path: Path) -> dict[str, Any]:
        table = read_list(path, "a table of sections", dtype=str, keep_default_na=False)
        if _NAME not in table:
            self.problems.append(f"{path.name}: no column {_NAME!r}; found {listing(table.columns)}")
            return {}
        if len(again := table[_NAME][table[_NAME].duplicated()]):
            self.problems.append(f"{path.name}: section names repeat: {listing(again.unique())}")
        rows = table.set_index(_NAME).to_dict("index") if not len(again) else {}
        return {str(name): {key: value for key, value in row.items() if value} for name, row in rows.items()}

    def options(self, step: str, given: Any, common: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Options of a step with their defaults, those of all sections, and those given."""
        known = self.known_options[step]
        out = {key: option.default for key, option in known.items()} | dict(common)
        where = f"{where}{step}: "
        if given is None or not self.mapping(given, where):
            return out
        self.keys(given, tuple(known), where)
        for key in (key for key in known if key in given):
            out[key] = self._value(given[key], known[key], f"{where}{key}")
        return out

    def _value(self, value: Any, option: Option, where: str) -> Any:
        if value is None:
            return option.default
        if option.several:
            values = value if isinstance(value, list) else [value]
            return [self._one(v, option, where) for v in values]
        return self._one(value, option, where)

    def _one(self, value: Any, option: Option, where: str) -> Any:
        if option.kind is Path:
            return self.path.parent / self.text(value, where)
        fits = isinstance(value, option.kind) or (option.kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and option.kind is not bool):
            word = {str: "text", float: "a number", int: "an integer", bool: "true or false"}[option.kind]
            self.problems.append(f"{where} must be {word}, found {value!r}{_as_number(value, option.kind)}")
        elif option.choices and value not in option.choices:
            near = suggest(str(value), option.choices)
            self.problems.append(f"{where}: {value!r} is not known; there are {', '.join(option.choices)}{near}")
        elif option.least is not None and value < option.least:
            self.problems.append(f"{where} must be at least {option.least:g}, found {value!r}")
        return value

    def people(self, sections: Mapping[str, Section]) -> None:
        """Patients are named for all sections with MSI, or for none."""
        measured = [s for s in sections.values() if s.msi is not None]
        without = [s.name for s in measured if s.patient is None]
        if without and len(without) < len(measured):
            self.problems.append(f"sections: patient: is missing for {listing(without)}; name it for all, or for none")
        if sections and not measured:
            self.problems.append("sections: none has msi:, so there is nothing to train on")

"""The house: rooms call only rooms below them, and no two files import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import stmsi

SRC = Path(stmsi.__file__).parent

FLOORS = [
    {"_lazy", "_settings"},
    {"_messages", "_progress"},
    {"_core"},
    {"metrics", "_data"},
    {"_imzml"},
    {"io", "pp"},
    {"model", "model_selection"},
    {"get", "tl"},
    {"pl", "datasets"},
    {"experimental", "napari"},
    {"_report", "_cohort"},
    {"cli"},
]
"""Rooms from the ground up. A room calls itself and the floors below; rooms of one floor do not call each other."""
NEIGHBOURS = {("model_selection", "model"), ("get", "tl")}
"""What a room may call on its own floor."""
STAIRS_OF_MODEL = [{"shared"}, {"linear"}, {"net"}, {"_families", "_load", "explain"}, {"ensemble"}]
STAIRS_OF_CORE = [
    {"arrays", "compiled", "ids", "parallel"},
    {"arrays_on_disk"},
    {"spectra", "peaks", "chemistry", "mapping", "metrics", "learning", "registration", "spatial", "uncertainty"},
    {"from_disk"},
]
MOST_FILES_OF_A_CORE_ROOM = 12


def _module(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted(SRC.rglob("*.py"))}


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of stmsi that a file names in its imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stmsi":
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "stmsi"}
    return found


IMPORTS = {
    name: imported(ast.parse(path.read_text(encoding="utf-8")), set(MODULES)) - {name}
    for name, path in MODULES.items()
    if name != "stmsi" and path.name != "__init__.py"  # packages name their members, and load them when asked
}


def room(module: str, depth: int = 1) -> str:
    """The room of a module: the first part of its name below ``stmsi`` (or below a room of it)."""
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else ""


def floor_of(name: str, floors: list[set[str]]) -> int:
    return next(number for number, rooms in enumerate(floors) if name in rooms)


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that go up, or to another room of the same floor."""
    bad = []
    for name, targets in imports.items():
        for target in targets:
            here, there = room(name), room(target)
            if here == there or not there:
                continue
            up = floor_of(there, FLOORS) - floor_of(here, FLOORS)
            if up > 0 or (up == 0 and (here, there) not in NEIGHBOURS):
                bad.append(f"{name} imports {target}")
    return sorted(bad)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """A circle of files, where there is one."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_a_floor():
    rooms = {room(name) for name in MODULES if name != "stmsi"}
    assert rooms == set().union(*FLOORS)


def test_no_import_runs_up():
    assert upward(IMPORTS) == []


def test_no_circle_of_files():
    assert circle(IMPORTS) == []


@pytest.mark.parametrize(("house", "stairs"), [("model", STAIRS_OF_MODEL), ("_core", STAIRS_OF_CORE)])
def test_no_import_runs_up_inside_a_room(house, stairs):
    bad = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if room(name) == room(target) == house and floor_of(room(name, 2), stairs) < floor_of(room(target, 2), stairs)
    ]
    assert bad == []


def test_whole_packages_are_only_imported_where_all_of_stmsi_is_used():
    bad = [name for name, targets in IMPORTS.items() if "stmsi" in targets and room(name) not in {"cli", "_report"}]
    assert bad == []


def test_rooms_of_the_core_stay_small():
    sizes = {path.name: len(list(path.glob("*.py"))) - 1 for path in (SRC / "_core").iterdir() if path.is_dir()}
    assert {name: n for name, n in sizes.items() if n > MOST_FILES_OF_A_CORE_ROOM} == {}


def test_every_file_says_what_it_is_for():
    silent = [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert silent == []


def test_what_benchmarks_import_of_the_package_exists():
    lost = []
    for path in sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stmsi":
                room = import_module(node.module)
                names = [
                    n.name for n in node.names if not hasattr(room, n.name) and not find_spec(f"{node.module}.{n.name}")
                ]
                lost += [f"{path.name}: {node.module}.{name}" for name in names]
    assert not lost


def test_the_checks_find_what_they_look_for():
    up = {"stmsi._core.learning.folds": {"stmsi.pp._align"}}
    assert upward(up) == ["stmsi._core.learning.folds imports stmsi.pp._align"]
    assert upward({"stmsi.pp._align": {"stmsi.io._read_imzml"}})
    assert not upward({"stmsi.pp._align": {"stmsi._data.keys"}})
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    typed = ast.parse("if TYPE_CHECKING:\n    from stmsi._data.keys import Key\nfrom stmsi._core import ids")
    assert imported(typed, {"stmsi._core.ids"}) == {"stmsi._data.keys", "stmsi._core.ids"}

"""pyproject.toml declares what the code imports, and the code imports what it declares."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "stmsi", ROOT / "tests"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
CODE = sorted(SOURCE.rglob("*.py"))
OWN = {*sys.stdlib_module_names, "stmsi", "tests"}

# Declared and not imported: another package imports it for a call in stmsi. The text is that of the call.
NEEDED_BY_A_CALL = {"igraph": 'flavor="igraph"'}
# Imported by tests and not declared: one that may be missing (its test is skipped then), one that its test writes.
BY_TESTS = {"decoupler", "lazy-example"}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: Iterable[Any]) -> set[str]:
    """Canonical names of distributions, with those of included groups and of stmsi's own extras."""
    found: set[str] = set()
    for entry in requirements:
        if isinstance(entry, dict):
            found |= _names(GROUPS[entry["include-group"]])
            continue
        name, extras = re.match(r"([\w.-]+)(?:\[([^\]]*)\])?", entry).groups()
        if _canonical(name) != "stmsi":
            found.add(_canonical(name))
        for extra in (extras or "").split(",") if _canonical(name) == "stmsi" else ():
            found |= _names(PROJECT["project"]["optional-dependencies"][extra.strip()])
    return found


NEEDED = _names(PROJECT["project"]["dependencies"])
WINDOW = _names(PROJECT["project"]["optional-dependencies"]["napari"])
R_FILES = _names(PROJECT["project"]["optional-dependencies"]["spata"])
CLUSTER = _names(PROJECT["project"]["optional-dependencies"]["cluster"])


@cache
def _installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _distributions(module: str) -> set[str]:
    """What brings a module; where it is not installed, the distribution of the same name."""
    return {_canonical(name) for name in _installed().get(module, [module])}


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    return "\n".join(cell for cell in cells if not cell.startswith("%%"))  # those of a shell are no Python


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node; expressions hold none."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for inner in getattr(node, field, ()):
            yield inner
            yield from _statements(inner)


@cache
def _imports(path: Path) -> list[tuple[str, int]]:
    """First parts of the imported modules, with lines: everywhere in the file, also those for static types."""
    found = []
    for node in _statements(ast.parse(_code(path))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        found += [(module.split(".")[0], node.lineno) for module in modules]
    return [(name, line) for name, line in found if name not in OWN]


def undeclared(files: Iterable[Path], declared: set[str]) -> list[str]:
    """Imports of packages that are not declared."""
    return [
        f"{path.name}:{line}: {module}"
        for path in files
        for module, line in _imports(path)
        if not _distributions(module) & declared
    ]


def unused(files: Iterable[Path], declared: set[str]) -> set[str]:
    """Declared packages that no file imports."""
    return declared - {name for path in files for module, _ in _imports(path) for name in _distributions(module)}


def test_what_the_package_imports_is_declared() -> None:
    window = set((SOURCE / "napari").rglob("*.py"))
    readers = set((SOURCE / "io").rglob("*.py"))
    names = ("_cluster", "_cross_validate", "_predict_metabolites", "_predict_stores", "_train", "_workers")
    on_a_cluster = {SOURCE / "tl" / f"{name}.py" for name in names}
    assert undeclared([path for path in CODE if path not in window | readers | on_a_cluster], NEEDED) == []
    assert undeclared(on_a_cluster, NEEDED | CLUSTER) == []
    assert undeclared(readers, NEEDED | R_FILES) == []
    assert undeclared(window, NEEDED | WINDOW) == []


def test_what_is_declared_is_imported() -> None:
    assert unused(CODE, NEEDED) == set(NEEDED_BY_A_CALL)
    assert unused(CODE, WINDOW | R_FILES | CLUSTER) == set()


@pytest.mark.parametrize("name", NEEDED_BY_A_CALL)
def test_a_call_still_needs_it(name: str) -> None:
    assert any(NEEDED_BY_A_CALL[name] in path.read_text(encoding="utf-8") for path in CODE)


def test_what_tests_import_is_declared() -> None:
    window = {*(TESTS / "gui").glob("*.py"), *(TESTS / "napari").glob("*.py")}
    others = [path for path in sorted(TESTS.rglob("*.py")) if path not in window]
    assert undeclared(others, NEEDED | _names(GROUPS["test"]) | BY_TESTS) == []
    assert undeclared(window, NEEDED | _names(GROUPS["gui"])) == []


def test_what_tutorials_import_is_declared() -> None:
    files = [path for path in (ROOT / "tutorials").glob("*.*") if path.suffix in (".py", ".ipynb")]
    assert undeclared(files, NEEDED | _names(GROUPS["tutorial"])) == []


def test_both_directions_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import json, yaml\n"
        "import stmsi.pp\n"
        "from . import sibling\n"
        "if TYPE_CHECKING:\n"
        "    from nowhere_at_all.types import Thing\n"
        "def f():\n"
        "    import sklearn.linear_model\n"
    )
    assert undeclared([file], {"pyyaml"}) == ["module.py:6: nowhere_at_all", "module.py:8: sklearn"]
    assert undeclared([file], {"pyyaml", "scikit-learn", "nowhere-at-all"}) == []
    assert unused([file], {"pyyaml", "scikit-learn", "numpy"}) == {"numpy"}

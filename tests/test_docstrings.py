"""Every public name has an example that runs, and stands on its API page."""

from __future__ import annotations

import doctest
import inspect
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from spatialdata import SpatialData, deepcopy

import stmsi

MODULES = sorted(set(stmsi.__all__) - {"settings"})
NAMES = [(module, name) for module in MODULES for name in import_module(f"stmsi.{module}").__all__]
PAGES = Path(__file__).parents[1] / "docs" / "api"
NEEDS_FILES = {"read_visium", "read_spata", "read_sma", "read_magpie", "read_thyra", "fetch_sma", "fetch_desium"}
"""Their examples need files that are too many to write in a docstring, or a network."""
_IMPORT = re.compile(r"(import|from) ").match
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _examples(obj: Any, name: str) -> list[doctest.DocTest]:
    """The examples of a function, or of a class and its own methods."""
    return [test for test in doctest.DocTestFinder().find(obj, name, module=False, globs={}) if test.examples]


def _run(tests: list[doctest.DocTest]) -> str:
    """Run examples; what failed, as doctest tells it."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_FLAGS, verbose=False)
    logging.disable(logging.INFO)  # squidpy logs its steps to the standard output, which doctest compares
    try:
        for test in tests:
            runner.run(test, out=report.append)
    finally:
        logging.disable(logging.NOTSET)
        plt.close("all")
    return "".join(report)


@pytest.mark.once
@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_example(module: str, name: str, toy: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = getattr(import_module(f"stmsi.{module}"), name)
    if module != "datasets":  # simulated once, not once for each example
        monkeypatch.setattr(stmsi.datasets, "toy", lambda: deepcopy(toy))
    doc = inspect.getdoc(obj) or ""
    assert re.search(r"^Examples\n-{8}$", doc, re.MULTILINE), f"stmsi.{module}.{name} has no Examples section"
    tests = _examples(obj, name)
    runnable = [e for test in tests for e in test.examples if not (e.options.get(doctest.SKIP) or _IMPORT(e.source))]
    assert runnable or name in NEEDS_FILES, f"stmsi.{module}.{name} has no example that runs"
    report = _run(tests)
    assert not report, report


def test_example_of_settings() -> None:
    before = vars(stmsi.settings).copy()
    try:
        report = _run(_examples(type(stmsi.settings), "settings"))
    finally:
        vars(stmsi.settings).update(before)
    assert not report, report


def test_a_wrong_example_fails() -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    assert "Expected" in _run(_examples(wrong, "wrong"))


@pytest.mark.skipif(not PAGES.is_dir(), reason="the documentation is not part of the source distribution")
@pytest.mark.parametrize("module", MODULES)
def test_api_page(module: str) -> None:
    blocks = re.findall(r"^\.\. autosummary::\n((?: .*\n|\n)+)", (PAGES / f"{module}.md").read_text(), re.MULTILINE)
    listed = [line.strip() for block in blocks for line in block.splitlines() if re.fullmatch(r"   \w+", line)]
    assert sorted(listed) == sorted(import_module(f"stmsi.{module}").__all__)


@pytest.mark.skipif(not PAGES.is_dir(), reason="the documentation is not part of the source distribution")
def test_api_index_links_every_page() -> None:
    index = (PAGES / "index.md").read_text()
    assert set(re.findall(r"`stmsi\.(\w+)`", index)) == set(stmsi.__all__)
    for page in PAGES.glob("*.md"):
        assert page.stem == "index" or f"({page.name})" in index, page.name

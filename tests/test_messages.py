"""Warnings are said once per call and cause, whatever number of sections, folds and members they hold for."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stmsi
from stmsi._messages import held_back, once_per_cause, say_again, warns_once
from stmsi._settings import logger

N_SECTIONS, N_FOLDS = 12, 5
LONG = "Section %r has something that is worth a line of its own."


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_one_line_and_one_of_what_else_it_holds_for(caplog):
    with once_per_cause():
        for name in "abca":
            logger.warning(LONG, name)
            logger.info(LONG, name)
    assert warnings_of(caplog) == [
        LONG % "a",
        f"The warning that begins {LONG % 'a'!r} also holds for: b; c.",
    ]
    assert len(caplog.records) == 4 + 2, "other levels are left alone"
    logger.warning(LONG, "a")
    assert len(warnings_of(caplog)) == 3, "the next call says it again"


def test_the_same_words_are_said_once(caplog):
    with once_per_cause():
        for _ in range(30):
            logger.warning("Something is wrong with all of it, and there is nothing to fill in.")
    assert len(warnings_of(caplog)) == 1


def test_messages_that_are_all_filled_in_are_causes_of_their_own(caplog):
    with once_per_cause():
        for text in ("first", "second", "first"):
            logger.warning("Leakage, %s", text)
        for name in "ab":
            logger.warning("Section %r: %s", name, "the fit is loose by 3.5 um.")
    assert warnings_of(caplog) == [
        "Leakage, first",
        "Leakage, second",
        "Section 'a': the fit is loose by 3.5 um.",
        "The warning that begins \"Section 'a': the fit is loose by 3.5 um.\" also holds for: b.",
    ]


def test_the_outermost_call_counts(caplog):
    @warns_once
    def inner(name: str) -> None:
        logger.warning(LONG, name)

    msg = "planted"

    @warns_once
    def outer() -> str:
        inner("a")
        inner("a")
        raise ValueError(msg)

    with pytest.raises(ValueError, match="planted"):
        outer()
    assert warnings_of(caplog) == [LONG % "a"]
    assert logger.filters == []
    assert inner.__name__ == "inner"


def test_what_another_process_would_say(caplog):
    with held_back() as found:
        logger.warning("%s: %d of %.1f, which takes a few words.", {"not": "plain"}, np.int64(3), np.float32(0.5))
        logger.warning("%(name)s by name", {"name": "told"})
    assert caplog.records == []
    say_again(pickle.loads(pickle.dumps(found)))
    assert warnings_of(caplog) == ["{'not': 'plain'}: 3 of 0.5, which takes a few words.", "told by name"]


def test_threads_keep_their_warnings_apart(caplog):
    def work(number: int) -> list[str]:
        with held_back() as found:
            for _ in range(20):
                logger.warning("Thread %d has something to say about itself.", number)
                sleep(0.001)
        return [record.getMessage() for record in found]

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(work, range(8)))
    assert said == [[f"Thread {k} has something to say about itself."] * 20 for k in range(8)]
    assert caplog.records == []
    assert logger.filters == []


class Groups:
    """Whole sections in five folds."""

    def split(self, adata):
        code = pd.factorize(adata.obs["sample"])[0] % N_FOLDS
        for k in range(N_FOLDS):
            yield np.flatnonzero(code != k), np.flatnonzero(code == k)


@pytest.fixture(scope="module")
def sections() -> AnnData:
    """Twelve sections with expression corrected for ambient RNA, and a metabolite that one of them has: there is much to say."""
    rng = np.random.default_rng(0)
    n = 12 * N_SECTIONS
    expression = rng.poisson(3.0, (n, 30)) * rng.uniform(0.5, 1.5, (n, 1))
    names = pd.Index([f"s{i}" for i in range(n)])
    sample = np.repeat([f"P{k}" for k in range(N_SECTIONS)], 12)
    adata = AnnData(expression.astype(np.float32), pd.DataFrame({"sample": sample}, index=names))
    adata.var_names = [f"Gene{j}" for j in range(30)]
    signal = np.log1p(expression[:, :3]) * (rng.random((n, 3)) < 0.8)
    signal[12:, 2] = np.nan  # in one section, so that no fold can judge it
    adata.obsm["msi"] = pd.DataFrame(signal.astype(np.float32), index=names, columns=["a", "b", "c"])
    return adata


@pytest.mark.parametrize(
    "call",
    [
        lambda a: stmsi.tl.cross_validate(
            a, ["mean", "ridge"], splitter=Groups(), on_leakage="ignore", show_progress_bar=False
        ),
        lambda a: stmsi.tl.evaluate(stmsi.tl.predict_metabolites(a, "mean", copy=True, show_progress_bar=False)),
        lambda a: stmsi.tl.predict_metabolites(
            a, {"model": "ensemble", "members": ["mean", "ridge"]}, copy=True, show_progress_bar=False
        ),
    ],
    ids=["cross_validate", "evaluate", "ensemble"],
)
def test_twelve_sections_and_five_folds(sections, call, caplog):
    call(sections)
    said = warnings_of(caplog)
    causes = [text[:40] for text in said]
    assert len(causes) == len(set(causes)), said
    assert 0 < len(said) <= 4, said

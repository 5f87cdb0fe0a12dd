"""Sums over sections in stores, each made once by whichever worker gets the section."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from inspect import signature
from logging import LogRecord
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stmsi._messages import held_back, say_again
from stmsi._progress import track
from stmsi.model._families import ModelSpec, resolve

if TYPE_CHECKING:
    from stmsi._core.arrays import Floats32, Ints
    from stmsi._core.learning.expression_space import ExpressionSpace
    from stmsi.model.shared._streamed_parts import StreamedParts
    from stmsi.tl._workers import Workers


class Summed(Protocol):
    """Sections, in a process that has their sums."""

    def parts(self) -> StreamedParts:
        """The sums."""


def genes_chosen(spec: ModelSpec) -> int:
    """How many variable genes a linear model chooses, as far as its specification says it."""
    from stmsi.model.linear._hurdle_linear import HurdleLinear

    usual = signature(HurdleLinear).parameters["n_top_genes"].default
    return int(resolve(spec)[1].get("n_top_genes", usual))


def sum_up(shared: Summed, n_top_genes: Collection[int], workers: Workers, show_progress_bar: bool | None) -> None:
    """Have workers make the sums that all fits need, and keep them where all find them; what is there is not made again.

    In two rounds: which genes are chosen hangs on the moments of all sections. What it leaves out, fits make themselves.

    Parameters
    ----------
    shared
        The sections, with a folder for the sums.
    n_top_genes
        How many variable genes the models choose.
    workers
        Who makes them.
    show_progress_bar
        As everywhere.
    """
    parts = shared.parts()

    def done(what: str, function: Any, calls: list[tuple[Any, ...]]) -> None:
        if calls:
            made = workers.results(function, calls, shared)
            for said in track(made, what, total=len(calls), show=show_progress_bar):
                say_again(said)

    every = range(len(parts.size))
    done("moments of sections", _moments, [(p,) for p in every if not parts.has_moments(p)])
    genes = [parts.candidates(n)[0] for n in sorted(set(n_top_genes))]
    done("products of sections", _products, [(p, genes) for p in every if not parts.has_products(p, genes)])


def spread_components(shared: Summed, workers: Workers) -> None:
    """Have workers make the components of one fit to all spots, which is made here."""

    def made(space: ExpressionSpace) -> Iterator[tuple[int, Floats32]]:
        every = range(len(parts.size))
        for part, components, said in workers.results(_components, [(p, space) for p in every], shared):
            say_again(said)
            yield part, components

    parts = shared.parts()
    parts.components_by_others = made


def _moments(part: int, shared: Summed) -> list[LogRecord]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), held_back() as said:
        shared.parts().moments(part)
    return said


def _products(part: int, genes: list[Ints], shared: Summed) -> list[LogRecord]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), held_back() as said:
        parts = shared.parts()
        for some in genes:
            parts.products_of(part, np.asarray(some))
        if parts.knows_means:
            parts.with_means(part)
    return said


def _components(part: int, space: ExpressionSpace, shared: Summed) -> tuple[int, Floats32, list[LogRecord]]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), held_back() as said:
        return part, shared.parts().components_of(part, space), said

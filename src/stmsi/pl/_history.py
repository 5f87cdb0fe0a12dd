"""How the losses fell in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from stmsi._data.checks import listing
from stmsi.pl._panels import get_axes, hand_back, label_plot
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PALETTE, STYLE, ink, paper, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SIZE = (3.4, 2.8)
_TOTAL, _PRESENCE, _INTENSITY = "total", "presence", "intensity"
_COLUMNS = {
    _TOTAL: ("train_loss", "validation_loss"),
    _PRESENCE: ("presence_loss_train", "presence_loss_validation"),
    _INTENSITY: ("intensity_loss_train", "intensity_loss_validation"),
}
_TITLES = {_TOTAL: "both stages", _PRESENCE: "stage 1: presence", _INTENSITY: "stage 2: intensity"}
_FEW = 25
"""Epochs up to which each is a point: a line of one epoch is not seen."""


@dataclass(frozen=True)
class _Curve:
    """Losses by epoch of one stage, NaN where they are not known, and the epoch of the kept weights."""

    train: pd.Series
    validation: pd.Series
    best: int | None


@shared_docs
def history(
    model: Any,
    *,
    log: bool = False,
    ncols: int = 3,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw the losses of training and validation of both stages, with the epoch whose weights were kept.

    Panels are the sum of both stages (unless they were trained one after the other), presence and intensity.
    Lines are the validation spots, dashed lines the training spots; a point and a dotted line mark the epoch with the
    lowest validation loss. Stages that are trained together (the default) are kept at one epoch, that of the lowest sum; with
    ``training="two_stage"`` each stage has its own, and epochs count on from the first to the second. A validation loss that
    rises while the training loss falls is overfitting; one that still falls at the end needs more epochs.

    Parameters
    ----------
    model
        A trained :class:`stmsi.model.HurdleNet`; a :class:`stmsi.model.HurdleEnsemble`, whose networks are drawn; a list
        of models or a mapping from names to models; or ``model.history``: a mapping or DataFrame with some of the columns
        ``train_loss``, ``validation_loss``, ``presence_loss_train``, ``presence_loss_validation``, ``intensity_loss_train``
        and ``intensity_loss_validation``.
    log
        Whether losses are drawn on a logarithmic axis.
    ncols
        Panels in a row.
    %(figure)s

    Raises
    ------
    ValueError
        A model without epochs (:class:`stmsi.model.HurdleLinear`), one that is not trained, or a history without losses.
    TypeError
        Something else.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> model = stmsi.model.HurdleNet(st)
    >>> model.train(max_epochs=3, show_progress_bar=False)
    >>> axes = stmsi.pl.history(model)
    >>> [ax.get_title() for ax in axes]
    ['both stages', 'stage 1: presence', 'stage 2: intensity']
    """
    curves = {name: _curves(_losses(name, table)) for name, table in _tables(model).items()}
    if len(curves) > len(PALETTE):
        msg = f"{len(curves)} models do not fit into one figure, at most {len(PALETTE)} do; pass some of them."
        raise ValueError(msg)
    panels = [p for p in _COLUMNS if any(p in own for own in curves.values())]
    figure, axes = get_axes(len(panels), ncols, ax, _SIZE, figsize)
    for place, panel in zip(axes, panels, strict=True):
        for colour, own in zip(map(tone, range(len(PALETTE))), curves.values(), strict=False):
            if panel in own:
                _draw(place, own[panel], colour)
        if log:
            place.set_yscale("log")
            place.yaxis.set_major_formatter(ScalarFormatter())
            place.yaxis.set_minor_formatter(ScalarFormatter())
        place.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        label_plot(place, "epoch", "loss" if place is axes[0] else "", _TITLES[panel])
    _legend(axes[-1], [n for n in curves if n], (c for own in curves.values() for c in own.values()))
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _tables(model: Any) -> dict[str, Any]:
    """Histories by name; a single one has no name."""
    from stmsi.model import HurdleEnsemble
    from stmsi.model.shared._hurdle_model import HurdleModel

    if isinstance(model, HurdleEnsemble):
        nets = {n: m for n, m in zip(model.members, model.models_, strict=False) if _has_history(m)}
        if not nets:
            members = f"its members are {listing(model.members)}, none of them a network"
            what = members if model.models_ else "it is not trained"
            remedy = "Pass a trained HurdleNet, or an ensemble with one."
            msg = f"The HurdleEnsemble has no training curves: {what}. {remedy}"
            raise ValueError(msg)
        return {name: net.history for name, net in nets.items()}  # type: ignore[attr-defined]
    if isinstance(model, HurdleModel):
        return {"": _history_of(model)}
    if isinstance(model, pd.DataFrame):
        return {"": model}
    if isinstance(model, Mapping):
        if any(str(k) in c for k in model for c in _COLUMNS.values()):
            return {"": model}
        named = {str(k): v for k, v in model.items()}
    elif isinstance(model, Sequence) and not isinstance(model, str):
        named = {}
        for m in model:
            encoder = getattr(m, "_hyper", {}).get("encoder")
            base = type(m).__name__ + (f", {encoder}" if encoder else "")
            number = sum(n == base or n.startswith(f"{base} (") for n in named)
            named[base if number == 0 else f"{base} ({number + 1})"] = m
    else:
        msg = f"Expected a trained model, a list or mapping of models, or the history of one, found {type(model).__name__}."
        raise TypeError(msg)
    if not named:
        msg = "Name at least one model."
        raise ValueError(msg)
    return {
        f"{name}, {inner}" if inner else name: table
        for name, one in named.items()
        for inner, table in _tables(one).items()
    }


def _has_history(model: Any) -> bool:
    found = getattr(model, "history_", None)
    return found is not None and len(found) > 0


def _history_of(model: Any) -> Any:
    """The history of a model."""
    kind = type(model).__name__
    if not hasattr(model, "history_"):
        msg = (
            f"A {kind} has no training curves: it is fitted at once, without epochs. Its scores on held-out spots are in "
            "model.card['metabolites'] and come from stmsi.tl.cross_validate."
        )
        raise ValueError(msg)
    if not _has_history(model):
        msg = f"The {kind} has no history: it is not trained yet. Call model.train()."
        raise ValueError(msg)
    return model.history


def _losses(name: str, table: Any) -> pd.DataFrame:
    """All kinds of losses by epoch from 1; NaN where they are not known."""
    known = [c for pair in _COLUMNS.values() for c in pair]
    # without validation spots in some epochs, a column is shorter
    frame = pd.DataFrame({c: pd.Series(np.ravel(table[c]), dtype=np.float64) for c in known if c in table})
    if frame.columns.empty:
        about = f" of {name!r}" if name else ""
        msg = f"The history{about} has no losses; it holds {listing(table)}, expected some of {listing(known)}."
        raise ValueError(msg)
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1)).reindex(columns=known)


def _curves(losses: pd.DataFrame) -> dict[str, _Curve]:
    """A curve of each stage that was trained, and of their sum where they were trained together."""
    n_first = _first_stage(losses)
    parts = {name: slice(None) for name in _COLUMNS}
    if n_first:
        del parts[_TOTAL]
        parts |= {_PRESENCE: slice(None, n_first), _INTENSITY: slice(n_first, None)}
    together = losses[_COLUMNS[_TOTAL][1]]
    out = {}
    for name, part in parts.items():
        train, validation = (losses[c].iloc[part] for c in _COLUMNS[name])
        if train.isna().all() and validation.isna().all():
            continue
        decisive = validation if n_first or together.isna().all() else together
        # the first of equals, as the weights are kept
        best = None if decisive.isna().all() else int(decisive.index[int(np.nanargmin(decisive))])
        out[name] = _Curve(train, validation, best)
    return out


def _first_stage(losses: pd.DataFrame) -> int:
    """Epochs of the first of two stages trained one after the other; 0 where they were trained together."""
    total, presence, intensity = (losses[_COLUMNS[part][0]].to_numpy() for part in (_TOTAL, _PRESENCE, _INTENSITY))
    # alone in training, a stage is the whole loss
    first = np.isclose(total, presence, rtol=1e-4) & ~np.isclose(intensity, 0)
    n = int(np.argmin(first)) if not first.all() else len(first)
    second = np.isclose(total, intensity, rtol=1e-4)
    return n if n and second[n:].all() else 0


def _draw(ax: Axes, curve: _Curve, colour: str) -> None:
    marker: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(curve.train) <= _FEW else {}
    ax.plot(curve.train, color=colour, linestyle="--", linewidth=1, alpha=0.7, **marker)
    ax.plot(curve.validation, color=colour, linewidth=1.4, **marker)
    if curve.best is not None:
        ax.axvline(curve.best, color=colour, linestyle=":", linewidth=1)
        dot: dict[str, Any] = {"marker": "o", "markersize": 6, "markeredgecolor": paper(), "linestyle": "none"}
        ax.plot([curve.best], [curve.validation[curve.best]], color=colour, zorder=4, **dot)


def _legend(ax: Axes, names: list[str], curves: Iterable[_Curve]) -> None:
    """What the lines are; which model has which colour, where there are several."""
    grey, curves = ink(0.7) if names else tone(0), list(curves)
    kinds: list[tuple[str, bool, dict[str, Any]]] = [
        ("validation", any(c.validation.notna().any() for c in curves), {"linewidth": 1.4}),
        ("training", any(c.train.notna().any() for c in curves), {"linestyle": "--"}),
        (
            "kept",
            any(c.best is not None for c in curves),
            {"linestyle": ":", "marker": "o", "markeredgecolor": paper()},
        ),
    ]
    handles = [Line2D([], [], color=grey, label=name, **{"linewidth": 1, **how}) for name, there, how in kinds if there]
    handles += [Line2D([], [], color=tone(k), linewidth=3, label=n) for k, n in enumerate(names)]
    # beside the last panel, where it hides no curve
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
    ax.legend(handles=handles, fontsize=STYLE.tick_size, frameon=False, **place)

"""The page: its parts as plain values, and how they become HTML."""

from __future__ import annotations

import base64
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import Any

from stmsi._report._card import card_tables
from stmsi._report._table import Table
from stmsi._settings import logger

_DATA = ("anndata", "spatialdata", "scanpy", "squidpy", "numpy", "pandas")
_PACKAGES = ("stmsi", *_DATA, "scikit-learn", "scvi-tools", "torch")
_DPI = 110
_WIDE = 700
"""Pixels of a picture that is still readable at the width of a phone."""


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows."""

    title: str
    caption: str
    png: bytes

    @cached_property
    def uri(self) -> str:
        """The picture as a part of the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def wide(self) -> bool:
        """Whether the picture would be too small to read on a phone."""
        return int.from_bytes(self.png[16:20], "big") > _WIDE

    @classmethod
    def drawn(cls, title: str, caption: str, draw: Callable[[], Any]) -> Figure | None:
        """The figure that a plotting function returns; `None`, and a warning, where the data lack what it needs."""
        import matplotlib.pyplot as plt

        try:
            figure = draw()
        except (KeyError, ValueError) as error:
            logger.warning("The report is without the figure %r: %s", title, error)
            return None
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
        plt.close(figure)
        return cls(title, caption, buffer.getvalue())


@dataclass(frozen=True)
class Page:
    """What a report says."""

    title: str
    lead: str
    caution: tuple[str, str]
    """What the reader must know before the first number: a word or two, and the sentences."""
    facts: Mapping[str, str]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    commands: Sequence[tuple[str, str]]
    """How to make it again, and what to do next: a heading and lines to type."""
    card: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """The page; every name and value is escaped."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
        loader = PackageLoader("stmsi._report", ".")
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
        card = card_tables(self.card)
        date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        return environment.get_template("page.html").render(page=self, card=card, versions=versions(), date=date)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results hang on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found

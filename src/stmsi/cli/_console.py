"""Where the command line prints: names from files cannot steer the terminal."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

# control characters but for the line feed, marks that turn the direction of text, and halves of characters
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with its control characters made visible, so that the terminal does not obey them."""
    return _UNPRINTABLE.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Unicode has pictures of the first 32
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


class SafeConsole(Console):
    """A console that sends only text and its own colours to the terminal: names in files may contain control characters."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text as they are printed."""
        for segment in super().render(renderable, options):
            text = segment.text
            if not segment.control and (not text.isascii() or _UNPRINTABLE.search(text)):
                text = printable(text).encode(self.encoding, "replace").decode(self.encoding)
            yield segment if text == segment.text else Segment(text, segment.style)


class WholeLines(RichHandler):
    """Log messages, each on a line of its own however narrow the terminal: paths must stay whole, to copy and to search for."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message after its level."""
        try:
            line = Text.assemble(self.get_level_text(record), " ", self.format(record))
            self.console.print(line, soft_wrap=True)
        except Exception:  # noqa: BLE001  # as every handler of logging does
            self.handleError(record)

"""Render a ``Returns`` section as the prose it is.

Docstrings of stmsi carry no types: annotations do. Napoleon, however, takes the first line of a numpydoc ``Returns``
section for a type. Here the section becomes the body of ``:returns:`` as it stands, and the annotation gives the type.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import NumpyDocstring


def _prose(self: NumpyDocstring, section: str) -> list[str]:
    first, *rest = self._dedent(self._consume_to_next_section()) or [""]
    return [f":returns: {first}", *self._indent(rest, 10), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Replace the parser of the section."""
    NumpyDocstring._parse_returns_section = _prose  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}

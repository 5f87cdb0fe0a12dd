"""Read docstrings as the prose they are.

Docstrings of stmsi carry no types: annotations do. Napoleon, however, takes the first line of a numpydoc ``Returns``
section, and what stands before the first colon of a property's docstring, for a type. Here a ``Returns`` section
becomes the body of ``:returns:`` as it stands, and the docstring of a property is left alone.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import NumpyDocstring


def _returns(self: NumpyDocstring, _section: str) -> list[str]:
    lines = self._dedent(self._consume_to_next_section())
    if lines and lines[0] == ":":  # sphinx-autodoc-typehints puts it there to keep Napoleon from looking for a type
        del lines[0]
    first, *rest = lines or [""]
    return [f":returns: {first}", *self._indent(rest, 10), ""]


def _attribute(self: NumpyDocstring) -> list[str]:
    lines = list(self._lines)
    self._lines.clear()
    return lines


def setup(_app: Sphinx) -> dict[str, Any]:
    """Replace the two parsers."""
    NumpyDocstring._parse_returns_section = _returns  # type: ignore[method-assign]
    NumpyDocstring._parse_attribute_docstring = _attribute  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}

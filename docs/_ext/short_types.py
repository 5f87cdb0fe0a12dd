"""Write types as users do: ``ArrayLike`` and ``NDArray[float64]`` unexpanded, classes under their public name."""

import sys
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx_autodoc_typehints import format_annotation

_ARRAY_LIKE = set(get_args(ArrayLike))


def _public_name(cls: type) -> str:
    """Shortest path of loaded modules from which a class can be imported."""
    parts = cls.__module__.split(".")
    for n in range(1, len(parts)):
        home = ".".join(parts[:n])
        if getattr(sys.modules.get(home), cls.__name__, None) is cls:
            return f"{home}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True)  # Sphinx compares and pickles its configuration: a function would not do
class ShortTypes:
    """Called for each annotation; `None` leaves it to sphinx-autodoc-typehints."""

    def __call__(self, annotation: Any, config: Config) -> str | None:
        args = get_args(annotation)
        if set(args) >= _ARRAY_LIKE:
            others = [format_annotation(arg, config) for arg in args if arg not in _ARRAY_LIKE]
            return " | ".join([":py:data:`~numpy.typing.ArrayLike`", *others])
        if get_origin(annotation) is np.ndarray and get_origin(args[-1]) is np.dtype:
            return rf":py:data:`~numpy.typing.NDArray`\ \[{format_annotation(get_args(args[-1])[0], config)}]"
        if isinstance(annotation, type) and not args and annotation.__module__ != "builtins":
            return f":py:class:`~{_public_name(annotation)}`"
        return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Hand the formatter to sphinx-autodoc-typehints."""
    app.config.typehints_formatter = ShortTypes()
    return {"parallel_read_safe": True, "parallel_write_safe": True}

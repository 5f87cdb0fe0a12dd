"""Module attributes that are imported when they are first asked for (PEP 562)."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(
    package: str, *, submodules: Iterable[str] = (), names: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose parts load on first use.

    Parameters
    ----------
    package
        ``__name__`` of the package.
    submodules
        Submodules reachable as attributes.
    names
        Public name -> submodule that defines it, or the full name of a module elsewhere in stmsi.

    Returns
    -------
    The two functions; the value found is kept in the package, so that the second access is an ordinary one.
    """
    modules, origin = set(submodules), dict(names or {})

    def getattr_(name: str) -> Any:
        if name in modules:
            value = import_module(f"{package}.{name}")
        elif name in origin:
            value = getattr(
                import_module(origin[name] if origin[name].startswith("stmsi.") else f"{package}.{origin[name]}"), name
            )
        else:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *origin})

    return getattr_, dir_


def missing_extra(package: str, extra: str) -> ImportError:
    """The error for an optional package that is not installed, with the line that installs it."""
    return ImportError(
        f'{package!r} is not installed. Install the extra of stmsi that brings it: pip install "stmsi[{extra}]", or ".[{extra}]" in a clone.'
    )

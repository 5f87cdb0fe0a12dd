"""Document the members that stmsi defines, and only name those that its classes take over from other packages.

A model inherits dozens of methods from scvi-tools and scikit-learn. They are documented there.
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sphinx.application import Sphinx


def _home(member: Any) -> str:
    """Module that defines a member; empty for plain values, of which that cannot be told."""
    member = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
    if not (callable(member) or inspect.isroutine(member)):
        return ""
    return getattr(inspect.unwrap(member), "__module__", None) or ""


def _foreign(member: Any) -> bool:
    home = _home(member)
    return bool(home) and home.partition(".")[0] != "stmsi"


@dataclass(frozen=True)
class TakenOver:
    """Called in the class template: public members of a class that another package defines."""

    def __call__(self, fullname: str) -> list[str]:
        module, _, name = fullname.rpartition(".")
        cls = getattr(import_module(module), name)
        names = (name for name in dir(cls) if not name.startswith("_"))
        return [name for name in names if _foreign(inspect.getattr_static(cls, name, None))]


@dataclass(frozen=True)
class NotOffered:
    """Called in the class template: inherited calls that a class refuses, as their docstring says."""

    def __call__(self, fullname: str) -> list[str]:
        module, _, name = fullname.rpartition(".")
        cls = getattr(import_module(module), name)
        return [name for name in dir(cls) if not name.startswith("_") and _refused(cls, name)]


def _refused(cls: type, name: str) -> bool:
    member = inspect.getattr_static(cls, name, None)
    text = getattr(getattr(member, "__func__", member), "__doc__", None)
    return isinstance(text, str) and text.startswith("Not offered")


def _leave_out(_app: Sphinx, what: str, name: str, obj: Any, _skip: object, _options: Any) -> bool | None:
    # with an underscore at the end: what training leaves behind, declared for the type checker
    internal = name.endswith("_") and not name.startswith("_")
    return True if what != "module" and (internal or _foreign(obj)) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to autodoc and to the templates of autosummary."""
    app.connect("autodoc-skip-member", _leave_out)
    app.config.autosummary_context = {"taken_over": TakenOver(), "not_offered": NotOffered()}
    return {"parallel_read_safe": True, "parallel_write_safe": True}

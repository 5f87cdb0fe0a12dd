"""The sections that the docstrings of all scores share: one text for each argument, whatever the score."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

ARGUMENTS = {
    "truth": "Measured intensities, shape (spots, metabolites). Pairs with NaN are left out.",
    "prediction": "Predicted intensities, likewise.",
    "reference": "Training mean of each metabolite, shape (metabolites,); `None`: the mean of `truth`.",
    "present": "1 present, 0 absent, NaN not covered; shape (spots, metabolites). Pairs with NaN are left out.",
    "called": "1 called present, 0 called absent, likewise.",
    "score": "Anything that rises with the chance of presence, likewise.",
    "probability": "Probability of presence, likewise.",
    "n_bins": "Most bins.",
    "values": "Intensities, shape (spots, metabolites); NaN are left out.",
    "genes": "Normalised expression, shape (spots, genes), dense or sparse.",
    "group": "Group of each spot (cluster, region, section); spots without one (`None`, NaN) are left out.",
    "alpha": "False discovery rate.",
    "xy": "Positions of the spots of one section, shape (spots, 2).",
    "graph": 'Neighbours of each spot, shape (spots, spots), such as ``obsp["spatial_connectivities"]``.',
    "share": "Share of the spots that are hot, between 0 and 1.",
}


def documented(returned: str | None = None) -> Callable[[_F], _F]:
    """Write the sections Parameters and Returns into the docstring of a score, before its other sections.

    A score returns one number for each metabolite; `returned` says where NaN. `None`: the docstring says what returns.
    """

    def write(function: _F) -> _F:
        if function.__doc__ is None:  # python -OO
            return function
        names = inspect.signature(function).parameters
        parameters = "\n".join(f"{name}\n    {ARGUMENTS[name]}" for name in names)
        sections = f"Parameters\n----------\n{parameters}\n\n"
        if returned is not None:
            sections += f"Returns\n-------\nShape (metabolites,); {returned}.\n\n"
        head, heading, rest = re.split(r"^(\w+\n-+\n)", inspect.getdoc(function) or "", maxsplit=1, flags=re.MULTILINE)
        function.__doc__ = head + sections + heading + rest
        return function

    return write

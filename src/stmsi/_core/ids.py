"""Identifiers that every storage format accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNSAFE = re.compile(r"[^0-9A-Za-z_.-]+")


def safe_ids(names: Iterable[object]) -> list[str]:
    """Unique names made of letters, digits, ``_ . -`` only, in the order given.

    Lipid names such as ``PC(34:1)`` or ``18:1/16:0`` cannot name a column in a zarr store; their safe id can.
    Names that are safe and unique (whatever their case, as some file systems need) are kept as they are; the others get
    a running number where they clash.

    Parameters
    ----------
    names
        Readable names.

    Returns
    -------
    One id per name.

    Examples
    --------
    >>> safe_ids(["PC(34:1)", "PC 34:1", "lactate"])
    ['PC_34_1', 'PC_34_1_2', 'lactate']
    """
    readable = [str(name) for name in names]
    base = [_UNSAFE.sub("_", name).strip("_.") or "feature" for name in readable]
    kept = {name.lower() for name, b in zip(readable, base, strict=True) if name == b}
    seen: set[str] = set()
    ids = []
    for name, candidate in zip(readable, base, strict=True):
        unique, n = candidate, 1
        while unique.lower() in seen or (unique != name and unique.lower() in kept):
            n += 1
            unique = f"{candidate}_{n}"
        seen.add(unique.lower())
        ids.append(unique)
    return ids

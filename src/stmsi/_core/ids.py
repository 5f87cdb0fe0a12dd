"""Identifiers that every storage format accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNSAFE = re.compile(r"[^0-9A-Za-z_.-]+")


def safe_ids(names: Iterable[object]) -> list[str]:
    """Unique names made of letters, digits, ``_ . -`` only, such as zarr stores take, in the order given.

    Names that are safe and unique whatever their case stay as they are; the others get a number where they clash.
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

"""Which ions of different m/z lists are the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_TIE = 0.1
"""Difference of two distances, as a share of the tolerance, below which neither candidate is the nearer one."""


def match_ions(
    mz: Sequence[NDArray[np.float64]],
    kinds: Sequence[Sequence[Sequence[Hashable]]],
    names: Sequence[Sequence[str]],
    ppm: float,
) -> tuple[list[NDArray[np.int64]], list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]]:
    """Group the ions of several m/z lists (NaN: unknown), at most one of each list in a group.

    Pairs from different lists are joined from the nearest to the farthest, those of one name first, unless their
    `kinds` (adduct, polarity, formula; empty agrees with any) differ or two ions of a group would be farther apart than
    `ppm`. So the order of the lists does not count.

    Returns the group of each ion, one array a list, and `ties` ``(ion, candidate, candidate)``, each (list, position):
    two ions of one list that are equally near to an ion of another.
    """
    owner = np.concatenate([np.full(len(m), k) for k, m in enumerate(mz)]) if len(mz) else np.empty(0, np.int64)
    position = np.concatenate([np.arange(len(m)) for m in mz]).astype(np.int64)
    mass = np.concatenate([np.asarray(m, dtype=np.float64) for m in mz])
    kind = [tuple(k) for one in kinds for k in one]
    name = [n for one in names for n in one]
    pairs = _candidates(owner, mass, kind, name, ppm)

    group = np.arange(len(mass))
    members = {i: [i] for i in range(len(mass))}
    for _, _, a, b in pairs:
        one, other = members[group[a]], members[group[b]]
        if group[a] == group[b] or {owner[i] for i in one} & {owner[i] for i in other}:
            continue
        if any(not _agree(mass[i], mass[j], kind[i], kind[j], ppm) for i in one for j in other):
            continue
        keep, drop = sorted((int(group[a]), int(group[b])))
        members[keep] = members[keep] + members.pop(drop)
        group[members[keep]] = keep
    ties = _ties(pairs, owner, position, group, ppm)
    number = {g: n for n, g in enumerate(dict.fromkeys(group.tolist()))}
    numbers = np.array([number[g] for g in group.tolist()], dtype=np.int64)
    return [numbers[owner == k] for k in range(len(mz))], ties


def _agree(a: float, b: float, kind_a: tuple[Hashable, ...], kind_b: tuple[Hashable, ...], ppm: float) -> bool:
    """Whether two ions can be one; m/z that are not known contradict nothing."""
    near = not abs(a - b) > ppm * 1e-6 * min(a, b)
    return near and compatible(kind_a, kind_b)


def compatible(a: Sequence[Hashable], b: Sequence[Hashable]) -> bool:
    """Whether what is known of two ions agrees; empty entries agree with any."""
    return all(not x or not y or x == y for x, y in zip(a, b, strict=True))


def _candidates(
    owner: NDArray[np.int64], mass: NDArray[np.float64], kind: list[tuple[Hashable, ...]], name: list[str], ppm: float
) -> list[tuple[bool, float, int, int]]:
    """Pairs that can be one ion: whether by m/z alone, relative distance (ppm), ions; the best first."""
    pairs = []
    order = np.argsort(mass, kind="stable")
    order = order[~np.isnan(mass[order])]
    last = np.searchsorted(mass[order], mass[order] * (1 + ppm * 1e-6), side="right")
    for i, end in enumerate(last):
        for j in range(i + 1, end):
            a, b = sorted((int(order[i]), int(order[j])))
            if owner[a] != owner[b] and _agree(mass[a], mass[b], kind[a], kind[b], ppm):
                distance = 1e6 * abs(mass[a] - mass[b]) / min(mass[a], mass[b])
                pairs.append((name[a] != name[b], float(distance), a, b))
    unknown = {i for i in range(len(mass)) if np.isnan(mass[i])}
    by_name: dict[str, list[int]] = {}
    for i, n in enumerate(name):
        by_name.setdefault(n, []).append(i)
    for same in by_name.values():
        for a in same:
            pairs += [
                (False, 0.0, a, b)
                for b in same
                if a < b and owner[a] != owner[b] and {a, b} & unknown and _agree(0.0, 0.0, kind[a], kind[b], ppm)
            ]
    return sorted(pairs)


def _ties(
    pairs: list[tuple[bool, float, int, int]],
    owner: NDArray[np.int64],
    position: NDArray[np.int64],
    group: NDArray[np.int64],
    ppm: float,
) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """Pairs that were joined by m/z although another ion of the same list was as near."""
    near: dict[tuple[int, int], list[tuple[float, int]]] = {}
    named = {i for by_mass, _, a, b in pairs if not by_mass and group[a] == group[b] for i in (a, b)}
    for _, distance, a, b in pairs:
        near.setdefault((a, int(owner[b])), []).append((distance, b))
        near.setdefault((b, int(owner[a])), []).append((distance, a))
    ties = []
    for (ion, _), candidates in near.items():
        joined = [(d, c) for d, c in candidates if group[c] == group[ion] and not (c in named and ion in named)]
        for d, c in joined:
            for other_d, other in candidates:
                if other != c and other not in named and abs(other_d - d) < _TIE * ppm:
                    ties.append(tuple((int(owner[i]), int(position[i])) for i in (ion, c, other)))
    return ties  # type: ignore[return-value]

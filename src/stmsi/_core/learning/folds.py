"""Folds inside the training data that keep neighbours together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.blocks import deal_out
from stmsi._core.spatial.sections import rows_of_each

_MIN_GROUPS = 3


def inner_groups(sample: NDArray[np.str_], xy: Floats | None, *, n_groups: int = 5, seed: int = 0) -> Ints:
    """Group 0, 1, ... of each spot for inner cross-validation, two groups at least and `n_groups` at most.

    Groups are whole sections, or with fewer than three sections spatial blocks, which need positions (spots, 2).
    Raises ValueError where positions are missing or spots are too few.
    """
    names, code = np.unique(sample, return_inverse=True)
    if len(names) >= _MIN_GROUPS:
        # spread the sections over the groups by size, largest first
        size = np.bincount(code)
        return deal_out(size, np.argsort(-size, kind="stable"), min(n_groups, len(names)))[code]
    if xy is None:
        msg = (
            f"With {len(names)} section(s) the inner folds are spatial blocks, which need the spots' positions in "
            'obsm["spatial"].'
        )
        raise ValueError(msg)
    per_section = int(np.ceil(n_groups / len(names)))
    group = np.zeros(len(sample), np.int64)
    for s, own in enumerate(rows_of_each(code)):
        k = min(per_section, len(own))
        block = KMeans(k, n_init=3, random_state=seed).fit_predict(np.nan_to_num(xy[own])) if k > 1 else 0
        group[own] = s * per_section + block
    group = np.unique(group, return_inverse=True)[1]
    if group.max(initial=0) < 1:
        msg = f"{len(sample)} spot(s) cannot be split for inner cross-validation; train on more spots or sections."
        raise ValueError(msg)
    return group


def random_groups(n: int, *, n_groups: int = 5, seed: int = 0) -> Ints:
    """Group of each of n observations that have no place and no section, of equal size and drawn at random."""
    if n < _MIN_GROUPS:
        msg = f"{n} observation(s) cannot be split for inner cross-validation; train on three at least."
        raise ValueError(msg)
    return np.random.default_rng(seed).permutation(np.arange(n) % min(n_groups, n))


def held_out_group(sample: NDArray[np.str_], xy: Floats | None, measured: Bools, *, seed: int = 0) -> Bools:
    """Mask of one group of spots to hold out, the first of :func:`inner_groups`.

    Every metabolite, `measured` of shape (spots, metabolites), keeps spots to learn from: of a section that alone measured
    one, only one spatial block is held out, where positions are known.
    """
    out = inner_groups(sample, xy, seed=seed) == 0
    lost = measured[out].any(axis=0) & ~measured[~out].any(axis=0)
    if xy is not None:
        for section in np.unique(sample[measured[:, lost].any(axis=1)]):
            own = np.flatnonzero(sample == section)
            if len(own) > 1:
                out[own] = inner_groups(sample[own], xy[own], seed=seed) == 0
    return out


def groups_where_measured(
    sample: NDArray[np.str_], xy: Floats | None, groups: Ints, measured: Bools, *, n_groups: int = 5, seed: int = 0
) -> Ints | None:
    """Groups for a metabolite that was measured in one of the `groups` only, where no fold could be trained.

    -1 for spots where it was not `measured`. `None` where `groups` serve, or where no others can be made.
    """
    known = np.flatnonzero(measured)
    if len(known) < 2 or len(np.unique(groups[known])) > 1:
        return None
    if xy is None and len(np.unique(sample[known])) < _MIN_GROUPS:
        return None
    own = np.full(len(groups), -1, np.int64)
    own[known] = inner_groups(sample[known], None if xy is None else xy[known], n_groups=n_groups, seed=seed)
    return own


def held_out_units(sample: NDArray[np.str_], groups: Ints) -> Ints:
    """Number of each spot's section, or of its part in one group where a section is split over several groups.

    Parts of one section are predicted by different models, and a group can hold several sections.
    """
    section = np.unique(sample, return_inverse=True)[1]
    return np.unique(section * (int(groups.max(initial=0)) + 1) + groups, return_inverse=True)[1]


def sections_or_blocks(sample: NDArray[np.str_], xy: Floats | None, *, seed: int = 0) -> Ints:
    """Number of each spot's section, or with fewer than three sections of its spatial block.

    Sections stay whole without positions, and where spots are too few for blocks.
    """
    section = np.unique(sample, return_inverse=True)[1]
    if xy is None or section.max(initial=0) + 1 >= _MIN_GROUPS or len(sample) < 2:
        return section
    return held_out_units(sample, inner_groups(sample, xy, seed=seed))

"""Folds inside the training data that keep neighbours together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

_MIN_GROUPS = 3


def inner_groups(
    sample: NDArray[np.str_], xy: NDArray[np.float64] | None, *, n_groups: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Group of each spot for inner cross-validation: whole sections, or spatial blocks where there are few sections.

    Parameters
    ----------
    sample
        Section of each spot.
    xy
        Positions, shape (spots, 2); needed with fewer than three sections.
    n_groups
        Groups at most.
    seed
        For the blocks.

    Returns
    -------
    Group numbers 0, 1, ..., shape (spots,); at least two groups.

    Raises
    ------
    ValueError
        Fewer than three sections and no positions, or too few spots to make two groups.
    """
    names, code = np.unique(sample, return_inverse=True)
    if len(names) >= _MIN_GROUPS:
        # spread the sections over the groups by size, largest first
        order = np.argsort(-np.bincount(code), kind="stable")
        load = np.zeros(min(n_groups, len(names)))
        group_of = np.empty(len(names), np.int64)
        for section in order:
            group_of[section] = load.argmin()
            load[group_of[section]] += (code == section).sum()
        return group_of[code]
    if xy is None:
        msg = (
            f"With {len(names)} section(s) the inner folds are spatial blocks, which need the spots' positions in "
            'obsm["spatial"].'
        )
        raise ValueError(msg)
    per_section = int(np.ceil(n_groups / len(names)))
    group = np.zeros(len(sample), np.int64)
    for s in range(len(names)):
        own = np.flatnonzero(code == s)
        k = min(per_section, len(own))
        if k > 1:
            block = KMeans(k, n_init=3, random_state=seed).fit_predict(np.nan_to_num(xy[own]))
        else:
            block = np.zeros(len(own), np.int64)
        group[own] = s * per_section + block
    group = np.unique(group, return_inverse=True)[1]
    if group.max(initial=0) < 1:
        msg = f"{len(sample)} spot(s) cannot be split for inner cross-validation; train on more spots or sections."
        raise ValueError(msg)
    return group


def held_out_group(
    sample: NDArray[np.str_], xy: NDArray[np.float64] | None, measured: NDArray[np.bool_], *, seed: int = 0
) -> NDArray[np.bool_]:
    """One group of spots to hold out, of which every metabolite keeps spots to learn from.

    The first group of :func:`inner_groups`. Of a section that alone measured some metabolite, one spatial block is held
    out instead of the whole, where positions are known.

    Parameters
    ----------
    sample, xy, seed
        As for :func:`inner_groups`.
    measured
        Whether each spot has a measurement of each metabolite, shape (spots, metabolites).

    Returns
    -------
    Mask, shape (spots,).
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
    sample: NDArray[np.str_],
    xy: NDArray[np.float64] | None,
    groups: NDArray[np.int64],
    measured: NDArray[np.bool_],
    *,
    n_groups: int = 5,
    seed: int = 0,
) -> NDArray[np.int64] | None:
    """Groups for a metabolite that was measured in one group only, with which no fold could be trained.

    Parameters
    ----------
    sample, xy, n_groups, seed
        As for :func:`inner_groups`.
    groups
        Groups of all metabolites.
    measured
        Spots that have a measurement of this one, shape (spots,).

    Returns
    -------
    Its own groups, -1 where it was not measured; `None` where `groups` serve, or where no others can be made.
    """
    known = np.flatnonzero(measured)
    if len(known) < 2 or len(np.unique(groups[known])) > 1:
        return None
    if xy is None and len(np.unique(sample[known])) < _MIN_GROUPS:
        return None
    own = np.full(len(groups), -1, np.int64)
    own[known] = inner_groups(sample[known], None if xy is None else xy[known], n_groups=n_groups, seed=seed)
    return own


def held_out_units(sample: NDArray[np.str_], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sections, those that are split over several groups in pieces.

    Pieces of one section are predicted by different models, and a group can hold several sections.

    Parameters
    ----------
    sample, groups
        Section and group of inner cross-validation of each spot.

    Returns
    -------
    Numbers 0, 1, ..., shape (spots,).
    """
    section = np.unique(sample, return_inverse=True)[1]
    return np.unique(section * (int(groups.max(initial=0)) + 1) + groups, return_inverse=True)[1]


def sections_or_blocks(sample: NDArray[np.str_], xy: NDArray[np.float64] | None, *, seed: int = 0) -> NDArray[np.int64]:
    """Units of spots that one model predicts: sections, or spatial blocks of them where there are few.

    Parameters
    ----------
    sample, xy, seed
        As for :func:`inner_groups`; without positions, and where spots are too few for blocks, sections stay whole.

    Returns
    -------
    Numbers 0, 1, ..., shape (spots,).
    """
    section = np.unique(sample, return_inverse=True)[1]
    if xy is None or section.max(initial=0) + 1 >= _MIN_GROUPS or len(sample) < 2:
        return section
    return held_out_units(sample, inner_groups(sample, xy, seed=seed))

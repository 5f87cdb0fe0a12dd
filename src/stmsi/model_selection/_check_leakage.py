"""Search of a split for leaks of test spots into training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.arrays import Ints
from stmsi._data.checks import check_choice
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame, sections_of
from stmsi._settings import logger
from stmsi.model_selection._leakage_rules import RULES_OF_DATA, RULES_OF_SETUP
from stmsi.model_selection._leaks import Finding
from stmsi.model_selection._probe import probe as run_probe
from stmsi.model_selection._split import Split
from stmsi.model_selection._value_rules import features, ions, values

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stmsi.model_selection._split import Folds


def check_leakage(
    data: SpatialData | AnnData,
    splitter: Any,
    *,
    setup: Mapping[str, Any] | None = None,
    probe: bool = False,
    on_error: Literal["raise", "warn", "ignore"] = "raise",
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Look for ways in which a model could know its test spots.

    It reads the folds, the fields that the model would use, and what scanpy and stmsi recorded of the steps before. It
    looks into the numbers, too: copies of metabolites share the noise of single spots with them, and steps that were fitted on all
    spots leave means, deviations and ranks. :func:`stmsi.tl.cross_validate` calls it.

    It cannot find a step that left no trace: an embedding without a telling name that is not orthogonal (UMAP, a network),
    copies thinned to less than half of their counts, metabolites under more noise than signal, metabolites smoothed by
    something other than their neighbours or that are never zero, quantile normalisation without a record, and genes chosen by
    their relation to metabolites. See :doc:`/user_guide/evaluation`.

    ================= ============================================================================================
    check             what it finds
    ================= ============================================================================================
    ``overlap``       spots that are trained on and tested
    ``duplicates``    spots of the same or nearly the same counts (a few changed, thinned to half), or repeats of
                      :func:`stmsi.experimental.oversample`, on both sides
    ``pixel``         one MSI pixel that gave the values of spots on both sides
    ``region``        one mean of an MSI region that :func:`stmsi.pp.pair_by_region` gave to observations on both sides
    ``neighbours``    test spots beside training spots: an error where it is most of them, as in a random split
    ``patient``       other sections of a test patient in training
    ``graph``         edges of the graph used between training and test spots
    ``genes``         a table of mostly the genes that were highly variable over all spots
    ``scaling``       expression, features or metabolites scaled by numbers of all spots, or ranked over them
    ``smoothing``     expression or metabolites that were taken over from other spots
    ``normalisation`` expression that is not counts
    ``features``      components fitted on all spots, or predictions, as features
    ``target``        metabolites among the features or genes: also transformed, mixed, averaged or under noise
    ``batch``         intensities corrected for batches on all sections together
    ``imputation``    intensities filled in from over the border of a fold
    ``presence``      limits of presence found from whole sections that lie on both sides
    ``metabolites``   metabolites chosen for their pattern in all sections
    ``clusters``      clusters found on all spots
    ``alignment``     sections aligned by genes and ions that are scored on
    ``probe``         small models that score above chance, with `probe`
    ================= ============================================================================================

    Parameters
    ----------
    data
        SpatialData or its ST table, with mapped MSI. Spots without MSI are left out. It is not changed.
    splitter
        Object with ``split(adata)``, or a sequence of (training, test) indices into the rows of the table.
    setup
        Fields that the model uses, as for ``setup_anndata``; `None`: those of :func:`stmsi.tl.cross_validate`.
    probe
        Also train small models on permuted metabolites, on metabolites moved across their section, and on the features alone,
        and name what scores above chance. It takes seconds, and looks at 3,000 training and test spots of a fold at most.
    on_error
        ``"raise"``: errors are raised, warnings go to the log; ``"warn"``: all go to the log; ``"ignore"``: neither.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.

    Returns
    -------
    One row per finding: ``check``, ``severity`` (``"error"`` or ``"warning"``), ``where``, ``folds`` (numbers), ``share``
    (of the test spots, in the worst fold; NaN where it concerns all), and ``message`` with the remedy.

    Raises
    ------
    ValueError
        A finding is an error (with ``on_error="raise"``).
    KeyError
        Intensities, sections or fields of the splitter are not there.

    Examples
    --------
    >>> import stmsi
    >>> from sklearn.model_selection import KFold
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.model_selection.check_leakage(sdata, stmsi.model_selection.LeaveOneSampleOut()).empty
    True
    >>> found = stmsi.model_selection.check_leakage(sdata, KFold(5, shuffle=True, random_state=0), on_error="ignore")
    >>> found.loc[found["check"] == "neighbours", "severity"].item()
    'error'
    """
    from stmsi.model.shared._setup import default_setup

    check_choice(on_error, ("raise", "warn", "ignore"), "on_error")
    st = get_table(data, table_key)
    fields = {"sample_key": sample_key} | (default_setup(st) if setup is None else dict(setup))
    measured = require_frame(st, fields.get("metabolite_key", Key.obsm.MSI), "stmsi.pp.map_to_spots writes it.")
    sections_of(st, sample_key)
    covered = np.flatnonzero(measured.notna().any(axis=1).to_numpy())
    if hasattr(splitter, "split"):
        adata = st[covered].copy() if len(covered) < st.n_obs else st
        folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(adata)]
    else:
        adata, folds = st, _given(splitter, st.n_obs)
    return report(find_leaks(adata, folds, [fields], msi_table(data), sample_key, st, probe=probe), on_error)


def find_leaks(
    adata: AnnData,
    folds: Folds,
    setups: Iterable[Mapping[str, Any]],
    msi: AnnData | None,
    sample_key: str,
    whole: AnnData | None = None,
    *,
    probe: bool = False,
) -> pd.DataFrame:
    """The findings for models with several setups, each once; `whole` is the table with the spots without MSI."""
    found: dict[tuple[str, str], Finding] = {}
    setups = list(setups)
    known: set[tuple[Any, str]] = set()
    for setup in (one for k, one in enumerate(setups) if one not in setups[:k]):
        split = Split(adata, folds, setup, msi, sample_key, whole)
        of_data = () if (split.layer, split.metabolite_key) in known else (*RULES_OF_DATA, ions, values)
        known.add((split.layer, split.metabolite_key))
        for finding in chain.from_iterable(
            rule(split) for rule in (*of_data, features, *RULES_OF_SETUP, *((run_probe,) if probe else ()))
        ):
            found.setdefault((finding.check, finding.where), finding)
    table = pd.DataFrame(list(found.values()), columns=list(Finding._fields))
    return table.astype({"share": np.float64}).sort_values("severity", kind="stable", ignore_index=True)


def report(found: pd.DataFrame, on_error: str) -> pd.DataFrame:
    """Raise or warn of findings; returns them."""
    if on_error == "ignore":
        return found
    text, errors = [], []
    for check, severity, where, _, share, message in found.itertuples(index=False):
        part = "" if np.isnan(share) else f", {share:.1%} of the test spots"
        text.append(f"{check} ({where}{part}): {message}")
        errors += text[-1:] if severity == "error" else []
    if errors and on_error == "raise":
        msg = "The split leaks:\n- " + "\n- ".join(errors) + "\nPass on_error='warn' to go on all the same."
        raise ValueError(msg)
    for line in text:
        logger.warning("Leakage, %s", line)
    return found


def msi_table(data: Any) -> AnnData | None:
    """The MSI table of a SpatialData, where it has one."""
    return None if isinstance(data, AnnData) else data.tables.get(Key.table.MSI)


def _given(folds: Any, n: int) -> list[tuple[Ints, Ints]]:
    """Folds that are given as indices."""
    if not isinstance(folds, Sequence) or isinstance(folds, str) or not folds or any(len(f) != 2 for f in folds):
        msg = f"Pass a splitter, or a sequence of (training, test) indices; found {type(folds).__name__}."
        raise TypeError(msg)
    checked = []
    for train, test in folds:
        pair = (np.asarray(train, dtype=np.int64), np.asarray(test, dtype=np.int64))
        if any(len(side) == 0 or side.min() < 0 or side.max() >= n for side in pair):
            msg = f"Training and test indices must name some of the {n} spots, 0 to {n - 1}."
            raise ValueError(msg)
        checked.append(pair)
    return checked

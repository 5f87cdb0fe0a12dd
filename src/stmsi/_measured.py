"""What was measured: presence as it was called, or else as the intensities tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._keys import Key
from stmsi._validate import imputed, require_frame

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def presence_key_of(st: AnnData, metabolite_key: str, presence_key: str | None = None) -> str | None:
    """Where the presence that belongs to measured intensities is; `None` where it was not called."""
    if presence_key is None and Key.presence_of(metabolite_key) in st.obsm:
        return Key.presence_of(metabolite_key)
    return presence_key


def measured_presence(st: AnnData, metabolite_key: str, presence_key: str | None = None) -> pd.DataFrame:
    """Measured presence, spots x metabolites: 1 present, 0 absent, NaN not measured; float64.

    Presence that was called counts (of `presence_key`, else ``obsm["<metabolite_key>_presence"]``; metabolites that it does
    not know are left out). Where there is none, intensity above 0 does, and what was filled in and not measured is absent.
    """
    measured = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it. ")
    key = presence_key_of(st, metabolite_key, presence_key)
    if key is None:
        there = (measured > 0) & ~imputed(st, metabolite_key, measured)
    else:
        called = require_frame(st, key, "stmsi.pp.call_presence writes it. ")
        there = called[[m for m in measured.columns if m in called.columns]]
    return there.astype(np.float64).where(measured[list(there.columns)].notna())

"""Measured presence, as scores and plots read it."""

from __future__ import annotations

import numpy as np
import pytest

from stmsi._data.tables import measured_presence, presence_key_of
from stmsi.pl._presence_curves import presence_of


def test_presence_that_was_called_counts(st) -> None:
    assert presence_key_of(st, "msi") == "msi_presence"
    expected = st.obsm["msi_presence"].where(st.obsm["msi"].notna())
    np.testing.assert_array_equal(measured_presence(st, "msi"), expected)
    st.obsm["other"] = 1 - st.obsm["msi_presence"].iloc[:, :4]
    np.testing.assert_array_equal(measured_presence(st, "msi", "other"), 1 - expected.iloc[:, :4])
    st.obsm["rival"] = st.obsm["msi"]
    assert presence_key_of(st, "rival") is None
    with pytest.raises(KeyError, match=r"stmsi\.pp\.call_presence writes it"):
        measured_presence(st, "msi", "nothing")


def test_what_was_imputed_counts_as_absent(st) -> None:
    del st.obsm["msi_presence"]
    y = st.obsm["msi"]
    plain = measured_presence(st, "msi")
    np.testing.assert_array_equal(plain, (y > 0).astype(float).where(y.notna()))
    filled = (y == 0).to_numpy()
    st.obsm["msi_observed"] = ~(y == 0)
    st.obsm["msi"] = y.mask(filled, 2.0)
    np.testing.assert_array_equal(measured_presence(st, "msi"), plain)
    # and so do the curves of presence
    st.obsm["msi_pred_presence"] = y.fillna(0) * 0 + 0.5
    ids, truth, _ = presence_of(st, "msi_pred", "msi", None, None, "sample")
    np.testing.assert_array_equal(truth, plain[list(ids)])

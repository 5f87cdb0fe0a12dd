"""What is read from the tables that users pass: measured presence, and what a table holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from stmsi._data.tables import check_rows_of, measured_presence, presence_key_of
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


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        ({}, "pixels", None),
        ({}, "spots", None),
        (
            {"spatial": True},
            "pixels",
            r"\(it has obsm\['spatial'\] and no place on a raster\).*If these are ions, say so",
        ),
        ({"spatial": True, "names": ["mz-104.107", "mz-760.58"]}, "pixels", None),
        ({"spatial": True, "names": ["104.107", "m/z 760.58"]}, "spots", "it has variables named by m/z"),
        ({"spatial": True, "names": ["ENSG00000012.3", "ENSG00000013.1"]}, "spots", None),
        ({"spatial": True, "mz": True}, "pixels", None),
        ({"spatial": True, "mz": True}, "spots", r"it has var\['mz'\]"),
        ({"gene_ids": True}, "pixels", r"it has var\['gene_ids'\]"),
        ({"raster": True}, "spots", r"it has obs\['row'\] and obs\['col'\]"),
        ({"raster": True, "gene_ids": True}, "spots", None),
    ],
)
def test_what_a_table_looks_like(change, rows, message):
    table = AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=list("abc")))
    table.var_names = change.get("names", ["g1", "g2"])
    if "spatial" in change:
        table.obsm["spatial"] = np.ones((3, 2))
    if "mz" in change:
        table.var["mz"] = [1.0, np.nan]
    if "gene_ids" in change:
        table.var["gene_ids"] = ["a", "b"]
    if "raster" in change:
        table.obs["row"] = table.obs["col"] = [0, 1, 2]
    if message is None:
        check_rows_of(table, "st", rows)
    else:
        with pytest.raises(ValueError, match=message):
            check_rows_of(table, "st", rows)

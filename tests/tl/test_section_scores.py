"""Relations between metabolites, genes and groups in the table of tl.evaluate."""

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import stmsi
from stmsi import metrics
from stmsi._core.learning.expression_space import log_normalize


@pytest.fixture
def predicted(st):
    """Invented predictions of six metabolites: scores do not depend on a model."""
    rng = np.random.default_rng(0)
    measured = st.obsm["msi"].iloc[:, :6]
    st.obsm["msi"], st.obsm["msi_presence"] = measured, st.obsm["msi_presence"].iloc[:, :6]
    noisy = np.maximum(measured.fillna(1) + rng.normal(size=measured.shape), 0).astype(np.float32)
    st.obsm["msi_pred"], st.obsm["msi_pred_presence"] = noisy, (noisy > 0).astype(np.float32)
    st.uns["msi_pred"] = {"features": pd.DataFrame({"training_mean": np.ones(6)}, index=measured.columns)}
    return st


def test_relations_are_scored_within_sections(predicted):
    plain = stmsi.tl.evaluate(predicted)
    table = stmsi.tl.evaluate(predicted, relations=True, groupby="domain")
    added = ["correlation_preserved", "gene_correlation_preserved", "group_agreement", "differential_agreement"]
    assert_frame_equal(table.drop(columns=added), plain)
    assert table.columns[-1] == "reason"
    assert table.loc[table["stage"] == "presence", added].isna().all(axis=None)
    own = table[(table["stage"] == "intensity") & (table["sample"] == "P1S1")].set_index("metabolite")
    rows = ((predicted.obs["sample"] == "P1S1") & predicted.obsm["msi"].notna().any(axis=1)).to_numpy()
    y, p = (predicted.obsm[key][rows].to_numpy(float) for key in ("msi", "msi_pred"))
    domain = predicted.obs["domain"].astype(str)[rows]
    np.testing.assert_allclose(own["correlation_preserved"], metrics.correlation_preserved(y, p))
    np.testing.assert_allclose(own["group_agreement"], metrics.group_agreement(y, p, domain))
    np.testing.assert_allclose(own["differential_agreement"], metrics.differential_agreement(y, p, domain))
    assert predicted.n_vars <= 500, "all genes take part"
    genes = log_normalize(predicted.X[rows])
    np.testing.assert_allclose(own["gene_correlation_preserved"], metrics.gene_correlation_preserved(genes, y, p))


def test_counts_of_a_layer_and_what_is_missing(predicted):
    expected = stmsi.tl.evaluate(predicted, relations=True)
    predicted.layers["counts"] = predicted.X.copy()
    predicted.X = predicted.X * 0
    assert_frame_equal(stmsi.tl.evaluate(predicted, relations=True, layer="counts"), expected)
    with pytest.raises(KeyError, match=r"layer 'raw'.*counts"):
        stmsi.tl.evaluate(predicted, relations=True, layer="raw")
    with pytest.raises(KeyError, match="regions"):
        stmsi.tl.evaluate(predicted, groupby="regions")

"""A table of one section needs no ``obs["sample"]``: everything that follows gives what it gives with one."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi.model_selection import SpatialBlockKFold


@pytest.fixture
def pair(st):
    named = st[(st.obs["sample"] == "P1S1").to_numpy()].copy()
    bare = named.copy()
    del bare.obs["sample"]
    for table in (named, bare):
        stmsi.tl.predict_metabolites(table, "ridge")
    return named, bare


def test_predictions_and_scores(pair):
    named, bare = pair
    pd.testing.assert_frame_equal(named.obsm["msi_pred"], bare.obsm["msi_pred"])
    scores = [stmsi.tl.evaluate(table) for table in pair]
    numbers = [table.select_dtypes("number") for table in scores]
    pd.testing.assert_frame_equal(*numbers)
    folds = [stmsi.tl.cross_validate(table, "mean", splitter=SpatialBlockKFold(2)) for table in pair]
    pd.testing.assert_frame_equal(*(f.select_dtypes("number").drop(columns="seconds") for f in folds))
    assert "sample" not in bare.obs
    np.testing.assert_array_equal(*(t.obsm["msi_pred_presence"] for t in pair))


def test_plots_and_reliability(pair):
    _, bare = pair
    stmsi.tl.reliability(bare)
    stmsi.pl.spatial(bare, bare.obsm["msi"].columns[0])
    stmsi.pl.calibration(bare)
    plt.close("all")

"""Inner folds: what is left out together, and within what predictions are compared."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stmsi.model import HurdleLinear
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._setup import Setup
from stmsi.model.shared._training_data import TrainingData


def folds_of(adata: Any, n_folds: int = 3, train_idx: Any = None, **fields: Any) -> InnerFolds:
    HurdleLinear.setup_anndata(adata, **fields)
    data = TrainingData.read(adata, Setup.read(adata, "HurdleLinear"), train_idx, None)
    return InnerFolds.of(data, n_folds=n_folds, seed=0)


def together(labels: Any, groups: Any) -> bool:
    """Whether everything with the same label is in the same group."""
    return bool(
        (pd.DataFrame({"label": np.asarray(labels), "group": groups}).groupby("label")["group"].nunique() == 1).all()
    )


@pytest.fixture
def six(make_sections):
    """Six sections, two of each of three patients."""
    adata = make_sections([12] * 6)
    adata.obs["patient"] = adata.obs["sample"].map({f"s{i}": f"P{i // 2}" for i in range(6)}).astype("category")
    return adata


def test_patients_stay_whole_and_units_are_sections(six):
    folds = folds_of(six, n_folds=5)
    assert folds.kind == "patients"
    assert together(six.obs["patient"], folds.groups)
    assert len(np.unique(folds.groups)) == 3
    assert together(six.obs["sample"], folds.units)
    assert len(np.unique(folds.units)) == 6
    assert folds.apart == []


def test_without_three_patients_sections_are_left_out(six):
    six.obs["patient"] = np.where(six.obs["sample"].isin(["s0", "s1", "s2"]), "a", "b")
    folds = folds_of(six, n_folds=6)
    assert folds.kind == "sections"
    assert len(np.unique(folds.groups)) == 6
    assert together(six.obs["sample"], folds.groups)


def test_a_patient_that_is_not_known_is_no_patient(six):
    six.obs["patient"] = six.obs["patient"].astype(object).where(six.obs["sample"] != "s0", None)
    assert folds_of(six).kind == "sections"


def test_only_patients_of_training_spots_count(six):
    rows = np.flatnonzero(six.obs["patient"] != "P2")
    folds = folds_of(six, train_idx=rows)
    assert folds.kind == "sections"
    assert len(folds.groups) == len(folds.units) == len(rows)
    six.obs["patient"] = six.obs["patient"].cat.add_categories("P3")
    assert folds_of(six).kind == "patients", "a category that no spot has is no patient"


def test_few_sections_are_split_into_blocks(make_sections):
    adata = make_sections([40, 40])
    folds = folds_of(adata, n_folds=4)
    assert folds.kind == "blocks"
    assert len(np.unique(folds.groups)) == 4
    np.testing.assert_array_equal(folds.units, folds.groups)
    for g in range(4):
        own = folds.groups == g
        assert adata.obs["sample"][own].nunique() == 1


def test_bulk_is_split_at_random_and_says_so(make_sections, caplog):
    adata = make_sections([16], positions=False, graph=False)
    with caplog.at_level(logging.INFO, "stmsi"):
        folds = folds_of(adata, n_folds=4)
    assert folds.kind == "spots"
    assert np.bincount(folds.groups).tolist() == [4, 4, 4, 4]
    assert "inner folds are random" in caplog.text


def test_bulk_with_patients_is_split_by_them(make_sections):
    adata = make_sections([16], positions=False, graph=False)
    adata.obs["patient"] = np.arange(16) // 4
    folds = folds_of(adata, n_folds=4)
    assert folds.kind == "patients"
    assert together(adata.obs["patient"], folds.groups)


def test_one_observation_a_section_is_left_out_by_section(make_sections):
    adata = make_sections([1] * 16, positions=False, graph=False)
    folds = folds_of(adata, n_folds=4)
    assert folds.kind == "sections"
    assert np.bincount(folds.groups).tolist() == [4, 4, 4, 4]


def test_two_observations_cannot_be_split(make_sections):
    adata = make_sections([2], positions=False, graph=False)
    with pytest.raises(ValueError, match=r"2 observation\(s\) cannot be split"):
        folds_of(adata)


def test_metabolites_of_one_section_share_folds_inside_it(make_sections):
    adata = make_sections([30] * 3)
    frame = adata.obsm["msi"].copy()
    frame.loc[adata.obs["sample"] != "s1", ["first", "third"]] = np.nan
    frame.loc[adata.obs["sample"] == "s1", "second"] = np.nan
    adata.obsm["msi"] = frame
    ((columns, own),) = folds_of(adata).apart
    assert columns.tolist() == [0, 2]
    inside = (adata.obs["sample"] == "s1").to_numpy()
    assert (own[~inside] == -1).all()
    assert set(own[inside]) == {0, 1, 2}


def test_metabolites_of_one_patient_are_split_over_its_sections(six):
    frame = six.obsm["msi"].copy()
    frame.loc[six.obs["patient"] != "P1", "first"] = np.nan
    six.obsm["msi"] = frame
    ((columns, own),) = folds_of(six).apart
    assert columns.tolist() == [0]
    assert (own[six.obs["patient"] != "P1"] == -1).all()
    assert (own[six.obs["patient"] == "P1"] >= 0).all()


def test_a_metabolite_whose_spots_cannot_be_split_is_named(make_sections, caplog):
    adata = make_sections([20] * 3, positions=False, graph=False)
    frame = adata.obsm["msi"].copy()
    frame.loc[adata.obs["sample"] != "s1", ["first", "third"]] = np.nan
    adata.obsm["msi"] = frame
    with caplog.at_level(logging.WARNING, "stmsi"):
        assert folds_of(adata).apart == []
    assert "have no held-out predictions: 'first', 'third'" in caplog.text

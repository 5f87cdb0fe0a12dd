"""Every verb that writes works in place, and with copy=True on a copy."""

import inspect
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import issparse
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

import stmsi

RETURN_SOMETHING_ELSE = {"combine", "alignment_report", "pair_by_region"}
VERBS = {
    "add_metabolites": {"frame": "truth_intensity"},
    "align": {"model": "thin_plate", "n_perturb": 2},
    "annotate_mz": {"polarity": "positive", "ppm": 5e4},
    "call_presence": {"method": "detected"},
    "correct_batch": {"method": "rank"},
    "filter_metabolites": {"min_prevalence": 0.3},
    "gene_signatures": {"cluster_key": "domain", "n_genes": 5},
    "impute_dropout": {"n_rings": 2},
    "knowledge_prior": {"table": {"simPC(28:0)": ["SIMG0001", "SIMG0007"]}},
    "map_to_spots": {"method": "nearest", "replicates": True},
    "normalize_msi": {"method": "rms"},
    "pick_peaks": {"tolerance": 0.01, "unit": "Da", "snr": 1e-6, "profile": False},
    "select_spatially_variable": {"n_top": 3, "subset": True},
    "spatial_graph": {"n_rings": 2},
}


def content(value):
    """All that a SpatialData holds, as nested dictionaries of lists."""
    if isinstance(value, SpatialData):
        shapes = {name: shape.geometry.to_wkb().tolist() for name, shape in value.shapes.items()}
        frames = {
            name: {frame: str(t) for frame, t in get_transformation(element, get_all=True).items()}
            for kind, name, element in value.gen_elements()
            if kind != "tables"
        }
        return {"tables": content(dict(value.tables)), "shapes": shapes, "frames": frames}
    if isinstance(value, AnnData):
        fields = ("X", "obs", "var", "obsm", "varm", "obsp", "layers", "uns")
        return {field: content(getattr(value, field)) for field in fields}
    if isinstance(value, Mapping):
        return {key: content(part) for key, part in value.items()}
    if isinstance(value, pd.DataFrame):
        return {"index": list(value.index)} | {name: content(np.asarray(value[name])) for name in value}
    if issparse(value):
        return content(value.toarray())
    if isinstance(value, np.ndarray):
        return (
            str(value.dtype),
            value.shape,
            value.tobytes() if value.dtype.kind in "biuf" else list(map(str, value.flat)),
        )
    return str(value)


def test_every_verb_that_writes_has_copy():
    assert set(VERBS) == set(stmsi.pp.__all__) - RETURN_SOMETHING_ELSE
    for name in VERBS:
        copy = inspect.signature(getattr(stmsi.pp, name)).parameters["copy"]
        assert copy.default is False
        assert copy.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", VERBS)
def test_in_place_and_on_a_copy(mapped: SpatialData, name: str):
    verb, options = getattr(stmsi.pp, name), VERBS[name]
    mapped.tables["msi"].var["mz"] = [100.0 + i for i in range(mapped.tables["msi"].n_vars)]
    before = content(mapped)
    changed = verb(mapped, **options, copy=True)
    assert content(mapped) == before
    assert verb(mapped, **options) is None
    assert content(mapped) == content(changed) != before


ON_PIXELS = ("annotate_mz", "filter_metabolites", "normalize_msi", "pick_peaks", "select_spatially_variable")
ON_SPOTS = ("add_metabolites", "call_presence", "correct_batch", "gene_signatures", "impute_dropout", "spatial_graph")
"""Verbs that take a table alone, by what they work on."""


def _tables(mapped):
    mapped.tables["msi"].var["mz"] = [100.0 + i for i in range(mapped.tables["msi"].n_vars)]
    return mapped.tables["st"], mapped.tables["msi"]


@pytest.mark.parametrize("name", [*ON_PIXELS, *ON_SPOTS, "knowledge_prior"])
def test_the_wrong_table_is_refused(mapped: SpatialData, name: str):
    """Genes are no ions: to normalise them as such would go unnoticed."""
    st, msi = _tables(mapped)
    verb, options = getattr(stmsi.pp, name), VERBS[name]
    wrong, right, found = (st, "pixels x ions", "st") if name in ON_PIXELS else (msi, "spots x genes", "msi")
    before = content(mapped)
    with pytest.raises(ValueError, match=f"Expected a table of {right}.*The AnnData looks like"):
        verb(wrong, **options)
    with pytest.raises(ValueError, match=f"Table '{found}' looks like .*by its table key; tables: "):
        verb(mapped, table_key=found, **options)
    assert content(mapped) == before


@pytest.mark.parametrize("name", [*ON_PIXELS, *ON_SPOTS])
def test_views_are_copied_with_a_notice(mapped: SpatialData, name: str, caplog):
    st, msi = _tables(mapped)
    table = msi if name in ON_PIXELS else st
    before = content(table)
    view = table[(table.obs["sample"] != "P3S1").to_numpy()]
    getattr(stmsi.pp, name)(view, **VERBS[name])
    assert not view.is_view
    assert "was a view of another one" in caplog.text
    assert content(table) == before
    assert content(view) != content(table[(table.obs["sample"] != "P3S1").to_numpy()].copy())


@pytest.mark.parametrize("name", [n for n in (*ON_PIXELS, *ON_SPOTS) if n != "correct_batch"])
def test_one_section_needs_no_name(mapped: SpatialData, name: str):
    st, msi = _tables(mapped)
    table = msi if name in ON_PIXELS else st
    table = table[(table.obs["sample"] == "P1S1").to_numpy()].copy()
    bare = table.copy()
    del bare.obs["sample"]
    for one in (table, bare):
        getattr(stmsi.pp, name)(one, **VERBS[name])
    named, unnamed = content(table), content(bare)
    for field in ("X", "var", "obsm", "obsp", "layers"):
        assert named[field] == unnamed[field], field


def test_other_columns_of_sections_are_not_guessed(mapped: SpatialData):
    with pytest.raises(KeyError, match="obs has no column 'slide'"):
        stmsi.pp.spatial_graph(mapped.tables["st"], sample_key="slide")

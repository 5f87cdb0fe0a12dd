"""Training spots are found again under other names, among others, on other scales; other spots are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stmsi._core.learning.expression_space import log_normalize
from stmsi.model.shared import _training_spots
from stmsi.model.shared._imputation import Imputation
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._training_spots import TrainingSpots, marks_of

N_SPOTS, N_GENES = 80, 120


def make_spots(seed: int, sample: str, n_genes: int = N_GENES, mean: float = 1.5) -> Spots:
    """Spots of one section; names and positions are the same in all sections, as on one kind of slide."""
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(mean, (N_SPOTS, n_genes)).astype(np.float32))
    xy = np.stack(np.divmod(np.arange(N_SPOTS), 10), axis=1).astype(float)
    names = pd.Index([f"AAAC{i}-1" for i in range(N_SPOTS)])
    return Spots(names, counts, xy=xy, sample=np.full(N_SPOTS, sample, dtype=object))


def lacking(spots: Spots, genes: np.ndarray) -> Spots:
    """The same without some genes."""
    cut = spots.counts.tolil()
    cut[:, genes] = 0
    filled = Imputation(genes, np.zeros(spots.counts.shape[1], np.float32), "counts")
    return replace(spots.with_counts(sp.csr_matrix(cut)), imputed=filled)


def marks(seen: TrainingSpots, spots: Spots) -> np.ndarray:
    return marks_of(seen.compare(spots), spots.sample)


@pytest.fixture(scope="module")
def trained() -> Spots:
    return make_spots(0, "P1")


@pytest.fixture(scope="module")
def seen(trained) -> TrainingSpots:
    return TrainingSpots.of(trained, np.arange(60))


def test_the_spots_themselves(trained, seen):
    assert marks(seen, trained).tolist() == ["yes"] * 60 + ["no"] * 20


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, names=pd.Index([f"spot {i}" for i in range(len(s))])),
        lambda s: replace(s, sample=np.full(len(s), "other", dtype=object)),
        lambda s: replace(s, sample=None, xy=None),
        lambda s: s.with_counts(log_normalize(s.counts)),
    ],
    ids=["names", "section", "no section", "logarithms"],
)
def test_renamed_and_transformed(trained, seen, change):
    assert marks(seen, change(trained)).tolist() == ["yes"] * 60 + ["no"] * 20


def test_subsets_in_another_order(trained, seen):
    rows = np.array([70, 3, 59, 61, 0])
    assert marks(seen, trained.take(rows)).tolist() == ["no", "yes", "yes", "no", "yes"]


def test_another_section_with_the_same_barcodes(seen):
    assert set(marks(seen, make_spots(1, "P2"))) == {"no"}


def test_other_expression_in_the_same_place_is_not_known(seen):
    assert marks(seen, make_spots(1, "P1")).tolist() == ["unknown"] * 60 + ["no"] * 20


def test_genes_of_some_sets_are_missing(trained, seen):
    cut = lacking(trained, np.concatenate([g[:1] for g in seen.genes[:3]]))
    assert marks(seen, cut).tolist() == ["yes"] * 60 + ["no"] * 20


def test_genes_of_all_sets_are_missing(trained, seen):
    """Section, name and position decide; nothing is said of others."""
    genes = np.concatenate([g[:1] for g in seen.genes])
    assert marks(seen, lacking(trained, genes)).tolist() == ["yes"] * 60 + ["unknown"] * 20
    renamed = replace(trained, sample=np.full(N_SPOTS, "other", dtype=object))
    assert set(marks(seen, lacking(renamed, genes))) == {"unknown"}


def test_spots_without_expression_are_as_the_rest_of_their_section(trained, seen):
    empty = trained.counts.copy().tolil()
    empty[[5, 70]] = 0
    found = marks(seen, trained.with_counts(sp.csr_matrix(empty)))
    assert found[5] == "yes"  # by its place
    assert found[70] == "unknown"  # the section was trained on in part
    other = make_spots(1, "P2")
    empty = other.counts.copy().tolil()
    empty[7] = 0
    assert set(marks(seen, other.with_counts(sp.csr_matrix(empty)))) == {"no"}


def test_sections_are_told_apart_and_none_is_one():
    nothing, same, other, changed, place = range(5)
    found = np.array([nothing, same, nothing, other, nothing, place, nothing, changed, nothing, same, other], np.int8)
    section = np.array(["a", "a", "b", "b", None, None, "d", "d", "e", "e", "e"], dtype=object)
    said = ["yes", "yes", "no", "no", "unknown", "yes", "unknown", "unknown", "unknown", "yes", "no"]
    assert marks_of(found, section).tolist() == said
    assert marks_of(found[2:4], None).tolist() == ["no", "no"]
    assert marks_of(found[:1], None).tolist() == ["unknown"], "nothing is known of the section"


def test_few_genes_leave_the_place():
    spots = make_spots(0, "P1", n_genes=5)
    seen = TrainingSpots.of(spots)
    assert set(marks(seen, spots)) == {"yes"}
    assert set(marks(seen, make_spots(1, "P2", n_genes=5))) == {"unknown"}


def test_training_that_goes_on_adds_spots(trained, seen):
    both = seen.with_others(make_spots(2, "P3"))
    assert marks(both, trained).tolist() == marks(seen, trained).tolist()
    assert set(marks(both, make_spots(2, "P3"))) == {"yes"}
    assert set(marks(both, make_spots(1, "P2"))) == {"no"}


def test_the_size_is_bounded(trained, monkeypatch):
    """Of more spots the smallest hashes are kept: these spots are told, and stand for their section."""
    monkeypatch.setattr(_training_spots, "MOST", 20)
    seen = TrainingSpots.of(trained)
    assert [len(k) for k in (*seen.profiles, seen.places)] == [20] * (len(seen.profiles) + 1)
    assert set(marks(seen, trained)) == {"yes"}
    assert set(marks(seen, make_spots(1, "P2"))) == {"no"}

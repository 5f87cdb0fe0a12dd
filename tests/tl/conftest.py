"""What the tests of verbs on sections share: a spy on cross-validation, and mapped sections of three patients."""

from __future__ import annotations

from typing import Any

import pytest
from anndata import AnnData

import stmsi
from stmsi.tl import _cross_validate


@pytest.fixture(scope="session")
def three_patients() -> AnnData:
    """Three aligned and mapped sections with a graph, none with called presence: not to be changed."""
    sdata = stmsi.datasets.simulate(
        n_patients=3, sections_per_patient=1, n_genes=200, n_metabolites=12, size=2200, rng=3
    )
    stmsi.pp.normalize_msi(sdata)
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.spatial_graph(sdata)
    return sdata.tables["st"]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each fit of a cross-validation trained on and predicted, in their order.

    ``adata`` is the object that was handed to the training, ``train`` a copy from before it, ``shared`` whether the fold reads
    what all folds share, ``test`` the section of each test spot.
    """
    done: list[dict[str, Any]] = []
    train_on, score_sections = _cross_validate.train_on, _cross_validate.score_sections

    def train(adata: Any, spec: Any, *args: Any, **kwargs: Any) -> Any:
        done.append({"adata": adata, "train": adata.copy(), "spec": spec, "shared": kwargs["read"] is not None})
        model, spots = train_on(adata, spec, *args, **kwargs)
        done[-1]["model"] = model
        return model, spots

    def score(found: Any) -> Any:
        done[-1] |= {
            "test": found.sample,
            "predicted": found.predicted,
            "bounds": found.bounds,
            "training_mean": found.training_mean,
        }
        return score_sections(found)

    monkeypatch.setattr(_cross_validate, "train_on", train)
    monkeypatch.setattr(_cross_validate, "score_sections", score)
    return done

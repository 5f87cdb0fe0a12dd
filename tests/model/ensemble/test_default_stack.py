"""The stack that is trained where nothing is named: its members, what it says of itself, and what it does without one."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal

import stmsi
from stmsi.model import HurdleEnsemble, HurdleKernel, HurdleLinear, HurdleScreened
from stmsi.model.ensemble import _hurdle_ensemble
from stmsi.model.ensemble._hurdle_ensemble import AUTO_MEMBERS, PRIOR_MEMBER
from stmsi.model.ensemble._members import Member
from stmsi.model.shared._setup import Setup
from stmsi.model.shared._training_data import TrainingData

GRAPH = {"graph_key": "spatial_connectivities"}
NAMES = ["two-stage ridge", "gene ridge", "gene ridge, z-scored", "kernel ridge", "screened ridge"]


def fit(adata: AnnData, fields: dict[str, Any] | None = None, **params: Any) -> HurdleEnsemble:
    HurdleEnsemble.setup_anndata(adata, **(GRAPH if fields is None else fields))
    model = HurdleEnsemble(adata, **{"n_folds": 3, **params})
    model.train(show_progress_bar=False)
    return model


@pytest.fixture
def data(make_sections) -> AnnData:
    return make_sections()


@pytest.fixture(scope="module")
def trained(make_sections) -> HurdleEnsemble:
    """Trained on three small sections: not to be trained again."""
    return fit(make_sections())


def with_prior(data: AnnData) -> AnnData:
    table = pd.DataFrame({"metabolite": ["first", "first", "second"], "gene": ["Gene0", "Gene1", "Gene2"]})
    stmsi.pp.knowledge_prior(data, table)
    return data


def break_down(monkeypatch, cls: type, message: str = "the solver gave up") -> None:
    def train(self, *args: Any, **kwargs: Any) -> None:
        raise np.linalg.LinAlgError(message)

    monkeypatch.setattr(cls, "_fit", train)


# ------------------------------------------------------------------------------------------------------------- members


def test_default_members(data):
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    assert list(HurdleEnsemble(data).members) == NAMES == list(AUTO_MEMBERS)
    HurdleEnsemble.setup_anndata(with_prior(data), prior_key="msi_prior")
    assert list(HurdleEnsemble(data).members) == [*NAMES, *PRIOR_MEMBER] == [*NAMES, "prior ridge"]


def test_every_member_has_the_graph_and_one_the_prior(data):
    model = fit(with_prior(data), {**GRAPH, "prior_key": "msi_prior"})
    assert [type(m) for m in model.models_] == [HurdleLinear, *[HurdleKernel] * 3, *[HurdleScreened] * 2]
    assert {m.state.setup.graph_key for m in model.models_} == {"spatial_connectivities"}
    assert [m.state.setup.prior_key for m in model.models_] == [*[None] * 5, "msi_prior"]
    ridge, with_prior_in_it = model.models_[0], HurdleLinear(model.adata)
    assert len({r.strength for r in ridge.regressions_}) == 1, "one penalty for all metabolites"
    assert len({c.strength for c in ridge.classifiers_ if c.estimator is not None}) == 1
    with_prior_in_it.train(show_progress_bar=False)
    # with the prior in it, the choices are many, and made on the folds that weigh the members
    assert len({r.strength for r in with_prior_in_it.regressions_}) > 1
    assert model.models_[-1].metabolites == ["first", "second"]
    assert model.metabolites == ["first", "second", "third", "always"]
    prior = model.weights.query("member == 'prior ridge'").set_index(["metabolite", "stage"])["weight"]
    assert (prior[["third", "always"]] == 0).all()


def test_members_fit_presence_once(trained):
    assert [m.presence for m in trained.models_] == ["logistic", *["prior"] * 4]


def test_the_stack_is_about_as_good_as_its_best_member_on_a_new_section(make_sections):
    whole = make_sections([40] * 4, noise=0.3)
    seen = (whole.obs["sample"] != "s3").to_numpy()
    model, new = fit(whole[seen].copy()), whole[~seen].copy()

    def mean_correlation(m: Any) -> float:
        predicted = m.predict(new)
        return float(np.mean([np.corrcoef(predicted[c], new.obsm["msi"][c])[0, 1] for c in predicted]))

    members = [mean_correlation(m) for m in model.models_]
    assert mean_correlation(model) > max(members) - 0.05
    assert mean_correlation(model) > np.mean(members)


def test_the_map_is_the_weighted_mean_of_the_maps(trained, data):
    spots = trained._query_spots(data, 0.5)
    stages = [m._stages(spots) for m in trained.models_]
    expected = sum(w[None] * p * v for w, (p, v) in zip(trained.stack_["intensity"], stages, strict=True))
    scale = trained.scale_
    drawn_in = np.clip(scale.mean + scale.slope * (expected - scale.mean), 0, 1.5 * scale.largest)
    p, mean = trained.predict_presence(data).to_numpy(), trained.predict_intensity(data).to_numpy()
    likely = p >= 0.1
    np.testing.assert_allclose((p * mean)[likely], drawn_in[likely], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ in words


def train_briefly(monkeypatch):
    """One epoch of gene attention."""
    fit = Member.fit

    def brief(self, known, *, n_jobs=1):
        if self.name == "gene attention":
            self.train.update(max_epochs=1)
        return fit(self, known, n_jobs=n_jobs)

    monkeypatch.setattr(Member, "fit", brief)


@pytest.mark.once
@pytest.mark.parametrize("worth", [True, False])
def test_gene_attention_is_trained_where_a_first_group_gains_by_it(data, monkeypatch, worth):
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    model = HurdleEnsemble(data, n_folds=3)
    monkeypatch.setattr(_hurdle_ensemble, "_FEWEST_FOR_NETS", data.n_obs)

    def once(self, known, group):
        assert self.name == "gene attention"
        measured = known.targets.intensity[group]
        noise = np.random.default_rng(0).normal(size=measured.shape)
        return np.stack([np.ones(measured.shape), np.nan_to_num(measured) if worth else noise])

    monkeypatch.setattr(Member, "once", once)
    train_briefly(monkeypatch)
    model.train(show_progress_bar=False)
    assert ("gene attention" in model.members) == worth
    assert ("did not gain by them: gene attention." in str(model)) != worth
    if worth:
        assert model.models_[-1]._held_out_stages().shape == (2, data.n_obs, 4)


def test_gene_attention_is_left_out_where_all_groups_gain_too_little_by_it(data, monkeypatch):
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    model = HurdleEnsemble(data, n_folds=3)
    monkeypatch.setattr(_hurdle_ensemble, "_FEWEST_FOR_NETS", data.n_obs)
    gains = iter([0.1, 0.001])  # of the first group, of all
    monkeypatch.setattr(_hurdle_ensemble, "gain", lambda *_: next(gains))
    noise = np.random.default_rng(0)
    monkeypatch.setattr(Member, "once", lambda _, known, group: noise.normal(size=(2, group.sum(), 4)))
    train_briefly(monkeypatch)
    model.train(show_progress_bar=False)
    without = HurdleEnsemble(data, n_folds=3)
    monkeypatch.setattr(_hurdle_ensemble, "_FEWEST_FOR_NETS", data.n_obs + 1)
    without.train(show_progress_bar=False)
    assert list(model.members) == list(without.members)
    assert len(model.models_) == len(model.members)
    assert "did not gain by them: gene attention." in str(model)
    np.testing.assert_array_equal(model.predict(), without.predict())


def test_gene_attention_is_tried_with_spots_enough(data):
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    model = HurdleEnsemble(data)
    assert list(model._default_members(999)) == NAMES
    assert list(model._default_members(1000)) == [*NAMES, "gene attention"]


def test_one_network_predicts_a_group_that_it_has_not_seen(data):
    HurdleEnsemble.setup_anndata(data, **GRAPH)
    member = Member.create("gene attention", "transformer", Setup.read(data, "HurdleEnsemble"), 0, 3)
    assert member.params["n_nets"] == 3
    known = TrainingData.read(data, Setup.read(data, "HurdleEnsemble"), None, None)
    group = (data.obs["sample"] == "s1").to_numpy()
    member.train["max_epochs"] = 2
    stages = member.once(known.alone(data), group)
    assert stages.shape == (2, group.sum(), 4)
    assert np.isfinite(stages).all()


def test_it_says_what_was_chosen(trained, tmp_path):
    chosen = trained.state.training["chosen"]
    assert chosen.startswith("Weighted by 3 groups of held-out sections: ")
    shares = dict(re.findall(r"(?:: |, )([a-z][\w, -]*?) (\d+)%", chosen))
    assert set(shares) <= set(NAMES)
    assert sum(map(int, shares.values())) == pytest.approx(100, abs=3)
    assert re.search(r"Held-out correlation 0\.\d{3}, of the best member alone \(.+\) 0\.\d{3}\.$", chosen)
    assert repr(trained).endswith(chosen)
    assert trained.card["training"]["chosen"] == chosen
    trained.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "stmsi.json").read_text())["training"]["chosen"] == chosen
    assert repr(stmsi.model.load(tmp_path / "model")).endswith(chosen)


def test_it_says_when_patients_or_blocks_were_held_out(make_sections):
    members = {"members": ["mean", {"model": "ridge", "n_components": 5}]}
    one = make_sections([60])
    assert "groups of held-out blocks" in fit(one, {}, **members).state.training["chosen"]
    bulk = make_sections([16], positions=False, graph=False)
    assert "3 groups of held-out spots" in fit(bulk, {}, **members).state.training["chosen"]


# -------------------------------------------------------------------------------------------------------------- failing


@pytest.mark.once
def test_a_default_member_that_fails_is_left_out_and_told(data, monkeypatch, caplog, tmp_path):
    break_down(monkeypatch, HurdleScreened)
    with caplog.at_level(logging.WARNING, "stmsi"):
        model = fit(data)
    assert (
        "Member 'screened ridge' failed on 90 training spots: the solver gave up. It is left out of the stack."
        in caplog.text
    )
    assert list(model.members) == NAMES[:-1]
    assert list(model.failed_) == ["screened ridge"]
    assert repr(model).endswith("Left out because they failed: screened ridge.")
    assert set(model.weights["member"]) == set(NAMES[:-1])
    assert np.isfinite(model.predict().to_numpy()).all()
    model.save(tmp_path / "model")
    loaded = stmsi.model.load(tmp_path / "model")
    assert_frame_equal(loaded.predict(data), model.predict(data), check_exact=True)
    assert "Left out because they failed: screened ridge" in repr(loaded)


def test_a_default_without_any_member_is_refused(data, monkeypatch):
    for cls in (HurdleLinear, HurdleKernel, HurdleScreened):
        break_down(monkeypatch, cls)
    with pytest.raises(
        ValueError, match=r"No member could be trained\. Member 'two-stage ridge' failed on 90 training"
    ):
        fit(data)


def test_a_member_that_was_named_raises(data, monkeypatch):
    break_down(monkeypatch, HurdleScreened)
    with pytest.raises(np.linalg.LinAlgError, match="Member 'screened_ridge' failed on 90 training spots: the solver"):
        fit(data, members=["ridge", "screened_ridge"])


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_saved_stack_predicts_the_same(trained, data, tmp_path):
    trained.save(tmp_path / "model")
    loaded = stmsi.model.load(tmp_path / "model")
    assert list(loaded.members) == NAMES
    for call in ("predict", "predict_presence", "predict_intensity"):
        assert_frame_equal(getattr(loaded, call)(data), getattr(trained, call)(data), check_exact=True)
    for a, b in zip(loaded.predict_interval(data), trained.predict_interval(data), strict=True):
        assert_frame_equal(a, b, check_exact=True)
    assert_frame_equal(loaded.weights, trained.weights, check_exact=True)
    assert loaded.card["contains_training_profiles"], "kernel ridge keeps landmark spots"


def test_a_loaded_stack_can_be_trained_again(trained, data, tmp_path):
    trained.save(tmp_path / "model")
    loaded = stmsi.model.load(tmp_path / "model", data)
    loaded.train(show_progress_bar=False)
    assert_frame_equal(loaded.predict(), trained.predict(data), check_exact=True)


@pytest.mark.once
def test_training_again_tries_a_failed_member_again(data, monkeypatch):
    with monkeypatch.context() as m:
        break_down(m, HurdleScreened)
        model = fit(data)
    model.train(show_progress_bar=False)
    assert "screened ridge" in model.members
    assert model.failed_ == {}

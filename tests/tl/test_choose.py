import numpy as np
import pandas as pd
import pytest

from stmsi.model_selection import choose


def _scores(**models):
    rows = [
        {"model": m, "fold": i, "sample": "s", "metabolite": "x", "stage": "intensity", "pearson": v, "mse": v}
        for m, values in models.items()
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_best_mean_is_chosen():
    scores = _scores(a=[0.1, 0.5], b=[0.3, 0.4], c=[0.3, 0.4])
    assert choose(scores) == "b"  # of equals the first
    assert choose(scores, metric="mse") == "a"


def test_nobody_is_chosen_for_leaving_out_what_is_hard():
    scores = _scores(constant=[np.nan, np.nan], picky=[0.5, np.nan], steady=[0.4, 0.3])
    assert choose(scores) == "steady"
    assert choose(_scores(constant=[np.nan, np.nan], wrong=[-0.4, 0.3])) == "constant"
    # squared errors have no value without skill: only what all have counts
    assert choose(_scores(a=[0.5, np.nan], b=[0.6, 0.1]), metric="mse") == "a"


def test_where_no_model_has_a_score_none_counts():
    assert choose(_scores(a=[0.2, np.nan], b=[0.1, np.nan])) == "a"
    with pytest.raises(ValueError, match="No model has a pearson"):
        choose(_scores(a=[np.nan], b=[np.nan]))


def test_what_cannot_be_chosen_by():
    with pytest.raises(ValueError, match=r"metric='pearsn' is not known.*Did you mean 'pearson'"):
        choose(_scores(a=[1]), metric="pearsn")
    with pytest.raises(KeyError, match=r"scores has no column 'r2'; found 'model'.*cross_validate"):
        choose(_scores(a=[1]), metric="r2")
    twice = pd.concat([_scores(a=[1])] * 2)
    with pytest.raises(ValueError, match="several values of 'pearson' for a model, fold, section and metabolite"):
        choose(twice)

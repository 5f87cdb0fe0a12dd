import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_score

from stmsi.model_selection import LeaveOnePatientOut, LeaveOneSampleOut

SPLITTERS = [(LeaveOneSampleOut, "sample"), (LeaveOnePatientOut, "patient")]


@pytest.fixture
def adata():
    obs = pd.DataFrame(
        {"sample": pd.Categorical(list("aabbccdd")), "patient": list("xxxxyyzz"), "slide": [1, 1, 2, 2, 2, 2, 1, 1]},
        index=[str(i) for i in range(8)],
    )
    return AnnData(np.ones((8, 3), np.float32), obs=obs)


@pytest.mark.parametrize(("splitter", "key"), SPLITTERS)
def test_each_fold_tests_on_one_group(adata, splitter, key):
    folds = list(splitter().split(adata))
    groups = adata.obs[key].astype(str).to_numpy()
    assert splitter().get_n_splits(adata) == len(folds) == len(set(groups))
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(8))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(8))
        assert len(set(groups[test])) == 1
        assert not set(groups[test]) & set(groups[train])


@pytest.mark.parametrize("splitter", [LeaveOneSampleOut(), LeaveOnePatientOut()])
def test_with_groups_it_is_scikit_learns(splitter):
    groups = [3, 1, 2, 1, 3, 2]
    for X in (np.zeros((6, 2)), None, list(range(6))):
        ours = list(splitter.split(X, groups=groups))
        theirs = list(LeaveOneGroupOut().split(np.zeros((6, 1)), groups=groups))
        for (train, test), (their_train, their_test) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(train, their_train)
            np.testing.assert_array_equal(test, their_test)
    assert splitter.get_n_splits(groups=groups) == 3


def test_groups_go_before_the_column(adata):
    assert LeaveOneSampleOut().get_n_splits(adata, groups=[0, 1] * 4) == 2


def test_other_columns(adata):
    assert LeaveOneSampleOut("slide").get_n_splits(adata) == 2
    assert LeaveOnePatientOut(patient_key="slide").get_n_splits(adata) == 2
    test = next(LeaveOneSampleOut("slide").split(adata))[1]
    assert test.tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("splitter", [LeaveOneSampleOut(), LeaveOnePatientOut()])
def test_in_scikit_learn(splitter):
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(40, 3)), np.repeat(list("abcd"), 10)
    y = X @ [1.0, 2, 3] + rng.normal(0, 0.1, 40)
    scores = cross_val_score(LinearRegression(), X, y, groups=groups, cv=splitter)
    np.testing.assert_array_equal(
        scores, cross_val_score(LinearRegression(), X, y, groups=groups, cv=LeaveOneGroupOut())
    )
    assert len(scores) == 4
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1]}, cv=splitter).fit(X, y, groups=groups)
    assert search.n_splits_ == 4


@pytest.mark.parametrize("splitter", [LeaveOneSampleOut("slide"), LeaveOnePatientOut("slide")])
def test_copies_keep_the_column(splitter, adata):
    copied = clone(splitter, safe=False)
    assert copied is not splitter
    assert copied.key == splitter.key == "slide"
    assert "slide" in repr(splitter)
    assert clone(GridSearchCV(Ridge(), {}, cv=splitter)).cv.get_n_splits(adata) == 2


@pytest.mark.parametrize(("splitter", "key"), SPLITTERS)
def test_errors_name_the_remedy(adata, splitter, key):
    with pytest.raises(ValueError, match=rf"Pass an AnnData with obs\['{key}'\], or groups="):
        splitter().get_n_splits(np.zeros((8, 1)))
    with pytest.raises(ValueError, match=rf"Pass an AnnData with obs\['{key}'\]"):
        next(splitter().split(np.zeros((8, 1))))
    with pytest.raises(
        ValueError,
        match=rf"one {key} out needs at least two, found \['only'\].*or split sections into blocks with .*SpatialBlockKFold",
    ):
        next(splitter().split(None, groups=["only"] * 3))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(splitter().split(adata, groups=["a", "b"]))
    with pytest.raises(KeyError, match=r"no column 'slides'; found .*Did you mean 'slide'"):
        next(splitter("slides").split(adata))
    adata.obs[key] = [None, *"abcdefg"]
    with pytest.raises(ValueError, match="1 missing values"):
        next(splitter().split(adata))


def test_patients_are_spoken_of_as_patients(st):
    with pytest.raises(KeyError, match=r"obs has no column 'pat'.*The folds follow it.*Did you mean 'patient'"):
        next(LeaveOnePatientOut("pat").split(st))
    st.obs["patient"] = st.obs["patient"].astype(object).where(st.obs["sample"] != "P1S1", None)
    with pytest.raises(ValueError, match=r"obs\['patient'\] has \d+ missing values; every spot needs a label"):
        next(LeaveOnePatientOut().split(st))


@pytest.mark.parametrize(("splitter", "key"), SPLITTERS)
def test_groups_of_one_spot_are_refused(adata, splitter, key):
    adata.obs[key] = list("aaabbbbc")
    with pytest.raises(ValueError, match=rf"'c' in obs\['{key}'\] has a single spot.*leave it out"):
        next(splitter().split(adata))
    assert splitter().get_n_splits(np.zeros((8, 1)), groups=list("aaabbbbc")) == 3


def test_bulk_data_have_one_observation_a_section(adata):
    adata.obs["sample"] = list("abcdefgh")
    assert [len(test) for _, test in LeaveOneSampleOut().split(adata)] == [1] * 8

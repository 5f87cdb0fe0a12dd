"""pl.reliability, pl.presence_curves, pl.calibration and experimental.plot_realism."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

import stmsi
from stmsi._data.training_marks import write_marks
from stmsi.pl._presence_curves import _GRID, curves


@pytest.fixture
def with_predictions(st):
    rng = np.random.default_rng(0)
    names, shape = list(st.obsm["msi"].columns), st.obsm["msi"].shape
    there = st.obsm["msi_presence"].fillna(0).to_numpy()
    p = np.clip(0.3 + 0.4 * there + 0.2 * rng.standard_normal(shape), 0.01, 0.99)
    frames = {
        "msi_pred": st.obsm["msi"].fillna(0),
        "msi_pred_presence": p,
        "msi_pred_lower": st.obsm["msi"].fillna(0) - 0.1,
        "msi_pred_upper": st.obsm["msi"].fillna(0) + rng.normal(0.5, 0.5, shape),
    }
    for key, values in frames.items():
        st.obsm[key] = pd.DataFrame(np.asarray(values), st.obs_names, names)
    st.uns["msi_pred"] = {"features": pd.DataFrame({"name": names}, index=names), "params": {"coverage": 0.9}}
    return st


def test_curves_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    present = (rng.random((200, 1)) < 0.4).astype(float)
    p = np.round(rng.random((200, 1)) * 0.5 + 0.3 * present, 2)
    tpr, precision = curves(present, p)
    false, true, _ = roc_curve(present[:, 0], p[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(tpr[:, 0], np.interp(_GRID, false, true))
    order = np.sort(np.unique(p))[::-1]
    recall = np.array([present[p >= t].sum() / present.sum() for t in order])
    share = np.array([present[p >= t].mean() for t in order])
    at = np.searchsorted(recall, _GRID - 1e-12)
    np.testing.assert_allclose(precision[:, 0], share[at])


def test_presence_curves(with_predictions) -> None:
    axes = stmsi.pl.presence_curves(with_predictions)
    assert axes[0].get_legend().get_texts()[0].get_text().startswith("median AUROC 0.9")
    names = list(with_predictions.obsm["msi"].columns[:2])
    axes = stmsi.pl.presence_curves(with_predictions, names, sample="P1S1")
    assert [t.get_text() for t in axes[1].get_legend().get_texts()][2:] == ["without skill: prevalence"]
    present = with_predictions.obsm["msi_presence"][with_predictions.obs["sample"] == "P1S1"][names[0]].mean()
    assert axes[1].lines[2].get_ydata()[0] == pytest.approx(present)
    with pytest.raises(KeyError, match="No section 'X'"):
        stmsi.pl.presence_curves(with_predictions, sample="X")
    with pytest.raises(ValueError, match="At most 6"):
        stmsi.pl.presence_curves(with_predictions, list(with_predictions.obsm["msi"].columns[:7]))
    with_predictions.obsm["msi_presence"] = with_predictions.obsm["msi_presence"] * 0
    with pytest.raises(ValueError, match="nothing to rank"):
        stmsi.pl.presence_curves(with_predictions)


def test_training_spots_are_marked(with_predictions) -> None:
    with_predictions.uns["msi_pred"]["model"] = {"class": "HurdleLinear"}
    first = (with_predictions.obs["sample"] == "P1S1").to_numpy()
    write_marks(with_predictions, "msi_pred", np.where(first, "yes", "no"))
    titles = [
        [ax.get_title() for ax in stmsi.pl.presence_curves(with_predictions, sample=name)]
        for name in (None, "P1S1", "P2S1")
    ]
    heads = ["receiver operating characteristic", "precision and recall"]
    marks = ["\n(partly training spots)", "\n(training spots)", ""]
    assert titles == [[head + mark for head in heads] for mark in marks]
    assert stmsi.pl.calibration(with_predictions)[0].get_title().endswith("(partly training spots)")
    write_marks(with_predictions, "msi_pred", np.full(with_predictions.n_obs, "no"))
    assert "training" not in stmsi.pl.calibration(with_predictions)[0].get_title()


def test_calibration(with_predictions) -> None:
    figure, own = plt.subplots(1, 2)
    axes = stmsi.pl.calibration(with_predictions, n_bins=5, ax=own)
    assert axes[0] is own[0]
    x, y = axes[0].lines[1].get_data()
    there, p = with_predictions.obsm["msi_presence"].to_numpy(), with_predictions.obsm["msi_pred_presence"].to_numpy()
    both = (np.nanmean(there, axis=0) > 0) & (np.nanmean(there, axis=0) < 1)
    inside = ~np.isnan(there[:, both]) & (p[:, both] < 0.2)
    assert y[0] == pytest.approx(there[:, both][inside].mean())
    assert x[0] == pytest.approx(p[:, both][inside].mean())
    assert [line.get_ydata()[0] for line in axes[1].lines] == [0.9]
    with pytest.raises(ValueError, match="n_bins"):
        stmsi.pl.calibration(with_predictions, n_bins=1)
    del with_predictions.obsm["msi_pred_lower"]
    with pytest.raises(KeyError, match="msi_pred_lower"):
        stmsi.pl.calibration(with_predictions)
    plt.close(figure)


def test_reliability() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"model": np.repeat(["ridge", "mlp"], 10)}, index=[f"m{i}" for i in range(10)] * 2)
    table["pearson"] = rng.random(20)
    table["morans_i"] = np.r_[table["pearson"][:10], -table["pearson"][10:]]
    table["ceiling"] = np.nan
    ax = stmsi.pl.reliability(table)
    assert ax.get_title() == "Spearman 1.00, -1.00"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ridge", "mlp", "without skill"]
    assert stmsi.pl.reliability(table.assign(mcc=0.1), metric="mcc").get_ylabel() == "Matthews correlation"
    with pytest.raises(KeyError, match="no column 'moran'"):
        stmsi.pl.reliability(table, by="moran")
    with pytest.raises(ValueError, match="no finite score"):
        stmsi.pl.reliability(table.assign(pearson=np.nan))
    with pytest.raises(TypeError, match="DataFrame"):
        stmsi.pl.reliability([1])


def test_realism(st) -> None:
    st.obsm["msi_sample_0"] = st.obsm["msi"].fillna(0) * 1.2
    table = stmsi.experimental.realism(st, "msi_sample_0", classifier=False)
    auc = pd.DataFrame({"statistic": "auc", "draw": [0], "measured": 0.5, "synthetic": 0.62})
    axes = stmsi.experimental.plot_realism(pd.concat([table, auc], ignore_index=True))
    assert [ax.get_title() for ax in axes][-1] == "classifier's AUC"
    points = axes[1].collections[0].get_offsets()
    own = table[table["statistic"] == "prevalence"]
    np.testing.assert_allclose(points, own[["measured", "synthetic"]])
    assert axes[7].texts[0].get_text() == "0.62"
    assert len(stmsi.experimental.plot_realism(table)[7].patches) == 0
    with pytest.raises(KeyError, match="lacks the columns 'draw'"):
        stmsi.experimental.plot_realism(table.drop(columns="draw"))

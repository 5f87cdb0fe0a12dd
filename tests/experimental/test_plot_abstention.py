"""experimental.plot_abstention."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stmsi


@pytest.fixture
def curve() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    shares = np.linspace(0.2, 1, 5)
    rows = [
        {"sample": sample, "by": by, "metabolite": f"m{m}", "share": s, "mae": 2 * s, "relative_mae": 1 - slope * (1 - s) * w}
        for sample, w in (("A", 0.8), ("B", 1.2))
        for by, slope in (("interval", 0.6), ("ood", 0.1))
        for m, slope in enumerate(slope + 0.1 * rng.random(6))
        for s in shares
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_lines_are_means_and_bands_quartiles_over_metabolites(curve) -> None:
    ax = stmsi.experimental.plot_abstention(curve)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "width of the interval",
        "out-of-distribution score",
    ]
    means = curve.groupby(["by", "share", "metabolite"])["relative_mae"].mean()
    for line, band, name in zip(ax.lines[:2], ax.collections, ("interval", "ood"), strict=True):
        own = means[name].unstack("metabolite")
        np.testing.assert_allclose(line.get_xdata(), own.index)
        np.testing.assert_allclose(line.get_ydata(), own.mean(axis=1))
        edge = band.get_paths()[0].vertices[:, 1]
        assert edge.min() == pytest.approx(own.quantile(0.25, axis=1).min())
        assert edge.max() == pytest.approx(own.quantile(0.75, axis=1).max())
    assert ax.lines[2].get_ydata()[0] == pytest.approx(1)
    assert ax.get_xlabel() == "share of spots kept"


def test_other_metrics_models_and_axes(curve) -> None:
    figure, own = plt.subplots()
    both = pd.concat([curve.assign(model=name) for name in ("ridge", "mlp")])
    ax = stmsi.experimental.plot_abstention(both[both["by"] == "ood"], metric="mae", by="model", ax=own)
    assert ax is own
    assert ax.get_ylabel() == "mean absolute error"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ridge", "mlp"]
    assert ax.lines[2].get_ydata()[0] == pytest.approx(2)
    assert stmsi.experimental.plot_abstention(curve, return_fig=True) is not figure


def test_bad_input(curve) -> None:
    with pytest.raises(TypeError, match=r"DataFrame of stmsi\.experimental\.abstention"):
        stmsi.experimental.plot_abstention([1])
    with pytest.raises(KeyError, match="curve has no column 'relative'"):
        stmsi.experimental.plot_abstention(curve, metric="relative")
    with pytest.raises(ValueError, match="no finite 'mae'"):
        stmsi.experimental.plot_abstention(curve.assign(mae=np.nan), metric="mae")

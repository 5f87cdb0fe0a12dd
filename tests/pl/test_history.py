"""pl.history."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stmsi
from stmsi.model import HurdleEnsemble, HurdleLinear, HurdleNet


def losses(seed: int = 0, n: int = 30, *, best: int = 20) -> pd.DataFrame:
    """A history of both stages together, lowest in an epoch from 1."""
    epoch = np.arange(1, n + 1)
    rng = np.random.default_rng(seed)
    parts = {}
    for stage, level in {"presence": 0.3, "intensity": 0.8}.items():
        parts[f"{stage}_loss_train"] = level * (0.5 + np.exp(-epoch / 8)) + 0.003 * rng.normal(size=n)
        parts[f"{stage}_loss_validation"] = level * (0.7 + 0.001 * (epoch - best) ** 2)
    parts["train_loss"] = parts["presence_loss_train"] + parts["intensity_loss_train"]
    parts["validation_loss"] = parts["presence_loss_validation"] + parts["intensity_loss_validation"]
    return pd.DataFrame(parts)


def lines(ax) -> dict[str, list]:
    return {style: [one for one in ax.lines if one.get_linestyle() == style] for style in ("-", "--", ":")}


def kept(ax) -> list[float]:
    return [float(one.get_xdata()[0]) for one in lines(ax)[":"]]


@pytest.fixture(scope="module")
def net(_mapped):
    st = _mapped.tables["st"].copy()
    HurdleNet.setup_anndata(st)
    model = HurdleNet(st, n_nets=1)
    model.train(max_epochs=3)
    return model


@pytest.fixture(scope="module")
def two_stages(_mapped):
    st = _mapped.tables["st"].copy()
    HurdleNet.setup_anndata(st)
    model = HurdleNet(st, training="two_stage", n_nets=1)
    model.train(max_epochs=3)
    return model


def test_picture(same_picture) -> None:
    same_picture(stmsi.pl.history({"a": losses(0), "b": losses(1, 25, best=12)}, return_fig=True), "history")


def test_a_table_of_losses() -> None:
    table = losses()
    axes = stmsi.pl.history(table)
    assert [ax.get_title() for ax in axes] == ["both stages", "stage 1: presence", "stage 2: intensity"]
    for ax, name in zip(axes, ("", "presence_", "intensity_"), strict=True):
        validation = f"{name}loss_validation" if name else "validation_loss"
        training = f"{name}loss_train" if name else "train_loss"
        np.testing.assert_allclose(lines(ax)["-"][0].get_ydata(), table[validation])
        np.testing.assert_allclose(lines(ax)["--"][0].get_ydata(), table[training])
        assert list(lines(ax)["-"][0].get_xdata()) == list(range(1, 31))
        assert kept(ax) == [20], "all stages are kept at the lowest sum"
    assert stmsi.pl.history(table, log=True)[0].get_yscale() == "log"
    assert stmsi.pl.history({k: v.to_frame() for k, v in table.items()})[0].get_title() == "both stages"


def test_some_columns_only() -> None:
    ax = stmsi.pl.history(losses()[["train_loss"]])
    assert ax.get_title() == "both stages"
    assert kept(ax) == []
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["training"]


def test_a_network(net) -> None:
    axes = stmsi.pl.history(net)
    values = np.asarray(net.history["validation_loss"], float).ravel()
    np.testing.assert_allclose(lines(axes[0])["-"][0].get_ydata(), values)
    assert kept(axes[0]) == [np.argmin(values) + 1] == [net.state.training["epochs"]]


def test_stages_one_after_the_other(two_stages) -> None:
    axes = stmsi.pl.history(two_stages)
    assert [ax.get_title() for ax in axes] == ["stage 1: presence", "stage 2: intensity"]
    assert [list(lines(ax)["-"][0].get_xdata()) for ax in axes] == [[1, 2, 3], [4, 5, 6]]
    for ax, name, part in zip(axes, ("presence", "intensity"), (slice(3), slice(3, None)), strict=True):
        values = np.asarray(two_stages.history[f"{name}_loss_validation"], float).ravel()[part]
        assert kept(ax) == [np.argmin(values) + 1 + (part.start or 0)]


def test_several_models(net, two_stages) -> None:
    axes = stmsi.pl.history([net, two_stages])
    assert len(axes) == 3
    names = [t.get_text() for t in axes[-1].get_legend().get_texts()][-2:]
    assert names == ["HurdleNet, mlp", "HurdleNet, mlp (2)"]
    assert [len(lines(ax)["-"]) for ax in axes] == [1, 2, 2]
    axes = stmsi.pl.history({"one": net, "table": losses()})
    assert [t.get_text() for t in axes[-1].get_legend().get_texts()][-2:] == ["one", "table"]


def test_networks_of_an_ensemble(st) -> None:
    HurdleEnsemble.setup_anndata(st)
    model = HurdleEnsemble(st, members={"linear": "ridge", "net": {"model": "mlp"}}, n_folds=2)
    with pytest.raises(ValueError, match="no training curves: it is not trained"):
        stmsi.pl.history(model)
    model.models_ = [None, None]
    with pytest.raises(ValueError, match="none of them a network"):
        stmsi.pl.history(model)

    class Net:
        history_ = history = losses()

    model.models_ = [None, Net()]
    axes = stmsi.pl.history(model)
    assert axes[-1].get_legend().get_texts()[-1].get_text() == "net"


def test_errors(st) -> None:
    HurdleLinear.setup_anndata(st)
    with pytest.raises(ValueError, match=r"A HurdleLinear has no training curves: it is fitted at once"):
        stmsi.pl.history(HurdleLinear(st))
    HurdleNet.setup_anndata(st)
    with pytest.raises(ValueError, match=r"not trained yet\. Call model\.train\(\)"):
        stmsi.pl.history(HurdleNet(st))
    with pytest.raises(ValueError, match="no losses; it holds 'loss'"):
        stmsi.pl.history(pd.DataFrame({"loss": [1.0]}))
    with pytest.raises(TypeError, match="found int"):
        stmsi.pl.history(3)
    with pytest.raises(ValueError, match="at least one model"):
        stmsi.pl.history([])
    with pytest.raises(ValueError, match="11 models do not fit"):
        stmsi.pl.history({f"m{i}": losses() for i in range(11)})


def test_given_axes() -> None:
    _, axes = plt.subplots(1, 3)
    assert stmsi.pl.history(losses(), ax=axes) == list(axes)

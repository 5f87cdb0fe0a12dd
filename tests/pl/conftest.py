"""Predictions and scores made by hand, and pictures compared with their baselines."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from matplotlib.figure import Figure

BASELINES = Path(__file__).parent / "_baselines"
TOLERANCE = 4
"""Root mean square of the difference, of 255: another anti-aliasing makes less, another colour or a lost part more."""
DPI = 50


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """No plot changes rcParams; no figure outlives its test."""
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert {k for k, v in before.items() if mpl.rcParams[k] != v} == set()


@pytest.fixture
def same_picture(tmp_path: Path) -> Callable[[Figure, str], None]:
    """Compare a figure with ``_baselines/<name>.png``; STMSI_BASELINES=1 writes them anew: look at them before committing."""

    def check(figure: Figure, name: str) -> None:
        # text is left to the other tests: its size differs between versions of matplotlib, and moves the layout
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.set_layout_engine(None)
        figure.subplots_adjust(left=0.02, right=0.92, bottom=0.15, top=0.9, wspace=0.35, hspace=0.2)
        actual = tmp_path / f"{name}.png"
        figure.savefig(actual, dpi=DPI)
        if os.environ.get("STMSI_BASELINES") == "1":
            copyfile(actual, BASELINES / actual.name)
        difference = compare_images(str(BASELINES / actual.name), str(actual), TOLERANCE)
        assert difference is None, difference

    return check


@pytest.fixture
def predicted() -> Callable[[AnnData], None]:
    """Write predictions into a table in the layout of the data model."""

    def write(st: AnnData, *, bounds: bool = False) -> None:
        rng = np.random.default_rng(0)
        y = st.obsm["msi"].to_numpy(dtype=float)
        z = np.log(st.obsm["truth_intensity"].to_numpy(dtype=float))
        z = (z - z.mean(axis=0)) / z.std(axis=0)
        guess = np.clip(np.nanmean(y, axis=0) + np.nanstd(y, axis=0) * (z + 0.3 * rng.normal(size=z.shape)), 0, None)

        def frame(values: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(values.astype(np.float32), index=st.obs_names, columns=st.obsm["msi"].columns)

        st.obsm["msi_pred"] = frame(guess)
        st.obsm["msi_pred_presence"] = frame(1 / (1 + np.exp(-2 * z)))
        if bounds:
            st.obsm["msi_pred_lower"] = frame(np.clip(guess - 0.5, 0, None))
            st.obsm["msi_pred_upper"] = frame(guess + 0.5 + rng.random(guess.shape))
        st.obs["msi_pred_ood"] = rng.random(st.n_obs)
        st.uns["msi_pred"] = {"features": st.uns["msi"]["features"].copy()}

    return write


@pytest.fixture
def scores() -> pd.DataFrame:
    """Scores of three models, as cross_validate writes them."""
    rng = np.random.default_rng(1)
    rows = []
    for model, skill in {"baseline": 0.0, "HurdleLinear": 0.45, "HurdleNet": 0.6}.items():
        for sample in ("P1S1", "P2S1"):
            for m in range(20):
                value = float(np.tanh(skill + 0.3 * np.sin(m) + 0.1 * rng.normal()))
                share = (m % 10 + 1) / 11
                about = {"model": model, "fold": 0, "sample": sample, "metabolite": f"m{m}", "n": 100}
                undefined = model == "baseline" and m % 4 == 0
                pearson = np.nan if undefined else value
                rows.append({**about, "stage": "intensity", "pearson": pearson, "r2": value**2 - 0.1, "mse": 1 - value})
                auprc = share + (1 - share) * max(value, 0)
                auroc = 0.5 + 0.45 * value
                rows.append({**about, "stage": "presence", "prevalence": share, "auroc": auroc, "auprc": auprc})
    return pd.DataFrame(rows)


@pytest.fixture
def attended() -> Callable[..., None]:
    """Write attention and attribution into a table as tl.attention and tl.attribute do."""

    def write(st: AnnData) -> None:
        rng = np.random.default_rng(2)
        names = st.uns["msi"]["features"]["name"].iloc[:8]
        used = np.arange(st.n_vars) < 30

        def shares(*shape: int) -> np.ndarray:
            return rng.dirichlet(np.full(shape[-1], 0.5), size=shape[:-1]).astype(np.float32)

        def of_genes(values: np.ndarray) -> pd.DataFrame:
            full = np.full((st.n_vars, values.shape[1]), np.nan, np.float32)
            full[used] = values
            return pd.DataFrame(full, index=st.var_names, columns=list(names.index))

        record = {"metabolites": pd.DataFrame({"name": names}), "top_genes": pd.DataFrame({"metabolite": names.index})}
        keys = ["msi_attention_cortex", "msi_attention_white_matter"]
        record["groups"] = pd.DataFrame({"label": ["cortex", "white matter"], "key": keys})
        for suffix in ("", "_cortex", "_white_matter"):
            st.varm[f"msi_attention{suffix}"] = of_genes(shares(8, 30).T)
            st.varm[f"msi_attention_effects{suffix}"] = of_genes(rng.normal(size=(30, 8)).astype(np.float32))
        made = rng.normal(size=(st.n_obs, 30)).astype(np.float32)
        made[:, 0] += 3 * (st.obsm["spatial"][:, 0] / st.obsm["spatial"][:, 0].max()).astype(np.float32)
        st.obsm["msi_attention_simPC_28_0"] = pd.DataFrame(made, index=st.obs_names, columns=list(st.var_names[:30]))
        control = {"held_out": 0.81, "uniform": 0.1, "passed": True}
        params = {"per_spot": ["simPC_28_0"], "model": "HurdleNet"}
        st.uns["msi_attention"] = {"params": params, "control": control, **record}
        st.varm["attribution"] = of_genes(rng.normal(size=(30, 8)).astype(np.float32))
        about = {k: record[k] for k in ("metabolites", "top_genes")}
        st.uns["attribution"] = {"params": {"method": "coefficients", "stage": "intensity"}, **about}

    return write

"""Pictures of the plots that have no spots, and that a changed picture is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

import stmsi
from stmsi.pl import _style

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def ranked(st):
    """A table with predictions of known skill, without the model."""
    rng = np.random.default_rng(3)
    there = rng.random((st.n_obs, 12)) < np.linspace(0.2, 0.8, 12)
    y = np.where(there, rng.gamma(4.0, 0.5, there.shape), 0.0)
    chance = np.clip(0.35 + 0.3 * there + 0.2 * rng.normal(size=there.shape), 0.01, 0.99)
    lower, upper = y - rng.normal(0.6, 0.4, y.shape), y + rng.normal(0.6, 0.4, y.shape)
    columns = st.obsm["msi"].columns
    layers = {"msi": y, "msi_presence": there, "msi_pred": np.clip(y + 0.3, 0, None), "msi_pred_presence": chance}
    for key, values in (layers | {"msi_pred_lower": lower, "msi_pred_upper": upper}).items():
        st.obsm[key] = pd.DataFrame(np.asarray(values, np.float32), index=st.obs_names, columns=columns)
    st.uns["msi_pred"] = {"features": st.uns["msi"]["features"].copy(), "params": {"coverage": 0.9}}
    return st


def test_presence_curves(ranked, same_picture) -> None:
    same_picture(stmsi.pl.presence_curves(ranked, return_fig=True), "presence_curves")


def test_calibration(ranked, same_picture) -> None:
    same_picture(stmsi.pl.calibration(ranked, return_fig=True), "calibration")


def test_reliability(same_picture) -> None:
    x = np.linspace(0, 0.9, 30)
    table = pd.DataFrame(
        {"model": "ridge", "pearson": x**1.5 + 0.05 * np.sin(9 * x)}, index=[f"m{i}" for i in range(30)]
    )
    table = table.assign(morans_i=x, ceiling=0.3 + 0.7 * x)
    same_picture(stmsi.pl.reliability(table, return_fig=True), "reliability")


def test_abstention(same_picture) -> None:
    share = np.tile(np.linspace(0.1, 1, 10), 6)
    curve = pd.DataFrame({"by": np.repeat(["interval", "presence", "oracle"], 20), "share": share})
    curve["metabolite"] = np.tile(np.repeat(["m1", "m2"], 10), 3)
    curve["relative_mae"] = share ** np.repeat([0.3, 0.4, 0.5, 0.6, 1.0, 1.1], 10)
    same_picture(stmsi.experimental.plot_abstention(curve, return_fig=True), "abstention")


def test_realism(same_picture) -> None:
    parts = []
    x = np.linspace(0.1, 0.9, 20)
    for k, name in enumerate(("quantile", "prevalence", "morans_i", "correlation", "mean", "sd", "ks", "variogram")):
        values = {"measured": x, "synthetic": x + 0.1 * np.sin(7 * x + k), "at": np.repeat(np.arange(5.0), 4)}
        names = {"sample": "P1S1", "draw": 0, "metabolite": [f"m{i}" for i in range(20)]}
        parts.append(pd.DataFrame({"statistic": name, **names, **values}))
    auc = pd.DataFrame({"statistic": "auc", "draw": [0, 1], "measured": 0.55, "synthetic": [0.62, 0.8]})
    figure = stmsi.experimental.plot_realism(pd.concat([*parts, auc], ignore_index=True), return_fig=True)
    same_picture(figure, "realism")


@pytest.mark.parametrize("change", ["colours", "values", "a lost panel", "half of the spots"])
def test_a_changed_picture_fails(mapped, same_picture, change: str, monkeypatch) -> None:
    monkeypatch.delenv("STMSI_BASELINES", raising=False)
    options, table = {}, mapped.tables["st"]
    if change == "colours":
        options["cmap"] = "cividis"
    elif change == "values":
        table.obsm["msi"] = table.obsm["msi"] * 0 + np.arange(table.n_obs, dtype=np.float32)[:, None]
    elif change == "half of the spots":
        table.obsm["msi"].iloc[::2] = np.nan
    metabolites = ["simPC(28:0)", "simPC_33_1", "msi_coverage"]
    figure = stmsi.pl.spatial(mapped, metabolites, sample=["P1S1", "P2S1"], return_fig=True, **options)
    if change == "a lost panel":
        figure.axes[2].set_visible(False)
    with pytest.raises(AssertionError, match="did not match"):
        same_picture(figure, "spatial")


def test_every_plot_has_a_picture() -> None:
    pictures = {path.stem for path in (Path(__file__).parent / "_baselines").glob("*.png")}
    assert not [name for name in stmsi.pl.__all__ if not any(p == name or p.startswith(f"{name}_") for p in pictures)]


def _lightness(colour) -> float:
    """CIE L* of a colour."""
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


@pytest.mark.parametrize("name", [_style.INTENSITY_CMAP, _style.WIDTH_CMAP, "cividis"])
def test_sequential_maps_rise_in_lightness(name: str) -> None:
    """Whoever sees no hues, still reads them."""
    light = np.array([_lightness(c) for c in colormaps[name](np.linspace(0, 1, 64))[:, :3]])
    assert (np.diff(light) > 0).all()
    assert np.ptp(light) > 60


# linear RGB as a person without red (protanopia) or green (deuteranopia) cones sees it: Machado, Oliveira & Fernandes,
# IEEE TVCG 15 (2009), severity 1.0
DEFICIENT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def _seen(colour, kind: str) -> np.ndarray:
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(np.asarray(DEFICIENT[kind]) @ linear, 0, 1)


@pytest.mark.parametrize("kind", DEFICIENT)
def test_defaults_are_told_apart_without_red_or_green(kind: str) -> None:
    ends = colormaps[_style.RESIDUAL_CMAP]([0.1, 0.9])[:, :3]
    assert np.abs(_seen(ends[0], kind) - _seen(ends[1], kind)).max() > 0.25
    first = [_seen(c, kind) for c in _style.PALETTE[:4]]
    apart = [np.abs(a - b).max() for i, a in enumerate(first) for b in first[:i]]
    assert min(apart) > 0.09
    # red and green of the same lightness would fail
    assert np.abs(_seen("#b5651d", kind) - _seen("#7a7a1d", kind)).max() < 0.25


def test_too_many_panels(st) -> None:
    names = [f"m{i}" for i in range(51)]
    st.obsm["msi"] = pd.DataFrame(0.0, index=st.obs_names, columns=names)
    with pytest.raises(ValueError, match=r"153 panels do not fit.*name fewer metabolites"):
        stmsi.pl.spatial(st, names)
    assert plt.get_fignums() == []


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the source distribution")
def test_gallery_shows_every_plot() -> None:
    page, script = (DOCS / "gallery.md").read_text(), (DOCS / "gallery_figures.py").read_text()
    assert [name for name in stmsi.pl.__all__ if f"{{func}}`stmsi.pl.{name}`" not in page] == []
    assert [name for name in stmsi.pl.__all__ if f"stmsi.pl.{name}(" not in script] == []
    pictures = re.findall(r"\]\((_static/gallery/\w+\.png)\)", page)
    assert [name for name in pictures if not (DOCS / name).is_file()] == []
    assert [m for m in re.findall(r'start-after: "(.+)"', page) if m not in script] == []

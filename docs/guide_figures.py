"""Makes the pictures of the user guide and of the tasks from simulated sections: python docs/guide_figures.py [name ...].

Each function makes the picture of its name, in `_static/guide`. All are calls of the package on `stmsi.datasets.simulate`.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import anndata as ad
import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shapely
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from spatialdata import SpatialData, deepcopy
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

import stmsi

mpl.use("Agg")
stmsi.settings.progress_bar = False
warnings.simplefilter("ignore")
OUT = Path(__file__).parent / "_static" / "guide"
DPI, COLOURS = 110, 256
ONE, TWO, THREE = (3.6, 3.2), (7.4, 3.3), (10.2, 3.2)
LIPID, RARE, HELD_OUT = "simPC(28:0)", "simPC(36:0)", "P2S2"


def row(n: int, figsize: tuple[float, float]) -> tuple[Figure, list[plt.Axes]]:
    """Axes side by side."""
    figure, axes = plt.subplots(1, n, figsize=figsize, layout="constrained")
    return figure, list(np.atleast_1d(axes))


def save(figure: Figure, name: str) -> None:
    """Write one picture with few colours, which makes it small."""
    OUT.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI)
    picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(OUT / f"{name}.png", optimize=True)
    plt.close("all")


# -- Sections and models -------------------------------------------------------


@cache
def raw() -> SpatialData:
    """Four sections of two patients, as they come: not normalised, not aligned."""
    return stmsi.datasets.simulate(size=2000, n_genes=300, n_metabolites=24)


@cache
def paired() -> SpatialData:
    """The same, aligned and mapped."""
    sdata = deepcopy(raw())
    stmsi.pp.normalize_msi(sdata)
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    stmsi.pp.spatial_graph(sdata)
    return sdata


@cache
def trained() -> stmsi.model.HurdleLinear:
    """Ridge without the last section."""
    st = paired().tables["st"]
    stmsi.model.HurdleLinear.setup_anndata(st, presence_key="msi_presence")
    model = stmsi.model.HurdleLinear(st, intensity="ridge")
    model.train(train_idx=st.obs["sample"] != HELD_OUT)
    return model


@cache
def predicted() -> SpatialData:
    """All four sections with predictions."""
    sdata = deepcopy(paired())
    stmsi.tl.predict_metabolites(sdata, trained())
    return sdata


def hide(st: ad.AnnData, rows: NDArray[np.bool_]) -> None:
    """As if MSI had not measured some spots."""
    for key in ("msi", "msi_presence"):
        frame = st.obsm[key].astype(float)
        frame.loc[rows] = np.nan
        st.obsm[key] = frame


@cache
def scores() -> pd.DataFrame:
    """Held-out scores of three models and two controls."""
    models = ["mean", "coordinates", "shuffled_genes", "ridge", "auto"]
    return stmsi.tl.cross_validate(paired(), models, splitter=stmsi.model_selection.LeaveOneSampleOut())


# -- Data in -------------------------------------------------------------------


def nan_and_zero() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    presence = st.obsm["msi_presence"][stmsi.get.feature_table(sdata).query("name == @RARE").index[0]]
    st.obs["status"] = pd.Categorical(presence.map({1.0: "present", 0.0: "absent (0)"}).fillna("not covered (NaN)"))
    figure, axes = row(2, TWO)
    stmsi.pl.spatial(sdata, RARE, sample="P1S1", title=f"{RARE}: intensity", ax=axes[0])
    palette = {"present": "#1f968b", "absent (0)": "#440154", "not covered (NaN)": "#dcdcdc"}
    stmsi.pl.regions(sdata, "status", sample="P1S1", palette=palette, title="what the value means", ax=axes[1])
    return figure


def spectrum() -> Figure:
    return stmsi.pl.spectrum(raw(), sample="P1S1", figsize=(7.4, 2.7), return_fig=True)


def ion_image() -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=[1.6, 1])
    stmsi.pl.spectrum(raw(), sample="P1S1", title="mean spectrum", ax=axes[0])
    stmsi.pl.spatial(raw(), LIPID, table_key="msi", sample="P1S1", ax=axes[1])
    return figure


def spots_and_bins() -> Figure:
    """Spots of Visium and bins of 16 um over the same pixels."""
    spots = paired()
    st, msi = (spots.tables[key][spots.tables[key].obs["sample"] == "P1S1"].copy() for key in ("st", "msi"))
    side, n = 16.0, 60
    low = st.obsm["spatial"].mean(axis=0) - side * n / 2
    centre = low + side * (np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) + 0.5)
    squares = gpd.GeoDataFrame(geometry=shapely.box(*(centre - side / 2).T, *(centre + side / 2).T))
    obs = pd.DataFrame({"sample": "P1S1", "region": pd.Categorical(["P1S1_spots"] * n**2), "instance_id": range(n**2)})
    bins = ad.AnnData(np.ones((n**2, 1), np.float32), obs=obs.set_index("b" + obs.index.astype(str)))
    bins.obsm["spatial"] = centre
    sdata = SpatialData(
        shapes={
            "P1S1_spots": ShapesModel.parse(squares, transformations={"P1S1": Identity()}),
            "P1S1_pixels": spots.shapes["P1S1_pixels"],
        },
        tables={
            "st": TableModel.parse(bins, region="P1S1_spots", region_key="region", instance_key="instance_id"),
            "msi": TableModel.parse(
                msi, region="P1S1_pixels", region_key="region", instance_key="instance_id", overwrite_metadata=True
            ),
        },
    )
    stmsi.pp.map_to_spots(sdata)
    figure, axes = row(2, TWO)
    plain = {"scalebar": False}
    stmsi.pl.spatial(spots, LIPID, sample="P1S1", title="Visium: spots of 55 um", ax=axes[0], **plain)
    stmsi.pl.spatial(sdata, LIPID, title="bins of 16 um", ax=axes[1], **plain)
    for ax in axes:
        ax.set(xlim=(low[0], low[0] + n * side), ylim=(low[1] + n * side, low[1]))
    return figure


# -- From pixels to spots ------------------------------------------------------


def cleaning() -> Figure:
    sdata = deepcopy(raw())
    stmsi.pp.normalize_msi(sdata)
    figure, axes = row(2, TWO)
    where = {"table_key": "msi", "sample": "P1S1"}
    stmsi.pl.spatial(sdata, LIPID, layer="raw", title="as measured", ax=axes[0], **where)
    stmsi.pl.spatial(sdata, LIPID, title="divided by total ion current, log1p", ax=axes[1], **where)
    return figure


def alignment() -> Figure:
    figure, axes = row(3, THREE)
    sample = "P1S2"  # the mirrored one
    stmsi.pl.spatial(raw(), LIPID, table_key="msi", sample=sample, title="before: MSI in its own frame", ax=axes[0])
    stmsi.pl.alignment(paired(), kind="landmarks", sample=sample, ax=axes[1])
    stmsi.pl.alignment(paired(), kind="checkerboard", sample=sample, ax=axes[2])
    return figure


def without_landmarks() -> Figure:
    sdata = deepcopy(raw())
    for name in [name for name in sdata.points if "landmarks" in name]:
        del sdata.points[name]
    stmsi.pp.normalize_msi(sdata)
    stmsi.pp.align(sdata, method="auto", sample="P1S2")
    figure, axes = row(3, THREE)
    stmsi.pl.spatial(raw(), LIPID, table_key="msi", sample="P1S2", title="before: MSI in its own frame", ax=axes[0])
    stmsi.pl.alignment(sdata, kind="overlay", sample="P1S2", ax=axes[1])
    stmsi.pl.alignment(sdata, kind="checkerboard", sample="P1S2", ax=axes[2])
    return figure


def mapping() -> Figure:
    sdata = paired()
    figure, axes = row(3, THREE)
    where = {"sample": "P1S1", "scalebar": False}
    stmsi.pl.spatial(sdata, LIPID, table_key="msi", title="pixels of 50 um", ax=axes[0], **where)
    stmsi.pl.alignment(sdata, kind="overlay", title="spots over pixels", ax=axes[1], **where)
    stmsi.pl.spatial(sdata, LIPID, title="spots: area-weighted mean", ax=axes[2], **where)
    spots = sdata.tables["st"]
    x, y = np.quantile(spots[spots.obs["sample"] == "P1S1"].obsm["spatial"], [0.98, 0.7], axis=0)[[0, 1], [0, 1]]
    for ax in axes:
        ax.set(xlim=(x - 550, x + 150), ylim=(y + 350, y - 350))
    return figure


def partial_section() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    own = (st.obs["sample"] == HELD_OUT).to_numpy()
    x = st.obsm["spatial"][:, 0]
    hidden = own & (x > np.quantile(x[own], 0.35))
    hide(st, hidden)
    stmsi.tl.predict_metabolites(sdata, trained(), key_added="plain_pred")
    stmsi.tl.predict_metabolites(sdata, trained(), use_measured=True)
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3), layout="constrained")
    panels = [
        (sdata, "msi", "measured part"),
        (sdata, "plain_pred", "prediction"),
        (sdata, "msi_pred", "completed with the part"),
        (paired(), "msi", "all that was measured"),
    ]
    for ax, (data, key, title) in zip(axes, panels, strict=True):
        stmsi.pl.spatial(data, LIPID, metabolite_key=key, sample=HELD_OUT, vmin=0, vmax=5, title=title, ax=ax)
    return figure


def several_panels() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    ion = stmsi.get.feature_table(sdata).query("name == @LIPID").index[0]
    lacking = (st.obs["sample"] == "P2S1").to_numpy()
    st.obsm["msi"].loc[lacking, ion] = np.nan
    stmsi.tl.predict_metabolites(sdata, "ridge")
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3), layout="constrained")
    for ax, (key, sample, title) in zip(
        axes,
        [
            ("msi", "P1S1", "section 1: measured"),
            ("msi", "P2S1", "section 2: not in its panel (NaN)"),
            ("msi_pred", "P1S1", "section 1: predicted"),
            ("msi_pred", "P2S1", "section 2: predicted"),
        ],
        strict=True,
    ):
        stmsi.pl.spatial(sdata, ion, metabolite_key=key, sample=sample, title=title, vmin=0, vmax=5, ax=ax)
    return figure


# -- Models --------------------------------------------------------------------


def three_maps(ion: str, titles: dict[str, str]) -> Figure:
    figure, axes = row(3, THREE)
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        stmsi.pl.spatial(predicted(), ion, metabolite_key=key, sample=HELD_OUT, title=title, ax=ax)
    return figure


def two_stages() -> Figure:
    titles = {"msi": "measured", "msi_pred_presence": "stage 1: P(present)", "msi_pred": "both stages: prediction"}
    return three_maps(RARE, titles)


def models_compared() -> Figure:
    return stmsi.pl.performance(scores(), metric=["pearson", "r2"], return_fig=True)


def families() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    hide(st, (st.obs["sample"] == HELD_OUT).to_numpy())
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3), layout="constrained")
    for ax, family in zip(axes[1:], ["ridge", "kernel_ridge", "knn"], strict=True):
        stmsi.tl.predict_metabolites(sdata, family, key_added=f"{family}_pred")
        stmsi.pl.spatial(
            sdata, LIPID, metabolite_key=f"{family}_pred", sample=HELD_OUT, vmin=0, vmax=5, title=f'"{family}"', ax=ax
        )
    stmsi.pl.spatial(paired(), LIPID, sample=HELD_OUT, vmin=0, vmax=5, title="measured, held out", ax=axes[0])
    return figure


def stack_weights() -> Figure:
    st = paired().tables["st"].copy()
    stmsi.model.HurdleEnsemble.setup_anndata(st, presence_key="msi_presence", graph_key="spatial_connectivities")
    members = ["ridge", "gene_ridge", "kernel_ridge", "screened_ridge"]
    model = stmsi.model.HurdleEnsemble(st, members=members)
    model.train()
    weights = model.weights.query("stage == 'intensity'").pivot_table(
        index="metabolite", columns="member", values="weight"
    )
    weights = weights[members].sort_values(members)
    figure, (ax,) = row(1, (7.4, 3))
    weights.plot.bar(stacked=True, width=0.9, ax=ax, color=["#440154", "#31688e", "#35b779", "#fde725"])
    ax.set(xlabel="metabolite", ylabel="weight in the map", ylim=(0, 1), xticks=[])
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def training() -> Figure:
    st = paired().tables["st"].copy()
    stmsi.model.HurdleNet.setup_anndata(st, presence_key="msi_presence")
    net = stmsi.model.HurdleNet(st)
    net.train(train_idx=st.obs["sample"] != HELD_OUT, max_epochs=60)
    return stmsi.pl.history(net, return_fig=True)


def neighbours() -> Figure:
    no_graph = {"graph_key": None}
    models = {
        "ridge": {"model": "gene_ridge", "setup": no_graph},
        "ridge, with neighbours": "gene_ridge",
        "mean": "mean",
    }
    scored = stmsi.tl.cross_validate(paired(), models, splitter=stmsi.model_selection.LeaveOneSampleOut())
    return stmsi.pl.performance(scored, metric=["pearson", "r2"], return_fig=True)


def presence_curves() -> Figure:
    st = predicted().tables["st"]
    return stmsi.pl.presence_curves(st[st.obs["sample"] == HELD_OUT].copy(), return_fig=True)


# -- Using predictions ---------------------------------------------------------


def folds() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    one = st[st.obs["sample"] == "P1S1"].copy()
    train, test = next(stmsi.model_selection.SpatialBlockKFold(4, block_size=400, buffer=200).split(one))
    part = pd.Series("buffer: left out", index=one.obs_names)
    part.iloc[train], part.iloc[test] = "training", "test"
    st.obs["blocks"] = pd.Categorical(part.reindex(st.obs_names))
    held = st.obs["sample"].map(lambda s: "test" if s == "P1S1" else "training")
    st.obs["sections"] = pd.Categorical(held)
    palette = {"training": "#31688e", "test": "#fd9a24", "buffer: left out": "#c8c8c8"}
    figure, axes = row(3, THREE)
    for ax, (key, sample, title) in zip(
        axes,
        [
            ("sections", "P1S1", "LeaveOneSampleOut: section 1"),
            ("sections", "P1S2", "LeaveOneSampleOut: section 2"),
            ("blocks", "P1S1", "SpatialBlockKFold"),
        ],
        strict=True,
    ):
        stmsi.pl.regions(sdata, key, sample=sample, palette=palette, title=title, ax=ax)
    return figure


def interval() -> Figure:
    sdata = predicted()
    figure, axes = row(3, THREE)
    where = {"sample": HELD_OUT}
    stmsi.pl.spatial(sdata, LIPID, metabolite_key="msi_pred", title="predicted", ax=axes[0], **where)
    stmsi.pl.spatial(
        sdata, LIPID, metabolite_key="msi_pred_width", title="width of the 90 % interval", ax=axes[1], **where
    )
    stmsi.pl.spatial(sdata, "msi_pred_ood", title="unlike the training spots", vmin=0.5, vmax=1.5, ax=axes[2], **where)
    return figure


def calibration() -> Figure:
    st = predicted().tables["st"]
    return stmsi.pl.calibration(st[st.obs["sample"] == HELD_OUT].copy(), return_fig=True)


def limits() -> Figure:
    return stmsi.pl.reliability(stmsi.tl.reliability(deepcopy(predicted()), scores(), model="ridge"), return_fig=True)


def genes_of_a_metabolite() -> Figure:
    sdata = deepcopy(paired())
    st = sdata.tables["st"]
    names = st.uns["msi"]["features"]["name"]
    drivers = {names[m]: list(rows["gene"]) for m, rows in st.uns["truth"]["drivers"].groupby("metabolite")}
    stmsi.pp.knowledge_prior(sdata, drivers)
    stmsi.tl.attribute(sdata, trained())
    ax = stmsi.pl.attention_heatmap(sdata, key="attribution", metabolites=LIPID, n_genes=16)
    return ax.figure


def draws() -> Figure:
    sdata = deepcopy(predicted())
    stmsi.tl.sample_metabolites(sdata, trained(), n_samples=2, rng=0)
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3), layout="constrained")
    panels = {"msi": "measured", "msi_pred": "prediction: a mean", "msi_sample_0": "draw 1", "msi_sample_1": "draw 2"}
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        stmsi.pl.spatial(sdata, LIPID, metabolite_key=key, sample=HELD_OUT, vmin=0, vmax=5, title=title, ax=ax)
    return figure


def missing_genes() -> Figure:
    """A section with all genes, and with half of them."""
    whole = predicted().tables["st"]
    whole = whole[whole.obs["sample"] == HELD_OUT].copy()
    few = whole[:, ::2].copy()
    stmsi.tl.predict_metabolites(few, trained())
    figure, axes = row(3, THREE)
    stmsi.pl.spatial(whole, LIPID, vmin=0, vmax=5, title="measured", ax=axes[0])
    key = {"metabolite_key": "msi_pred", "vmin": 0, "vmax": 5}
    stmsi.pl.spatial(whole, LIPID, title="predicted, all genes", ax=axes[1], **key)
    stmsi.pl.spatial(few, LIPID, title="predicted, half of the genes", ax=axes[2], **key)
    return figure


# -- Tasks ---------------------------------------------------------------------


def clusters() -> Figure:
    import scanpy as sc

    sdata = deepcopy(predicted())
    lipids = stmsi.get.as_table(sdata, metabolite_key="msi_pred")
    sc.pp.pca(lipids, n_comps=5)
    sc.pp.neighbors(lipids, n_neighbors=10, method="gauss")
    sc.tl.leiden(lipids, flavor="igraph", n_iterations=2)
    sdata.tables["st"].obs["metabolite clusters"] = lipids.obs["leiden"].to_numpy()
    figure, axes = row(2, TWO)
    stmsi.pl.regions(
        sdata, "metabolite clusters", sample=HELD_OUT, title="clusters of predicted metabolites", ax=axes[0]
    )
    stmsi.pl.regions(sdata, "domain", sample=HELD_OUT, title="domains of the simulation", ax=axes[1])
    return figure


def new_section() -> Figure:
    titles = {"msi_pred": "predicted", "msi_pred_presence": "P(present)", "msi_pred_width": "width of the interval"}
    return three_maps(LIPID, titles)


FIGURES: list[Callable[[], Figure]] = [
    nan_and_zero, spectrum, ion_image, spots_and_bins, cleaning, alignment, without_landmarks, mapping, partial_section,
    several_panels, two_stages, models_compared, families, stack_weights, training, neighbours, presence_curves, folds,
    interval, calibration, limits, genes_of_a_metabolite, draws, missing_genes, clusters, new_section,
]  # fmt: skip


if __name__ == "__main__":
    wanted = sys.argv[1:] or [make.__name__ for make in FIGURES]
    for make in FIGURES:
        if make.__name__ in wanted:
            save(make(), make.__name__)
            print(f"{make.__name__}: {(OUT / f'{make.__name__}.png').stat().st_size // 1024} kB", flush=True)

"""Makes the four pictures of the front page from simulated sections: python docs/front_figures.py."""

import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from numpy.typing import NDArray

import stmsi

mpl.use("Agg")
stmsi.settings.progress_bar = False
warnings.simplefilter("ignore")
OUT = Path(__file__).parent / "_static" / "front"
METABOLITE, HELD_OUT = "simPC(38:2)", "P2S2"
SPOT = 96  # um, larger than the 55 um of a Visium spot: no gaps at the width of a phone


def draw(xy: NDArray[np.floating], colours: NDArray[np.floating], name: str) -> None:
    """Write one picture: spots on a transparent ground, without words, which the page adds at its own size of type."""
    figure, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    size = np.full(len(xy), SPOT)
    ax.add_collection(
        EllipseCollection(
            size, size, np.zeros(len(xy)), units="xy", offsets=xy, offset_transform=ax.transData, facecolors=colours
        )
    )
    ax.set(xlim=(xy[:, 0].min() - SPOT, xy[:, 0].max() + SPOT), ylim=(xy[:, 1].max() + SPOT, xy[:, 1].min() - SPOT))
    ax.set_aspect("equal")
    ax.axis("off")
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        OUT / f"{name}.png",
        dpi=120,
        transparent=True,
        pil_kwargs={"optimize": True},
        metadata={"Software": None},
    )
    plt.close(figure)


sdata = stmsi.datasets.simulate(size=3600, n_genes=400, n_metabolites=24, coverage=1.0, rng=3)
stmsi.pp.normalize_msi(sdata)
stmsi.pp.align(sdata)
stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
stmsi.pp.call_presence(sdata)
st = sdata.tables["st"]
held_out = (st.obs["sample"] == HELD_OUT).to_numpy()
stmsi.model.HurdleLinear.setup_anndata(st, presence_key="msi_presence")
ridge = stmsi.model.HurdleLinear(st, intensity="ridge")
ridge.train(train_idx=~held_out)
stmsi.tl.predict_metabolites(sdata, ridge)

scores = (
    stmsi.tl.evaluate(sdata).query("sample == @HELD_OUT and stage == 'intensity'").set_index("metabolite")["pearson"]
)
features = stmsi.get.feature_table(sdata)
metabolite = features.index[features["name"] == METABOLITE][0]
section = st[held_out]
xy = section.obsm["spatial"]

genes = section.copy()
sc.pp.normalize_total(genes)
sc.pp.log1p(genes)
sc.pp.pca(genes, n_comps=3)
low, high = np.quantile(genes.obsm["X_pca"], [0.02, 0.98], axis=0)
draw(xy, 0.12 + 0.83 * np.clip((genes.obsm["X_pca"] - low) / (high - low), 0, 1), "genes")

measured = section.obsm["msi"][metabolite].to_numpy()
norm = Normalize(0, np.nanquantile(measured, 0.99))
viridis, plasma = (mpl.colormaps[name].with_extremes(bad="#9993") for name in ("viridis", "plasma"))
draw(xy, viridis(norm(np.ma.masked_invalid(measured))), "measured")
draw(xy, viridis(norm(section.obsm["msi_pred"][metabolite].to_numpy())), "predicted")
width = (section.obsm["msi_pred_upper"][metabolite] - section.obsm["msi_pred_lower"][metabolite]).to_numpy()
spread = Normalize(*np.quantile(width, [0.01, 0.99]))
draw(xy, plasma(spread(width)), "trust")
print(f"Pearson {scores[metabolite]:.2f}, median of {len(scores)} metabolites {scores.median():.2f}")
print(f"intensity 0 to {norm.vmax:.1f}, width {spread.vmin:.1f} to {spread.vmax:.1f}, {len(xy)} spots")

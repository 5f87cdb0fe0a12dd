"""Makes the figures of the gallery: python docs/gallery_figures.py. The page shows the parts between the markers."""

import warnings
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

import stmsi

mpl.use("Agg")
stmsi.settings.progress_bar = False
warnings.simplefilter("ignore")
OUT = Path(__file__).parent / "_static" / "gallery"
DPI = 90

# [data]
sdata = stmsi.datasets.simulate(size=2000, n_genes=300, n_metabolites=24)
stmsi.pp.normalize_msi(sdata)
stmsi.pp.align(sdata)
stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
stmsi.pp.call_presence(sdata)
st = sdata.tables["st"]
held_out = st.obs["sample"] == "P2S2"

stmsi.model.HurdleLinear.setup_anndata(st, presence_key="msi_presence")
ridge = stmsi.model.HurdleLinear(st, intensity="ridge")
ridge.train(train_idx=~held_out)
stmsi.tl.predict_metabolites(sdata, ridge)
# [end]

# ion images of truth know which genes drive them; a real section takes stmsi.pp.knowledge_prior(sdata)
names = st.uns["msi"]["features"]["name"]
drivers = {names[m]: list(rows["gene"]) for m, rows in st.uns["truth"]["drivers"].groupby("metabolite")}
stmsi.pp.knowledge_prior(sdata, drivers)
bonds = {"0": "saturated", "1": "one double bond"}
st.uns["msi"]["features"]["class"] = [bonds.get(n[-2], "several double bonds") for n in names]


def save(figure: Figure, name: str) -> None:
    """Write one figure."""
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / f"{name}.png", dpi=DPI, pil_kwargs={"optimize": True}, metadata={"Software": None})


# [spatial]
axes = stmsi.pl.spatial(sdata, ["simPC(28:0)", "simPC(36:0)"], sample=["P1S1", "P2S1"])
# [end]
save(axes[0].figure, "spatial")

# [composite]
axes = stmsi.pl.composite(sdata, ["simPC(28:0)", "simPC(36:0)"], table_key="msi", sample=["P1S1", "P2S1"])
# [end]
save(axes[0].figure, "composite")

# [regions]
axes = stmsi.pl.regions(sdata, "domain", sample=["P1S1", "P2S1"])
# [end]
save(axes[0].figure, "regions")

# [spectrum]
axes = stmsi.pl.spectrum(sdata, sample=["P1S1", "P2S1"], layer="raw")
# [end]
save(axes[0].figure, "spectrum")

# [uncertainty]
axes = stmsi.pl.spatial(sdata, "simPC(28:0)", metabolite_key="msi_pred_width", sample=["P2S1", "P2S2"])
# [end]
save(axes[0].figure, "uncertainty")

# [compare]
axes = stmsi.pl.compare(sdata, ["simPC(28:0)", "simPC(36:0)"], sample="P2S2")
# [end]
save(axes[0].figure, "compare")

# [alignment]
axes = stmsi.pl.alignment(sdata, sample=["P1S1", "P2S1"], kind="landmarks")
# [end]
save(axes[0].figure, "alignment")

# [performance]
scores = stmsi.tl.cross_validate(
    sdata, {"mean": "mean", "ridge": "ridge", "PLS": "pls"}, splitter=stmsi.model_selection.LeaveOneSampleOut()
)
axes = stmsi.pl.performance(scores, metric=["pearson", "r2"])
# [end]
save(axes[0].figure, "performance")

# [reliability]
axes = stmsi.pl.reliability(stmsi.tl.reliability(sdata, scores, model="ridge"))
# [end]
save(axes[0].figure, "reliability")

# [presence_curves]
unseen = sdata.tables["st"][held_out].copy()
axes = stmsi.pl.presence_curves(unseen)
# [end]
save(axes[0].figure, "presence_curves")

# [calibration]
axes = stmsi.pl.calibration(unseen)
# [end]
save(axes[0].figure, "calibration")

# [abstention]
ax = stmsi.experimental.plot_abstention(stmsi.experimental.abstention(unseen))
# [end]
save(ax.figure, "abstention")

# [realism]
stmsi.tl.sample_metabolites(sdata, ridge, n_samples=2, rng=0)
axes = stmsi.experimental.plot_realism(stmsi.experimental.realism(sdata, ["msi_sample_0", "msi_sample_1"]))
# [end]
save(axes[0].figure, "realism")

# [history]
stmsi.model.HurdleNet.setup_anndata(st, presence_key="msi_presence")
nets = {
    "MLP": stmsi.model.HurdleNet(st),
    "transformer": stmsi.model.HurdleNet(st, encoder="transformer"),
}
for net in nets.values():
    net.train(train_idx=~held_out, max_epochs=60)
axes = stmsi.pl.history(nets)
# [end]
save(axes[0].figure, "history")

# [attribution]
stmsi.tl.attribute(sdata, ridge)
ax = stmsi.pl.attention_heatmap(sdata, key="attribution", n_genes=36)
# [end]
save(ax.figure, "attribution")

# [attribution_bars]
ax = stmsi.pl.attention_heatmap(sdata, key="attribution", metabolites="simPC(28:0)", n_genes=16)
# [end]
save(ax.figure, "attribution_bars")

# [attention_heatmap]
stmsi.tl.attention(sdata, nets["transformer"], groupby="domain", per_spot="simPC(28:0)")
ax = stmsi.pl.attention_heatmap(sdata, n_genes=36)
# [end]
save(ax.figure, "attention_heatmap")

# [attention_spatial]
axes = stmsi.pl.attention_spatial(sdata, "simPC(28:0)", n_top=2, sample=["P1S1", "P2S1"])
# [end]
save(axes[0].figure, "attention_spatial")

print(pd.Series({p.name: p.stat().st_size // 1024 for p in sorted(OUT.glob("*.png"))}, name="kB"))

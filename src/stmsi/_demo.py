"""The whole way on simulated sections, as ``stmsi demo`` runs it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

import stmsi
from stmsi._keys import Key

if TYPE_CHECKING:
    from anndata import AnnData
    from rich.console import Console
    from spatialdata import SpatialData

MODELS = ("mean", "ridge", "mlp")
SHOWN = "ridge"
"""The model whose layers are written as ``msi_pred`` and drawn."""
_MARK = ".stmsi-demo"
_STEPS = 9


def run_demo(out: Path, *, seed: int, small: bool, console: Console) -> pd.DataFrame:
    """Simulate, align, train, predict a held-out section, score and draw; everything into one folder.

    Parameters
    ----------
    out
        Folder to write; an earlier demo there is replaced, anything else refused.
    seed
        Seed of simulation and models.
    small
        Toy sections instead of the default ones.
    console
        Where progress goes.

    Returns
    -------
    The scores, as written to ``scores.csv``.
    """
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} exists and was not written by the demo; pass another --out."
        raise FileExistsError(msg)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (scratch / _MARK).touch()
        scores = _run(scratch, seed, small, console)
        if out.exists():
            shutil.rmtree(out)
        scratch.chmod(0o755)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _report(scores, out, console)
    return scores


def _run(folder: Path, seed: int, small: bool, console: Console) -> pd.DataFrame:
    step = _steps(console)
    with step("Simulating paired sections (ST + MSI, known truth)"):
        sdata = stmsi.datasets.toy(rng=seed) if small else stmsi.datasets.simulate(rng=seed)
    st, msi = sdata.tables[Key.table.ST], sdata.tables[Key.table.MSI]
    sections = list(dict.fromkeys(st.obs[Key.obs.SAMPLE].astype(str)))
    held_out = sections[-1]
    with step("Normalising MSI (total ion current of the whole spectrum, log)"):
        stmsi.pp.normalize_msi(sdata, tic_key=Key.obs.TIC)
        stmsi.pp.filter_metabolites(sdata, min_prevalence=0.01)
    with step("Aligning by landmarks and mapping pixels to spots"):
        stmsi.pp.align(sdata)
        stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
        stmsi.pp.call_presence(sdata)
        report = stmsi.pp.alignment_report(sdata)
        report.to_csv(folder / "alignment.csv")
    is_test = (st.obs[Key.obs.SAMPLE] == held_out).to_numpy()
    train, test = st[~is_test].copy(), st[is_test].copy()
    with step("Clusters and gene signatures (training sections only)"):
        cluster_spots(train, seed)
        stmsi.pp.gene_signatures(train, cluster_key=Key.obs.CLUSTER, n_genes=min(50, train.n_vars // 4))
    console.print(f"    training sections: {', '.join(sections[:-1])}; held out: {held_out}")

    tables, models = [], {}
    for name in MODELS:
        with step(f"Training {name!r} (presence, then intensity), predicting the held-out section"):
            models[name] = train_named(train, name, seed)
            tables.append(
                stmsi.tl.evaluate(stmsi.tl.predict_metabolites(test, models[name], copy=True)).assign(model=name)
            )
    stmsi.tl.predict_metabolites(sdata, models[SHOWN])
    scores = pd.concat(tables, ignore_index=True)
    scores["kind"] = scores["metabolite"].map(msi.var["kind"].astype(str))
    scores["predictable"] = scores["metabolite"].map(msi.var["predictable"])
    with step("Writing data, models, scores"):
        scores.to_csv(folder / "scores.csv", index=False)
        models[SHOWN].save(folder / "model")
        sdata.write(folder / "demo.zarr")
    with step("Drawing figures"):
        draw(sdata, scores, held_out, folder)
    return scores


def cluster_spots(adata: AnnData, seed: int) -> None:
    """Leiden clusters of the spots into ``obs["cluster"]``, the scanpy way."""
    import scanpy as sc

    work = adata.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.pp.pca(work, n_comps=min(20, work.n_vars - 1, work.n_obs - 1), random_state=seed)
    sc.pp.neighbors(work, random_state=seed)
    sc.tl.leiden(work, resolution=0.5, key_added=Key.obs.CLUSTER, flavor="igraph", n_iterations=2, random_state=seed)
    adata.obs[Key.obs.CLUSTER] = work.obs[Key.obs.CLUSTER]


def train_named(train: AnnData, name: str, seed: int) -> Any:
    """A model of the demo, trained on the training sections."""
    from stmsi.model._registry import resolve

    cls, params, _, _ = resolve(name)
    cls.setup_anndata(
        train, presence_key=Key.obsm.PRESENCE, signature_key=Key.varm.SIGNATURE, cluster_key=Key.obs.CLUSTER
    )
    model = cls(train, **params, rng=seed)
    model.train()
    return model


def examples(scores: pd.DataFrame) -> list[str]:
    """Metabolites to show: the best and the median predictable one, and an unpredictable one."""
    own = scores[(scores["model"] == SHOWN) & (scores["stage"] == "intensity")].dropna(subset=["pearson"])
    ranked = own[own["predictable"]].sort_values("pearson", ascending=False)["metabolite"].tolist()
    hidden = own[~own["predictable"].astype(bool)].sort_values("pearson")["metabolite"].tolist()
    return [ranked[0], ranked[len(ranked) // 2], hidden[len(hidden) // 2]]


def draw(sdata: SpatialData, scores: pd.DataFrame, held_out: str, folder: Path) -> None:
    """The figures of the demo as PNG files."""
    import matplotlib.pyplot as plt

    chosen = examples(scores)
    figures: dict[str, Callable[[], Any]] = {
        "compare": lambda: stmsi.pl.compare(sdata, chosen, sample=held_out, show=False, return_fig=True),
        "presence": lambda: stmsi.pl.spatial(
            sdata, chosen, key=Key.presence_of(Key.obsm.PRED), sample=held_out, show=False, return_fig=True
        ),
        "coverage": lambda: stmsi.pl.spatial(sdata, Key.obs.COVERAGE, show=False, return_fig=True),
        "performance": lambda: stmsi.pl.performance(
            scores, metric="pearson", stage="intensity", hue="predictable", show=False, return_fig=True
        ),
        "performance_presence": lambda: stmsi.pl.performance(
            scores, metric="auroc", stage="presence", hue="predictable", show=False, return_fig=True
        ),
    }
    for name, make in figures.items():
        figure = make()
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over metabolites of the held-out section: one row per model, predictable and unpredictable apart."""
    wide = scores.groupby(["model", "predictable", "stage"], sort=False)[["auroc", "auprc", "prevalence", "f1"]].mean()
    intensity = scores.groupby(["model", "predictable", "stage"], sort=False)[["pearson", "spearman", "r2"]].mean()
    return wide.xs("presence", level="stage").join(intensity.xs("intensity", level="stage"))


def _report(scores: pd.DataFrame, out: Path, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as Printer
    from rich.table import Table

    table = Table(
        title="Held-out section, means over metabolites (simulated data)", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    means = summary(scores).rename(columns={"prevalence": "(base)", "r2": "R2"})
    for name in ("model", "driven by", *means.columns):
        table.add_column(name, justify="left" if name in ("model", "driven by") else "right", no_wrap=True)
    for key, row in means.iterrows():
        model, predictable = cast("tuple[str, bool]", key)
        table.add_row(model, "genes" if predictable else "no gene", *("–" if np.isnan(v) else f"{v:.3f}" for v in row))
    Printer().print(table)
    console.print(
        "'mean' is the baseline that knows no gene; (base) is the prevalence, to which auprc compares. Metabolites driven "
        "by no gene must not be predictable: if they were, something leaked."
    )
    console.print(f"Written to {out}/: demo.zarr, model/, scores.csv, alignment.csv and figures (*.png).")
    console.print(f'Next: spatialdata.read_zarr("{out}/demo.zarr"), or stmsi predict --help for your own sections.')


def _steps(console: Console) -> Callable[[str], Any]:
    number = iter(range(1, _STEPS + 1))

    @contextmanager
    def step(text: str) -> Iterator[None]:
        start = perf_counter()
        console.print(f"[bold]{next(number)}/{_STEPS}[/] {text} ...")
        yield
        console.print(f"    [dim]{perf_counter() - start:.1f} s[/]")

    return step

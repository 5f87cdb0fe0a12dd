"""All steps on simulated sections, as ``stmsi demo`` runs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import stmsi
from stmsi._data.checks import listing
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._data.keys import Key
from stmsi._data.small_files import read_json
from stmsi._data.unfinished import clear_leftovers, take_place, unfinished
from stmsi._report import demo_report
from stmsi.cli._app import say, step
from stmsi.cli._files import write_csv, write_text
from stmsi.cli._next_step import command_line, new_path

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MODELS = ("mean", "ridge", "mlp")
SHOWN = "ridge"
"""The model whose layers are written as ``msi_pred`` and drawn."""
_MARK = ".stmsi-demo"
_DOCS = "https://stmsi.readthedocs.io/en/latest"


def run_demo(out: Path, *, seed: int, small: bool) -> pd.DataFrame:
    """Simulate, align, train, predict a held-out section, score, draw and report, all into one folder; the scores.

    An earlier demo in the folder is replaced. A folder that holds anything else, or files of the demo that were changed, is
    refused: nothing is deleted that the demo did not write.
    """
    clear_leftovers(out.absolute().parent, out.name)
    _refuse_foreign_files(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = command_line("demo", "--seed", seed, *(["--small"] if small else []), "--out", out)
    with unfinished(out) as scratch:
        new = scratch / "new"
        new.mkdir()
        scores = _run(new, seed, small, command, out)
        (new / _MARK).write_text(json.dumps(_checksums(new)), encoding="utf-8")
        _refuse_foreign_files(out)  # again: the run took its time
        take_place(new, out, scratch)
    return scores


def _refuse_foreign_files(out: Path) -> None:
    """Raise where a folder holds anything but an unchanged earlier demo."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / _MARK).is_file()):
        msg = f"{out} exists and was not written by the demo; pass another --out."
        raise FileExistsError(msg)
    if not any(out.iterdir()):
        return
    try:
        written = read_json(out / _MARK, "the list of files of a demo")
    except ValueError as error:
        msg = f"{out} exists and was not written by the demo, as far as its list of files tells ({error}); pass another --out."
        raise FileExistsError(msg) from error
    found = _checksums(out)
    if foreign := sorted(name for name in found if found[name] != written.get(name)):
        msg = (
            f"{out} holds files that were not written by the demo, or changed since: {listing(foreign)}. Move them, or pass "
            "another --out."
        )
        raise FileExistsError(msg)


def _checksums(folder: Path) -> dict[str, str]:
    """Checksum of every file of a folder by its relative path, but for the list itself; of links and pipes what they are."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            found[name] = "no file"
        elif path.is_file() and name != _MARK:
            with path.open("rb") as handle:
                found[name] = hashlib.file_digest(handle, "sha256").hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[name] = "empty folder"
    return found


def _run(folder: Path, seed: int, small: bool, command: str, out: Path) -> pd.DataFrame:
    with step("1/9 Simulating paired sections (ST + MSI, known truth)"):
        sdata = stmsi.datasets.toy(rng=seed) if small else stmsi.datasets.simulate(rng=seed)
    st, msi = sdata.tables[Key.table.ST], sdata.tables[Key.table.MSI]
    sections = list(dict.fromkeys(st.obs[Key.obs.SAMPLE].astype(str)))
    held_out = sections[-1]
    with step("2/9 Normalising MSI (total ion current of the whole spectrum, log)"):
        stmsi.pp.normalize_msi(sdata, tic_key=Key.obs.TIC)
        stmsi.pp.filter_metabolites(sdata, min_prevalence=0.01)
    with step("3/9 Aligning by landmarks and mapping pixels to spots"):
        stmsi.pp.align(sdata)
        stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
        stmsi.pp.call_presence(sdata)
        write_csv(stmsi.pp.alignment_report(sdata).reset_index(), folder / "alignment.csv")
    is_test = (st.obs[Key.obs.SAMPLE] == held_out).to_numpy()
    train, test = st[~is_test].copy(), st[is_test].copy()
    with step("4/9 Clusters and gene signatures (training sections only)"):
        cluster_spots(train, seed)
        stmsi.pp.gene_signatures(train, cluster_key=Key.obs.CLUSTER, n_genes=min(50, train.n_vars // 4))
    say(f"    training sections: {', '.join(sections[:-1])}; held out: {held_out}")

    tables, models = [], {}
    for number, name in enumerate(MODELS, 5):
        with step(f"{number}/9 Training {name!r} (presence, then intensity), predicting the held-out section"):
            models[name] = train_named(train, name, seed)
            predicted = stmsi.tl.predict_metabolites(test, models[name], copy=True)
            tables.append(stmsi.tl.evaluate(predicted).assign(model=name))
    stmsi.tl.predict_metabolites(sdata, models[SHOWN])
    stmsi.tl.reliability(sdata)
    scores = pd.concat(tables, ignore_index=True)
    scores["kind"] = scores["metabolite"].map(msi.var["kind"].astype(str))
    scores["predictable"] = scores["metabolite"].map(msi.var["predictable"])
    with step("8/9 Writing data, model, scores"):
        write_csv(scores, folder / "scores.csv")
        models[SHOWN].save(folder / "model")
        sdata.write(folder / "demo.zarr")
    with step("9/9 Drawing figures and writing the report"):
        draw(sdata, scores, held_out, folder)
        facts = {
            "Trained on": ", ".join(sections[:-1]),
            "Held out": held_out,
            "Spots": f"{train.n_obs} to train on, {test.n_obs} held out",
            "Genes": str(train.n_vars),
            "Metabolites": f"{msi.n_vars}, of which {int(msi.var['predictable'].sum())} follow genes",
            "Models": f"{', '.join(MODELS)}; figures and demo.zarr are of {SHOWN!r}",
            "Seed": str(seed),
        }
        shown = scores[scores["model"] == SHOWN]
        commands = [("Make it again", command), *_further(out, held_out)]
        page = demo_report(folder, summary(scores), facts, commands, shown, st.uns[Key.obsm.PRED]["features"])
        write_text(page.html(), folder / "report.html")
    return scores


def _further(out: Path, held_out: str) -> list[tuple[str, str]]:
    """What to do next with the folder of the demo, as it runs where the demo ran: headings and lines."""
    data, model = out / "demo.zarr", out / "model"
    predicted = new_path(out, "predicted", ".zarr")
    python = [
        "import spatialdata, stmsi",
        "",
        f"sdata = spatialdata.read_zarr({str(data)!r})",
        f"model = stmsi.model.load({str(model)!r})",
        'metabolite = sdata.tables["st"].obsm["msi_pred"].columns[0]',
        f"stmsi.pl.compare(sdata, metabolite, sample={held_out!r})  # the section that was held out",
    ]
    shell = [
        command_line("predict", data, "--model", model, "--out", predicted),
        command_line("evaluate", predicted, "--model", model, "--report", new_path(out, "scores", ".html")),
    ]
    return [("Go on in Python", "\n".join(python)), ("Predict and score on the command line", "\n".join(shell))]


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
    from stmsi.model._families import resolve

    cls, params, _, _ = resolve(name)
    keys = {"signature_key": Key.varm.SIGNATURE, "cluster_key": Key.obs.CLUSTER}
    cls.setup_anndata(train, presence_key=Key.obsm.PRESENCE, **keys)
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

    chosen, there = examples(scores), Key.presence_of(Key.obsm.PRED)
    out: dict[str, Any] = {"show": False, "return_fig": True}
    figures: dict[str, Callable[[], Any]] = {
        "compare": lambda: stmsi.pl.compare(sdata, chosen, sample=held_out, **out),
        "presence": lambda: stmsi.pl.spatial(sdata, chosen, metabolite_key=there, sample=held_out, **out),
        "alignment": lambda: stmsi.pl.alignment(sdata, sample=held_out, **out),
        "coverage": lambda: stmsi.pl.spatial(sdata, Key.obs.COVERAGE, **out),
        "performance": lambda: stmsi.pl.performance(scores, hue="predictable", **out),
        "performance_presence": lambda: stmsi.pl.performance(scores, stage="presence", hue="predictable", **out),
    }
    for name, make in figures.items():
        figure = make()
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over metabolites of the held-out section: one row per model, predictable and unpredictable apart."""
    groups = constant_counts_as_zero(scores).groupby(["model", "predictable", "stage"], sort=False)
    presence = groups[["auroc", "auprc", "prevalence", "f1"]].mean().xs("presence", level="stage")
    return presence.join(groups[["pearson", "spearman", "r2"]].mean().xs("intensity", level="stage"))


def say_next(out: Path) -> None:
    """Tell what was written and where to look next."""
    say(
        "'mean' is the baseline that knows no gene; (base) is the prevalence, to which auprc compares. Metabolites driven "
        "by no gene are the control: single ones scatter around chance, and if all were predictable, something leaked."
    )
    say(f"Written to {out}/: report.html, demo.zarr, model/, scores.csv, alignment.csv and figures (*.png).")
    say("")
    say("Where to look next")
    for what, where in {
        "the report, in a browser": out / "report.html",
        "the data, in Python": f'import spatialdata; spatialdata.read_zarr("{out}/demo.zarr")',
        "the model, here or elsewhere": command_line(
            "predict", out / "demo.zarr", "--model", out / "model", "--out", new_path(out, "predicted", ".zarr")
        ),
        "reading your own sections": f"{_DOCS}/user_guide/reading_msi.html",
        "which model to choose": f"{_DOCS}/user_guide/choosing_a_model.html",
        "what not to conclude": f"{_DOCS}/user_guide/limits.html",
    }.items():
        say(f"  {what + ':':<30} {where}")

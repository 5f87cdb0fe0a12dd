"""What stmsi says where there is nothing to know, and where new data are unlike the training data.

    python benchmarks/trust/noise.py --docs

*Noise*: each metabolite is shuffled among the spots of each section, so that no gene knows anything of it. Counted are those to which
the model or cross-validation give trust. *Shift*: a held-out simulated section is predicted as it is and after a change; told are the score
of unusual spots, the width of the intervals, their coverage, and whether a warning is given. Tables go to ``benchmarks/trust/results`` and, with ``--docs``,
into ``docs/user_guide/uncertainty.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

import stmsi
from stmsi._core.spatial.sections import rows_of_each
from stmsi.model._families import resolve

_HERE = Path(__file__).resolve().parent
_PAGE = _HERE.parents[1] / "docs" / "user_guide" / "uncertainty.md"
_SIZE = {"n_patients": 4, "sections_per_patient": 1, "size": 1400, "n_genes": 150, "n_metabolites": 20}
FAMILIES: dict[str, Any] = {
    "ridge": "ridge",
    "kernel_ridge": "kernel_ridge",
    "screened_ridge": "screened_ridge",
    "mlp, one network": {"model": "mlp", "n_nets": 1},
    "mlp, one for each of three groups": {"model": "mlp", "n_nets": 3},
}


def sections(seed: int) -> AnnData:
    """Spots of simulated sections with mapped MSI and presence."""
    sdata = stmsi.datasets.simulate(rng=seed, **_SIZE)
    stmsi.pp.normalize_msi(sdata, tic_key="tic")
    stmsi.pp.align(sdata)
    stmsi.pp.map_to_spots(sdata, min_coverage=0.5)
    stmsi.pp.call_presence(sdata)
    st = sdata.tables["st"]
    return st[st.obsm["msi"].notna().all(axis=1).to_numpy()].copy()


def shuffled(st: AnnData, seed: int) -> AnnData:
    """A copy in which each metabolite, with its presence, is shuffled among the spots of each section."""
    out, rng = st.copy(), np.random.default_rng(seed)
    tables = {key: st.obsm[key].to_numpy().copy() for key in ("msi", "msi_presence")}
    for rows in rows_of_each(pd.factorize(st.obs["sample"].astype(str))[0]):
        for column in range(tables["msi"].shape[1]):
            order = rng.permutation(rows)
            for values in tables.values():
                values[rows, column] = values[order, column]
    for key, values in tables.items():
        out.obsm[key] = pd.DataFrame(values, index=st.obs_names, columns=st.obsm[key].columns)
    return out


def trained(train: AnnData, family: Any) -> Any:
    """A model of a family, trained on all spots."""
    cls, params, setup, options = resolve(family)
    cls.setup_anndata(train, presence_key="msi_presence", **setup)
    model = cls(train, **params)
    model.train(show_progress_bar=False, **options)
    return model


def noise(families: tuple[str, ...], seeds: int) -> pd.DataFrame:
    """Share of shuffled metabolites that earn trust, by family."""
    rows = []
    data = [shuffled(sections(20 + seed), seed) for seed in range(seeds)]
    for family in families:
        tiers, scores = [], []
        for st in data:
            last = (st.obs["sample"] == st.obs["sample"].unique()[-1]).to_numpy()
            train, test = st[~last].copy(), st[last].copy()
            model = trained(train, FAMILIES[family])
            stmsi.tl.predict_metabolites(test, model)
            table = stmsi.tl.reliability(test)
            tiers += table["tier"].astype(str).tolist()
            scores += stmsi.tl.evaluate(test).query("stage == 'intensity'")["pearson"].fillna(0).tolist()
        rows.append(
            {
                "family": family,
                "metabolites": len(tiers),
                "above none": sum(t != "none" for t in tiers),
                "share": f"{np.mean([t != 'none' for t in tiers]):.1%}",
                "correlation in the held-out section": f"{np.mean(scores):.3f}",
            }
        )
        sys.stdout.write(f"{rows[-1]}\n")
    return pd.DataFrame(rows)


def _thinned(st: AnnData, share: float) -> AnnData:
    out = st.copy()
    counts = sp.csr_matrix(st.X)
    counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), share).astype(np.float32)
    out.X = counts
    return out


def _without_genes(st: AnnData, share: float) -> AnnData:
    keep = np.random.default_rng(0).random(st.n_vars) >= share
    return st[:, keep].copy()


def _permuted_genes(st: AnnData) -> AnnData:
    """Genes under each other's names: as another tissue would look."""
    out = st.copy()
    out.X = sp.csr_matrix(st.X)[:, np.random.default_rng(0).permutation(st.n_vars)]
    return out


def _scaled_genes(st: AnnData, spread: float) -> AnnData:
    """Genes caught more or less often than in training, as with another chemistry."""
    out, rng = st.copy(), np.random.default_rng(0)
    factor = rng.lognormal(0, spread, st.n_vars)
    counts = sp.csr_matrix(st.X)
    counts.data = rng.poisson(counts.data * factor[counts.indices]).astype(np.float32)
    out.X = counts
    return out


SHIFTS: dict[str, Callable[[AnnData], AnnData]] = {
    "as it is": lambda st: st.copy(),
    "a quarter of the counts": lambda st: _thinned(st, 0.25),
    "a third of the genes missing": lambda st: _without_genes(st, 1 / 3),
    "genes caught 0.4 to 2.7 times as often": lambda st: _scaled_genes(st, 0.5),
    "genes caught 0.1 to 7 times as often": lambda st: _scaled_genes(st, 1.0),
    "genes under each other's names": _permuted_genes,
}


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def shifts(families: tuple[str, ...]) -> pd.DataFrame:
    """The held-out section as it is and changed: score of unusual spots, intervals, error and warnings."""
    st = sections(30)
    last = (st.obs["sample"] == st.obs["sample"].unique()[-1]).to_numpy()
    train, test = st[~last].copy(), st[last].copy()
    measured = test.obsm["msi"].to_numpy()
    rows = []
    for family in families:
        model = trained(train, FAMILIES[family])
        first = 0.0
        for name, change in SHIFTS.items():
            query, heard = change(test), _Heard()
            logging.getLogger("stmsi").addHandler(heard)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                stmsi.tl.predict_metabolites(query, model)
            logging.getLogger("stmsi").removeHandler(heard)
            lower, upper = (query.obsm[f"msi_pred_{end}"].to_numpy() for end in ("lower", "upper"))
            width = float((upper - lower).mean())
            first = first or width
            score = query.obs["msi_pred_ood"].to_numpy()
            told = [
                line
                for line in [*heard.lines, *(str(w.message) for w in said)]
                if "outside what" in line or "genes are missing" in line
            ]
            rows.append(
                {
                    "family": family,
                    "section": name,
                    "unusual spots": f"{np.mean(score > 1):.0%}",
                    "score, median": f"{np.median(score):.2f}",
                    "width of intervals": f"{width / first:.2f}",
                    "coverage": f"{np.mean((measured >= lower) & (measured <= upper)):.0%}",
                    "RMSE": f"{np.sqrt(np.mean((query.obsm['msi_pred'].to_numpy() - measured) ** 2)):.2f}",
                    "warning": "yes" if told else "no",
                }
            )
            sys.stdout.write(f"{rows[-1]} {told[:1]}\n")
            sys.stdout.flush()
    return pd.DataFrame(rows)


def _put(page: Path, mark: str, frame: pd.DataFrame) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(mark)
    after = rest.partition(mark)[2]
    lines = ["| " + " | ".join(frame.columns) + " |", "|---" * frame.shape[1] + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False, name=None)]
    page.write_text("\n".join([f"{before}{mark}", "", *lines, "", f"{mark}{after}"]), encoding="utf-8")


def main() -> None:
    """Run both experiments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--shift-families", nargs="+", choices=list(FAMILIES), default=["ridge", "kernel_ridge"])
    parser.add_argument("--seeds", type=int, default=2, help="cohorts of noise")
    parser.add_argument("--docs", action="store_true", help="put the tables into the page of the docs")
    args = parser.parse_args()
    stmsi.settings.progress_bar = False
    stmsi.settings.verbosity = "WARNING"
    warnings.simplefilter("ignore")
    tables = {"noise": noise(tuple(args.families), args.seeds), "shift": shifts(tuple(args.shift_families))}
    (_HERE / "results").mkdir(exist_ok=True)
    for name, frame in tables.items():
        sys.stdout.write(f"{frame.to_string(index=False)}\n")
        frame.to_csv(_HERE / "results" / f"{name}.csv", index=False)
        if args.docs:
            _put(_PAGE, f"<!-- {name} of benchmarks/trust/noise.py -->", frame)


if __name__ == "__main__":
    main()

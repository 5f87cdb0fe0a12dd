"""What exact zeros cost where targets are noisy: hidden genes, predicted by ridge with zeros, without, and in one stage.

    python benchmarks/accuracy/zeros.py                            # 30 targets, three patients
    python benchmarks/accuracy/zeros.py --targets 100 --folds 0 1 2 3 4 5 6 7

- **zeros**: :meth:`stmsi.model.HurdleLinear.predict`, 0 where presence is not called.
- **product**: probability of presence times intensity given presence, everywhere.
- **one stage**: ridge regression of all values, zeros or not, on the same components.

Prints the Pearson correlation of each, per target within each test section, as the mean over sections and targets.
"""

from __future__ import annotations

import argparse
import warnings

import anndata as ad
import numpy as np
import pandas as pd

from stmsi.metrics import pearson
from stmsi.model import HurdleLinear

try:
    from benchmarks.accuracy.tasks import her2st_panel
except ModuleNotFoundError:  # run as a script
    from tasks import her2st_panel


def fit(adata: ad.AnnData, train: np.ndarray, presence_key: str | None, n_jobs: int) -> HurdleLinear:
    """Ridge on the training spots."""
    HurdleLinear.setup_anndata(adata, presence_key=presence_key)
    model = HurdleLinear(adata, n_jobs=n_jobs)
    model.train(train_idx=train, show_progress_bar=False)
    return model


def within_sections(truth: pd.DataFrame, predicted: pd.DataFrame, sample: pd.Series) -> float:
    """Mean over sections and targets; a prediction that does not vary counts as 0."""
    scores = [
        pearson(truth[sample == name].to_numpy(), predicted[sample == name].to_numpy()) for name in sample.unique()
    ]
    return float(np.nan_to_num(scores).mean())


def main() -> None:
    """Fit, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=30)
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 2, 5])
    parser.add_argument("--n-jobs", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    task = her2st_panel()
    st = task.adata
    st.obsm["msi"] = st.obsm["msi"].iloc[:, : args.targets]
    st.obsm["everywhere"] = pd.DataFrame(1.0, st.obs_names, st.obsm["msi"].columns)
    folds = list(task.splitter.split(st))
    rows = {}
    for k in args.folds:
        train, test = folds[k]
        query = st[test].copy()
        two = fit(st, train, None, args.n_jobs)
        one = fit(st, train, "everywhere", args.n_jobs)
        predicted = {
            "zeros": two.predict(query),
            "product": two.predict_presence(query) * two.predict_intensity(query),
            "one stage": one.predict(query),
        }
        rows[k] = {
            name: within_sections(query.obsm["msi"], p, query.obs["sample"].astype(str))
            for name, p in predicted.items()
        }
        print(k, {name: round(score, 3) for name, score in rows[k].items()}, flush=True)
    print(pd.DataFrame(rows).mean(axis=1).round(3).to_string())


if __name__ == "__main__":
    main()

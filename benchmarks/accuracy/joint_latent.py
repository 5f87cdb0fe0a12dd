"""Two published ideas that have no class in stmsi, on simulated sections: a joint latent space, and embeddings of the adjacency.

    python benchmarks/accuracy/joint_latent.py

*Joint latent*: totalVI of scvi-tools with metabolites in the place of proteins, missing in the sections that are predicted, whose genes it
is trained with (stmsi's models never see them). Intensities are scaled to a mean of 10 and rounded, since it models counts. *Adjacency*: 32
singular vectors of each section's graph as further features of ridge, as in a published class report. Data and scores are those of
``attention.py`` (300 genes, sections of 1,600 um): three patients, the third is left out, correlation inside its sections.
"""

from __future__ import annotations

import argparse
import warnings
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse.linalg import svds

from stmsi.model._families import resolve

try:
    from benchmarks.accuracy.attention import sections, within
except ModuleNotFoundError:  # run as a script
    from attention import sections, within

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

N_VECTORS = 32
LEVEL = 10.0
"""Mean of each metabolite as counts."""


def add_adjacency(adata: AnnData) -> None:
    """Singular vectors of the graph of each section, by falling singular value; written into ``obsm["adjacency"]``."""
    out = np.zeros((adata.n_obs, N_VECTORS), np.float32)
    for rows in adata.obs.groupby("sample", observed=True).indices.values():
        edges = adata.obsp["spatial_connectivities"][rows][:, rows].astype(np.float64)
        u, s, _ = svds(edges, k=N_VECTORS, rng=0)
        out[rows] = u[:, np.argsort(-s)] * len(rows) ** 0.5
    adata.obsm["adjacency"] = out


def ridge(train: AnnData, test: AnnData, **setup: Any) -> NDArray[np.float64]:
    """Maps of a ridge regression."""
    cls, params, _, options = resolve("ridge")
    cls.setup_anndata(train, **setup)
    model = cls(train, **params)
    model.train(show_progress_bar=False, **options)
    return np.asarray(model.predict(test), np.float64)


def total_vi(adata: AnnData, held_out: NDArray[np.bool_], max_epochs: int) -> NDArray[np.float64]:
    """Metabolites of the spots held out, as totalVI imputes them."""
    import scvi

    scvi.settings.seed = 0
    joint = adata.copy()
    joint.obs["sample"] = joint.obs["sample"].astype(str)
    counts = joint.obsm["msi"].astype(np.float64)
    counts = (counts * LEVEL / counts[~held_out].mean()).round()
    counts[held_out] = 0.0  # a batch without any counts of a protein: not measured there
    joint.obsm["msi"] = counts
    scvi.model.TOTALVI.setup_anndata(joint, protein_expression_obsm_key="msi", batch_key="sample")
    model = scvi.model.TOTALVI(joint, empirical_protein_background_prior=False)
    model.train(max_epochs=max_epochs, enable_progress_bar=False)
    measured = sorted(set(joint.obs.loc[~held_out, "sample"]))
    _, imputed = model.get_normalized_expression(
        joint[held_out], transform_batch=measured, n_samples=5, return_mean=True, include_protein_background=True
    )
    return np.asarray(imputed, np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=200, help="of totalVI")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    st, follows = sections(300, 11, 1600)
    add_adjacency(st)
    held_out = (st.obs["patient"] == "P3").to_numpy()
    train, test = st[~held_out].copy(), st[held_out].copy()
    models = {
        "ridge": lambda: ridge(train, test),
        "ridge and adjacency": lambda: ridge(train, test, feature_key="adjacency"),
        "totalVI": lambda: total_vi(st, held_out, args.max_epochs),
    }
    rows = []
    for name, predict in models.items():
        start = process_time()
        scores = within(test, predict())
        at = follows.to_numpy()
        rows.append((name, scores[at].mean(), scores[~at].mean(), process_time() - start))
        print(f"{name}: {rows[-1][1]:.3f}, {rows[-1][3]:.0f} s", flush=True)
    print(
        pd.DataFrame(rows, columns=["model", "follows genes", "follows none", "cpu_s"]).round(3).to_string(index=False)
    )


if __name__ == "__main__":
    main()

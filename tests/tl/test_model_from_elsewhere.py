"""A saved model on data of another laboratory: species, panel and units, and the lines of the page about it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import stmsi

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "model_from_elsewhere.md"
GENES = 60
SYMBOLS = [f"GENE{chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(GENES)]
IDS = [f"ENSG{i:011d}" for i in range(GENES)]
MOUSE_IDS = [f"ENSMUSG{i:011d}" for i in range(GENES)]


def _spots(n: int, seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    loads = np.random.default_rng(0).gamma(1, 1, (3, GENES)) * np.linspace(2, 0.2, GENES) + 0.2
    factor = np.exp(rng.normal(size=(n, 3)))
    adata = AnnData(sp.csr_matrix(rng.poisson(factor @ loads), dtype=np.float32))
    adata.obs_names = [f"s{seed}_{i}" for i in range(n)]
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(n), 12)) * 100.0
    level = np.maximum(factor[:, :2] - 0.5, 0)
    adata.obsm["msi"] = pd.DataFrame(level.astype(np.float32), index=adata.obs_names, columns=["m1", "m2"])
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of human genes, known by symbol and id."""
    folder = tmp_path_factory.mktemp("elsewhere") / "model_dir"
    train = _spots(120, 1)
    train.var = pd.DataFrame({"gene_ids": IDS}, index=SYMBOLS)
    stmsi.model.HurdleLinear.setup_anndata(train)
    model = stmsi.model.HurdleLinear(train, n_components=5, n_folds=2)
    model.train(show_progress_bar=False)
    model.save(folder)
    return folder


@pytest.fixture
def query():
    """A section without MSI, positions in pixels, no name."""
    made = _spots(40, 2)
    return AnnData(made.X, pd.DataFrame(index=made.obs_names), obsm={"spatial": made.obsm["spatial"] / 0.37})


@pytest.fixture
def expected(folder, query):
    query = query.copy()
    query.var_names = SYMBOLS
    return stmsi.tl.predict_metabolites(query, str(folder), copy=True).obsm["msi_pred"]


@pytest.mark.parametrize(
    "names", [[f"{i}.{n % 9 + 1}" for n, i in enumerate(IDS)], IDS, [f"GRCh38_{s}" for s in SYMBOLS]]
)
def test_ids_with_versions_and_genomes_predict_the_same(folder, query, expected, names):
    query.var_names = names
    shuffled = query[:, np.random.default_rng(0).permutation(GENES)].copy()
    stmsi.tl.predict_metabolites(shuffled, folder)
    np.testing.assert_allclose(shuffled.obsm["msi_pred"], expected, rtol=1e-5, atol=1e-6)
    assert shuffled.uns["msi_pred"]["missing_genes"] == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [s.title() for s in SYMBOLS],
            "60 names agree only when upper and lower case are ignored.*human.*mouse or rat",
        ),
        (MOUSE_IDS, "share no gene.*panel looks like human, the data like mouse"),
    ],
)
def test_another_species_is_refused_with_the_way(folder, query, names, message):
    query.var_names = names
    with pytest.raises(ValueError, match=f"{message}.*one-to-one orthologs"):
        stmsi.tl.predict_metabolites(query, folder)
    assert "msi_pred" not in query.obsm


def test_a_foreign_panel_counts_by_weight(folder, query, caplog):
    """Half of the genes may be nearly all of the weight, or hardly any."""
    model = stmsi.model.load(folder)
    weight = model._gene_weights()
    order = np.argsort(-weight)
    query.var_names = SYMBOLS
    heavy = query[:, order[: GENES // 2]].copy()
    stmsi.tl.predict_metabolites(heavy, folder)
    share = weight[order[GENES // 2 :]].sum()
    assert heavy.uns["msi_pred"]["missing_genes"] == pytest.approx(share)
    assert f"{100 * share:.1f} % of the training genes are missing and were imputed" in caplog.text
    light = query[:, order[GENES // 2 :]].copy()
    light.var_names = [*light.var_names[:-1], "OTHER"]
    with pytest.raises(ValueError, match=r"at least 40% are needed \(min_genes=\)"):
        stmsi.tl.predict_metabolites(light, folder)


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of the source distribution")
def test_the_lines_of_the_page(folder, query, expected, monkeypatch):
    monkeypatch.chdir(folder.parent)
    query.var_names = SYMBOLS
    query.write_h5ad("section.h5ad")
    mouse = query.copy()
    mouse.var = pd.DataFrame({"gene_ids": MOUSE_IDS}, index=[f"Other{i}" for i in range(GENES)])
    mouse.write_h5ad("mouse_section.h5ad")
    pairs = pd.DataFrame({"mouse": mouse.var_names, "human": SYMBOLS})
    twice = pd.DataFrame({"mouse": ["Other0", "Other1"], "human": ["X", "Y"]})  # not one to one
    pd.concat([pairs, twice]).to_csv("orthologs.csv", index=False)
    space: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, space)
    np.testing.assert_allclose(space["adata"].obsm["msi_pred"], expected, rtol=1e-5, atol=1e-6)
    assert space["model"].card["genes"]["species"] == "Homo sapiens"
    assert space["mouse"].n_vars == GENES - 2
    assert np.corrcoef(space["mouse"].obsm["msi_pred"]["m1"], expected["m1"])[0, 1] > 0.8

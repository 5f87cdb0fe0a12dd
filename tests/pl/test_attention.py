"""pl.attention_heatmap and pl.attention_spatial."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection, QuadMesh
from matplotlib_scalebar.scalebar import ScaleBar

import stmsi
from stmsi.model import HurdleNet


@pytest.fixture
def st(st, attended):
    attended(st)
    return st


def mesh_of(ax) -> QuadMesh:
    (found,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    return found


def shown(ax) -> dict[tuple[str, str], float]:
    """Value of each cell by the names of its row and column."""
    rows, columns = ([t.get_text() for t in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels()))
    values = mesh_of(ax).get_array().reshape(len(rows), len(columns))
    return {(r, c): float(values[i, j]) for i, r in enumerate(rows) for j, c in enumerate(columns)}


def spots_of(ax) -> EllipseCollection:
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return found


def test_pictures(mapped, attended, same_picture) -> None:
    st = mapped.tables["st"]
    attended(st)
    stmsi.pp.knowledge_prior(st, {"simPC(28:0)": list(st.var_names[:3]), "simPC(31:3)": list(st.var_names[5:8])})
    st.uns["msi"]["features"]["class"] = ["lipid", "sugar", "", "amino acid"] * 3
    same_picture(stmsi.pl.attention_heatmap(st, key="attribution", n_genes=20, return_fig=True), "attention_heatmap")
    figure = stmsi.pl.attention_spatial(mapped, "simPC(28:0)", sample=["P1S1", "P2S1"], n_top=1, return_fig=True)
    same_picture(figure, "attention_spatial")


def test_cells_are_multiples_of_an_even_share(st) -> None:
    cells = shown(stmsi.pl.attention_heatmap(st, values="weights", n_genes=15))
    names = st.uns["msi_attention"]["metabolites"]["name"]
    used = st.varm["msi_attention"].dropna()
    assert len(cells) == 8 * 15
    for (row, gene), value in cells.items():
        assert value == pytest.approx(30 * used.loc[gene, names[names == row].index[0]], rel=1e-5)
    # the best gene of each metabolite is there
    assert {used[m].idxmax() for m in used} <= {gene for _, gene in cells}


def test_contributions_keep_their_sign(st) -> None:
    ax = stmsi.pl.attention_heatmap(st, genes=[*st.var_names[:4]], cluster=False)
    for (row, gene), value in shown(ax).items():
        stored = st.varm["msi_attention_effects"].loc[gene, row.replace("(", "_").replace(":", "_")[:-1]]
        assert value == pytest.approx(stored)
    assert mesh_of(ax).get_cmap().name == "RdBu_r"
    with pytest.raises(ValueError, match="contributions have not; use values='weights', or scale='row'"):
        stmsi.pl.attention_heatmap(st, scale="metabolites")
    del st.varm["msi_attention_effects"]
    with pytest.raises(KeyError, match=r"call stmsi\.tl\.attention again"):
        stmsi.pl.attention_heatmap(st)


def test_every_plot_says_whether_the_attention_passed(st) -> None:
    passed = "attention passed its control (held out 0.81, uniform 0.10)"
    assert stmsi.pl.attention_heatmap(st).get_title() == passed
    title = stmsi.pl.attention_spatial(st, "simPC(28:0)", n_top=1, sample="P1S1").get_title()
    assert "passed its control" in title.replace("\n", " ")
    st.uns["msi_attention"]["control"] |= {"passed": False, "uniform": 0.8}
    assert "did NOT pass its control (held out 0.81, uniform 0.80)" in stmsi.pl.attention_heatmap(st).get_title()
    del st.uns["msi_attention"]["control"]
    assert "without a control" in stmsi.pl.attention_heatmap(st, values="weights").get_title()
    assert stmsi.pl.attention_heatmap(st, key="attribution").get_title() == ""


def test_attribution_keeps_its_sign_and_unit(st) -> None:
    ax = stmsi.pl.attention_heatmap(st, key="attribution", genes=[*st.var_names[:4]], cluster=False)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(st.var_names[:4])
    for (row, gene), value in shown(ax).items():
        assert value == pytest.approx(st.varm["attribution"].loc[gene, row.replace("(", "_").replace(":", "_")[:-1]])
    norm = mesh_of(ax).norm
    assert norm.vmin == -norm.vmax
    assert mesh_of(ax).get_cmap().name == "RdBu_r"


def test_scales(st) -> None:
    whole = shown(stmsi.pl.attention_heatmap(st, key="attribution", scale="row", n_genes=30))
    rows = {r for r, _ in whole}
    assert [max(abs(v) for (r, _), v in whole.items() if r == row) for row in rows] == pytest.approx([1.0] * 8)
    genes = list(st.var_names[:5])
    ax = stmsi.pl.attention_heatmap(st, values="weights", genes=genes, scale="metabolites", cluster=False)
    part = st.varm["msi_attention"].loc[genes].T.to_numpy(float)
    values = mesh_of(ax).get_array().reshape(8, 5)
    np.testing.assert_allclose(values, np.log2(part / part.mean(axis=0)), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="an attribution has not"):
        stmsi.pl.attention_heatmap(st, key="attribution", scale="metabolites")


def test_groups_share_order_and_norm(st) -> None:
    axes = stmsi.pl.attention_heatmap(st, group=["cortex", "white matter"], n_genes=12)
    assert [ax.get_title().split("\n")[0] for ax in axes] == ["cortex", "white matter"]
    cells = [shown(ax) for ax in axes]
    assert list(cells[0]) == list(cells[1])
    assert mesh_of(axes[0]).norm is mesh_of(axes[1]).norm
    (row, gene), value = next(iter(cells[1].items()))
    names = st.uns["msi_attention"]["metabolites"]["name"]
    stored = st.varm["msi_attention_effects_white_matter"].loc[gene, names[names == row].index[0]]
    assert value == pytest.approx(stored, rel=1e-5)


def test_rows_are_clustered(st) -> None:
    twin = st.varm["attribution"]
    twin["simPC_35_3"] = twin["simPC_28_0"] * 2 + 0.01 * twin["simPC_29_1"]
    names = [t.get_text() for t in stmsi.pl.attention_heatmap(st, key="attribution").get_yticklabels()]
    assert abs(names.index("simPC(28:0)") - names.index("simPC(35:3)")) == 1


def test_known_genes_and_classes(st) -> None:
    ax = stmsi.pl.attention_heatmap(st, key="attribution", n_genes=30, cluster=False)
    assert ax.get_legend() is None
    stmsi.pp.knowledge_prior(st, {"simPC(29:1)": [st.var_names[4]]})
    st.uns["msi"]["features"]["class"] = [f"class {i}" for i in range(12)]
    ax = stmsi.pl.attention_heatmap(st, key="attribution", genes=list(st.var_names[:6]), cluster=False)
    (dots,) = ax.lines
    np.testing.assert_array_equal(dots.get_xydata(), [[4.5, 1.5]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["known gene", *(f"class {i}" for i in range(8))]


def test_core_metabolites_are_known_without_a_prior(st) -> None:
    st.var_names = ["GLS", "GLUL", *st.var_names[2:]]
    for key in ("attribution", "msi_attention"):
        st.varm[key].index = st.var_names
    names = st.uns["attribution"]["metabolites"]["name"].to_numpy(copy=True)
    names[0] = "glutamine"
    for key in ("attribution", "msi_attention"):
        st.uns[key]["metabolites"] = st.uns[key]["metabolites"].assign(name=names)
    ax = stmsi.pl.attention_heatmap(st, key="attribution", genes=["GLS", st.var_names[5]], cluster=False)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.5, 0.5]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["known gene", "amino acid"]


def test_errors_of_the_heat_map(st) -> None:
    with pytest.raises(KeyError, match=r"No metabolite 'simPC\(28:5\)'.*Did you mean"):
        stmsi.pl.attention_heatmap(st, metabolites="simPC(28:5)")
    with pytest.raises(KeyError, match=r"No group 'cortx'.*Did you mean 'cortex'"):
        stmsi.pl.attention_heatmap(st, group="cortx")
    with pytest.raises(KeyError, match="does not use the genes"):
        stmsi.pl.attention_heatmap(st, genes=[st.var_names[60]])
    with pytest.raises(KeyError, match=r"without groups; call stmsi\.tl\.attribute\(data, model, groupby"):
        stmsi.pl.attention_heatmap(st, key="attribution", group="cortex")
    with pytest.raises(ValueError, match="values='weight' is not known"):
        stmsi.pl.attention_heatmap(st, values="weight")
    with pytest.raises(ValueError, match="2 axes, but there are 1 panels"):
        stmsi.pl.attention_heatmap(st, ax=plt.subplots(1, 2)[1])
    del st.uns["msi_attention"]
    with pytest.raises(KeyError, match=r"there is 'attribution'\. stmsi\.tl\.attention\(data, model\) writes"):
        stmsi.pl.attention_heatmap(st)


def test_given_axes(st) -> None:
    figure, ax = plt.subplots()
    assert stmsi.pl.attention_heatmap(st, ax=ax) is ax
    assert stmsi.pl.attention_heatmap(st, ax=ax, return_fig=True) is figure


def test_contributions_on_the_tissue(st) -> None:
    own = (st.obs["sample"] == "P1S1").to_numpy()
    made = st.obsm["msi_attention_simPC_28_0"]
    gene = st.var_names[3]
    ax = stmsi.pl.attention_spatial(st, "simPC_28_0", gene, sample="P1S1")
    np.testing.assert_allclose(spots_of(ax).get_array(), made.loc[own, gene], rtol=1e-5)
    assert spots_of(ax).norm.vmin == -spots_of(ax).norm.vmax
    assert ax.get_title().split("\n")[:2] == [gene, "simPC(28:0) [M+H]+"]
    assert [a.dx for a in ax.artists if isinstance(a, ScaleBar)] == [1]


def test_top_genes_of_several_sections(st) -> None:
    axes = stmsi.pl.attention_spatial(st, "simPC(28:0)", n_top=2)
    top = st.obsm["msi_attention_simPC_28_0"].std().nlargest(2).index
    assert len(axes) == 6
    assert [ax.get_title().split("\n")[0] for ax in axes[::3]] == list(top)
    assert [ax.get_title().split("\n")[-1] for ax in axes[:3]] == ["P1S1", "P2S1", "P3S1"]


def test_errors_of_single_spots(st) -> None:
    with pytest.raises(KeyError, match=r"were not kept; they were for 'simPC_28_0'.*per_spot='simPC\(29:1\)'"):
        stmsi.pl.attention_spatial(st, "simPC(29:1)")
    with pytest.raises(KeyError, match=r"No metabolite.*Did you mean"):
        stmsi.pl.attention_spatial(st, "simPC(28:8)")
    with pytest.raises(KeyError, match=r"No gene 'nothing' in the attention; the model uses"):
        stmsi.pl.attention_spatial(st, "simPC(28:0)", "nothing")
    with pytest.raises(ValueError, match="is an attribution"):
        stmsi.pl.attention_spatial(st, "simPC(28:0)", key="attribution")
    with pytest.raises(ValueError, match="n_top"):
        stmsi.pl.attention_spatial(st, "simPC(28:0)", n_top=0)
    del st.varm["msi_attention"]
    with pytest.raises(KeyError, match=r"stmsi\.tl\.attention\(data, model\) writes"):
        stmsi.pl.attention_spatial(st, "simPC(28:0)")


def test_what_a_network_writes(st) -> None:
    for key in ("msi", "msi_presence"):
        st.obsm[key] = st.obsm[key].iloc[:, :3]
    HurdleNet.setup_anndata(st)
    model = HurdleNet(st, encoder="transformer", encoder_kwargs={"n_hidden": 8}, n_nets=1)
    model.train(max_epochs=1, refit=False)
    stmsi.tl.attention(st, model, groupby="domain", per_spot="simPC(28:0)")
    groups = list(st.uns["msi_attention"]["groups"]["label"])
    for values in ("contributions", "weights"):
        axes = stmsi.pl.attention_heatmap(st, values=values, group=groups)
        assert [ax.get_title().split("\n")[0] for ax in axes] == groups
    assert len(stmsi.pl.attention_spatial(st, "simPC(28:0)")) == 9

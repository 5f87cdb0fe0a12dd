"""What setup_anndata refuses, for both kinds of model."""

import numpy as np
import pytest

from stmsi.model import HurdleLinear, HurdleNet


@pytest.fixture(params=[HurdleLinear, HurdleNet], ids=["linear", "net"])
def model_cls(request):
    return request.param


def refused(model_cls, adata, error, match, **fields):
    """Setup fails with the message and leaves no trace of itself."""
    with pytest.raises(error, match=match):
        model_cls.setup_anndata(adata, **fields)
    assert "_stmsi_setup" not in adata.uns
    assert not any(k.startswith("_scvi") for k in [*adata.uns, *adata.obs])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"layer": "cuonts"}, r"No layer 'cuonts'; layers: none"),
        ({"metabolite_key": "mis"}, r"obsm has no 'mis'; found .*'msi'.*map_to_spots writes it.*Did you mean.*'msi'"),
        ({"presence_key": "msi_presense"}, r"obsm has no 'msi_presense'.*call_presence.*Did you mean 'msi_presence'"),
        ({"sample_key": "smaple"}, r"obs has no column 'smaple'; found .*'sample'.*sample_key=.*Did you mean 'sample'"),
        ({"signature_key": "sig", "cluster_key": "domain"}, r"varm has no 'sig'; found 'signature'.*gene_signatures"),
        (
            {"signature_key": "signature", "cluster_key": "domains"},
            r"obs has no column 'domains'.*Did you mean 'domain'",
        ),
        ({"graph_key": "graph"}, r"obsp has no 'graph'; found .*'spatial_connectivities'.*spatial_graph writes it"),
        ({"covariate_keys": ["patient", "pateint"]}, r"obs has no column 'pateint'.*Did you mean 'patient'"),
        ({"feature_key": ["spatial", "sptial"]}, r"obsm has no 'sptial'; found .*'spatial'.*Did you mean 'spatial'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_wrong_key_is_named_with_what_is_there(model_cls, st, fields, match):
    refused(model_cls, st, KeyError, match, **fields)


@pytest.mark.parametrize("key", ["msi", "msi_presence"])
def test_what_is_predicted_is_no_feature(model_cls, st, key):
    match = rf"obsm\['{key}'\] is what the model predicts; it cannot be a feature"
    refused(model_cls, st, ValueError, match, presence_key="msi_presence", feature_key=key)


@pytest.mark.parametrize("fields", [{"signature_key": "signature"}, {"cluster_key": "domain"}])
def test_signature_and_cluster_go_together(model_cls, st, fields):
    refused(model_cls, st, ValueError, r"signature_key and cluster_key go together", **fields)


def test_a_view_becomes_an_anndata_of_its_own_with_a_notice(model_cls, st, caplog):
    view = st[:50]
    with caplog.at_level("WARNING", "stmsi"):
        model_cls.setup_anndata(view)
    assert "was a view of another one and is a copy of its own now" in caplog.text
    assert not view.is_view
    assert "_stmsi_setup" not in st.uns


@pytest.mark.parametrize("cut", [np.s_[:0], np.s_[:, :0]], ids=["spots", "genes"])
def test_an_empty_table_is_refused(model_cls, st, cut):
    refused(model_cls, st[cut].copy(), ValueError, r"The table is empty \(\d+ spots x \d+ variables\)")


def test_repeated_genes_are_refused(model_cls, st):
    st.var_names = [st.var_names[1], *st.var_names[1:]]
    refused(model_cls, st, ValueError, r"Gene names must be unique; repeated: 'SIMG0002'")


def test_repeated_metabolites_are_refused(model_cls, st):
    frame = st.obsm["msi"].copy()
    frame.columns = [frame.columns[1], *frame.columns[1:]]
    st.obsm["msi"] = frame
    refused(model_cls, st, ValueError, r"Metabolite names must be unique; repeated: 'simPC_29_1'")


def test_no_metabolite_at_all_is_refused(model_cls, st):
    st.obsm["msi"] = st.obsm["msi"].iloc[:, :0]
    refused(model_cls, st, ValueError, r"obsm\['msi'\] has no metabolites")


@pytest.mark.parametrize(
    ("value", "match"),
    [(-1.0, r"obsm\['msi'\] contain 1 negative values"), (np.inf, r"obsm\['msi'\] contain 1 infinite")],
)
def test_impossible_intensities_are_refused(model_cls, st, value, match):
    frame = st.obsm["msi"].copy()
    frame.iloc[5, 2] = value
    st.obsm["msi"] = frame
    refused(model_cls, st, ValueError, match)


def test_presence_of_other_metabolites_is_refused(model_cls, st):
    st.obsm["msi_presence"] = st.obsm["msi_presence"].iloc[:, ::-1]
    refused(model_cls, st, ValueError, r"have different metabolites", presence_key="msi_presence")


@pytest.mark.parametrize(
    ("fields", "column", "match"),
    [
        ({}, "sample", r"obs\['sample'\] has 1 missing values; every spot needs a section"),
        ({"signature_key": "signature", "cluster_key": "domain"}, "domain", r"obs\['domain'\] has missing values"),
        ({"covariate_keys": ["patient"]}, "patient", r"Covariate obs\['patient'\] has missing values; fill them"),
        ({"covariate_keys": ["msi_coverage"]}, "msi_coverage", r"Covariate obs\['msi_coverage'\] has missing values"),
    ],
)
def test_missing_labels_are_refused(model_cls, st, fields, column, match):
    st.obs[column] = st.obs[column].astype(object if column != "msi_coverage" else float)
    st.obs.loc[st.obs_names[0], column] = np.nan
    refused(model_cls, st, ValueError, match, **fields)


def test_a_model_needs_the_setup(model_cls, st):
    with pytest.raises(ValueError, match=rf"call {model_cls.__name__}\.setup_anndata\(adata\) first"):
        model_cls(st)


def test_the_setup_is_written_as_plain_values(model_cls, st):
    model_cls.setup_anndata(st, presence_key="msi_presence", covariate_keys="patient", feature_key="spatial")
    assert st.uns["_stmsi_setup"] == {
        "input": "counts",
        "metabolite_key": "msi",
        "presence_key": "msi_presence",
        "sample_key": "sample",
        "covariate_keys": ["patient"],
        "feature_key": ["spatial"],
    }


def test_a_second_setup_replaces_the_first(model_cls, st):
    model_cls.setup_anndata(st, presence_key="msi_presence")
    model_cls.setup_anndata(st)
    assert model_cls(st)._setup.presence_key is None


@pytest.mark.parametrize("params", [{"presence": "logit"}, {"intensity": "rigde"}, {"context": "poold"}])
def test_unknown_families_are_refused(st, params):
    HurdleLinear.setup_anndata(st)
    with pytest.raises(ValueError, match=r"is not known; choose one of .*(Did you mean)?"):
        HurdleLinear(st, **params)


@pytest.mark.parametrize(("name", "value"), [("n_top_genes", 0), ("n_components", 0), ("n_folds", 1)])
def test_hyper_parameters_out_of_range_are_refused(st, name, value):
    HurdleLinear.setup_anndata(st)
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, found {value}"):
        HurdleLinear(st, **{name: value})


def test_unknown_encoder_is_refused(st):
    HurdleNet.setup_anndata(st)
    with pytest.raises(ValueError, match=r"encoder='mpl' is not known; choose one of 'mlp'"):
        HurdleNet(st, encoder="mpl")


@pytest.mark.parametrize("cls", [HurdleLinear, HurdleNet])
def test_a_spatialdata_is_sent_to_its_table(cls, toy):
    with pytest.raises(TypeError, match=r'found SpatialData. Pass its table: sdata.tables\["st"\]'):
        cls.setup_anndata(toy)


@pytest.mark.parametrize("value", [2, -7, 0.5])
def test_presence_is_yes_or_no(st, value):
    st.obsm["msi_presence"].iloc[0, 0] = value
    with pytest.raises(ValueError, match=r"must hold 1 \(present\), 0 \(absent\) or NaN"):
        HurdleLinear.setup_anndata(st, presence_key="msi_presence")


def test_presence_of_other_metabolites_names_them(st):
    st.obsm["msi_presence"] = st.obsm["msi_presence"].iloc[:, 1:]
    with pytest.raises(ValueError, match=r"not in both: 'simPC_28_0'\); call stmsi.pp.call_presence again"):
        HurdleLinear.setup_anndata(st, presence_key="msi_presence")

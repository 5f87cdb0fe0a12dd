"""Two-stage prediction with a neural network: a scvi-tools model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass

from stmsi._data.checks import (
    check_choice,
    check_count,
    check_seed,
    check_weight,
    listing,
    require_anndata,
    suggest,
)
from stmsi._data.keys import Key
from stmsi.model.net._encoder_options import check_encoder_options
from stmsi.model.net._fine_tuning import FineTuning
from stmsi.model.net._metabolite_descriptors import training_metabolites
from stmsi.model.net._run import Net
from stmsi.model.net._scvi_calls import ScviCalls
from stmsi.model.net._scvi_fields import ROW_KEY, NetDataManager, keep_counts, scvi_fields
from stmsi.model.net._several_nets import check_n_nets
from stmsi.model.net._surroundings import quiet
from stmsi.model.net.encoders import ENCODERS, MetaboliteEncoder
from stmsi.model.net.modules._losses import INTENSITY_LOSSES, PRESENCE_LOSSES, IntensityLoss, PresenceLoss
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._setup import Setup, graph_where_there, prior_where_there
from stmsi.model.shared._spot_features import SignatureStage, check_stages

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi.model.shared._stored_input import Input


_REPLAYED = ("source_registry", "extend_categories", "allow_missing_labels")
"""Arguments with which scvi-tools transfers a setup."""


class HurdleNet(ScviCalls, FineTuning, BaseModelClass):
    """Presence and intensity of all metabolites from one network.

    An encoder embeds the spot; one head gives the log-odds of presence (it also sees the signature mask of the spot's
    cluster), another the intensity given presence. Both correct what ridge regressions say. The loss is a class-balanced
    cross-entropy plus the squared error of the standardised intensity where present (others see below); entries without
    MSI never count. Training stops early on whole held-out sections (spatial blocks where there are fewer than three),
    keeps the weights that were best there, and calibrates probabilities, thresholds and intervals on them.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    registry
        Used by scvi-tools when a model is loaded without data.
    encoder
        What turns a spot into an embedding. ``"mlp"``: the spot by itself. ``"transformer"``: metabolites attend to the
        genes of the spot and, with ``graph_key``, of its neighbours; nothing else reaches their prediction (see
        :func:`stmsi.tl.attention`). With the neighbours of ``graph_key``:
        ``"graph"`` (the spot by itself, learned first and fixed, then corrected by a graph of its neighbours, as SEPAL does), ``"deepset"``
        (the spot, what is inside it and the maximum over its neighbours, as DeepSpot does), ``"niche"`` (self-attention over the spot and its rings, as
        NicheTrans does). With the sections of ``sample_key`` and positions in ``obsm["spatial"]``: ``"section"`` (the spot,
        corrected by linear attention over all spots of its section, after HisToGene). ``"crossmodal"``: the spot by
        itself, in a space shared with its metabolites (after CMRCNet; BLEEP, mclSTExp and EGN by options), read out by the heads, by
        retrieval of training spots, or by heads that also see exemplars; training spots are then saved with the model.
        ``"mlp"`` or ridge did as well as ``"deepset"``, ``"niche"``, ``"section"`` and ``"crossmodal"`` on the tasks of the benchmarks.
    n_top_genes
        Genes that are used: the most variable ones over the training spots; with ``"transformer"`` at most so many of those that
        go most with any metabolite.
    intensity_weight
        Weight of the intensity loss beside the presence loss.
    presence_loss
        ``"bce"`` (cross-entropy) or ``"focal"`` (focal loss with exponent 2, which gives less weight to easy examples). Both
        balance the classes.
    intensity_loss
        Over the spots that have the metabolite: ``"mse"``, ``"huber"``, or one less the ``"pearson"`` correlation or
        ``"cosine"`` of each metabolite within a batch. The last two ignore the level of the intensities, so a tenth of the
        squared error is added to them.
    standardise
        Intensities are learnt as differences to the training mean over its standard deviation: of each ``"metabolite"``,
        or of each metabolite in each section (``"sample"``). With the latter the differences between sections are not
        learnt; every prediction, also of a training section, is put on the mean scale of the training sections.
    training
        ``"joint"``: both stages at once; ``"two_stage"``: first encoder and presence, then, with these fixed, the
        intensity with an encoder of its own that starts from the other.
    residual
        ``"ridge"``: both heads correct ridge regressions on the principal components of the genes, fitted beforehand;
        `None`: the network alone; ``"auto"``: ridge, but for ``"transformer"``, whose attention is to explain all of the
        prediction.
    signature_stages
        Heads that see the signature mask, where a signature is set up: of ``"presence"`` and ``"intensity"``.
    encoder_kwargs
        Options of the encoder. ``"mlp"``: ``n_hidden``, ``n_layers``, ``dropout``, ``input_dropout``, ``per_metabolite`` (one
        small network for each metabolite); ``"graph"``:
        ``n_hidden``, ``n_graph``, ``n_layers``, ``n_hops`` (1 to 3), ``conv`` (``"gcn"``, ``"sage"`` or ``"attention"``), ``combine``
        (``"sum"`` or ``"concat"``), ``dropout``, ``input_dropout``; ``"deepset"``: ``n_hidden``, ``dropout``, ``n_phi``, ``n_rho``, ``n_inner``
        (members of the inner set, side by side in the columns of ``feature_key``); ``"niche"``: ``n_hidden``,
        ``n_heads``, ``n_drawn`` (neighbours of each ring in a training step), ``n_own`` (hidden units of each metabolite), ``dropout``,
        ``input_dropout``, ``neighbour_dropout``;
        ``"section"``: ``n_hidden``, ``n_context``, ``n_heads``, ``n_layers``, ``n_keys`` (spots of a section that a training
        step attends to at most), ``dropout``, ``input_dropout``; ``"crossmodal"``: ``output`` (``"decoder"``, ``"retrieval"`` or ``"exemplars"``),
        ``n_hidden``, ``n_neighbours``, ``weighting`` (``"uniform"``, ``"similarity"`` or ``"softmax"``), ``contrastive_weight``,
        ``reconstruction_weight``, ``temperature``, ``hard_labels``, ``dropout``, ``input_dropout``;
        ``"transformer"``: ``n_heads``, ``n_hidden`` (width of queries and keys), ``query_dropout`` (share of metabolites that are
        asked for by m/z and descriptors alone in a step), ``descriptors`` (numeric columns of the feature table beside ``mz``),
        ``genes_per_metabolite`` (that each chooses before training), ``n_layers`` (of self-attention among gene programmes, which direct
        attention), ``temperature`` (of all logits) and ``attention`` (``"softmax"`` or ``"entmax"``, which leaves most genes out).
    n_nets
        Networks whose predictions are averaged, at most. Each is trained without another group of whole sections (patients
        where there are three or more, spatial blocks where there are fewer than three sections), which decides when it stops;
        what they say of their groups calibrates presence and intervals. ``"auto"``: 6 for ``"transformer"``, 3 for the others (1 with
        ``train(refit=False)``). With 1, intervals rest on one held-out group, and cover too little of new patients.
    rng
        Seed. On a CPU the same seed gives the same bits.

    Raises
    ------
    ValueError
        Unknown encoder, options that it does not take, numbers out of range, or an AnnData that is not set up.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> model = stmsi.model.HurdleNet(st, encoder="mlp")
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> model.predict().shape
    (344, 12)
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        encoder: str = "mlp",
        n_top_genes: int = 2000,
        intensity_weight: float = 1.0,
        presence_loss: PresenceLoss = "bce",
        intensity_loss: IntensityLoss = "mse",
        standardise: Literal["metabolite", "sample"] = "metabolite",
        training: Literal["joint", "two_stage"] = "joint",
        residual: Literal["auto", "ridge"] | None = "auto",
        signature_stages: Sequence[SignatureStage] = ("presence",),
        encoder_kwargs: dict[str, Any] | None = None,
        n_nets: int | Literal["auto"] = "auto",
        rng: int = 0,
    ) -> None:
        check_choice(encoder, ENCODERS, "encoder")
        check_count(n_top_genes, "n_top_genes")
        check_weight(intensity_weight, "intensity_weight")
        check_seed(rng)
        check_encoder_options(encoder, encoder_kwargs)
        n_top_genes, intensity_weight, rng = (
            int(n_top_genes),
            float(intensity_weight),
            int(rng),
        )  # numpy's are not saved
        check_choice(presence_loss, PRESENCE_LOSSES, "presence_loss")
        check_choice(intensity_loss, INTENSITY_LOSSES, "intensity_loss")
        check_choice(standardise, ("metabolite", "sample"), "standardise")
        check_choice(training, ("joint", "two_stage"), "training")
        if residual is not None:
            check_choice(residual, ("auto", "ridge"), "residual")
        if training == "two_stage" and ENCODERS[encoder].is_joint:
            msg = f'encoder={encoder!r} learns both stages at once; use training="joint".'
            raise ValueError(msg)
        signature_stages = check_stages(signature_stages)
        check_n_nets(n_nets)
        if adata is not None:
            self._setup = Setup.read(adata, type(self).__name__)
            if self._setup.graph_key is not None and not ENCODERS[encoder].uses_graph:
                with_graph = listing(name for name, kind in ENCODERS.items() if kind.uses_graph)
                msg = (
                    f"encoder={encoder!r} reads no neighbourhood; set up without graph_key, or use one of {with_graph}."
                )
                raise ValueError(msg)
            if self._setup.graph_key is None and ENCODERS[encoder].needs_graph:
                msg = (
                    f"encoder={encoder!r} reads the neighbourhood: call stmsi.pp.spatial_graph(adata), then "
                    f'setup_anndata(adata, graph_key="{Key.obsp.CONNECTIVITIES}").'
                )
                raise ValueError(msg)
            if self._setup.prior_key is not None and not self._reads_prior({"encoder": encoder}):
                msg = (
                    f"encoder={encoder!r} has no attention that a prior could guide; set up without prior_key, or use "
                    'encoder="transformer" or HurdleLinear.'
                )
                raise ValueError(msg)
            if issubclass(ENCODERS[encoder], MetaboliteEncoder):  # bad input is refused before training begins
                training_metabolites(adata, self._setup, (encoder_kwargs or {}).get("descriptors", ()))
        BaseModelClass.__init__(self, adata, registry)
        self._hyper: dict[str, Any] = {
            "encoder": encoder,
            "n_top_genes": n_top_genes,
            "intensity_weight": intensity_weight,
            "presence_loss": presence_loss,
            "intensity_loss": intensity_loss,
            "standardise": standardise,
            "training": training,
            "residual": ENCODERS[encoder].residual if residual == "auto" else residual,
            "signature_stages": signature_stages,
            "encoder_kwargs": dict(encoder_kwargs or {}),
            "n_nets": n_nets,
            "rng": rng,
        }
        self._several = []
        self.module = self._new_module()
        self.platt_: NDArray[np.float64] | None = None
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        input: Input | None = None,
        metabolite_key: str = Key.obsm.MSI,
        presence_key: str | None = None,
        signature_key: str | None = None,
        cluster_key: str | None = None,
        sample_key: str = Key.obs.SAMPLE,
        graph_key: str | None = None,
        covariate_keys: Sequence[str] | None = None,
        feature_key: str | Sequence[str] | None = None,
        prior_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say which fields of an AnnData the model uses.

        Parameters
        ----------
        adata
            Spots x genes.
        layer
            Layer with the expression; `None`: ``X``.
        input
            What the expression is: ``"counts"``, which the model normalises, or ``"log"``, taken as it is (log-normalised
            counts, log ratios; negative numbers are allowed). `None`: look, in each section, and say what was found.
        metabolite_key
            Intensities in ``obsm`` (DataFrame; NaN where not covered).
        presence_key
            Presence in ``obsm``; `None`: present where the intensity is above 0.
        signature_key, cluster_key
            Signature in ``varm`` and clusters in ``obs``, as :func:`stmsi.pp.gene_signatures` writes them. Spots of
            other data are assigned to the nearest training cluster.
        sample_key
            Section of each spot in ``obs``.
        graph_key
            Neighbourhood graph in ``obsp``, for encoders that read it.
        covariate_keys
            Columns of ``obs``: decimal numbers are z-scored; whole numbers (batches), texts and categories become
            indicators.
        feature_key
            Further features in ``obsm`` (arrays or DataFrames), such as those of the histology image; z-scored on the
            training spots and appended to the genes. Several keys are allowed.
        prior_key
            Genes known to belong to each metabolite, for ``encoder="transformer"``: DataFrame genes x metabolites in
            ``varm``, as :func:`stmsi.pp.knowledge_prior` writes it. A metabolite attends to them more; how much more is
            learned.
        **kwargs
            For scvi-tools, which replays the setup when a model is loaded.

        Returns
        -------
        `None`. Writes the names into ``uns["_stmsi_setup"]`` and, as scvi-tools does, ``uns["_scvi_uuid"]``,
        ``uns["_scvi_manager_uuid"]``, ``_scvi_*`` columns for clusters and covariates and ``obs["_indices"]``. Where single sections are log-normalised,
        their counts are written into ``layers["_stmsi_counts"]`` with those of all others.

        Raises
        ------
        KeyError
            A field is not there.
        ValueError
            A view, an empty table, duplicate names, negative or infinite intensities, a dask array of sparse pieces,
            counts in some sections and logarithms on an unknown scale in others.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        require_anndata(adata)
        for name in kwargs:  # scvi-tools passes over what it does not know
            if name not in _REPLAYED:
                msg = f"setup_anndata has no argument {name!r}.{suggest(name, signature(cls.setup_anndata).parameters)}"
                raise TypeError(msg)
        counts = adata.X if layer is None else adata.layers.get(layer)
        if sp.issparse(getattr(counts, "_meta", None)):
            name = "X" if layer is None else f"layers[{layer!r}]"
            msg = (
                f"{name} is a dask array of sparse pieces, which cannot be read in batches; load it: "
                f"adata.{name} = adata.{name}.compute()."
            )
            raise ValueError(msg)
        setup = Setup.create(
            adata, layer=layer, input=input, metabolite_key=metabolite_key, presence_key=presence_key, signature_key=signature_key,
            cluster_key=cluster_key, sample_key=sample_key, graph_key=graph_key, covariate_keys=covariate_keys,
            feature_key=feature_key, prior_key=prior_key,
        )  # fmt: skip
        setup_method_args["setup_args"]["input"] = setup.input  # what a saved model was set up with, not what was asked
        keep_counts(adata, setup)
        adata.obs[ROW_KEY] = np.arange(adata.n_obs)
        with quiet():
            manager = NetDataManager(fields=scvi_fields(adata, setup), setup_method_args=setup_method_args)
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _write(self, directory: Path) -> None:
        # the attributes that scvi-tools saves, but without its pickle
        names = [n for n in vars(self) if n.endswith("_") and not n.endswith("__") and n != "init_params_"]
        nets = [
            {
                "weights": {name: value.detach().cpu().numpy() for name, value in net.module.state_dict().items()},
                # of one network they are those of the model
                "features": net.features if self._several and self._sees_components else None,
                "metabolites": net.metabolites,
            }
            for net in self._nets
        ]
        attributes = {name: getattr(self, name) for name in names}
        given = {k: v for k, v in self.init_params_["non_kwargs"].items() if k not in ("adata", "registry")}
        write_payload(directory, {"params": given, "attributes": attributes, "nets": nets})

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> HurdleNet:
        payload = read_payload(directory)
        attributes = payload["attributes"]
        registry = attributes.pop("registry_")
        if adata is not None:
            cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
        model = cls(adata, registry, **payload["params"])
        for name, value in attributes.items():
            setattr(model, name, value)
        nets = []
        for net in payload["nets"]:
            module = model._new_module(len(net["weights"]["gene_index"]))
            module.load_state_dict({name: torch.as_tensor(value) for name, value in net["weights"].items()})
            module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            features = model.state.features if net["features"] is None else net["features"]
            nets.append(Net(module, features, net["metabolites"]))
        model._adopt(nets)
        model._setup = model.state.setup
        return model

    def _contains_training_profiles(self) -> bool:
        return self.module.encoder.bank is not None

    @classmethod
    def _reads_graph(cls, params: Mapping[str, Any]) -> bool:
        return ENCODERS[params.get("encoder", "mlp")].uses_graph

    @classmethod
    def _default_fields(cls, adata: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:
        graph = graph_where_there(adata) if cls._reads_graph(params) else {}
        return graph | (prior_where_there(adata) if cls._reads_prior(params) else {})

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:
        return issubclass(ENCODERS[params.get("encoder", "mlp")], MetaboliteEncoder)

    def _params(self) -> dict[str, Any]:
        return dict(self._hyper)

    __repr__ = HurdleModel.__repr__

"""What scvi-tools' models offer beside training and prediction: honoured, or refused with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from stmsi._data.checks import check_count
from stmsi.model.net._prediction import NetPrediction
from stmsi.model.net._surroundings import quiet, seeded
from stmsi.model.shared._block_prediction import MIN_GENES

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from stmsi.model.shared._stored_input import Input


def _refused(name: str, remedy: str) -> Callable[..., NoReturn]:
    """A method that says what to do instead."""

    def method(*args: Any, **kwargs: Any) -> NoReturn:
        msg = f"HurdleNet has no {name}: {remedy}."
        raise NotImplementedError(msg)

    method.__name__, method.__qualname__ = name, f"HurdleNet.{name}"
    method.__doc__ = f"Not offered: {remedy}."
    return method


_CARD = "the card of a saved model says how it was set up: stmsi.model.load(folder).card['setup']"
_REGISTRY = "model.registry['setup_args'] names the fields; view_anndata_setup shows what was registered"


class ScviCalls(NetPrediction):
    """Calls of scvi-tools that :class:`stmsi.model.HurdleNet` answers in its own way."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        indices: ArrayLike | None = None,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Embedding of the spots, from which the heads predict.

        Of an encoder with one embedding for each metabolite (``"transformer"``), their mean over the metabolites. With
        ``training="two_stage"``, that of the presence stage. The ridge regressions of ``residual="ridge"`` do not pass through
        it.

        Parameters
        ----------
        adata, layer, input, min_genes, batch_size
            As for :meth:`predict_presence`.
        indices
            Positions of the spots wanted, or a mask; `None`: all. Neighbours are looked up among all spots.

        Returns
        -------
        Array of shape (spots, width of the encoder), for instance for ``adata.obsm["X_stmsi"]``.

        Raises
        ------
        RuntimeError
            The model is not trained.
        ValueError, KeyError
            As for :meth:`predict_presence`.
        """
        if batch_size is not None:
            check_count(batch_size, "batch_size")
        self.state  # noqa: B018  raises where it is not trained
        spots = self._query_spots(adata, min_genes, layer=layer, input=input)
        parts = []
        self.module.eval()
        with self._in_batches(batch_size), torch.inference_mode(), quiet(), seeded(self._hyper["rng"]):
            batches = self._batches(spots, self._predict_batch)
            with self.module.sections_summed_up():
                for tensors in batches:
                    embedding = self.module.inference(**self.module._get_inference_input(tensors))["embedding"]
                    parts.append((embedding.mean(dim=1) if embedding.ndim > 2 else embedding).float().cpu())
        latent: NDArray[np.float32] = torch.cat(parts).numpy()
        return latent if indices is None else latent[np.asarray(indices)]

    def view_anndata_setup(self, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
        """Print what scvi-tools registered of the training data.

        Parameters
        ----------
        adata
            Data that were set up for this class; `None`: the training data.
        hide_state_registries
            Leave out the details of each field.

        Raises
        ------
        ValueError
            The model was loaded without data and none are given, or they are not set up.
        """
        import rich.pretty  # noqa: F401  which scvi-tools uses and does not import

        if adata is None and self.adata is None:
            msg = "The model was loaded without data; model.registry['setup_args'] names the fields it was set up with."
            raise ValueError(msg)
        super().view_anndata_setup(adata, hide_state_registries)  # type: ignore[misc]

    @property
    def summary_string(self) -> str:
        """The model in a line, as it is printed."""
        return repr(self)

    @property
    def get_normalized_function_name(self) -> NoReturn:
        """Not offered: there is no normalised expression."""
        msg = "HurdleNet has no get_normalized_function_name: it predicts metabolites and does not normalise genes."
        raise AttributeError(msg)

    convert_legacy_save = staticmethod(
        _refused(
            "convert_legacy_save", "no version of stmsi wrote the legacy format of scvi-tools; see stmsi.model.load"
        )
    )
    differential_abundance = _refused(
        "differential_abundance",
        "compare predicted metabolites, for instance sc.tl.rank_genes_groups of stmsi.get.as_table",
    )
    get_normalized_expression = _refused(
        "get_normalized_expression", "it predicts metabolites, with predict, predict_presence and predict_intensity"
    )
    load_registry = staticmethod(_refused("load_registry", _CARD))
    view_setup_args = staticmethod(_refused("view_setup_args", _CARD))
    setup_annbatch = staticmethod(_refused("setup_annbatch", "use setup_anndata; a backed AnnData is read in batches"))
    view_registry = _refused("view_registry", _REGISTRY)
    view_setup_method_args = _refused("view_setup_method_args", _REGISTRY)
    update_setup_method_args = _refused(
        "update_setup_method_args", "call setup_anndata again, and make a new model from the AnnData"
    )

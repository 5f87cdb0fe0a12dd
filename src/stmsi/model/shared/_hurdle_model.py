"""What all models share: the calls that predict, and those that save and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from scipy.special import ndtr, ndtri

from stmsi._data.checks import check_count
from stmsi.model.shared._block_prediction import MIN_GENES, BlockPrediction
from stmsi.model.shared._held_out_calibration import HeldOutCalibration
from stmsi.model.shared._persistence import load_as, model_card, read_card, save_model
from stmsi.model.shared._prediction import How, check_how

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from anndata import AnnData

    from stmsi.model.shared._stored_input import Input


class HurdleModel(BlockPrediction, HeldOutCalibration):
    """The calls that every model answers; the families differ in how they train and in `_stages`."""

    @property
    def card(self) -> dict[str, Any]:
        """The model card: what the model is, what it was trained on, and how well held-out spots were predicted.

        A saved model has it as ``stmsi.json`` in its folder. The entries are ``format``, ``class``, ``stmsi``, ``params``
        (hyper-parameters and seed), ``setup``, ``training`` (spots, sections, date, versions, how intensities were
        made), ``genes``, ``metabolites`` (each with m/z and held-out scores), ``held_out``,
        ``contains_training_profiles``, ``note`` and, where they were given to :meth:`save`, ``license`` and ``about``.
        """
        return model_card(self)

    def predict_presence(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Calibrated probability that each metabolite is present in each spot.

        Parameters
        ----------
        adata
            Spots to predict; `None`: the training data. Any gene order, symbols or Ensembl ids; no MSI is needed.
            Genes that are missing are imputed at their training mean.
        layer
            Layer that holds the expression (``"X"``: ``X``). `None`: the layer of the training data if it is there, else
            ``X``.
        input
            What the expression is: ``"counts"`` or ``"log"``. `None`: look, in each section. Sections that are
            log-normalised for certain are brought to the scale of the training data, which is logged. A model that reads
            counts refuses other logarithms, and a model that reads logarithms on an unknown scale refuses counts, unless
            `input` says what they are: for the former natural logarithms of 1 + normalised counts; the latter then takes
            log(1 + x) of counts normalised to 10,000.
        min_genes
            Share of the training genes that must be there, by their weight in the model: genes that it does not use do not
            count, those that vary most count most.
        batch_size
            Spots that a network predicts at once, for what memory allows; `None`: up to 4,096. Predictions do not depend
            on it. Models other than networks have no batches.

        Returns
        -------
        DataFrame spots x metabolites, float32, 0 to 1.

        Raises
        ------
        RuntimeError
            The model is not trained.
        ValueError
            Too few genes, no genes in common, or expression on another scale than that of the training data.
        KeyError
            A layer, graph or covariate that the model uses is not there.
        """
        return self._predict_all(adata, layer=layer, input=input, min_genes=min_genes, batch_size=batch_size).presence

    def predict_intensity(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mean intensity given that the metabolite is present, on the scale of the training intensities.

        Parameters
        ----------
        adata, layer, input, min_genes, batch_size
            As for :meth:`predict_presence`.

        Returns
        -------
        DataFrame spots x metabolites, float32, at least 0.
        """
        return self._predict_all(adata, layer=layer, input=input, min_genes=min_genes, batch_size=batch_size).intensity

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        adata: AnnData | None = None,
        *,
        how: How = "expected",
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> pd.DataFrame: ...

    @overload
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        how: Sequence[How],
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> dict[str, pd.DataFrame]: ...

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        how: How | Sequence[How] = "expected",
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> pd.DataFrame | dict[str, pd.DataFrame]:
        """Predicted intensity, exactly 0 where the presence stage says absent.

        Parameters
        ----------
        adata, layer, input, min_genes, batch_size
            As for :meth:`predict_presence`.
        how
            How the two stages become one number. Several at once are predicted in one pass.

            - ``"expected"``: the probability of presence times the intensity given presence, and exactly 0 where absence
              is called. The default: maps with zeros whose values are means.
            - ``"probability_weighted"``: the same product everywhere, without zeros: the mean of the hurdle model. Best
              where sums and averages over spots matter, or where thresholds are to be set later.
            - ``"mask"``: the intensity given presence where presence is called, and 0 elsewhere. It shows how much there
              is *if* the call is right. It costs accuracy: where presence is uncertain the value is too high, so that
              squared error and mean level are worse than with the other two.

        Returns
        -------
        DataFrame spots x metabolites, float32; for several `how` a dictionary of them by name.
        """
        asked = check_how(how)
        prediction = self._predict_all(adata, layer=layer, input=input, min_genes=min_genes, batch_size=batch_size)
        outputs: dict[str, pd.DataFrame] = {one: prediction.output(one) for one in asked}
        return outputs[asked[0]] if isinstance(how, str) else outputs

    def predict_interval(
        self,
        adata: AnnData | None = None,
        coverage: float = 0.9,
        *,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Interval that holds the measured intensity with the given chance.

        Quantiles of the residuals that held-out sections (or blocks) of the training data left, in units of the hurdle
        model's own standard deviation of the spot; for each metabolite, separately for spots called present and absent.
        Where absent is called, the lower bound is 0 and all of the tail is above. Intervals are wider for spots that are
        further from the training data than 95 % of the training spots, and where genes are missing. The chance is that of a
        random spot of a new section which is exchangeable with the training sections.

        Parameters
        ----------
        adata, layer, input, min_genes, batch_size
            As for :meth:`predict_presence`.
        coverage
            Between 0 and 1.

        Returns
        -------
        Lower and upper bound, each a DataFrame spots x metabolites, float32, at least 0.
        """
        prediction = self._predict_all(
            adata, coverage=coverage, layer=layer, input=input, min_genes=min_genes, batch_size=batch_size
        )
        return prediction.lower, prediction.upper

    def sample(
        self,
        adata: AnnData | None = None,
        n_samples: int = 1,
        rng: int | np.random.Generator | None = None,
        *,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> xr.DataArray:
        """Draw from the fitted hurdle model, spot by spot.

        Presence is drawn with the predicted probability, the intensity from a normal around its prediction with the
        spread of held-out residuals, cut at 0.

        Parameters
        ----------
        adata, layer, input, min_genes, batch_size
            As for :meth:`predict_presence`.
        n_samples
            Number of draws.
        rng
            Seed or generator.

        Returns
        -------
        DataArray with the dimensions ``draw``, ``spot``, ``metabolite``, float32.
        """
        import xarray as xr

        check_count(n_samples, "n_samples")
        if rng is not None and not isinstance(rng, np.random.Generator):
            check_count(rng, "rng", 0)
        random = np.random.default_rng(rng)
        prediction = self._predict_all(adata, layer=layer, input=input, min_genes=min_genes, batch_size=batch_size)
        p, mean = prediction.presence.to_numpy(np.float64), prediction.intensity.to_numpy(np.float64)
        sd = np.maximum(self.state.spread, 1e-9)
        draws = np.empty((n_samples, *p.shape), dtype=np.float32)
        for i in range(n_samples):
            floor = ndtr(-mean / sd)
            u = floor + (1 - floor) * random.random(p.shape)
            value = mean + sd * ndtri(np.clip(u, 1e-12, 1 - 1e-12))
            draws[i] = np.where(random.random(p.shape) < p, np.maximum(value, 0), 0)
        coords = {"spot": list(prediction.presence.index), "metabolite": self.metabolites}
        return xr.DataArray(draws, dims=("draw", "spot", "metabolite"), coords=coords, name="intensity")

    def save(
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        save_anndata: bool = False,
        license: str | None = None,
        card: str | Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder; :func:`stmsi.model.load` reads it.

        Parameters
        ----------
        dir_path
            Folder to make. It appears whole or not at all.
        overwrite
            Replace a model that is there.
        save_anndata
            Write the training data beside the model, as ``adata.h5ad``: a model that is loaded without `adata` then has
            them, can predict them, and can be trained again. Whoever gets the folder gets the data.
        license
            Licence of use, for the model card; `None`: what the model was loaded with, if anything.
        card
            What else the card should say, under ``about``: a text, or a mapping such as ``{"tissue": "breast"}``.

        Raises
        ------
        FileExistsError
            The folder exists and `overwrite` is false.
        RuntimeError
            The model is not trained.
        TypeError
            Values for the card that JSON cannot hold.
        ValueError
            `save_anndata` of a model that was loaded without data.
        """
        save_model(self, dir_path, overwrite=overwrite, save_anndata=save_anndata, license=license, card=card)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:
        """Load a saved model of this class; see :func:`stmsi.model.load`, which takes any.

        Parameters
        ----------
        dir_path
            Folder that ``model.save`` wrote.
        adata
            Training data to attach; `None`: those that were saved with it (``save_anndata=True``), else the model predicts
            data that are passed to it.

        Returns
        -------
        The model.

        Raises
        ------
        FileNotFoundError
            No such folder.
        ValueError
            Another class, another format, or damaged files.
        """
        path = Path(dir_path)
        return load_as(cls, path, read_card(path), adata)

    def _forget_data(self) -> None:
        """Be as one that was loaded without data."""
        self.adata = None

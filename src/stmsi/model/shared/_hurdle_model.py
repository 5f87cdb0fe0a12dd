"""What all models share: calibration on held-out spots, and the calls that predict."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args, overload

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from stmsi._core.arrays_on_disk import array_like
from stmsi._core.learning.folds import sections_or_blocks
from stmsi._core.learning.hurdle import affordable_threshold, best_f1_threshold, hurdle_mean
from stmsi._core.metrics.columns import in_pieces, number, pieces_into
from stmsi._core.metrics.presence import prevalence
from stmsi._core.metrics.reliability import auroc_inside, pearson_inside
from stmsi._core.uncertainty.conformal import GroupConformal, doubt_of
from stmsi._core.uncertainty.copula import HurdleCopula
from stmsi._data.checks import (
    check_choice,
    check_count,
    check_coverage,
    check_share,
    listing,
    require_spatialdata,
)
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, sections_of
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.model.shared._blocks import BLOCK_SIZE, blocks_of, n_blocks
from stmsi.model.shared._fitted_state import FittedState
from stmsi.model.shared._persistence import load_as, model_card, read_card, save_model
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._targets import Targets
from stmsi.model.shared._training_spots import NOTHING

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.shared._stored_input import Input
    from stmsi.model.shared._training_data import TrainingData

How: TypeAlias = Literal["expected", "probability_weighted", "mask"]
"""Ways in which the two stages become one number; see :meth:`HurdleModel.predict`."""

MIN_GENES = 0.4
"""Share of the training genes, by their weight in the model, that a query must have when nothing else is said."""

CONTEXT_RINGS = 2
"""Rings of neighbours that the models on fixed features see: pooled counts one, averages of averages two."""

_F1_TOLERANCE = 0.05
"""Share of the best F1 given up for a lower threshold. F1 is flat at its best, and a false zero costs all that the
probability tells there."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions of training spots, what was measured there, and where they lie."""

    targets: Targets
    probability: NDArray[np.float64]
    intensity: NDArray[np.float64]
    sample: NDArray[Any]
    xy: NDArray[np.float64] | None


@dataclass(frozen=True)
class Prediction:
    """Both stages and what follows from them, each a DataFrame spots x metabolites; `ood` one value a spot."""

    presence: pd.DataFrame
    intensity: pd.DataFrame
    expected: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    ood: NDArray[np.float64]
    missing_genes: float
    found: NDArray[np.int8] | None = None  # what `TrainingSpots.compare` says of each spot, where it was asked for

    @classmethod
    def gather(cls, parts: Iterable[tuple[NDArray[np.int64], Prediction]], names: pd.Index) -> Prediction:
        """Predictions of some spots each, given with their rows, as one of all; `names` are those of all spots."""
        values: dict[str, NDArray[np.float32]] = {}
        ood, found, n = np.empty(len(names)), np.empty(len(names), np.int8), len(names)
        for rows, part in parts:
            if len(rows) == n:
                return part
            for field in _FRAMES:
                frame = getattr(part, field)
                values.setdefault(field, np.empty((n, frame.shape[1]), np.float32))[rows] = frame.to_numpy()
            ood[rows] = part.ood
            if part.found is not None:
                found[rows] = part.found
        frames = {field: pd.DataFrame(value, index=names, columns=frame.columns) for field, value in values.items()}
        told = None if part.found is None else found
        return cls(**frames, ood=ood, missing_genes=part.missing_genes, found=told)

    def take(self, rows: NDArray[np.int64]) -> Prediction:
        """Some of the spots."""
        frames = {field: getattr(self, field).iloc[rows] for field in _FRAMES}
        found = None if self.found is None else self.found[rows]
        return replace(self, **frames, ood=self.ood[rows], found=found)

    def output(self, how: How) -> pd.DataFrame:
        """The two stages as one number; see :meth:`HurdleModel.predict`."""
        if how == "expected":
            return self.expected
        if how == "mask":
            return self.intensity.where(self.expected > 0, 0)
        return self.presence * self.intensity


_FRAMES = ("presence", "intensity", "expected", "lower", "upper")


def check_how(how: How | Sequence[How]) -> list[How]:
    """The outputs asked for, each once, in their order."""
    asked: list[How] = [how] if isinstance(how, str) else list(dict.fromkeys(how))
    if not asked:
        msg = f"how= names no output; choose among {listing(get_args(How))}."
        raise ValueError(msg)
    for one in asked:
        check_choice(one, get_args(How), "how")
    return asked


class HurdleModel:
    """The calls that every model answers; the families differ in how they train and in `_stages`."""

    state_: FittedState | None = None
    adata: AnnData | None
    _about: Mapping[str, Any] = {}  # what the user says of the model: licence, notes
    _evidence: HeldOut | None = None  # of the last calibration, from which the copula is fitted

    @abstractmethod
    def _stages(self, spots: Spots) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probability of presence and intensity given presence, each of shape (spots, metabolites)."""

    def _held_out_stages(self) -> NDArray[np.float64] | None:
        """Both stages for every training spot, predicted without it, where training has left them behind.

        Of shape (2, spots, metabolites), NaN where there was none.
        """
        return None

    @abstractmethod
    def _contains_training_profiles(self) -> bool:
        """Whether a saved model holds training spots as they are."""

    @abstractmethod
    def _write(self, directory: Path) -> None:
        """Write everything but the model card."""

    @classmethod
    @abstractmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> Self:
        """The model that :meth:`_write` wrote."""

    @property
    def _reach(self) -> int | None:
        """Rings of neighbours that the prediction of a spot depends on; `None`: all of its section."""
        return 0 if self.state.setup.graph_key is None else CONTEXT_RINGS

    def _replaces(self, before: Mapping[str, Any]) -> bool:
        """Whether a training that failed has left a whole model in the place of the one before, given its attributes."""
        return False

    @contextmanager
    def _in_batches(self, batch_size: int | None) -> Iterator[None]:
        """Predict so many spots at once inside; models without batches have nothing to do."""
        yield

    @classmethod
    def _reads_graph(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003
        """Whether a model with these hyper-parameters can be set up with a neighbourhood graph."""
        return True

    @classmethod
    def _default_fields(cls, adata: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Fields that are set up where the data have them and nothing else is said."""
        return {}

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003
        """Whether a model with these hyper-parameters can be set up with a knowledge prior."""
        return False

    @classmethod
    @abstractmethod
    def setup_anndata(cls, adata: AnnData, *args: Any, **fields: Any) -> None:
        """Say which fields of an AnnData the model uses."""

    @classmethod
    def setup_spatialdata(cls, sdata: SpatialData, *, table_key: str = Key.table.ST, **fields: Any) -> None:
        """Say which fields of the ST table of a SpatialData the model uses; then pass that table to the model.

        Parameters
        ----------
        sdata
            Sections with MSI mapped to spots.
        table_key
            The ST table; the model is made from ``sdata.tables[table_key]``.
        **fields
            As for :meth:`setup_anndata`.

        Returns
        -------
        `None`. Writes into the table what :meth:`setup_anndata` writes.

        Raises
        ------
        TypeError
            Not a SpatialData.
        KeyError
            No such table, or a field is not there.
        ValueError
            As for :meth:`setup_anndata`.
        """
        require_spatialdata(sdata)
        cls.setup_anndata(get_table(sdata, table_key), **fields)

    @property
    def state(self) -> FittedState:
        """What training left behind."""
        if self.state_ is None:
            msg = f"The {type(self).__name__} is not trained; call .train() first."
            raise RuntimeError(msg)
        return self.state_

    @property
    def metabolites(self) -> list[str]:
        """Ids of the metabolites that the model predicts."""
        return list(self.state.metabolites)

    def _used_genes(self) -> NDArray[np.int64]:
        """Positions in the panel of the genes that predictions depend on."""
        features = self.state.features
        spaces = [features.own] if features.pooled is None else [features.own, features.pooled]
        return np.unique(np.concatenate([space.selected for space in spaces])).astype(np.int64)

    def _gene_weights(self) -> NDArray[np.float64]:
        """Share of each gene of the panel in what predictions depend on: how far they move by one standard deviation of it.

        Shape (panel genes,), adding up to 1; 0 for genes that are not used.
        """
        return self.state.features.gene_weights(len(self.state.panel))

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

    def _predict_all(
        self,
        adata: AnnData | None,
        *,
        coverage: float = 0.9,
        layer: str | None = None,
        input: Input | None = None,
        min_genes: float = MIN_GENES,
        batch_size: int | None = None,
    ) -> Prediction:
        self.state  # noqa: B018  raises where it is not trained
        check_coverage(coverage)
        check_share(min_genes, "min_genes")
        if batch_size is not None:
            check_count(batch_size, "batch_size")
        reader = self._query(adata, min_genes, layer=layer, input=input)
        with self._in_batches(batch_size):
            return self._predict_from(reader, coverage)

    def _predict_from(
        self,
        reader: SpotReader,
        coverage: float,
        size: int = BLOCK_SIZE,
        *,
        marked: bool = False,
        show_progress_bar: bool | None = False,
    ) -> Prediction:
        """Predict all spots, some at a time."""
        total = n_blocks(reader, self._reach, size)
        blocks = self._predict_blocks(reader, coverage, size, marked=marked)
        shown = track(blocks, "predict", total=total, show=show_progress_bar)
        return Prediction.gather(shown, reader.spots.names)

    def _predict_blocks(
        self, reader: SpotReader, coverage: float, size: int, *, marked: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Prediction]]:
        """Rows of some spots at a time and their prediction, which does not depend on `size`; compared to training spots if asked for."""
        for block in blocks_of(reader, self._reach, size):
            spots = reader.read(block.read)
            prediction = self._predict_spots(spots, coverage)
            if marked:
                prediction = replace(prediction, found=self._found(spots))
            yield block.rows, prediction if block.read is None else prediction.take(block.at)

    def _found(self, spots: Spots) -> NDArray[np.int8]:
        """Each spot beside those that the model was trained on, as :meth:`TrainingSpots.compare` says it."""
        seen = self.state.seen
        return np.full(len(spots), NOTHING, np.int8) if seen is None else seen.compare(spots)

    def _predict_spots(self, spots: Spots, coverage: float = 0.9) -> Prediction:
        """Both stages and what follows from them, from spots over the genes of the model."""
        state = self.state
        probability, intensity = (np.asarray(v, dtype=np.float32) for v in self._stages(spots))
        intensity = np.maximum(intensity, 0)
        expected = hurdle_mean(intensity, probability, state.threshold)
        assert state.residuals is not None
        ood = state.features.ood(spots)
        doubt = doubt_of(ood, spots.missing)
        lower, upper = state.residuals.interval(expected, probability, intensity, coverage, doubt)

        def frame(values: NDArray[np.float32]) -> pd.DataFrame:
            return pd.DataFrame(values, index=spots.names, columns=state.metabolites)

        return Prediction(
            frame(probability), frame(intensity), frame(expected), frame(lower), frame(upper),
            ood, spots.missing,
        )  # fmt: skip

    def _query_spots(
        self, adata: AnnData | None, min_genes: float, *, layer: str | None = None, input: Input | None = None
    ) -> Spots:
        """Inputs of all spots to predict at once."""
        return self._query(adata, min_genes, layer=layer, input=input).read()

    def _query(
        self, adata: AnnData | None, min_genes: float, *, layer: str | None = None, input: Input | None = None
    ) -> SpotReader:
        """The spots to predict; `None`: the training data, whose cluster labels are known."""
        if adata is None and self.adata is None:
            msg = "The model was loaded without data; pass the AnnData to predict."
            raise ValueError(msg)
        own = adata is None or adata is self.adata
        data = self.adata if adata is None else adata
        setup = self.state.setup
        if own and layer is None and input is None:
            input = setup.input  # what the training data are was decided before training
        return SpotReader.open(
            data, setup, self.state.panel, weights=self._gene_weights(),  # type: ignore[arg-type]
            min_genes=min_genes, with_cluster=own, layer=layer, input=input,
        )  # fmt: skip

    def _calibrate_after(
        self,
        data: TrainingData,
        probability: NDArray[np.float64],
        intensity: NDArray[np.float64],
        units: NDArray[Any],
        seed: int,
        few: NDArray[np.bool_] | None = None,
        *,
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Calibrate on the validation spots, or else on the predictions of the training spots that inner folds made.

        `groups` were left out together, `units` are the sections (or blocks) among them; `None`: the same.
        """
        features = self.state.features
        if data.validation is None:
            places = (data.sample, data.train.xy)
            distance = features.held_out_ood(data.train, units if groups is None else groups)
            self._calibrate(data.targets, probability, intensity, units, few, places=places, distance=distance)
            return
        judges = data.spots.take(data.validation)
        sample = sections_of(data.adata, self.state.setup.sample_key)[data.validation]
        units = sections_or_blocks(sample, judges.xy, seed=seed)
        targets = data.all_targets.some(data.validation, self.state.metabolites)
        stages, distance = self._stages(judges), features.ood(judges)
        self._calibrate(targets, *stages, units, places=(sample, judges.xy), distance=distance)

    def _calibrate(
        self,
        targets: Targets,
        probability: NDArray[np.float64],
        intensity: NDArray[np.float64],
        groups: NDArray[Any],
        few: NDArray[np.bool_] | None = None,
        *,
        places: tuple[NDArray[Any], NDArray[np.float64] | None],
        distance: NDArray[np.float64],
    ) -> None:
        """Thresholds, intervals and evidence from held-out predictions of training spots.

        `groups` are the sections (or blocks) of the spots, which weigh the same in the intervals. Metabolites in `few`
        have too few held-out spots with or without them to choose a threshold by. `places` are section and position of
        the spots, `distance` their out-of-distribution score, for the spots of the other groups.
        """
        state = self.state
        self._evidence, state.copula = HeldOut(targets, probability, intensity, *places), None
        unseen = in_pieces(lambda p: np.isnan(p).all(axis=0), targets.presence)
        if unseen.any():
            logger.warning(
                "Metabolites not measured in the spots held out for calibration get the threshold 0.5 and no interval: %s",
                listing(state.metabolites[unseen]),
            )
        undecided = unseen if few is None else unseen | few
        presence, truth = targets.presence, targets.intensity
        # some metabolites at a time: what is computed on the way would take several times what is kept of the spots
        threshold = in_pieces(partial(best_f1_threshold, tolerance=_F1_TOLERANCE), presence, probability)
        threshold = in_pieces(_lowered_threshold, truth, intensity, probability, threshold)
        state.threshold = np.where(undecided, 0.5, threshold)
        expected = pieces_into(array_like(intensity, np.float32), _expected, intensity, probability, state.threshold)
        state.residuals = GroupConformal.fit(
            truth, presence, probability, intensity, expected, groups, doubt_of(distance)
        )
        state.spread = in_pieces(_residual_spread, truth, presence, intensity)
        evidence = {
            "prevalence": in_pieces(prevalence, presence),
            "training_mean": in_pieces(_mean, truth),
            "n_spots": in_pieces(number, truth),
        }
        unit = np.unique(groups, return_inverse=True)[1]
        r, r_lower, n_units = in_pieces(partial(pearson_inside, units=unit), truth, expected)
        area, area_lower = in_pieces(partial(auroc_inside, units=unit), presence, probability)
        evidence |= {
            "held_out_pearson": r, "held_out_pearson_lower": r_lower, "held_out_auroc": area, "held_out_auroc_lower": area_lower,
            "held_out_units": n_units,
        } | dict(zip(("held_out_coverage", "held_out_coverage_lowest"), state.residuals.held_out, strict=True))  # fmt: skip
        state.feature_table = state.feature_table.assign(**evidence)

    def _fit_copula(self) -> HurdleCopula | None:
        """Fit how held-out residuals hang together, once; `None` where the model holds none."""
        state, held_out = self.state, self._evidence
        if state.copula is None and held_out is not None:
            state.copula = HurdleCopula.fit(
                held_out.targets.metabolites.to_numpy(dtype=object),
                np.asarray(held_out.targets.intensity),
                np.asarray(held_out.targets.presence),
                np.asarray(held_out.probability),
                np.asarray(held_out.intensity),
                np.unique(held_out.sample.astype(str), return_inverse=True)[1],
                held_out.xy,
            )
        return state.copula

    def _copula(self, metabolites: pd.Index) -> HurdleCopula:
        """How held-out residuals of some metabolites hang together."""
        copula = self._fit_copula()
        at = pd.Index([] if copula is None else copula.names, dtype=object).get_indexer(metabolites)
        if copula is None or (at < 0).any():
            lacking = "" if copula is None else f" of {listing(metabolites[at < 0])}"
            msg = (
                f"The {type(self).__name__} holds no held-out residuals{lacking}, from which draws are made; train it again "
                "with this version of stmsi, or draw spot by spot with model.sample."
            )
            raise ValueError(msg)
        return copula.take(at)

    def __repr__(self) -> str:
        name, params = type(self).__name__, ", ".join(f"{k}={v!r}" for k, v in self._params().items())
        if self.state_ is None:
            return f"{name}({params}), not trained"
        t = self.state_.training
        return (
            f"{name}({params}), trained on {t['n_spots']} spots of {len(t['samples'])} section(s): "
            f"{t['n_genes']} genes -> {len(self.state_.metabolites)} metabolites"
        )

    @abstractmethod
    def _params(self) -> dict[str, Any]:
        """Hyper-parameters as plain values."""


def _lowered_threshold(
    truth: NDArray[np.float64],
    intensity: NDArray[np.float64],
    probability: NDArray[np.float64],
    threshold: NDArray[np.float64],
) -> NDArray[np.float64]:
    return affordable_threshold(truth, probability * np.maximum(intensity, 0), probability, threshold)


def _expected(
    intensity: NDArray[np.float64], probability: NDArray[np.float64], threshold: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """The two stages as one number, NaN where one of them is not known."""
    known = ~np.isnan(probability) & ~np.isnan(intensity)
    return np.where(known, hurdle_mean(np.nan_to_num(intensity), np.nan_to_num(probability), threshold), np.nan)


def _residual_spread(
    truth: NDArray[np.float64], presence: NDArray[np.float64], intensity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Root mean square of the residuals where a metabolite is present."""
    residual = np.where(presence > 0, truth, np.nan) - intensity
    return np.sqrt(np.nansum(residual**2, axis=0) / np.maximum(number(residual), 1))


def _mean(truth: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nansum(truth, axis=0) / np.maximum(number(truth), 1)

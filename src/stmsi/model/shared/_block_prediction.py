"""Prediction of spots some at a time, from wherever they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.freed_memory import release_freed
from stmsi._core.learning.hurdle import hurdle_mean
from stmsi._core.uncertainty.conformal import doubt_of
from stmsi._data.checks import check_count, check_coverage, check_share
from stmsi._progress import track
from stmsi.model.shared._blocks import BLOCK_SIZE, Block, blocks_of, n_blocks, some_rows
from stmsi.model.shared._prediction import Prediction
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._trained_model import TrainedModel
from stmsi.model.shared._training_spots import NOTHING

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._stored_input import Input

MIN_GENES = 0.4
"""Share of the training genes, by their weight in the model, that a query must have when nothing else is said."""


class BlockPrediction(TrainedModel):
    """Reads the spots to predict, and predicts them in blocks."""

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
            yield block.rows, self._predict_block(reader, block, coverage, marked=marked)
            release_freed()

    def _predict_block(self, reader: SpotReader, block: Block, coverage: float, *, marked: bool) -> Prediction:
        """Read and predict one block; nothing else of it is in memory when the next one is read."""
        spots = reader.read(block.read)
        at = None if len(block.at) == len(spots) else block.at
        prediction = self._predict_spots(spots, coverage, at)
        return replace(prediction, found=some_rows(self._found(spots), at)) if marked else prediction

    def _found(self, spots: Spots) -> NDArray[np.int8]:
        """Each spot beside those that the model was trained on, as :meth:`TrainingSpots.compare` says it."""
        seen = self.state.seen
        return np.full(len(spots), NOTHING, np.int8) if seen is None else seen.compare(spots)

    def _predict_spots(self, spots: Spots, coverage: float = 0.9, at: NDArray[np.int64] | None = None) -> Prediction:
        """Both stages and what follows from them, from spots over the genes of the model; `at`: of some, which the others surround."""
        state, names = self.state, spots.names if at is None else spots.names[at]
        probability, intensity = (np.asarray(v, dtype=np.float32) for v in self._stages(spots, at))
        intensity = np.maximum(intensity, 0)
        expected = hurdle_mean(intensity, probability, state.threshold)
        assert state.residuals is not None
        ood = some_rows(state.features.ood(spots), at)
        doubt = doubt_of(ood, spots.missing)
        lower, upper = state.residuals.interval(expected, probability, intensity, coverage, doubt)

        def frame(values: NDArray[np.float32]) -> pd.DataFrame:
            return pd.DataFrame(values, index=names, columns=state.metabolites)

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

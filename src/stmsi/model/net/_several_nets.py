"""One network for each held-out group of spots, whose predictions are averaged."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.arrays_on_disk import new_array, some_of, write_into
from stmsi._data.tables import sections_of
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.model.net._run import Net, Run
from stmsi.model.net._steps import NetSteps
from stmsi.model.net._training_inputs import presence_counts
from stmsi.model.net.encoders import ENCODERS, MetaboliteEncoder
from stmsi.model.shared._persistence import save_model
from stmsi.model.shared._targets import drop_unmeasured
from stmsi.model.shared._training_data import start_state, summarise_training

if TYPE_CHECKING:
    from stmsi.model.shared._inner_folds import InnerFolds


@dataclass
class _Made:
    """What networks said of the group that each was trained without, shape (spots, metabolites), NaN before; the networks.

    The arrays are on disk where the expression is. Without attention, the last two have no columns.
    """

    logit: Any
    intensity: Any
    attended: Any  # maps before calibration
    uniform: Any  # the same with attention made uniform
    nets: list[Net] = field(default_factory=list)
    histories: list[dict[str, pd.DataFrame]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run, *, attends: bool) -> _Made:
        """Of the training spots of a run."""
        shape, folder = (
            (len(run.rows), len(run.targets.metabolites)),
            run.spots.folder if run.spots.is_streamed else None,
        )
        logit, intensity = (new_array(folder, shape, np.float64, np.nan) for _ in range(2))
        attended, uniform = (
            new_array(folder, shape if attends else (len(run.rows), 0), np.float64, np.nan) for _ in range(2)
        )
        return cls(logit, intensity, attended, uniform)


def check_n_nets(n_nets: int | str) -> None:
    """Refuse what is no number of networks."""
    if n_nets == "auto" or (isinstance(n_nets, int) and not isinstance(n_nets, bool) and n_nets >= 1):
        return
    msg = f"n_nets must be 'auto' or a whole number of at least 1, found {n_nets!r}."
    raise ValueError(msg)


class SeveralNets(NetSteps):
    """Training of one network for each held-out group, for :class:`stmsi.model.HurdleNet`."""

    _whole: bool = False  # whether weights, state and calibration belong together; of this training

    @abstractmethod
    def _learn(self, run: Run, *, settle: bool = True, rescue: bool = True, **options: Any) -> list[int]:
        """Train one network; the number of epochs that was best for each stage.

        It is calibrated at the end (`settle`), and where training ends early after an epoch that was better (`rescue`).
        """

    @abstractmethod
    def _settle(self, run: Run, epochs: int) -> None:
        """Calibrate by the validation spots of a run."""

    def _learn_nets(self, run: Run, folds: InnerFolds, **options: Any) -> None:
        """Train a network without each group, and calibrate by their predictions of the groups.

        Interrupted, the model is that of the groups that were done; in the first of them, its network with the best weights so far.

        Parameters
        ----------
        run
            Its rows are the spots of all groups.
        folds
            The groups, of these rows.
        **options
            As for the training of one network.
        """
        made = _Made.of(run, attends=issubclass(ENCODERS[self._hyper["encoder"]], MetaboliteEncoder))
        n_nets = int(folds.groups.max()) + 1
        for group in track(range(n_nets), "networks", total=n_nets, show=options.get("enable_progress_bar", False)):
            inside = folds.groups == group
            first = not made.nets
            directory = run.directory if first else None
            part = replace(run, rows=run.rows[~inside], validation=run.rows[inside], directory=directory)
            try:
                n_epochs = sum(self._learn(part, settle=False, rescue=first, **options))
                at = run.targets.metabolites.get_indexer(self.state.metabolites)
                spots, place = run.spots.take(part.validation), (np.flatnonzero(inside), at)
                self._remember(part.rows)
                said = self._forward(spots)
                write_into(made.logit, place, said[0])
                write_into(made.intensity, place, said[1])
                flat = self._uniform_map(spots)
                if flat is not None:
                    write_into(made.attended, place, self._rough_map(*said))
                    write_into(made.uniform, place, flat)
            except BaseException:
                if made.nets:
                    self._settle_nets(run, folds, made)
                    logger.warning(
                        "Training ended early; the model is the mean of the %d networks that were trained.",
                        len(made.nets),
                    )
                raise
            made.nets.append(Net(self.module, self.state.features, self.state.metabolites))
            made.histories.append(dict(self.history_ or {}))
            made.epochs.append(n_epochs)
            if run.directory is not None:
                self._settle_nets(run, folds, made)
                save_model(self, run.directory, overwrite=True)
        self._settle_nets(run, folds, made)

    def _tune_nets(self, run: Run, **options: Any) -> None:
        """Go on training every network with the same spots, and calibrate their mean; arguments as for :meth:`_learn_nets`."""
        assert run.start is not None
        nets, epochs = [], []
        for net in run.start.nets:
            epochs.append(
                sum(
                    self._learn(
                        replace(run, start=replace(run.start, nets=[net])), settle=False, rescue=False, **options
                    )
                )
            )
            nets.append(Net(self.module, net.features, net.metabolites))
        self.state_ = run.start.state
        self._adopt(nets)
        self._settle(run, max(epochs))

    def _settle_nets(self, run: Run, folds: InnerFolds, made: _Made) -> None:
        """Make the model the mean of its networks, calibrated by what each said of its group."""
        assert self.adata is not None
        known = run.targets.metabolites.isin(np.unique(np.concatenate([net.metabolites for net in made.nets])))
        targets, train = drop_unmeasured(run.targets, run.rows), run.spots.take(run.rows)
        targets = targets.some(np.arange(len(run.rows)), run.targets.metabolites[known])
        sample = sections_of(self.adata, self._setup.sample_key)[run.rows]
        features, _ = self._fit_features(train, targets, sample, screen=False)
        self.state_ = start_state(self.adata, self._setup, targets, features, train)
        self._adopt(made.nets)
        columns = np.flatnonzero(run.targets.metabolites.isin(targets.metabolites))
        logit, intensity = (some_of(values, columns=columns) for values in (made.logit, made.intensity))
        trained = presence_counts(targets.presence)
        distance = features.held_out_ood(train, folds.groups)
        places = (sample, train.xy)
        probability = self._calibrate_by(
            targets, logit, intensity, trained, folds.units, places=places, distance=distance
        )
        # a stack reads them, which is not trained with its members on disk
        self._made_held_out = None if run.spots.is_streamed else np.stack([probability, intensity])
        if isinstance(self.module.encoder, MetaboliteEncoder):
            attended, uniform = (some_of(values, columns=columns) for values in (made.attended, made.uniform))
            self._note_control(targets, attended, uniform, folds.units)
        summary = summarise_training(self.adata, self._setup, run.rows)
        self.state.training = summary | {"epochs": made.epochs, "refit": False, "n_nets": len(made.nets)}
        self.state.seen = run.seen()
        self.history_ = {
            name: pd.concat([h[name] for h in made.histories if name in h], axis=1).mean(axis=1).to_frame(name)
            for name in made.histories[0]
        }
        self.is_trained_ = self._whole = True

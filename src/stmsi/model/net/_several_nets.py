"""One network for each held-out group of spots, whose predictions are averaged."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.tables import sections_of
from stmsi._progress import track
from stmsi._settings import logger
from stmsi.model.net._run import Net, Run
from stmsi.model.net._steps import NetSteps
from stmsi.model.net._training_inputs import presence_counts
from stmsi.model.net.encoders import MetaboliteEncoder
from stmsi.model.shared._persistence import save_model
from stmsi.model.shared._targets import drop_unmeasured
from stmsi.model.shared._training_data import start_state, summarise_training

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._inner_folds import InnerFolds


@dataclass
class _Made:
    """What networks said of the group that each was trained without, shape (spots, metabolites), NaN before; the networks."""

    logit: NDArray[np.float64]
    intensity: NDArray[np.float64]
    attended: NDArray[np.float64]  # maps before calibration
    uniform: NDArray[np.float64]  # the same with attention made uniform
    nets: list[Net] = field(default_factory=list)
    histories: list[dict[str, pd.DataFrame]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)


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
        logit, intensity, attended, uniform = np.full((4, len(run.rows), len(run.targets.metabolites)), np.nan)
        made = _Made(logit, intensity, attended, uniform)
        n_nets = int(folds.groups.max()) + 1
        for group in track(range(n_nets), "networks", total=n_nets, show=options.get("enable_progress_bar", False)):
            inside = folds.groups == group
            first = not made.nets
            directory = run.directory if first else None
            part = replace(run, rows=run.rows[~inside], validation=run.rows[inside], directory=directory)
            try:
                n_epochs = sum(self._learn(part, settle=False, rescue=first, **options))
                at = run.targets.metabolites.get_indexer(self.state.metabolites)
                spots, place = run.spots.take(part.validation), np.ix_(inside, at)
                self._remember(part.rows)
                said = self._forward(spots)
                made.logit[place], made.intensity[place] = said
                flat = self._uniform_map(spots)
                if flat is not None:
                    made.attended[place], made.uniform[place] = self._rough_map(*said), flat
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
        columns = run.targets.metabolites.isin(targets.metabolites)
        logit, intensity, attended, uniform = (
            values[:, columns] for values in (made.logit, made.intensity, made.attended, made.uniform)
        )
        trained = presence_counts(targets.presence)
        distance = features.held_out_ood(train, folds.groups)
        places = (sample, train.xy)
        probability = self._calibrate_by(
            targets, logit, intensity, trained, folds.units, places=places, distance=distance
        )
        self._made_held_out = np.stack([probability, intensity])
        if isinstance(self.module.encoder, MetaboliteEncoder):
            self._note_control(targets, attended, uniform, folds.units)
        summary = summarise_training(self.adata, self._setup, run.rows)
        self.state.training = summary | {"epochs": made.epochs, "refit": False, "n_nets": len(made.nets)}
        self.state.seen = run.seen()
        self.history_ = {
            name: pd.concat([h[name] for h in made.histories if name in h], axis=1).mean(axis=1).to_frame(name)
            for name in made.histories[0]
        }
        self.is_trained_ = self._whole = True

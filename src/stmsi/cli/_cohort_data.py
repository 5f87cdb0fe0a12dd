"""The mapped sections of a cohort to train on: read from their stores, or in one table where a model needs that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmsi._settings import logger

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.tl._stored_sections import StoredSections

_TRAINED_WITH = ("layer", "input", "presence_key", "graph_key", "covariate_key", "feature_key", "prior_key")
_SETUP_NAMES = {"covariate_key": "covariate_keys"}
_APART = "The sections were mapped on different scales or with ions of one name and different m/z"


class CohortData(ABC):
    """Spots of all mapped sections, with their patients."""

    n_spots: int
    """Spots of the sections, with MSI or without."""

    @property
    @abstractmethod
    def spots(self) -> AnnData:
        """The spots with what is measured there; the expression may be empty."""

    @abstractmethod
    def train(self, model: str, *, client: str | None = None) -> HurdleModel:
        """Train a family; of data on disk, the workers of a scheduler may sum up the sections."""

    @abstractmethod
    def cross_validate(self, models: Sequence[str], **options: Any) -> pd.DataFrame:
        """Scores; options as of :func:`stmsi.tl.cross_validate`."""


def open_cohort(
    stores: Mapping[str, Path],
    obs: pd.DataFrame | None,
    options: Mapping[str, Any],
    models: Sequence[str],
    sums: Path | None,
) -> CohortData:
    """Look through the stores of all sections.

    Parameters
    ----------
    stores
        Mapped SpatialData of each section.
    obs
        What the configuration says of sections, such as the patient: a table whose index names them.
    options
        Of the step ``train``.
    models
        Families that will be trained. Those that cannot be trained on stores are trained in memory, which is warned of.
    sums
        Folder that keeps folds and sums over sections for another run; `None`: none are kept.

    Raises
    ------
    ValueError
        There is no section, or sections do not go together.
    """
    from stmsi._data.keys import Key
    from stmsi._data.merge_layers import is_record, why_apart
    from stmsi.tl._kept_arrays import usable_folder
    from stmsi.tl._stored_models import fields_of_stores
    from stmsi.tl._stored_sections import StoredSections

    if not stores:
        msg = "No section is mapped, so there is nothing to train on."
        raise ValueError(msg)
    given = {_SETUP_NAMES.get(k, k): options[k] for k in _TRAINED_WITH if options[k] is not None}
    fields = fields_of_stores(given or None, None, None)
    if "presence_key" not in given:
        fields.pop("presence_key", None)
    paths = list(stores.values())
    found = StoredSections.open(
        paths, fields, table_key=Key.table.ST, genes="shared", directory=usable_folder(sums), obs=obs
    )
    records = [record for s in found.stores if is_record(record := s.table.uns.get(Key.obsm.MSI))]
    if len(records) > 1 and (apart := why_apart(records)):
        msg = f"{_APART}: {apart}."
        raise ValueError(msg)
    sections = found.adata.obs[Key.obs.SAMPLE].astype(str).to_numpy()
    measured = found.adata.obsm[Key.obsm.MSI].notna().groupby(sections).any().sum()
    if len(stores) > 1 and not (measured > 1).any():
        msg = (
            "The sections share no ion. Name one list for all, as combine: mz: ions.csv; stmsi.pp.pick_peaks makes one."
        )
        raise ValueError(msg)
    setup = found.fields(fields)
    why = _why_in_memory(found, models, fields, str(options["join"]))
    if why is None:
        return _OnDisk(found, paths, setup, obs, sums)
    logger.warning("All spots are held in memory, because %s.", why)
    return _InMemory(paths, obs, setup, str(options["join"]), sums)


def _why_in_memory(found: StoredSections, models: Sequence[str], fields: Mapping[str, Any], join: str) -> str | None:
    """Why models cannot be trained on stores; `None` where they can."""
    from stmsi._core.learning.expression_parts import MOST_BYTES
    from stmsi.model._families import resolve
    from stmsi.tl._stored_models import check_stored_model, is_network

    if join == "outer" and any(s.table.n_vars > found.adata.n_vars for s in found.stores):
        return "sections have different genes and join is 'outer'"
    for model in models:
        try:
            check_stored_model(model, fields)
        except TypeError:
            return f"{model!r} reads the table itself"
        cls = resolve(model)[0]
        if not is_network(cls) and cls.__name__ != "HurdleLinear" and 8 * found.n_entries > MOST_BYTES:
            return f"{model!r} reads the whole expression, {8 * found.n_entries / 2**30:.1f} GB; 'ridge' and networks do not"
    return None


@dataclass
class _OnDisk(CohortData):
    """The expression stays in the stores."""

    found: StoredSections
    paths: list[Path]
    setup: dict[str, Any]
    obs: pd.DataFrame | None
    sums: Path | None

    def __post_init__(self) -> None:
        self.n_spots = sum(len(s.stored.number) for s in self.found.stores)

    @property
    def spots(self) -> AnnData:
        return self.found.adata

    def train(self, model: str, *, client: str | None = None) -> HurdleModel:
        import stmsi

        return stmsi.tl.train(
            self.paths, model, setup=self.setup, genes="shared", cache_dir=self.sums, obs=self.obs, client=client
        )  # fmt: skip

    def cross_validate(self, models: Sequence[str], **options: Any) -> pd.DataFrame:
        import stmsi

        return stmsi.tl.cross_validate(
            self.paths, models, setup=self.setup, genes="shared", cache_dir=self.sums, obs=self.obs, **options
        )  # fmt: skip


class _InMemory(CohortData):
    """One table of all sections."""

    def __init__(
        self, paths: Sequence[Path], obs: pd.DataFrame | None, setup: dict[str, Any], join: str, sums: Path | None
    ) -> None:
        from stmsi._data.concatenate import concat_st
        from stmsi._data.keys import Key
        from stmsi.tl._obs_by_section import add_obs

        self.setup, self.sums = setup, sums
        self._spots = concat_st([table_of(path) for path in paths], join)  # type: ignore[arg-type]
        if Key.obsm.MSI not in self._spots.obsm:
            msg = f"{_APART}; see the warnings."
            raise ValueError(msg)
        add_obs(self._spots, obs, Key.obs.SAMPLE)
        self.n_spots = self._spots.n_obs

    @property
    def spots(self) -> AnnData:
        return self._spots

    def train(self, model: str, *, client: str | None = None) -> HurdleModel:  # noqa: ARG002  there is nothing to share
        from stmsi.tl._models import train_model

        return train_model(self._spots, model, self.setup, show_progress_bar=None)

    def cross_validate(self, models: Sequence[str], **options: Any) -> pd.DataFrame:
        import stmsi

        return stmsi.tl.cross_validate(self._spots, models, setup=self.setup, cache_dir=self.sums, **options)


def table_of(store: Path) -> AnnData:
    """The ST table of a store, without reading the pixels."""
    import anndata as ad

    from stmsi._data.containers import reading
    from stmsi._data.keys import Key

    with reading(store, "a SpatialData store"):
        return ad.read_zarr(store / "tables" / Key.table.ST)

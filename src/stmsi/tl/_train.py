"""Train a model by name, on sections in memory or on stores that are never in memory together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stmsi._data.checks import is_spatialdata
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi._messages import warns_once
from stmsi.model._families import AUTO, ModelSpec, resolve
from stmsi.model.shared._setup import Setup
from stmsi.model.shared._spot_input import Spots
from stmsi.tl._kept_arrays import usable_folder
from stmsi.tl._models import obtain_model, setup_on, train_on
from stmsi.tl._obs_by_section import ObsBySection, refuse_obs
from stmsi.tl._section_sums import spread_components
from stmsi.tl._shared_folds import StoredFolds
from stmsi.tl._stored_models import check_stored_model, fields_of_stores, is_network, paths_of
from stmsi.tl._stored_sections import Genes, OnError, StoredSections
from stmsi.tl._workers import Workers

if TYPE_CHECKING:
    from distributed import Client
    from spatialdata import SpatialData

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._stored_input import Input


@warns_once
def train(
    data: SpatialData | AnnData | str | Path | Sequence[str | Path],
    model: ModelSpec = AUTO,
    *,
    layer: str | None = None,
    input: Input | None = None,
    table_key: str = Key.table.ST,
    setup: Mapping[str, Any] | None = None,
    genes: Genes = "same",
    on_error: OnError = "raise",
    cache_dir: str | Path | None = None,
    obs: ObsBySection | None = None,
    client: Client | str | None = None,
    show_progress_bar: bool | None = None,
) -> HurdleModel:
    """Train a model on all spots that have MSI.

    Of stores on disk, the expression is read a block of spots at a time, one store after the other, and never held as a whole. The
    model is the one that would be trained on all of it in memory. For `"ridge"` and the other families on components, each pass
    over the stores sums up what is needed:

    1. what the numbers are (counts or logarithms);
    2. sums of each gene, and of its square;
    3. sums of products of the variable genes, of which the components follow;
    4. components of all spots, and how far each spot lies from the others.

    Networks read their batches from the stores, in windows of shuffled blocks. The rest is fitted to the components. Features and held-out
    predictions are in temporary files, and memory holds what was measured. Families that are fitted to one metabolite after the other hold
    the features, too, and those that read all genes hold the expression: see :doc:`/user_guide/large_sections`.

    Parameters
    ----------
    data
        Section(s) with mapped MSI: SpatialData, AnnData, or paths of stores (``.h5ad``, ``.zarr`` of AnnData or SpatialData),
        each with one or more sections. A store without section names in ``obs`` is one section with the name of the file.
    model
        Name of a family, a model class or a mapping with hyper-parameters, see :func:`stmsi.tl.predict_metabolites`.
    layer, input
        Where the expression is, and what it is; as for :func:`stmsi.tl.predict_metabolites`.
    table_key
        ST table of a SpatialData.
    setup
        Fields for ``setup_anndata``; `None`: presence from ``obsm["msi_presence"]`` where all data have it, and (in memory) the
        signature from ``varm["signature"]``. What it names must be in all stores.
    genes
        Of stores: ``"same"`` refuses those that lack genes that most of them have; ``"shared"`` uses the genes that all have.
        Metabolites may differ: each is trained on the sections that measured it.
    on_error
        Of stores that cannot be used (damaged, without MSI, genes missing): ``"raise"`` one error that names them all, or
        ``"warn"``, and go on without them.
    cache_dir
        Of stores: folder that keeps what was summed up for each section (16 MB for 2,000 genes), so that another run, or one that was
        interrupted, takes it up. A section is read again when its path, size or time of change differs, or the versions of stmsi or
        of packages that matter. `None`, or one that cannot be written: a temporary folder. What goes with the run is there, too.
    obs
        Of stores: columns of ``obs`` by section, such as the patient: a DataFrame whose index names the sections, or a mapping such as
        ``{"patient": {"S1": "P1", "S2": "P2"}}``. They stand in the place of columns that stores have under these names; rows of other
        sections are passed over.
    client
        Of stores: a ``dask.distributed`` client, or the address of a scheduler, whose workers look through the stores and, for the families
        on components, do passes 1 to 4, a section at a time. What follows is done here. The model is the same to the last bit. See
        :doc:`/user_guide/cluster`.
    show_progress_bar
        `None` follows ``stmsi.settings.progress_bar``.

    Returns
    -------
    The trained model. One that was trained on stores holds no data: pass those to predict. `data` is not changed.

    Raises
    ------
    ValueError
        No spot has MSI, stores that are missing or cannot be used (they are named), two sections of one name, features of different width, or
        a model that reads the whole expression of more spots than fit into the memory.
    NotADirectoryError
        `cache_dir` is a file.
    TypeError
        A model that reads the table itself (a negative control), with stores; `obs` that is no table; or a `client` with data in memory.
    ConnectionError
        No scheduler answers at the address `client` within ten seconds.
    ImportError
        dask.distributed is not installed, or a worker has no stmsi.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> model = stmsi.tl.train(sdata, "ridge", show_progress_bar=False)
    >>> len(model.metabolites)
    12
    """
    if isinstance(data, AnnData) or is_spatialdata(data):
        adata = get_table(data, table_key)  # type: ignore[arg-type]
        refuse_obs(obs)
        if client is not None:
            msg = "client= shares stores among workers; data in memory are trained on here. Leave it out, or pass the paths of stores."
            raise TypeError(msg)
        spec: Any = model if isinstance(model, str | Mapping) else {"model": model}
        return obtain_model(spec, adata, setup_on(adata, setup, layer, input), show_progress_bar)
    return train_on_stores(
        paths_of(data), model, fields_of_stores(setup, layer, input), table_key=table_key, genes=genes, on_error=on_error,
        cache_dir=cache_dir, obs=obs, client=client, show_progress_bar=show_progress_bar,
    )[0]  # fmt: skip


def train_on_stores(
    paths: Sequence[str | Path],
    model: ModelSpec,
    fields: Mapping[str, Any],
    *,
    table_key: str,
    genes: Genes,
    on_error: OnError,
    cache_dir: str | Path | None,
    obs: ObsBySection | None = None,
    client: Client | str | None = None,
    show_progress_bar: bool | None,
) -> tuple[HurdleModel, Mapping[str, str]]:
    """As :func:`train`; also the stores that were left out, and why."""
    check_stored_model(model, fields)
    with Workers.found(client, n_jobs=1) as workers, workers.folder(usable_folder(cache_dir)) as directory:
        sections = StoredSections.open(
            paths, fields, table_key=table_key, genes=genes, on_error=on_error, directory=directory, obs=obs, workers=workers
        )  # fmt: skip
        every = np.arange(len(sections.names))
        shared = StoredFolds(sections, [every], directory, by_section=True)
        shared.prepare([model], workers, show_progress_bar)
        network = is_network(resolve(model)[0])
        if workers.several and not network:
            spread_components(shared, workers)

        def read(own: Setup) -> Spots:
            return shared.spots(own, every)

        told = sections.fields(fields)
        stored = shared.stored_input(every) if network else None
        fitted, _ = train_on(sections.adata, model, told, show_progress_bar=show_progress_bar, read=read, stored=stored)
    fitted._forget_data()  # its expression is empty
    return fitted, sections.left_out

"""Read any saved model: the class stands in its card."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from stmsi._data.checks import listing
from stmsi.model._families import CLASSES
from stmsi.model.shared._persistence import load_as, read_card

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi.model.shared._hurdle_model import HurdleModel


def load(dir_path: str | Path, adata: AnnData | None = None) -> HurdleModel:
    """Load a saved model.

    Nothing is unpickled, so a folder from somebody else can be loaded without running what they put into it: the files
    hold numbers, text and names of classes from a fixed list. What a model of unknown origin *predicts* is another
    question; see its card.

    Parameters
    ----------
    dir_path
        Folder that ``model.save`` wrote.
    adata
        Training data to attach, so that ``model.predict()`` works without an argument; `None`: those that were saved with
        the model (``save_anndata=True``), else the model predicts data that are passed to it.

    Returns
    -------
    The model, of the class that was saved. ``HurdleLinear.load(...)`` and the like do the same and refuse any other
    class.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        Not a folder that stmsi wrote, one of a newer version or of one that still pickled, another class than asked
        for, or damaged files.

    Notes
    -----
    A warning is logged where estimators of scikit-learn were saved by another version of it. Sizes of all files are
    checked against the card, contents are not signed: a card says what whoever saved the model wants it to say.

    Examples
    --------
    >>> import tempfile, stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.model.HurdleLinear.setup_anndata(sdata.tables["st"])
    >>> model = stmsi.model.HurdleLinear(sdata.tables["st"], presence="prior", intensity="mean")
    >>> model.train(show_progress_bar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model", license="CC-BY-4.0")
    ...     loaded = stmsi.model.load(f"{folder}/model")
    >>> len(loaded.metabolites), loaded.card["license"]
    (12, 'CC-BY-4.0')
    """
    path = Path(dir_path)
    card = read_card(path)
    name = card["class"]
    if name not in CLASSES:
        msg = f"{path} holds a {name!r}, which this version does not know; known: {listing(CLASSES)}."
        raise ValueError(msg)
    model: HurdleModel = load_as(getattr(import_module(CLASSES[name]), name), path, card, adata)
    return model

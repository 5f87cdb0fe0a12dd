"""Trained models as plain data: a tree in JSON and its numbers in an npz file.

Reading a pickle runs whatever code it names. Nothing here is pickled: a file can only name classes of stmsi's numerics
and a few of scikit-learn's, and say which values their attributes have. No constructor and no ``__setstate__`` is called
with what it holds.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stmsi._data.containers import check_file
from stmsi._data.small_files import read_json
from stmsi._settings import logger

STRUCTURE, ARRAYS = "model.json", "model.npz"

_UNPACKED, _RATIO = 2**30, 100
"""Bytes to which any archive may unpack, and how many times its own size beyond that."""
_OWN = ("stmsi.model.", "stmsi._core.")
"""Where the classes of stmsi that a file may name are."""
_TREES = "sklearn.ensemble._hist_gradient_boosting"
_SKLEARN = {
    "HistGradientBoostingRegressor": "sklearn.ensemble",
    "LabelBinarizer": "sklearn.preprocessing",
    "Lasso": "sklearn.linear_model",
    "LinearSVC": "sklearn.svm",
    "LogisticRegression": "sklearn.linear_model",
    "MLPClassifier": "sklearn.neural_network",
    "MLPRegressor": "sklearn.neural_network",
    "PLSRegression": "sklearn.cross_decomposition",
    "Pipeline": "sklearn.pipeline",
    "StandardScaler": "sklearn.preprocessing",
    "HalfSquaredError": "sklearn._loss",
    "TreePredictor": f"{_TREES}.predictor",
    "_BinMapper": f"{_TREES}.binning",
}
"""Classes of scikit-learn that a file may name, and where they are."""
_BUILT = {"HalfSquaredError"}
"""Classes without a state of their own, which are made anew."""
_TRAINING_ONLY = {"_feature_subsample_rng", "_optimizer", "_random_state"}
"""Attributes of scikit-learn's estimators that only ``fit`` uses."""


def write_payload(directory: Path, payload: Mapping[str, Any]) -> None:
    """Write a tree of plain values, arrays, tables and estimators to two files.

    Raises
    ------
    TypeError
        A value that cannot be written; the message says where in the tree it is.
    """
    writer = _Writer()
    tree = writer.encode(dict(payload), "")
    parts = {str(k): np.concatenate(part) for k, part in enumerate(writer.parts.values())}
    content = {"scikit-learn": version("scikit-learn"), "tree": tree}
    (directory / STRUCTURE).write_text(json.dumps(content, allow_nan=False, separators=(",", ":")), encoding="utf-8")
    np.savez_compressed(directory / ARRAYS, allow_pickle=False, **parts)  # type: ignore[arg-type]


def read_payload(directory: Path) -> dict[str, Any]:
    """What :func:`write_payload` wrote.

    Raises
    ------
    ValueError
        Damaged files, or files that name a class that is not on the list.
    """
    try:
        content = read_json(directory / STRUCTURE, "the structure of a model")
        check_file(directory / ARRAYS)
        _check_unpacked(directory / ARRAYS)
        with (directory / ARRAYS).open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            parts = [file[str(k)] for k in range(len(file.files))]
        reader = _Reader(parts)
        payload, written = reader.decode(content["tree"]), str(content["scikit-learn"])
    except Exception as error:
        msg = f"{directory} is damaged ({type(error).__name__}: {error}); copy it again or save the model again."
        raise ValueError(msg) from error
    installed = version("scikit-learn")
    if reader.uses_sklearn and written.split(".")[:2] != installed.split(".")[:2]:
        logger.warning(
            "%s holds estimators of scikit-learn %s, and %s is installed: they may predict otherwise, or not at all.",
            directory, written, installed,
        )  # fmt: skip
    return payload


def _check_unpacked(path: Path) -> None:
    """Raise where arrays claim more bytes than their part of the archive holds, or all of them far more than the file has."""
    with zipfile.ZipFile(path) as archive:
        total = 0
        for item in archive.infolist():
            with archive.open(item) as handle:
                version = np.lib.format.read_magic(handle)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read_header[version](handle)
                claimed = math.prod(shape) * dtype.itemsize
                if claimed != item.file_size - handle.tell():
                    msg = f"{item.filename} claims {claimed} bytes, and its part of the archive holds {item.file_size}"
                    raise ValueError(msg)
            total += claimed
    allowed = _UNPACKED + _RATIO * path.stat().st_size
    if total > allowed:
        msg = f"{path.name} unpacks to {total} bytes, more than the {allowed} that a file of its size may"
        raise ValueError(msg)


class _Writer:
    """From objects to a tree; arrays of one type are put behind one another."""

    def __init__(self) -> None:
        self.parts: dict[np.dtype[Any], list[NDArray[Any]]] = {}
        self.size: dict[np.dtype[Any], int] = {}

    def encode(self, value: Any, where: str) -> Any:
        if isinstance(value, np.generic):
            return self._array(np.asarray(value), where) | {"type": "scalar"}
        if value is None or isinstance(value, bool | str | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"type": "float", "value": str(value)}
        if isinstance(value, list):
            return self._each(value, where)
        if isinstance(value, tuple):
            return {"type": "tuple", "values": self._each(value, where)}
        if isinstance(value, set | frozenset):
            return {"type": "set", "values": self._each(sorted(value, key=repr), where)}
        if isinstance(value, Mapping):
            values = [self.encode(v, f"{where}[{k!r}]") for k, v in value.items()]
            return {"type": "dict", "keys": self._each(value.keys(), where), "values": values}
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if isinstance(value, pd.RangeIndex):
            bounds = {"start": value.start, "stop": value.stop, "step": value.step}
            return {"type": "range", **bounds, "name": self.encode(value.name, where)}
        if isinstance(value, pd.Index) and not isinstance(value, pd.MultiIndex):
            return {"type": "index", "values": self._column(value, where), "name": self.encode(value.name, where)}
        if isinstance(value, pd.Series):
            index = self.encode(value.index, f"{where}.index")
            name = self.encode(value.name, where)
            return {"type": "series", "values": self._column(value, where), "index": index, "name": name}
        if isinstance(value, pd.DataFrame):
            columns = [self._column(value.iloc[:, j], f"{where}[{c!r}]") for j, c in enumerate(value.columns)]
            names = {"columns": self.encode(value.columns, where), "index": self.encode(value.index, where)}
            return {"type": "frame", "values": columns, **names}
        return self._object(value, where)

    def _each(self, values: Any, where: str) -> list[Any]:
        return [self.encode(v, f"{where}[{i}]") for i, v in enumerate(values)]

    def _array(self, value: NDArray[Any], where: str) -> dict[str, Any]:
        if value.dtype == object:
            return {"type": "objects", "shape": list(value.shape), "values": self._each(value.ravel(), where)}
        if value.dtype.hasobject:
            msg = f"{where or 'The model'} is an array of Python objects ({value.dtype}), which cannot be saved."
            raise TypeError(msg)
        # the layout in memory decides how products are summed, and so the last bits of a prediction
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        at = self.size.get(value.dtype, 0)
        self.parts.setdefault(value.dtype, []).append(value.ravel(order=order))  # type: ignore[arg-type]
        self.size[value.dtype] = at + value.size
        part = list(self.parts).index(value.dtype)
        return {"type": "array", "part": part, "at": at, "shape": list(value.shape), "order": order}

    def _column(self, values: pd.Series | pd.Index, where: str) -> dict[str, Any]:
        dtype = values.dtype
        if isinstance(dtype, pd.CategoricalDtype):
            codes = values.cat.codes if isinstance(values, pd.Series) else values.codes  # type: ignore[attr-defined]
            return {
                "type": "categorical",
                "codes": self.encode(np.asarray(codes), where),
                "categories": self.encode(dtype.categories, where),
                "ordered": bool(dtype.ordered),
            }
        if isinstance(dtype, np.dtype):
            return self._array(values.to_numpy(), where)
        items = [None if v is pd.NA else v for v in values.astype(object)]
        return {"type": "extension", "dtype": str(dtype), "values": self._each(items, where)}

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        kind = type(value)
        name = f"{kind.__module__}:{kind.__qualname__}"
        if kind.__name__ in _SKLEARN:
            name = f"sklearn:{kind.__name__}"
        try:
            known = _class(name) is kind
        except ValueError:
            known = False
        if not known or not hasattr(value, "__dict__"):
            msg = f"{where or 'The model'} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved as plain data."
            raise TypeError(msg)
        if kind.__name__ in _BUILT:
            return {"type": "object", "class": name, "values": {}}
        dropped = _TRAINING_ONLY if name.startswith("sklearn:") else ()
        values = {k: self.encode(v, f"{where}.{k}") for k, v in vars(value).items() if k not in dropped}
        return {"type": "object", "class": name, "values": values}


class _Reader:
    """From a tree to objects."""

    def __init__(self, parts: list[NDArray[Any]]) -> None:
        self.parts = parts
        self.left = [len(part) for part in parts]
        self.uses_sklearn = False

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(v) for v in node]
        if not isinstance(node, dict):
            return node
        kind = node["type"]
        if kind == "array":
            return self._array(node)
        if kind == "scalar":
            return self._array(node)[()]
        if kind == "objects":
            out = np.empty(len(node["values"]), dtype=object)
            out[:] = self.decode(node["values"])
            return out.reshape(node["shape"])
        if kind == "float":
            return float(node["value"])
        if kind in ("tuple", "set"):
            return {"tuple": tuple, "set": set}[kind](self.decode(node["values"]))
        if kind == "dict":
            return dict(zip(self.decode(node["keys"]), self.decode(node["values"]), strict=True))
        if kind == "object":
            return self._object(node)
        return self._pandas(kind, node)

    def _array(self, node: dict[str, Any]) -> NDArray[Any]:
        part, at, shape = self.parts[node["part"]], node["at"], tuple(node["shape"])
        size = math.prod(shape)
        if min(at, node["part"], *shape, 0) < 0 or at + size > len(part):
            msg = f"an array reaches beyond its {len(part)} numbers"
            raise ValueError(msg)
        # a tree that takes the same numbers again and again would grow without bound
        self.left[node["part"]] -= size
        if self.left[node["part"]] < 0:
            msg = "arrays take the same numbers more than once"
            raise ValueError(msg)
        return part[at : at + size].reshape(shape, order=node["order"]).copy(order=node["order"])

    def _pandas(self, kind: str, node: dict[str, Any]) -> Any:
        if kind == "range":
            return pd.RangeIndex(node["start"], node["stop"], node["step"], name=self.decode(node["name"]))
        if kind == "categorical":
            categories = self.decode(node["categories"])
            return pd.Categorical.from_codes(self.decode(node["codes"]), categories, ordered=node["ordered"])
        if kind == "extension":
            return pd.array(self.decode(node["values"]), dtype=pd.api.types.pandas_dtype(node["dtype"]))
        if kind == "index":
            values = self.decode(node["values"])
            return pd.Index(values, dtype=values.dtype, name=self.decode(node["name"]))
        if kind == "series":
            values = self.decode(node["values"])
            return pd.Series(values, self.decode(node["index"]), values.dtype, self.decode(node["name"]))
        if kind == "frame":
            index, values = self.decode(node["index"]), self.decode(node["values"])
            frame = pd.DataFrame({j: pd.Series(v, index, v.dtype) for j, v in enumerate(values)}, index=index)
            return frame.set_axis(self.decode(node["columns"]), axis=1)
        msg = f"{kind!r} is no kind of value"
        raise ValueError(msg)

    def _object(self, node: dict[str, Any]) -> Any:
        kind = _class(node["class"])
        self.uses_sklearn |= node["class"].startswith("sklearn:")
        if kind.__name__ in _BUILT:
            return kind()
        values = {k: self.decode(v) for k, v in node["values"].items()}
        if is_dataclass(kind):
            # a field that is newer than the file has its default
            for field in fields(kind):
                if field.name not in values and field.default is not MISSING:
                    values[field.name] = field.default
                elif field.name not in values and field.default_factory is not MISSING:
                    values[field.name] = field.default_factory()
        out = object.__new__(kind)
        out.__dict__.update(values)
        if kind.__name__ == "HistGradientBoostingRegressor":
            _check_trees(out)
        return out


def _class(name: str) -> type[Any]:
    """A class by the name it has in a file."""
    module, _, qualname = name.partition(":")
    if module == "sklearn" and qualname in _SKLEARN:
        return getattr(import_module(_SKLEARN[qualname]), qualname)
    found = getattr(import_module(module), qualname, None) if module.startswith(_OWN) else None
    # a module also holds what it imports
    if not isinstance(found, type) or found.__module__ != module:
        msg = f"{name!r} is no class that a saved model may hold"
        raise ValueError(msg)
    return found


def _check_trees(model: Any) -> None:
    """Refuse trees that lead outside of themselves: scikit-learn walks them without looking."""
    for tree in (t for trees in model._predictors for t in trees):
        nodes = tree.nodes
        row = np.arange(len(nodes))
        inner = nodes["is_leaf"] == 0
        ahead = [(nodes[side] > row) & (nodes[side] < len(nodes)) for side in ("left", "right")]
        inside = ahead[0] & ahead[1] & (nodes["feature_idx"] >= 0) & (nodes["feature_idx"] < model.n_features_in_)
        if len(nodes) == 0 or not (inside | ~inner).all() or (nodes["is_categorical"] != 0).any():
            msg = "a tree leads outside of itself"
            raise ValueError(msg)

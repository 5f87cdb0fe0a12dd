"""Files for R, as docs/user_guide/reading_in_r.md writes them: only encodings that the readers of R know."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import stmsi

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "reading_in_r.md"
# What anndataR 1.0 reads of a file (its function read_h5ad_element), with the versions of the encodings that it accepts.
KNOWN = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "csc_matrix": "0.1.0",
    "csr_matrix": "0.1.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "nullable-boolean": "0.1.0",
    "nullable-integer": "0.1.0",
    "numeric-scalar": "0.2.0",
    "rec-array": "0.2.0",
    "string": "0.2.0",
    "string-array": "0.2.0",
}


def unknown(path: Path) -> dict[str, tuple[str, str]]:
    """Elements of a file whose encoding R does not read."""
    found = {}

    def look(name: str, element: h5py.Group | h5py.Dataset) -> None:
        encoding = element.attrs.get("encoding-type")
        if encoding is not None and KNOWN.get(encoding) != element.attrs["encoding-version"]:
            found[name] = (encoding, element.attrs["encoding-version"])

    with h5py.File(path) as file:
        look("/", file)
        file.visititems(look)
    return found


@pytest.fixture(scope="module")
def written(_mapped, tmp_path_factory):
    """`predicted.h5ad` as the page writes it, and the section that it is of."""
    if not PAGE.is_file():
        pytest.skip("the documentation is not part of the source distribution")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    path = tmp_path_factory.mktemp("r")
    mapped = deepcopy(_mapped)
    st = mapped.tables["st"]
    stmsi.model.HurdleLinear.setup_anndata(st, presence_key=None)
    model = stmsi.model.HurdleLinear(st)
    model.train()
    model.save(path / "lipids")
    code = code.replace('"lipids"', repr(str(path / "lipids"))).replace('"predicted.h5ad"', repr(str(path / "p.h5ad")))
    exec(compile(code, PAGE.name, "exec"), {"sdata": mapped})
    return path / "p.h5ad", mapped.tables["st"]


def test_every_element_has_an_encoding_that_r_reads(written):
    assert unknown(written[0]) == {}


def test_strings_of_the_new_stack_need_the_setting(written, tmp_path):
    """Without the setting, anndata 0.13 with pandas 3 writes an encoding that R does not know: the page is right to set it."""
    table = ad.read_h5ad(written[0])
    table.write_h5ad(tmp_path / "default.h5ad")
    encodings = {encoding for encoding, _ in unknown(tmp_path / "default.h5ad").values()}
    new = getattr(ad.settings, "allow_write_nullable_strings", False) is None and int(pd.__version__.split(".")[0]) > 2
    assert encodings == ({"nullable-string-array"} if new else set())


def test_names_shapes_and_types_agree(written):
    path, st = written
    with h5py.File(path) as file:
        shape = st.obsm["msi_pred"].shape
        for key in ["X", "layers/presence", "layers/lower", "layers/upper"]:
            assert file[key].shape == shape
            assert file[key].dtype == np.float32
            assert np.isfinite(file[key][:]).all()
        spatial = file["obsm/spatial"]
        assert spatial.shape == (st.n_obs, 2)
        assert spatial.dtype.kind == "f"
        for group, names in {"obs": st.obs_names, "var": st.obsm["msi_pred"].columns}.items():
            index = file[group][file[group].attrs["_index"]]
            assert index.ndim == 1
            assert list(index.asstr()) == list(names)
            for column in file[group].attrs["column-order"]:
                element = file[group][column]
                length = element["codes"] if isinstance(element, h5py.Group) else element
                assert len(length) == len(names)
        assert "msi_pred_ood" in file["obs"]
        assert {"mz", "held_out_pearson"} <= set(file["var"])
    np.testing.assert_array_equal(ad.read_h5ad(path).X, st.obsm["msi_pred"].to_numpy())

"""After a new alignment, normalisation or annotation, what was made from the old one is marked and used with a warning."""

import numpy as np
import pytest
from spatialdata.transformations import get_transformation

import stmsi

SHIFT = np.array([[1, 0, 300.0], [0, 1, 0], [0, 0, 1]])


def _matrix(sdata, name):
    return get_transformation(sdata.shapes[f"{name}_pixels"], to_coordinate_system=name).to_affine_matrix(
        ("x", "y"), ("x", "y")
    )


def test_a_new_alignment(mapped, caplog):
    st = mapped.tables["st"]
    same = {name: _matrix(mapped, name) for name in ("P1S1", "P2S1")}
    stmsi.pp.align(mapped, transformation=same)
    assert "stale" not in st.uns["msi"], "the same place is no news"
    stmsi.pp.align(mapped, transformation={"P2S1": SHIFT @ same["P2S1"]})
    assert "mapped with the earlier alignment of 'P2S1'" in caplog.text
    assert "stmsi.pp.map_to_spots again" in caplog.text
    assert st.uns["msi"]["stale"] == {"alignment": "P2S1"}
    stmsi.pp.align(mapped, sample="P1S1", model="thin_plate")
    assert st.uns["msi"]["stale"] == {"alignment": "P2S1, P1S1"}
    for use in (
        lambda: stmsi.tl.predict_metabolites(mapped, "ridge"),
        lambda: stmsi.tl.evaluate(mapped),
        lambda: stmsi.pp.call_presence(mapped),
        lambda: stmsi.tl.cross_validate(mapped, {"mean": "mean"}),
    ):
        caplog.clear()
        use()
        assert "obsm['msi'] is from before a new alignment of P2S1, P1S1" in caplog.text
    caplog.clear()
    stmsi.pp.map_to_spots(mapped)
    stmsi.pp.call_presence(mapped)
    assert "from before" not in caplog.text
    assert "stale" not in st.uns["msi"]


@pytest.mark.parametrize("layer", [None, "raw"])
def test_a_new_normalisation(mapped, layer):
    stmsi.pp.map_to_spots(mapped, layer=layer)
    stmsi.pp.normalize_msi(mapped)
    st = mapped.tables["st"]
    assert "stale" not in st.uns["msi"], "the same normalisation again"
    stmsi.pp.normalize_msi(mapped, method="rms")
    assert st.uns["msi"].get("stale", {}) == ({"normalisation": "P1S1, P2S1, P3S1"} if layer is None else {})
    out = stmsi.pp.normalize_msi(mapped, method="median", copy=True)
    assert "stale" in out.tables["st"].uns["msi"] or layer == "raw"


def test_a_new_annotation(mapped, through_zarr):
    mapped.tables["msi"].var["mz"] = [100.0 + i for i in range(mapped.tables["msi"].n_vars)]
    stmsi.pp.annotate_mz(mapped, polarity="positive", ppm=5e4)
    assert mapped.tables["st"].uns["msi"]["stale"] == {"annotation": "P1S1, P2S1, P3S1"}
    assert through_zarr(mapped).tables["st"].uns["msi"]["stale"] == {"annotation": "P1S1, P2S1, P3S1"}


def test_what_was_not_mapped_is_not_marked(toy, caplog):
    stmsi.pp.align(toy)
    stmsi.pp.normalize_msi(toy)
    stmsi.pp.align(toy, transformation={"P1S1": SHIFT @ _matrix(toy, "P1S1")})
    assert "earlier" not in caplog.text
    st = toy.tables["st"]
    st.obsm["msi"] = np.ones((st.n_obs, 2))
    st.uns["msi"] = {"params": {"method": "given"}}
    stmsi.pp.align(toy)
    assert "earlier" not in caplog.text, "it comes from no pixels of these"

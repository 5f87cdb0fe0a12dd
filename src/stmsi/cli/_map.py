"""``stmsi map``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stmsi.cli._app import Json, command, one_of, say, step
from stmsi.cli._files import check_output, read_data, write_data
from stmsi.cli._next_step import new_path, say_next

if TYPE_CHECKING:
    from anndata import AnnData

_NORMALIZE = "none, or a method of stmsi.pp.normalize_msi; data that are normalised already stay as they are."
_TARGET = "What normalised pixels are scaled to; default: their median. Name one where sections are mapped one by one."
_NO_CHANGE: Final = "none"
_METHODS: Final = ("tic", "rms", "median")
_PREVALENCE = "Leave out ions in fewer than this share of the pixels; 0: keep all."
_COVERAGE = "Share of its area from which a spot counts as covered by MSI."


def map_(
    *,
    data: Annotated[Path, typer.Argument(help="Output of `stmsi align` (.zarr).")],
    out: Annotated[Path, typer.Option(help="Where to write the same, with metabolites on the spots (.zarr).")],
    normalize: Annotated[str, one_of(_NORMALIZE, *_METHODS, _NO_CHANGE)] = "tic",
    target: Annotated[float | None, typer.Option(help=_TARGET)] = None,
    min_prevalence: Annotated[float, typer.Option(help=_PREVALENCE)] = 0.01,
    min_coverage: Annotated[float, typer.Option(help=_COVERAGE)] = 0.5,
    replicates: Annotated[bool, typer.Option("--replicates", help="Keep what a noise ceiling needs.")] = False,
    as_json: Json = False,
) -> None:
    """Normalise MSI, map its pixels to the spots, call presence and connect neighbouring spots."""
    with command("map", as_json=as_json) as result:
        result |= map_file(
            data, out=out, normalize=normalize, target=target, min_prevalence=min_prevalence, min_coverage=min_coverage,
            replicates=replicates,
        )  # fmt: skip
        for row in result["sections"]:
            say(f"{row['sample']}: {row['covered']} of {row['spots']} spots covered by MSI")
        say(f"Mapped {result['metabolites']} metabolites -> {out}")
        say_next("train", out, "--out", new_path(out, "model"))


def levels_of(msi: AnnData) -> dict[str, float]:
    """Median over pixels of what each method of normalisation divides by; nothing where that was done already."""
    import numpy as np

    from stmsi._core.spectra.pixel_statistics import pixel_factors
    from stmsi._data.keys import Key
    from stmsi.pp._msi_table import total_ion_current

    if Key.uns.NORMALIZE in msi.uns:
        return {}
    found = {method: pixel_factors(msi.X, method) for method in _METHODS}
    if Key.obs.TIC in msi.obs:
        found["tic"] = total_ion_current(msi, Key.obs.TIC)
    return {method: float(np.median(level[level > 0])) for method, level in found.items() if (level > 0).any()}


def map_file(
    data: Path,
    *,
    out: Path,
    normalize: str = "tic",
    target: float | None = None,
    min_prevalence: float = 0.01,
    min_coverage: float = 0.5,
    replicates: bool = False,
) -> dict[str, Any]:
    """Map the sections of a store and write them; the options are those of the command. Returns what it says as JSON."""
    import stmsi
    from stmsi._data.checks import require_spatialdata
    from stmsi._data.keys import Key
    from stmsi._data.tables import get_table, sample_names

    check_output(out, data)
    with step(f"Reading {data}"):
        content = read_data(data)
    require_spatialdata(content)
    msi = get_table(content, Key.table.MSI)
    if normalize != _NO_CHANGE and Key.uns.NORMALIZE not in msi.uns:
        with step(f"Normalising ({normalize})"):
            whole = Key.obs.TIC if normalize == "tic" and Key.obs.TIC in msi.obs else None
            stmsi.pp.normalize_msi(content, method=normalize, target=target, tic_key=whole)  # type: ignore[arg-type]
    if min_prevalence > 0:
        with step("Leaving out rare ions"):
            stmsi.pp.filter_metabolites(content, min_prevalence=min_prevalence)
    with step("Mapping pixels to spots"):
        stmsi.pp.map_to_spots(content, min_coverage=min_coverage, replicates=replicates)  # type: ignore[arg-type]
        stmsi.pp.call_presence(content)
        stmsi.pp.spatial_graph(content)
    st = content.tables[Key.table.ST]  # type: ignore[union-attr]
    covered = st.obsm[Key.obsm.MSI].notna().any(axis=1).to_numpy()
    result: dict[str, Any] = {"out": str(out), "spots": st.n_obs, "metabolites": st.obsm[Key.obsm.MSI].shape[1]}
    result["sections"] = [
        {
            "sample": s,
            "spots": int((st.obs[Key.obs.SAMPLE] == s).sum()),
            "covered": int(covered[st.obs[Key.obs.SAMPLE] == s].sum()),
        }
        for s in sample_names(content, Key.table.ST)
    ]
    with step(f"Writing {out}"):
        write_data(content, out)
    return result

"""``stmsi map``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stmsi.cli._app import Json, command, say, step
from stmsi.cli._files import check_output, read_data, write_data
from stmsi.cli._next_step import new_path, say_next

_NORMALIZE = "none, or a method of stmsi.pp.normalize_msi; data that are normalised already stay as they are."
_NO_CHANGE = "none"
_PREVALENCE = "Leave out ions in fewer than this share of the pixels; 0: keep all."
_COVERAGE = "Share of its area from which a spot counts as covered by MSI."


def map_(
    *,
    data: Annotated[Path, typer.Argument(help="Output of `stmsi align` (.zarr).")],
    out: Annotated[Path, typer.Option(help="Where to write the same, with metabolites on the spots (.zarr).")],
    normalize: Annotated[str, typer.Option(help=_NORMALIZE)] = "tic",
    min_prevalence: Annotated[float, typer.Option(help=_PREVALENCE)] = 0.01,
    min_coverage: Annotated[float, typer.Option(help=_COVERAGE)] = 0.5,
    replicates: Annotated[bool, typer.Option("--replicates", help="Keep what a noise ceiling needs.")] = False,
    as_json: Json = False,
) -> None:
    """Normalise MSI, map its pixels to the spots, call presence and connect neighbouring spots."""
    with command("map", as_json=as_json) as result:
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
                stmsi.pp.normalize_msi(content, method=normalize, tic_key=whole)  # type: ignore[arg-type]
        if min_prevalence > 0:
            with step("Leaving out rare ions"):
                stmsi.pp.filter_metabolites(content, min_prevalence=min_prevalence)
        with step("Mapping pixels to spots"):
            stmsi.pp.map_to_spots(content, min_coverage=min_coverage, replicates=replicates)  # type: ignore[arg-type]
            stmsi.pp.call_presence(content)
            stmsi.pp.spatial_graph(content)
        st = content.tables[Key.table.ST]  # type: ignore[union-attr]
        covered = st.obsm[Key.obsm.MSI].notna().any(axis=1).to_numpy()
        result |= {"out": str(out), "spots": st.n_obs, "metabolites": st.obsm[Key.obsm.MSI].shape[1]}
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
        for row in result["sections"]:
            say(f"{row['sample']}: {row['covered']} of {row['spots']} spots covered by MSI")
        say(f"Mapped {result['metabolites']} metabolites -> {out}")
        say_next("train", out, "--out", new_path(out, "model"))

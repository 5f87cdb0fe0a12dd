"""A configuration to begin with, and the simulated files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spatialdata import SpatialData

EXAMPLE = """\
# A cohort: stmsi cohort cohort.yaml
# Paths are relative to this file. It runs as it is, on simulated sections; change it for your own.

out: cohort                     # folder for all that is written; a second run goes on where the first one stopped
simulate: cohort_data           # writes simulated files there first; remove this line with files of your own

sections:                       # or the name of a table: sections.csv with the columns name, st, msi, landmarks, patient
  P1S1:
    st: cohort_data/P1S1.h5ad   # Space Ranger folder (outs), AnnData (.h5ad) or SpatialData (.zarr)
    msi: cohort_data/P1S1.imzML # imzML, table or store; a section without msi: is predicted only
    landmarks: cohort_data/P1S1_landmarks.csv   # without: outlines, genes and ions decide
    patient: P1                 # for all sections or for none; scores are of patients that were held out
  P2S1:
    st: cohort_data/P2S1.h5ad
    msi: cohort_data/P2S1.imzML
    landmarks: cohort_data/P2S1_landmarks.csv
    patient: P2
    align: {model: affine}      # combine: and align: of one section stand before those of all
  P3S1:
    st: cohort_data/P3S1.h5ad
    msi: cohort_data/P3S1.imzML
    landmarks: cohort_data/P3S1_landmarks.csv
    patient: P3

combine:                        # as the options of stmsi combine --help
  mz: cohort_data/ions.csv      # one list of ions for all sections

align:                          # stmsi align --help
  model: similarity

map:                            # stmsi map --help
  normalize: tic
  min_coverage: 0.5

train:                          # stmsi train --help
  model: ridge                  # auto is more accurate and slower

validate:
  models: [mean]                # beside the model above: a baseline that knows no gene
  folds: 10                     # patients share folds where there are more

predict:                        # stmsi predict --help
  coverage: 0.9

report:
  figures: true
"""
_IONS = "ions.csv"


def simulate_files(folder: Path) -> None:
    """Write the files that the example names: three simulated sections, whole or not at all."""
    import stmsi
    from stmsi._data.unfinished import take_place, unfinished

    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as scratch:
        new = scratch / folder.name
        new.mkdir()
        write_files(stmsi.datasets.toy(), new)
        take_place(new, folder, scratch)


def write_files(sdata: SpatialData, folder: Path) -> None:
    """Write simulated sections as they come from instruments: counts as h5ad, imzML, landmarks and a list of ions."""
    import anndata as ad
    import pandas as pd

    import stmsi
    from stmsi._data.keys import Key
    from stmsi._data.tables import sample_names

    st, msi = sdata.tables[Key.table.ST], sdata.tables[Key.table.MSI]
    for name in sample_names(sdata):
        own = st[(st.obs[Key.obs.SAMPLE] == name).to_numpy()]
        bare = ad.AnnData(own.X, own.obs[[]], own.var[[]], obsm={Key.obsm.SPATIAL: own.obsm[Key.obsm.SPATIAL]})
        bare.write_h5ad(folder / f"{name}.h5ad")
        stmsi.io.write_imzml(sdata, folder / f"{name}.imzML", table_key=Key.table.MSI, sample=name)
        sides = [
            sdata.points[Key.landmarks(name, side)].compute()[["x", "y"]].add_suffix(f"_{side}")
            for side in ("msi", "st")
        ]
        pd.concat(sides, axis=1).to_csv(folder / f"{name}_landmarks.csv", index=False)
    msi.var[[Key.var.MZ, Key.var.NAME]].to_csv(folder / _IONS, index=False)

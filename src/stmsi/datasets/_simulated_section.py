"""One simulated section: its hidden fields, and what the two instruments see of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.spatial.simulated_tissue import Deformation, negative_binomial, tissue_mask, visium_positions
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, VISIUM_SPOT_DIAMETER, msi_section, st_section
from stmsi.datasets._simulated_biology import N_DOMAINS, N_PROGRAMMES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.spatial.simulated_tissue import LatentRaster
    from stmsi.datasets._simulated_biology import Biology

_LANDMARK_ERROR = 10.0
_DIFFUSION = 100.0
_BACKGROUND, _BACKGROUND_NOISE = 20.0, 0.05
"""Background of a spectrum in units of the summed ions, and its log spread."""


class Seen(NamedTuple):
    """The pixels that the mass spectrometer measured."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    at: NDArray[np.float64]  # centres in the ST frame
    log_intensity: NDArray[np.float64]  # pixels x metabolites, noisy


@dataclass
class Section:
    """The hidden fields of a section, on its raster."""

    name: str
    patient: str
    raster: LatentRaster
    biology: Biology
    tissue: NDArray[np.bool_]
    domains: NDArray[np.float64]  # domains x rows x cols
    activity: NDArray[np.float64]  # programmes x rows x cols
    own: NDArray[np.float64]  # variation of each enzyme gene x rows x cols
    enzyme_genes: NDArray[np.int64]
    drive: NDArray[np.float64]  # metabolites x rows x cols
    matrix: NDArray[np.float64]  # MSI -> ST
    batch_scale: float
    deform: Deformation | None  # in the ST frame, after the matrix

    @classmethod
    def draw(
        cls, name: str, patient: str, raster: LatentRaster, biology: Biology, shift: NDArray[np.float64], *,
        mirrored: bool, deformation: float, rng: np.random.Generator,
    ) -> Section:  # fmt: skip
        """A piece of tissue; `shift` (domains x programmes) is that of its patient."""
        tissue = tissue_mask(raster, rng, share=0.68)
        blend = np.exp(3.0 * raster.smooth_field(250, rng, N_DOMAINS))
        domains = blend / blend.sum(axis=0)
        direction = rng.uniform(0, 2 * np.pi, N_PROGRAMMES)
        x, y = (raster.positions() / raster.width - 0.5).T
        gradient = 0.8 * (np.cos(direction)[:, None] * x + np.sin(direction)[:, None] * y).reshape(-1, *raster.shape)
        activity = np.tensordot((biology.profile + shift).T, domains, axes=1) + gradient
        activity += 0.5 * raster.smooth_field(120, rng, N_PROGRAMMES)
        enzyme_genes = np.unique(np.concatenate(biology.enzymes))
        own = 0.35 * raster.smooth_field(120, rng, len(enzyme_genes))
        position = {g: i for i, g in enumerate(enzyme_genes)}

        def expression(gene: int) -> NDArray[np.float64]:
            k = biology.programme[gene]
            return biology.loading[gene, k] * activity[k] + own[position[gene]]

        drive = raster.smooth_field(150, rng, len(biology.var))  # kept by those that no gene knows of
        for m in np.flatnonzero(biology.var["predictable"]).tolist():
            field = biology.drive_of(m, [expression(g) for g in biology.enzymes[m]])
            drive[m] = raster.diffuse(field, _DIFFUSION, tissue) if biology.var["diffused"].iloc[m] else field
        angle = rng.uniform(-np.pi, np.pi)
        matrix = np.eye(3)
        matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        if mirrored:
            matrix[:2, 0] *= -1
        scale = float(np.exp(rng.normal(0, 0.4)))
        deform = Deformation.draw(raster, tissue, deformation, rng) if deformation else None
        return cls(
            name, patient, raster, biology, tissue, domains, activity, own, enzyme_genes, drive, matrix, scale, deform
        )

    def on_tissue(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which places, in micrometres of the ST frame, lie on the tissue."""
        return self.raster.at(self.tissue[None].astype(float), xy)[:, 0] > 0.5

    def measure(self, pixel_size: float, noise: float, coverage: float, rng: np.random.Generator) -> Seen:
        """Lay the MSI raster over the tissue and measure; sets the shift of the matrix."""
        inside = self.raster.positions()[self.tissue.ravel()]
        in_msi = inside @ np.linalg.inv(self.matrix[:2, :2]).T
        corner = in_msi.min(axis=0) - rng.uniform(0.2, 1.0, 2) * pixel_size
        self.matrix[:2, 2] = self.matrix[:2, :2] @ corner
        n_col, n_row = np.ceil((in_msi.max(axis=0) - corner) / pixel_size).astype(int)
        row, col = (v.ravel() for v in np.indices((n_row, n_col)))
        at = apply_affine(self.matrix, np.column_stack([col + 0.5, row + 0.5]) * pixel_size)
        if self.deform is not None:
            at = self.deform(at)
        on_tissue = self.on_tissue(at)
        # the instrument stopped early: the last rows are missing
        keep = on_tissue & (row <= (np.quantile(row[on_tissue], coverage) if coverage < 1 else n_row))
        log = self.biology.log_intensity(self.raster.at(self.drive, at[keep]))
        return Seen(row[keep], col[keep], at[keep], log + noise * rng.standard_normal(log.shape))

    def spots(
        self, log_lod: NDArray[np.float64], dispersion: float, library_size: float, rng: np.random.Generator
    ) -> SpatialData:
        """Counts of the Visium spots on the tissue, with the truth of the metabolites there."""
        biology, raster = self.biology, self.raster
        xy, array = visium_positions(raster.width, raster.height, VISIUM_PITCH)
        on_tissue = self.on_tissue(xy)
        xy, array = xy[on_tissue], array[on_tissue]
        own = rng.normal(0, 0.2, (len(xy), len(biology.base)))
        own[:, self.enzyme_genes] = raster.at(self.own, xy)
        log_rate = biology.base + raster.at(self.activity, xy) @ biology.loading.T + own
        library = library_size * np.exp(rng.normal(0, 0.35, len(xy)))
        counts = negative_binomial(log_rate, library, dispersion, rng)
        obs = pd.DataFrame(
            {
                Key.obs.PATIENT: pd.Categorical([self.patient] * len(xy)),
                "array_row": array[:, 0],
                "array_col": array[:, 1],
                "domain": pd.Categorical([f"domain{d + 1}" for d in raster.at(self.domains, xy).argmax(axis=1)]),
            },
            index=pd.Index([f"{self.name}_{r}x{c}" for r, c in array]),
        )
        gene_ids = [f"ENSG{90_000_000_000 + i}" for i in range(len(biology.base))]
        var = pd.DataFrame({Key.var.GENE_IDS: gene_ids}, index=biology.gene_names)
        adata = AnnData(sp.csr_matrix(counts), obs=obs, var=var)
        log_truth = biology.log_intensity(raster.at(self.drive, xy))
        ids = pd.Index(safe_ids(biology.var.index))
        for key, truth in (
            (Key.obsm.TRUTH_INTENSITY, np.exp(log_truth)),
            (Key.obsm.TRUTH_PRESENCE, log_truth > log_lod),
        ):
            adata.obsm[key] = pd.DataFrame(truth.astype(np.float32), obs.index, ids)
        return st_section(adata, xy, sample=self.name, spot_diameter=VISIUM_SPOT_DIAMETER)

    def pixels(
        self, seen: Seen, log_lod: NDArray[np.float64], pixel_size: float, rng: np.random.Generator
    ) -> SpatialData:
        """Intensities of the pixels, 0 below the detection limits, on the scale of the section."""
        intensity = np.where(seen.log_intensity > log_lod, np.exp(seen.log_intensity) * self.batch_scale, 0)
        n, summed = len(intensity), intensity.sum(axis=1)
        # most of a spectrum is matrix and chemical background, which no ion of the table holds
        background = _BACKGROUND * summed.mean() * np.exp(_BACKGROUND_NOISE * rng.standard_normal(n))
        obs = pd.DataFrame({Key.obs.PATIENT: pd.Categorical([self.patient] * n), Key.obs.TIC: background + summed})
        return msi_section(
            intensity, self.biology.var.assign(lod=np.exp(log_lod)), seen.row, seen.col, sample=self.name,
            pixel_size=pixel_size, obs=obs, attrs={"simulated": True},
        )  # fmt: skip

    def add_landmarks(self, sdata: SpatialData, n: int, rng: np.random.Generator) -> None:
        """Points that a person clicked in both modalities, spread over the section."""
        from spatialdata.models import PointsModel
        from spatialdata.transformations import Identity

        inside = before = self.raster.positions()[self.tissue.ravel()]
        if self.deform is not None:
            # places on the slide whose deformed place is on tissue
            before = self.raster.positions()
            moved = self.deform(before)
            kept = self.on_tissue(moved)
            before, inside = before[kept], moved[kept]
        # one point in each of n slices around the middle of the section
        angle = np.arctan2(*(inside - inside.mean(axis=0)).T[::-1])
        chosen = [rng.choice(part) for part in np.array_split(np.argsort(angle), n)]
        msi = apply_affine(np.asarray(np.linalg.inv(self.matrix), np.float64), before[chosen])
        for xy, modality, frame in (
            (inside[chosen], "st", Key.st_frame(self.name)),
            (msi, "msi", Key.msi_frame(self.name)),
        ):
            clicked = xy + rng.normal(0, _LANDMARK_ERROR, xy.shape)
            points = PointsModel.parse(clicked, transformations={frame: Identity()})
            sdata.points[Key.landmarks(self.name, modality)] = points

"""Paired ST and MSI sections with known truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.spatial.simulated_tissue import (
    Deformation,
    LatentRaster,
    negative_binomial,
    tissue_mask,
    visium_positions,
)
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, VISIUM_SPOT_DIAMETER, msi_section, st_section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_KINDS = ("linear", "saturating", "product", "unpredictable")
_SHARES = (0.4, 0.2, 0.2, 0.2)
_N_PROGRAMMES = 8
_N_DOMAINS = 4
_ENZYMES_PER_METABOLITE = 3
_LANDMARK_ERROR = 10.0
_DIFFUSION = 100.0
_BACKGROUND = 20.0
"""Background of a spectrum in units of the summed ions."""
_BACKGROUND_NOISE = 0.05


def simulate(
    *,
    n_patients: int = 2,
    sections_per_patient: int = 2,
    n_genes: int = 600,
    n_metabolites: int = 50,
    size: float = 2600.0,
    pixel_size: float = 50.0,
    noise: float = 0.3,
    dispersion: float = 0.2,
    library_size: float = 6000.0,
    coverage: float = 0.93,
    mirror: bool = True,
    deformation: float = 0.0,
    n_landmarks: int = 8,
    rng: int | np.random.Generator = 0,
) -> SpatialData:
    r"""Simulate paired, not yet aligned ST and MSI sections with known truth.

    **Tissue.** Each section is an irregular piece of tissue with four domains that blend into one another. Eight gene
    programmes have an activity :math:`a_k(x)` made of a profile of the domains (shared, with a shift for each patient),
    a gradient over the section and a Gaussian random field.

    **Genes.** :math:`\log \mu_j(x) = b_j + \sum_k L_{jk} a_k(x) + e_j(x)`, where a gene belongs to at most one
    programme and :math:`e_j` is its own variation (for enzymes a smooth field). Counts are negative binomial with mean
    :math:`\ell\,\mathrm{softmax}(\log \mu)` and a lognormal library size :math:`\ell`, on a Visium hexagon (55 um
    spots, 100 um pitch).

    **Metabolites.** The drive of a metabolite follows the true expression :math:`g_j = \log \mu_j - b_j` of its three
    enzymes: ``linear`` (weighted sum :math:`z`), ``saturating`` (:math:`\log \sigma(z)`), ``product`` of the
    activities of two programmes (:math:`\mathrm{softplus}(0.7 z_1)\,\mathrm{softplus}(0.7 z_2)`), or ``unpredictable`` (a
    random field of its own, which no gene knows of). Every second predictable one is diffused over its surroundings
    (Gaussian, 100 um). Standardised, the drive :math:`f` gives the noiseless intensity :math:`\exp(\mu_m + s_m f)`.

    **MSI.** Pixels lie on a raster of their own: rotated, shifted, every second section **mirrored**, part of the
    tissue not measured. A serial section is deformed besides (`deformation`): a thin-plate spline through nine random
    displacements, without its affine part. Pixel values have lognormal noise; values under the ion's detection limit are 0, with limits
    such that prevalence spans 5 to 100 %; every section is multiplied by a batch scale of its own. ``obs["tic"]`` is the
    total ion current of the whole spectrum, most of which is background that no ion of the table holds.

    Parameters
    ----------
    n_patients, sections_per_patient
        Sections are named ``P1S1``, ``P1S2``, ...
    n_genes
        At least 60.
    n_metabolites
        At least 5. Of them 40 % linear, 20 % each saturating, product, unpredictable.
    size
        Side of the square capture area in micrometres.
    pixel_size
        Side of an MSI pixel in micrometres.
    noise
        Standard deviation of the log intensity of a pixel.
    dispersion
        Over-dispersion of the counts: variance = mean + dispersion x mean squared.
    library_size
        Median number of counts of a spot.
    coverage
        Share of the tissue that MSI measured.
    mirror
        Whether every second section is mirrored.
    deformation
        Largest displacement, in micrometres, by which the tissue on the MSI slide is deformed against the ST section; 0:
        the two show the same slice.
    n_landmarks
        Pairs of landmarks in each section, at least 3.
    rng
        Seed or generator; the same seed gives the same bytes.

    Returns
    -------
    SpatialData in the data model, with ``<sample>_landmarks_st`` and ``<sample>_landmarks_msi`` (10 um click error).
    The truth:

    - ``st.obsm["truth_intensity"]``: noiseless intensity at the spot centres (no detection limit, no batch scale);
    - ``st.obsm["truth_presence"]``: whether it is above the detection limit;
    - ``st.obs["domain"]``: strongest domain;
    - ``st.uns["truth"]``: ``transformation`` (matrix MSI -> ST, per section), ``batch_scale``, ``drivers`` (table of
      metabolite, gene, weight) and ``params``;
    - ``msi.obsm["truth_spatial"]``: where each pixel's centre lies in the ST frame (um);
    - ``msi.var``: ``kind``, ``predictable``, ``diffused``, ``lod``.

    Raises
    ------
    ValueError
        Parameters out of range.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.simulate(sections_per_patient=1, size=1000, n_genes=100, n_metabolites=10)
    >>> list(sdata.tables["st"].obs["sample"].cat.categories)
    ['P1S1', 'P2S1']
    """
    from stmsi.pp import combine

    _check(
        n_patients, sections_per_patient, n_genes, n_metabolites, size, pixel_size, noise, dispersion, library_size, coverage,
        deformation, n_landmarks,
    )  # fmt: skip
    params = {
        "n_patients": n_patients, "sections_per_patient": sections_per_patient, "n_genes": n_genes,
        "n_metabolites": n_metabolites, "size": size, "pixel_size": pixel_size, "noise": noise,
        "dispersion": dispersion, "library_size": library_size, "coverage": coverage, "mirror": mirror,
        "deformation": deformation, "n_landmarks": n_landmarks,
    }  # fmt: skip
    random = np.random.default_rng(rng)
    biology = _Biology.draw(n_genes, n_metabolites, random)
    raster = LatentRaster(size, size)
    sections = []
    for patient in range(n_patients):
        shift = random.normal(0, 0.35, (_N_DOMAINS, _N_PROGRAMMES))
        for number in range(sections_per_patient):
            mirrored = mirror and (patient * sections_per_patient + number) % 2 == 1
            name = f"P{patient + 1}S{number + 1}"
            sections.append(
                _draw_section(name, f"P{patient + 1}", raster, biology, shift, mirrored, deformation, random)
            )

    # standardised over all tissue, so that a section's level is part of the biology
    level = np.stack([s.drive[:, s.tissue].mean(axis=1) for s in sections]).mean(axis=0)
    spread = np.sqrt(np.stack([((s.drive[:, s.tissue].T - level) ** 2).mean(axis=0) for s in sections]).mean(axis=0))
    for s in sections:
        s.drive = (s.drive - level[:, None, None]) / spread[:, None, None]
        _measure(s, raster, biology, pixel_size, noise, coverage, random)
    log_lod = _detection_limits(np.vstack([s.log_intensity for s in sections]), n_metabolites, random)

    st, msi = {}, {}
    for s in sections:
        st[s.name] = _st_table(s, raster, biology, log_lod, dispersion, library_size, random)
        msi[s.name] = _msi_table(s, biology, log_lod, pixel_size, random)
    sdata = combine(st.values(), msi.values())
    for s in sections:
        _add_landmarks(sdata, s, raster, random, n_landmarks)
    sdata.tables[Key.table.MSI].obsm[Key.obsm.TRUTH_SPATIAL] = np.vstack([s.pixel_at for s in sections])
    sdata.tables[Key.table.ST].uns[Key.uns.TRUTH] = {
        "transformation": {s.name: s.matrix for s in sections},
        "batch_scale": {s.name: s.batch_scale for s in sections},
        "drivers": biology.drivers,
        "params": params,
    }
    return sdata


def toy(*, rng: int | np.random.Generator = 0) -> SpatialData:
    """A small simulation for tests and examples, made in about a second.

    Three patients with one section each, about 100 spots a section, 120 genes and 12 metabolites; everything else as
    in :func:`simulate`.

    Parameters
    ----------
    rng
        Seed or generator.

    Returns
    -------
    SpatialData, not aligned yet.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> sdata.tables["msi"].n_vars
    12
    """
    return simulate(n_patients=3, sections_per_patient=1, n_genes=120, n_metabolites=12, size=1200, rng=rng)


@dataclass
class _Biology:
    """What all sections share: programmes, genes, and how metabolites follow them."""

    programme: NDArray[np.int64]  # of each gene, -1: none
    loading: NDArray[np.float64]  # genes x programmes
    base: NDArray[np.float64]  # log rate of each gene
    profile: NDArray[np.float64]  # domains x programmes
    var: pd.DataFrame  # of the metabolites
    enzymes: list[NDArray[np.int64]]  # genes that drive each metabolite
    weights: list[NDArray[np.float64]]
    drivers: pd.DataFrame
    gene_names: pd.Index

    @classmethod
    def draw(cls, n_genes: int, n_metabolites: int, rng: np.random.Generator) -> _Biology:
        programme = rng.permutation(
            np.where(np.arange(n_genes) < 0.6 * n_genes, np.arange(n_genes) % _N_PROGRAMMES, -1)
        )
        loading = np.zeros((n_genes, _N_PROGRAMMES))
        member = np.flatnonzero(programme >= 0)
        loading[member, programme[member]] = rng.uniform(0.4, 1.0, len(member))
        counts = np.round(np.array(_SHARES) * n_metabolites).astype(int)
        counts[0] += n_metabolites - counts.sum()
        kind = np.repeat(_KINDS, counts)
        running = np.concatenate([np.arange(c) for c in counts])
        diffused = (running % 2 == 1) & (kind != "unpredictable")
        enzymes, weights, rows = [], [], []
        name = [f"simPC({28 + i}:{i % 4})" for i in range(n_metabolites)]
        gene_names = pd.Index([f"SIMG{i + 1:04d}" for i in range(n_genes)])
        for i, (k, identifier) in enumerate(zip(kind, safe_ids(name), strict=True)):
            chosen = rng.choice(_N_PROGRAMMES, 2, replace=False)
            groups = chosen if k == "product" else chosen[:1]
            own = (
                np.empty(0, np.int64)
                if k == "unpredictable"
                else np.concatenate(
                    [rng.choice(np.flatnonzero(programme == g), _ENZYMES_PER_METABOLITE, replace=False) for g in groups]
                )
            )
            w = rng.uniform(0.6, 1.4, len(own)) * (-1 if k == "linear" and i % 4 == 3 else 1)
            enzymes.append(own)
            weights.append(w)
            rows += [(identifier, gene_names[g], v) for g, v in zip(own, w, strict=True)]
        drivers = pd.DataFrame(rows, columns=["metabolite", "gene", "weight"])
        drivers.index = drivers.index.astype(str)
        var = pd.DataFrame(
            {
                Key.var.MZ: np.sort(rng.uniform(480, 900, n_metabolites)).round(4),
                Key.var.FORMULA: "",
                Key.var.ADDUCT: "[M+H]+",
                "kind": kind,
                "predictable": kind != "unpredictable",
                "diffused": diffused,
            },
            index=pd.Index(name),
        )
        return cls(
            programme, loading, rng.normal(0, 0.8, n_genes), rng.normal(0, 0.9, (_N_DOMAINS, _N_PROGRAMMES)),
            var, enzymes, weights, drivers, gene_names,
        )  # fmt: skip


@dataclass
class _Section:
    """One section on its way: hidden fields first, then what the instruments saw."""

    name: str
    patient: str
    tissue: NDArray[np.bool_]
    domains: NDArray[np.float64]  # domains x rows x cols
    activity: NDArray[np.float64]  # programmes x rows x cols
    own: NDArray[np.float64]  # variation of each enzyme gene x rows x cols
    enzyme_genes: NDArray[np.int64]
    drive: NDArray[np.float64]  # metabolites x rows x cols
    matrix: NDArray[np.float64]  # MSI -> ST
    batch_scale: float
    deform: Deformation | None  # in the ST frame, after the matrix
    # set by _measure
    row: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    col: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    log_intensity: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))  # pixels x metabolites, noisy
    pixel_at: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))  # centres in the ST frame


def _draw_section(
    name: str,
    patient: str,
    raster: LatentRaster,
    biology: _Biology,
    shift: NDArray[np.float64],
    mirrored: bool,
    deformation: float,
    rng: np.random.Generator,
) -> _Section:
    tissue = tissue_mask(raster, rng, share=0.68)
    blend = np.exp(3.0 * raster.smooth_field(250, rng, _N_DOMAINS))
    domains = blend / blend.sum(axis=0)
    direction = rng.uniform(0, 2 * np.pi, _N_PROGRAMMES)
    x, y = (raster.positions() / raster.width - 0.5).T
    gradient = 0.8 * (np.cos(direction)[:, None] * x + np.sin(direction)[:, None] * y).reshape(-1, *raster.shape)
    activity = np.tensordot((biology.profile + shift).T, domains, axes=1) + gradient
    activity += 0.5 * raster.smooth_field(120, rng, _N_PROGRAMMES)

    enzyme_genes = np.unique(np.concatenate(biology.enzymes))
    own = 0.35 * raster.smooth_field(120, rng, len(enzyme_genes))
    position = {g: i for i, g in enumerate(enzyme_genes)}

    def expression(gene: int) -> NDArray[np.float64]:
        k = biology.programme[gene]
        return biology.loading[gene, k] * activity[k] + own[position[gene]]

    drive = np.empty((len(biology.var), *raster.shape))
    own_fields = raster.smooth_field(150, rng, len(biology.var))
    for m, (kind, diffused) in enumerate(zip(biology.var["kind"], biology.var["diffused"], strict=True)):
        genes, weights = biology.enzymes[m], biology.weights[m]
        terms = [w * expression(g) for g, w in zip(genes, weights, strict=True)]
        if kind == "unpredictable":
            field = own_fields[m]
        elif kind == "product":
            first, second = (sum(terms[i : i + _ENZYMES_PER_METABOLITE]) for i in (0, _ENZYMES_PER_METABOLITE))
            field = np.logaddexp(0, 0.7 * first) * np.logaddexp(0, 0.7 * second)
        else:
            field = np.asarray(sum(terms))
            if kind == "saturating":
                field = -np.logaddexp(0, -field)
        drive[m] = raster.diffuse(field, _DIFFUSION, tissue) if diffused else field
    angle = rng.uniform(-np.pi, np.pi)
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    if mirrored:
        matrix[:2, 0] *= -1
    scale = float(np.exp(rng.normal(0, 0.4)))
    deform = Deformation.draw(raster, tissue, deformation, rng) if deformation else None
    return _Section(name, patient, tissue, domains, activity, own, enzyme_genes, drive, matrix, scale, deform)


def _measure(
    s: _Section,
    raster: LatentRaster,
    biology: _Biology,
    pixel_size: float,
    noise: float,
    coverage: float,
    rng: np.random.Generator,
) -> None:
    """Lay the MSI raster over the tissue and measure: sets ``row``, ``col``, ``log_intensity`` and the shift."""
    inside = raster.positions()[s.tissue.ravel()]
    in_msi = inside @ np.linalg.inv(s.matrix[:2, :2]).T
    corner = in_msi.min(axis=0) - rng.uniform(0.2, 1.0, 2) * pixel_size
    s.matrix[:2, 2] = s.matrix[:2, :2] @ corner
    n_col, n_row = np.ceil((in_msi.max(axis=0) - corner) / pixel_size).astype(int)
    row, col = (v.ravel() for v in np.indices((n_row, n_col)))
    centre = np.column_stack([col + 0.5, row + 0.5]) * pixel_size
    at = apply_affine(s.matrix, centre)
    if s.deform is not None:
        at = s.deform(at)
    on_tissue = raster.at(s.tissue[None].astype(float), at)[:, 0] > 0.5
    # the instrument stopped early: the last rows are missing
    limit = np.quantile(row[on_tissue], coverage) if coverage < 1 else n_row
    keep = on_tissue & (row <= limit)
    s.row, s.col, s.pixel_at = row[keep], col[keep], at[keep]
    level, strength = _levels(biology)
    drive = raster.at(s.drive, at[keep])
    s.log_intensity = level + strength * drive + noise * rng.standard_normal(drive.shape)


def _levels(biology: _Biology) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log level and log spread of each metabolite; fixed by its position so that sections agree."""
    n = len(biology.var)
    return np.linspace(2.0, 5.0, n)[np.argsort(np.sin(np.arange(n) * 12.9898))], np.linspace(0.7, 1.0, n)


def _detection_limits(log_intensity: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Log detection limits with which prevalence spans 5 to 100 % of the pixels."""
    prevalence = rng.permutation(np.linspace(0.05, 1.0, n))
    limit = np.array([np.quantile(log_intensity[:, m], 1 - p) for m, p in enumerate(prevalence)])
    return np.where(prevalence >= 1, -np.inf, limit)


def _st_table(
    s: _Section,
    raster: LatentRaster,
    biology: _Biology,
    log_lod: NDArray[np.float64],
    dispersion: float,
    library_size: float,
    rng: np.random.Generator,
) -> SpatialData:
    xy, array = visium_positions(raster.width, raster.height, VISIUM_PITCH)
    on_tissue = raster.at(s.tissue[None].astype(float), xy)[:, 0] > 0.5
    xy, array = xy[on_tissue], array[on_tissue]
    own = rng.normal(0, 0.2, (len(xy), len(biology.base)))
    own[:, s.enzyme_genes] = raster.at(s.own, xy)
    log_rate = biology.base + raster.at(s.activity, xy) @ biology.loading.T + own
    library = library_size * np.exp(rng.normal(0, 0.35, len(xy)))
    counts = negative_binomial(log_rate, library, dispersion, rng)
    level, strength = _levels(biology)
    log_truth = level + strength * raster.at(s.drive, xy)
    ids = pd.Index(safe_ids(biology.var.index))
    obs = pd.DataFrame(
        {
            Key.obs.PATIENT: pd.Categorical([s.patient] * len(xy)),
            "array_row": array[:, 0],
            "array_col": array[:, 1],
            "domain": pd.Categorical([f"domain{d + 1}" for d in raster.at(s.domains, xy).argmax(axis=1)]),
        },
        index=pd.Index([f"{s.name}_{r}x{c}" for r, c in array]),
    )
    n = len(biology.gene_names)
    var = pd.DataFrame({Key.var.GENE_IDS: [f"ENSG{90_000_000_000 + i}" for i in range(n)]}, index=biology.gene_names)
    adata = AnnData(sp.csr_matrix(counts), obs=obs, var=var)
    adata.obsm[Key.obsm.TRUTH_INTENSITY] = pd.DataFrame(np.exp(log_truth).astype(np.float32), obs.index, ids)
    adata.obsm[Key.obsm.TRUTH_PRESENCE] = pd.DataFrame((log_truth > log_lod).astype(np.float32), obs.index, ids)
    return st_section(adata, xy, sample=s.name, spot_diameter=VISIUM_SPOT_DIAMETER)


def _msi_table(
    s: _Section, biology: _Biology, log_lod: NDArray[np.float64], pixel_size: float, rng: np.random.Generator
) -> SpatialData:
    intensity = np.where(s.log_intensity > log_lod, np.exp(s.log_intensity) * s.batch_scale, 0)
    var = biology.var.assign(lod=np.exp(log_lod))
    # most of a spectrum is matrix and chemical background, which no ion of the table holds
    background = (
        _BACKGROUND * intensity.sum(axis=1).mean() * np.exp(_BACKGROUND_NOISE * rng.standard_normal(len(intensity)))
    )
    obs = pd.DataFrame(
        {Key.obs.PATIENT: pd.Categorical([s.patient] * len(intensity)), Key.obs.TIC: background + intensity.sum(axis=1)}
    )
    attrs = {"simulated": True}
    return msi_section(intensity, var, s.row, s.col, sample=s.name, pixel_size=pixel_size, obs=obs, attrs=attrs)


def _add_landmarks(sdata: Any, s: _Section, raster: LatentRaster, rng: np.random.Generator, n: int) -> None:
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    inside = raster.positions()[s.tissue.ravel()]
    before = inside
    if s.deform is not None:
        # places on the slide whose deformed place is on tissue
        before = raster.positions()
        moved = s.deform(before)
        kept = raster.at(s.tissue[None].astype(float), moved)[:, 0] > 0.5
        before, inside = before[kept], moved[kept]
    # spread over the section: one point in each of n slices around its middle
    angle = np.arctan2(*(inside - inside.mean(axis=0)).T[::-1])
    slices = np.array_split(np.argsort(angle), n)
    chosen = [rng.choice(part) for part in slices]
    st = inside[chosen]
    msi = apply_affine(np.asarray(np.linalg.inv(s.matrix), np.float64), before[chosen])
    for xy, modality, frame in (
        (st, "st", Key.st_frame(s.name)),
        (msi, "msi", Key.msi_frame(s.name)),
    ):
        clicked = xy + rng.normal(0, _LANDMARK_ERROR, xy.shape)
        sdata.points[Key.landmarks(s.name, modality)] = PointsModel.parse(clicked, transformations={frame: Identity()})


def _check(
    n_patients: int,
    sections_per_patient: int,
    n_genes: int,
    n_metabolites: int,
    size: float,
    pixel_size: float,
    noise: float,
    dispersion: float,
    library_size: float,
    coverage: float,
    deformation: float,
    n_landmarks: int,
) -> None:
    conditions = {
        "n_patients must be at least 1": n_patients >= 1,
        "sections_per_patient must be at least 1": sections_per_patient >= 1,
        "n_genes must be at least 60": n_genes >= 60,
        "n_metabolites must be at least 5": n_metabolites >= 5,
        "size must be at least 600 um": size >= 600,
        "pixel_size must lie between 5 and 500 um": 5 <= pixel_size <= 500,
        "noise must not be negative": noise >= 0,
        "dispersion must be positive": dispersion > 0,
        "library_size must be positive": library_size > 0,
        "coverage must lie in (0, 1]": 0 < coverage <= 1,
        "deformation must lie between 0 and a quarter of the size": 0 <= deformation <= size / 4,
        "n_landmarks must be at least 3": n_landmarks >= 3,
    }
    for message, holds in conditions.items():
        if not holds:
            raise ValueError(message + ".")

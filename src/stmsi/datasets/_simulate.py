"""Paired ST and MSI sections with known truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.spatial.simulated_tissue import LatentRaster
from stmsi._data.keys import Key
from stmsi.datasets._simulated_biology import N_DOMAINS, N_PROGRAMMES, Biology
from stmsi.datasets._simulated_section import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData


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
    dense: float = 0.0,
    n_dense_genes: int = 50,
    rng: int | np.random.Generator = 0,
) -> SpatialData:
    r"""Simulate paired, not yet aligned ST and MSI sections with known truth.

    **Tissue.** Each section is an irregular piece of tissue with four domains that blend into one another. Eight gene
    programmes have an activity :math:`a_k(x)`: a profile of the domains (shared, with a shift for each patient), a gradient
    over the section and a Gaussian random field.

    **Genes.** :math:`\log \mu_j(x) = b_j + \sum_k L_{jk} a_k(x) + e_j(x)`; a gene belongs to at most one programme, and
    :math:`e_j` is its own variation (for enzymes a smooth field). Counts are negative binomial with mean
    :math:`\ell\,\mathrm{softmax}(\log \mu)` and a lognormal library size :math:`\ell`, on a Visium hexagon (55 um
    spots, 100 um pitch).

    **Metabolites.** The drive of a metabolite follows the true expression :math:`g_j = \log \mu_j - b_j` of its three
    enzymes: ``linear`` (weighted sum :math:`z`), ``saturating`` (:math:`\log \sigma(z)`), ``product`` of two programmes
    (:math:`\mathrm{softplus}(0.7 z_1)\,\mathrm{softplus}(0.7 z_2)`), or ``unpredictable`` (a random field that no gene
    knows of). With `dense`, some follow a weighted sum of many genes of all programmes instead. Every second predictable one is
    diffused over its surroundings (Gaussian, 100 um). Standardised, the drive :math:`f` gives the noiseless intensity
    :math:`\exp(\mu_m + s_m f)`.

    **MSI.** Pixels lie on a raster of their own: rotated, shifted, every second section **mirrored**, part of the tissue not
    measured, and with `deformation` bent by a thin-plate spline. Pixel values have lognormal noise and a batch scale for
    each section. Values under the ion's detection limit are 0; prevalence spans 5 to 100 %. ``obs["tic"]`` is the total ion
    current of the whole spectrum, most of it background that no ion of the table holds.

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
        Largest displacement, in micrometres, of the tissue on the MSI slide against the ST section; 0: one slice.
    n_landmarks
        Pairs of landmarks in each section, at least 3.
    dense
        Share of the predictable metabolites, drawn at random, whose drive is a weighted sum of `n_dense_genes` genes with weights
        of either sign. They count as ``linear``; no few of their genes tell most of them. 0 leaves the simulation as it is.
    n_dense_genes
        Genes that drive such a metabolite, drawn for each by itself from all genes; at most `n_genes`.
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
    - ``msi.var``: ``kind``, ``predictable``, ``diffused``, ``dense``, ``lod``.

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

    params = {
        "n_patients": n_patients, "sections_per_patient": sections_per_patient, "n_genes": n_genes,
        "n_metabolites": n_metabolites, "size": size, "pixel_size": pixel_size, "noise": noise,
        "dispersion": dispersion, "library_size": library_size, "coverage": coverage, "mirror": mirror,
        "deformation": deformation, "n_landmarks": n_landmarks, "dense": dense, "n_dense_genes": n_dense_genes,
    }  # fmt: skip
    _check(params)
    random = np.random.default_rng(rng)
    biology = Biology.draw(n_genes, n_metabolites, random, dense=dense, n_dense_genes=n_dense_genes)
    raster = LatentRaster(size, size)
    sections = []
    for patient in range(n_patients):
        shift = random.normal(0, 0.35, (N_DOMAINS, N_PROGRAMMES))
        for number in range(sections_per_patient):
            mirrored = mirror and (patient * sections_per_patient + number) % 2 == 1
            name, own = f"P{patient + 1}S{number + 1}", f"P{patient + 1}"
            section = Section.draw(
                name, own, raster, biology, shift, mirrored=mirrored, deformation=deformation, rng=random
            )
            sections.append(section)

    # standardised over all tissue, so that a section's level is part of the biology
    level = np.stack([s.drive[:, s.tissue].mean(axis=1) for s in sections]).mean(axis=0)
    spread = np.sqrt(np.stack([((s.drive[:, s.tissue].T - level) ** 2).mean(axis=0) for s in sections]).mean(axis=0))
    seen = []
    for s in sections:
        s.drive = (s.drive - level[:, None, None]) / spread[:, None, None]
        seen.append(s.measure(pixel_size, noise, coverage, random))
    log_lod = _detection_limits(np.vstack([one.log_intensity for one in seen]), random)

    st, msi = [], []
    for s, one in zip(sections, seen, strict=True):
        st.append(s.spots(log_lod, dispersion, library_size, random))
        msi.append(s.pixels(one, log_lod, pixel_size, random))
    sdata = combine(st, msi)
    for s in sections:
        s.add_landmarks(sdata, n_landmarks, random)
    sdata.tables[Key.table.MSI].obsm[Key.obsm.TRUTH_SPATIAL] = np.vstack([one.at for one in seen])
    sdata.tables[Key.table.ST].uns[Key.uns.TRUTH] = {
        "transformation": {s.name: s.matrix for s in sections},
        "batch_scale": {s.name: s.batch_scale for s in sections},
        "drivers": biology.drivers,
        "params": params,
    }
    return sdata


def toy(*, rng: int | np.random.Generator = 0) -> SpatialData:
    """A small simulation for tests and examples, made in about a second.

    Three patients with one section each, about 100 spots a section, 120 genes and 12 metabolites; else as :func:`simulate`.

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


def _detection_limits(log_intensity: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Log detection limits with which prevalence spans 5 to 100 % of the pixels; `log_intensity` pixels x metabolites."""
    prevalence = rng.permutation(np.linspace(0.05, 1.0, log_intensity.shape[1]))
    limit = np.array([np.quantile(log_intensity[:, m], 1 - p) for m, p in enumerate(prevalence)])
    return np.where(prevalence >= 1, -np.inf, limit)


def _check(params: dict[str, float]) -> None:
    """Raise where a parameter is out of range."""
    holds = {
        "n_patients must be at least 1": params["n_patients"] >= 1,
        "sections_per_patient must be at least 1": params["sections_per_patient"] >= 1,
        "n_genes must be at least 60": params["n_genes"] >= 60,
        "n_metabolites must be at least 5": params["n_metabolites"] >= 5,
        "size must be at least 600 um": params["size"] >= 600,
        "pixel_size must lie between 5 and 500 um": 5 <= params["pixel_size"] <= 500,
        "noise must not be negative": params["noise"] >= 0,
        "dispersion must be positive": params["dispersion"] > 0,
        "library_size must be positive": params["library_size"] > 0,
        "coverage must lie in (0, 1]": 0 < params["coverage"] <= 1,
        "deformation must lie between 0 and a quarter of the size": 0 <= params["deformation"] <= params["size"] / 4,
        "n_landmarks must be at least 3": params["n_landmarks"] >= 3,
        "dense must lie between 0 and 1": 0 <= params["dense"] <= 1,
        "n_dense_genes must lie between 1 and n_genes": 1 <= params["n_dense_genes"] <= params["n_genes"],
    }
    for message, right in holds.items():
        if not right:
            raise ValueError(message + ".")

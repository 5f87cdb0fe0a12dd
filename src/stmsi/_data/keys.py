"""Every name of the data model, in one place: no other module spells a field as a string."""

from collections.abc import Callable
from typing import Final


def _named(pattern: str) -> Callable[[str], str]:
    """The name that a section or another name gives, put into `pattern`."""
    return pattern.format


def _pair(first: str, second: str) -> Callable[[str], tuple[str, str]]:
    """Two names of that kind."""
    return lambda name: (first.format(name), second.format(name))


class Key:
    """Names of tables, elements and fields (see the data-model page of the user guide)."""

    class table:  # noqa: N801
        """Tables of a SpatialData."""

        ST: Final = "st"
        MSI: Final = "msi"
        SYNTHETIC: Final = "msi_synthetic"

    class obs:  # noqa: N801
        """Columns of ``obs``."""

        SAMPLE: Final = "sample"
        PATIENT: Final = "patient"
        CLUSTER: Final = "cluster"
        ROW: Final = "row"
        COL: Final = "col"
        REGION: Final = "region"
        INSTANCE: Final = "instance_id"
        N_SPOTS: Final = "n_spots"
        COVERAGE: Final = "msi_coverage"
        OVERSAMPLED: Final = "oversampled_from"
        TIC: Final = "tic"
        IN_TISSUE: Final = "in_tissue"
        ARRAY_ROW: Final = "array_row"
        ARRAY_COL: Final = "array_col"
        TISSUE: Final = "on_tissue"
        SCALE: Final = "msi_scale"

    class var:  # noqa: N801
        """Columns of ``var`` (and of the feature table)."""

        MZ: Final = "mz"
        MEASURED_MZ: Final = "mz_measured"
        PEAK_WIDTH: Final = "peak_width"
        NAME: Final = "name"
        FORMULA: Final = "formula"
        ADDUCT: Final = "adduct"
        MOLECULES: Final = "molecule_names"
        N_ISOMERS: Final = "n_isomers"
        FDR: Final = "fdr"
        PPM_ERROR: Final = "ppm_error"
        CLASS: Final = "class"
        N_CANDIDATES: Final = "n_candidates"
        ISOBARIC: Final = "isobaric"
        PREVALENCE: Final = "prevalence"
        MORAN: Final = "moran_i"
        MORAN_FDR: Final = "moran_fdr"
        SPATIALLY_VARIABLE: Final = "spatially_variable"
        GENE_IDS: Final = "gene_ids"
        TIER: Final = "tier"

    class obsm:  # noqa: N801
        """Keys of ``obsm``."""

        SPATIAL: Final = "spatial"
        MSI: Final = "msi"
        PRESENCE: Final = "msi_presence"
        PRED: Final = "msi_pred"
        DENOISED: Final = "msi_denoised"
        SAMPLE: Final = "msi_sample"
        TRUTH_INTENSITY: Final = "truth_intensity"
        TRUTH_PRESENCE: Final = "truth_presence"
        TRUTH_SPATIAL: Final = "truth_spatial"

    class obsp:  # noqa: N801
        """Keys of ``obsp``."""

        CONNECTIVITIES: Final = "spatial_connectivities"

    class varm:  # noqa: N801
        """Keys of ``varm``."""

        SIGNATURE: Final = "signature"
        ATTRIBUTION: Final = "attribution"
        ATTENTION: Final = "msi_attention"
        MEASURED: Final = "measured"
        SECTION_MZ: Final = "section_mz"
        PRIOR: Final = "msi_prior"

    class layers:  # noqa: N801
        """Keys of ``layers``."""

        RAW: Final = "raw"
        COUNTS: Final = "_stmsi_counts"

    class uns:  # noqa: N801
        """Keys of ``uns``."""

        MSI: Final = "msi"
        UNITS: Final = "st_units"
        NORMALIZE: Final = "normalize_msi"
        PEAKS: Final = "pick_peaks"
        ALIGNMENT: Final = "alignment"
        ANNOTATION: Final = "annotation"
        VARIABLE: Final = "select_spatially_variable"
        SIGNATURE: Final = "signature"
        SETUP: Final = "_stmsi_setup"
        TRUTH: Final = "truth"
        CEILING: Final = "msi_noise_ceiling"
        PRIOR: Final = "msi_prior"

    # elements and coordinate systems of a section
    st_frame = _named("{}")  # coordinate system of the spots, in micrometres
    msi_frame = _named("{}_msi")  # coordinate system of the MSI raster before alignment, in micrometres
    spots = _named("{}_spots")
    pixels = _named("{}_pixels")
    warped_pixels = _named("{}_pixels_warped")  # after an alignment that is more than affine
    synthetic_pixels = _named("{}_synthetic_pixels")  # the pixels on which draws were made
    image = _named("{}_he")  # histology
    msi_image = _named("{}_msi_he")  # histology of the MSI section
    tic_image = _named("{}_tic")  # total ion current

    @staticmethod
    def landmarks(sample: str, modality: str) -> str:
        """Points of a section; `modality` is ``"st"`` or ``"msi"``."""
        return f"{sample}_landmarks_{modality}"

    # fields that belong to the field whose name is given
    presence_of = _named("{}_presence")  # probability of presence
    bounds_of = _pair("{}_lower", "{}_upper")  # prediction interval
    width_of = _named("{}_width")  # width of the interval, computed when asked for and not stored
    ood_of = _named("{}_ood")  # in obs: out-of-distribution score
    trained_on_of = _named("{}_trained_on")  # in obs: whether the model was trained on the spot
    variance_of = _named("{}_variance")  # between the pixels of each spot
    halves_of = _pair("{}_half_1", "{}_half_2")  # values from either half of the pixels
    spread_of = _named("{}_spread")  # standard deviation that the error of the alignment causes
    n_pixels_of = _pair("{}_n_pixels", "{}_n_effective")  # in obs: number of pixels of a spot, and the effective number
    n_sections_of = _named("{}_n_sections")  # in obs: number of MSI sections whose mean a region has
    pixel_of = _pair("{}_pixel", "{}_pixel_share")  # in obs: the pixel with the largest weight in a spot, and its share
    spot_of = _named("{}_spot")  # in obs of the MSI table: the spot that a pixel was paired with
    observed_of = _named("{}_observed")  # which intensities were measured and not imputed
    raw_of = _named("{}_raw")  # the intensities before they were normalised on the spots
    uncorrected_of = _named("{}_uncorrected")  # the intensities that a correction replaced
    effects_of = _named("{}_effects")  # what an attention makes of each gene

    @staticmethod
    def output_of(key_added: str, how: str) -> str:
        """A further way in which the two stages become one number, beside the prediction itself."""
        return f"{key_added}_{how}"

    @staticmethod
    def draw_of(key_added: str, number: int) -> str:
        """A draw from a model."""
        return f"{key_added}_{number}"

    @staticmethod
    def group_of(key_added: str, group: str) -> str:
        """What drives a metabolite in one group of spots; `group` is a safe id."""
        return f"{key_added}_{group}"


# Scores that stmsi.tl.evaluate writes, by stage and by what they need.
PRESENCE_SCORES = ("precision", "recall", "f1", "mcc", "auroc", "auprc", "prevalence", "brier", "ece")
INTENSITY_SCORES = (
    "mse", "mae", "r2", "pearson", "pearson_between", "pearson_pooled", "spearman", "pearson_present", "coverage",
    "interval_width",
)  # fmt: skip
ACROSS_SCORES = ("pearson_between", "pearson_pooled")
"""Those of all sections together: one number per model and metabolite, the same in each of its rows."""
SECTION_MOMENTS = (
    "measured_mean", "predicted_mean", "measured_sd", "predicted_sd", "training_mean", "training_predicted_mean",
)  # fmt: skip
"""What a row knows of its section, from which the scores across sections follow."""
TRAINED_ON = "trained_on"
"""Column of a table of scores: whether the model was trained on the spots that are scored."""
MAP_SCORES = ("ssim", "moran_measured", "moran_predicted", "hotspot_jaccard")
RELATION_SCORES = ("correlation_preserved", "gene_correlation_preserved")
GROUP_SCORES = ("group_agreement", "differential_agreement")
LOWER_IS_BETTER = ("mse", "mae", "brier", "ece", "interval_width")

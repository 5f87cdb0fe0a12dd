"""Every name of the data model, in one place: no other module spells a field as a string."""

from typing import Final


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
        COVERAGE: Final = "msi_coverage"
        OVERSAMPLED: Final = "oversampled_from"
        TIC: Final = "tic"
        IN_TISSUE: Final = "in_tissue"
        TISSUE: Final = "on_tissue"
        SCALE: Final = "msi_scale"

    class var:  # noqa: N801
        """Columns of ``var`` (and of the feature table)."""

        MZ: Final = "mz"
        MEASURED_MZ: Final = "mz_measured"
        NAME: Final = "name"
        FORMULA: Final = "formula"
        ADDUCT: Final = "adduct"
        FDR: Final = "fdr"
        PPM_ERROR: Final = "ppm_error"
        CLASS: Final = "class"
        N_CANDIDATES: Final = "n_candidates"
        ISOBARIC: Final = "isobaric"
        PREVALENCE: Final = "prevalence"
        MORAN: Final = "moran_i"
        SPATIALLY_VARIABLE: Final = "spatially_variable"
        GENE_IDS: Final = "gene_ids"
        TIER: Final = "tier"

    class obsm:  # noqa: N801
        """Keys of ``obsm``."""

        SPATIAL: Final = "spatial"
        MSI: Final = "msi"
        PRESENCE: Final = "msi_presence"
        PRED: Final = "msi_pred"
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

    class uns:  # noqa: N801
        """Keys of ``uns``."""

        MSI: Final = "msi"
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

    @staticmethod
    def spots(sample: str) -> str:
        """Shapes element that holds the spots of a section."""
        return f"{sample}_spots"

    @staticmethod
    def pixels(sample: str) -> str:
        """Shapes element that holds the MSI pixels of a section."""
        return f"{sample}_pixels"

    @staticmethod
    def warped_pixels(sample: str) -> str:
        """Shapes element that holds the MSI pixels of a section after an alignment that is more than affine."""
        return f"{sample}_pixels_warped"

    @staticmethod
    def image(sample: str) -> str:
        """Image element that holds the histology of a section."""
        return f"{sample}_he"

    @staticmethod
    def msi_image(sample: str) -> str:
        """Image element that holds the histology of the MSI section."""
        return f"{sample}_msi_he"

    @staticmethod
    def tic_image(sample: str) -> str:
        """Image element that holds the total ion current of a section."""
        return f"{sample}_tic"

    @staticmethod
    def st_frame(sample: str) -> str:
        """Coordinate system of a section: micrometres, the ST frame."""
        return sample

    @staticmethod
    def msi_frame(sample: str) -> str:
        """Coordinate system of the MSI raster of a section before alignment, in micrometres."""
        return f"{sample}_msi"

    @staticmethod
    def landmarks(sample: str, modality: str) -> str:
        """Points element with the landmarks of a section; `modality` is ``"st"`` or ``"msi"``."""
        return f"{sample}_landmarks_{modality}"

    @staticmethod
    def presence_of(key_added: str) -> str:
        """Where the presence probabilities that belong to a prediction are written."""
        return f"{key_added}_presence"

    @staticmethod
    def variance_of(key_added: str) -> str:
        """Where the variance between the pixels of each spot is written."""
        return f"{key_added}_variance"

    @staticmethod
    def halves_of(key_added: str) -> tuple[str, str]:
        """Where the values from either half of the pixels are written."""
        return f"{key_added}_half_1", f"{key_added}_half_2"

    @staticmethod
    def draw_of(key_added: str, number: int) -> str:
        """Where a draw from a model is written."""
        return f"{key_added}_{number}"

    @staticmethod
    def synthetic_pixels(sample: str) -> str:
        """Shapes element that holds the pixels on which draws of a section were made."""
        return f"{sample}_synthetic_pixels"

    @staticmethod
    def spread_of(key_added: str) -> str:
        """Where the standard deviation that the error of the alignment causes is written."""
        return f"{key_added}_spread"

    @staticmethod
    def n_pixels_of(key_added: str) -> tuple[str, str]:
        """Columns of ``obs`` with the number of pixels of each spot, and with the effective number."""
        return f"{key_added}_n_pixels", f"{key_added}_n_effective"

    @staticmethod
    def pixel_of(key_added: str) -> tuple[str, str]:
        """Columns of ``obs`` with the pixel that gives a spot most of its value, and with its share of the weight."""
        return f"{key_added}_pixel", f"{key_added}_pixel_share"

    @staticmethod
    def spot_of(key_added: str) -> str:
        """Column of the MSI table's ``obs`` with the spot that each pixel was paired with."""
        return f"{key_added}_spot"

    @staticmethod
    def observed_of(key: str) -> str:
        """Where it is written which intensities were measured and not imputed."""
        return f"{key}_observed"

    @staticmethod
    def uncorrected_of(key: str) -> str:
        """Where the intensities are kept that a correction replaced."""
        return f"{key}_uncorrected"

    @staticmethod
    def bounds_of(key_added: str) -> tuple[str, str]:
        """Where the prediction interval that belongs to a prediction is written."""
        return f"{key_added}_lower", f"{key_added}_upper"

    @staticmethod
    def width_of(key_added: str) -> str:
        """Name of the width of the prediction interval, which is not stored: it is upper minus lower bound."""
        return f"{key_added}_width"

    @staticmethod
    def group_of(key_added: str, group: str) -> str:
        """Where what drives a metabolite in one group of spots is written; `group` is a safe id."""
        return f"{key_added}_{group}"

    @staticmethod
    def programmes_of(key_added: str) -> str:
        """Where the genes of each programme that belong to an attention are written."""
        return f"{key_added}_programmes"

    @staticmethod
    def ood_of(key_added: str) -> str:
        """Column of ``obs`` with the out-of-distribution score that belongs to a prediction."""
        return f"{key_added}_ood"


# Scores that stmsi.tl.evaluate writes, by stage and by what they need.
PRESENCE_SCORES = ("precision", "recall", "f1", "mcc", "auroc", "auprc", "prevalence", "brier", "ece")
INTENSITY_SCORES = ("mse", "mae", "r2", "pearson", "spearman", "pearson_present", "coverage", "interval_width")
MAP_SCORES = ("ssim", "moran_measured", "moran_predicted", "hotspot_jaccard")
RELATION_SCORES = ("correlation_preserved", "gene_correlation_preserved")
GROUP_SCORES = ("group_agreement", "differential_agreement")

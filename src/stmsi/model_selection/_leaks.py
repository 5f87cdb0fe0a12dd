"""The ways in which a model could know its test spots: check, severity, and message with the remedy."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One leak that was found; `share` of the test spots in the worst fold (NaN where it concerns all)."""

    check: str
    severity: Severity
    where: str
    folds: tuple[int, ...]
    share: float
    message: str


# fmt: off
LEAKS: dict[str, tuple[str, Severity, str]] = {
    "overlap": ("overlap", "error", "Test spots are also training spots; repair the splitter."),
    "repeats": ("duplicates", "error", "Repeats of test spots are trained on. Split first, then call "
        "stmsi.experimental.oversample on the training spots."),
    "copies": ("duplicates", "error", "Test spots have the very counts of training spots: a section or spots are in "
        "the data twice. Drop the copies."),
    "near copies": ("duplicates", "error", "Test spots have nearly the counts of training spots, as copies that were thinned or "
        "changed a little have. Drop the copies."),
    "pixel": ("pixel", "error", "Test spots have their values from the MSI pixel of a training spot; "
        "stmsi.model_selection.SpatialBlockKFold keeps them together."),
    "region": ("region", "error", "Test observations have the mean of a region of MSI that training observations have too, "
        "since stmsi.pp.pair_by_region pairs all sections with it. Leave out whole regions: "
        "stmsi.model_selection.LeaveOneSampleOut(sample_key={key!r})."),
    "no positions": ("neighbours", "warning", "Sections lie on both sides, and without positions nobody can tell how "
        "far training and test spots are apart."),
    "neighbours": ("neighbours", "warning", "Test spots lie beside training spots, which resemble them. Leave out "
        "whole sections, or take stmsi.model_selection.SpatialBlockKFold with a buffer."),
    "patient": ("patient", "warning", "Other sections of the test patients are trained on; "
        "stmsi.model_selection.LeaveOnePatientOut tells what to expect from a new patient."),
    "graph": ("graph", "warning", "Edges lead from test to training spots. stmsi.tl.cross_validate cuts them; "
        "elsewhere cut them yourself. A buffer or whole sections leave none."),
    "genes": ("genes", "error", "The table holds only genes, or nearly only genes, that were chosen as highly variable on all spots, test "
        "spots included. Keep all genes; models choose inside the training spots."),
    "scaled genes": ("scaling", "error", "Genes were scaled by means and deviations of all spots (var['mean'], "
        "var['std'], or genes of deviation 1). Pass the raw counts."),
    "smoothing": ("smoothing", "warning", "Spots express genes of which they have no counts: values were taken over "
        "from other spots (smoothing, imputation, batch correction), on all spots together. Pass the raw counts; "
        "context= pools neighbours inside each side of a fold."),
    "normalisation": ("normalisation", "warning", "Expression is not counts{log}. Normalising to the median of all "
        "spots looks at test spots, and smoothing cannot be told from it without counts. Pass the raw counts; models "
        "normalise."),
    "predictions": ("features", "error", "The features are predictions of a model that may have been trained on the "
        "test spots. Use stmsi.model.HurdleEnsemble, which stacks held-out predictions."),
    "embedding": ("features", "error", "The embedding was fitted on all spots, test spots included. Leave it to the "
        "model, which fits its own components inside the training spots."),
    "target": ("target", "error", "A feature is a metabolite that the model shall predict, or a copy of it. Leave it "
        "out."),
    "made of targets": ("target", "error", "Features follow metabolites spot by spot, beyond what genes and neighbours "
        "tell{columns}. They were made of the metabolites that the model shall predict. Leave them out."),
    "ions among genes": ("target", "error", "Genes follow metabolites spot by spot, as no transcript does: {genes}. Ions or "
        "predictions lie among the genes. Leave them out."),
    "scaled features": ("scaling", "error", "The features have one scale over all spots (mean 0 and deviation 1, quartiles, or "
        "0 to 1): they were scaled with the test spots. Pass them as they were measured; models scale inside the training spots."),
    "components": ("features", "error", "The features have mean 0 and are uncorrelated over all spots, as components "
        "that were fitted on all of them are. Pass what they were made of."),
    "scaled targets": ("scaling", "warning", "All metabolites have one scale over all sections, test sections included. Scale by "
        "numbers of the training spots; models do so by themselves."),
    "ranked targets": ("scaling", "warning", "Metabolites are ranks over all sections, or normal scores of them: values of test "
        "spots depend on the training spots, and the other way round. Pass intensities, or rank each section by itself."),
    "smoothed targets": ("smoothing", "warning", "Metabolites are above zero only in patches of neighbours: intensities were "
        "averaged over neighbours. Scores hold for the smoothed maps, and over the border of a fold test spots are in "
        "training values. Pass intensities as they were mapped."),
    "rebuilt targets": ("smoothing", "warning", "Metabolites are sums of few components, which were fitted on all spots. Pass "
        "intensities as they were mapped."),
    "batch": ("batch", "error", "Intensities were corrected for batches ({method}) on all sections together; a new "
        "section without MSI could get no such correction. Undo it with stmsi.pp.correct_batch(data, method='none'), "
        "or correct the training sections alone."),
    "imputation": ("imputation", "error", "Zeros were replaced by the median of surroundings that reach over the "
        "border of the folds. Leave out whole sections, or impute after splitting."),
    "presence": ("presence", "warning", "Limits of presence ({method}) were found from whole sections, test spots "
        "included. Pass stmsi.pp.call_presence(threshold=) limits from elsewhere, or leave out whole sections."),
    "metabolites": ("metabolites", "warning", "All metabolites are ones chosen for their spatial pattern in all "
        "sections, test sections included: scores hold for metabolites known to have one."),
    "clusters": ("clusters", "warning", "The clusters were found on all spots, test spots included. Use annotations, "
        "or cluster the training spots."),
    "probe permuted": ("probe", "error", "A model that was trained on permuted metabolites predicts them in test spots (mean "
        "correlation {score}): it has seen the test spots. Repair the folds."),
    "probe shifted": ("probe", "warning", "A model that was trained on metabolites moved across their sections predicts them in "
        "test spots (mean correlation {score}): it knows places by training spots nearby. Leave out whole sections, or take "
        "stmsi.model_selection.SpatialBlockKFold with a buffer."),
    "probe features": ("probe", "warning", "These features alone, without genes, predict metabolites of test spots (mean "
        "correlation {score}; genes alone {genes}). That is right for what was measured without MSI, such as "
        "histology. Leave them out if they were not."),
    "alignment": ("alignment", "warning", "Sections {names} were aligned by their genes and ions, and are scored on: "
        "agreement that the alignment looked for is no evidence. Align the sections that you score on by landmarks or outlines."),
}
# fmt: on
"""By the name under which a rule reports them."""

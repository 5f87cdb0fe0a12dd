"""Preprocessing: verbs that turn two modalities into one aligned, annotated SpatialData."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi._data.combine import combine
    from stmsi.pp._add_metabolites import add_metabolites
    from stmsi.pp._align import align
    from stmsi.pp._alignment_report import alignment_report
    from stmsi.pp._annotate_mz import annotate_mz
    from stmsi.pp._call_presence import call_presence
    from stmsi.pp._correct_batch import correct_batch
    from stmsi.pp._filter_metabolites import filter_metabolites
    from stmsi.pp._gene_signatures import gene_signatures
    from stmsi.pp._impute_dropout import impute_dropout
    from stmsi.pp._knowledge_prior import knowledge_prior
    from stmsi.pp._map_to_spots import map_to_spots
    from stmsi.pp._normalize_msi import normalize_msi
    from stmsi.pp._pair_by_region import pair_by_region
    from stmsi.pp._pick_peaks import pick_peaks
    from stmsi.pp._select_spatially_variable import select_spatially_variable
    from stmsi.pp._spatial_graph import spatial_graph

__all__ = [
    "add_metabolites",
    "align",
    "alignment_report",
    "annotate_mz",
    "call_presence",
    "combine",
    "correct_batch",
    "filter_metabolites",
    "gene_signatures",
    "impute_dropout",
    "knowledge_prior",
    "map_to_spots",
    "normalize_msi",
    "pair_by_region",
    "pick_peaks",
    "select_spatially_variable",
    "spatial_graph",
]

_getattr, __dir__ = lazy_attributes(
    __name__, names={name: f"_{name}" for name in __all__} | {"combine": "stmsi._data.combine"}
)


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

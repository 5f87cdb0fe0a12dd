"""Preprocessing: from two modalities to one aligned, annotated SpatialData."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
    from stmsi.pp._align import align, alignment_report
    from stmsi.pp._call_presence import call_presence
    from stmsi.pp._combine import combine
    from stmsi.pp._filter_metabolites import filter_metabolites
    from stmsi.pp._gene_signatures import gene_signatures
    from stmsi.pp._knowledge_prior import knowledge_prior
    from stmsi.pp._map_to_spots import map_to_spots
    from stmsi.pp._match_metabolites import match_metabolites
    from stmsi.pp._normalize_msi import normalize_msi
    from stmsi.pp._pick_peaks import pick_peaks
    from stmsi.pp._spatial_graph import spatial_graph

__all__ = [
    "align",
    "alignment_report",
    "call_presence",
    "combine",
    "filter_metabolites",
    "gene_signatures",
    "knowledge_prior",
    "map_to_spots",
    "match_metabolites",
    "normalize_msi",
    "pick_peaks",
    "spatial_graph",
]

_getattr, __dir__ = lazy_attributes(
    __name__,
    names={name: f"_{name}" for name in __all__} | {"alignment_report": "_align"},
)


def __getattr__(name: str) -> Any:
    return _getattr(name)

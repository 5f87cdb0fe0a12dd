"""How each section is aligned: the method, the model and the landmarks that the arguments of `pp.align` mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi.pp._alignment.earlier_unit import in_micrometres, known_unit
from stmsi.pp._alignment.landmark_input import is_file, landmark_pair
from stmsi.pp._alignment.section_fit import check_landmarks_place

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stmsi._core.registration.landmarks import TransformModel
    from stmsi.pp._alignment.landmark_input import Unit
    from stmsi.pp._alignment.section_geometry import Geometry

AlignMethod = Literal["landmarks", "given", "auto", "histology"]


def chosen_method(method: str | None, landmarks: Any, transformation: Any, via: Any) -> AlignMethod | None:
    """The method for all sections; `None`: landmarks where a section has some, otherwise none are needed."""
    if method is not None:
        check_choice(method, get_args(AlignMethod), "method")
    msg = ""
    if landmarks is not None and transformation is not None:
        msg = "Pass landmarks or transformation, not both."
    elif method == "given" and (transformation is None or via is not None):
        msg = 'method="given" takes transformation=, and neither landmarks= nor via=.'
    elif method == "landmarks" and transformation is not None:
        msg = 'method="landmarks" takes no transformation=; leave method out.'
    elif method in ("auto", "histology") and not (landmarks is None and transformation is None and via is None):
        msg = f'method="{method}" takes no landmarks=, transformation= or via=; leave method out to use them.'
    elif via is not None and landmarks is None:
        msg = "via= holds the landmarks of the second stage; pass landmarks= with those of the first."
    if msg:
        raise ValueError(msg)
    return "given" if transformation is not None else method  # type: ignore[return-value]


def automatic_model(model: TransformModel | None) -> Literal["similarity", "affine"]:
    if model is None:
        return "affine"
    if model in ("similarity", "affine"):
        return model
    hint = ", and refine='intensity' goes on from there" if model in ("thin_plate", "projective") else ""
    msg = f"model={model!r} needs landmarks; without them an alignment is a 'similarity' or 'affine'{hint}."
    raise ValueError(msg)


def chosen_sections(sample: str | Sequence[str] | None, given: Any, available: list[str]) -> list[str]:
    if isinstance(sample, str):
        sample = [sample]
    if sample is None:
        if isinstance(given, Mapping):
            sample = list(given)
        elif given is not None and len(available) > 1:
            msg = f"There are several sections ({listing(available)}): pass a mapping from section, or sample=."
            raise ValueError(msg)
        else:
            sample = available
    unknown = [s for s in sample if s not in available or (isinstance(given, Mapping) and s not in given)]
    if unknown:
        known = [s for s in available if not isinstance(given, Mapping) or s in given]
        msg = f"Sections {listing(unknown)} have no MSI or nothing to align them with; known: {listing(known)}."
        raise KeyError(msg)
    return list(sample)


def landmark_legs(
    sdata: SpatialData,
    name: str,
    first: Any,
    second: Any,
    units: tuple[Unit, Unit],
    geometry: Geometry,
    um_per_unit: float | None,
    max_scale: float,
) -> tuple[Any, ...]:
    """Landmarks of each stage as arrays; `um_per_unit` is the unit that the spots had before, if another."""
    msi_frame, st_frame = Key.msi_frame(name), Key.st_frame(name)
    units = units[0], known_unit(units[1], um_per_unit)
    if second is None:
        pair = landmark_pair(sdata, name, first, frames=(msi_frame, st_frame), units=units)
        if um_per_unit is not None and units[1] == 1 and _has_no_frame(first):
            pair = pair[0], in_micrometres(*pair, geometry, um_per_unit, max_scale, name)
        check_landmarks_place(pair, geometry)
        return (pair,)
    what = "(in the MSI frame, in its histology)", "(in the MSI histology, in the ST frame)"
    start = landmark_pair(sdata, name, first, frames=(msi_frame, None), units=(units[0], 1.0), what=what[0])
    end = landmark_pair(sdata, name, second, frames=(None, st_frame), units=(1.0, units[1]), what=what[1])
    if um_per_unit is not None and units[1] == 1 and _has_no_frame(second):
        end = end[0], in_micrometres(None, end[1], geometry, um_per_unit, max_scale, name)
    check_landmarks_place((start[0], end[1]), geometry)
    return start, end


def _has_no_frame(landmarks: Any) -> bool:
    """Whether landmarks of the ST side are plain numbers; elements know where they lie."""
    return landmarks is not None and (is_file(landmarks) or not isinstance(landmarks[1], str))

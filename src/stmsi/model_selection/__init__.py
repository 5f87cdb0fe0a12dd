"""Splits that keep correlated spots on one side: scikit-learn splitters that read their groups from AnnData."""

from stmsi.model_selection._check_leakage import check_leakage
from stmsi.model_selection._leave_out import LeaveOnePatientOut, LeaveOneSampleOut
from stmsi.model_selection._spatial_blocks import SpatialBlockKFold

__all__ = ["LeaveOnePatientOut", "LeaveOneSampleOut", "SpatialBlockKFold", "check_leakage"]

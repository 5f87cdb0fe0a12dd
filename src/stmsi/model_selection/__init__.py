"""Splits that keep what is correlated on one side: scikit-learn splitters that read their groups from AnnData."""

from stmsi.model_selection._leave_out import LeaveOnePatientOut, LeaveOneSampleOut

__all__ = ["LeaveOnePatientOut", "LeaveOneSampleOut"]

"""A cohort: its configuration, what each step was made from, and how steps are carried out, without knowing what they do."""

from stmsi._cohort.config import Cohort, Option, Section, check_files, read_cohort
from stmsi._cohort.records import Record, Records, files_of
from stmsi._cohort.steps import Outcome, Step, carry_out

__all__ = [
    "Cohort",
    "Option",
    "Outcome",
    "Record",
    "Records",
    "Section",
    "Step",
    "carry_out",
    "check_files",
    "files_of",
    "read_cohort",
]

"""Reports: one HTML file with scores, figures and what is needed to make them again."""

from stmsi._report._cohort import Found, cohort_report, flags, section_report
from stmsi._report._demo_and_evaluation import demo_report, evaluation_report, is_simulated
from stmsi._report._page import Figure, Page, versions
from stmsi._report._program import program
from stmsi._report._table import Table

__all__ = [
    "Figure",
    "Found",
    "Page",
    "Table",
    "cohort_report",
    "demo_report",
    "evaluation_report",
    "flags",
    "is_simulated",
    "program",
    "section_report",
    "versions",
]

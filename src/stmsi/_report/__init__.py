"""Reports: one HTML file with scores, figures and what is needed to make them again."""

from stmsi._report._cohort import Found, cohort_report, section_report
from stmsi._report._demo_and_evaluation import demo_report, evaluation_report, is_simulated
from stmsi._report._page import Figure, Page, Table, versions

__all__ = [
    "Figure",
    "Found",
    "Page",
    "Table",
    "cohort_report",
    "demo_report",
    "evaluation_report",
    "is_simulated",
    "section_report",
    "versions",
]

"""Reports: one HTML file with scores, figures and what is needed to make them again."""

from stmsi._report._demo_and_evaluation import demo_report, evaluation_report
from stmsi._report._page import Figure, Page, Table, versions

__all__ = ["Figure", "Page", "Table", "demo_report", "evaluation_report", "versions"]

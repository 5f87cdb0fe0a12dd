"""Reports: one HTML file with scores, figures and what is needed to make them again."""

from stmsi._report._page import Figure, Page, Table, versions
from stmsi._report._pages import demo_report, evaluation_report

__all__ = ["Figure", "Page", "Table", "demo_report", "evaluation_report", "versions"]

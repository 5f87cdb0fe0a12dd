"""Reports: one HTML file with scores, figures and what is needed to make them again."""

from typing import TYPE_CHECKING, Any

from stmsi._lazy import lazy_attributes

if TYPE_CHECKING:
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

# the command line asks for the name of the program alone, and its help must not wait for pandas
_getattr, __dir__ = lazy_attributes(
    __name__,
    names={
        **dict.fromkeys(("Found", "cohort_report", "flags", "section_report"), "_cohort"),
        **dict.fromkeys(("demo_report", "evaluation_report", "is_simulated"), "_demo_and_evaluation"),
        **dict.fromkeys(("Figure", "Page", "versions"), "_page"),
        "program": "_program",
        "Table": "_table",
    },
)


def __getattr__(name: str) -> Any:  # an explicit function, so that type checkers see a module attribute hook
    return _getattr(name)

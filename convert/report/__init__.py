"""Reports of conversions and comparisons: one page to read, in HTML, Markdown or JSON."""

from convert.report.page import SUFFIXES, check_report, write_report
from convert.report.weights import Histogram, TensorSummary, Weights, summarise

__all__ = [
    "SUFFIXES",
    "Histogram",
    "TensorSummary",
    "Weights",
    "check_report",
    "summarise",
    "write_report",
]

"""Reports of conversions and comparisons: one page to read, in HTML, Markdown or JSON."""

from convert.report.page import SUFFIXES, check_report, write_report
from convert.report.section import Histogram, Section, TensorSummary, Weights, summarise
from convert.report.text import printable

__all__ = [
    "SUFFIXES",
    "Histogram",
    "Section",
    "TensorSummary",
    "Weights",
    "check_report",
    "printable",
    "summarise",
    "write_report",
]

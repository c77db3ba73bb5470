"""Reports of conversions and comparisons: one page to read, in HTML, Markdown or JSON."""

from convert.report.page import SUFFIXES, check_report, write_report
from convert.report.weights import summarise

__all__ = ["SUFFIXES", "check_report", "summarise", "write_report"]

"""What all runs below some folders found: a page, its pictures, its tables."""

from holdfast.experiments.report.write import Report, report, write_report

__all__ = ["Report", "report", "write_report"]

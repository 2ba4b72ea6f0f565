"""What all runs below some folders found: a page, its pictures, its tables."""

from holdfast.lab.report.write import WrittenReport, report, write_report

__all__ = ["WrittenReport", "report", "write_report"]

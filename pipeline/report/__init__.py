"""The HTML report of an evaluation: one page that can be forwarded as it is."""

from pipeline.report.page import write_report

__all__ = ["write_report"]

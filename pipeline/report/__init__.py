"""The HTML report of an evaluation, and the page of a label store: to be forwarded as they are."""

from pipeline.report.page import write_report
from pipeline.report.store_page import write_store_page

__all__ = ["write_report", "write_store_page"]

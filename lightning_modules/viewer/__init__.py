"""`aggregate-po view`: runs, their completions and the weights of their tokens on one HTML page."""

from lightning_modules.viewer.heat_map import heat_map_svg
from lightning_modules.viewer.page import page_html, write_page
from lightning_modules.viewer.report import Completion, Metric, Plot, Quantity, Report, Run, Table, TokenNumbers
from lightning_modules.viewer.view import run_report

__all__ = [
    "Completion",
    "Metric",
    "Plot",
    "Quantity",
    "Report",
    "Run",
    "Table",
    "TokenNumbers",
    "heat_map_svg",
    "page_html",
    "run_report",
    "write_page",
]

"""Folder of a comparison: tables as CSV, plots as SVG and PDF with their CSV, and a page."""

from __future__ import annotations

from pathlib import Path

from lightning_modules.atomic import replacing
from lightning_modules.comparison.compare import RECORDED, Comparison
from lightning_modules.comparison.report import comparison_report
from lightning_modules.comparison.tables import write_csv
from lightning_modules.viewer import write_page


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `objectives.csv`, the plots with a CSV file each, and `report.html`.

    Args:
        comparison: the comparison.
        folder: folder to write, atomically.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as scratch:
        scratch.mkdir()
        write_csv(comparison.objectives, scratch / "objectives.csv")
        write_plots(comparison, scratch)
        write_page(comparison_report(comparison, scratch), scratch / "report.html")


def write_plots(comparison: Comparison, folder: Path) -> None:
    """Write the plots of a comparison to a folder."""
    from lightning_modules.comparison import plots  # loads matplotlib

    named = [row for row in comparison.objectives if row["objective"] != RECORDED]
    made = {
        "weight_by_log_ratio": (plots.weight_plot, comparison.by_log_ratio),
        "gradient_by_position": (plots.position_plot, comparison.by_position),
        "gradient_by_log_ratio": (plots.quantile_plot, comparison.by_quantile),
        "measures_by_update": (plots.update_plot, named),
        "clipped_overlap": (plots.overlap_plot, comparison.overlap),
        "parameter_gradients": (plots.gradient_plot, comparison.gradients),
        "gradient_cosines": (plots.cosine_plot, comparison.cosines),
    }
    for name, (plot, rows) in made.items():
        if rows:
            plots.save_plot(plot(rows), rows, folder, name)

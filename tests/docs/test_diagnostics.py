"""The program of the page on diagnostics computes the columns of its table."""

import contextlib
import csv
import io

from tests.docs.test_snippets import ROOT, blocks, folder

__all__ = ["folder"]

PAGE = ROOT / "docs" / "diagnostics.md"


def table_metrics():
    table = PAGE.read_text(encoding="utf-8").split("| metric | update 1 |")[1].split("\n\n")[0]
    return [line.split("`")[1] for line in table.splitlines() if "`" in line]


def test_the_program_averages_the_metrics_of_the_table_by_update_and_skips_empty_cells(folder):
    metrics = table_metrics()
    assert metrics
    (folder / "runs" / "diagnosed").mkdir(parents=True)
    with (folder / "runs" / "diagnosed" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *metrics])
        writer.writeheader()
        writer.writerow({"step": 0})  # the evaluation before training
        for step in range(1, 301):
            value = "" if step == 60 else step % 4 if 13 <= step <= 60 else 1000
            writer.writerow({"step": step, **dict.fromkeys(metrics, value)})
    (program,) = (code for _, _, code, _ in blocks(PAGE, "py"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    assert printed.getvalue().splitlines() == [f"{metric} 1.000 2.000 3.000 0.000" for metric in metrics]

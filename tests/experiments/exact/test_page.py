"""The numbers of the page about exact gradients are those of the data next to its plots."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "exact.md").read_text(encoding="utf-8")
COLUMNS = ["product of all", "product of the prefix", "minimum of the prefix", "geometric mean of the prefix", "token"]


def data(name):
    with (ROOT / "docs" / "assets" / "figures" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def value(name, measure, **where):
    (row,) = (row for row in data(name) if all(row[column] == text for column, text in where.items()))
    return float(row[measure])


def table(first):
    """The rows of the table whose header begins with this text, without the header; a minus is a hyphen."""
    lines = PAGE.replace("\N{MINUS SIGN}", "-").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip("` ") for cell in line.strip("|").split("|")])
    return rows


def rounded(number):
    return f"{number:.2f}" if number else "0"


def test_cosines_off_policy():
    places = [(direction, distance) for direction in ("random", "gradient") for distance in ("0.1", "0.2", "0.4")]
    rows = table("cosine of mean")
    assert len(rows) == 9
    for name, *cells in rows:
        found = [value(f"bias_variance_{one}", "cosine", objective=name, distance=two) for one, two in places]
        assert cells == [rounded(number) for number in found]


def test_noise_against_length_and_group_size():
    for name, *cells in table("noise"):
        lengths = [value("completion_length", "noise", objective=name, length=one) for one in ("2", "4", "8")]
        sizes = [value("group_size", "noise", objective=name, group_size=one) for one in ("2", "8", "32")]
        assert cells == [rounded(number) for number in lengths + sizes]


def test_bias_on_policy():
    rows = table("bias, `python")
    assert [row[0] for row in rows] == list(dict.fromkeys(row["pair"] for row in data("on_policy_bias")))
    for name, *cells in rows:
        found = [value("on_policy_bias", "bias", pair=name, group_size=size) for size in ("2", "4", "8")]
        assert cells == [rounded(number) for number in found]


def test_bias_of_ratios():
    kinds = list(dict.fromkeys(row["ratio"] for row in data("ratio_bias")))
    assert kinds[:5] == COLUMNS
    for advantage, distance, *cells in table("advantage | distance"):
        for kind, cell in zip(kinds, cells, strict=True):
            rows = [row for row in data("ratio_bias") if row["ratio"] == kind and row["advantage"] == advantage]
            found = [rounded(float(row["bias"])) for row in rows if row["distance"] == distance]
            assert cell == (found[0] if found else "")


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        (r"smallest at \$p = 0\$ \((\S+);", "exponent", {"exponent": "0"}),
        (r"(\S+) at \$p = 1\$", "exponent", {"exponent": "1"}),
        (r"(\S+) at \$p = -1\$", "exponent", {"exponent": "-1"}),
        (r"(\S+) at the target 0.5", "ess_target", {"target": "0.5"}),
        (r"(\S+) at the target 1 ", "ess_target", {"target": "1"}),
    ],
)
def test_numbers_of_the_text(text, name, where):
    objective = f"experiments.exact.families.{'power' if name == 'exponent' else 'matched'}"
    assert re.search(text, PAGE)[1] == f"{value(name, 'bias', objective=objective, **where):.3f}"

"""The plots of the classical experiments: each is made by its command, shortened here, and shown on the page."""

import csv
import math
import re
from pathlib import Path

import pytest
import torch

from experiments.classical import __main__ as classical
from experiments.classical.shared.curves import band, curve_of, moments, point, points, slope

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "assets" / "classical"
PAGE = (ROOT / "docs" / "classical.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", classical.names())
def test_each_experiment_makes_its_plot_and_its_table_again(name, tmp_path, capsys):
    for folder in ("first", "second"):
        classical.main([name, "--short", "--output", str(tmp_path / folder)])
    assert {path.name for path in (tmp_path / "first").iterdir()} == {f"{name}.csv", f"{name}.svg"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    with (tmp_path / "first" / f"{name}.csv").open(newline="") as file:
        assert all(None not in row.values() for row in csv.DictReader(file))
    with (FOLDER / f"{name}.csv").open(newline="") as committed, (tmp_path / "first" / f"{name}.csv").open() as short:
        assert next(csv.reader(committed)) == next(csv.reader(short))


def test_the_page_shows_every_plot_and_names_every_command():
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name}.{suffix}" for name in classical.names() for suffix in ("csv", "svg")}
    for name in classical.names():
        assert f"](assets/classical/{name}.svg)" in PAGE
        assert f"python -m experiments.classical {name}`" in PAGE
    assert "make classical" in PAGE
    assert len(re.findall(r"^## ", PAGE, re.MULTILINE)) >= len(classical.names())
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.svg")}
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}


def test_experiments_are_found_by_their_files_and_unknown_ones_refused(tmp_path, capsys, monkeypatch):
    assert "committal" in classical.names()
    assert not {"shared", "__main__"} & set(classical.names())
    made = []
    monkeypatch.setattr(classical, "make", lambda name, *rest: made.append((name, *rest)))
    classical.main([])
    assert made == [(name, FOLDER, ["svg"], False) for name in classical.names()]
    with pytest.raises(SystemExit):
        classical.main(["comittal", "--output", str(tmp_path)])
    assert "`names` has comittal; pass any of " in capsys.readouterr().err


def test_curves_of_a_table():
    table = [*points("a", "one", [1, 2], [3, 4]), *band("a", "two", [1], torch.arange(11.0).unsqueeze(0))]
    assert curve_of(table, "a", "one")["y"] == [3, 4]
    assert (table[2]["y"], table[2]["low"], table[2]["high"]) == (5, 1, 9)
    assert math.isnan(point("a", "one", 1, 2)["low"])


def test_slopes_of_power_functions():
    assert slope([1, 10, 100], [5, 0.5, 0.05]) == pytest.approx(-1)
    assert moments(100, 3) == [1, 10, 100]
    assert moments(3) == [1, 2, 3]

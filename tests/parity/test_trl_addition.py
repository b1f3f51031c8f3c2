"""The experiment that trains the default task in TRL's trainer and under Lightning, shortened."""

import pytest

from tests.peers import require_peers

require_peers("trl")

from experiments.tables import read_rows
from experiments.trl_addition import SIDES, main

pytestmark = pytest.mark.slow


def test_both_sides_learn(tmp_path, capsys):
    command = ["--seeds", "3", "--steps", "12", "--output", str(tmp_path)]
    main(command)
    rows = {row["side"]: row for row in read_rows(tmp_path / "accuracy.csv")}
    assert set(rows) == {"start", *SIDES}
    before = float(rows["start"]["greedy"])
    assert before < 0.1
    for side in SIDES:
        assert float(rows[side]["greedy"]) > before + 0.3
        assert float(rows[side]["sampled"]) > float(rows["start"]["sampled"])
    said = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in said.splitlines()[-3:]] == ["| start", "| Lightning", "| TRL"]
    main(command)  # goes on where it stopped, so it has nothing left to do
    assert len(read_rows(tmp_path / "accuracy.csv")) == 3
    path = tmp_path / "accuracy.csv"
    path.write_text(path.read_text().replace(rows["TRL"]["start"], "another"))  # as from another processor
    with pytest.raises(SystemExit):
        main(command)
    assert f"runs began from the model another; this machine makes {rows['TRL']['start']}" in capsys.readouterr().err

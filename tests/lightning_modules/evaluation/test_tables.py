"""Tables of results, and the differences of two evaluations."""

import pytest

from lightning_modules.evaluation import BenchmarkResult, Estimate, comparison_table, paired_difference, results_table
from lightning_modules.evaluation.tables import read_results, write_results


def result(name, scores, **others):
    metrics = {f"{kind}@2": Estimate(0.5, 0.25, 0.755) for kind in ("avg", "pass", "maj")}
    metrics["avg@2 over samples"] = Estimate(0.5, 0.4, 0.6)
    lengths = {"truncated": {"sampled": 0.125}, "mean_length": {"sampled": 12.4}}
    return BenchmarkResult(
        name, 2, metrics, **lengths, failed={"time": 3, "exit": 1}, scores={"sampled": scores, **others}
    )


def test_a_row_has_percentages_with_intervals():
    *_, row = results_table([result("mine", {"a": [0, 1], "b": [1, 0]})]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    estimate = "50.0 [25.0, 75.5]"
    estimates = ["", estimate, "50.0 [40.0, 60.0]", estimate, estimate]  # no greedy one
    assert cells == ["mine", "2", "2", *estimates, "12.5%", "12", "1 exit, 3 time"]


def test_all_lines_of_a_table_have_the_same_width():
    lines = results_table([result("mine", {"a": [0, 1]}), result("a longer name", {"a": [0, 1]})]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")


def test_results_are_read_as_they_were_written(tmp_path):
    results = [result("mine", {"a": [0.0, 1.0]})]
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    assert (tmp_path / "results.md").read_text() == results_table(results) + "\n"


@pytest.fixture
def two(tmp_path):
    def write(*results):
        for name, some in zip("ab", results, strict=True):
            (tmp_path / name).mkdir()
            write_results(some, tmp_path / name)
        return str(tmp_path / "a"), str(tmp_path / "b")

    return write


def test_the_difference_is_paired_by_problem(two):
    before, after = {"a": [0, 1], "b": [0, 0], "c": [1, 1]}, {"c": [1, 1], "b": [1, 0], "a": [1, 1]}
    folders = two([result("mine", before), result("alone", before)], [result("mine", after)])
    *_, row = comparison_table(*folders).splitlines()
    expected = paired_difference([[0, 1], [0, 0], [1, 1]], [[1, 1], [1, 0], [1, 1]])
    interval = f"[{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("mine", "sampled", "3", "50.0", "83.3"),
        f"+33.3 {interval}",
    ]


def test_problems_of_one_evaluation_alone_are_left_out_and_named(two):
    folders = two([result("mine", {"a": [0], "b": [1]}, greedy={"a": [1]})], [result("mine", {"b": [0], "c": [1]})])
    table, _, note = comparison_table(*folders).rpartition("\n\n")
    assert table.splitlines()[-1].split("|")[3].strip() == "1"
    assert note == "mine: 2 problems are in one evaluation only, and left out."


def test_what_cannot_be_compared_is_refused(two, tmp_path):
    folders = two([result("mine", {"a": [0]})], [result("other", {"a": [0]})])
    with pytest.raises(ValueError, match=r"has mine, and .* has other, which share no problem; pass two evaluations"):
        comparison_table(*folders)
    with pytest.raises(FileNotFoundError, match=r"has no results\.json; pass the output folder of a finished"):
        comparison_table(folders[0], tmp_path)

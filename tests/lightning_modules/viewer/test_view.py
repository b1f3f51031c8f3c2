"""Reports of run folders: what they hold, what is left out, and which folders are refused."""

import math
import time
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from lightning_modules import read_completions
from lightning_modules.parquet_files import write_rows
from lightning_modules.token_rows import read_token_rows
from lightning_modules.viewer.run_facts import cohort_of, described_value, differing_options, facts_of
from lightning_modules.viewer.selection import spread
from lightning_modules.viewer.view import run_report
from tests.lightning_modules.viewer.run_folders import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_every_kept_completion_is_shown_with_its_row(run):
    completions, rows = run_report([run]).completions, read_completions(run)
    assert len(completions) == len(rows) == 24
    for one, row in zip(completions, rows, strict=True):
        assert (one.step, one.group, one.sample) == (row["step"], row["group"], row["sample"])
        assert (one.prompt, one.text) == (row["prompt"], row["completion"])
        assert (one.reward, one.advantage, one.length) == (row["reward"], row["advantage"], row["length"])
        assert one.facts["rewards/boxed_answer"] == f"{row['rewards/boxed_answer']:g}"
        assert one.facts["answer"] == str(row["group"] + 40 + row["step"])


def test_token_numbers_join_the_completions_of_their_rollout(run):
    completions = {(one.step, one.group, one.sample): one for one in run_report([run]).completions}
    rows = read_token_rows(run)
    assert len(rows) == 24
    for row in rows:
        (numbers,) = completions[row["step"] - 1, row["group"], row["sample"]].tokens
        assert (numbers.step, list(numbers.texts), list(numbers.ids)) == (row["step"], row["tokens"], row["token_ids"])
        log_ratios = [new - old for new, old in zip(row["log_probs"], row["old_log_probs"], strict=True)]
        shown = {"weight": row["weights"], "concentration": row["concentration"], "log_ratio": log_ratios}
        for name, expected in shown.items():
            assert list(numbers.values[name])[:-1] == pytest.approx(expected[:-1], rel=1e-6)
            assert math.isnan(numbers.values[name][-1])  # not trained
        assert list(numbers.marks["clipped"]) == row["clipped"]
        assert numbers.values["clip"][2] == math.copysign(1, row["advantage"])
        assert numbers.facts == {"exponent p": "0.5"}


def test_token_rows_without_completions_are_shown_by_themselves(run):
    for path in (run / "completions").iterdir():
        path.unlink()
    completions = run_report([run]).completions
    assert [one.step for one in completions] == [2] * 8 + [6] * 8 + [10] * 8
    assert all(one.tokens and one.length == len(one.tokens[0].texts) for one in completions)


def test_advantages_per_token_are_shown_and_averaged(run):
    path = run / "tokens" / "step-000002.parquet"
    rows = read_token_rows(run, 2)
    write_rows([{**row, "advantage": [float(n) for n in range(len(row["tokens"]))]} for row in rows], path)
    (run / "completions" / "step-000001.parquet").unlink()
    (one, *_) = run_report([run]).completions
    count = len(one.tokens[0].texts)
    assert one.advantage == (count - 1) / 2
    assert list(one.tokens[0].values["advantage"])[:-1] == list(range(count - 1))


def test_the_facts_of_a_run_come_from_its_configuration(run):
    (one,) = run_report([run]).runs
    assert one.facts == {
        "objective": "pmpo(log_clip=0.3)",
        "model": "AdditionWarmStart(steps=700)",
        "data": "AdditionProblems(size=64)",
        "reward": "boxed_answer",
        "seed": "0",
        "learning rate": "0.0001",
        "updates per rollout": "4",
        "prompts per rollout": "2",
        "group size": "4",
        "optimizer steps": "40",
    }


def test_the_newest_configuration_counts(run):
    text = (run / "config.yaml").read_text().replace("log_clip: 0.3", "log_clip: 0.2")
    (run / "config-from-step-20.yaml").write_text(text)
    assert run_report([run]).runs[0].facts["objective"] == "pmpo(log_clip=0.2)"


def test_options_whose_names_begin_like_a_fact_or_the_seed_are_compared():
    first, second = ({"data": {"reward": "exact", "reward_weights": weights}} for weights in ([1.0], [2.0]))
    assert differing_options([first, second]) == [{"data.reward_weights": "[1]"}, {"data.reward_weights": "[2]"}]
    assert cohort_of({"data": {"seed": 0, "seeds": 1}}) != cohort_of({"data": {"seed": 0, "seeds": 2}})
    assert cohort_of({"data": {"seed": 0}}) == cohort_of({"data": {"seed": 1}})


def test_class_paths_are_shortened_and_other_texts_with_dots_are_not():
    config = {
        "model": {"objective": {"class_path": "mine.Mean", "init_args": {"rule": "aggregate_po.exponents.target"}}},
        "data": {"dataset": "train.jsonl", "reward": "mine.rewards.exact"},
    }
    assert facts_of(config) == {"objective": "Mean(rule=target)", "data": "train.jsonl", "reward": "mine.rewards.exact"}
    assert described_value(["a.txt", "b.txt"]) == "[a.txt, b.txt]"


@pytest.mark.parametrize(
    ("option", "values", "shown"),
    [
        ("report.template", ("qwen.txt", "plain.txt"), ("qwen.txt", "plain.txt")),
        ("data.temperature", (1.0, 1.0000001), ("1.0", "1.0000001")),
        ("data.stop", (None, []), ("None", "[]")),
        ("data.size", (1, "1"), ("1", '"1"')),
        ("model.learning_rate", (1e-6, 1.0000001e-6), ("1e-06", "1.0000001e-06")),
    ],
)
def test_values_that_differ_are_told_apart(option, values, shown):
    section, name = option.split(".")
    configs = [{section: {name: value}} for value in values]
    assert len({cohort_of(config) for config in configs}) == 2
    assert differing_options(configs) == [{option: text} for text in shown]


def test_an_option_that_one_run_lacks_is_not_in_its_facts():
    assert differing_options([{"data": {"size": None}}, {"data": {"order": 1}}]) == [
        {"data.size": "None"},
        {"data.order": "1"},
    ]


def test_what_a_fact_does_not_tell_apart_has_a_column():
    objectives = [
        {"class_path": path, "init_args": {"penalties": penalties}}
        for path, penalties in (("first.Mean", None), ("second.Mean", []))
    ]
    configs = [{"model": {"objective": objective}, "data": {"reward": "exact"}} for objective in objectives]
    assert [facts_of(config)["objective"] for config in configs] == ["Mean", "Mean"]
    assert differing_options(configs) == [
        {"model.objective.class_path": "first.Mean", "model.objective.init_args.penalties": "None"},
        {"model.objective.class_path": "second.Mean", "model.objective.init_args.penalties": "[]"},
    ]


def test_runs_that_differ_in_their_seed_only_are_one_cohort(tmp_path):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in range(2)]
    runs.append(make_run(tmp_path / "hot", 0, data__temperature=0.7))
    first, second, hot = run_report(runs).runs
    assert first.cohort == second.cohort != hot.cohort
    assert (first.seed, second.seed) == ("0", "1")
    assert (first.facts["data.temperature"], hot.facts["data.temperature"]) == ("1", "0.7")


def test_options_beyond_four_that_differ_are_counted(tmp_path):
    options = {f"data__option_{number}": number for number in range(6)}
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", **options)]
    facts = run_report(runs).runs[1].facts
    assert [label for label in facts if label.startswith("data.option")] == [f"data.option_{n}" for n in range(4)]
    assert facts["and 2 more options"] == "differ"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / name / "run", steps=2, rollouts=()) for name in "ab"]
    assert [one.name for one in run_report(runs).runs] == ["a/run", "b/run"]


def test_metrics_are_those_of_the_file(run):
    (one,) = run_report([run]).runs
    assert list(one.steps) == list(range(41))
    assert math.isnan(one.metrics["reward"][0])
    held_out = [
        step for step, value in zip(one.steps, one.metrics["val/pass@1_sampled"], strict=True) if value == value
    ]
    assert held_out == [0, 10, 20, 30, 40]


def test_a_half_line_at_the_end_of_the_metrics_is_left_out(run):
    with (run / "metrics.csv").open("a") as file:
        file.write("41,0.5")
    assert list(run_report([run]).runs[0].steps) == list(range(41))


@pytest.mark.parametrize("limit", [16, 10, 8])
def test_a_limit_keeps_whole_groups_over_all_steps_and_is_said(run, limit):
    report = run_report([run], max_completions=limit)
    groups = {(one.step, one.group) for one in report.completions}
    assert len(report.completions) == 4 * len(groups) <= limit
    assert len({step for step, _ in groups}) == min(3, limit // 4)
    assert f"{len(report.completions)} of 24 completions are shown" in report.notes[0]


def test_completions_with_token_numbers_come_first(run):
    for step in (2, 6):
        (run / "tokens" / f"step-{step:06}.parquet").unlink()
    report = run_report([run], max_completions=8)
    assert [(one.step, bool(one.tokens)) for one in report.completions] == [(9, True)] * 8


def test_the_rest_of_a_limit_goes_to_the_other_completions(run):
    for step in (2, 6):
        (run / "tokens" / f"step-{step:06}.parquet").unlink()
    completions = run_report([run], max_completions=16).completions
    assert [one.step for one in completions if one.tokens] == [9] * 8
    assert [one.step for one in completions if not one.tokens] == [1] * 4 + [5] * 4


def test_what_is_kept_is_spread_over_all_from_the_first_to_the_last():
    assert spread(range(10), 4, lambda item: 1) == [0, 3, 6, 9]
    assert spread(range(10), 9, lambda item: 2) == [0, 3, 6, 9]
    assert spread(range(10), 9, lambda item: 1) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert spread(range(10), 1, lambda item: 1) == [9]
    assert spread(range(10), 9, lambda item: 10) == []
    assert spread(range(10), 20, lambda item: 1) == list(range(10))


def test_what_is_too_large_leaves_the_limit_to_the_others():
    assert spread([5, 1, 9, 1, 1], 4, lambda item: item) == [1, 1, 1]
    for limit in range(60):
        kept = spread([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], limit, lambda item: item)
        assert sum(kept) <= limit
        assert kept or not limit


def test_many_groups_are_chosen_in_linear_time():
    begin = time.perf_counter()
    assert len(spread(range(64_000), 5000, lambda item: 1)) == 5000
    assert time.perf_counter() - begin < 5


def test_a_limit_that_is_smaller_than_the_files_is_spent_from_the_first_step_to_the_last(tmp_path):
    """A share of each file would be less than a group."""
    run = make_run(tmp_path / "run", rollouts=range(1, 80, 2), groups=1)
    completions = run_report([run], max_completions=16).completions
    assert [one.step for one in completions] == [step for step in (1, 27, 53, 79) for _ in range(4)]
    assert all(one.tokens for one in completions)
    completions = run_report([run], max_tokens=1500).completions
    steps = sorted({one.step for one in completions if one.tokens})
    assert (steps[0], steps[-1], len(completions)) == (1, 79, 160)
    assert len(steps) > 5
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 10


def test_a_limit_is_spent_over_all_runs_and_counted_in_all_of_them(tmp_path):
    runs = [make_run(tmp_path / f"run{number}", number, rollouts=[1], groups=1) for number in range(3)]
    for limit, shown in ((8, [0, 2]), (4, [2]), (2, [])):
        report = run_report(runs, max_completions=limit)
        assert [one.run for one in report.completions] == [run for run in shown for _ in range(4)]
        assert f"{4 * len(shown)} of 12 completions are shown" in report.notes[0]
        assert f"Token numbers of {4 * len(shown)} of 12 completions" in report.notes[1]


def test_a_group_of_which_some_completions_have_token_numbers_is_shown_whole(run):
    for step in (2, 6, 10):
        path = run / "tokens" / f"step-{step:06}.parquet"
        write_rows([row for row in read_token_rows(run, step) if row["sample"] != 2], path)
    completions = run_report([run], max_completions=8).completions
    assert [(one.step, one.group, one.sample) for one in completions] == [
        (step, group, sample) for step, group in ((1, 0), (9, 1)) for sample in range(4)
    ]


def test_a_limit_is_shared_among_runs(tmp_path):
    runs = [make_run(tmp_path / f"run{number}", number) for number in range(2)]
    report = run_report(runs, max_completions=24)
    assert [sum(one.run == number for one in report.completions) for number in range(2)] == [12, 12]


def test_a_limit_of_tokens_is_said(run):
    report = run_report([run], max_tokens=400)
    with_tokens = [one for one in report.completions if one.tokens]
    assert 0 < len(with_tokens) < 24 == len(report.completions)
    assert sum(len(one.tokens[0].texts) for one in with_tokens) <= 400
    assert f"Token numbers of {len(with_tokens)} of 24" in report.notes[0]


def test_without_completions_no_parquet_file_is_read(run):
    (run / "completions" / "step-000001.parquet").write_bytes(b"damaged")
    assert run_report([run], max_completions=0).completions == []


def test_what_a_run_lacks_is_said_with_the_remedy(tmp_path):
    report = run_report([make_run(tmp_path / "run", rollouts=())])
    assert any("lightning_modules.CompletionsFile" in note for note in report.runs[0].notes)
    report = run_report([make_run(tmp_path / "other", tokens=False, steps=0)])
    assert any("lightning_modules.TokenWeightsFile" in note for note in report.runs[0].notes)
    assert any("no metrics.csv" in note for note in report.runs[0].notes)
    (tmp_path / "other" / "config.yaml").unlink()
    assert any("no config.yaml" in note for note in run_report([tmp_path / "other"]).runs[0].notes)


@pytest.mark.parametrize("kind", ["none", "empty", "file"])
def test_a_folder_without_a_run_is_refused(kind, tmp_path):
    path = tmp_path / "run"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    with pytest.raises(FileNotFoundError, match=r"`runs` has '.*run', which .*; pass the folder of a run"):
        run_report([path])


@pytest.mark.parametrize("folder", ["completions", "tokens"])
def test_a_damaged_file_is_named(folder, run):
    path = next((run / folder).iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path}: not a readable Parquet file"):
        run_report([run])


@pytest.mark.parametrize("folder", ["completions", "tokens"])
def test_a_file_of_other_columns_is_refused(folder, run):
    path = next((run / folder).iterdir())
    write_rows([{"step": 1, "group": 0}], path)
    with pytest.raises(ValueError, match=rf"{path} has no column '\w+'; .* move it away"):
        run_report([run])


def test_a_file_of_token_numbers_may_be_empty_and_needs_its_tokens(run):
    path = run / "tokens" / "step-000002.parquet"
    write_rows([], path)
    assert len([one for one in run_report([run]).completions if one.tokens]) == 16
    write_rows([{"group": 0, "sample": 0}], path)
    with pytest.raises(ValueError, match=rf"{path} has no column 'tokens'"):
        run_report([run])


def test_a_damaged_configuration_is_named(run):
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config.yaml: not readable YAML"):
        run_report([run])


def test_a_run_is_passed_once(run):
    with pytest.raises(ValueError, match=r"`runs` has '.*' twice; pass each run once"):
        run_report([run, Path(run) / "."])


@pytest.mark.parametrize("name", ["max_completions", "max_tokens"])
def test_a_negative_limit_is_refused(name, run):
    with pytest.raises(ValueError, match=name):
        run_report([run], **{name: -1})


def test_tokens_of_a_rollout_without_its_file_are_not_those_of_the_rollout_before(run):
    (run / "completions" / "step-000005.parquet").unlink()
    report = run_report([run])
    assert {(one.step, record.step) for one in report.completions for record in one.tokens} == {(1, 2), (6, 6), (9, 10)}
    assert all(len(record.texts) == one.length for one in report.completions for record in one.tokens)

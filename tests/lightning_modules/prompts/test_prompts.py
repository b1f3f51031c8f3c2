"""Files of prompts, and the order in which prompts come."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.prompts import JSONLines, Prompt, PromptOrder, PromptStream
from lightning_modules.rewards import boxed_answer
from lightning_modules.seeding import derived_seed

# Problem sets are not part of the repository; they may lie next to it.
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
PROBLEM_SETS = [pytest.param(path, id=path.stem) for path in sorted(DATA.glob("*.jsonl"))]
ABSENT = pytest.param(None, id="absent", marks=pytest.mark.skip(reason=f"no problem sets (*.jsonl) in {DATA}"))


def written(folder, text):
    path = folder / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_examples_keep_all_their_fields(tmp_path):
    path = written(tmp_path, '{"prompt": "1 + 1", "answer": 2, "level": ["a"]}\n{"prompt": "2 + 2", "answer": "4"}')
    examples = JSONLines(path)
    assert len(examples) == 2
    assert examples[0] == {"prompt": "1 + 1", "answer": 2, "level": ["a"]}
    assert [example["answer"] for example in examples] == [2, "4"]


def test_blank_lines_are_skipped(tmp_path):
    path = written(tmp_path, '\n{"prompt": "a"}\n\n   \n{"prompt": "b"}\n\n')
    assert [example["prompt"] for example in JSONLines(path)] == ["a", "b"]


def test_prompt_may_stand_in_another_field(tmp_path):
    path = written(tmp_path, '{"problem": "1 + 1", "answer": "2"}\n{"problem": "x", "prompt": "other"}\n')
    examples = JSONLines(path, prompt="problem")
    assert examples[0] == {"problem": "1 + 1", "answer": "2", "prompt": "1 + 1"}
    assert examples[1]["prompt"] == "x"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_only_newlines_end_a_line(tmp_path, separator):
    """JSON strings may hold the line separators of Unicode as they are."""
    prompt = f"before{separator}after"
    path = written(tmp_path, json.dumps({"prompt": prompt}, ensure_ascii=False) + '\n{"prompt": "b"}\n')
    assert [example["prompt"] for example in JSONLines(path)] == [prompt, "b"]


def test_lines_may_end_as_on_windows(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    assert [example["prompt"] for example in JSONLines(str(path))] == ["a", "b"]


def test_missing_file(tmp_path):
    path = str(tmp_path / "none.jsonl")
    with pytest.raises(
        FileNotFoundError, match=r"`path` is '.*none\.jsonl', which is not a file; pass a JSON Lines, Parquet, CSV"
    ):
        JSONLines(path)
    with pytest.raises(FileNotFoundError, match="which is a folder; pass a JSON Lines, Parquet, CSV or"):
        JSONLines(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r"line 3: not JSON \(.*\); write one JSON object per line"),
        ('{"question": "a", "answer": 1}', r"line 3: no field 'prompt', found \['answer', 'question'\]; name the"),
        ('{"prompt": 7}', r"line 3: the prompt is 7; write a text"),
        ('["prompt"]', r"line 3: found \['prompt'\], which is no JSON object; write one JSON object per line"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    path = written(tmp_path, f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"prompts\.jsonl, {message}"):
        JSONLines(path)


@pytest.mark.parametrize("path", PROBLEM_SETS or [ABSENT])
def test_problem_sets_load_and_their_answers_are_recognized(path):
    examples = JSONLines(str(path), prompt="problem")
    assert len(examples) == path.read_bytes().count(b"\n")
    for example in examples:
        assert example["prompt"] == example["problem"]
        answer = str(example["answer"])
        assert boxed_answer(rf"So the answer is $\boxed{{{answer}}}$.", example) == 1, answer
        assert boxed_answer(rf"So the answer is $\boxed{{{answer}1}}$.", example) == 0, answer


@given(st.integers(1, 40), st.integers(0, 2**40))
def test_each_pass_is_a_permutation(size, seed):
    order = PromptOrder(size, seed)
    for number in range(3):
        assert sorted(order.slice(number * size, (number + 1) * size)) == list(range(size))


def test_passes_and_seeds_differ():
    passes = [PromptOrder(50, seed).slice(50 * number, 50 * number + 50) for seed in (0, 1) for number in range(4)]
    assert len({tuple(indices) for indices in passes}) == 8
    assert list(range(50)) not in passes


@given(st.integers(1, 12), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_order_is_a_function_of_the_position(size, starts):
    """The order does not depend on slices, nor on where a run resumed."""
    expected = [index for position in range(80) for index in PromptOrder(size, 3).slice(position, position + 1)]
    order = PromptOrder(size, 3)
    for start in starts:
        assert order.slice(start, start + 15) == expected[start : start + 15]


def test_derived_seeds_spread():
    parts = [(seed, number, rank) for seed in range(12) for number in range(12) for rank in range(12)]
    seeds = {derived_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Neighbors have nothing in common: of 63 bits about half differ.
    distances = [(derived_seed(0, number) ^ derived_seed(0, number + 1)).bit_count() for number in range(200)]
    assert 28 < sum(distances) / len(distances) < 35


def test_derived_seeds_depend_on_the_order_and_number_of_parts():
    assert len({derived_seed(*parts) for parts in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (2,), ()]}) == 7
    assert derived_seed(1, 2) == derived_seed(1, 2)
    # The first round of splitmix64 from 0, from its published reference.
    assert derived_seed(0) == 0xE220A8397B1DCDAF % 2**63


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\n')
    assert [example["prompt"] for example in JSONLines(str(path))] == ["one"]


def test_an_empty_prompt_is_named_by_its_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": " "}\n')
    with pytest.raises(ValueError, match=r"line 2: the prompt is ' '; write a text"):
        JSONLines(str(path))


def test_an_order_without_some_examples_is_that_of_the_others():
    indices = [0, 3, 4, 9]
    order = PromptOrder(indices, seed=3)
    assert len(order) == 4
    assert order.slice(0, 13) == [indices[place] for place in PromptOrder(4, seed=3).slice(0, 13)]


def stream(rank=0, ranks=1, choose=None, size=7):
    """Prompts that are their own numbers; notes which were tokenized."""
    tokenized = []

    def prompt_of(example, location):
        assert location == f"`dataset`, prompt {example['prompt']} (of 0 to {size - 1})"
        tokenized.append(example["prompt"])
        return Prompt(example, (example["prompt"],))

    dataset = [{"prompt": number} for number in range(size)]
    return PromptStream(dataset, PromptOrder(size, seed=3), prompt_of, rank, ranks, choose), tokenized


def taken(prompts):
    return [prompt.example["prompt"] for prompt in prompts]


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 4))
def test_ranks_take_the_prompts_in_turn_whatever_they_ask_for(counts, ranks):
    order = PromptOrder(7, seed=3).slice(0, sum(counts) * ranks)
    for rank in range(ranks):
        prompts, tokenized = stream(rank, ranks)
        found = [prompt for count in counts for prompt in taken(prompts.take(count))]
        assert found == order[rank::ranks] == tokenized


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=10))
def test_looking_ahead_changes_nothing_and_tokenizes_nothing_twice(calls):
    prompts, tokenized = stream()
    found = []
    for ahead, count in calls:
        if ahead:
            assert taken(prompts.peek(count)) == PromptOrder(7, seed=3).slice(len(found), len(found) + count)
        else:
            found += taken(prompts.take(count))
    assert found == PromptOrder(7, seed=3).slice(0, len(found))
    assert tokenized == PromptOrder(7, seed=3).slice(0, len(tokenized))


def test_a_position_is_restored_also_with_another_number_of_ranks():
    prompts, _ = stream(rank=1, ranks=2)
    prompts.take(3)
    prompts.peek(2)
    other, _ = stream(rank=2, ranks=3)
    other.load_state_dict(prompts.state_dict())
    other.begin_at(0)  # without effect, since there is a position
    assert taken(other.take(2)) == PromptOrder(7, seed=3).slice(6, 12)[2::3]


def every_other(count, below):
    """The candidates at even positions, with a weight of 2."""
    chosen = []
    while len(chosen) < count:
        chosen += [replace(one, weight=2.0) for one in below(count - len(chosen)) if one.position % 2 == 0]
    return chosen


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=8), st.integers(1, 3))
def test_chosen_prompts_are_those_of_one_order_for_any_number_of_ranks(calls, ranks):
    expected = PromptOrder(7, seed=3).slice(0, 400)[::2]
    for rank in range(ranks):
        prompts, tokenized = stream(rank, ranks, every_other)
        found = []
        for ahead, count in calls:
            some = (prompts.peek if ahead else prompts.take)(count)
            start = len(found) * ranks
            assert taken(some) == expected[start : start + count * ranks][rank::ranks]
            assert [(prompt.index, prompt.weight) for prompt in some] == [(index, 2.0) for index in taken(some)]
            found += [] if ahead else taken(some)
        assert tokenized[: len(found)] == found
        if found:
            assert prompts.skipped == prompts.position - len(found) * ranks
            resumed, _ = stream(rank, ranks, every_other)
            resumed.load_state_dict(prompts.state_dict())
            assert taken(resumed.take(3)) == taken(prompts.take(3))


@pytest.mark.parametrize("number", [0, 3])
def test_a_choice_that_does_not_divide_among_the_ranks_is_an_error(number):
    prompts, _ = stream(0, 2, lambda count, below: below(number))
    with pytest.raises(ValueError, match=f"chose {number} prompts for 2 data-parallel ranks; return a positive mult"):
        prompts.take(2)

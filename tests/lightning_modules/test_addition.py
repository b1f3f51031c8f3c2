"""The addition task: its worked answers, its split, its tokenizer and the model made for it."""

import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.addition import AdditionProblems, AdditionWarmStart
from lightning_modules.addition.problems import guessed_answer, question, random_pairs, worked_answer
from lightning_modules.addition.warm_start import make_tokenizer

numbers = st.integers(10, 999)
COLUMN = re.compile(r"(\d)\+(\d)(?:\+(\d))?=(\d)(\d)")


def parsed(answer):
    """The columns of a worked answer, as numbers or None, and the boxed number."""
    *columns, box = answer.split(" ")
    found = [COLUMN.fullmatch(column).groups() for column in columns]
    number = re.fullmatch(r"\\boxed\{(\d+)\}", box).group(1)
    return [[None if digit is None else int(digit) for digit in column] for column in found], number


def what_the_columns_say(columns):
    digits = "".join(str(digit) for *_, digit in reversed(columns))
    return int(f"{columns[-1][3]}{digits}")


def test_worked_answer_in_full():
    assert worked_answer(472, 96) == r"2+6=08 7+9+0=16 4+0+1=05 \boxed{568}"
    assert worked_answer(99, 99) == r"9+9=18 9+9+1=19 \boxed{198}"


@given(numbers, numbers)
def test_worked_answer_is_right_in_every_column(first, second):
    columns, boxed = parsed(worked_answer(first, second))
    assert boxed == str(first + second)
    width = max(len(str(first)), len(str(second)))
    assert len(columns) == width
    carried = None
    for place, (left, right, carry_in, carry_out, digit) in enumerate(columns):
        assert left == first // 10**place % 10
        assert right == second // 10**place % 10
        assert carry_in == carried
        assert 10 * carry_out + digit == left + right + (carried or 0)
        carried = carry_out
    assert what_the_columns_say(columns) == first + second


@given(numbers, numbers, st.integers(0, 2**32))
def test_noisy_answer_boxes_what_its_columns_say(first, second, seed):
    columns, boxed = parsed(worked_answer(first, second, noise=0.5, rng=random.Random(seed)))
    assert boxed == str(what_the_columns_say(columns))


@given(numbers, numbers, st.integers(0, 2**32))
def test_full_noise_makes_every_digit_wrong_and_no_carry(first, second, seed):
    clean, _ = parsed(worked_answer(first, second))
    noisy, _ = parsed(worked_answer(first, second, noise=1.0, rng=random.Random(seed)))
    for right, wrong in zip(clean, noisy, strict=True):
        assert wrong[:4] == right[:4]
        assert wrong[4] != right[4]


def test_noise_is_a_share_of_the_columns():
    rng = random.Random(0)
    answers = [parsed(worked_answer(357, 246, noise=0.1, rng=rng))[0] for _ in range(2000)]
    wrong = sum(digit != right for columns in answers for (*_, digit), right in zip(columns, (3, 0, 6), strict=True))
    assert 0.08 < wrong / 6000 < 0.12


def test_guesses_stay_within_the_spread_and_reach_it():
    rng = random.Random(0)
    guesses = [guessed_answer(12, 30, 3, rng) for _ in range(200)]
    assert set(guesses) == {rf"\boxed{{{number}}}" for number in range(39, 46)}


def operands(problem):
    first, second = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?", problem["prompt"]).groups())
    return first, second


def test_problems_are_questions_with_their_answers():
    problems = AdditionProblems(300)
    assert len(problems) == 300
    assert question(472, 96) == "What is 472 + 96?"
    pairs = [operands(problem) for problem in problems]
    assert [problem["answer"] for problem in problems] == [str(first + second) for first, second in pairs]
    assert len(set(pairs)) == 300
    assert all(10 <= number <= 999 for pair in pairs for number in pair)
    two_digits = sum(number < 100 for pair in pairs for number in pair)
    assert 0.4 < two_digits / 600 < 0.6


def test_training_and_held_out_problems_share_no_pair_in_either_order():
    trained = {frozenset(operands(problem)) for seed in range(3) for problem in AdditionProblems(4096, seed=seed)}
    held_out = {frozenset(operands(problem)) for problem in AdditionProblems(1000, held_out=True)}
    assert not trained & held_out
    # Both orders of one pair are among the training problems, so the comparison means something.
    ordered = {operands(problem) for seed in range(3) for problem in AdditionProblems(4096, seed=seed)}
    assert any((second, first) in ordered for first, second in ordered if first != second)


def test_held_out_problems_are_like_the_others():
    """Every combination of last digits is among them, and about as many carries out of the last column."""
    last_digits = [
        {tuple(number % 10 for number in operands(problem)) for problem in problems}
        for problems in (AdditionProblems(3000), AdditionProblems(3000, held_out=True))
    ]
    assert [len(found) for found in last_digits] == [100, 100]
    pairs = [operands(problem) for problem in AdditionProblems(3000, held_out=True)]
    assert 0.42 < sum(first % 10 + second % 10 > 9 for first, second in pairs) / 3000 < 0.48


def test_about_one_pair_in_twenty_is_held_out():
    sampled = {held_out: random_pairs(CountingRandom(0), held_out) for held_out in (False, True)}
    counts = {}
    for held_out, pairs in sampled.items():
        CountingRandom.pairs = 0
        for _ in range(500):
            next(pairs)
        counts[held_out] = CountingRandom.pairs
    assert 500 / counts[True] == pytest.approx(0.05, abs=0.01)
    assert 500 / counts[False] == pytest.approx(0.95, abs=0.03)  # three standard errors


class CountingRandom(random.Random):
    """Counts the pairs of numbers that are taken from it: two calls of `randint` each."""

    pairs = 0.0

    def randint(self, *limits):
        CountingRandom.pairs += 0.5
        return super().randint(*limits)


def test_problems_are_the_same_for_the_same_arguments_only():
    first = list(AdditionProblems(50, seed=1))
    assert first == list(AdditionProblems(50, seed=1))
    assert first != list(AdditionProblems(50, seed=2))
    assert first == list(AdditionProblems(80, seed=1))[:50]


@pytest.mark.parametrize(("size", "held_out"), [(0, False), (-3, False), (900_001, False), (40_001, True)])
def test_problems_want_a_size_that_can_be_sampled(size, held_out):
    with pytest.raises(ValueError, match=rf"`size` is {size}; pass the number of problems"):
        AdditionProblems(size, held_out=held_out)


def test_tokenizer_has_one_token_per_digit_and_loses_nothing():
    tokenizer = make_tokenizer()
    for text in [question(472, 96), worked_answer(472, 96), "a line\nof   «other» text"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        digits = [tokenizer.decode([token]) for token in ids if re.search(r"\d", tokenizer.decode([token]))]
        assert digits == re.findall(r"\d", text)
    assert tokenizer.eos_token_id not in tokenizer.encode(worked_answer(472, 96))
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, None}) == 3


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(folder))
    return folder


TINY = {"steps": 2, "batch_size": 2}


def test_warm_start_is_made_once_and_found_again(cache, monkeypatch):
    made = []
    make = AdditionWarmStart._make
    monkeypatch.setattr(AdditionWarmStart, "_make", lambda self, folder: (made.append(self), make(self, folder)))
    folder = AdditionWarmStart(**TINY).prepare()
    assert Path(folder).parent == cache
    assert AdditionWarmStart(**TINY).prepare() == folder
    assert len(made) == 1
    assert [path.name for path in cache.iterdir()] == [Path(folder).name]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 850_000 < model.num_parameters() < 950_000


def test_tokenizer_of_the_made_model_is_the_one_it_was_taught_with(cache):
    """Loaded as `PolicyModule` loads it, without a token that the model has no embedding for."""
    folder = AdditionWarmStart(**TINY).prepare()
    loaded, made = AutoTokenizer.from_pretrained(folder), make_tokenizer()
    for text in [question(472, 96), worked_answer(472, 96)]:
        assert loaded.encode(text) == made.encode(text)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (made.eos_token_id, made.pad_token_id)
    assert len(loaded) == len(made) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size


def test_warm_start_is_reproducible_and_leaves_the_global_random_state_alone(tmp_path, monkeypatch):
    weights = []
    for name in ("first", "second"):
        monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / name))
        torch.manual_seed(len(weights))
        before = torch.get_rng_state()
        folder = AdditionWarmStart(**TINY).prepare()
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(AutoModelForCausalLM.from_pretrained(folder).state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 3),
        ("batch_size", 3),
        ("learning_rate", 1e-3),
        ("guess_share", 0.5),
        ("guess_spread", 2),
        ("noise", 0.2),
        ("seed", 1),
    ],
)
def test_other_arguments_make_another_folder(cache, monkeypatch, name, value):
    monkeypatch.setattr(AdditionWarmStart, "_make", lambda self, folder: (folder / "config.json").write_text("{}"))
    first = AdditionWarmStart(**TINY).prepare()
    assert AdditionWarmStart(**{**TINY, name: value}).prepare() != first
    assert len(list(cache.iterdir())) == 2


class OtherExamples(AdditionWarmStart):
    """The same arguments, and another model."""


def test_a_subclass_makes_its_own_folder(cache, monkeypatch):
    monkeypatch.setattr(AdditionWarmStart, "_make", lambda self, folder: (folder / type(self).__name__).touch())
    for kind in (AdditionWarmStart, OtherExamples):
        assert [path.name for path in Path(kind().prepare()).iterdir()] == [kind.__name__]


def test_interrupted_making_leaves_nothing_behind(cache, monkeypatch):
    def interrupted(self, model, tokenizer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AdditionWarmStart, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            AdditionWarmStart(**TINY).prepare()
    assert list(cache.iterdir()) == []
    assert (Path(AdditionWarmStart(**TINY).prepare()) / "config.json").exists()


def test_model_made_by_another_process_meanwhile_is_taken(cache, monkeypatch):
    start = AdditionWarmStart(**TINY)

    def made_by_another(self, folder):
        (folder / "config.json").write_text("ours")
        other = cache / f"addition-{self._key()}"
        other.mkdir()
        (other / "config.json").write_text("theirs")

    monkeypatch.setattr(AdditionWarmStart, "_make", made_by_another)
    assert (Path(start.prepare()) / "config.json").read_text() == "theirs"
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_models_are_kept_in_the_user_s_cache_folder_by_default(tmp_path, monkeypatch, variable):
    for name in ("AGGREGATE_PO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(AdditionWarmStart, "_make", lambda self, folder: None)
    folder = Path(AdditionWarmStart(**TINY).prepare())
    expected = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert folder.parent == expected / "aggregate_po"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` is 0; pass a positive number"),
        ({"batch_size": -1}, "`batch_size` is -1; pass a positive number"),
        ({"learning_rate": 0.0}, r"`learning_rate` is 0\.0; pass a positive number"),
        ({"guess_share": 1.5}, r"`guess_share` is 1\.5; pass a fraction, from 0 to 1"),
        ({"noise": -0.1}, r"`noise` is -0\.1; pass a fraction, from 0 to 1"),
        ({"noise": float("nan")}, "`noise` is nan; pass a fraction, from 0 to 1"),
        ({"guess_spread": -1}, "`guess_spread` is -1; pass 0 for correct answers, or more"),
    ],
)
def test_warm_start_errors_name_argument_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdditionWarmStart(**arguments)

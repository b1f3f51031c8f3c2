"""Problems of reasoning-gym, and the reward by their verifiers."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from lightning_modules.prompts.reasoning_gym import ReasoningGym
from lightning_modules.rewards.reasoning_gym import ReasoningGymReward

TASKS = ["chain_sum", "gcd", "letter_counting", "spell_backward", "knights_knaves", "countdown", "prime_factorization"]


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_are_rewarded_and_no_others(task):
    problems = ReasoningGym(task, size=8, seed=3)
    reward = ReasoningGymReward()
    for problem in problems:
        answer = problem["answer"]
        assert problem["prompt"].startswith(problem["question"])
        assert reward(f"<answer> {answer}\n</answer>", problem) == 1
        assert reward(rf"so \boxed{{{answer}}}", problem) == 1
        assert reward("<answer>qqq</answer>", problem) == 0  # some verifiers raise on it
        assert reward(str(answer), problem) == 0


def test_problems_depend_on_seed_and_index_alone():
    problems = ReasoningGym("gcd", size=10, seed=5)
    assert problems[:4] == list(ReasoningGym("gcd", size=4, seed=5))
    assert problems[0] != ReasoningGym("gcd", size=1, seed=6)[0]
    assert problems.location(3) == "gcd with seed 5, prompt 3 (of 0 to 9)"


def test_settings_and_instruction_reach_the_problems():
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    problem = ReasoningGym("chain_sum", size=1, settings=settings, instruction="")[0]
    assert problem["prompt"] == problem["question"]
    assert problem["metadata"]["difficulty"]["num_terms"] == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "chain_summ"}, "`task` is 'chain_summ'; pass one of .*chain_sum"),
        ({"size": 0}, "`size` is 0"),
        ({"settings": {"max_terms": -1}}, r"`settings` is {'max_terms': -1}, which the task 'chain_sum' refuses"),
        ({"settings": {"terms": 1}}, "refuses: .*unexpected keyword argument 'terms'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGym(**{"task": "chain_sum", **arguments})


def test_an_example_of_another_source_is_refused():
    with pytest.raises(KeyError):
        ReasoningGymReward()("<answer>1</answer>", {"prompt": "1?", "answer": "1"})

"""Verdicts per second of `MathReward` in a pool of processes, against the same reward in one process.

Each problem gives four completions: its solution, the solution of another problem (wrong), and both answers in another
spelling, which a grader cannot compare as text. The file has a "solution" and an "answer" in each line, as MATH-500
has. Without one, answers of the same kinds are generated. Each round times one process and the pool in turn, after a
warm-up; the ratio is a median over rounds. The pool and one process must agree on every verdict.

    .venv/bin/python experiments/benchmarks/reward_pool.py --file math500.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_modules.rewards import MathReward, RewardPool

FORMS = (
    *("{a}", "-{a}", "{a}{b}{a}", r"\frac{{{a}}}{{{b}}}", r"{a}\sqrt{{{b}}}", r"\frac{{\sqrt{{{a}}}}}{{{b}}}"),
    *("({a}, {b})", "[{a}, {b})", r"{a}\pi", "{a}x^2 + {b}x - {a}", r"\left( {a}, \frac{{\pi}}{{{b}}} \right)"),
    *("{a}, {b}", r"\{{{a}, {b}\}}", "{a}{b}00", r"{a} - {b}i", r"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}"),
)
WORDS = "Let us see what follows from the first equation, and put it into the second one. "


def generated(count: int) -> list[dict[str, str]]:
    """Return problems whose answers have the forms of MATH-500's."""
    numbers = random.Random(0)
    rows = []
    for number in range(count):
        a, b = numbers.randint(2, 40), numbers.choice([3, 5, 7, 11])
        answer = FORMS[number % len(FORMS)].format(a=a, b=b)
        rows.append({"answer": answer, "solution": WORDS * numbers.randint(2, 12) + rf"So it is $\boxed{{{answer}}}$."})
    return rows


def other_spelling(answer: str) -> str:
    """Return the answer in a spelling that is not the same text."""
    return answer.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)") + r"\cdot 1"


def tasks_of(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[dict[str, str]]]:
    """Return four completions for each problem, with their examples."""
    texts, examples = [], []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        spelled = (rf"It is $\boxed{{{other_spelling(one['answer'])}}}$." for one in (row, other))
        texts += [row["solution"], other["solution"], *spelled]
        examples += [{"answer": row["answer"]}] * 4
    return texts, examples


def rate(work: Callable[[], object], count: int) -> float:
    """Return the number of verdicts per second of one call."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.file is None:
        rows = generated(arguments.problems)
    else:
        lines = arguments.file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[: arguments.problems]]
    texts, examples = tasks_of(rows)
    reward = MathReward()

    def alone() -> list[float]:
        return [reward(*task) for task in zip(texts, examples, strict=True)]

    with RewardPool(reward, workers=arguments.workers) as pool:
        expected = alone()
        verdicts = pool(texts, examples)
        assert [verdict.value for verdict in verdicts] == expected
        print(f"{len(texts):,} verdicts, {sum(expected) / len(texts):.0%} of them right")
        singles, pools = [], []
        for _ in range(arguments.rounds):
            singles.append(rate(alone, len(texts)))
            pools.append(rate(lambda: pool(texts, examples), len(texts)))
    ratios = [ours / single for ours, single in zip(pools, singles, strict=True)]
    print(f"one process:  {statistics.median(singles):7,.0f} verdicts per second")
    print(f"{arguments.workers} workers:    {statistics.median(pools):7,.0f} verdicts per second")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

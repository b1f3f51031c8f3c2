"""Picture of a completion of a run: its prompt, and how its tokens share the gradient, as an SVG file.

python experiments/heat_map.py runs/pmpo --step 336 --group 15 --sample 2 --output heat-map.svg
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lightning_modules.viewer import Completion, TokenNumbers, heat_map_svg, run_report
from lightning_modules.viewer.heat_map import COLORED
from lightning_modules.viewer.token_numbers import QUANTITIES

_SHOWN = ["log_ratio", "concentration", "weight"]
_CALLBACK = "lightning_modules.TokenWeightsFile"
_FACTS = ("objective", "model", "data", "seed", "learning rate", "updates per rollout")


def main() -> None:
    """Write the picture."""
    by_name = {quantity.name: quantity for quantity in QUANTITIES if quantity.scale in COLORED}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder with completions and token rows")
    parser.add_argument("--step", type=int, help="optimizer step; by default one with a wide range of log ratios")
    parser.add_argument("--group", type=int, help="number of the prompt")
    parser.add_argument("--sample", type=int, help="number of the completion in its group")
    parser.add_argument("--quantities", nargs="+", default=_SHOWN, choices=list(by_name), help="quantities to show")
    parser.add_argument("--output", required=True, help="SVG file to write")
    arguments = parser.parse_args()
    report = run_report([arguments.run], max_completions=10**9, max_tokens=10**9)
    completion, tokens = chosen(report.completions, arguments.step, arguments.group, arguments.sample)
    facts = report.runs[0].facts
    known = [f"{label} {shortened(facts[label])}" for label in _FACTS if label in facts]
    about = [" \u00b7 ".join(known), f"optimizer step {tokens.step}{reward_of(completion)}"]
    picture = heat_map_svg(tokens, [by_name[name] for name in arguments.quantities], completion.prompt, about)
    Path(arguments.output).write_text(picture, encoding="utf-8")
    place = f"step {tokens.step}, group {completion.group}, sample {completion.sample}"
    print(f"{arguments.output}: {place}, {len(tokens.texts)} tokens, {len(picture) / 1000:.0f} kB")


def reward_of(completion: Completion) -> str:
    """Return words for the reward; empty without one."""
    return "" if completion.reward is None else f", reward {completion.reward:g}"


def shortened(fact: str) -> str:
    """Return a class without its arguments, but an objective that is put together from parts with its mean."""
    mean = re.match(r"PolicyObjective\(aggregator=([\w.]+)", fact)
    return f"PolicyObjective({mean[1]})" if mean else fact.partition("(")[0]


def chosen(
    completions: list[Completion], step: int | None, group: int | None, sample: int | None
) -> tuple[Completion, TokenNumbers]:
    """Return a completion and its numbers in a step; of several, the one with the widest range of log ratios."""
    fitting = [
        (one, tokens)
        for one in completions
        for tokens in one.tokens
        if step in (None, tokens.step) and group in (None, one.group) and sample in (None, one.sample)
    ]
    if not fitting:
        steps = sorted({tokens.step for one in completions for tokens in one.tokens})
        if not steps:
            raise SystemExit(f"error: the run has no token rows; train with the callback {_CALLBACK}.")
        given = [f"{name} {value}" for name, value in (("step", step), ("group", group), ("sample", sample))]
        asked = ", ".join(text for text in given if not text.endswith("None"))
        have = ", ".join(map(str, steps))
        raise SystemExit(
            f"error: no completion of {asked} has token rows; pass one of the steps {have}, "
            "and a group and a sample with a gradient in it, or neither."
        )
    return max(fitting, key=lambda pair: spread_of(pair[1]))


def spread_of(tokens: TokenNumbers) -> float:
    """Return the range of the log ratios of the trained tokens."""
    values = [value for value in tokens.values["log_ratio"] if value == value]
    return max(values, default=0.0) - min(values, default=0.0)


if __name__ == "__main__":
    main()

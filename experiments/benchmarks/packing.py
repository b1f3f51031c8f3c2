"""Micro-batches of random lengths: first-fit decreasing over a window, against splits in the order of the lengths.

The first table has the number of micro-batches within a budget of 4,096 tokens, the second the size of the largest of
eight micro-batches without a budget; each is a mean over 60 updates of 8 prompts with 8 completions.
"""

from __future__ import annotations

import random
import time

from lightning_modules.data.micro_batches import _balanced_split, _Row
from lightning_modules.model.layouts import PackedSequences, PaddedSequences, SequenceLayout, SharedPrompts

PROMPTS, GROUP, UPDATES, BUDGET, MICRO_BATCHES = 8, 8, 60, 4096, 8
WINDOWS = {"in order": 1, "first fit, 8": 8, "first fit, all": 10_000}
LENGTHS = {
    "log-normal": lambda rng: min(3000, max(1, int(rng.lognormvariate(6, 0.8)))),
    "uniform": lambda rng: rng.randint(1, 2000),
    "bimodal": lambda rng: rng.choice([rng.randint(50, 200), rng.randint(1500, 3000)]),
}


def sizes(table: list[_Row], layout: SequenceLayout, count: int, budget: int, window: int) -> list[int]:
    """Return the sizes of the micro-batches, the longest completions first."""
    order = sorted(table, key=lambda row: (-row.length, row.prompt))
    return [layout.size(part.extent) for part in _balanced_split(order, count, layout, budget, window)]


def main() -> None:
    rng = random.Random(0)
    print("| lengths | layout |", " | ".join([*WINDOWS, *WINDOWS, "seconds of all"]), "|")
    for name, length in LENGTHS.items():
        updates = []
        for _ in range(UPDATES):
            prompts = [rng.randint(50, 300) for _ in range(PROMPTS)]
            rows = [(number, number // GROUP, prompts[number // GROUP]) for number in range(PROMPTS * GROUP)]
            updates.append([_Row(*row, length(rng)) for row in rows])
        for layout in (PackedSequences(), SharedPrompts(), PaddedSequences()):
            started = time.perf_counter()
            counts, largest = {}, {}
            for label, window in WINDOWS.items():
                within = [sizes(table, layout, len(table), BUDGET, window) for table in updates]
                equal = [sizes(table, layout, MICRO_BATCHES, 0, window) for table in updates]
                counts[label] = f"{sum(map(len, within)) / UPDATES:.1f}"
                largest[label] = f"{sum(map(max, equal)) / UPDATES:,.0f}"
            columns = [*counts.values(), *largest.values(), f"{time.perf_counter() - started:.1f}"]
            print(f"| {name} | `{type(layout).__name__}` |", " | ".join(columns), "|")


if __name__ == "__main__":
    main()

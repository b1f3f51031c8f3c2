"""Run folders made up for the tests of the viewer."""

import csv
import math
import random

import yaml

from lightning_modules.parquet_files import step_file, write_rows

WORDS = ["The", " sum", " of", " 4", "7", " and", " 9", " is", "\n", "5", "6", ".", " \\boxed{", "}", " carry"]


def config(seed=0, **options):
    """The recorded configuration of a run, as far as a page shows it."""
    given = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": f"runs/{seed}", "max_steps": 40},
        "model": {
            "model_name": {"class_path": "lightning_modules.addition.AdditionWarmStart", "init_args": {"steps": 700}},
            "objective": {"class_path": "aggregate_po.recipes.pmpo", "init_args": {"log_clip": 0.3, "penalties": []}},
            "learning_rate": 1e-4,
        },
        "data": {
            "dataset": {"class_path": "lightning_modules.addition.AdditionProblems", "init_args": {"size": 64}},
            "reward": "lightning_modules.rewards.boxed_answer",
            "updates_per_rollout": 4,
            "prompts_per_rollout": 2,
            "group_size": 4,
            "temperature": 1.0,
        },
    }
    for name, value in options.items():
        section, _, option = name.partition("__")
        given[section][option] = value
    return given


def make_run(folder, seed=0, steps=40, rollouts=(1, 5, 9), groups=2, samples=4, tokens=True, texts=None, **options):
    """Write a run folder and return it.

    Args:
        folder: folder to make.
        seed: seed of the run.
        steps: number of optimizer steps in its metrics; none when 0.
        rollouts: first steps of the rollouts whose completions are kept.
        groups: number of prompts of a rollout.
        samples: number of completions of a prompt.
        tokens: whether the second step of each rollout has token rows.
        texts: completions to take in turn; made up of words when None.
        options: other options of the configuration, such as `data__temperature`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(seed, **options)))
    random_numbers = random.Random(seed)
    if steps:
        write_metrics(folder / "metrics.csv", steps, random_numbers)
    for step in rollouts:
        rows = [
            completion_row(step, group, sample, random_numbers, texts)
            for group in range(groups)
            for sample in range(samples)
        ]
        (folder / "completions").mkdir(exist_ok=True)
        kept = [{name: value for name, value in row.items() if name != "tokens"} for row in rows]
        write_rows(kept, step_file(folder / "completions", step))
        if tokens:
            (folder / "tokens").mkdir(exist_ok=True)
            token_rows = [token_row(row, step + 1, random_numbers) for row in rows]
            write_rows(token_rows, step_file(folder / "tokens", step + 1))
    return folder


def write_metrics(path, steps, random_numbers):
    """Write metrics that rise, spread over seeds, and are measured at some steps only."""
    rows = []
    for step in range(steps + 1):
        held_out = {"val/pass@1_sampled": step / (steps + 10) + random_numbers.gauss(0, 0.02)} if step % 10 == 0 else {}
        trained = {
            "reward": step / (steps + 10) + random_numbers.gauss(0, 0.05),
            "kl_old": 0.001 * random_numbers.random(),
            "ratio/max": math.exp(random_numbers.random()),
            "weights/ess_fraction": 1 - 0.01 * random_numbers.random(),
            "skipped_steps": 0.0,
            "custom/of_a_user": 1e-7 * random_numbers.random(),
        }
        rows.append({"step": step, **held_out, **(trained if step else {})})
    names = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    names.sort(key=lambda name: name != "step")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def completion_row(step, group, sample, random_numbers, texts=None):
    """A row as `CompletionsFile` writes it, with the tokens of its text in addition."""
    if texts:
        text = texts[(group * 100 + sample) % len(texts)]
        tokens = [text[at : at + 3] for at in range(0, len(text), 3)]
    else:
        tokens = random_numbers.choices(WORDS, k=random_numbers.randint(20, 40))
    return {
        "step": step,
        "group": group,
        "sample": sample,
        "prompt": f"What is {group + 40} + {step}?",
        "example": f'{{"answer": "{group + 40 + step}"}}',
        "completion": "".join(tokens),
        "reward": float(sample % 2) if sample != 3 else 0.7,
        "rewards/boxed_answer": float(sample % 2),
        "rewards/boxed_answer/cause": None,
        "advantage": sample % 2 - 0.5,
        "length": len(tokens),
        "truncated": False,
        "prompt_length": 9,
        "policy_step": step - 1,
        "tokens": tokens,
    }


def token_row(row, step, random_numbers):
    """The row of the numbers of the tokens of a completion, the third of which is clipped and the last untrained."""
    tokens, advantage = row["tokens"], row["advantage"]
    count = len(tokens)
    old = [-random_numbers.random() * 2 for _ in tokens]
    ratios = [random_numbers.gauss(0, 0.15) for _ in tokens]
    shares = [math.exp(value) for value in ratios]
    clipped = [position == 2 for position in range(count)]
    trained = [position < count - 1 for position in range(count)]
    concentration = [share / sum(shares) for share in shares]
    return {
        "step": step,
        "group": row["group"],
        "sample": row["sample"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "reward": row["reward"],
        "advantage": advantage,
        "tokens": tokens,
        "token_ids": [7 + len(token) for token in tokens],
        "log_probs": [value + ratio for value, ratio in zip(old, ratios, strict=True)],
        "old_log_probs": old,
        "weights": [
            0.0 if no_gradient else advantage * share for share, no_gradient in zip(concentration, clipped, strict=True)
        ],
        "concentration": concentration,
        "gate": [0.0 if no_gradient else 1.0 for no_gradient in clipped],
        "clipped": clipped,
        "overflow": [position == 5 for position in range(count)],
        "trained": trained,
        "exponent": 0.5,
    }

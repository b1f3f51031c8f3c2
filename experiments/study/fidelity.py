"""Fidelity of gradients under staleness: how near the gradient from old completions is to that from new ones.

    python -m experiments.study.fidelity
    python -m experiments.study.fidelity --objectives gmpo,mypackage.MyMean --checkpoints 0 --paths 1 --output runs/mine

A policy is trained on policy up to a checkpoint. There it samples the frozen rollouts, and then it drifts: it makes
1, 4 or 16 updates on a rollout of its own, under each of the drift objectives. Each objective's gradient on the frozen
rollouts, under the policy that has drifted, is compared with the on-policy gradient of that policy, from completions
that it has sampled itself. Both are means over independent rollouts, and squared norms are corrected for the noise of
these means, so that cosines and norms have no bias from the number of rollouts.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from aggregate_po import GroupedRewards, PolicyBatch, PolicyObjective, StepTotals
from aggregate_po.advantages import GroupNormalized
from aggregate_po.bounds import log_ratio_of
from aggregate_po.recipes import gmpo, gmpo_no_clip, grpo
from experiments.options import count
from experiments.study import design
from experiments.study.run import FOLDER, require_own_folder, variants
from experiments.study.tasks import TASKS, Task
from experiments.study.training import GROUP_SIZE, PROMPTS_PER_ROLLOUT
from experiments.tables import append_rows, read_rows
from lightning_modules.batch import Sequences, left_padded
from lightning_modules.model.policy import Policy
from lightning_modules.rollouts import SamplingParameters, TransformersEngine

CHECKPOINTS = (0, 10, 20)  # rollouts of one update each, before the frozen ones
DRIFTS: dict[str, Callable[[], PolicyObjective]] = {"grpo": grpo, "gmpo": gmpo, "gmpo_no_clip": gmpo_no_clip}
PATHS = 2  # rollouts to drift on, for each drift objective
UPDATES = (1, 4, 16)
LEARNING_RATE = 1.4e-4
FROZEN, FRESH = 6, 12  # rollouts
_KEYS = ("start", "checkpoint", "drift", "path", "updates", "objective")


@dataclass(frozen=True)
class Samples:
    """Completions of one rollout, as inputs of the model and of an objective."""

    sequences: Sequences
    batch: PolicyBatch


class Learner:
    """A policy with its optimizer.

    Args:
        task: model to start from, problems and reward.
        seed: seed of the order of the problems and of sampling.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        self.task, self.seed = task, seed
        self.policy = Policy(task.model)
        self.policy.load()
        self.engine = TransformersEngine()
        self.parameters = [parameter for parameter in self.policy.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=0.0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a copy of the weights and of the optimizer's state."""
        return copy.deepcopy(self.policy.model.state_dict()), copy.deepcopy(self.optimizer.state_dict())

    def restore(self, state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Restore what `state` returned."""
        self.policy.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(copy.deepcopy(state[1]))

    def sample(self, number: int) -> Samples:
        """Return the rollout with a number, which decides its prompts and its seed."""
        first = number * PROMPTS_PER_ROLLOUT
        examples = [self.task.problems[(first + i) % len(self.task.problems)] for i in range(PROMPTS_PER_ROLLOUT)]
        prompts = [self.policy.tokenizer.encode(example["prompt"]) for example in examples]
        self.engine.load_policy(self.policy.model)
        limits = design.MAX_COMPLETION_LENGTH, self.policy.stop_token_ids
        sampling = SamplingParameters(*limits, seed=self.seed + number, samples_per_prompt=GROUP_SIZE)
        found = self.engine.generate(prompts, sampling)
        texts = [
            self.policy.tokenizer.decode(ids[mask], skip_special_tokens=True)
            for ids, mask in zip(found.token_ids, found.mask, strict=True)
        ]
        rewards = torch.tensor([self.task.reward(text, examples[i // GROUP_SIZE]) for i, text in enumerate(texts)])
        rewards = rewards.double() * found.finished
        advantages = GroupNormalized()(GroupedRewards(rewards, GROUP_SIZE)).to(found.log_probs.dtype)
        # Rules that follow the training are where it begins.
        statistics = {"progress": 0.0, "reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}
        totals = StepTotals.of(found.mask, **statistics)
        prompt_of = torch.arange(len(prompts)).repeat_interleave(GROUP_SIZE)
        sequences = Sequences(*left_padded(prompts), prompt_of, found.token_ids, found.mask)
        return Samples(sequences, PolicyBatch(found.log_probs, found.mask, advantages, totals))

    def update(self, samples: Samples, rows: Tensor, objective: PolicyObjective) -> None:
        """Make an optimizer step on some completions of a rollout."""
        sequences = samples.sequences.select(rows)
        batch = samples.batch.select(rows, sequences.completion_ids.shape[1])
        own = PolicyBatch(batch.old_log_probs, batch.response_mask, batch.advantages)
        self.optimizer.zero_grad()
        (-objective(self.policy.log_probs(sequences), own)).backward()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def gradients(
        self, samples: Samples, objectives: Mapping[str, PolicyObjective]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parameter gradient of each objective on a rollout, and the token log ratios."""
        log_probs = self.policy.log_probs(samples.sequences)
        found = {}
        for name, objective in objectives.items():
            weights = objective.gradient_weights(log_probs.detach(), samples.batch).total
            parts = torch.autograd.grad(log_probs, self.parameters, weights, retain_graph=True)
            found[name] = torch.cat([part.flatten() for part in parts])
        mask = samples.batch.response_mask
        return found, log_ratio_of(log_probs.detach(), samples.batch.old_log_probs, mask)[mask]


class MeanGradient:
    """Mean of gradients of independent rollouts, with the noise of one of them."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), 0.0

    def add(self, gradient: Tensor) -> None:
        """Count the gradient of one rollout."""
        self._count += 1
        self._sum = self._sum + gradient
        self._squares += float(gradient.double().square().sum())

    @property
    def mean(self) -> Tensor:
        """Mean over the rollouts; shape `parameter`."""
        return self._sum / self._count

    @property
    def variance(self) -> float:
        """Sum of the variances of a single rollout's gradient.

        Raises:
            ValueError: there are fewer than two rollouts.
        """
        if self._count < 2:
            raise ValueError(f"the gradients are of {self._count} rollout, which has no variance; add two or more.")
        return (self._squares - self._count * float(self.mean.double().square().sum())) / (self._count - 1)

    @property
    def squared_norm(self) -> float:
        """Squared norm of the expected gradient, without the bias by the noise of the mean; it can be negative."""
        return float(self.mean.double().square().sum()) - self.variance / self._count


def compared(stale: MeanGradient, fresh: MeanGradient) -> dict[str, float | None]:
    """Return cosine and ratio of the norms of two expected gradients, and the noise of the first one."""
    if min(stale.squared_norm, fresh.squared_norm) <= 0:  # no signal above the noise
        return {"cosine": None, "norm_ratio": None, "noise_to_signal": None}
    product = math.sqrt(stale.squared_norm * fresh.squared_norm)
    return {
        "cosine": float(stale.mean.double() @ fresh.mean.double()) / product,
        "norm_ratio": math.sqrt(stale.squared_norm / fresh.squared_norm),
        "noise_to_signal": math.sqrt(stale.variance / stale.squared_norm),
    }


def paths(options: argparse.Namespace, learner: Learner) -> Iterator[tuple[dict[str, str], Samples, list[Samples]]]:
    """Yield each drift path: its key, the rollout to drift on, and the frozen rollouts; the learner is at its start."""
    made = 0
    for checkpoint in options.checkpoints:
        while made < checkpoint:
            samples = learner.sample(made)
            learner.update(samples, torch.arange(len(samples.batch.response_mask)), gmpo())
            made += 1
        start = learner.state()
        frozen = [learner.sample(1000 + number) for number in range(FROZEN)]
        # All before the first drift: the learner is elsewhere when the caller has used a path.
        for path, own in enumerate([learner.sample(2000 + path) for path in range(options.paths)]):
            for drift in DRIFTS:
                learner.restore(start)
                yield {"checkpoint": str(checkpoint), "drift": drift, "path": str(path)}, own, frozen
        learner.restore(start)


def measured(
    learner: Learner, frozen: Sequence[Samples], objectives: Mapping[str, PolicyObjective]
) -> Iterator[dict[str, str]]:
    """Yield a row for each objective, for the policy as it is."""
    stale, fresh = {name: MeanGradient() for name in objectives}, MeanGradient()
    ratios = []
    for samples in frozen:
        found, log_ratio = learner.gradients(samples, objectives)
        ratios.append(log_ratio)
        for name, gradient in found.items():
            stale[name].add(gradient)
    for number in range(FRESH):
        found, _ = learner.gradients(learner.sample(3000 + number), {"fresh": gmpo_no_clip()})
        fresh.add(found["fresh"])
    drift = torch.cat(ratios).double()
    for name in objectives:
        values = {**compared(stale[name], fresh), "log_ratio_std": float(drift.square().mean().sqrt())}
        yield {"objective": name, **{key: "" if value is None else f"{value:.6g}" for key, value in values.items()}}


def _checkpoint(text: str) -> int:
    return 0 if text == "0" else count(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the paths that are missing in `fidelity.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", type=variants, default=(), help="Names in the design or paths; all without it.")
    parser.add_argument(
        "--checkpoints", type=_checkpoint, nargs="+", default=CHECKPOINTS, help="Rollouts before a checkpoint."
    )
    parser.add_argument(
        "--paths", type=count, default=PATHS, help=f"Drift paths of each checkpoint; {PATHS} without it."
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"Folder of the results; {FOLDER} without it.")
    options = parser.parse_args(arguments)
    require_own_folder(parser, options)
    torch.set_num_threads(1)
    options.checkpoints = sorted(set(options.checkpoints))  # the policy is trained from one to the next
    objectives = {each.name: each.objective() for each in options.objectives or (*design.CORE, *design.FURTHER)}
    for name, objective in objectives.items():
        if objective.needs_reference or objective.group_objective is not None:
            parser.error(f"`--objectives` has {name!r}, which reads a reference or rewards of groups; leave it out")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "fidelity.csv"
    done = {tuple(row.get(name, "") for name in _KEYS) for row in read_rows(file)}
    task = TASKS[design.FIDELITY_TASK]()
    start, learner = {"start": task.start}, Learner(task)
    for key, own, frozen in paths(options, learner):
        made = 0
        for updates in UPDATES:
            parts = torch.arange(len(own.batch.response_mask)).tensor_split(UPDATES[-1])
            for rows in parts[made:updates]:
                learner.update(own, rows, DRIFTS[key["drift"]]())
            made = updates
            about = {**start, **key, "updates": str(updates)}
            missing = {name: o for name, o in objectives.items() if (*about.values(), name) not in done}
            if missing:
                append_rows(file, [{**about, **row} for row in measured(learner, frozen, missing)])
                print(*about.values(), flush=True)


if __name__ == "__main__":
    main()

"""Refinement of drafts: completions of prompts that contain a draft of the policy itself, as in iGRPO."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import SamplingScheme, Stage
from lightning_modules.data.schemes.totals import total
from lightning_modules.prompts import Prompt
from lightning_modules.tally import Tally
from lightning_modules.validation import require_at_least, require_one_of

DraftChoice = Literal["best", "worst", "random"]

_TEMPLATE = """{question}

Below is a draft of an answer. It is guidance, not truth: keep what is right, correct what is wrong, and do not repeat \
it unchanged.

<draft>
{draft}
</draft>

Now write a better answer."""


@dataclass(frozen=True)
class DraftRefinement(SamplingScheme):
    """Samples drafts for each prompt, and trains on completions of the prompt together with one of its drafts.

    The first stage samples `drafts` completions of each prompt and scores them. The second stage puts one of them into
    the prompt and samples `data.group_size` completions of it, on which alone the policy is trained. Evaluations are
    as ever: one completion of the prompt itself. iGRPO has as many drafts as completions, 4 and 4, and so the same cost
    as groups of 8 without drafts.

    Where the model or the engine cannot hold the longer prompt, the group is sampled from the prompt without a draft.
    The scheme logs `drafts/reward`, the mean reward of all drafts, `drafts/best` and `drafts/chosen`, the means of the
    best and of the chosen draft of each prompt, and `drafts/left_out`, the fraction of prompts without their draft.

    Args:
        drafts: Number of drafts per prompt.
        choice: Draft that the prompt gets: the one with the "best" or the "worst" reward, one of these at random where
            several have it, or any of them, "random".
        template: Text of the second prompt, with `{question}` and `{draft}` in place of the first prompt and the draft.
            In a list of messages it replaces the last message.

    Raises:
        ValueError: an argument is out of its range.

    Reference: iGRPO, arXiv:2602.09000.
    """

    drafts: int = 4
    choice: DraftChoice = "best"
    template: str = _TEMPLATE

    def __post_init__(self) -> None:
        require_at_least(1, drafts=self.drafts)
        require_one_of(DraftChoice, choice=self.choice)
        for field in ("{question}", "{draft}"):
            if field not in self.template:
                raise ValueError(f"`template` is {self.template!r}, which has no {field}; put {field} into it.")

    @property
    @override
    def reads_texts(self) -> bool:
        return True

    @override
    def first_group_size(self, group_size: int) -> int:
        return self.drafts

    @override
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        with rollout.sized(self.drafts):
            drafts = below(count)
        scored = rearrange(drafts.scored, "(prompt group) -> prompt group", group=drafts.group_size)
        chosen = _chosen(drafts.by_prompt, scored, self.choice, rollout.generator)
        texts = [drafts.texts[row] for row in (torch.arange(len(drafts)) * drafts.group_size + chosen).tolist()]
        prompts = [self._with_draft(*pair, rollout) for pair in zip(drafts.prompts, texts, strict=True)]
        left_out = sum(new is old for new, old in zip(prompts, drafts.prompts, strict=True))
        groups = rollout.complete(prompts)
        metrics = _metrics(total(self, _counted(drafts, chosen, left_out), rollout))
        return replace(groups, metrics={**drafts.metrics, **groups.metrics, **metrics})

    def _with_draft(self, prompt: Prompt, draft: str, rollout: GroupSampler) -> Prompt:
        """Return the prompt with a draft, or the prompt itself if the longer one is refused."""
        example = {**prompt.example, "prompt": _filled(self.template, prompt.example["prompt"], draft)}
        try:
            longer = rollout.prompt_of(example)
        except ValueError:
            return prompt
        return replace(longer, index=prompt.index, weight=prompt.weight)


def _filled(template: str, prompt: str | Sequence[Mapping[str, str]], draft: str) -> str | list[Mapping[str, str]]:
    """Return a prompt, a text or messages, with a draft; braces in the prompt and in the draft mean nothing."""
    if not isinstance(prompt, str):
        last = prompt[-1]
        return [*prompt[:-1], {**last, "content": _text(template, last["content"], draft)}]
    return _text(template, prompt, draft)


def _text(template: str, question: str, draft: str) -> str:
    texts = {"{question}": question, "{draft}": draft}
    return re.sub(r"\{question\}|\{draft\}", lambda field: texts[field[0]], template)


def _chosen(rewards: Tensor, scored: Tensor, choice: DraftChoice, generator: torch.Generator) -> Tensor:
    """Return the number of the chosen draft of each prompt, at random among equal ones; shape `prompt`.

    A draft without a reward is chosen only where no other has one.
    """
    known = scored | ~scored.any(dim=-1, keepdim=True)
    candidates = {
        "best": rewards == rewards.masked_fill(~known, -math.inf).amax(dim=-1, keepdim=True),
        "worst": rewards == rewards.masked_fill(~known, math.inf).amin(dim=-1, keepdim=True),
        "random": known,
    }[choice]
    ranking = torch.rand(rewards.shape, generator=generator, dtype=torch.double)
    return torch.where(candidates & known, ranking, -1.0).argmax(dim=-1)


def _counted(drafts: Groups, chosen: Tensor, left_out: int) -> Tally:
    rewards = drafts.by_prompt.double()
    return Tally(
        sums={
            "prompts": len(drafts),
            "reward": float(rewards.mean(dim=-1).sum()),
            "best": float(rewards.amax(dim=-1).sum()),
            "chosen": float(rewards.gather(-1, chosen.unsqueeze(-1)).sum()),
            "left_out": left_out,
        }
    )


def _metrics(counted: Tally) -> dict[str, float]:
    sums = dict(counted.sums)
    prompts = sums.pop("prompts")
    return {f"drafts/{name}": value / prompts for name, value in sums.items()}

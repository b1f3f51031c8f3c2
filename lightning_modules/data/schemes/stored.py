"""Groups as plain values, for checkpoints and for other ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from lightning_modules.data.groups import Groups
from lightning_modules.prompts import Prompt
from lightning_modules.rollouts import Completions


def stored(groups: Groups, number: int) -> dict[str, Any]:
    """Return one of the groups as tensors, numbers, texts and lists of them; its example is JSON.

    A value in the example that JSON does not have becomes its `repr`.
    """
    one = groups.select(torch.tensor([number]))
    prompt, completions = one.prompts[0], one.completions
    longest = max(int(completions.mask.sum(dim=-1).max()), 1)
    # Clones, because a tensor that is a part of a larger one is saved with all of it.
    by_token = {name: getattr(completions, name)[:, :longest].clone() for name in ("token_ids", "mask", "log_probs")}
    others = {name: value.clone() for name, value in vars(completions).items() if name not in by_token}
    return {
        "example": json.dumps(prompt.example, default=repr),
        "prompt_ids": list(prompt.token_ids),
        "index": prompt.index,
        "weight": prompt.weight,
        **by_token,
        "response_mask": one.response_mask[:, :longest].clone(),
        **others,
        "texts": list(one.texts),
        "components": one.components,
        "rewards": one.rewards,
        "scored": one.scored,
        "causes": [list(causes) for causes in one.causes],
        "policy_step": one.policy_step,
    }


def restored(state: Mapping[str, Any], kind: type[Completions] = Completions) -> Groups:
    """Return the group of which `stored` has made plain values; its completions are of the given kind."""
    example = json.loads(state["example"])
    completions = kind(**{part.name: state[part.name] for part in fields(kind)})
    names = ("texts", "components", "rewards", "response_mask", "scored", "causes")
    return Groups(
        prompts=[Prompt(example, tuple(state["prompt_ids"]), state["index"], state["weight"])],
        completions=completions,
        policy_steps=[state["policy_step"]],
        **{name: state[name] for name in names},
    )

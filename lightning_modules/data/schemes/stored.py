"""Groups as plain values, for checkpoints and for other ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from lightning_modules.data.groups import Groups
from lightning_modules.prompts import Example, Prompt
from lightning_modules.rollouts import Completions


def stored(groups: Groups, number: int) -> dict[str, Any]:
    """Return one of the groups as tensors, numbers, texts and lists of them; its example is JSON.

    Fields of the example that JSON would change are named only, and `restored` takes them from the data set. Where the
    prompt is none of the data set, a value that JSON does not have becomes its `repr`.
    """
    one = groups.select(torch.tensor([number]))
    prompt, completions = one.prompts[0], one.completions
    named = [name for name, value in prompt.example.items() if prompt.index is not None and not _is_json(value)]
    written = {name: value for name, value in prompt.example.items() if name not in named}
    longest = max(int(completions.mask.sum(dim=-1).max()), 1)
    # Clones, because a tensor that is a part of a larger one is saved with all of it.
    by_token = {name: getattr(completions, name)[:, :longest].clone() for name in ("token_ids", "mask", "log_probs")}
    others = {name: value.clone() for name, value in vars(completions).items() if name not in by_token}
    return {
        "example": json.dumps(written, default=repr),
        "fields_of_index": named,
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


def restored(
    state: Mapping[str, Any], example_of: Callable[[int], Example], kind: type[Completions] = Completions
) -> Groups:
    """Return the group of which `stored` has made plain values.

    Args:
        state: plain values.
        example_of: returns the example of the data set with an index.
        kind: class of the completions.

    Raises:
        ValueError: the data set lacks the example.
    """
    example = {**json.loads(state["example"]), **_fields_of_index(state, example_of)}
    completions = kind(**{part.name: state[part.name] for part in fields(kind)})
    names = ("texts", "components", "rewards", "response_mask", "scored", "causes")
    return Groups(
        prompts=[Prompt(example, tuple(state["prompt_ids"]), state["index"], state["weight"])],
        completions=completions,
        policy_steps=[state["policy_step"]],
        **{name: state[name] for name in names},
    )


def _is_json(value: object) -> bool:
    """Whether JSON returns the value as it is, of the same types."""
    if type(value) is dict:
        return all(type(key) is str and _is_json(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    return value is None or type(value) in (bool, int, float, str)


def _fields_of_index(state: Mapping[str, Any], example_of: Callable[[int], Example]) -> dict[str, Any]:
    """Return the fields that JSON would have changed, from the data set."""
    named = state["fields_of_index"]
    try:
        example = example_of(state["index"]) if named else {}
        return {name: example[name] for name in named}
    except LookupError as error:
        raise ValueError(
            f"`data.dataset` has no example {state['index']} with the fields {named}, for which a stored group was "
            "sampled; resume with the data set of the run."
        ) from error

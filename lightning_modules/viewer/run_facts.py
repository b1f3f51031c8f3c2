"""Facts about runs, from their recorded configurations, and runs that differ in their seed only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]

# What differs between two runs of one experiment: where they are, how they were resumed, and their seed.
_OF_ONE_RUN = (
    "trainer.default_root_dir",
    "trainer.logger",
    "checkpoint.dirpath",
    "ckpt_path",
    "resume_with_changes",
    "weights_only",
    "seed_everything",
    "data.seed",
)
_FACTS = {
    "objective": "model.objective",
    "model": "model.model_name",
    "flow-matching model": "model.model",
    "data": "data.dataset",
    "reward": "data.reward",
    "seed": "seed_everything",
    "learning rate": "model.learning_rate",
    "updates per rollout": "data.updates_per_rollout",
    "prompts per rollout": "data.prompts_per_rollout",
    "group size": "data.group_size",
}
_MOST_DIFFERENCES = 4  # columns for options that no fact tells apart
# Import paths that are told from the name of a file.
_OF_THE_LIBRARY = re.compile(r"(aggregate_po|lightning_modules)(\.\w+)+")
_ABSENT = object()


def facts_of(config: Config) -> dict[str, str]:
    """Return what the header of a page says about a run, by label."""
    values = {label: _value(config, option) for label, option in _FACTS.items()}
    return {label: described_value(value) for label, value in values.items() if value not in (None, _ABSENT)}


def cohort_of(config: Config) -> str:
    """Return a text that is equal for runs that differ in their seed only; empty without a configuration."""
    return json.dumps(sorted(_leaves_without_seed(config)), default=str) if config else ""


def differing_options(configs: Sequence[Config]) -> list[dict[str, str]]:
    """Return, for each run, the options that differ between runs and that no fact tells apart; at most four.

    An option that a run lacks is not among its options.
    """
    known = [config for config in configs if config]
    told = [option for option in _FACTS.values() if _is_told_apart([_value(config, option) for config in known])]
    leaves = [dict(_leaves_without_seed(config)) for config in known]
    names = sorted({name for options in leaves for name in options if not _is_within(name, told)})
    differ = [name for name in names if len({_exact(options.get(name, _ABSENT)) for options in leaves}) > 1]
    kept = differ[:_MOST_DIFFERENCES]
    columns = {name: _texts([_value(config, name) for config in configs]) for name in kept}
    rest = {f"and {len(differ) - len(kept)} more options": "differ"} if len(differ) > len(kept) else {}
    return [
        ({name: texts[number] for name, texts in columns.items() if texts[number]} | rest) if config else {}
        for number, config in enumerate(configs)
    ]


def _is_told_apart(values: Sequence[Any]) -> bool:
    """Return whether the short texts of values differ wherever the values do."""
    return len(set(map(described_value, values))) == len(set(map(_exact, values)))


def _texts(values: Sequence[Any]) -> list[str]:
    """Return short texts of values, or exact ones if short ones do not tell them apart; empty for none."""
    present = [value for value in values if value is not _ABSENT]
    text = described_value if _is_told_apart(present) else _exact
    return ["" if value is _ABSENT else text(value) for value in values]


def _exact(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def described_value(value: Any) -> str:
    """Return a value of a configuration as a short text, such as `gmpo(log_clip=0.4)`."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        given = [f"{name}={described_value(each)}" for name, each in arguments.items() if each not in (None, [], {})]
        return _last_name(value["class_path"]) + (f"({', '.join(given)})" if given else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {described_value(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and _OF_THE_LIBRARY.fullmatch(value):
        return _last_name(value)
    return str(value)


def _last_name(path: str) -> str:
    """Return the last name of an import path."""
    return path.rpartition(".")[2]


def _value(config: Config, option: str) -> Any:
    """Return the value of an option, `_ABSENT` if there is none."""
    node: Any = config
    for name in option.split("."):
        node = node.get(name, _ABSENT) if isinstance(node, Mapping) else _ABSENT
    return node


def _leaves_without_seed(config: Config) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in _leaves(config) if not _is_within(name, _OF_ONE_RUN)]


def _is_within(name: str, options: Iterable[str]) -> bool:
    """Return whether a dotted name is one of the options or of a part of one."""
    return any(name == option or name.startswith(f"{option}.") for option in options)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested configuration with their dotted names; a list is one value."""
    if isinstance(node, Mapping) and node:
        for key, child in node.items():
            yield from _leaves(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, node

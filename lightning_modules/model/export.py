"""Trial of the export of a model, before it is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import GenerationConfig, PreTrainedModel

from lightning_modules.distributed import rank
from lightning_modules.model.policy import Policy
from lightning_modules.model.sharding import is_sharded

_SMALL = 2**28  # bytes; writing so many takes about a second


def try_export(policy: Policy, folder: Path) -> None:
    """Try what `Policy.save_pretrained` will need after the training, so that the training is not lost.

    Configuration, generation configuration and tokenizer are saved in a temporary folder, and a small model with its
    weights or adapters too. Every rank must call it; rank 0 writes.

    Args:
        policy: loaded policy.
        folder: folder in which the model will be exported; it is created if it does not exist.

    Raises:
        ValueError: a part of the model cannot be saved, or the folder cannot be written to.
    """
    repair_generation_config(policy.model)
    if rank() != 0:
        return
    model = policy.model
    parts = {"config": model.config.save_pretrained, "tokenizer": policy.tokenizer.save_pretrained}
    if model.can_generate() and model.generation_config is not None:
        parts["generation_config"] = model.generation_config.save_pretrained
    size = sum(weight.nbytes for weight in model.parameters())
    if size <= _SMALL and not is_sharded(model):
        parts["weights"] = policy.save_pretrained
    try:
        with _scratch(folder / ".trial") as scratch:
            for name, save in parts.items():
                _try(name, save, scratch, policy)
            free = shutil.disk_usage(scratch).free
    except OSError as error:
        raise ValueError(
            f"the model will be exported to {str(folder)!r}, which cannot be written to ({error}); make room or grant "
            "access, or choose another folder with `--trainer.default_root_dir`."
        ) from error
    if free < size:
        rank_zero_warn(f"{str(folder)!r} has {free / 1e9:.1f} GB free, but the model will take {size / 1e9:.1f} GB.")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make an empty folder for the context; a killed process may have left one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(name: str, save: Any, folder: Path, policy: Policy) -> None:
    """Save a part of a model, and name it in the error."""
    try:
        save(folder)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"`model_name` is {policy.source!r}, whose {name} cannot be saved, so the trained model could not be saved "
            f"either ({type(error).__name__}: {error}); repair the {name} in the folder of the model."
        ) from error


def repair_generation_config(model: PreTrainedModel) -> None:
    """Drop settings of the generation configuration with which transformers refuses to save it, and warn.

    Transformers loads such a configuration with a warning; most have sampling parameters with greedy decoding,
    where they have no effect.
    """
    config = model.generation_config
    if config is None or not model.can_generate() or _is_valid(config):
        return
    given = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
    # The settings that decide how to generate go first, since they decide which others are valid.
    first = ["eos_token_id", "bos_token_id", "pad_token_id", "do_sample", "num_beams"]
    names = sorted(given, key=lambda name: (first.index(name) if name in first else len(first), name))
    kept: dict[str, Any] = {}
    valid = GenerationConfig()
    for name in names * 2:  # twice, because one may be valid only with a later one
        if name not in kept and (candidate := _valid({**kept, name: given[name]})):
            kept, valid = {**kept, name: given[name]}, candidate
    model.generation_config = valid
    dropped = ", ".join(f"{name}={given[name]!r}" for name in names if name not in kept)
    rank_zero_warn(
        f"the generation_config of {model.name_or_path!r} is not valid, and transformers would not save it; the "
        f"trained model is saved without {dropped}."
    )


def _valid(settings: dict[str, Any]) -> GenerationConfig | None:
    """Return the configuration with these settings, or None if it is not valid."""
    try:
        config = GenerationConfig(**settings)
    except (ValueError, TypeError):
        return None
    return config if _is_valid(config) else None


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except (ValueError, TypeError):
        return False
    return True

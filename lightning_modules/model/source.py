"""Names of models: hub ids, and paths of folders."""

from __future__ import annotations

from pathlib import Path


def require_model(source: str) -> None:
    """Check that a path is a folder with a model or with adapters; a hub id is found out when it is loaded.

    Raises:
        ValueError: it is a path, and not of such a folder.
    """
    folder = Path(source)
    if _is_path(source) and not folder.is_dir():
        found = "is not a folder; pass one"
    elif folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        found = "is a folder without a config.json; pass a folder"
    else:
        return
    raise ValueError(
        f"`model_name` is {source!r}, which {found} that `from_pretrained` loads, or a hub id such as "
        "Qwen/Qwen2.5-0.5B."
    )


def _is_path(model_name: str) -> bool:
    """Return whether the name is a path rather than a hub id, which is `name` or `owner/name`."""
    return model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1

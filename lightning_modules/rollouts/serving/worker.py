"""Extension of the vLLM worker (`--worker-extension-cls`) that loads weights from a shared folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from lightning_modules.rollouts.private_folder import opened_private
from lightning_modules.rollouts.protocol import WeightsDigest, under_all_names


class WorkerExtension:
    """Mixin of the vLLM worker, which must not have a method of the same name."""

    reload_weights: Callable[..., None]  # method of the worker

    def load_policy_file(self, path: str) -> str:
        """Load a safetensors file with the tensor names of a checkpoint, and tied names in its metadata.

        Returns:
            Digest of the loaded weights.

        Raises:
            PermissionError: others can write the file or its folder.
        """
        digest = WeightsDigest()
        # What was checked is what is read: the name could be another file's by now.
        with opened_private(Path(path)) as opened, safe_open(opened, framework="pt") as file:
            tensors = digest.tee((name, file.get_tensor(name)) for name in sorted(file.keys()))
            self.reload_weights(weights_iterator=under_all_names(tensors, file.metadata() or {}))
        return str(digest)

"""The command `aggregate-po flow`, which trains and validates flow-matching models."""

from __future__ import annotations

from typing_extensions import override

from lightning_modules.cli import PolicyCLI, run
from lightning_modules.flow.data_module import FlowDataModule
from lightning_modules.flow.module import FlowModule

_FIT = (
    "Train a flow-matching model on its own trajectories, each denoising step a token. The results are in the run "
    "folder, `--trainer.default_root_dir`. After an option such as `--data.dynamics.help`, name a class to see its "
    "options."
)
_VALIDATE = "Sample the held-out examples by the ODE and score them, without training."


class FlowCLI(PolicyCLI):
    """Lightning CLI (`fit`, `validate`) for a `FlowModule` and a `FlowDataModule`."""

    program = "aggregate-po flow"
    description = "Train a flow-matching model with `fit`, or measure its rewards with `validate`."

    @staticmethod
    @override
    def descriptions() -> dict[str, str]:
        return {"fit": _FIT, "validate": _VALIDATE}


def flow_command(arguments: list[str]) -> PolicyCLI:
    """Run `aggregate-po flow` with the given arguments."""
    return run(arguments, FlowCLI, FlowDataModule, FlowModule)

"""`aggregate-po preflight`: a check on completions of the start model of whether a run can learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_modules.cli import PolicyCLI, run
from lightning_modules.errors import ended_by_its_message
from lightning_modules.memory import GIB
from lightning_modules.planning.job import job_plan
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.preflight.check import preflight
from lightning_modules.preflight.trial_rollout import TrialData, TrialRollout
from lightning_modules.rewards import Reward

_DESCRIPTION = (
    "Sample completions from the start model of a `fit` with the same arguments, and say whether it can learn: pass "
    "rate, groups with signal, truncation, graders that differ, time and memory. Only --completions and --other_reward "
    "are arguments of the preflight alone. Nothing is trained, and no file is written."
)
_COMPLETIONS = "Number of completions to sample, rounded up to whole groups."
_OTHER_REWARD = (
    "Second reward function, such as lightning_modules.rewards.MathReward, to compare with `data.reward` on the same "
    "completions."
)


class PreflightCLI(PolicyCLI):
    """Command line with the arguments of `fit` that samples from the start model instead of training."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the number of completions and the second reward."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--completions", type=int, default=256, help=_COMPLETIONS)
        parser.add_argument("--other_reward", type=Reward | None, default=None, help=_OTHER_REWARD)

    @staticmethod
    @override
    def descriptions() -> dict[str, str]:
        """Return the description of the preflight."""
        return {"fit": _DESCRIPTION}

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Return `fit` alone, because a preflight has the arguments of `fit`."""
        return {"fit": PolicyCLI.subcommands()["fit"]}

    @override
    def before_instantiate_classes(self) -> None:
        """Lock nothing: a preflight writes no files."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Leave out the inference mode, in which no backward pass can be measured."""
        return super().instantiate_trainer(inference_mode=False, **kwargs)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Print the findings, where Lightning would call a method of the trainer."""
        self.before_validate()
        with ended_by_its_message():
            memory = self._memory()  # before the model is loaded
            findings = preflight(
                self.trainer,
                self.model,
                self.datamodule,
                self._get(self.config, "completions"),
                self._get(self.config_init, "other_reward"),
            )
        if self.trainer.is_global_zero:
            lines = [*findings.lines(), *_times(findings.trial, self.datamodule, self.trainer), memory]
            print("\n".join([*lines, "", *findings.verdict()]))

    def _memory(self) -> str:
        try:
            settings = TrainerSettings.of(self._get(self.config_init, "trainer"))
            plan = job_plan(copy.deepcopy(self.model), self.datamodule, settings)
        except ValueError as error:
            return f"memory:       not estimated: {error}"
        device, origin = plan.device_memory
        return (
            f"memory:       {plan.memory.peak / GIB:.2f} GiB at the peak, in the {plan.memory.peak_phase} phase, of "
            f"{device / GIB:.2f} GiB ({origin})"
        )


def _times(trial: TrialRollout, data: TrialData, trainer: Trainer) -> list[str]:
    sampled, rollout = trial.rewards.numel(), data.prompts_per_rollout * data.group_size
    rollout_seconds = trial.sampling_seconds * rollout / sampled
    step_seconds = trial.pass_seconds * trainer.accumulate_grad_batches
    return [
        f"time:         {trial.sampling_seconds:.1f} s for {sampled:,} completions, so about {rollout_seconds:.1f} s "
        f"for a rollout of {rollout:,}; {step_seconds:.1f} s for the passes of an optimizer step",
    ]


def preflight_command(arguments: Sequence[str]) -> None:
    """Print the findings of a configuration, with the arguments of `fit`."""
    run(["fit", *arguments], PreflightCLI, TrialData)

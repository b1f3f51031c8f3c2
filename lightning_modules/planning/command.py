"""`aggregate-po plan`: an estimate of the memory of a `fit`, printed before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

from lightning_modules.cli import PolicyCLI, run
from lightning_modules.errors import ended_by_its_message
from lightning_modules.memory import GIB, PHASES
from lightning_modules.planning.job import JobPlan, job_plan
from lightning_modules.planning.settings import TrainerSettings

_DESCRIPTION = (
    "Estimate the memory of a `fit` with the same arguments, before any weights are loaded. Only --device_memory and "
    "--prompt_length are arguments of the estimate alone."
)
_DEVICE_MEMORY = (
    "Memory of one device in GiB. When None: that of the GPU of this machine, or 80 if it has none; on the CPU, the "
    "memory of this machine divided by the number of devices."
)
_PROMPT_LENGTH = (
    "Number of tokens of the longest prompt; when None, the length of the longest of the first 1,024 training prompts, "
    "which are tokenized for it."
)


class PlanCLI(PolicyCLI):
    """Command line with the arguments of `fit` that estimates memory instead of training."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the memory of a device and the length of prompts, which a configuration does not contain."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--device_memory", type=float | None, default=None, help=_DEVICE_MEMORY)
        parser.add_argument("--prompt_length", type=int | None, default=None, help=_PROMPT_LENGTH)

    @staticmethod
    def descriptions() -> dict[str, str]:
        """Return the description of the estimate."""
        return {"fit": _DESCRIPTION}

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return `fit` alone, because a plan has the arguments of `fit`."""
        return {"fit": PolicyCLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """Lock nothing: a plan writes no files."""

    def instantiate_classes(self) -> None:
        """Build the module and the data, but no trainer: its devices need not exist on this machine."""
        with ended_by_its_message(instantiating=True):
            self.config_init = self.parser.instantiate_classes(self.config)
        self.model, self.datamodule = (self._get(self.config_init, part) for part in ("model", "data"))

    def _run_subcommand(self, subcommand: str) -> None:
        """Print the plan, where Lightning would call a method of the trainer."""
        with ended_by_its_message():
            plan = job_plan(
                self.model,
                self.datamodule,
                TrainerSettings.of(self._get(self.config_init, "trainer")),
                prompt_length=self._get(self.config, "prompt_length"),
                device_memory=self._get(self.config, "device_memory"),
            )
        print(plan_text(plan))


def plan(arguments: Sequence[str]) -> None:
    """Print the plan of a configuration, with the arguments of `fit`."""
    run(["fit", *arguments], PlanCLI)


def plan_text(plan: JobPlan) -> str:
    """Return the lines of a plan."""
    return "\n".join([*_job_lines(plan), "", *_table(plan), "", *_verdict(plan)])


def _job_lines(plan: JobPlan) -> list[str]:
    settings, shape, sharding = plan.settings, plan.micro_batch, plan.settings.sharding
    trained = plan.model.trained_parameters
    which = "all trained" if trained == plan.model.parameters else f"{trained:,} trained"
    device = "GPU" if settings.on_gpu else "CPU"
    divided = f", divided by {sharding.shards}" if sharding.shards > 1 else ""
    length, step = shape.completion_length, plan.completions // plan.updates
    return [
        f"{plan.architecture}, {plan.model.parameters:,} parameters, {which}; {settings.precision}",
        f"{_counted(settings.num_nodes, 'node')} of {settings.devices} x {device}; {settings.strategy}{divided}",
        f"rollout:        {plan.completions:,} completions, at most {plan.completions * length:,} tokens",
        f"optimizer step: {step:,} completions, at most {step * length:,} tokens",
        f"micro-batch:    {_counted(shape.completions, 'completion')} of at most {length:,} tokens, "
        f"{_counted(shape.prompts, 'prompt')} of {shape.prompt_length:,} ({plan.prompt_length_from})",
        f"layout:         {plan.layout} ({plan.layout_from})",
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(plan: JobPlan) -> list[str]:
    entries, (unit, scale) = plan.memory.entries, _unit(plan)
    phases = [phase for phase in PHASES if phase != "scoring" or any(entry.phases == (phase,) for entry in entries)]
    width = max(30, *(len(entry.name) for entry in entries))
    lines = [f"{f'{unit} on each device':<{width}}" + "".join(f"{phase:>11}" for phase in phases)]
    for entry in entries:
        cells = (f"{entry.size / scale:>11.2f}" if phase in entry.phases else f"{'':>11}" for phase in phases)
        lines.append((f"{entry.name:<{width}}" + "".join(cells)).rstrip())
    totals = "".join(f"{plan.memory.total(phase) / scale:>11.2f}" for phase in phases)
    return [*lines, f"{'total':<{width}}{totals}"]


def _unit(plan: JobPlan) -> tuple[str, int]:
    return ("GiB", GIB) if plan.memory.peak >= GIB else ("MiB", 2**20)


def _verdict(plan: JobPlan) -> list[str]:
    memory, (device, origin), (unit, scale) = plan.memory, plan.device_memory, _unit(plan)
    left = device - memory.peak
    verdict = f"{left / GIB:.2f} GiB are left" if left >= 0 else f"{-left / GIB:.2f} GiB are missing"
    largest = memory.largest
    remedy = f"; to lower it, {largest.remedy}" if largest.remedy else ""
    lines = [
        f"peak: {memory.peak / scale:.2f} {unit}, in the {memory.peak_phase} phase; "
        f"a device has {device / GIB:.2f} GiB ({origin}), so {verdict}",
        f"largest: {largest.name}, {largest.size / memory.peak:.0%} of the peak{remedy}",
    ]
    lines += [plan.engine.sentence] if plan.engine.sentence else []
    return lines + [f"not counted: {reason}" for reason in plan.unknown]

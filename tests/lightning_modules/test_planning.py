"""The memory plan: sizes that are exact, arithmetic worked by hand, and the whole beside what a step really takes."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from aggregate_po import PolicyBatch
from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.addition import AdditionProblems, AdditionWarmStart
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.memory import (
    GIB,
    PHASES,
    CachePlan,
    Description,
    EngineMemory,
    Entry,
    LiveMemory,
    SamplingLoad,
    cached_numbers,
)
from lightning_modules.model.layouts import PackedGroups, PackedSequences
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.lora import LoRA
from lightning_modules.planning import ModelSizes, PassSizes, Sharding, memory_plan
from lightning_modules.planning.job import job_plan
from lightning_modules.planning.memory_plan import MemoryPlan, OptimizerSizes
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.planning.source import longest_prompt
from lightning_modules.planning.traces import (
    PassShape,
    model_sizes,
    optimizer_sizes,
    pass_sizes,
    scoring_size,
)
from lightning_modules.rollouts import (
    VLLM,
    RolloutEngine,
    SamplingParameters,
    SharedFolder,
    TransformersEngine,
    VLLMServers,
)
from tests.lightning_modules.training import text_reward
from tests.test_architecture import imported_modules, python_files

# As Qwen2.5-1.5B publishes them.
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 176,
}
MODEL = ModelSizes(
    parameters=100, trained_parameters=80, weights=400, trained=320, largest_layer=50, outside_layers=60, casts=20
)


def bf16():
    return MixedPrecision("bf16-mixed", "cpu").forward_context()


def described(config, context=nullcontext, **options):
    return Description(config, context=context, **options)


# Live tensors


def test_live_memory_counts_storages_once_and_until_they_are_freed():
    before = torch.zeros(1000)
    with LiveMemory() as memory:
        made = torch.zeros(10, 10)
        made.view(-1)[:5].add_(1)
        assert memory.live == 400
        before.add_(1)
        before.t()
        assert memory.live == 400
        del made
        assert (memory.live, memory.peak) == (0, 400)
        memory.reset_peak()
        assert memory.peak == 0


def test_live_memory_sees_the_backward_pass():
    weight = torch.ones(100, requires_grad=True)
    with LiveMemory() as memory:
        (weight * weight).sum().backward()
        assert memory.live == weight.grad.numel() * 4
    assert memory.peak >= 2 * memory.live


# The model


def test_parameters_are_counted_exactly_and_tied_ones_once():
    sizes = model_sizes(Description(Qwen2Config(**QWEN)).model())
    assert sizes.parameters == sizes.trained_parameters == 1_543_714_304
    assert sizes.trained == 4 * 1_543_714_304
    # Queries and output 1536 x 1536, keys and values 1536 x 256, three matrices 1536 x 8960, biases, two norms.
    layer = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960 + 1536 + 2 * 256 + 2 * 1536
    assert sizes.largest_layer == 4 * layer
    assert sizes.outside_layers == 4 * (151936 * 1536 + 1536)


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL, tie_word_embeddings=False), Qwen2Config(**SMALL)])
def test_sizes_are_those_of_a_model_with_weights(config):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sizes = model_sizes(Description(config, torch.bfloat16).model())
    assert sizes.parameters == model.num_parameters()
    assert sizes.trained == 2 * sizes.parameters
    assert sizes.weights == sizes.trained + sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())


def test_the_largest_of_unequal_layers():
    model = Description(LlamaConfig(**SMALL, tie_word_embeddings=False)).model()
    before = model_sizes(model)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 276, bias=False, device="meta")
    assert model_sizes(model).largest_layer == before.largest_layer + 4 * 64 * 100
    assert model_sizes(model).outside_layers == before.outside_layers == 4 * (2 * 4096 * 64 + 64)


def test_autocast_copies_the_trained_matrices_of_the_layers():
    model = Description(LlamaConfig(**SMALL, tie_word_embeddings=False)).model()
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176
    assert model_sizes(model).casts == 0
    assert model_sizes(model, torch.bfloat16).casts == 2 * 3 * matrices
    model.requires_grad_(False)
    assert model_sizes(model, torch.bfloat16).casts == 0


def test_a_model_of_which_little_is_trained():
    model = Description(LlamaConfig(**SMALL)).model().requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    sizes = model_sizes(model)
    assert (sizes.trained_parameters, sizes.trained) == (64, 256)
    sizes = optimizer_sizes(model, torch.optim.AdamW([model.model.norm.weight]), on_gpu=False)
    assert sizes.state == 2 * 256 + 4


# The optimizer


@pytest.mark.parametrize(
    ("make", "states", "steps"),
    [
        (torch.optim.AdamW, 2, 1),
        (torch.optim.SGD, 0, 0),
        (lambda parameters: torch.optim.SGD(parameters, momentum=0.9), 1, 0),
        (torch.optim.Adagrad, 1, 1),
    ],
)
def test_the_state_of_an_optimizer(make, states, steps):
    model = Description(Qwen2Config(**SMALL)).model()
    parameters = list(model.parameters())
    sizes = optimizer_sizes(model, make(parameters), on_gpu=False)
    assert sizes.state == states * model_sizes(model).trained + steps * 4 * len(parameters)


def test_a_fused_step_needs_no_temporaries():
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SMALL), dtype=torch.float32)
    adamw = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 2, dtype=torch.long)).logits.sum().backward()
    with LiveMemory() as memory:
        adamw.step()
    planned = Description(Qwen2Config(**SMALL)).model()
    sizes = optimizer_sizes(planned, torch.optim.AdamW(planned.parameters()), on_gpu=False, fused=True)
    assert sizes.state == pytest.approx(memory.live, rel=0.01)
    assert sizes.step == pytest.approx(memory.peak - memory.live, abs=0.01 * memory.live)


def test_a_gpu_steps_over_all_parameters_at_once():
    model = Description(Qwen2Config(**SMALL, tie_word_embeddings=True)).model()
    one, all_at_once = (
        optimizer_sizes(model, torch.optim.AdamW(model.parameters()), on_gpu) for on_gpu in (False, True)
    )
    assert one.state == all_at_once.state
    assert one.step == pytest.approx(2 * 4096 * 64 * 4, rel=0.01)  # the largest parameter's
    assert all_at_once.step == pytest.approx(model_sizes(model).trained, rel=0.01)


# The arithmetic


def sizes_by_name(plan):
    return {entry.name: entry.size for entry in plan.entries}


def test_one_device_has_everything():
    plan = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70, 5), Sharding(), reference=400)
    assert sizes_by_name(plan) == {
        "weights": 400,
        "gradients": 320,
        "optimizer state": 640,
        "reference model": 400,
        "log-probabilities of the rollout": 5,
        "autocast's copies of weights": 20,
        "activations": 1000,
        "loss head": 70,
        "optimizer's temporaries": 30,
    }
    resident = 400 + 320 + 640 + 400
    totals = {phase: plan.total(phase) - resident for phase in ("rollout", "scoring", "training", "update")}
    assert totals == {"rollout": 0, "scoring": 5, "training": 1090, "update": 30}
    assert (plan.peak_phase, plan.peak, plan.largest.name) == ("training", resident + 1090, "activations")


def test_replicas_have_buckets():
    plan = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), Sharding(8, buckets=True))
    assert plan.peak == 400 + 320 + 320 + 640 + 1020 + 70


def test_shards_are_divided_and_layers_gathered():
    plan = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), Sharding(4, shards=4), reference=400)
    found = sizes_by_name(plan)
    divided = ("weights", "gradients", "optimizer state", "optimizer's temporaries")
    assert [found[name] for name in divided] == [100, 80, 160, 8]
    assert found["gathered weights"] == 60 + 2 * 50
    assert found["gathered gradients"] == 60
    assert found["reference model"] == 100
    assert plan.peak == 100 + 80 + 160 + 160 + 60 + 100 + 1020 + 70


def test_shards_that_are_gathered_in_half_the_bytes():
    sharding = Sharding(4, shards=4, gathered=0.5)
    plan = memory_plan(
        MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), sharding, engine=EngineMemory(gathers_policy=True)
    )
    found = sizes_by_name(plan)
    assert [found[name] for name in ("weights", "gathered weights", "gathered gradients")] == [100, 80, 60]
    assert plan.total("rollout") == 100 + 80 + 160 + 200


@pytest.mark.parametrize(("gathers_policy", "gathered"), [(False, 60 + 2 * 50), (True, 400)])
def test_a_divided_model_samples_as_a_whole_in_the_training_process(gathers_policy, gathered):
    sharding, engine = Sharding(4, shards=4), EngineMemory(gathers_policy=gathers_policy)
    plan = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), sharding, engine=engine)
    assert plan.total("rollout") == 100 + 80 + 160 + gathered
    assert plan.total("training") == 100 + 80 + 160 + 160 + 60 + 1020 + 70
    alone = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), Sharding(), engine=engine)
    assert alone.total("rollout") == 400 + 320 + 640


def test_an_engine_that_sleeps_is_no_part_of_the_training():
    engine = Entry("rollout engine", 5000, ("rollout",))
    plan = memory_plan(MODEL, OptimizerSizes(640, 30), PassSizes(1020, 70), Sharding(), engine=EngineMemory((engine,)))
    assert (plan.peak_phase, plan.largest) == ("rollout", engine)
    assert plan.total("training") == 400 + 320 + 640 + 1090


def test_the_peak_is_one_phase_and_no_sum_over_them():
    plan = MemoryPlan((Entry("a", 3, ("rollout",)), Entry("b", 5, ("update",)), Entry("c", 1)))
    assert (plan.peak, plan.peak_phase, plan.largest.name) == (6, "update", "b")


def test_sequences_that_fit_into_a_cache():
    # 28 layers, keys and values, 2 heads of 128, two bytes each: 28 KiB for a token, 56 MiB for 2048.
    cache = CachePlan(share=24 * GIB, weights=3 * GIB, per_token=28 * 1024, length=2048)
    assert cache.left == 21 * GIB
    assert cache.sequences == 21 * 1024 // 56
    assert CachePlan(share=1, weights=2, per_token=1, length=1).sequences == 0


def test_numbers_that_a_token_leaves_in_the_cache():
    assert cached_numbers(Description(Qwen2Config(**QWEN))) == 28 * 2 * 2 * 128


# The trainer's section


def settings(**arguments):
    return TrainerSettings.of({"accelerator": "gpu", "devices": 1, "precision": None, **arguments})


@pytest.mark.parametrize(("devices", "number"), [(4, 4), ("4", 4), ("0,2", 2), ([1, 2, 3], 3), ("auto", 1), (-1, 1)])
def test_devices(devices, number):
    assert settings(accelerator="cpu", devices=devices).devices == number


@pytest.mark.parametrize(
    ("arguments", "sharding"),
    [
        ({"devices": 1}, Sharding(1)),
        ({"devices": 8}, Sharding(8, buckets=True)),
        ({"devices": 8, "num_nodes": 2, "strategy": "ddp"}, Sharding(16, buckets=True)),
        ({"devices": 2, "strategy": DDPStrategy(gradient_as_bucket_view=True)}, Sharding(2)),
        (
            {"devices": 8, "strategy": ModelParallelStrategy(data_parallel_size=8, tensor_parallel_size=1)},
            Sharding(8, shards=8),
        ),
        ({"devices": 1, "num_nodes": 2, "strategy": ModelParallelStrategy()}, Sharding(2, shards=2)),
        (
            {"devices": 1, "num_nodes": 2, "strategy": ModelParallelStrategy(), "precision": "bf16-mixed"},
            Sharding(2, shards=2, gathered=0.5),
        ),
        ({"devices": 2, "precision": "bf16-mixed"}, Sharding(2, buckets=True)),
    ],
)
def test_strategies(arguments, sharding):
    assert settings(**arguments).sharding == sharding


@pytest.mark.parametrize(
    ("precision", "weights", "autocast"),
    [
        (None, torch.float32, None),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("16", torch.float32, torch.float16),
        ("bf16-true", torch.bfloat16, None),
        (64, torch.float64, None),
    ],
)
def test_precisions(precision, weights, autocast):
    found = settings(precision=precision)
    assert (found.weights_dtype, found.autocast) == (weights, autocast)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"strategy": "deepspeed"}, "`trainer.strategy` is 'deepspeed'"),
        ({"devices": 4, "strategy": ModelParallelStrategy()}, "`tensor_parallel_size` .* are 1 and 4 .* pass 4 and 1"),
        (
            {"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1), "precision": "64-true"},
            "`trainer.precision` is '64-true', which ModelParallelStrategy does not accept",
        ),
        ({"precision": "transformer-engine"}, "`trainer.precision` is 'transformer-engine'"),
        ({"accelerator": "tpu"}, "`trainer.accelerator` is 'tpu'"),
        ({"devices": "many"}, "`trainer.devices` is 'many'"),
        ({"devices": 0}, "`trainer.devices` is 0; pass a number from 1"),
        ({"devices": "-2"}, "`trainer.devices` is '-2'"),
        ({"devices": []}, r"`trainer.devices` is \[\]"),
        ({"num_nodes": 0}, "`trainer.num_nodes` is 0; pass a whole number, 1 or more"),
        ({"accumulate_grad_batches": 0}, "`trainer.accumulate_grad_batches` is 0"),
        ({"accumulate_grad_batches": -3}, "`trainer.accumulate_grad_batches` is -3"),
    ],
)
def test_what_a_plan_does_not_know_is_said(arguments, named):
    with pytest.raises(ValueError, match=named):
        settings(**arguments)


# Passes, beside those of a model with weights


def random_batch(prompts, completions, prompt_length, completion_length):
    generator = torch.Generator().manual_seed(0)
    lengths = [prompt_length, *[prompt_length - 3] * (prompts - 1)]  # padding, so that there is a mask
    ids, mask = left_padded([torch.randint(5, 90, (length,), generator=generator).tolist() for length in lengths])
    shape = (completions, completion_length)
    whole = torch.ones(shape, dtype=torch.bool)
    return RolloutBatch(
        prompt_ids=ids,
        prompt_mask=mask,
        prompt_of=torch.arange(completions) * prompts // completions,
        completion_ids=torch.randint(5, 90, shape, generator=generator),
        completion_mask=whole,
        policy=PolicyBatch(torch.full(shape, -5.0), whole, torch.randn(completions, generator=generator)),
    )


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("context", [nullcontext, bf16])
@pytest.mark.parametrize("config", [Qwen2Config(**SMALL), LlamaConfig(**SMALL)], ids=["tied", "untied"])
@pytest.mark.parametrize("shape", [PassShape(2, 8, 16, 32), PassShape(1, 2, 4, 4)], ids=["many", "few"])
def test_a_plan_foretells_what_a_step_takes(shape, config, context, kept):
    """With few tokens, what the backward pass makes of gradients is more than what it frees."""
    config.tie_word_embeddings = isinstance(config, Qwen2Config)
    planned_model = Description(config).model()
    sizes = model_sizes(planned_model, torch.bfloat16 if context is bf16 else None)
    optimizer = optimizer_sizes(planned_model, torch.optim.AdamW(planned_model.parameters()), on_gpu=False)
    passes = pass_sizes(described(config, context), shape, gradients_kept=kept)
    plan = memory_plan(sizes, optimizer, passes, Sharding())

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    sizes_of_batch = (shape.prompts, shape.completions, shape.prompt_length, shape.completion_length)
    batch, objective = random_batch(*sizes_of_batch), gmpo()
    log_probs_and_entropy(model, batch)  # the first call looks at the head
    adamw = torch.optim.AdamW(model.parameters())
    with LiveMemory() as memory:
        for _ in range(2):
            for _ in range(1 + kept):
                with context():
                    log_probs, entropy = log_probs_and_entropy(model, batch)
                del entropy
                value = objective(log_probs, batch.policy)
                if not kept:
                    adamw.zero_grad()
                value.backward()
                del log_probs, value
            training = memory.taken_peak() + sizes.weights
            adamw.step()
            update = memory.taken_peak() + sizes.weights
    assert plan.total("training") == pytest.approx(training, rel=0.02)
    assert plan.total("update") == pytest.approx(update, rel=0.02)
    state = sum(value.numel() * 4 for values in adamw.state.values() for value in values.values())
    assert optimizer.state == state


@pytest.mark.parametrize(
    "layout",
    [PackedGroups(), PackedSequences(), PackedSequences(recompute=True)],
    ids=["groups", "packed", "recomputed"],
)
def test_a_plan_foretells_what_other_layouts_take(layout):
    config, shape = Qwen2Config(**SMALL), PassShape(1, 4, 16, 32)
    model, batch = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), random_batch(1, 4, 16, 32)
    log_probs_and_entropy(model, batch, layout)[0].sum().backward()
    with LiveMemory() as memory:
        log_probs_and_entropy(model, batch, layout)[0].sum().backward()
    passes = pass_sizes(described(config, layout=layout), shape)
    assert passes.activations + passes.head == pytest.approx(memory.peak, rel=0.05)


@pytest.mark.parametrize("context", [nullcontext, bf16])
def test_a_plan_foretells_what_adapters_take(context):
    config, shape = Qwen2Config(**SMALL, tie_word_embeddings=True), PassShape(2, 8, 16, 32)
    description = described(config, context, lora=LoRA(rank=4))
    sizes = model_sizes(description.model())
    model, batch = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), random_batch(2, 8, 16, 32)
    LoRA(rank=4).adapt(model)
    # Beside queries and output 64 + 64, keys and values 64 + 32, and three matrices 64 + 176, four ranks of each.
    assert sizes.trained_parameters == 3 * 4 * (2 * 128 + 2 * 96 + 3 * 240)
    assert sizes.trained_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    with context():
        log_probs_and_entropy(model, batch)[0].sum().backward()
    with LiveMemory() as memory:
        with context():
            log_probs = log_probs_and_entropy(model, batch)[0]
        log_probs.sum().backward()
    passes = pass_sizes(description, shape)
    assert passes.activations + passes.head == pytest.approx(memory.peak, rel=0.03)


@pytest.mark.parametrize("context", [nullcontext, bf16])
def test_a_plan_foretells_what_scoring_takes(context):
    config = Qwen2Config(**SMALL)
    model, batch = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), random_batch(2, 8, 16, 32)
    log_probs_and_entropy(model, batch)
    with LiveMemory() as memory, torch.no_grad(), context():
        log_probs_and_entropy(model, batch)
    assert scoring_size(described(config, context), PassShape(2, 8, 16, 32)) == pytest.approx(memory.peak, rel=0.02)


# Engines


def load(description, **numbers):
    defaults = {
        "prompts": 32,
        "samples_per_prompt": 8,
        "prompt_length": 512,
        "completion_length": 1024,
        "on_gpu": True,
        "device_memory": 80 * GIB,
    }
    parameters = model_sizes(description.model()).parameters
    return SamplingLoad(description, parameters, torch.bfloat16, **{**defaults, **numbers})


@pytest.mark.parametrize("lengths", [(16, 48), (16, 2), (16, 1), (400, 4)], ids=str)
@pytest.mark.parametrize("context", [nullcontext, bf16])
def test_a_plan_foretells_what_sampling_takes(context, lengths):
    """By the last token of each completion, or by the prompts where these are long."""
    config, (prompt, completion) = Qwen2Config(**SMALL), lengths
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    engine = TransformersEngine()
    engine.load_policy(model)
    sampling = SamplingParameters(completion, stop_token_ids=(), samples_per_prompt=8)
    prompts = [[5] * prompt, [6] * (prompt - 3)]
    with LiveMemory() as memory, context():
        engine.generate(prompts, sampling)
    sizes = {"prompts": 2, "prompt_length": prompt, "completion_length": completion}
    cache, besides = engine.memory(load(described(config, context), **sizes)).entries
    tokens = 64 * math.ceil((prompt + completion - 2) / 64) if completion > 2 else prompt
    bytes_of_keys = bytes_of_values = 4 if context is nullcontext else 2
    assert cache.size == 8 * tokens * cached_numbers(Description(config)) * (bytes_of_keys + bytes_of_values)
    assert cache.size + besides.size == pytest.approx(memory.peak, rel=0.01)


def test_no_more_is_planned_than_is_sampled_at_a_time():
    small = load(described(Qwen2Config(**SMALL)), prompts=4, prompt_length=8, completion_length=8)
    few, many, enough = (TransformersEngine(number).memory(small) for number in (1, 16, 32))
    cached = [memory.entries[0].size for memory in (few, many, enough)]
    assert cached == [cached[0], 2 * cached[0], 4 * cached[0]]
    assert "16 completions at a time, of 32" in many.sentence
    assert few.gathers_policy


def qwen(**numbers):
    return load(Description(Qwen2Config(**QWEN, max_position_embeddings=32768)), **numbers)


def test_the_share_of_vllm():
    found = VLLM(gpu_memory_utilization=0.25, max_model_length=2048, max_sequences=128).memory(qwen())
    assert [(entry.size, entry.phases) for entry in found.entries] == [(20 * GIB, ("rollout",))]
    left = 20 * GIB - 2 * 1_543_714_304
    assert f"{left // (28 * 1024 * 2048)} sequences of 2,048 tokens at once, of 128 requested" in found.sentence
    assert not found.gathers_policy


def test_vllm_on_a_cpu_has_its_weights_and_a_fixed_cache():
    (entry,) = VLLM().memory(qwen(on_gpu=False)).entries
    assert (entry.size, entry.phases) == (2 * 1_543_714_304 + GIB, PHASES)


@pytest.mark.parametrize(("dtype", "weights"), [("auto", 2.88), ("float32", 5.75), ("float16", 2.88)])
def test_the_type_of_vllms_weights(dtype, weights):
    assert f"{weights} of them for weights" in VLLM(dtype=dtype).memory(qwen()).sentence


def test_vllm_computes_in_float32_what_the_trainer_computes_in_float64():
    doubled = replace(qwen(), computation_dtype=torch.float64)
    assert "5.75 of them for weights" in VLLM().memory(doubled).sentence


def test_an_engine_that_never_sleeps_is_there_in_all_phases():
    (entry,) = VLLM(sleep=False).memory(qwen()).entries
    assert "training" in entry.phases


def test_ranks_that_share_an_engine_have_parts_of_its_weights_and_of_its_cache():
    alone, shared = (VLLM(tensor_parallel_size=parts).memory(qwen()).sentence for parts in (1, 2))
    assert "2.88 of them for weights" in alone
    assert "1.44 of them for weights" in shared


def test_what_does_not_fit_into_vllms_share_is_said():
    found = VLLM(gpu_memory_utilization=0.03, max_model_length=1200).memory(qwen()).sentence
    assert "Not one fits: raise `gpu_memory_utilization`" in found
    assert "may take 1,536 tokens: raise `max_model_length`" in found


def test_servers_take_nothing_here(tmp_path):
    engine = VLLMServers(["http://127.0.0.1:8000"], SharedFolder(str(tmp_path)))
    assert engine.memory(qwen()).entries == ()


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("planning", {"rollouts"}),  # engines are asked, and not told apart
        ("memory", {"rollouts", "policy_module", "data", "callbacks", "cli", "planning"}),
        ("model", {"memory"}),
    ],
)
def test_imports_leave_the_answer_to_the_engines(package, above):
    modules = [module for path in python_files(f"lightning_modules/{package}") for module in imported_modules(path)]
    assert len(modules) > 10
    assert {module.split(".")[1] for module in modules if module.startswith("lightning_modules.")} & above == set()


class OwnEngine(RolloutEngine):
    def load_policy(self, model):
        raise AssertionError("a plan loads no policy")

    def generate(self, prompts, sampling):
        raise AssertionError("a plan samples nothing")


class CountedEngine(OwnEngine):
    max_model_length = 70

    def memory(self, load):
        entry = Entry("own engine", 3 * load.completions, ("rollout",))
        return EngineMemory((entry,), f"{load.parameters:,} parameters.", gathers_policy=True)


class FailingEngine(OwnEngine):
    def memory(self, load):
        raise KeyError("no idea")


# Whole jobs


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration and nothing else."""
    described = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 64
    return str(tmp_path)


def job(model_name, data=None, trainer=None, lora=None, **options):
    module = PolicyModule(model_name, gmpo(), lora=lora)
    arguments = {"group_size": 4, "prompts_per_rollout": 8, "max_completion_length": 10, **(data or {})}
    found = job_plan(
        module,
        RolloutDataModule(AdditionProblems(16), text_reward, **arguments),
        settings(**(trainer or {})),
        **options,
    )
    assert found.unknown == ()
    return found


def test_a_micro_batch_is_what_the_data_module_cuts(folder):
    trainer = {"devices": 2, "accumulate_grad_batches": 4}
    found = job(folder, {"updates_per_rollout": 2}, trainer, prompt_length=7).micro_batch
    assert found == PassShape(prompts=1, completions=2, prompt_length=7, completion_length=10)
    budget = {"updates_per_rollout": 2, "tokens_per_micro_batch": 47}
    assert job(folder, budget, trainer, prompt_length=7).micro_batch == PassShape(1, 4, 7, 10)


def test_a_rollout_that_does_not_divide_is_refused(folder):
    with pytest.raises(ValueError, match="`prompts_per_rollout` is 8"):
        job(folder, trainer={"devices": 3})


@pytest.mark.parametrize("data", [{"kl_in_reward": 0.1}, {"old_log_probs": "trainer"}, {}])
def test_a_reference_and_scoring_are_counted_where_there_are_any(folder, data):
    found = job(folder, data)
    names = sizes_by_name(found.memory)
    assert ("reference model" in names) == ("kl_in_reward" in data)
    assert ("log-probabilities of the rollout" in names) == bool(data)


def test_adapters_need_no_copy_for_a_reference(folder):
    found = job(folder, {"kl_in_reward": 0.1}, lora=LoRA(rank=2))
    names = sizes_by_name(found.memory)
    assert "reference model" not in names
    assert "log-probabilities of the rollout" in names
    assert names["gradients"] == 4 * found.model.trained_parameters < names["weights"] / 10


def test_the_longest_prompt_is_found_without_a_model(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / "cache"))
    made = job(AdditionWarmStart())
    assert made.model.parameters == 889_088
    assert made.prompt_length_from == "the longest of all 16"
    assert made.micro_batch.prompt_length == 12
    assert not (tmp_path / "cache").exists()
    assert "assumed" in job(folder).prompt_length_from
    assert job(folder, {"rollouts": VLLM(max_model_length=100)}).micro_batch.prompt_length == 90


def test_the_longest_prompt_is_not_above_the_maximum_length(tiny_model):
    problems, tokenizer = AdditionProblems(16), AutoTokenizer.from_pretrained(tiny_model)
    longest = max(len(problem["prompt"]) for problem in problems)

    def found(tokenizer, **options):
        return longest_prompt(RolloutDataModule(problems, text_reward, **options), tokenizer)

    whole = found(tokenizer)
    doubled = found(tokenizer, prompt_template="{prompt}{prompt}")
    short = found(tokenizer, max_prompt_length=whole[0] - 1)
    assert doubled[0] > whole[0] > short[0]
    assert longest >= whole[0]
    assert {origin for _, origin in (whole, doubled, short)} == {"the longest of all 16"}
    assert found(None, max_prompt_length=64) == (64, "`max_prompt_length`; there is no tokenizer")


def test_an_engine_of_ones_own_says_what_it_takes(folder):
    trainer = {"devices": 2, "strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}
    found = job(folder, {"rollouts": CountedEngine()}, trainer)
    names = sizes_by_name(found.memory)
    assert names["own engine"] == 3 * 16
    assert "full weights for sampling" in names
    assert found.engine.sentence == f"{found.model.parameters:,} parameters."
    assert found.micro_batch.prompt_length == 60


def test_an_engine_is_asked_for_the_parameters_that_it_has(folder):
    adapted = job(folder, {"rollouts": CountedEngine()}, lora=LoRA(rank=2))
    whole = job(folder, {"rollouts": CountedEngine()})
    assert adapted.engine.sentence == whole.engine.sentence
    assert adapted.model.parameters > whole.model.parameters


def test_an_engine_that_says_nothing_is_not_counted(folder):
    assert job(folder, {"rollouts": OwnEngine()}).engine.sentence == "OwnEngine: unknown to a plan, so not counted."


def test_an_engine_that_fails_is_said_to_be_unknown(folder):
    data = RolloutDataModule(AdditionProblems(16), text_reward, rollouts=FailingEngine())
    found = job_plan(PolicyModule(folder, gmpo()), data, settings(), prompt_length=5)
    assert found.unknown == ("the rollout engine: KeyError: 'no idea'",)


def test_an_optimizer_that_looks_into_data_is_said_to_be_unknown(folder):
    module = PolicyModule(folder, gmpo(), optimizer=torch.optim.Adafactor)
    data = RolloutDataModule(AdditionProblems(16), text_reward)
    found = job_plan(module, data, settings(), prompt_length=5)
    assert found.unknown[0].startswith("the optimizer: ")
    assert "optimizer state" not in sizes_by_name(found.memory)


class Source:
    def prepare(self):
        raise AssertionError("a plan makes no model")


def test_models_that_cannot_be_described_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"`model_name` is .*Source.* has no `describe`.* pass the folder"):
        job(Source())
    (tmp_path / "config.json").write_text("{}")  # of no architecture
    with pytest.raises(ValueError, match=r"`model_name` is '.*', whose config.json was not found.* pass a folder"):
        job(str(tmp_path))
    with pytest.raises(ValueError, match=r"`model_name` is 'nobody/nothing', whose config.json .*hub id that can be"):
        job("nobody/nothing")

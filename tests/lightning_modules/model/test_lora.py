"""Adapters: their gradients, what they are a reference of, what is trained, kept and left behind."""

from contextlib import suppress
from types import SimpleNamespace

import peft
import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from aggregate_po import K3Penalty, PolicyBatch
from aggregate_po.recipes import gmpo, grpo
from lightning_modules import LoRA, PackedGroups, PackedSequences, PolicyModule, SharedPrompts
from lightning_modules.model.lora import without_adapters
from lightning_modules.model.weights import policy_weights
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    NotedAdvantages,
    RecordingEngine,
    copied,
    exact,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    small_data,
    trained_parameters,
)

PROMPTS = [[5, 6, 7, 8, 40], [10, 11, 12]]
DRAWN = SimpleNamespace(
    token_ids=torch.tensor([[20, 21, 22], [23, 24, 0], [25, 26, 27], [28, 0, 0]]),
    mask=torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool(),
)


def adapted_module(model_folder, objective=None, **options):
    """A policy with a step large enough to see, and adapters of a rank that is not one of the model's sizes."""
    lora = LoRA(**{"rank": 3, "alpha": 6, **options})
    return PolicyModule(model_folder, objective or gmpo(), learning_rate=1e-2, warmup_steps=0, lora=lora)


@torch.no_grad()
def log_probs_of(model):
    return plain_log_prob_matrix(model, PROMPTS, DRAWN)


@pytest.fixture
def trained(tmp_path, model_folder):
    return fitted(tmp_path, model_folder, module=adapted_module(model_folder), max_steps=2).module


# Gradients


class RandomAdapters(Callback):
    """Adapters that act from the first step on; by themselves one factor is zero, and the other's gradient too."""

    def on_fit_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(0)
        for _, parameter in trained_parameters(pl_module.model):
            parameter.data.normal_(std=0.2, generator=generator)


def merged_by_hand(model, adapters, scaling):
    """The plain model as a function of its adapters, `W + scaling B A`."""
    weights = dict(model.named_parameters())
    for name in [name for name in adapters if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        product = adapters[name.replace(".lora_A.", ".lora_B.")] @ adapters[name]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scaling * product
    return lambda **inputs: torch.func.functional_call(model, weights, kwargs=inputs)


@pytest.mark.parametrize(
    ("accumulate", "layout"),
    [(1, PackedGroups()), (3, PackedGroups()), (1, SharedPrompts()), (1, PackedSequences(recompute=True))],
    ids=["one batch", "in three", "two passes", "recomputed"],
)
@pytest.mark.parametrize("objective", [grpo(), gmpo()], ids=["grpo", "gmpo"])
def test_gradients_are_those_of_the_merged_model(tmp_path, model, model_folder, objective, accumulate, layout):
    engine, recorder = RecordingEngine(shift=0.2), BatchRecorder()
    noted = NotedAdvantages(lambda step: step.rewards - step.rewards.mean())
    module = ExactPolicy(model_folder, objective, layout=layout, lora=LoRA(rank=3, alpha=6))
    data = small_data(rollouts=engine, advantages=noted)
    options = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
    fitted(tmp_path, model_folder, module=module, data=data, callbacks=[RandomAdapters(), recorder], **options)

    names = recorder.gradients[0].keys()
    adapters = {name: recorder.parameters[0][name].requires_grad_() for name in names}
    plain, generated = merged_by_hand(exact(model).double(), adapters, scaling=2.0), engine.generated[0]
    log_probs = plain_log_prob_matrix(plain, engine.prompts[0], generated)
    advantages = noted.estimator(noted.steps[0])
    (-objective(log_probs, PolicyBatch(generated.log_probs, generated.mask, advantages))).backward()
    assert len(names) == 2 * 7 * 2  # two factors, seven linear layers, two blocks
    assert largest_difference(recorder.gradients[0], {name: adapters[name].grad for name in names}) < 1e-12
    assert min(float(gradient.abs().max()) for gradient in recorder.gradients[0].values()) > 1e-5


# What is trained


def test_adapters_alone_are_trained(tmp_path, model, model_folder):
    run = fitted(tmp_path, model_folder, module=adapted_module(model_folder), max_steps=3)
    trained, start = run.module, copied(model)
    parameters = dict(trained_parameters(trained.model))
    assert all(".lora_A." in name or ".lora_B." in name for name in parameters)
    assert run.trainer.optimizers[0].state.keys() == set(parameters.values())
    base = {
        name.replace(".base_layer", ""): value
        for name, value in copied(trained.model).items()
        if name not in parameters
    }
    assert largest_difference(base, start) == 0
    assert (log_probs_of(trained.model) - log_probs_of(model)).abs().max() > 1e-2
    assert all(value.any() for name, value in parameters.items() if ".lora_B." in name)


def test_an_optimizer_that_makes_its_state_at_once_has_none_of_frozen_weights(tmp_path, model_folder):
    module = PolicyModule(model_folder, gmpo(), lora=LoRA(3), optimizer=lambda p: torch.optim.Adagrad(p, lr=1e-3))
    run = fitted(tmp_path, model_folder, module=module)
    assert run.trainer.optimizers[0].state.keys() == {value for _, value in trained_parameters(run.module.model)}


def test_fresh_adapters_are_the_same_everywhere_and_change_nothing(model, model_folder):
    """On every rank, whatever it has generated before."""
    modules = [adapted_module(model_folder, seed=seed) for seed in (5, 5, 6)]
    for number, module in enumerate(modules):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        module.configure_model()
        assert torch.equal(state, torch.get_rng_state())
        assert not any(layer.training for layer in module.model.modules())
        assert torch.equal(log_probs_of(module.model), log_probs_of(model))
    parameters = [copied(module.model) for module in modules]
    assert largest_difference(parameters[0], parameters[1]) == 0
    assert largest_difference(parameters[0], parameters[2]) > 0.1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_sampler_samples_from_the_adapted_policy(tmp_path, model_folder, precision):
    """Ratios of a rollout's first update are one, after the adapters have moved too."""
    seen = []

    class Ratios(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append([trainer.callback_metrics[f"ratio/{name}"].item() for name in ("min", "max")])

    module = adapted_module(model_folder)
    data = small_data(updates_per_rollout=2)
    fitted(tmp_path, model_folder, module=module, data=data, max_steps=4, precision=precision, callbacks=[Ratios()])
    tolerance = 1e-4 if precision == "32-true" else 0.1
    assert [ratio for ratios in seen[0::2] for ratio in ratios] == pytest.approx([1] * 4, abs=tolerance)
    assert seen[3][1] > 1.05


def test_layers_that_are_named(model_folder):
    module = adapted_module(model_folder, target_modules=["q_proj", "layers.1.mlp.up_proj"])
    module.configure_model()
    layers = {name.partition(".lora_")[0] for name, _ in trained_parameters(module.model)}
    assert layers == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


# The reference


def test_the_reference_is_the_model_without_adapters(tmp_path, model_folder, monkeypatch):
    """Bit for bit the log-probabilities of a second copy, and none is loaded."""
    loaded = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **options: (loaded.append(a), load(*a, **options))[1]
    )
    recorder = BatchRecorder()
    module = adapted_module(model_folder, grpo(penalties=[K3Penalty(0.1)]))
    run = fitted(tmp_path, model_folder, module=module, max_steps=3, callbacks=[recorder])
    assert len(loaded) == 1
    assert module.policy.reference is None
    assert run.metrics["kl"].item() > 1e-4

    untouched = PolicyModule(model_folder, gmpo())
    untouched.configure_model()
    with torch.no_grad():
        for batch in recorder.batches:
            expected = untouched.policy.log_probs(batch)
            assert torch.equal(module.policy.reference_log_probs(batch), expected)
            mask = batch.policy.response_mask
            assert (batch.policy.ref_log_probs - expected)[mask].abs().max() < 1e-5  # noted by a larger batch
        assert (module.policy.log_probs(batch) - expected).abs().max() > 1e-2
    assert len(trained_parameters(module.model)) == 28


def test_without_need_there_is_no_reference(trained):
    with pytest.raises(RuntimeError, match="the policy keeps no reference"):
        trained.policy.reference_log_probs(None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_at_the_first_step_the_policy_is_its_reference(tmp_path, model_folder, precision):
    module = adapted_module(model_folder, grpo(penalties=[K3Penalty(0.1)]))
    run = fitted(tmp_path, model_folder, module=module, precision=precision)
    assert 0 <= run.metrics["kl"].item() < 1e-9


def test_adapters_act_again_after_an_error(trained):
    before, trainable = log_probs_of(trained.model), trained_parameters(trained.model)
    with suppress(KeyError), without_adapters(trained.model):
        assert not torch.equal(log_probs_of(trained.model), before)
        raise KeyError
    assert torch.equal(log_probs_of(trained.model), before)
    assert [name for name, _ in trained_parameters(trained.model)] == [name for name, _ in trainable]


# Checkpoints


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, model_folder):
    objective = grpo(penalties=[K3Penalty(0.1)])

    def run(steps, **options):
        data, module = small_data(updates_per_rollout=2), adapted_module(model_folder, objective)
        return fitted(tmp_path, model_folder, module=module, data=data, max_steps=steps, **options)

    torch.manual_seed(0)
    undisturbed = run(4)
    torch.manual_seed(0)
    run(2).trainer.save_checkpoint(tmp_path / "two.ckpt")
    torch.manual_seed(1)  # a process of its own may begin with anything
    resumed = run(4, ckpt_path=tmp_path / "two.ckpt")
    assert largest_difference(copied(resumed.module.model), copied(undisturbed.module.model)) == 0
    assert resumed.metrics["kl"] == undisturbed.metrics["kl"] > 0


def test_a_checkpoint_holds_adapters_alone(tmp_path, model_folder):
    run = fitted(tmp_path, model_folder, module=adapted_module(model_folder))
    run.trainer.save_checkpoint(tmp_path / "adapters.ckpt")
    saved = torch.load(tmp_path / "adapters.ckpt", weights_only=False)["state_dict"]
    assert saved.keys() == {f"model.{name}" for name, _ in trained_parameters(run.module.model)}
    options = {"ckpt_path": tmp_path / "adapters.ckpt", "max_steps": 2}
    others = [LoRA(5, 6), LoRA(3, 64), LoRA(3, 6, target_modules=["q_proj"]), None]
    for lora in others:
        module = PolicyModule(model_folder, gmpo(), lora=lora)
        with pytest.raises(
            ValueError, match=r"`lora` is .*, but the checkpoint was made with {'rank': 3, .*; pass that"
        ):
            fitted(tmp_path, model_folder, module=module, **options)


def test_weights_are_no_checkpoint_of_adapters(tmp_path, model_folder):
    fitted(tmp_path, model_folder).trainer.save_checkpoint(tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"`lora` is LoRA.*, but the checkpoint was made with None; pass that"):
        fitted(tmp_path, model_folder, module=adapted_module(model_folder), ckpt_path=tmp_path / "weights.ckpt")


def test_a_strategy_that_reads_checkpoints_by_itself_finds_all_weights(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    run = fitted(tmp_path, model_folder, module=adapted_module(model_folder))
    run.trainer.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=False)["state_dict"]
    assert saved.keys() == run.module.state_dict().keys()


# What is left behind


def test_the_merged_folder_is_a_plain_model_of_the_trained_policy(tmp_path, model_folder, trained):
    before = copied(trained.model)
    expected = log_probs_of(trained.model)
    trained.policy.save_pretrained(tmp_path / "model")
    assert largest_difference(copied(trained.model), before) == 0
    assert torch.equal(log_probs_of(trained.model), expected)

    files = [load_file(f"{folder}/model.safetensors") for folder in (tmp_path / "model", model_folder)]
    assert {name: w.shape for name, w in files[0].items()} == {name: w.shape for name, w in files[1].items()}
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert not getattr(loaded, "peft_config", None)
    assert loaded.dtype == torch.float32
    assert loaded.generation_config.eos_token_id == trained.model.generation_config.eos_token_id
    assert (
        largest_difference(copied(loaded), {name: dict(policy_weights(trained.model))[name] for name in files[0]}) == 0
    )
    assert (log_probs_of(loaded) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "load", [AutoModelForCausalLM.from_pretrained, peft.AutoPeftModelForCausalLM.from_pretrained], ids=["auto", "peft"]
)
def test_the_adapter_folder_loads_on_top_of_its_model(tmp_path, model_folder, load):
    module = adapted_module(model_folder, export="adapter")
    trained = fitted(tmp_path, model_folder, module=module, max_steps=2).module
    trained.policy.save_pretrained(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    loaded = load(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(log_probs_of(loaded), log_probs_of(trained.model))


# Shards


@pytest.fixture
def mesh(tmp_path):
    """Device mesh of one process; the tensors are sharded nonetheless."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_a_sharded_model_trains_and_is_saved_in_full(tmp_path, model, model_folder, mesh, export):
    lora, expected = LoRA(rank=3, export=export), log_probs_of(model)
    lora.adapt(model)
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD([parameter for _, parameter in trained_parameters(model)], lr=0.05)
    for _ in range(2):
        with without_adapters(model):
            assert torch.equal(log_probs_of(model), expected)
        plain_log_prob_matrix(model, PROMPTS, DRAWN).sum().backward()
        optimizer.step()
    assert all(
        isinstance(parameter, DTensor) and parameter.grad is not None for _, parameter in trained_parameters(model)
    )
    lora.save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert (log_probs_of(loaded) - log_probs_of(model)).abs().max() < 1e-4
    assert (log_probs_of(loaded) - expected).abs().max() > 1e-2


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "`rank` is 0; pass 1 or more"),
        ({"alpha": 0}, "`alpha` is 0; pass 1 or more"),
        ({"target_modules": []}, r"`target_modules` is \[\]; pass `all-linear` or names"),
        ({"export": "zip"}, "`export` is 'zip'; pass 'merged' or 'adapter'"),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**arguments)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nope"], r"`target_modules` is \['nope'\]; pass names of linear layers"),
        (["q_proj", "input_layernorm"], "pass names of linear layers.*Qwen2RMSNorm"),
        (["q_proj", "embed_tokens"], r"has model\.embed_tokens; pass linear layers other than the output layer"),
        (
            ".*lm_head",
            r"`target_modules` is '\.\*lm_head', which has lm_head; pass linear layers other than the output",
        ),
    ],
)
def test_layers_that_cannot_be_adapted_are_named(model, names, message):
    with pytest.raises(ValueError, match=message):
        LoRA(target_modules=names).adapt(model)


def test_a_model_is_adapted_once(model):
    LoRA().adapt(model)
    with pytest.raises(ValueError, match="has adapters already; merge them"):
        LoRA().adapt(model)


def test_the_folder_of_an_adapter_is_not_trained_on(tmp_path, model_folder):
    module = adapted_module(model_folder, export="adapter")
    module.configure_model()
    module.policy.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="has only frozen weights, as an adapter has; merge it first"):
        fitted(tmp_path, str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="has adapters already; merge them"):
        fitted(tmp_path, model_folder, module=adapted_module(str(tmp_path / "adapter")))


def test_the_library_is_asked_for_before_a_model_loads(monkeypatch):
    monkeypatch.setattr("lightning_modules.model.lora.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"LoRA needs `peft`.*run pip install -e \"\.\[lora\]\""):
        LoRA()

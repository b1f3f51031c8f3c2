"""Stable Diffusion 3 pipelines: the pipeline's own images, adapters, references, checkpoints and exports."""

import io

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors import safe_open

from aggregate_po import GaussianKL
from aggregate_po.recipes import grpo_guard
from lightning_modules import MicroBatchObserver, RunCheckpoint
from lightning_modules.flow import (
    ODE,
    DiffusersPipeline,
    FlowDataModule,
    FlowModule,
    InverseStepSize,
    TransformerLoRA,
    sample_trajectories,
    uniform_times,
)
from lightning_modules.flow.diffusers import compressibility
from tests.lightning_modules.flow.pipelines import SHIFT, save_pipeline
from tests.lightning_modules.training import BatchRecorder, quiet_trainer, trained_parameters

PROMPTS = ["a red cat", "two dogs on a hill"]
EXAMPLES = [{"prompt": prompt} for prompt in PROMPTS]
FLOAT32 = {"text_dtype": "float32", "max_sequence_length": 12}
LORA = TransformerLoRA(rank=3, alpha=6)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny")


@pytest.fixture
def pipeline(folder):
    loaded = StableDiffusion3Pipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def source_of(folder, **options):
    return DiffusersPipeline(folder, **{**FLOAT32, **options})


def noise(model, count=2):
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(1))


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


SCORED = []


def brightness(image, example):
    SCORED.append((image, example["prompt"]))
    return float(np.asarray(image).mean()) / 255


# The pipeline's own images


@pytest.mark.parametrize("guidance", [4.5, 1.0, 0.0])
@pytest.mark.parametrize("size", [{}, {"height": 8, "width": 12}], ids=["made for", "others"])
def test_a_trajectory_of_the_ode_is_the_call_of_the_pipeline(folder, pipeline, guidance, size):
    model = source_of(folder, guidance=guidance, negative_prompt="blurred", **size).load()
    times = uniform_times(5, SHIFT)
    trajectory = sample_trajectories(model, model.encode(EXAMPLES), times, ODE(), seeds=[3, 4])
    found = model.decode(trajectory.final_latents)
    sigmas = np.linspace(1, 1 / 5, 5)  # before the shift, which the scheduler applies
    options = {"sigmas": sigmas, "guidance_scale": guidance, "negative_prompt": ["blurred"] * 2, **size}
    start = trajectory.latents[:, 0]
    options |= {"max_sequence_length": 12, "num_inference_steps": 5, "latents": start}
    latents = pipeline(PROMPTS, **options, output_type="latent").images
    torch.testing.assert_close(trajectory.final_latents, latents, rtol=1e-5, atol=1e-5)
    assert np.abs(pixels(found) - pixels(pipeline(PROMPTS, **options).images)).max() <= 1
    height, width = size.get("height", 16), size.get("width", 16)
    assert found[0].size == (width, height)
    assert (latents - start).abs().max() > 0.5


def test_the_velocity_is_noise_minus_sample(folder, pipeline):
    """The step of the scheduler goes along the output of the transformer, by the difference of the noise levels."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(5)
    sample, eps = torch.randn(2, 1, 4, 8, 8)
    start = scheduler.scale_noise(sample, scheduler.timesteps[1:2], eps)
    reached = scheduler.step(eps - sample, scheduler.timesteps[1], start, return_dict=False)[0]
    torch.testing.assert_close(reached, scheduler.scale_noise(sample, scheduler.timesteps[2:3], eps))
    model = source_of(folder, guidance=1.0).load()
    conditions, latents = model.encode(EXAMPLES), noise(model)
    output = pipeline.transformer(
        hidden_states=latents,
        timestep=torch.tensor([250.0, 730.0]),
        encoder_hidden_states=conditions["prompt"],
        pooled_projections=conditions["pooled_prompt"],
    ).sample
    torch.testing.assert_close(model(latents, torch.tensor([0.25, 0.73]), **conditions), output)


def test_default_times_of_the_scheduler_end_just_before_the_sample(folder):
    """It spaces its steps from noise to its smallest training time, which it shifts twice, and adds 0."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(10)
    smallest = SHIFT * 1e-3 / (1 + (SHIFT - 1) * 1e-3)
    even = torch.linspace(1, smallest, 10, dtype=torch.float64)
    expected = torch.cat([SHIFT * even / (1 + (SHIFT - 1) * even), torch.zeros(1)]).float()
    torch.testing.assert_close(scheduler.sigmas, expected)
    assert scheduler.sigmas[-2] < 0.009 < uniform_times(10, SHIFT)[-2] / 20
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10).tolist())
    torch.testing.assert_close(scheduler.sigmas, uniform_times(10, SHIFT))
    torch.testing.assert_close(scheduler.timesteps, 1000 * uniform_times(10, SHIFT)[:-1])


def test_without_guidance_there_is_one_forward_pass_without_negatives(folder):
    for guidance, names in ((1.0, {"prompt", "pooled_prompt"}), (1.1, {"negative", "pooled_negative"})):
        assert names <= source_of(folder, guidance=guidance).load().encode(EXAMPLES).keys()
    assert "negative" not in source_of(folder, guidance=1.0).load().encode(EXAMPLES)


def test_rows_do_not_depend_on_each_other(folder):
    model = source_of(folder).load()
    times, latents = torch.tensor([0.9, 0.4]), noise(model)
    both = model(latents, times, **model.encode(EXAMPLES))
    alone = model(latents[1:], times[1:], **model.encode(EXAMPLES[1:]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-6)


def test_embeddings_of_a_t5_that_is_left_out_are_zero(tmp_path, folder):
    for path in (folder, save_pipeline(tmp_path, text_encoder_3=None, tokenizer_3=None)):
        model = source_of(path, t5=False).load()
        assert len(model.text_encoders) == 2
        prompts = model.encode(EXAMPLES)["prompt"]
        assert prompts.shape == (2, 16 + 12, 32)
        assert not prompts[:, 16:].any()
        assert torch.equal(prompts[:, :16], source_of(folder).load().encode(EXAMPLES)["prompt"][:, :16])


def test_the_random_state_is_kept_and_weights_are_the_same_again(folder):
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(source_of(folder, lora=LORA).load().state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], weight) for name, weight in states[1].items())


# What is trained


def test_adapters_have_the_layers_and_the_start_of_flow_grpo(folder, pipeline):
    model = source_of(folder, lora=TransformerLoRA()).load()
    config = model.transformer.peft_config["default"]
    names = [name for name, _ in trained_parameters(model)]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 64, 0.0)
    assert {name.split(".attn.")[1].split(".lora_")[0] for name in names} == {
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        *("to_k", "to_out.0", "to_q", "to_v"),
    }
    assert not any("attn2" in name for name in names)
    weights = dict(model.named_parameters())
    first = torch.cat([weights[name].flatten() for name in names if "lora_A" in name])
    assert first.std().item() == pytest.approx(1 / 32, rel=0.05)
    assert all(not weights[name].any() for name in names if "lora_B" in name)
    plain = source_of(folder).load()
    conditions = model.encode(EXAMPLES)
    at = noise(model), torch.tensor([0.9, 0.1])
    torch.testing.assert_close(model(*at, **conditions), plain(*at, **conditions))


def test_without_adapters_all_weights_of_the_transformer_are_trained(folder):
    model = source_of(folder).load()
    trained = {name for name, _ in trained_parameters(model)}
    assert trained == {f"transformer.{name}" for name, _ in model.transformer.named_parameters()}
    assert not any(module.training for module in model.modules())


def test_data_types(folder):
    options = {"text_dtype": "bfloat16", "transformer_dtype": "bfloat16", "lora": LORA}
    model = source_of(folder, **options).load()
    assert all(parameter.dtype == torch.float32 for _, parameter in trained_parameters(model))
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.text_encoders.parameters()} == {torch.bfloat16}
    assert model.transformer.proj_out.weight.dtype == torch.bfloat16
    conditions = model.encode(EXAMPLES)
    assert conditions["prompt"].dtype == torch.bfloat16
    velocity = model(noise(model), torch.tensor([0.9, 0.1]), **conditions)
    assert velocity.dtype == torch.float32
    exact = source_of(folder).load()
    expected = exact(noise(model), torch.tensor([0.9, 0.1]), **exact.encode(EXAMPLES))
    torch.testing.assert_close(velocity, expected, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(noise(model), torch.tensor([0.9, 0.1]), **conditions).dtype == torch.float32
        images = pixels(model.decode(noise(model)))
    assert (images == pixels(exact.decode(noise(exact)))).all()  # the VAE stays float32


def test_gradient_checkpointing_changes_no_gradient(folder):
    gradients = []
    for checkpointing in (False, True):
        model = source_of(folder, lora=LORA, gradient_checkpointing=checkpointing).load()
        moved(model)
        assert model.transformer.gradient_checkpointing == checkpointing
        velocity = model(noise(model), torch.tensor([0.9, 0.1]), **model.encode(EXAMPLES))
        with model.initial_weights(), torch.no_grad():  # between the two passes, as for a reference
            model(noise(model), torch.tensor([0.9, 0.1]), **model.encode(EXAMPLES))
        velocity.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trained_parameters(model)})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
        assert gradient.any() or "add_" in name  # the last block has no output for the text


def moved(model):
    """Give the adapters an effect."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_the_reference_is_the_model_without_adapters(folder):
    model, fresh = source_of(folder, lora=LORA).load(), source_of(folder).load()
    moved(model)
    at, conditions = (noise(model), torch.tensor([0.9, 0.1])), model.encode(EXAMPLES)
    changed = model(*at, **conditions)
    with model.initial_weights():
        assert torch.equal(model(*at, **conditions), fresh(*at, **conditions))
    assert torch.equal(model(*at, **conditions), changed)
    assert (changed - fresh(*at, **conditions)).abs().max() > 1e-2
    assert fresh.initial_weights() is None


# Training


def fitted_pipeline(folder, source, objective=None, max_steps=2, ckpt_path=None, callbacks=(), accumulate=1, **options):
    data = FlowDataModule(
        EXAMPLES,
        brightness,
        group_size=4,
        prompts_per_rollout=2,
        updates_per_rollout=2,
        steps=3,
        evaluation_steps=4,
        shift=SHIFT,
        step_weights=InverseStepSize(),
        **options,
    )
    module = FlowModule(source, objective or grpo_guard(steps=3), learning_rate=0.01)
    trainer = quiet_trainer(
        folder,
        max_steps=max_steps,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return module, data, trainer


class FirstRatios(MicroBatchObserver):
    """Keeps the largest log ratio of each micro-batch."""

    def __init__(self):
        self.log_ratios = []

    def on_micro_batch(self, trainer, micro_batch):
        log_ratio = micro_batch.log_probs - micro_batch.inputs.old_log_probs
        self.log_ratios.append(float(log_ratio.abs().max()))


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
def test_two_steps_of_training(tmp_path, folder, lora):
    source = source_of(folder, lora=lora)
    seen = FirstRatios()
    options = {"validation": EXAMPLES, "steps_per_micro_batch": 9, "trajectories_at_once": 3}
    module, data, trainer = fitted_pipeline(tmp_path, source, callbacks=[seen], accumulate=2, **options)
    assert max(seen.log_ratios[:2]) < 1e-5 < max(seen.log_ratios)
    assert 0 < trainer.callback_metrics["reward"] < 1
    assert trainer.callback_metrics["grad_norm"] > 0
    start, trained = source.load().state_dict(), module.model.state_dict()
    changed = {name for name, weight in trained.items() if not torch.equal(start[name], weight)}
    assert changed
    assert changed <= {name for name, _ in trained_parameters(module.model)}
    SCORED.clear()
    measured = trainer.validate(module, data, verbose=False)[0]
    assert [(image.size, prompt) for image, prompt in SCORED] == [((16, 16), prompt) for prompt in PROMPTS]
    expected = pixels([image for image, _ in SCORED]).mean() / 255
    assert measured["val/reward_ode"] == pytest.approx(expected, abs=1e-6)


def test_the_reference_of_a_run_is_no_second_model(tmp_path, folder):
    recorder = BatchRecorder()
    objective = grpo_guard(steps=3, penalties=[GaussianKL(0.1)])
    module, _, _ = fitted_pipeline(tmp_path, source_of(folder, lora=LORA), objective, callbacks=[recorder])
    assert module.policy.reference is None
    batch = recorder.batches[-1]
    passed = module.policy.current(batch)
    fresh = source_of(folder).load()
    rows = batch.at(batch.stochastic_steps)
    with torch.no_grad():
        own = rows.transition(module.model(rows.latents, rows.times, **rows.conditions))
        reference = rows.transition(fresh(rows.latents, rows.times, **rows.conditions))
    assert torch.equal(passed.inputs.ref_divergence.flatten(), own.divergence(reference.mean))
    assert (passed.inputs.ref_divergence > 0).all()


def test_resumes_bit_for_bit_from_the_adapters_alone(tmp_path, folder):
    def run(name, max_steps, lora=LORA, ckpt_path=None):
        callbacks = [RunCheckpoint(dirpath=str(tmp_path / name), every_n_train_steps=1)]
        source = source_of(folder, lora=lora)
        return fitted_pipeline(tmp_path / name, source, None, max_steps, ckpt_path, callbacks)[0].model

    whole = run("whole", 4).state_dict()
    run("parts", 3)
    last = tmp_path / "parts" / "last.ckpt"
    saved = torch.load(last, weights_only=False)["state_dict"]
    assert {name.split(".")[-3] for name in saved} == {"lora_A", "lora_B"}
    resumed = run("parts", 4, ckpt_path=last).state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    with pytest.raises(ValueError, match=r"the form {'rank': 4, .*, but those of the checkpoint {'rank': 3, .*pass"):
        run("parts", 5, TransformerLoRA(rank=4, alpha=6), last)
    with pytest.raises(ValueError, match=r"the form {'transformer': 'all weights'}, but those of the checkpoint"):
        run("parts", 5, None, last)


# Exports


def test_exported_adapters_are_those_of_load_lora_weights(tmp_path, folder, pipeline):
    source = source_of(folder, lora=LORA, guidance=1.0)
    model = source.load()
    moved(model)
    source.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert all(name.startswith("transformer.transformer_blocks.") for name in file.keys())  # noqa: SIM118
    conditions = model.encode(EXAMPLES)
    at, inputs = (noise(model), torch.tensor([0.9, 0.1])), {}
    inputs = {"hidden_states": at[0], "timestep": 1000 * at[1], "return_dict": False}
    inputs |= {"encoder_hidden_states": conditions["prompt"], "pooled_projections": conditions["pooled_prompt"]}
    plain = pipeline.transformer(**inputs)[0]
    pipeline.load_lora_weights(tmp_path)
    loaded = pipeline.transformer.peft_config["default_0"]
    assert (loaded.r, loaded.lora_alpha) == (3, 6)
    with torch.no_grad():
        torch.testing.assert_close(pipeline.transformer(**inputs)[0], model(*at, **conditions))
    assert (plain - model(*at, **conditions)).abs().max() > 1e-2


def test_an_exported_transformer_is_that_of_its_class(tmp_path, folder):
    source = source_of(folder)
    model = source.load()
    moved(model)
    source.save(model, tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path, subfolder="transformer")
    assert all(torch.equal(loaded.state_dict()[name], w) for name, w in model.transformer.state_dict().items())


# Rewards


def test_the_size_of_a_file_is_that_of_the_jpeg():
    """A flat image is the smallest; noise is larger the less of it is flat."""
    rng = np.random.default_rng(0)
    sizes = []
    for rows in (0, 32, 64):
        values = np.full((64, 64, 3), 90, dtype=np.uint8)
        values[:rows] = rng.integers(0, 256, (rows, 64, 3), dtype=np.uint8)
        image, file = Image.fromarray(values), io.BytesIO()
        image.save(file, format="JPEG", quality=95)
        sizes.append(compressibility(image, {}))
        assert sizes[-1] == -len(file.getvalue()) / 1000
    assert 0 > sizes[0] > sizes[1] > sizes[2]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "`height` is 0"),
        ({"guidance": -1.0}, "`guidance` is -1.0"),
        ({"max_sequence_length": 600}, "`max_sequence_length` is 600; pass at most 512"),
        ({"text_dtype": "fp8"}, "`text_dtype` is 'fp8'; pass one of float32, bfloat16, float16"),
        ({"transformer_dtype": "bfloat16"}, "`transformer_dtype` is 'bfloat16', in which small updates .* pass"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusersPipeline("pipeline", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "`rank` is 0"), ({"alpha": 0}, "`alpha` is 0"), ({"target_modules": []}, "`target_modules` is")],
)
def test_arguments_of_adapters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerLoRA(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 15}, "`height` is 15; pass a multiple of 4, at most 32"),
        ({"width": 64}, "`width` is 64; pass a multiple of 4, at most 32"),
        ({"lora": TransformerLoRA(target_modules=["to_x"])}, r"`target_modules` is \['to_x'\]; pass names of linear"),
    ],
)
def test_arguments_are_checked_against_the_pipeline(folder, options, message):
    with pytest.raises(ValueError, match=message):
        source_of(folder, **options).load()


def test_a_path_of_something_else_is_refused_before_anything_is_loaded(tmp_path, folder):
    source_of(folder).prepare()
    with pytest.raises(ValueError, match=r"`path` is '.*', which is neither the folder of a pipeline, .* nor"):
        DiffusersPipeline(str(tmp_path)).prepare()
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match=r"`path` is '.*', a FluxPipeline; pass a StableDiffusion3Pipeline, or write"):
        DiffusersPipeline(str(tmp_path)).prepare()


def test_a_pipeline_of_the_hub_is_downloaded_once_per_node(folder, monkeypatch):
    """The hub is that of a stub."""
    calls = []
    monkeypatch.setattr(
        StableDiffusion3Pipeline, "load_config", lambda path, revision: {"_class_name": "StableDiffusion3Pipeline"}
    )
    monkeypatch.setattr(StableDiffusion3Pipeline, "download", lambda path, revision: calls.append((path, revision)))
    DiffusersPipeline("stabilityai/stable-diffusion-3.5-medium", revision="main").prepare()
    DiffusersPipeline(folder).prepare()
    assert calls == [("stabilityai/stable-diffusion-3.5-medium", "main")]


def test_a_prompt_of_messages_is_refused(folder):
    with pytest.raises(ValueError, match=r'the "prompt" of an example is \[.*\]; pass a text'):
        source_of(folder).load().encode([{"prompt": [{"role": "user", "content": "a cat"}]}])


@pytest.mark.parametrize(("package", "made"), [("diffusers", DiffusersPipeline), ("peft", lambda _: TransformerLoRA())])
def test_what_is_not_installed_is_named(monkeypatch, package, made):
    for module in ("flow.diffusers.source", "model.lora"):
        monkeypatch.setattr(f"lightning_modules.{module}.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"`{package}`.* not installed; run pip install -e \"\.\["):
        made("pipeline")

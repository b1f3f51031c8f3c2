"""Helpers for tests of training: quiet trainers, rewards, recording engines, plain forward passes."""

import zlib
from types import SimpleNamespace

import torch
from lightning import Callback, Trainer
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from aggregate_po import AdvantageEstimator
from aggregate_po.advantages import GroupCentered
from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.addition import AdditionProblems
from lightning_modules.micro_batch import current_rollout_metrics
from lightning_modules.rollouts import Completions, TransformersEngine


def text_reward(completion, example):
    """A reward from 0 to 1 that depends on every character, and on nothing else."""
    return zlib.crc32((example["prompt"] + completion).encode()) % 5 / 4


class NotedAdvantages(AdvantageEstimator):
    """Advantages by another estimator, or any function of a rollout's rewards, with a note of what it saw."""

    def __init__(self, estimator=GroupCentered()):
        self.estimator, self.steps = estimator, []

    @property
    def needs_step_rewards(self):
        return getattr(self.estimator, "needs_step_rewards", False)

    def __call__(self, step):
        self.steps.append(step)
        return self.estimator(step)


def quiet_trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


def small_data(**options):
    defaults = {
        "dataset": AdditionProblems(16),
        "reward": text_reward,
        "group_size": 4,
        "prompts_per_rollout": 4,
        "max_completion_length": 6,
        "truncated": "score",
    }
    return RolloutDataModule(**{**defaults, **options})


def fitted(folder, model_folder, objective=None, data=None, module=None, ckpt_path=None, **trainer_options):
    """A finished `fit`, with its trainer, module and data."""
    data = small_data() if data is None else data
    module = PolicyModule(model_folder, objective or gmpo(), learning_rate=1e-3) if module is None else module
    trainer = quiet_trainer(folder, **trainer_options)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return SimpleNamespace(trainer=trainer, module=module, data=data, metrics=trainer.callback_metrics)


def exact(model):
    """The model with normalizations in its own precision; the library computes those in float32, whatever it is."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2RMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


class ExactPolicy(PolicyModule):
    """A policy for `Trainer(precision="64-true")` that computes in float64 throughout."""

    def configure_model(self):
        super().configure_model()
        for model in filter(None, (self.model, self.policy.reference)):
            exact(model)


class RecordingEngine(TransformersEngine):
    """Records requests and generated completions; `shift` of a generator moves the noted log-probabilities."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = shift
        self.prompts, self.sampling, self.generated = [], [], []

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        noise = torch.randn(generated.log_probs.shape, generator=torch.Generator().manual_seed(len(self.generated)))
        log_probs = torch.where(generated.mask, generated.log_probs + self.shift * noise, 0)
        generated = Completions(generated.token_ids, generated.mask, log_probs, generated.finished)
        self.prompts.append(prompts)
        self.sampling.append(sampling)
        self.generated.append(generated)
        return generated


class BatchRecorder(Callback):
    """Keeps the micro-batches, and the gradients and parameters that each update ends with."""

    def __init__(self):
        self.batches, self.gradients, self.parameters, self.steps_after, self.metrics = [], [], [], [], []

    def on_fit_start(self, trainer, pl_module):
        self.parameters.append(copied(pl_module.model))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        self.metrics.append(current_rollout_metrics(trainer))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: p.grad.clone() for name, p in trained_parameters(pl_module.model)})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps_after.append(trainer.global_step)
        if batch.closes_update:
            self.parameters.append(copied(pl_module.model))


def copied(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained_parameters(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def plain_logits(model, prompt, completion, temperature=1.0):
    """Logits of one completion's tokens by one forward pass over one row: no cache, no padding."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
    return logits[len(prompt) - 1 : -1]


def plain_log_probs(model, prompt, completion, temperature=1.0):
    log_probs = torch.log_softmax(plain_logits(model, prompt, completion, temperature), dim=-1)
    return log_probs[torch.arange(len(completion)), torch.tensor(completion)]


def tokens_of(generated, row):
    return generated.token_ids[row, : int(generated.mask[row].sum())].tolist()


def plain_log_prob_matrix(model, prompts, generated, temperature=1.0):
    """Log-probabilities of a full rollout, row by row, zero on padding; shape `batch time`."""
    group = len(generated.token_ids) // len(prompts)
    matrix = torch.zeros(generated.token_ids.shape, dtype=torch.double)
    for row in range(len(matrix)):
        tokens = tokens_of(generated, row)
        matrix[row, : len(tokens)] = plain_log_probs(model, prompts[row // group], tokens, temperature)
    return matrix

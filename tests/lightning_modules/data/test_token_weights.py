"""Weights of tokens in training: computed for the whole rollout, the same in any split, refused without a meaning."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    PolicyBatch,
    PolicyObjective,
    PositionWeights,
    TokenMean,
    TokenWeighting,
    TopEntropy,
)
from aggregate_po.recipes import ctpo, gmpo, pmpo
from lightning_modules.data import token_weights as module
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    NotedAdvantages,
    RecordingEngine,
    fitted,
    largest_difference,
    plain_logits,
    small_data,
    tokens_of,
)

DAPO = PolicyObjective(ArithmeticMean(), normalizer=TokenMean())


def run_of(folder, model_folder, weighting, objective=DAPO, accumulate=1, policy=None, **options):
    engine, recorder = RecordingEngine(), BatchRecorder()
    arguments = {"old_log_probs": "trainer", "token_weights": weighting, "rollouts": engine, **options}
    trainer_options = {"callbacks": [recorder], "accumulate_grad_batches": accumulate}
    if policy is not None:
        trainer_options |= {"module": policy, "precision": "64-true"}
    run = fitted(folder, model_folder, objective, small_data(**arguments), **trainer_options)
    return SimpleNamespace(metrics=run.metrics, recorder=recorder, batches=recorder.batches, engine=engine)


def entropy_matrix(model, prompts, generated):
    """Entropies of a full rollout, row by row, minus infinity on padding; shape `batch time`."""
    group = len(generated.token_ids) // len(prompts)
    matrix = torch.full(generated.token_ids.shape, -torch.inf, dtype=torch.double)
    for row in range(len(matrix)):
        tokens = tokens_of(generated, row)
        log_p = torch.log_softmax(plain_logits(model, prompts[row // group], tokens), dim=-1)
        matrix[row, : len(tokens)] = -(log_p.exp() * log_p).sum(dim=-1)
    return matrix


@torch.no_grad()
def test_tokens_of_highest_entropy_of_the_rollout_are_trained(tmp_path, model_folder, model):
    everywhere = NotedAdvantages(lambda step: torch.ones_like(step.rewards))
    run = run_of(tmp_path, model_folder, TopEntropy(0.7), advantages=everywhere)
    (generated,) = run.engine.generated
    entropies = entropy_matrix(model, run.engine.prompts[0], generated)
    threshold = torch.quantile(entropies[generated.mask], 0.3)
    (batch,) = run.batches
    clear = (entropies - threshold).abs() > 1e-4  # the tokens after one prompt tie, up to rounding
    assert torch.equal(batch.policy.response_mask[clear], (entropies >= threshold)[clear])
    assert clear.sum() > 80
    assert batch.policy.mean_weights is None  # a mask, which every part reads
    kept = batch.policy.response_mask.sum().item()
    assert batch.policy.totals.tokens == kept
    assert batch.policy.totals.completions == batch.policy.response_mask.any(dim=-1).sum()
    assert run.metrics["tokens/trained_ratio"].item() == pytest.approx(kept / generated.mask.sum().item())


def test_weights_by_position_leave_the_totals_as_they_are(tmp_path, model_folder):
    weighting = PositionWeights(power=-0.5)
    run = run_of(tmp_path, model_folder, weighting, old_log_probs="sampler")
    (batch,), (generated,) = run.batches, run.engine.generated
    torch.testing.assert_close(batch.policy.mean_weights, weighting(generated.mask, None))
    assert batch.policy.totals.tokens == pytest.approx(generated.mask.sum().item())
    assert run.metrics["tokens/trained_ratio"].item() == 1


@pytest.mark.parametrize("weighting", [TopEntropy(0.5), PositionWeights(base=0.7)])
def test_micro_batches_change_no_gradient(tmp_path, model_folder, weighting):
    gradients = []
    for accumulate in (1, 3):
        policy = ExactPolicy(model_folder, pmpo(), learning_rate=1e-3)
        run = run_of(tmp_path / str(accumulate), model_folder, weighting, accumulate=accumulate, policy=policy)
        gradients.append(run.recorder.gradients[0])
    assert largest_difference(*gradients) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-6


def test_totals_are_those_of_the_weights(tmp_path, model_folder):
    everywhere = NotedAdvantages(lambda step: torch.ones_like(step.rewards))
    for accumulate in (1, 4):
        run = run_of(tmp_path / str(accumulate), model_folder, Centered(), accumulate=accumulate, advantages=everywhere)
        total = sum(batch.policy.mean_weights.double().sum().item() for batch in run.batches)
        assert [batch.policy.totals.tokens for batch in run.batches] == pytest.approx([total] * accumulate)


def test_without_weights_there_is_no_metric(tmp_path, model_folder):
    run = run_of(tmp_path, model_folder, None)
    assert "tokens/trained_ratio" not in run.metrics
    assert run.batches[0].policy.mean_weights is None


def test_a_checkpoint_keeps_the_weights(tmp_path, model_folder):
    (batch,) = run_of(tmp_path, model_folder, PositionWeights(power=1.0)).batches
    again = type(batch).from_state_dict(batch.state_dict())
    assert torch.equal(again.policy.mean_weights, batch.policy.mean_weights)


# --- several ranks


@dataclass(frozen=True)
class Centered(TokenWeighting):
    """Depends on the tokens of all ranks, and on their order."""

    needs_entropies = True

    def __call__(self, response_mask, entropies):
        mean = entropies[response_mask].mean()
        return (1 + torch.arange(len(response_mask)).unsqueeze(-1)) * (entropies - mean).abs()


@pytest.mark.parametrize("weighting", [TopEntropy(0.4), PositionWeights(power=1.0), Centered()])
def test_ranks_together_are_one(monkeypatch, weighting):
    """Two ranks take four prompts in turn; the completions of one are shorter."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(8, 6, generator=generator) < 0.7
    entropies = torch.rand(8, 6, generator=generator)
    rows = [torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])]
    mask[rows[1], 4:] = False
    widths = [6, 4]
    whole, whole_ratio = weights_on_rank(monkeypatch, 0, weighting, [(mask, entropies)])
    shards = [(mask[part, :width], entropies[part, :width]) for part, width in zip(rows, widths, strict=True)]
    for rank, (part, width) in enumerate(zip(rows, widths, strict=True)):
        weights, ratio = weights_on_rank(monkeypatch, rank, weighting, shards)
        assert torch.equal(weights, whole[part, :width])
        assert ratio == whole_ratio


def weights_on_rank(monkeypatch, rank, weighting, shards):
    """What one rank computes, where each rank has a mask and entropies."""
    monkeypatch.setattr(module, "data_parallel_size", lambda trainer: len(shards))
    monkeypatch.setattr(module, "data_parallel_rank", lambda trainer: rank)
    width = max(mask.shape[1] for mask, _ in shards)

    def gathered(values, trainer):
        if values.ndim == 2:
            return torch.tensor([[mask.shape[1]] for mask, _ in shards])
        tables = [torch.stack([mask.float(), entropies], dim=-1) for mask, entropies in shards]
        tables = [torch.nn.functional.pad(table, (0, 0, 0, width - table.shape[1])) for table in tables]
        assert torch.equal(values, tables[rank])
        return torch.cat(tables)

    monkeypatch.setattr(module, "gathered_over_ranks", gathered)
    mask, entropies = shards[rank]
    groups = SimpleNamespace(response_mask=mask, group_size=2)
    return module.token_weights(weighting, groups, entropies, trainer=None)


# --- what is refused


def test_entropies_of_a_sampler_are_not_known():
    with pytest.raises(ValueError, match=r"^`token_weights` is TopEntropy\(share=0.2\), but `old_log_probs` is"):
        small_data(token_weights=TopEntropy())
    small_data(token_weights=PositionWeights())


def test_rules_are_instances():
    with pytest.raises(TypeError, match=r"^`token_weights` is 0\.2; pass an instance of a subclass of aggregate_po"):
        small_data(token_weights=0.2)


class OneWeight(TokenWeighting):
    def __call__(self, response_mask, entropies):
        return response_mask.float().mean(dim=-1)


def test_weights_have_the_shape_of_the_mask(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"^`OneWeight.__call__` returned shape \(16,\); return shape `batch time`"):
        run_of(tmp_path, model_folder, OneWeight(), objective=gmpo())


def test_an_objective_that_counts_every_token_once_takes_booleans_only(tmp_path, model_folder):
    engine = RecordingEngine()
    with pytest.raises(ValueError, match=r"^`token_weights` is PositionWeights\(.*\), but a part of the objective"):
        run_of(tmp_path, model_folder, PositionWeights(power=1.0), objective=ctpo(), rollouts=engine)
    assert not engine.generated  # before anything is sampled
    run = run_of(tmp_path, model_folder, TopEntropy(0.5), objective=ctpo())
    assert isinstance(run.batches[0].policy, PolicyBatch)

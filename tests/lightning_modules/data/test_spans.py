"""Spans in training: numbered once for a rollout, carried by every micro-batch, and refused where they are none."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from aggregate_po import ArithmeticMean, GeometricMean, NestedMean, PessimisticClip, PolicyObjective
from lightning_modules import Sentences, SpanRule, Turns
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    RecordingEngine,
    fitted,
    largest_difference,
    small_data,
)

OVER_SPANS = PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean()), PessimisticClip.log(0.4, 0.4))


class Pairs(SpanRule):
    """Two tokens each."""

    def __call__(self, token_ids, response_mask, tokenizer):
        assert tokenizer.decode is not None
        return (torch.arange(token_ids.shape[1]) // 2).expand_as(token_ids)


class Pieces:
    """A tokenizer whose tokens are these texts; by its names, a leading space is part of a token."""

    TEXTS = ("The", " sum", ".", " of", " 3", "14", ".\n\n", "?", "\n", "Dr", '!"', " ")

    def batch_decode(self, rows):
        return [self.TEXTS[token] for (token,) in rows]

    def convert_ids_to_tokens(self, tokens):
        return [self.TEXTS[token].replace(" ", "\u0120") for token in tokens]

    @classmethod
    def ids(cls, *texts):
        return torch.tensor([[cls.TEXTS.index(text) for text in texts]])


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        (("The", " sum", ".", " of", " 3"), [0, 0, 0, 1, 1]),
        (("The", " 3", ".", "14", ".", " of"), [0, 0, 0, 0, 0, 1]),
        (("The", ".\n\n", "The", "?"), [0, 0, 1, 1]),
        (("The", "\n", "\n", "The"), [0, 0, 1, 2]),
        (("Dr", ".", "\n", "The", " "), [0, 0, 1, 2, 2]),
    ],
    ids=["a period", "a number", "a paragraph", "an empty line", "a period before a break"],
)
def test_sentences_end_with_a_mark_before_a_space_or_with_a_break(texts, spans):
    token_ids = Pieces.ids(*texts)
    assert Sentences()(token_ids, torch.ones_like(token_ids).bool(), Pieces()).tolist() == [spans]


def test_a_token_beyond_the_vocabulary_has_a_place_in_a_sentence(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    token_ids = torch.tensor([[1, len(tokenizer) + 3, 1]])
    assert Sentences()(token_ids, torch.ones_like(token_ids).bool(), tokenizer).tolist() == [[0, 0, 0]]


def test_other_marks_may_end_a_sentence():
    token_ids = Pieces.ids("The", '!"', " of", ".", " of")
    mask = torch.ones_like(token_ids).bool()
    assert Sentences()(token_ids, mask, Pieces()).tolist() == [[0, 0, 0, 0, 1]]
    assert Sentences((".", '!"'))(token_ids, mask, Pieces()).tolist() == [[0, 0, 1, 1, 2]]


def test_turns_are_runs_of_trained_tokens():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [0] * 8]).bool()
    turns = Turns()(torch.zeros_like(mask).long(), mask, Pieces())
    assert turns[0][mask[0]].tolist() == [0, 0, 1, 2, 2]
    assert turns[1][mask[1]].tolist() == [0] * 5
    assert (turns >= 0).all()


def run_of(folder, model_folder, spans, accumulate=1, policy=None, **options):
    engine, recorder = RecordingEngine(), BatchRecorder()
    trainer_options = {"callbacks": [recorder], "accumulate_grad_batches": accumulate}
    if policy is not None:
        trainer_options |= {"module": policy, "precision": "64-true"}
    fitted(folder, model_folder, OVER_SPANS, small_data(spans=spans, rollouts=engine, **options), **trainer_options)
    return SimpleNamespace(recorder=recorder, batches=recorder.batches, engine=engine)


def test_a_batch_has_the_spans_of_the_rollout_and_a_checkpoint_keeps_them(tmp_path, model_folder):
    run = run_of(tmp_path, model_folder, Pairs())
    (batch,) = run.batches
    mask = batch.policy.response_mask
    assert torch.equal(batch.policy.span_ids[mask], (torch.arange(mask.shape[1]) // 2).expand_as(mask)[mask])
    again = type(batch).from_state_dict(batch.state_dict())
    assert torch.equal(again.policy.span_ids, batch.policy.span_ids)


def test_micro_batches_change_no_gradient(tmp_path, model_folder):
    gradients = []
    for accumulate in (1, 3):
        policy = ExactPolicy(model_folder, OVER_SPANS, learning_rate=1e-3)
        run = run_of(tmp_path / str(accumulate), model_folder, Pairs(), accumulate=accumulate, policy=policy)
        gradients.append(run.recorder.gradients[0])
    assert largest_difference(*gradients) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-6


def test_sentences_of_the_tokenizer_of_a_model(tmp_path, model_folder):
    (batch,) = run_of(tmp_path, model_folder, Sentences()).batches
    assert batch.policy.span_ids.dtype == torch.long


def test_a_mean_over_spans_names_the_option_that_it_lacks(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"^`span_ids` is None, but NestedMean .* as RolloutDataModule does with its"):
        run_of(tmp_path, model_folder, None)


def test_rules_are_instances():
    with pytest.raises(TypeError, match=r"^`spans` is 'turns'; pass an instance of a subclass of lightning_modules.Sp"):
        small_data(spans="turns")


class OneSpan(SpanRule):
    def __call__(self, token_ids, response_mask, tokenizer):
        return torch.zeros(len(token_ids), dtype=torch.long)


def test_spans_have_the_shape_of_the_mask(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"^`OneSpan.__call__` returned shape \(16,\); return shape `batch time`"):
        run_of(tmp_path, model_folder, OneSpan())

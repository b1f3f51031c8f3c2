"""Rows of tokens: what they hold, of which completions, and reading them back."""

import pytest
import torch

from aggregate_po import PolicyBatch
from aggregate_po.recipes import gmpo, grpo, pmpo
from lightning_modules import read_token_rows
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.micro_batch import inert
from lightning_modules.parquet_files import step_file, write_rows
from lightning_modules.token_rows import TokenRow, token_files, token_rows
from lightning_modules.token_texts import TokenTexts

PROMPTS = [[65, 66, 67], [68]]


def batch(advantages=(2.0, -1.0, 1.0), **changes):
    """Three completions of 3, 4 and 2 tokens; the second token of the first one is not trained."""
    prompt_ids, prompt_mask = left_padded(PROMPTS)
    mask = torch.arange(4) < torch.tensor([[3], [4], [2]])
    trained = mask.clone()
    trained[0, 1] = False
    ids = torch.arange(70, 82).reshape(3, 4) * mask
    old = torch.full((3, 4), -2.0)
    policy = PolicyBatch(old, trained, torch.tensor(advantages), groups=torch.tensor([5, 7, 7]))
    fields = {"samples": torch.tensor([1, 0, 3]), "rewards": torch.tensor([0.5, torch.nan, 1.0]).double()}
    prompt_of = torch.tensor([0, 1, 1])
    return RolloutBatch(prompt_ids, prompt_mask, prompt_of, ids, mask, policy, **{**fields, **changes})


LOG_PROBS = torch.tensor([[-1.9, -7.0, -1.0, -3.0], [-2.2, -2.0, -30.0, -1.9], [-2.0, -2.1, -9.0, -9.0]])


def rows_of(micro_batch, tokenizer, objective=None, log_probs=LOG_PROBS):
    evaluated = (objective or gmpo()).evaluate(log_probs, micro_batch.policy)
    return token_rows(3, micro_batch, log_probs, evaluated, TokenTexts(tokenizer))


def test_a_row_has_what_the_step_computed(tokenizer):
    micro_batch = batch()
    weights = gmpo().gradient_weights(LOG_PROBS, micro_batch.policy)
    rows = rows_of(micro_batch, tokenizer)
    assert [list(row) for row in rows] == [list(TokenRow.__annotations__)] * 3
    assert [(row["step"], row["group"], row["sample"]) for row in rows] == [(3, 5, 1), (3, 7, 0), (3, 7, 3)]
    assert [row["reward"] for row in rows] == [0.5, None, 1.0]
    assert [row["advantage"] for row in rows] == [2.0, -1.0, 1.0]
    assert [row["exponent"] for row in rows] == [None] * 3
    assert [row["prompt"] for row in rows] == [tokenizer.decode(PROMPTS[number]) for number in (0, 1, 1)]
    for number, (row, length) in enumerate(zip(rows, (3, 4, 2), strict=True)):
        ids = micro_batch.completion_ids[number, :length].tolist()
        assert row["token_ids"] == ids
        assert row["completion"] == "".join(row["tokens"]) == tokenizer.decode(ids)
        assert row["trained"] == micro_batch.policy.response_mask[number, :length].tolist()
        for name in ("concentration", "gate", "clipped", "overflow"):
            assert row[name] == getattr(weights, name)[number, :length].tolist()
        assert row["weights"] == weights.total[number, :length].tolist()
    assert rows[0]["log_probs"] == LOG_PROBS.where(micro_batch.policy.response_mask, 0)[0, :3].tolist()
    assert [row["old_log_probs"] for row in rows] == [[-2.0, 0.0, -2.0], [-2.0] * 4, [-2.0] * 2]
    assert rows[0]["clipped"] == [False, False, True]
    assert rows[1]["overflow"] == [False, False, True, False]


def test_rows_of_tokens_with_their_own_advantages_and_of_a_chosen_exponent(tokenizer):
    advantages = torch.arange(12.0).reshape(3, 4) - 4
    rows = rows_of(batch(advantages.tolist()), tokenizer, grpo())
    assert [row["advantage"] for row in rows] == [[-4.0, 0.0, -2.0], [0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]
    evaluated = pmpo().evaluate(LOG_PROBS, batch().policy)
    assert [row["exponent"] for row in rows_of(batch(), tokenizer, pmpo())] == evaluated.exponents.tolist()


def test_any_split_has_the_same_rows(tokenizer):
    whole = rows_of(batch(), tokenizer)
    split = []
    for part in ([2], [1, 0]):
        micro_batch = batch().select(torch.tensor(part))
        split += rows_of(micro_batch, tokenizer, log_probs=LOG_PROBS[part, : micro_batch.completion_ids.shape[1]])
    assert split == [dict(row) for row in whole[::-1]]


def test_completions_without_a_trained_token_have_no_row(tokenizer):
    assert rows_of(inert(batch()), tokenizer) == []


def test_numbers_survive_a_checkpoint_and_a_selection():
    found = RolloutBatch.from_state_dict(batch().state_dict()).select(torch.tensor([2, 0]))
    assert found.samples.tolist() == [3, 1]
    assert found.rewards.tolist() == [1.0, 0.5]
    assert found.policy.groups.tolist() == [7, 5]
    without = batch(samples=None, rewards=None).state_dict()
    del without["samples"], without["rewards"]  # as checkpoints were before
    assert RolloutBatch.from_state_dict(without).select(torch.tensor([1])).samples is None


def test_a_batch_without_numbers_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"`batch\.samples` is None, so .*; set it as RolloutDataModule does"):
        rows_of(batch(samples=None), tokenizer)
    assert [row["reward"] for row in rows_of(batch(rewards=None), tokenizer)] == [None] * 3


def test_rows_are_read_by_step(tmp_path, tokenizer):
    pytest.importorskip("pyarrow")
    (tmp_path / "tokens").mkdir()
    rows = {step: [{**row, "step": step} for row in rows_of(batch(), tokenizer)] for step in (2, 10, 30)}
    for step, own in rows.items():
        write_rows(own, step_file(tmp_path / "tokens", step))
    assert [path.name for path in token_files(tmp_path).values()] == [
        f"step-0000{step}.parquet" for step in ("02", 10, 30)
    ]
    assert read_token_rows(str(tmp_path)) == [*rows[2], *rows[10], *rows[30]]
    assert read_token_rows(tmp_path, step=10) == rows[10]
    assert read_token_rows(tmp_path, step=(3, 30)) == [*rows[10], *rows[30]]
    assert read_token_rows(tmp_path, step=(3, 9)) == []
    with pytest.raises(FileNotFoundError, match=r"`step` is 3, but .* has token rows of the steps \[2, 10, 30\] only"):
        read_token_rows(tmp_path, step=3)
    with pytest.raises(FileNotFoundError, match=r"has no files tokens/step-\*.*callbacks\+=lightning_modules\.Token"):
        read_token_rows(tmp_path / "other")

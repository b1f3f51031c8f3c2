"""Prompts and completions in one row: the attention of each completion alone, and the passes of the other layouts."""

from contextlib import nullcontext
from threading import Thread

import pytest
import torch
from torch import nn
from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_modules.batch import Sequences, left_padded
from lightning_modules.model.attention import within_groups
from lightning_modules.model.group_row import GroupRow
from lightning_modules.model.layouts import PackedGroups, PaddedSequences, SharedPrompts
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.lora import LoRA
from tests.lightning_modules.architectures import small_model

PROMPTS = [4, 2, 3]  # tokens
COMPLETIONS = [(0, 5), (2, 1), (0, 3), (1, 4), (1, 6)]  # prompt and tokens, of more than one group at a time


def batch_of(prompts=PROMPTS, completions=COMPLETIONS):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 250, (40,), generator=generator).tolist()
    prompt_ids, prompt_mask = left_padded([[ids.pop() for _ in range(length)] for length in prompts])
    lengths = torch.tensor([length for _, length in completions]).unsqueeze(-1)
    time = int(lengths.max())
    mask = torch.arange(time) < lengths
    completion_ids = torch.randint(3, 250, mask.shape, generator=generator) * mask
    return Sequences(prompt_ids, prompt_mask, torch.tensor([one for one, _ in completions]), completion_ids, mask)


def results(model, batch, layout):
    """Log-probabilities, and the gradients of a weighted sum of them."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log_probs, _ = log_probs_and_entropy(model, batch, layout)
    slopes = torch.linspace(-1, 1, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    return log_probs.detach(), torch.autograd.grad((log_probs * slopes).sum(), parameters, allow_unused=True)


def require_equal(found, expected, tolerance):
    assert (found[0] - expected[0]).abs().max() < tolerance
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() < tolerance * max(1.0, other.abs().max().item())


# Attention


class Layer(nn.Module):
    num_key_value_groups, is_causal = 2, True


def attended_alone(query, key, value, window):
    """Attention of the last queries of one sequence; shape `head time size`."""
    key, value = key.repeat_interleave(2, dim=0), value.repeat_interleave(2, dim=0)
    scores = query @ key.transpose(1, 2) * 0.3
    places = torch.arange(key.shape[1])
    behind = places[-query.shape[1] :].unsqueeze(-1) - places
    return scores.masked_fill((behind < 0) | (behind >= window), -torch.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("window", [100, 3], ids=["full", "sliding"])
@pytest.mark.parametrize("prompts", [PROMPTS, [3, 3, 3]], ids=["padded", "equal"])
def test_each_completion_attends_to_its_prompt_and_itself(prompts, window):
    batch = batch_of(prompts)
    row = GroupRow(batch.prompt_mask, batch.completion_mask, batch.prompt_of)
    lengths = [*prompts, *(length for _, length in COMPLETIONS)]
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), size, generator=generator, dtype=torch.double, requires_grad=True)
        for heads, size in ((4, 6), (2, 6), (2, 5))
    )
    masks = row.masks(sdpa_mask, mask_function=sliding_window_causal_mask_function(window), batch_size=1, q_length=0)
    found, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(), query, key, value, masks, scaling=0.3)
    assert weights is None
    parts = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    expected = [attended_alone(*one, window) for one in list(zip(*parts, strict=True))[: len(prompts)]]
    for number, (prompt, _) in enumerate(COMPLETIONS):
        own = len(prompts) + number
        seen = [torch.cat([part[prompt], part[own]], dim=1) for part in parts[1:]]
        expected.append(attended_alone(parts[0][own], *seen, window))
    expected = torch.cat(expected, dim=1).transpose(0, 1).unsqueeze(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    slopes = torch.linspace(-1, 1, found.numel(), dtype=torch.double).view_as(found)
    gradients = [torch.autograd.grad((one * slopes).sum(), (query, key, value)) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_a_row_holds_the_tokens_without_padding_in_their_order():
    batch = batch_of()
    row = GroupRow(batch.prompt_mask, batch.completion_mask, batch.prompt_of)
    ids = [batch.prompt_ids[batch.prompt_mask], batch.completion_ids[batch.completion_mask]]
    assert torch.equal(row.of(batch.prompt_ids, batch.completion_ids), torch.cat(ids))
    ranges = [range(length) for length in PROMPTS]
    ranges += [range(PROMPTS[prompt], PROMPTS[prompt] + length) for prompt, length in COMPLETIONS]
    assert row.positions.tolist() == [position for one in ranges for position in one]
    ends = [sum(PROMPTS[: prompt + 1]) - 1 for prompt, _ in COMPLETIONS]
    starts = [sum(PROMPTS) + sum(length for _, length in COMPLETIONS[:number]) for number in range(len(COMPLETIONS))]
    for places, end, start, (_, length) in zip(row.places.tolist(), ends, starts, COMPLETIONS, strict=True):
        assert places[: length + 1] == [end, *range(start, start + length)]


# Models


@pytest.mark.parametrize("kind", ["gpt2", "phi", "starcoder2", "opt"])
def test_log_probs_and_gradients_are_those_of_two_passes_in_double_precision(kind):
    """These models compute no norms in float32; starcoder2 has a window."""
    options = {"sliding_window": 3} if kind == "starcoder2" else {}
    model, batch = small_model(kind, **options).double(), batch_of()
    found, others = results(model, batch, PackedGroups()), results(model, batch, SharedPrompts())
    require_equal(found, others, 1e-10)
    require_equal(found, results(model, batch, PaddedSequences()), 1e-10)
    assert found[0].abs().max() > 1


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "olmo3", "qwen3_moe", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_log_probs_are_those_of_two_passes_in_the_precision_of_training(kind, half):
    model, batch = small_model(kind, output_router_logits=True), batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
        found, others = results(model, batch, PackedGroups()), results(model, batch, SharedPrompts())
    if half:
        assert (found[0] - others[0]).abs().mean() < 0.05
    else:
        require_equal(found, others, 1e-5)


@pytest.mark.parametrize(
    "completions",
    [[(0, 1), (0, 1), (1, 1)], [(0, 1), (0, 4)], [(0, 3)], [(2, 2), (1, 2), (0, 2)]],
    ids=["one token each", "one token of some", "one completion", "groups of one"],
)
def test_any_micro_batch_will_do(completions):
    model = small_model("phi").double()
    prompts = PROMPTS[: max(prompt for prompt, _ in completions) + 1]
    batch = batch_of(prompts, completions)
    require_equal(results(model, batch, PackedGroups()), results(model, batch, PaddedSequences()), 1e-10)


def test_adapters_get_the_gradients_of_two_passes():
    model, batch = small_model("phi"), batch_of()
    LoRA(rank=2).adapt(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)  # one factor is zero at first
    model = model.double()
    found, others = results(model, batch, PackedGroups()), results(model, batch, SharedPrompts())
    assert all(gradient.abs().max() > 0 for gradient in others[1])
    require_equal(found, others, 1e-10)


def test_blocks_are_computed_again_in_the_backward_pass_with_the_masks_of_their_row():
    model, batch = small_model("phi").double().train(), batch_of()
    expected = results(model, batch, PackedGroups())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    require_equal(results(model, batch, PackedGroups()), expected, 1e-12)
    assert len(calls) == 2


def test_a_model_reads_a_micro_batch_in_one_pass_without_padding():
    model, batch, sizes = small_model("llama"), batch_of(), []
    log_probs_and_entropy(model, batch, PackedGroups())
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].shape))
    log_probs_and_entropy(model, batch, PackedGroups())
    assert sizes == [(1, sum(PROMPTS) + sum(length - 1 for _, length in COMPLETIONS))]


@pytest.mark.parametrize("kind", ["gpt_oss", "bloom"])
def test_another_attention_is_refused(kind):
    with pytest.raises(ValueError, match="attention of the model is eager, which does not split a row into groups"):
        log_probs_and_entropy(small_model(kind), batch_of(), PackedGroups())


def test_other_passes_are_left_alone():
    """After a row, and while another thread reads one."""
    model, batch = small_model("llama"), batch_of()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        row = GroupRow(batch.prompt_mask, batch.completion_mask, batch.prompt_of)
        found = []
        with within_groups(model, row):
            thread = Thread(target=lambda: found.append(model(ids).logits))
            thread.start()
            thread.join()
        found.append(model(ids).logits)
    assert all(torch.equal(one, before) for one in found)

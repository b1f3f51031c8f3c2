"""A captured pass reads what a `CachedReader` reads; without a GPU it is launched for each token."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.model.cache import FixedLayer
from lightning_modules.model.outputs import logits_only
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from lightning_modules.rollouts.captured import CapturedPass, CapturedReader, _keeps_all
from lightning_modules.rollouts.readers import ROOM, CachedReader
from lightning_modules.rollouts.readings import readings_of
from tests.lightning_modules.architectures import small_model
from tests.lightning_modules.training import plain_log_prob_matrix

PROMPTS = [[3, 8, 250, 17, 42], [7, 99], [5] * (ROOM - 3)]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a pass on a GPU")
operations = st.lists(
    st.one_of(st.integers(1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=6)), min_size=1, max_size=8
)


@pytest.fixture(scope="module")
def llama():
    return small_model("llama")


@given(operations=operations)
@settings(max_examples=40)
def test_any_reads_and_selections_give_the_same_logits(llama, operations):
    """A number is that of the tokens to read; a list has the rows to select."""
    readers, generator = (CapturedReader(llama), CachedReader(llama)), torch.Generator().manual_seed(0)
    with torch.no_grad(), logits_only(llama):
        for reader in readers:
            reader.read_prompts(PROMPTS)
        rows = len(PROMPTS)
        for operation in [1, *operations, 1]:
            if isinstance(operation, int):
                tokens = torch.randint(300, (rows, operation), generator=generator)
                found, expected = (reader.read(tokens) for reader in readers)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            else:
                chosen = torch.tensor(operation) % rows
                rows = len(chosen)
                for reader in readers:
                    reader.select(chosen)


def shapes_of(model, calls):
    """Note the rows of each pass of a model and the tokens that its cache has room for."""

    def note(module, inputs, options):
        calls.append((len(options["input_ids"]), options["past_key_values"].size))

    return model.register_forward_pre_hook(note, with_kwargs=True)


def test_rows_that_ended_are_read_on_until_half_of_them_have(llama):
    reader, calls = CapturedReader(llama), []
    with torch.no_grad(), logits_only(llama):
        reader.read_prompts([[3, 4]])
        reader.select(torch.zeros(8, dtype=torch.long))
        hook = shapes_of(llama, calls)
        for kept in (8, 7, 5, 4, 3):
            reader.select(torch.arange(kept))
            assert len(reader.read(torch.ones(kept, 1, dtype=torch.long))) == kept
        hook.remove()
    assert calls == [(8, ROOM), (8, ROOM), (8, ROOM), (4, ROOM), (4, ROOM)]


def test_the_shape_changes_only_where_the_cache_grows(llama):
    reader, calls = CapturedReader(llama), []
    with torch.no_grad(), logits_only(llama):
        reader.read_prompts([[3] * (ROOM - 2)])
        hook = shapes_of(llama, calls)
        for _ in range(4):
            reader.read(torch.ones(1, 1, dtype=torch.long))
        hook.remove()
    assert calls == [(1, ROOM), (1, ROOM), (1, 2 * ROOM), (1, 2 * ROOM)]


def test_the_cache_grows_by_the_rows_that_go_on(llama):
    readers = CapturedReader(llama), CachedReader(llama)
    with torch.no_grad(), logits_only(llama):
        for reader in readers:
            reader.read_prompts([[3] * (ROOM - 2), [5], [7, 8]])
            reader.read(torch.tensor([[4], [6], [9]]))
            reader.select(torch.tensor([2, 0]))
        for token in range(5):
            found, expected = (reader.read(torch.tensor([[token], [10 + token]])) for reader in readers)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_token_is_written_at_its_place():
    keys, values = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    layer, token = FixedLayer([keys, values], place := torch.tensor([1])), torch.ones(1, 1, 1, 2)
    layer.update(token, 2 * token)
    assert keys.squeeze().tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    place.add_(1)
    assert layer.update(token, 2 * token)[1].squeeze().tolist() == [[0, 0], [2, 2], [2, 2], [0, 0]]


def test_memory_that_was_never_written_does_not_count(llama, monkeypatch):
    """It may hold what is not a number, which a weight of 0 does not hide."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *shape, **options: new_empty(*shape, **options).fill_(torch.nan)
    )
    reader = CapturedReader(llama)
    with torch.no_grad(), logits_only(llama):
        reader.read_prompts(PROMPTS)
        assert reader.read(torch.ones(3, 1, dtype=torch.long)).isfinite().all()


def test_an_engine_samples_the_log_probs_of_a_full_forward_pass(model, tokenizer, monkeypatch):
    monkeypatch.setattr(CapturedReader, "serves", classmethod(lambda cls, model: True))
    prompts = [tokenizer.encode(text) for text in ("What is 12 + 345?", "2", "boxed 47")]
    engine = TransformersEngine()
    engine.load_policy(model)
    assert engine._reading.reader is CapturedReader
    sampling = SamplingParameters(20, tuple(range(1, 271, 9)), samples_per_prompt=6, seed=3)
    completions = engine.generate(prompts, sampling)
    assert len(completions.mask.sum(dim=-1).unique()) > 3
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, prompts, completions)
    assert (completions.log_probs - expected)[completions.mask].abs().max() < 1e-5


def test_each_policy_of_an_engine_has_its_own_reading(llama, monkeypatch):
    monkeypatch.setattr(CapturedReader, "serves", classmethod(lambda cls, model: _keeps_all(model)))
    engine, gemma = TransformersEngine(), small_model("gemma3_text")
    for model, reader in ((gemma, CachedReader), (llama, CapturedReader), (gemma, CachedReader)):
        engine.load_policy(model)
        assert engine._reading.reader is reader
        engine.generate(PROMPTS, SamplingParameters(3, (1,)))


def test_a_warning_names_the_next_faster_way(monkeypatch):
    def refuse(*_):
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(CapturedReader, "serves", classmethod(lambda cls, model: True))
    monkeypatch.setattr(CapturedPass, "read", refuse)
    with pytest.warns(UserWarning, match="samples from Llama.* sampling by a captured pass fails with RuntimeError"):
        TransformersEngine().load_policy(small_model("llama"))
    with pytest.raises(ValueError, match=r"its cache gives log-probabilities that are [\d.]+ nats off"):
        TransformersEngine().load_policy(small_model("bert"))


def test_without_a_gpu_no_pass_is_captured(llama):
    assert all(reading.reader is not CapturedReader for reading in readings_of(llama))


@ON_GPU
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_gpu_replays_a_captured_pass(kind, monkeypatch):
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    model = small_model(kind).cuda()
    engine = TransformersEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.load_policy(model)
    assert engine._reading.reader is CapturedReader
    replays.clear()
    completions = engine.generate(PROMPTS, SamplingParameters(80, (1,), samples_per_prompt=4, seed=3))
    assert len(replays) > 60
    with torch.no_grad():
        expected = plain_log_prob_matrix(model.cpu(), PROMPTS, completions)
    assert (completions.log_probs - expected)[completions.mask].abs().max() < 1e-4


@ON_GPU
@pytest.mark.parametrize("kind", ["gemma3_text", "bloom", "mixtral", "qwen3_next", "mamba"])
def test_a_gpu_launches_the_passes_of_other_models(kind):
    """Whatever captures or does not, random numbers of the GPU are usable after it."""
    model = small_model(kind).cuda()
    engine = TransformersEngine()
    engine.load_policy(model)
    completions = engine.generate(PROMPTS, SamplingParameters(10, (1,), samples_per_prompt=2, seed=3))
    assert completions.log_probs.isfinite().all()
    assert torch.rand(3, device="cuda").isfinite().all()
    torch.cuda.synchronize()

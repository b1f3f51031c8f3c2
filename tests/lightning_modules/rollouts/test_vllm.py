"""The real engine against the model itself, and against the engine that runs the model."""

import copy
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import LoRA
from lightning_modules.addition.warm_start import make_model, make_tokenizer
from lightning_modules.rollouts import VLLM, SamplingParameters, TransformersEngine
from lightning_modules.rollouts.weight_check import WeightCheck, policy_log_probs, probe_tokens
from tests.lightning_modules.training import fitted, plain_log_prob_matrix, plain_logits, small_data, tokens_of
from tests.peers import require_peers

require_peers("vllm")
pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parents[3]
QUESTIONS = ["What is 12 + 345?", "2", "What is 9 + 8? What is 7?", "boxed 47", "What is 472 + 96?"]
STOPS = tuple(range(1, 271, 5))
OPTIONS = {"max_model_length": 128, "engine_options": {"kv_cache_memory_bytes": 2**28}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two models of the default job's size, with tied embeddings and without; one token in eight stops."""
    tokenizer = make_tokenizer()
    folders = {}
    for tied in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model(tokenizer)
            if not tied:
                config = copy.deepcopy(model.config)
                config.tie_word_embeddings = False
                model = type(model)(config)
        for layer in model.model.layers:  # attention that looks at some tokens more than at others
            layer.self_attn.q_proj.weight.data *= 2
            layer.self_attn.k_proj.weight.data *= 2
        model.model.norm.weight.data.fill_(2.0)  # a distribution that is far from uniform
        model.generation_config.eos_token_id = list(range(1, len(tokenizer), 8))
        folders[tied] = str(tmp_path_factory.mktemp("tied" if tied else "untied"))
        model.save_pretrained(folders[tied])
        tokenizer.save_pretrained(folders[tied])
    return folders


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def model(folders):
    return loaded(folders[True])


@pytest.fixture(scope="module")
def prompts(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders[True])
    prompts = [tokenizer.encode(text) for text in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) > 3
    return prompts


def process_state():
    """What the trainer relies on and an engine might change."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - what isolates it saves this one
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "group": torch.distributed.is_initialized(),
        "dtype": torch.get_default_dtype(),
        "multiplication": torch.get_float32_matmul_precision(),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "variables": {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LD_PRELOAD")},
    }


@pytest.fixture(scope="module")
def started(folders):
    """The engine of most tests, with the states of the process around its start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    engine = VLLM(**OPTIONS)
    before = process_state()
    engine.load_policy(loaded(folders[True]))
    after = process_state()
    torch.set_num_threads(threads)
    yield SimpleNamespace(engine=engine, before=before, after=after)
    engine.close()


@pytest.fixture
def engine(started, model):
    """The engine, with the tied model's weights; started again where a test has closed it."""
    started.engine.load_policy(model)
    return started.engine


@pytest.fixture
def another(started):
    """Makes an engine with other arguments, in the place of the one that most tests share."""
    engines = []

    def make(**options):
        started.engine.close()
        engines.append(VLLM(**{**OPTIONS, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def sampled_by(engine, prompts, **sampling):
    defaults = {"max_completion_length": 12, "stop_token_ids": STOPS}
    return engine.generate(prompts, SamplingParameters(**{**defaults, **sampling}))


def differences(model, prompts, sampled, temperature=1.0):
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, prompts, sampled, temperature)
    return (sampled.log_probs - expected)[sampled.mask].abs()


def trained_on(model, tokens, steps=3):
    """Optimiser steps that move every weight."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_trainer(engine, model, prompts, temperature):
    sampled = sampled_by(
        engine, prompts, temperature=temperature, samples_per_prompt=16, seed=3, max_completion_length=40
    )
    assert len(sampled.token_ids) == 16 * len(prompts)
    assert sampled.log_probs.dtype == torch.float32
    apart = differences(model, prompts, sampled, temperature)
    assert len(apart) > 300
    assert apart.mean() < 2e-6
    assert apart.max() < 5e-5


def test_first_tokens_come_as_often_as_the_model_says(engine, model, prompts):
    """A chi-square test on 4000 samples at temperature 0.5, for each of two prompts that are sampled together."""
    count = 4000
    sampled = sampled_by(engine, prompts[:2], temperature=0.5, samples_per_prompt=count, max_completion_length=1)
    for number, prompt in enumerate(prompts[:2]):
        with torch.no_grad():
            probabilities = torch.softmax(plain_logits(model, prompt, [0], 0.5)[0], dim=-1)
        sampled_here = sampled.token_ids[count * number : count * (number + 1), 0]
        counts = torch.bincount(sampled_here, minlength=len(probabilities))
        expected = count * probabilities
        common = expected >= 5
        observed = torch.cat([counts[common], counts[~common].sum().unsqueeze(0)]).double()
        expected = torch.cat([expected[common], expected[~common].sum().unsqueeze(0)])
        statistic = ((observed - expected).square() / expected).sum()
        freedom = len(expected) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
        assert expected.max() > 3 * expected.mean()  # a uniform sample would not pass


def test_bfloat16_is_the_dtype_of_a_trainer_with_mixed_precision(another, model, prompts):
    engine = another()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine.load_policy(model)
        sampled = sampled_by(engine, prompts, samples_per_prompt=16)
    assert engine._llm.model_config.dtype == torch.bfloat16
    apart = differences(model, prompts, sampled)
    assert 1e-4 < apart.mean() < 0.05
    assert apart.max() < 0.5


def test_the_trainers_autocast_does_not_reach_the_engine(another, model, prompts):
    engine = another(dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine.load_policy(model)
        sampled = sampled_by(engine, prompts)
    assert differences(model, prompts, sampled).max() < 5e-5


def test_log_probs_that_are_not_numbers_are_passed_on(another, model, prompts):
    engine = another()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    engine.load_policy(model)  # the check of the weights finds NaN on both sides
    sampled = sampled_by(engine, prompts)
    assert sampled.log_probs[sampled.mask].isnan().all()


# Weights


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_are_the_trainers_after_optimizer_steps_and_a_transfer(another, folders, prompts, tied):
    engine, model = another(), loaded(folders[tied])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    engine.load_policy(model)
    assert differences(model, prompts, sampled_by(engine, prompts)).max() < 5e-5
    trained_on(model, torch.tensor([prompts[2] + prompts[4]]))
    assert differences(model, prompts, sampled_by(engine, prompts)).max() > 1e-2
    with pytest.raises(RuntimeError, match="after the transfer of weights a log-probability of the engine is"):
        engine._check_weights(model)
    engine.load_policy(model)
    assert differences(model, prompts, sampled_by(engine, prompts)).max() < 5e-5


def test_adapters_are_merged_at_each_transfer(engine, model, prompts):
    LoRA(4).adapt(model)
    engine.load_policy(model)
    for adapted in (False, True):  # before an adapter is trained, it changes nothing
        assert differences(model, prompts, sampled_by(engine, prompts)).max() < 5e-5
        if not adapted:
            trained_on(model, torch.tensor([prompts[2] + prompts[4]]), steps=30)
            assert differences(model, prompts, sampled_by(engine, prompts)).max() > 1e-2
            engine.load_policy(model)


def test_a_transfer_that_forgets_tied_embeddings_is_noticed(engine, model, prompts, monkeypatch):
    """`named_parameters` has tied weights once, and vLLM would keep the old output embedding."""
    trained_on(model, torch.tensor([prompts[2]]))
    monkeypatch.setattr("lightning_modules.rollouts.vllm.policy_weights", lambda model: model.named_parameters())
    with pytest.raises(RuntimeError, match="tied embeddings"):
        engine.load_policy(model)


def test_an_engine_that_kept_its_weights_is_noticed(engine, model, prompts, monkeypatch):
    trained_on(model, torch.tensor([prompts[2]]), steps=1)
    monkeypatch.setattr(engine._llm, "collective_rpc", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="`check_weights=False` goes on regardless"):
        engine.load_policy(model)
    engine.check_weights = False
    engine.load_policy(model)
    engine.check_weights = True


def test_the_check_allows_for_rounding_and_not_for_a_standstill():
    policy = torch.tensor([-1.0, -9.0])
    check = WeightCheck()
    check(policy + torch.tensor([0.05, 0.5]), policy, torch.float32, torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"0\.5 from the policy's, where rounding explains 0\.0001"):
        check(policy + torch.tensor([0.0, 0.5]), policy, torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match="nan from the policy's"):
        check(policy * torch.nan, policy, torch.float32)
    check(policy * torch.nan, policy * torch.nan, torch.float64)

    check = WeightCheck()
    check(policy, policy, torch.bfloat16)
    check(policy, policy + 0.001, torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"moved by up to 0\.02, and those of the engine not at all"):
        check(policy, policy + 0.021, torch.bfloat16)


def test_prefixes_read_with_old_weights_are_forgotten(another, model, prompts):
    """A prompt longer than a block of the cache, which would otherwise be reused."""
    engine = another(engine_options={"kv_cache_memory_bytes": 2**28, "block_size": 32})
    engine.load_policy(model)
    prompts = [prompts[2] * 5]
    assert len(prompts[0]) > 64
    sampled_by(engine, prompts)
    trained_on(model, torch.tensor(prompts))
    engine.load_policy(model)
    sampled = sampled_by(engine, prompts, samples_per_prompt=4)
    assert differences(model, prompts, sampled).max() < 5e-5


# Samples


def test_completions_of_one_prompt_stand_next_to_each_other(engine, model, prompts):
    prompts = [prompts[0], prompts[3]]
    likeliest = [int(model(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in prompts]
    assert likeliest[0] != likeliest[1]
    sampled = sampled_by(engine, prompts, temperature=0.0, samples_per_prompt=3, max_completion_length=1)
    assert sampled.token_ids[:, 0].tolist() == [likeliest[0]] * 3 + [likeliest[1]] * 3


def test_the_seed_decides_the_sample(engine, prompts):
    first, again, other = (sampled_by(engine, prompts, seed=seed, samples_per_prompt=4) for seed in (5, 5, 6))
    for name in ("token_ids", "mask", "log_probs", "finished"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.token_ids[:, 0].tolist() != other.token_ids[:, 0].tolist()
    assert len(set(first.token_ids[:4, 0].tolist())) > 1  # completions of one prompt differ too


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_prompts_do_not_share_their_samples(engine, prompts, seed):
    """Equal prompts show it: one seed for all would give them the same completions."""
    sampled = sampled_by(engine, [prompts[0]] * 3, seed=seed, samples_per_prompt=8, stop_token_ids=())
    groups = [{tuple(tokens_of(sampled, row)) for row in range(start, start + 8)} for start in (0, 8, 16)]
    assert len(set.union(*groups)) == 24


def test_the_stop_token_is_the_last_of_a_finished_completion(engine, prompts):
    sampled = sampled_by(engine, prompts, samples_per_prompt=8, max_completion_length=4)
    assert 0 < sampled.finished.sum() < len(sampled.finished)
    for row, finished in enumerate(sampled.finished.tolist()):
        tokens = tokens_of(sampled, row)
        assert sampled.mask[row].tolist() == [time < len(tokens) for time in range(sampled.mask.shape[1])]
        assert not set(tokens[:-1]) & set(STOPS)
        assert (tokens[-1] in STOPS) == finished
        assert finished or len(tokens) == 4
    assert sampled.token_ids[~sampled.mask].eq(0).all()
    assert sampled.log_probs[~sampled.mask].eq(0).all()


def test_a_stop_on_the_last_place_counts_as_finished(engine, model, prompts):
    everything = tuple(range(model.config.vocab_size))
    assert sampled_by(engine, prompts, max_completion_length=1, stop_token_ids=everything).finished.all()
    assert not sampled_by(engine, prompts, max_completion_length=1, stop_token_ids=()).finished.any()


def test_stops_of_the_models_own_configuration_do_not_count(engine, model, prompts):
    assert len(model.generation_config.eos_token_id) > 30
    sampled = sampled_by(engine, prompts, samples_per_prompt=4, stop_token_ids=())
    assert sampled.mask.shape == (4 * len(prompts), 12)
    assert sampled.mask.all()
    assert not sampled.finished.any()


def test_greedy_completions_are_those_of_the_other_engine(engine, model, prompts):
    other = TransformersEngine()
    other.load_policy(model)
    sampled, expected = (sampled_by(each, prompts, temperature=0.0, samples_per_prompt=2) for each in (engine, other))
    for name in ("token_ids", "mask", "finished"):
        assert torch.equal(getattr(sampled, name), getattr(expected, name))
    assert (sampled.log_probs - expected.log_probs).abs().max() < 5e-5


def test_more_completions_than_places_wait_for_their_turn(another, model, prompts):
    engine = another(max_sequences=2)
    engine.load_policy(model)
    sampled = sampled_by(engine, prompts, samples_per_prompt=4)
    assert len(sampled.token_ids) == 4 * len(prompts)
    assert differences(model, prompts, sampled).max() < 5e-5


# The process


def test_the_start_leaves_the_process_as_it_was(started):
    assert started.before["threads"] == 2
    assert started.after == started.before


def test_rollouts_leave_the_process_as_it_was(engine, model, prompts):
    before = process_state()
    engine.load_policy(model)
    sampled_by(engine, prompts)
    sampled_by(engine, prompts, temperature=0.0)
    assert process_state() == before


def test_an_engine_started_in_inference_mode_works_outside(another, model, prompts):
    """As in a run that measures its held-out prompts before its first rollout."""
    engine = another()
    with torch.inference_mode():
        engine.load_policy(model)
        sampled_by(engine, prompts)
    engine.load_policy(model)
    assert differences(model, prompts, sampled_by(engine, prompts)).max() < 5e-5


def test_an_engine_that_was_closed_starts_again(another, model, prompts):
    engine = another()
    engine.load_policy(model)
    first = sampled_by(engine, prompts)
    engine.close()
    engine.close()
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match=r"no policy; call `load_policy\(model\)` before `generate`"):
        sampled_by(engine, prompts)
    engine.load_policy(model)
    assert torch.equal(sampled_by(engine, prompts).token_ids, first.token_ids)


def test_one_engine_at_a_time_runs_in_a_process(engine, model):
    with pytest.raises(RuntimeError, match=r"another VLLM engine runs in this process; call its `close\(\)` first"):
        VLLM(**OPTIONS).load_policy(model)


def test_a_start_that_fails_leaves_the_process_as_it_was(another, model, prompts):
    engine = another(max_model_length=100_000)
    before = process_state()
    with pytest.raises(ValueError, match="max_model_len"):
        engine.load_policy(model)
    assert process_state() == before
    engine = another()
    engine.load_policy(model)
    sampled_by(engine, prompts)


# Training


class RatioRecorder(Callback):
    """Log ratios of each micro-batch before the policy has moved away from its rollout."""

    def __init__(self):
        self.log_ratios = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            log_ratio = pl_module.policy.log_probs(batch) - batch.policy.old_log_probs
        self.log_ratios.append(log_ratio[batch.policy.response_mask])


def test_a_run_is_on_policy(another, folders, tmp_path):
    """Two rollouts with an optimizer step each: ratios are one, though the weights have moved in between."""
    engine, recorder = another(), RatioRecorder()
    run = fitted(tmp_path, folders[True], data=small_data(rollouts=engine), callbacks=[recorder], max_steps=2)
    assert run.trainer.global_step == 2
    assert len(recorder.log_ratios) == 2
    for log_ratios in recorder.log_ratios:
        assert len(log_ratios) > 20
        assert (log_ratios.exp() - 1).abs().max() < 1e-4
    before = loaded(folders[True])
    tokens = probe_tokens(before)
    moved = policy_log_probs(before, tokens)[0] - policy_log_probs(run.module.model, tokens)[0]
    assert moved.abs().max() > 1e-2


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"`gpu_memory_utilization` is 0\.0; pass a share"),
        ({"gpu_memory_utilization": 1.1}, r"`gpu_memory_utilization` is 1\.1; pass a share"),
        ({"tensor_parallel_size": 0}, "`tensor_parallel_size` is 0; pass 1 or more"),
        ({"max_model_length": 0}, "`max_model_length` is 0; pass 1 or more"),
        ({"max_sequences": -1}, "`max_sequences` is -1; pass 1 or more"),
        ({"dtype": "float64"}, "`dtype` is 'float64'; pass one of auto, float32, bfloat16, float16"),
        ({"engine_options": {"trust_remote_code": True}}, "`engine_options` has 'trust_remote_code', which VLLM sets"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VLLM(**options)


def test_an_engine_cannot_have_more_parts_than_ranks(another, model):
    with pytest.raises(ValueError, match="`tensor_parallel_size` is 2, but training has 1 ranks"):
        another(tensor_parallel_size=2).load_policy(model)


def test_a_completion_without_room_is_refused(engine, prompts):
    longest = max(map(len, prompts))
    sampled_by(engine, prompts, max_completion_length=128 - longest)
    with pytest.raises(ValueError, match=r"may take 129 tokens, but the engine has room for 128; raise"):
        sampled_by(engine, prompts, max_completion_length=129 - longest)


def test_a_temperature_that_vllm_would_raise_is_refused(engine, prompts):
    with pytest.raises(ValueError, match=r"`temperature` is 0\.005, which vLLM would raise to 0\.01"):
        sampled_by(engine, prompts, temperature=0.005)


def test_without_a_policy_it_says_so():
    with pytest.raises(RuntimeError, match=r"no policy; call `load_policy\(model\)` before `generate`"):
        VLLM().generate([[1]], SamplingParameters(max_completion_length=1, stop_token_ids=()))


WITHOUT_VLLM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vllm", "starlette"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import lightning_modules.__main__
from lightning_modules.rollouts import VLLM, SamplingParameters, TransformersEngine
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
engine = TransformersEngine()
engine.load_policy(model)
print(engine.generate([[5, 6]], SamplingParameters(max_completion_length=2, stop_token_ids=())).token_ids.shape)
try:
    VLLM().load_policy(model)
except ImportError as error:
    print(error)
"""


def test_without_vllm_everything_else_works_and_it_says_what_to_install(folders):
    """The package is imported where every import of vLLM and of what comes with it fails, so it does none by itself."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_VLLM, folders[True]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shape, message = result.stdout.splitlines()
    assert shape == "torch.Size([1, 2])"
    assert "[vllm]" in message
    script = message.partition("sh ")[2].partition(",")[0]
    assert (REPOSITORY / script).is_file()

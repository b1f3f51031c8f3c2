"""The runs of the papers: each row of a table has the objective of its paper, and trains a small model."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from aggregate_po import PolicyBatch, StepTotals
from aggregate_po.advantages import GroupedRewards
from lightning_modules.cli import run
from lightning_modules.evaluate_command import evaluate_command
from lightning_modules.evaluation import read_results
from lightning_modules.schedules import scheduled
from tests.end_to_end.papers import (
    AT_THE_END,
    COMMON,
    EXPECTED,
    GRPO,
    LOG_RATIO,
    MODELS,
    NAME,
    PROMPTS,
    QWEN_MATH,
    RATIO,
    WORTH,
    arithmetic,
    mean,
)
from tests.end_to_end.test_configs import CONFIGS, ResolvingCLI
from tests.lightning_modules.architectures import small_model

FOLDER = CONFIGS / "paper"
SETUP = FOLDER / "math.yaml"
PAGE = (CONFIGS.parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
EVALUATION = FOLDER / "evaluation.yaml"
ROWS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {SETUP.stem, EVALUATION.stem})
# The template of the test's tokenizer.
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


def parts_of(row):
    match = NAME.fullmatch(row)
    assert match, row
    return match["method"] + (match["change"] or ""), MODELS[match["model"]]


def arguments(row, *options):
    return ["fit", f"--config={SETUP}", f"--config={FOLDER / row}.yaml", *options]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The data of the repository that the page says to clone, with few problems."""
    path = tmp_path_factory.mktemp("understand-r1-zero")
    problems = Dataset.from_list([{"problem": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(2, 18)])
    for name in ("math_lvl3to5_8k", "math_12k"):
        DatasetDict(train=problems).save_to_disk(path / "datasets" / "train" / name)
    names = ("aime", "amc", "math", "minerva", "olympiad_bench")
    suite = DatasetDict({name: problems.select([number, 8]) for number, name in enumerate(names)})
    suite.save_to_disk(path / "datasets" / "evaluation_suite")
    return path


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A data set of the hub, with a configuration `all`, as a folder."""
    path = tmp_path_factory.mktemp("open-r1") / "DAPO-Math-17k-Processed"
    (path / "all").mkdir(parents=True)
    problems = [json.dumps({"prompt": f"What is {n} + 3?", "solution": str(n + 3)}) for n in range(2, 18)]
    (path / "all" / "train-0.jsonl").write_text("\n".join(problems))
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n  - split: train\n    path: all/train-*\n---\n"
    )
    return path


@pytest.fixture
def folder(repository, hub_folder, tmp_path, monkeypatch):
    """A working folder with the data."""
    (tmp_path / "understand-r1-zero").symlink_to(repository)
    (tmp_path / "open-r1").mkdir()
    (tmp_path / "open-r1" / hub_folder.name).symlink_to(hub_folder)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and the tokens of ChatML."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    made.chat_template = CHAT_ML
    return made


@pytest.fixture(scope="module")
def small_models(tokenizer, tmp_path_factory):
    """Function that returns the folder of a small random model of an architecture."""
    folders = {}

    def of(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            model = small_model(kind, max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id)
            model.generation_config.eos_token_id = list(range(0, 256, 4))  # one token in four ends a completion
            model.save_pretrained(folders[kind])
            tokenizer.save_pretrained(folders[kind])
        return folders[kind]

    return of


def kind_of(model):
    return "qwen3" if "Qwen3" in model else "llama" if "deepseek-math" in model else "qwen2"


def worth(objective, advantage, progress):
    """The objective of the one completion, times the sign of its advantage."""
    old = torch.tensor([[-2.5, -0.25, -3.0, -0.75]], dtype=torch.float64)
    totals = StepTotals(1, 4, progress)
    new = old + torch.tensor([LOG_RATIO], dtype=torch.float64)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    batch = PolicyBatch(old, torch.ones(1, 4), advantages, totals, ref_log_probs=new)  # at no distance
    return float(objective(new, batch)) * advantage


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_objective_and_the_sizes_of_its_paper(row, folder):
    method, model = parts_of(row)
    resolved = run(arguments(row), ResolvingCLI)
    policy, data, config = resolved.model, resolved.datamodule, resolved.config.fit
    assert policy.policy.source == model
    for progress, expected in ((0.0, WORTH[method]), (1.0, AT_THE_END.get(method, WORTH[method]))):
        found = [worth(policy.objective, advantage, progress) for advantage in (1.0, -1.0)]
        assert found == pytest.approx(expected, rel=1e-9)

    expected = EXPECTED.get(row) or EXPECTED.get(method, COMMON)
    assert (data.group_size, data.prompts_per_rollout, data.updates_per_rollout, data.epochs_per_rollout) == (
        expected.group_size,
        expected.prompts,
        expected.updates,
        1,
    )
    assert (data.max_prompt_length, data.max_completion_length) == (expected.prompt_length, expected.length)
    assert data.temperature == expected.temperature
    assert data.rollouts.max_model_length >= expected.prompt_length + expected.draft + expected.length
    assert data.truncated == expected.truncated
    assert (data.old_log_probs, data.kl_in_reward) == ("trainer", 0.0)
    assert [(type(p).__name__, p.coefficient) for p in policy.objective.penalties] == list(expected.penalties)
    assert tuple(type(scheme).__name__ for scheme in data.schemes) == expected.schemes
    rewards = GroupedRewards(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), 4, torch.tensor([10, 20, 30, 40]))
    assert data.advantages(rewards).tolist() == pytest.approx(expected.advantages, abs=1e-5)
    settings = policy.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (settings["lr"], settings["betas"], settings["weight_decay"]) == (1e-6, (0.9, 0.95), 0)
    assert (policy.warmup_steps == 0 and policy.lr_scheduler is None) == expected.constant_learning_rate
    assert config.trainer.default_root_dir == f"runs/{row}"
    assert (config.trainer.precision, config.trainer.gradient_clip_val) == ("bf16-mixed", 1.0)


@pytest.mark.parametrize(
    ("row", "lengths"), [("dapo-qwen3-4b", [2400, 2700, 3000]), ("dapo-32b", [16384, 18432, 20480])]
)
def test_the_length_penalty_of_dapo_begins_at_four_fifths_of_the_limit(row, lengths, folder):
    """At the limit it is half of the difference between a right answer and a wrong one."""
    shaping = run(arguments(row), ResolvingCLI).datamodule.advantages
    assert shaping.reward_change(torch.tensor(lengths)).tolist() == [0, -0.25, -0.5]


# The rows of DAPO's table from the last to the first, each by one more option.
WITHOUT = (
    (["--data.schemes=[]"], arithmetic(0.8, 1.28), "TokenMean", "score", "OverlongShaping"),
    (
        ["--model.objective=aggregate_po.recipes.grpo", "--model.objective.clip_high=0.28"],
        arithmetic(0.8, 1.28),
        "SequenceMean",
        "score",
        "OverlongShaping",
    ),
    (
        ["--data.advantages=GroupNormalized", "--data.truncated=mask"],
        arithmetic(0.8, 1.28),
        "SequenceMean",
        "mask",
        "GroupNormalized",
    ),
    (["--model.objective.clip_high=0.2"], GRPO, "SequenceMean", "mask", "GroupNormalized"),
    (["--data.truncated=score"], GRPO, "SequenceMean", "score", "GroupNormalized"),
)


def test_the_rows_of_dapo_are_options_of_one_file(folder):
    options = []
    for further, expected, normalizer, truncated, advantages in WITHOUT:
        options += further
        resolved = run(arguments("dapo-32b", *options), ResolvingCLI)
        objective, data = resolved.model.objective, resolved.datamodule
        assert [worth(objective, advantage, 0.0) for advantage in (1.0, -1.0)] == pytest.approx(expected)
        assert (type(objective.normalizer).__name__, data.truncated) == (normalizer, truncated)
        assert (type(data.advantages).__name__, data.schemes) == (advantages, ())
        assert all(option in PAGE for option in (text.partition("=")[0] for text in further))


def test_the_learning_rate_of_igrpo_rises_for_a_tenth_of_the_run_and_decays_to_a_tenth(folder):
    resolved = run(arguments("igrpo-r1-7b"), ResolvingCLI)
    policy, steps = resolved.model, resolved.config.fit.trainer.max_steps
    optimizer = policy.optimizer([torch.nn.Parameter(torch.zeros(1))])
    decay = policy.lr_scheduler(optimizer)
    decay.end_with(steps - policy.warmup_steps)
    schedule = scheduled(optimizer, policy.warmup_steps, decay)["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(range(steps), key=rates.__getitem__) == pytest.approx(steps / 10, abs=2)
    assert (max(rates), rates[-1]) == pytest.approx((1e-6, 1e-7), rel=1e-3)


@pytest.mark.parametrize(
    ("row", "option", "expected"),
    [
        ("holder-po-7b", "--model.objective.exponent=2.0", mean(RATIO, 2.0)),
        (
            "holder-po-7b-token-clip",
            "--model.objective.aggregator.exponent=-1.0",
            mean([max(r, 0.8) for r in RATIO], -1),
        ),
    ],
    ids=["completion clip", "token clip"],
)
def test_a_constant_exponent_is_an_option(row, option, expected, folder):
    constant = run(arguments(row, option), ResolvingCLI).model.objective
    for progress in (0.0, 1.0):
        assert worth(constant, -1.0, progress) == pytest.approx(expected)


def test_answers_are_graded(folder):
    rewards = run(arguments("gmpo-7b"), ResolvingCLI).datamodule.rewards
    try:
        scores = rewards.scores([r"\boxed{\frac{24}{2}}", r"\boxed{12.0}"], [{"answer": "12"}] * 2)
    finally:
        rewards.close()
    assert scores.components.tolist() == [[0.0], [1.0]]


def test_the_options_for_an_evaluation_of_igrpo_leave_room_for_a_prompt(folder):
    data = run(arguments("igrpo-r1-7b"), ResolvingCLI).datamodule
    options = dict(re.findall(r"`--(max_completion_length|rollouts.max_model_length) (\d+)`", PAGE))
    assert int(options["max_completion_length"]) == data.max_completion_length
    room = int(options["rollouts.max_model_length"]) - data.max_completion_length
    assert room >= data.max_prompt_length


def test_igrpo_rewards_the_answer_and_the_tags(folder):
    data = run(arguments("igrpo-r1-7b"), ResolvingCLI).datamodule
    tagged, continued = "<think>5 + 7</think>\n<answer>\\boxed{12}</answer>", "5 + 7</think><answer>13</answer>"
    try:
        scores = data.rewards.scores([tagged, continued, "so \\boxed{12}"], [{"answer": "12"}] * 3)
    finally:
        data.rewards.close()
    assert scores.components.tolist() == [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    assert data.rewards.total(scores.components).tolist() == [2.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_model_is_evaluated_on_the_benchmarks_of_the_papers(folder, small_models):
    sizes = "--samples=1", "--max_completion_length=6"
    here = "--rollouts=TransformersEngine", "--accelerator=cpu", "--workers=1"
    model = f"--model={small_models('qwen2')}"
    evaluate_command([f"--config={EVALUATION}", model, "--output=evaluated", *sizes, *here])
    results = read_results("evaluated")
    assert [one.name for one in results] == ["aime24", "amc", "math500", "minerva", "olympiad"]
    assert all(one.problems == 2 for one in results)


def test_the_page_names_every_row():
    named = set(re.findall(r"`([a-z0-9.-]+)\.yaml`", PAGE))
    assert named == {*ROWS, SETUP.stem, EVALUATION.stem}


def without_model(row):
    """What a row says, without the model and the folder of the run."""
    said = yaml.safe_load((FOLDER / f"{row}.yaml").read_text(encoding="utf-8"))
    del said["model"]["model_name"], said["trainer"]["default_root_dir"]
    return json.dumps(said, sort_keys=True)


ONE_OF_EACH = list({without_model(row): row for row in ROWS}.values())


@pytest.mark.slow
@pytest.mark.parametrize("row", ONE_OF_EACH)
def test_a_row_trains_a_small_model_of_its_architecture(row, folder, small_models, tokenizer):
    model_folder = small_models(kind_of(parts_of(row)[1]))
    prompts = EXPECTED.get(row, COMMON).updates
    trained = run(
        arguments(
            row,
            f"--model.model_name={model_folder}",
            "--data.rollouts=lightning_modules.rollouts.TransformersEngine",
            "--data.reward=tests.lightning_modules.command_line.length_reward",
            f"--data.prompts_per_rollout={prompts}",
            "--data.max_completion_length=6",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.strategy=auto",
            "--trainer.accumulate_grad_batches=1",
            "--trainer.max_steps=2",
            "--trainer.enable_checkpointing=false",
        )
    )
    with (Path("runs") / row / "metrics.csv").open(newline="") as lines:
        steps = [step for step in csv.DictReader(lines) if step["grad_norm"]]  # the others are evaluations
    assert len(steps) == 2
    for step in steps:
        assert math.isfinite(float(step["policy_loss"]))
        assert float(step["grad_norm"]) > 0
    before = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).state_dict()
    after = trained.model.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    data = trained.datamodule
    prompt = data.sampler.tokenizer(data.dataset[0], "the first problem")
    assert tokenizer.decode(prompt.token_ids) == PROMPTS.get(row, QWEN_MATH)
    assert float(steps[0].get("drafts/left_out") or 0) == 0

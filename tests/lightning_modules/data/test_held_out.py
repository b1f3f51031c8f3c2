"""Named held-out sets: their sampling, their metrics, their ranks, and how a command line names them."""

import json
from types import SimpleNamespace

import pytest
import torch

from aggregate_po.recipes import gmpo
from lightning_modules import HeldOutSet, PolicyModule
from lightning_modules.addition import AdditionProblems
from lightning_modules.data.held_out import held_out_sets
from tests.lightning_modules.command_line import fit, rows
from tests.lightning_modules.training import RecordingEngine, quiet_trainer, small_data, text_reward

HARD = [{"prompt": f"What is {number} + 99?", "answer": "?"} for number in range(3)]


def validated(folder, model_folder, validation, **options):
    engine = RecordingEngine()
    data = small_data(validation=validation, rollouts=engine, temperature=0.9, **options)
    trainer, module = quiet_trainer(folder), PolicyModule(model_folder, gmpo())
    trainer.validate(module, data, verbose=False)
    return SimpleNamespace(engine=engine, metrics=module.held_out_metrics, data=data, module=module)


def test_each_set_has_its_own_sampling_and_metrics(tmp_path, model_folder):
    sets = {"easy": HeldOutSet(AdditionProblems(5, held_out=True)), "hard": HeldOutSet(HARD, 4, 0.6, 0.95)}
    run = validated(tmp_path, model_folder, sets)
    asked = [(len(prompts), one.samples_per_prompt, one.temperature, one.top_p) for prompts, one in calls(run.engine)]
    assert asked == [(5, 1, 0.9, 1.0), (5, 1, 0.0, 1.0), (3, 4, 0.6, 0.95), (3, 1, 0.0, 1.0)]
    kinds = "reward_sampled", "reward_greedy", "mean_length_sampled", "mean_length_greedy"
    assert run.metrics.keys() == {f"{name}/{kind}" for name in sets for kind in kinds}
    sampled = run.engine.generated[2]
    assert run.metrics["hard/mean_length_sampled"] == sampled.mask.sum().item() / 12
    texts = run.data.sampler._texts(sampled)
    rewards = [text_reward(text, HARD[number // 4]) for number, text in enumerate(texts)]
    assert run.metrics["hard/reward_sampled"] == pytest.approx(sum(rewards) / 12)
    assert len(set(rewards)) > 1


def calls(engine):
    return zip(engine.prompts, engine.sampling, strict=True)


def test_a_pass_rate_is_named_after_its_set(tmp_path, model_folder):
    def right(completion, example):
        return 1.0 if example["answer"] == "?" else 0.5

    sets = {"easy": HeldOutSet(AdditionProblems(2, held_out=True)), "hard": HeldOutSet(HARD, samples=2)}
    metrics = validated(tmp_path, model_folder, sets, reward=right, evaluations=["sampled"]).metrics
    assert metrics["hard/pass@1_sampled"] == metrics["hard/reward_sampled"] == 1.0
    assert [name for name in metrics if "pass@1" in name] == ["hard/pass@1_sampled"]
    assert metrics["easy/reward_sampled"] == 0.5


def test_a_single_set_has_no_name(tmp_path, model_folder):
    run = validated(tmp_path, model_folder, HARD)
    assert run.metrics.keys() >= {"reward_sampled", "reward_greedy"}
    assert [one.samples_per_prompt for one in run.engine.sampling] == [1, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_the_prompts_and_one_without_any_still_samples(tmp_path, model_folder, rank):
    run = validated(tmp_path, model_folder, {"hard": HeldOutSet(HARD[:1], samples=3)})
    shard = {"rank": rank, "num_replicas": 2}
    trainer = SimpleNamespace(distributed_sampler_kwargs=shard, world_size=2, global_rank=rank)
    held_out = run.data.validation["hard"]
    prompts = run.data.val_dataloader()[0]._prompts
    loader = held_out.loader("hard", prompts, "sampled", run.data.sampler, run.data.rewards, 1.0, trainer)
    (evaluation,) = loader
    assert len(evaluation.completions) == len(evaluation.lengths) == len(evaluation.rewards) == (3 if rank == 0 else 0)
    assert torch.isfinite(evaluation.rewards).all()


def test_the_command_line_names_sets_in_its_configuration(tmp_path, model_folder):
    (tmp_path / "hard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HARD))
    sets = {
        "easy": {"dataset": {"class_path": "lightning_modules.addition.AdditionProblems", "init_args": {"size": 2}}},
        "hard": {"dataset": str(tmp_path / "hard.jsonl"), "samples": 2, "temperature": 0.5},
    }
    options = f"--data.validation={json.dumps(sets)}", "--report.evaluate_every_n_steps=2", "--trainer.max_steps=2"
    command_line = fit(model_folder, tmp_path / "run", *options)
    assert command_line.datamodule.validation["hard"].samples == 2
    before, _, after = rows(tmp_path / "run")
    for row in (before, after):
        assert all(row[f"val/{name}/reward_{kind}"] for name in sets for kind in ("sampled", "greedy"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeldOutSet(HARD, samples=0), "`samples` is 0; pass 1 or more"),
        (lambda: HeldOutSet(HARD, temperature=0.0), r"`temperature` is 0\.0; pass a positive number"),
        (lambda: HeldOutSet(HARD, top_p=1.5), r"`top_p` is 1\.5; pass a probability"),
        (lambda: held_out_sets({}), r"`validation` is \{\}; pass at least one"),
        (lambda: held_out_sets({"a/b": HeldOutSet(HARD)}), "`validation` has the name 'a/b'; pass letters"),
        (lambda: held_out_sets({"rewards": HeldOutSet(HARD)}), "`validation` has the name 'rewards'; pass letters"),
        (lambda: held_out_sets({"a": HeldOutSet([])}), r"`validation\.a` is \[\], which has no prompts"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""The default job learns, in a shortened form; and it is the advantages that it learns from."""

import json

import pytest

from tests.end_to_end.conftest import CONFIG, REPOSITORY

STEPS = 60


@pytest.fixture
def shortened(run, tmp_path):
    def fit(*arguments: str) -> dict:
        folder = tmp_path / "run"
        status, output = run(
            [
                "fit",
                f"--config={CONFIG}",
                f"--trainer.max_steps={STEPS}",
                "--report.evaluate_every_n_steps=0",
                f"--trainer.default_root_dir={folder}",
                *arguments,
            ],
            PYTHONPATH=str(REPOSITORY),
        )
        assert status == 0, output
        return json.loads((folder / "summary.json").read_text())

    return fit


@pytest.mark.parametrize(
    "arguments", [[], ["--trainer.devices=2", "--trainer.strategy=ddp"]], ids=["one process", "two processes"]
)
def test_the_default_job_learns(arguments, shortened):
    summary = shortened(*arguments)
    before, after = summary["before"], summary["after"]
    assert summary["steps"] == STEPS
    assert before["pass@1_greedy"] < 0.15
    assert after["pass@1_greedy"] >= before["pass@1_greedy"] + 0.10
    assert after["pass@1_sampled"] >= before["pass@1_sampled"] + 0.10
    # It learns to work the sum out before it answers.
    assert after["mean_length_greedy"] >= before["mean_length_greedy"] + 5


def test_permuted_advantages_do_not_learn(shortened):
    summary = shortened("--trainer.callbacks=tests.end_to_end.permuted_advantages.PermutedAdvantages")
    before, after = summary["before"], summary["after"]
    assert after["pass@1_greedy"] < before["pass@1_greedy"] + 0.10
    assert after["pass@1_sampled"] < before["pass@1_sampled"] + 0.10

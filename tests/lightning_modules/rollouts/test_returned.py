"""What an engine returns is checked where it enters, and the engine named."""

import pytest
import torch

from lightning_modules.rollouts import Completions, SamplingParameters, TransformersEngine
from lightning_modules.rollouts.returned import require_completions
from tests.lightning_modules.data.test_module import ScriptedEngine, rollout_of
from tests.lightning_modules.training import small_data

SAMPLING = SamplingParameters(max_completion_length=3, stop_token_ids=(0,), samples_per_prompt=2)


def returned(*rows):
    mask = torch.tensor(rows).bool()
    return Completions(mask.long(), mask, mask.float(), torch.ones(len(mask)).bool())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 1, 0]], "returned 1 completions of 1 prompts; return 2, `samples_per_prompt` 2 of each"),
        ([[1, 1, 0], [0, 0, 0]], "returned no token in 1 of 2 completions, the first of them 1; return at least one"),
        ([[1, 0, 1], [1, 1, 1]], "returned a `mask` that is True after padding; .* padded on the right"),
        ([[0, 1, 1], [1, 1, 1]], "returned a `mask` that is True after padding"),
    ],
    ids=["missing", "empty", "hole", "left"],
)
def test_completions_that_break_the_contract_are_refused(rows, message):
    with pytest.raises(ValueError, match=f"`generate` of TransformersEngine {message}"):
        require_completions(returned(*rows), TransformersEngine(), 1, SAMPLING)


def test_completions_of_any_length_are_taken():
    require_completions(returned([1, 0, 0], [1, 1, 1]), TransformersEngine(), 1, SAMPLING)


@pytest.mark.parametrize("accumulate", [1, 8])
def test_a_completion_without_tokens_ends_the_run_whatever_the_micro_batches(tmp_path, model_folder, accumulate):
    data = small_data(rollouts=ScriptedEngine([2, 0, 3, 1, 3, 2, 3, 3]), prompts_per_rollout=2)
    with pytest.raises(ValueError, match="`generate` of ScriptedEngine returned no token in 1 of 8 completions"):
        rollout_of(tmp_path, model_folder, data=data, accumulate_grad_batches=accumulate)

"""Tokens of trained completions as rows of a table: what a row holds, its files, and reading them back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict, cast

from aggregate_po import Evaluated, PerCompletion, PerToken
from lightning_modules.batch import RolloutBatch
from lightning_modules.parquet_files import read_rows, step_files
from lightning_modules.prompts.base import short
from lightning_modules.token_texts import TokenTexts

FOLDER = "tokens"


class TokenRow(TypedDict):
    """A completion in one optimizer step, token by token.

    Lists have one entry for each token of the completion. Tokens that are not trained, such as the output of a tool,
    have weight and log-probabilities 0.

    Attributes:
        step: optimizer step that the gradient is of, from 1.
        group: number of the prompt in its rollout, as in the files of `CompletionsFile`.
        sample: number of the completion in its group.
        prompt: text of the prompt as the model reads it.
        completion: text of all tokens of the completion.
        reward: reward without a KL penalty; None without one.
        advantage: advantage of the completion, or a list of one for each token.
        tokens: text of each token; bytes of a part of a character are written as in `\\xe2`.
        token_ids: number of each token in the vocabulary.
        log_probs: log-probability under the policy that the step begins with; nats.
        old_log_probs: log-probability under the behavior policy; nats.
        weights: gradient of the step's objective with respect to each token's log-probability, `GradientWeights.total`.
        concentration: share of the completion's gradient that each token receives.
        gate: derivative of the token transform.
        clipped: whether a clip sets the gradient to zero.
        overflow: whether the bound on log ratios sets the gradient to zero.
        trained: whether the token is trained.
        exponent: exponent that a rule chose for the completion; None without a rule.
    """

    step: int
    group: int
    sample: int
    prompt: str
    completion: str
    reward: float | None
    advantage: float | list[float]
    tokens: list[str]
    token_ids: list[int]
    log_probs: list[float]
    old_log_probs: list[float]
    weights: list[float]
    concentration: list[float]
    gate: list[float]
    clipped: list[bool]
    overflow: list[bool]
    trained: list[bool]
    exponent: float | None


def token_rows(
    step: int, batch: RolloutBatch, log_probs: PerToken, evaluated: Evaluated, texts: TokenTexts
) -> list[TokenRow]:
    """Return a row for each completion of a micro-batch that has a trained token.

    Args:
        step: optimizer step that the micro-batch is part of, from 1.
        batch: the micro-batch.
        log_probs: log-probabilities under the current policy; shape `batch time`; nats.
        evaluated: the objective on this micro-batch.
        texts: texts of the tokens of the model.

    Raises:
        ValueError: the batch does not tell which completions of a rollout it has.
    """
    if batch.policy.groups is None or batch.samples is None:
        name = "policy.groups" if batch.policy.groups is None else "samples"
        raise ValueError(
            f"`batch.{name}` is None, so its completions have no numbers; set it as RolloutDataModule does."
        )
    mask, weights = batch.policy.response_mask, evaluated.weights
    by_token = {
        "token_ids": batch.completion_ids,
        "log_probs": log_probs.detach().where(mask, 0),
        "old_log_probs": batch.policy.old_log_probs,
        "weights": weights.total,
        "concentration": weights.concentration,
        "gate": weights.gate,
        "clipped": weights.clipped,
        "overflow": weights.overflow,
        "trained": mask,
    }
    lists = {name: values.expand(mask.shape).tolist() for name, values in by_token.items()}
    by_completion = {
        "group": batch.policy.groups.tolist(),
        "sample": batch.samples.tolist(),
        "reward": _numbers_or_none(batch.rewards, len(mask)),
        "exponent": _numbers_or_none(evaluated.exponents, len(mask)),
    }
    lengths, advantages = batch.completion_mask.sum(dim=-1).tolist(), batch.policy.advantages.tolist()
    prompts, prompt_of, rows = _prompts(batch, texts), batch.prompt_of.tolist(), []
    for number in mask.any(dim=-1).nonzero().flatten().tolist():
        length, advantage = lengths[number], advantages[number]
        of_tokens = {name: values[number][:length] for name, values in lists.items()}
        row = {
            "step": step,
            **{name: values[number] for name, values in by_completion.items()},
            "prompt": prompts[prompt_of[number]],
            "completion": texts.joined(of_tokens["token_ids"]),
            "advantage": advantage[:length] if isinstance(advantage, list) else advantage,
            "tokens": texts(of_tokens["token_ids"]),
            **of_tokens,
        }
        rows.append(cast(TokenRow, {name: row[name] for name in TokenRow.__annotations__}))
    return rows


def _numbers_or_none(values: PerCompletion | None, count: int) -> list[float | None]:
    """Return the number of each completion, None where there is none."""
    numbers = [math.nan] * count if values is None else values.tolist()
    return [None if math.isnan(number) else number for number in numbers]


def _prompts(batch: RolloutBatch, texts: TokenTexts) -> list[str]:
    rows = zip(batch.prompt_ids.cpu(), batch.prompt_mask.cpu(), strict=True)
    return [texts.joined(ids[mask].tolist()) for ids, mask in rows]


def token_files(run: Path) -> dict[int, Path]:
    """Return the files of a run by their optimizer step, in its order."""
    return step_files(run / FOLDER)


def read_token_rows(run: str | Path, step: int | tuple[int, int] | None = None) -> list[TokenRow]:
    """Return the rows that `TokenWeightsFile` has written, as one mapping per completion; `TokenRow` lists the names.

    Args:
        run: run folder.
        step: optimizer step, or first and last step; all when None. Not every step of a run has a file.

    Raises:
        FileNotFoundError: the run has no token rows, or none of this step.
        ValueError: a file is damaged.

    Example:
        `read_token_rows("runs/mine", step=50)[0]["weights"]`
    """
    files = token_files(Path(run))
    if not files:
        raise FileNotFoundError(
            f"`run` is {str(run)!r}, which has no files {FOLDER}/step-*.parquet; train with `--trainer.callbacks+="
            "lightning_modules.TokenWeightsFile`."
        )
    if isinstance(step, int) and step not in files:
        raise FileNotFoundError(f"`step` is {step}, but {run} has token rows of the steps {short([*files])} only.")
    first, last = (min(files), max(files)) if step is None else step if isinstance(step, tuple) else (step, step)
    rows: list[Any] = [row for number, path in files.items() if first <= number <= last for row in read_rows(path)]
    return rows

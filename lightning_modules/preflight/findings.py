"""Findings of a trial rollout: metrics, and a verdict on the training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_modules.evaluation import Estimate, avg_at_k
from lightning_modules.preflight.signal import PassRates
from lightning_modules.preflight.trial_rollout import TrialRollout
from lightning_modules.prompts.base import shown

_GROUP_SIZES = (4, 8, 16, 32)
_FEW = 0.1  # share of groups with signal below which nearly all of the sampling is for nothing
_MANY_TRUNCATED = 0.5
_RELIABLE = 8  # groups; the share of fewer says little
_SAMPLES = 3  # completions that are shown, of different prompts
_LONGEST = 160  # characters of a text that is shown


@dataclass(frozen=True)
class Disagreement:
    """Completions whose reward differs between two graders.

    Args:
        other: name of the second grader.
        count: number of completions with different rewards.
        completions: number of completions that both have graded.
        examples: some of them, as text.
    """

    other: str
    count: int
    completions: int
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """Metrics of a trial rollout.

    Args:
        prompts: number of prompts.
        group_size: number of completions per prompt.
        reward: mean reward, NaN if every verdict failed.
        failed: number of completions whose verdict failed; they are out of their group.
        pass_rate: pass rate with its 95 % interval over prompts; None where a reward is neither 0 nor 1.
        pass_rates: distribution of the pass rate over prompts; None where `pass_rate` is.
        signal: share of the sampled groups whose rewards differ.
        trained: share of the sampled groups in which an advantage is not 0; that of groups with signal, unless the
            estimator has another baseline than the rewards of the group.
        truncated: share of completions that reached the maximum length.
        mean_length: mean number of tokens of a completion.
        trial: the trial rollout.
        disagreement: comparison with a second grader, None without one.
    """

    prompts: int
    group_size: int
    reward: float
    failed: int
    pass_rate: Estimate | None
    pass_rates: PassRates | None
    signal: float
    trained: float
    truncated: float
    mean_length: float
    trial: TrialRollout = field(repr=False)
    disagreement: Disagreement | None = None

    @classmethod
    def of(cls, trial: TrialRollout, disagreement: Disagreement | None = None) -> Findings:
        """Compute the metrics of a trial rollout."""
        prompts, group_size = trial.rewards.shape
        rewards = trial.rewards[trial.scored]
        groups = [row[known].tolist() for row, known in zip(trial.rewards, trial.scored, strict=True)]
        groups = [group for group in groups if len(group) > 1]
        is_verdict = bool(groups) and bool(((rewards == 0) | (rewards == 1)).all())
        return cls(
            prompts=prompts,
            group_size=group_size,
            reward=_mean(rewards),
            failed=int((~trial.scored).sum()),
            pass_rate=avg_at_k(groups) if is_verdict else None,
            pass_rates=PassRates.of(groups) if is_verdict else None,
            signal=_mean(trial.have_signal),
            trained=_mean(trial.have_advantage),
            truncated=_mean(~trial.finished),
            mean_length=_mean(trial.lengths),
            trial=trial,
            disagreement=disagreement,
        )

    def lines(self) -> list[str]:
        """Return the metrics as lines of text."""
        lines = [f"completions:  {self.prompts * self.group_size:,} = {self.prompts:,} prompts x {self.group_size}"]
        if self.pass_rate is None:
            lines += [f"mean reward:  {self.reward:.3g} (not only 0 and 1, so that there is no pass rate)"]
        else:
            estimate = self.pass_rate
            lines += [
                f"pass rate:    {estimate.value:.3f} (95 % interval over prompts: {estimate.low:.3f} to "
                f"{estimate.high:.3f})"
            ]
        lines += [f"with signal:  {self.signal:.1%} of the groups sampled here"]
        lines += self._expected()
        lines += [f"failed:       {self.failed:,} verdicts, not counted above"] if self.failed else []
        lines += [f"truncated:    {self.truncated:.1%}; mean length {self.mean_length:.1f} tokens"]
        return lines + self._graders() + self._samples()

    def verdict(self) -> list[str]:
        """Return sentences on whether a run from here can learn, and what keeps it from learning."""
        sentences = [self._of_signal()]
        if self.truncated > _MANY_TRUNCATED:
            sentences.append(
                f"{self.truncated:.0%} of the completions are truncated: raise `data.max_completion_length`, or see "
                "whether the chat template and the stop tokens are those of the model."
            )
        if self.failed:
            sentences.append(
                f"{self.failed:,} verdicts failed: the warning above shows the first one. Correct the reward, or raise "
                "its time limit."
            )
        if self.disagreement is not None and self.disagreement.count:
            share = self.disagreement.count / self.disagreement.completions
            sentences.append(
                f"The graders differ on {share:.1%} of the completions: look at those above before you train on either."
            )
        return sentences

    def _of_signal(self) -> str:
        if self.trained == 0:
            return f"This run would not learn: {self._without_advantages()}"
        shares = f"{self.trained:.1%} of the groups have an advantage, {self.signal:.1%} have signal"
        if self.trained == self.signal:
            shares = f"{self.signal:.1%} of the groups have signal"
        if self.trained < _FEW:
            return (
                f"This run can hardly learn: {shares}, the others are sampled for nothing. Use prompts of another "
                "difficulty, a larger `data.group_size`, or dynamic sampling."
            )
        few = f" These are only {self.prompts} groups; raise --completions." if self.prompts < _RELIABLE else ""
        return f"This run can learn: {shares}.{few}"

    def _without_advantages(self) -> str:
        if self.signal > 0:
            return (
                f"{self.signal:.1%} of the groups have signal, but no advantage differs from 0. Use another estimator, "
                "`data.advantages`, or prompts of another difficulty."
            )
        if self.reward == 0:
            return (
                f"none of {self.trial.rewards.numel():,} completions has a reward. Look at completions above: the "
                "reward may not find the answer in the form that the model writes. Otherwise use easier prompts, or a "
                "reward with partial credit."
            )
        return (
            "the completions of each prompt all have the same reward, so no advantage differs from 0. Use prompts that "
            "the model sometimes solves, or a larger `data.group_size`."
        )

    def _expected(self) -> list[str]:
        if self.pass_rates is None:
            return []
        rates, size = self.pass_rates, self.group_size
        sizes = ", ".join(f"{rates.share(other):.1%} at {other}" for other in _GROUP_SIZES)
        return [
            f"  expected:   {rates.share_at_mean(size):.1%} if all prompts had this pass rate; {rates.share(size):.1%} "
            f"over the spread of pass rates (standard deviation {rates.variance**0.5:.3f})",
            f"  group size: {sizes}",
        ]

    def _graders(self) -> list[str]:
        if self.disagreement is None:
            return ["graders:      one; name a second one by --other_reward to compare them"]
        found = self.disagreement
        return [
            f"graders:      {found.other} gives another reward on {found.count:,} of {found.completions:,} completions",
            *(f"  {example}" for example in found.examples),
        ]

    def _samples(self) -> list[str]:
        rows = range(0, len(self.trial.texts), self.group_size)[:_SAMPLES]
        rewards, scored = self.trial.rewards.flatten(), self.trial.scored.flatten()
        return [
            f"sample:       {shorter(shown(self.trial.examples[row]['prompt']))!r} -> "
            f"{shorter(self.trial.texts[row])!r}, "
            + (f"reward {float(rewards[row]):.3g}" if scored[row] else "verdict failed")
            for row in rows
        ]


def shorter(text: str) -> str:
    """Return the beginning and the end of a long text, where prompts and answers stand."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def _mean(values: Tensor) -> float:
    return float(values.double().mean())

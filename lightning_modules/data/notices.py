"""Notices about a run that cannot learn, or in which the choice of the mean has no effect; each is given once."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.rewards import TruncationRule

_MANY_FAILED = 0.1  # fraction of the completions of a rollout on which a verdict failed
_ROLLOUTS_WITHOUT_SIGNAL = 2  # one rollout of few prompts may have no signal by chance

_EFFECT_OF_TRUNCATION: dict[TruncationRule, str] = {
    "score": "none of them ended by itself",
    "zero_reward": "all rewards are 0",
    "mask": "no token is trained",
}


class Notices:
    """Gives notices at the start of training and after rollouts.

    Args:
        max_completion_length: number of tokens at which completions are truncated.
        truncated: rule for truncated completions.
    """

    def __init__(self, max_completion_length: int, truncated: TruncationRule) -> None:
        self._max_completion_length, self._truncated = max_completion_length, truncated
        self._rollouts = 0
        self._without_signal = True
        self._many_failed = False

    def before_training(self, plan: UpdatePlan, old_policy_samples: bool) -> None:
        """Notify if the policy of every update is the one that its data came from.

        Args:
            plan: split of a rollout into updates.
            old_policy_samples: whether the behavior policy of a completion may be some optimizer steps older than the
                trained one.
        """
        if plan.updates * plan.epochs == 1 and not old_policy_samples:
            rank_zero_warn(
                "`updates_per_rollout` and `epochs_per_rollout` are 1, so every update uses data of the policy itself: "
                "all ratios are 1, except for numerical differences between sampler and trainer. Every mean of ratios "
                "then has the same gradient, and nothing is clipped. To compare objectives pass 2 or more of either."
            )

    def after_rollout(self, metrics: Mapping[str, float], has_advantage: bool) -> None:
        """Notify if the first rollouts have no signal, all completions of the first are truncated, or verdicts fail.

        Args:
            metrics: metrics of the rollout.
            has_advantage: whether an advantage of the rollout differs from 0; under an estimator with another baseline
                than the mean of the group, groups of equal rewards have advantages.
        """
        self._rollouts += 1
        if not self._many_failed and metrics["completions/failed_ratio"] > _MANY_FAILED:
            self._many_failed = True
            causes = {name: count for name, count in metrics.items() if "/failed/" in name and count}
            counts = "; " + ", ".join(f"{name}: {count:.0f}" for name, count in causes.items()) if causes else ""
            share = metrics["completions/failed_ratio"]
            rank_zero_warn(
                f"Verdicts failed on {share:.0%} of the completions of a rollout{counts}. "
                "Those completions may be the hard ones, and a run that leaves them out trains on the others: raise "
                "the limit of the reward, or correct it."
            )
        if self._rollouts == 1 and metrics["completions/clipped_ratio"] == 1:
            rank_zero_warn(
                "All completions of the first rollout were truncated at `max_completion_length`="
                f"{self._max_completion_length}, so {_EFFECT_OF_TRUNCATION[self._truncated]} (`truncated` is "
                f"{self._truncated!r}). Pass a larger `max_completion_length`, ask for short answers in the prompt, or "
                "see whether the chat template and the stop tokens are those of the model."
            )
        self._without_signal &= metrics["frac_reward_zero_std"] == 1 and not has_advantage
        if self._rollouts == _ROLLOUTS_WITHOUT_SIGNAL and self._without_signal:
            rank_zero_warn(
                f"No group of the first {self._rollouts} rollouts had signal: within each, all completions have the "
                f"same reward (the mean is {metrics['reward']:.3g}), so no advantage differs from 0 and the policy "
                "learns nothing. Look at completions and rewards (`aggregate-po validate`): the reward may not find "
                "the answer in the form that the model writes it in. Otherwise use prompts that the policy sometimes "
                "solves, a larger `group_size`, or a reward with partial credit."
            )
